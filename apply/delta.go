package apply

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/rowkey"
	"github.com/pgbridge/pgbridge/wire"
)

// A node that was away for longer than the others kept its backlog cannot read it any more. Another node gives it a delta
// instead: every row whose version its vector does not cover, and every delete. Rows and deletes are what the transactions
// in between have come to, since the state of a row is the latest of all writes that a node has seen (PROOF.md section 7); who
// has taken a delta in has seen all that its donor had. Nothing is compared by content, and what is the same on both
// nodes does not travel.

// Donation configures a delta.
type Donation struct {
	Snapshot    string                          // as exported; its transactions are a prefix of the commit records (PROOF.md F17)
	Publication string                          // whose tables are meant
	For         string                          // the other node
	Without     func(schema, table string) bool // which of them the other node does not have; nil: it has all
	Taken       func()                          // called when it need not be held any more
	Have        origin.Vector                   // what the other node has seen
	// Own returns the last own transaction in the snapshot, once capture has read them all.
	Own func(ctx context.Context) (origin.Entry, error)
	// Settled, of a delta with whole merged tables, is what HoldJournal said before the snapshot was taken.
	Settled uint64
	// Merged: merged tables go whole, with their journal, since the other node, which joins, has nothing of them (HoldJournal).
	Merged bool
	// Whole, if set, asks for that and more: the other node's data were set back (wholedelta.go).
	Whole *Whole
}

// NoDelta means that a node cannot give a delta, for a reason that another one may not have.
type NoDelta struct{ Reason string }

// Error gives the reason.
func (e *NoDelta) Error() string { return e.Reason }

// donor writes a delta. It has two sessions with the same snapshot: one reads rows, the other looks at who wrote them.
type donor struct {
	*carefulRun // of no transaction; its up is what the other node has seen
	reader      *pgx.Conn
	first       uint32 // as in opts, unless ids have come round since
	out         io.Writer
	buf         []byte
	last        origin.Version // of which the rows are that follow
	rows        uint64
	seen        origin.Vector
	whole       *Whole                          // nil: what the other node lacks is enough
	keys        []wire.KeyHash                  // that are not written yet, if whole is set
	asker       string                          // the other node
	settled     uint64                          // as in Donation
	not         func(schema, table string) bool // tables that it does not have; nil: it has all
}

func (x *donor) without(schema, table string) bool { return x.not != nil && x.not(schema, table) }

// deltaBatch is how many rows are looked at in one round trip.
const deltaBatch = 500

// Delta writes to out what d asks for, as records (wire.KindEnd), while the Applier runs. The error is a NoDelta if the node
// cannot know it.
func (a *Applier) Delta(ctx context.Context, d Donation, out io.Writer) error {
	wal := a.wal.Load()
	if wal == nil {
		return &NoDelta{"the bridge does not run yet"}
	}
	x := &donor{out: out, whole: d.Whole, settled: d.Settled, asker: d.For, not: d.Without}
	if x.whole != nil {
		d.Have = x.whole.proved(d.Have)
	}
	for _, conn := range []**pgx.Conn{&x.reader, nil} {
		c, err := connect(ctx, a.opts.DSN, fmt.Sprintf("pgbridge %s delta", a.opts.Node), map[string]string{
			"enable_seqscan": "on", "enable_hashjoin": "on", "default_transaction_isolation": "repeatable read", "default_transaction_read_only": "on"})
		if err != nil {
			return err
		}
		defer c.Close(context.WithoutCancel(ctx))
		if _, err := c.Exec(ctx, "BEGIN; SET TRANSACTION SNAPSHOT "+literal(d.Snapshot)); err != nil {
			return fmt.Errorf("take the snapshot over: %w", err)
		}
		if conn != nil {
			*conn = c
			continue
		}
		if x.carefulRun, err = a.sideRun(ctx, c); err != nil {
			return err
		}
	}
	d.Taken()
	x.wal = *wal
	if err := x.begin(ctx, d); err != nil {
		return err
	}
	if err := x.made(ctx, a, d.Have); err != nil {
		return err
	}
	tables, err := x.tables(ctx, d.Publication)
	if err != nil {
		return err
	}
	var merged []*table
	for _, t := range tables {
		if t.merge != nil {
			merged = append(merged, t)
		} else if err := x.table(ctx, t); err != nil {
			return err
		}
	}
	if x.whole != nil || d.Merged {
		err = x.mergedWhole(ctx, merged)
	} else {
		err = x.merged(ctx, merged)
	}
	if err != nil {
		return err
	}
	if err := x.kept(ctx); err != nil {
		return err
	}
	if err := x.writeKeys(0); err != nil {
		return err
	}
	if err := x.gone(a.absence, d.Have); err != nil {
		return err
	}
	return x.write(wire.AppendEnd(x.buf[:0], x.seen, x.rows))
}

// sideRun makes a run for looking at rows on a connection of its own, in no origin's name.
func (a *Applier) sideRun(ctx context.Context, conn *pgx.Conn) (*carefulRun, error) {
	w := &worker{
		own: a.own, id: noOrigin, opts: &a.opts, log: a.opts.Logger, progress: a.progress, markers: a.markers, absence: a.absence,
		heard: a.heard, kept: a.kept, conn: conn, catalog: a.catalog, schema: a.schema, digests: rowkey.NewDigests(a.catalog.ask), pasts: map[tableName]*past{},
		mappings: map[uint32]*mapping{}, ctx: ctx, kinds: &a.kinds,
	}
	w.journal = a.journal
	w.planner.w = w
	w.guard = a.keeper.guard
	w.guard.self = w.id
	return newCarefulRun(w, []*txn{{}}), nil
}

// noOrigin is the number of no replication origin: those have 16 bits.
const noOrigin = math.MaxInt32

// begin reads what the node has seen in the snapshot. All of it must be on disk before anybody hears of it (PROOF.md R17).
func (x *donor) begin(ctx context.Context, d Donation) error {
	lsn, err := x.markers.flush(ctx)
	if err != nil {
		return err
	}
	if err := x.wal.WaitPassed(ctx, lsn); err != nil {
		return err
	}
	own, err := d.Own(ctx)
	if err != nil {
		return err
	}
	own.Origin = x.own
	x.seen.Advance(own)
	x.caughtUp, x.waited = true, true
	x.t.up, x.t.low = d.Have, d.Have
	if x.whole != nil { // what all others have seen, this node may not know any more who wrote
		x.t.low = x.whole.Settled
	}
	rows, err := x.exec(ctx, `SELECT origin, epoch::text, seq::text, stamp::text, pg_snapshot_xmax(pg_current_snapshot())::text, 
		(SELECT count(*) FROM pgbridge.parked)::text FROM pgbridge.position`, nil, nil)
	if err != nil {
		return fmt.Errorf("read positions: %w", err)
	}
	for _, r := range rows {
		var e origin.Entry
		var parked int
		if _, err := fmt.Sscan(fmt.Sprintf("%s %s %s %s %s %s", r[0], r[1], r[2], r[3], r[4], r[5]),
			&e.Origin.Node, &e.Origin.Epoch, &e.Seq, (*int64)(&e.Stamp), &x.xmax, &parked); err != nil {
			return fmt.Errorf("read positions: %w", err)
		}
		if parked > 0 {
			return &NoDelta{fmt.Sprintf("%d transactions are parked there: see to them with pgbridge parked", parked)}
		}
		x.seen.Advance(e)
	}
	if x.xmax-x.opts.FirstXID < 1<<31 {
		x.first = uint32(x.opts.FirstXID)
	}
	return nil
}

// tables are those that are published, each as it is published.
func (x *donor) tables(ctx context.Context, publication string) ([]*table, error) {
	rows, err := x.exec(ctx, `SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = $1 ORDER BY 1, 2`,
		[]uint32{oidText}, []param{textParam(publication)})
	if err != nil {
		return nil, fmt.Errorf("read published tables: %w", err)
	}
	var all []*table
	for _, r := range rows {
		if x.without(string(r[0]), string(r[1])) {
			continue
		}
		t, err := x.catalog.tableNow(ctx, string(r[0]), string(r[1]))
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}

// relation describes the table as capture does; columns that are generated are left out.
func (t *table) relation(id uint32) *wire.Relation {
	r := &wire.Relation{ID: id, Schema: t.schema, Name: t.name, ReplicaIdentity: 'd'}
	for i := range t.cols {
		c := &t.cols[i]
		if c.generated {
			continue
		}
		root := c.typ.root()
		col := wire.Column{Name: c.name, TypeOID: root.oid, Typmod: -1, Key: slices.Contains(t.key, i)}
		if root.oid >= firstOwnOID {
			col.TypeSchema, col.TypeName = root.schema, root.name
		}
		r.Columns = append(r.Columns, col)
	}
	return r
}

// selfMapping fits a table to itself.
func (w *worker) selfMapping(t *table) (*mapping, error) {
	r := t.relation(t.oid)
	return w.mappingOf(r, r.ID)
}

// table writes the rows of one table that the other node lacks.
func (x *donor) table(ctx context.Context, t *table) error {
	m, err := x.selfMapping(t)
	if err != nil {
		return err
	}
	if err := x.write(wire.AppendRelation(x.buf[:0], m.remote)); err != nil {
		return err
	}
	resides, err := x.opts.residesSQL(x.asker, t)
	if err != nil {
		return err
	}
	sql, types, ps := x.rowsSQL(m, resides)
	_, formats := m.allColumns()
	values, paramFormats := raw(ps)
	r := x.reader.PgConn().ExecParams(ctx, sql, values, types, paramFormats, append(slices.Clone(formats), 0))
	var batch [][]wire.Value
	for err == nil && r.NextRow() {
		row := r.Values()
		tuple := tupleOf(row[:len(formats)], formats)
		if x.whole != nil && string(row[len(formats)]) == "t" {
			var wanted bool
			if wanted, err = x.holds(m, tuple); err != nil || !wanted {
				continue
			}
		}
		for i := range tuple {
			tuple[i].Data = slices.Clone(tuple[i].Data)
		}
		if batch = append(batch, tuple); len(batch) == deltaBatch {
			err = x.batch(ctx, m, batch)
			batch = batch[:0]
		}
	}
	if _, late := r.Close(); err == nil && late != nil {
		err = fmt.Errorf("read rows of %s: %w", t.quoted, late)
	}
	if err != nil {
		return err
	}
	return x.batch(ctx, m, batch)
}

// rowsSQL finds the rows of a table that the other node may lack. What it has seen is told as a guard tells it; a row that
// bears a bundle's stamp has one of its own that is not above it. resides is the condition that the other node has the row at all.
func (x *donor) rowsSQL(m *mapping, resides string) (string, []uint32, []param) {
	cols, _ := m.allColumns()
	xid := func(id uint64) param { return binaryParam(binary.BigEndian.AppendUint32(nil, uint32(id))) }
	within, _ := x.wal.MarkWithin(x.t.up, x.origin)
	mark, _ := x.wal.MarkFor(x.t.up.Seq(x.own))
	types := []uint32{oidXID, oidXID, oidXID}
	ps := []param{xid(within), xid(mark), xid(uint64(x.first))} // the age of id 0 is infinite
	var covered strings.Builder
	fmt.Fprintf(&covered, "age(t.xmin) > age($1) OR age(t.xmin) > age($3) OR CASE c.roident WHEN 0 THEN age(t.xmin) > age($2) AND %s", genuine)
	for i, o := range x.guard.others {
		types, ps = append(types, oidTimestamptz), append(ps, stampParam(x.t.up.Get(o)))
		fmt.Fprintf(&covered, " WHEN %d THEN c.timestamp <= $%d", x.guard.ids[i], len(types))
	}
	if x.whole != nil {
		return fmt.Sprintf("SELECT %s, (%s ELSE false END) IS TRUE FROM %s t, %s WHERE %s", cols, covered.String(), m.local.rows, lookVersion, resides), types, ps
	}
	return fmt.Sprintf("SELECT %s, false FROM %s t, %s WHERE (%s ELSE false END) IS NOT TRUE AND %s",
		cols, m.local.rows, lookVersion, covered.String(), resides), types, ps
}

// batch looks at who wrote rows and writes those that the other node lacks.
func (x *donor) batch(ctx context.Context, m *mapping, batch [][]wire.Value) error {
	if len(batch) == 0 {
		return nil
	}
	g := &keyGroup{tuples: batch, hashes: make([]wire.KeyHash, len(batch))}
	for i, tuple := range batch {
		var err error
		if g.hashes[i], err = x.planner.hash(m, tuple); err != nil {
			return err
		}
	}
	if err := x.fetchOnly(ctx, m, g); err != nil {
		return err
	}
	if err := x.writeKeys(goneKeys); err != nil {
		return err
	}
	for i, k := range g.hashes {
		if g.found[i] == nil {
			return fmt.Errorf("a row of %s is not found by its key; is its index corrupt?", m.local.quoted)
		}
		l, err := x.present(m, g.found[i], k)
		if errors.Is(err, errUnknown) {
			return &NoDelta{fmt.Sprintf("who wrote rows of table %s is not known there any more (it was rewritten, or their commit timestamps are gone); "+
				"UPDATE its rows there, so that they are the latest", m.local.quoted)}
		}
		if err != nil {
			return err
		}
		if x.whole != nil {
			if x.goes(m, k, l) {
				continue
			}
			x.keys = append(x.keys, k)
		}
		if l.seen && !x.wants(k) || l.local.Ancient && x.whole == nil {
			continue
		}
		v, given, err := x.given(l, g.found[i], k)
		if err != nil {
			return err
		}
		if !given {
			continue
		}
		if err := x.row(m.remote.ID, v, batch[i]); err != nil {
			return err
		}
	}
	return nil
}

func (x *donor) row(relation uint32, v origin.Version, tuple []wire.Value) error {
	b := x.buf[:0]
	if v != x.last || x.rows == 0 {
		b, x.last = wire.AppendWriter(b, v), v
	}
	x.rows++
	return x.write(wire.AppendChange(b, wire.KindInsert, relation, wire.AppendTuple([]byte{'N'}, tuple)))
}

// kept writes the rows that exist and are not visible (quarantine.go).
func (x *donor) kept(ctx context.Context) error {
	rows, err := x.reader.Query(ctx, `SELECT hi, lo, schema, name, origin, epoch, stamp, columns, image FROM pgbridge.quarantine`)
	if err != nil {
		return fmt.Errorf("read quarantine: %w", err)
	}
	id := uint32(math.MaxUint32) // below are the tables' own
	var schema, name string
	var v origin.Version
	var columns []string
	var image []*string
	var hi, lo int64
	_, err = pgx.ForEachRow(rows, []any{&hi, &lo, &schema, &name, &v.Origin.Node, &v.Origin.Epoch, (*int64)(&v.Stamp), &columns, &image}, func() error {
		key := wire.KeyHash{Hi: uint64(hi), Lo: uint64(lo)}
		if x.without(schema, name) {
			return nil
		}
		if p := x.opts.places(schema, name); p != nil && !keptAt(p, x.asker, columns, image) {
			return nil
		}
		if x.whole != nil {
			x.keys = append(x.keys, key)
		}
		if e := x.t.up.Get(v.Origin); (v.Origin.Node == "" || e.Seq > 0 && v.Stamp <= e.Stamp) && !x.wants(key) {
			return nil
		}
		if v.Origin.Node == "" {
			v = x.oldest()
		}
		t, err := x.catalog.tableNow(ctx, schema, name)
		if err != nil {
			return err
		}
		r := t.relation(id)
		id--
		r.Columns = slices.DeleteFunc(r.Columns, func(c wire.Column) bool { return !slices.Contains(columns, c.Name) })
		tuple, err := x.keptTuple(ctx, t, r, columns, image)
		if err != nil {
			return fmt.Errorf("row of %s: %w", t.quoted, err)
		}
		if err := x.write(wire.AppendRelation(x.buf[:0], r)); err != nil {
			return err
		}
		return x.row(r.ID, v, tuple)
	})
	if err != nil {
		return fmt.Errorf("read quarantine: %w", err)
	}
	return nil
}

// keptAt reports whether a node has a row that is kept: with the texts of its columns.
func keptAt(p *wire.Places, node string, columns []string, image []*string) bool {
	i := slices.Index(columns, p.Column)
	return i >= 0 && image[i] != nil && p.At(node, []byte(*image[i]))
}

// keptTuple gives a kept row the form that a visible one has: a key's hash depends on it.
func (x *donor) keptTuple(ctx context.Context, t *table, r *wire.Relation, columns []string, image []*string) ([]wire.Value, error) {
	var names []string
	var types []uint32
	var values [][]byte
	var formats []int16
	for i := range r.Columns {
		c := &t.cols[slices.IndexFunc(t.cols, func(c column) bool { return c.name == r.Columns[i].Name })]
		types, formats = append(types, c.param()), append(formats, c.typ.format())
		names = append(names, fmt.Sprintf("$%d", len(types)))
		var value []byte
		if text := image[slices.Index(columns, c.name)]; text != nil {
			value = []byte(*text)
		}
		values = append(values, value)
	}
	rows := x.conn.PgConn().ExecParams(ctx, "SELECT "+strings.Join(names, ", "), values, types, nil, formats).Read()
	if rows.Err != nil {
		return nil, rows.Err
	}
	return tupleOf(rows.Rows[0], formats), nil
}

// gone writes the deletes that the snapshot has and the other node has not seen. One that has taken an older one's place
// since is still to come to it.
func (x *donor) gone(a *absence, have origin.Vector) error {
	for _, g := range a.gone(func(t tombstone) bool {
		return (x.whole != nil || !have.Covers(t.Origin, t.seq)) && x.seen.Covers(t.Origin, t.seq)
	}) {
		if err := x.write(wire.AppendGone(x.buf[:0], g)); err != nil {
			return err
		}
	}
	return nil
}

// goneKeys bounds the keys of one record.
const goneKeys = 10_000

// gone returns the deletes that are wanted.
func (a *absence) gone(want func(tombstone) bool) (all []*wire.Gone) {
	a.mu.Lock()
	defer a.mu.Unlock()
	open := map[tombstone]*wire.Gone{}
	add := func(t tombstone, k wire.KeyHash) {
		g := open[t]
		if g == nil || len(g.Keys) == goneKeys {
			g = &wire.Gone{Version: t.Version, Seq: t.seq}
			open[t], all = g, append(all, g)
		}
		g.Keys = append(g.Keys, k)
	}
	for k, t := range a.tombs {
		if want(t) {
			add(t, k)
		}
	}
	for i := range a.bulks {
		if want(a.bulks[i].tombstone) {
			for _, k := range a.bulks[i].keys {
				add(a.bulks[i].tombstone, k)
			}
		}
	}
	for n, t := range a.truncated {
		if want(t) {
			all = append(all, &wire.Gone{Version: t.Version, Seq: t.seq, Schema: n.schema, Table: n.name})
		}
	}
	return all
}

func (x *donor) write(b []byte) error {
	x.buf = b
	_, err := x.out.Write(b)
	return err
}

// Have is what this node has seen, for a donor to judge by what it lacks: with whatever it wrote itself, and without what is parked.
func (a *Applier) Have() origin.Vector {
	v := a.progress.told()
	v.Advance(origin.Entry{Origin: a.own, Seq: math.MaxInt64, Stamp: math.MaxInt64})
	return v
}
