package apply

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// A node's data may be set back: restored from a backup, or those of a standby that had not got everything. Others have then more of
// its own transactions than it has itself, and believe that it has all that it had told of. It is given back what it lacks as a whole
// delta (wholedelta.go), from a node that has all of its transactions that anybody has: so that donor had seen all that any of these
// tells of, and all that anybody may have forgotten because of that is in what it gives. Then the node goes on under its own name
// behind the last of those transactions, in a new stream: no node needs to know that anything was.
//
// In its database stand besides what its users had written that nobody got: before its data were set back, or since. These rows meet
// the delta's as others' writes do, and are then written again, for the others (again.go). What they deleted is told by keys that the
// donor has and this node had seen, and has no more; it is deleted again.
//
// Users' transactions wait while the delta is taken in: they would not have seen it, and nothing could tell others so.

// Comeback says what is known of a node whose data were set back.
type Comeback struct {
	// Seq is its last transaction that anybody has.
	Seq uint64
	// Of local rows that some transaction wrote with an id of at least XID, at a time after Since, which is none of Known, nobody has
	// got anything.
	XID   uint64
	Since origin.Stamp
	Known map[origin.Stamp]bool // commit times
	// Own is the last of its transactions that its present data certainly have.
	Own origin.Entry
	// Asked are the keys that LacksRows named so far.
	Asked map[wire.KeyHash]bool
	// WriterEpoch is to be exceeded.
	WriterEpoch uint64
}

// CameBack says what a node has been given whose data were set back.
type CameBack struct {
	Resynced
	Again   int // rows that its users had written, or deleted, and nobody had got: they are written again
	Seq     uint64
	Counted int // rows of merged tables among what users had written: the others' rows took their place
}

// LacksRows is the error of ComeBack if rows must be in the delta that are not: those of these keys.
type LacksRows struct{ Keys map[wire.KeyHash]bool }

// Error says how many.
func (e *LacksRows) Error() string {
	return fmt.Sprintf("%d rows that were deleted here, and that nobody has got to know of, are to be had first", len(e.Keys))
}

// comeback is one in progress.
type comeback struct {
	*resync
	Comeback
	relations map[uint32]*mapping
	mine      map[wire.KeyHash]mine // what users have written that nobody has got
	deleted   map[wire.KeyHash]bool // what they have deleted
	had       origin.Vector         // what had been applied here for certain
	until     origin.Stamp          // up to here its own transactions stand in its data for certain (proved.go)
	lsn, xid  uint64                // from where on WAL, and rows, are captured
	stamp     origin.Stamp          // under which rows are written again: above all that is here, and in the delta
	unsent    map[returnedRow]origin.Stamp
	again     int
	counted   int
}

// returnedRow is what names a row in pgbridge.returned: its commit's stamp, and half of its key's hash.
type returnedRow struct {
	at origin.Stamp
	lo uint64
}

// mine is the key of a row that a user has written.
type mine struct {
	m     *mapping
	tuple []wire.Value // the key's values
	stamp origin.Stamp // its commit time, or that under which it was written again before
}

func (b *comeback) has(k wire.KeyHash) bool {
	_, ok := b.mine[k]
	return ok
}

// StartComeback raises the writer epoch above all that there have been.
func (a *Applier) StartComeback(ctx context.Context, seen uint64) error {
	a.nodeMu.Lock()
	defer a.nodeMu.Unlock()
	a.catalog.mu.Lock()
	defer a.catalog.mu.Unlock()
	var epoch int64
	err := a.catalog.conn.QueryRow(ctx, `UPDATE pgbridge.node SET writer_epoch = greatest(writer_epoch, $1) + 1000
		FROM set_config('synchronous_commit', 'local', true) RETURNING writer_epoch`, int64(seen)).Scan(&epoch)
	if err != nil {
		return fmt.Errorf("raise writer epoch: %w", explain(err))
	}
	a.node.WriterEpoch = uint64(epoch)
	return nil
}

// Proved is what this node has for certain in its present data: of its own transactions those that it has noted as published, of the
// others' all that is applied and not parked.
func (a *Applier) Proved() origin.Vector {
	v := a.progress.told()
	if n := a.Node(); n.PublishedStamp != 0 {
		v.Advance(origin.Entry{Origin: a.own, Seq: n.Published, Stamp: n.PublishedStamp})
	}
	return v
}

// Positions are how far the other nodes' transactions are applied here.
func (a *Applier) Positions() origin.Vector { return a.progress.vector() }

// ComeBack takes a whole delta in, as one transaction, while the Applier does not run. Its donor must have seen all that is
// applied here. What comes of it is only known to an Applier that is opened anew. LacksRows: it must be fetched again, with more rows.
func (a *Applier) ComeBack(ctx context.Context, file *os.File, x Comeback) (*CameBack, error) {
	r, err := a.newResync(ctx, file)
	if err != nil {
		return nil, err
	}
	defer func() { a.keeper.resyncNamed = r.named }()
	b := &comeback{resync: r, Comeback: x, relations: map[uint32]*mapping{}}
	r.comeback, r.wal, r.caughtUp, r.waited = b, quietWAL{}, true, true
	if err := r.readAhead(); err != nil {
		return nil, err
	}
	if e, lacks := r.seen.Lacks(a.progress.vector()); lacks {
		return nil, fmt.Errorf("the donor has not seen transaction %d of %s, which is here", e.Seq, e.Origin)
	}
	if got := r.seen.Seq(a.own); got != x.Seq {
		return nil, fmt.Errorf("the donor has seen this node's transactions up to %d, and another one has them up to %d", got, x.Seq)
	}
	b.had = a.progress.told()
	slices.SortFunc(r.keys, compareHash)
	r.keys = slices.Compact(r.keys)
	if err := b.prove(ctx); err != nil {
		return nil, err
	}
	// Nobody else is at work in the database: nothing is waited for in between.
	if err := b.untilDone(ctx, b.attempt, func(context.Context) error { return nil }); err != nil {
		return nil, err
	}
	return &CameBack{Resynced: Resynced{Seen: r.seen, Rows: r.rows, Deletes: uint64(len(r.doomed)), Conflicts: uint64(len(r.losses))},
		Again: b.again, Seq: x.Seq, Counted: b.counted}, nil
}

// mappings looks the tables up.
func (b *comeback) mappings() error {
	clear(b.relations)
	return b.eachRelation(func(rel *wire.Relation) error {
		m, err := b.mapping(rel, rel.ID)
		if err == nil {
			b.relations[rel.ID] = m
		}
		return err
	})
}

// tables are those of the delta, each once.
func (b *comeback) tables() (all []*mapping) {
	seen := map[tableName]bool{}
	for _, m := range b.relations {
		if !seen[m.name()] {
			seen[m.name()] = true
			all = append(all, m)
		}
	}
	slices.SortFunc(all, func(x, y *mapping) int { return cmp.Compare(x.local.quoted, y.local.quoted) })
	return all
}

// attempt takes all of it in once. Unless it returns nil, nothing of it is left.
func (b *comeback) attempt(ctx context.Context) error {
	if err := b.planSchema(ctx); err != nil {
		return err
	}
	c := b.carefulRun
	b.renew()
	b.again, b.counted, b.xmax = 0, 0, 0
	c.push("begin", c.beginStatement, nil)
	own, err := b.makeSchema(ctx)
	defer own()
	c.push("set time-out", c.patientStatement, nil)
	c.push("set synchronous_commit", &statement{sql: "SET LOCAL synchronous_commit = local"}, nil)
	if err == nil {
		err = b.mappings()
	}
	var names []string
	for _, m := range b.tables() {
		names = append(names, m.local.quoted)
	}
	if err == nil && len(names) > 0 {
		c.push("keep users from writing", &statement{sql: "LOCK TABLE " + strings.Join(names, ", ") + " IN SHARE ROW EXCLUSIVE MODE"}, nil)
	}
	if err == nil {
		c.begun()
		err = c.flush(ctx)
	}
	if err == nil {
		err = b.changes(ctx)
	}
	if err == nil {
		c.push("commit", c.commitStatement, nil)
		err = c.flush(ctx)
	}
	if err != nil {
		return errors.Join(err, c.rollBack(context.WithoutCancel(ctx), c.conn.PgConn().TxStatus()))
	}
	return nil
}

// changes does all of it within the open transaction.
func (b *comeback) changes(ctx context.Context) error {
	if err := b.place(ctx); err != nil {
		return err
	}
	if err := b.lookAround(ctx); err != nil {
		return err
	}
	if err := b.takeMerged(ctx); err != nil {
		return err
	}
	if err := b.takeRows(ctx); err != nil {
		return err
	}
	if err := b.noteAgain(ctx); err != nil {
		return err
	}
	if err := b.writeAgain(ctx); err != nil {
		return err
	}
	if err := b.pushVersions(ctx); err != nil {
		return err
	}
	for _, sql := range []string{
		"DELETE FROM pgbridge.tombstone", // the donor's take their place
		"DELETE FROM pgbridge.parked",    // and what became of these
		"DELETE FROM pgbridge.let_go",    // they have all been seen by the donor
		b.settleSchemaSQL(),
	} {
		b.push("clear", &statement{sql: sql}, nil)
	}
	if err := b.pushTombstones(ctx); err != nil {
		return err
	}
	if err := b.takeJournal(ctx); err != nil {
		return err
	}
	own := b.seen.Get(b.own)
	again := uint64(0)
	if b.again > 0 {
		again = b.lsn
	}
	b.push("note", &statement{sql: nodeBackSQL, types: []uint32{oidInt8, oidInt8, oidInt8, oidInt8, oidInt8}},
		[]param{int64Param(int64(b.lsn)), int64Param(int64(b.xid)), int64Param(int64(own.Seq)), int64Param(int64(own.Stamp)), int64Param(int64(again))})
	return b.pushPositions(ctx)
}

const nodeBackSQL = `WITH j AS (UPDATE pgbridge.journal_state SET seq = $3, stamp = $4)
	UPDATE pgbridge.node SET restoring = false, restored_lsn = $1, local_xid = $2, published = $3, published_stamp = $4, restored_seq = $3, again_lsn = $5, beginning = NULL`

// place asks from where on what users do will be captured. None of them is at work on the tables, and all who were have committed.
func (b *comeback) place(ctx context.Context) error {
	rows, err := b.exec(ctx, `SELECT (pg_current_wal_insert_lsn() - '0/0')::int8::text, pg_snapshot_xmin(pg_current_snapshot())::text,
		(extract(epoch FROM clock_timestamp()) * 1000000)::int8::text`, nil, nil)
	if err != nil {
		return fmt.Errorf("read WAL position: %w", err)
	}
	var micros int64
	_, err = fmt.Sscan(fmt.Sprintf("%s %s %s", rows[0][0], rows[0][1], rows[0][2]), &b.lsn, &b.xid, &micros)
	b.stamp = max(origin.StampOf(time.UnixMicro(micros)), b.seen.MaxStamp()+1)
	return err
}

// lookAround finds out what users have written and deleted that nobody has got, and what was deleted elsewhere.
func (b *comeback) lookAround(ctx context.Context) error {
	b.mine, b.doomed, b.deleted = map[wire.KeyHash]mine{}, nil, map[wire.KeyHash]bool{}
	if err := b.readUnsent(ctx); err != nil {
		return err
	}
	var here []wire.KeyHash
	for _, m := range b.tables() {
		if err := b.lookAt(ctx, m, &here); err != nil {
			return fmt.Errorf("read keys of %s: %w", m.local.quoted, err)
		}
	}
	for _, e := range b.kept.all() {
		here = append(here, e.key)
	}
	slices.SortFunc(here, compareHash)
	isHere := func(k wire.KeyHash) bool {
		_, ok := slices.BinarySearchFunc(here, k, compareHash)
		return ok
	}
	given := map[wire.KeyHash]bool{}
	err := b.eachGiven(func(t *txn, m *mapping, k wire.KeyHash, _ *wire.Change) error {
		switch x, ok := b.mine[k]; {
		case m.local.merge != nil:
			return nil
		case ok && t.origin == b.own && t.Stamp == x.stamp:
			delete(b.mine, k) // the donor has it
		case !ok && !isHere(k) && (b.Asked[k] || b.knew(t)):
			b.deleted[k] = true
		}
		given[k] = true
		return nil
	})
	if err != nil {
		return fmt.Errorf("read delta: %w", err)
	}
	lacks := map[wire.KeyHash]bool{}
	for _, k := range b.keys {
		if !isHere(k) && !given[k] {
			lacks[k] = true
		}
	}
	if len(lacks) > 0 {
		return &LacksRows{lacks}
	}
	for _, x := range b.mine {
		b.stamp = max(b.stamp, x.stamp+1)
	}
	b.final().Stamp = b.stamp
	return nil
}

// readUnsent reads which rows were written again when the node was brought back before, and came no further: nobody has got them.
func (b *comeback) readUnsent(ctx context.Context) error {
	b.unsent = map[returnedRow]origin.Stamp{}
	rows, err := b.conn.Query(ctx, `SELECT (extract(epoch FROM at) * 1000000)::int8, lo, behind FROM pgbridge.returned
		WHERE id = 0 AND at - behind * interval '1 microsecond' > $1`, b.seen.Get(b.own).Stamp.Time())
	if err != nil {
		return fmt.Errorf("read pgbridge.returned: %w", err)
	}
	var micros, lo, behind int64
	_, err = pgx.ForEachRow(rows, []any{&micros, &lo, &behind}, func() error {
		at := origin.StampOf(time.UnixMicro(micros))
		b.unsent[returnedRow{at, uint64(lo)}] = at - origin.Stamp(behind)
		return nil
	})
	return err
}

// outrank gives a row that a user has written the stamp that it will have where it collides with one of another key: the others see
// it as a write of now.
func (b *comeback) outrank(v *rival) {
	if !v.look.mine && b.has(v.key) {
		v.look.local.Version = origin.Version{Origin: b.own, Stamp: b.stamp}
	}
}

// knew reports whether what the delta gives as t's had been here.
func (b *comeback) knew(t *txn) bool {
	if t.origin == b.own {
		return t.Stamp <= b.until
	}
	e := b.had.Get(t.origin)
	return e.Seq > 0 && t.Stamp <= e.Stamp
}

// lookAt finds users' rows of one table, and those that were deleted elsewhere. It appends the keys of all.
func (b *comeback) lookAt(ctx context.Context, m *mapping, here *[]wire.KeyHash) error {
	resides, err := b.opts.residesSQL(b.opts.Node, m.local)
	if err != nil {
		return err
	}
	cols, formats := m.local.keyColumns()
	n := len(formats)
	sql := "SELECT " + cols + `, t.xmin::text, (c.timestamp IS NULL)::text, COALESCE((extract(epoch FROM c.timestamp) * 1000000)::int8, 0)::text,
		COALESCE(c.roident, 0)::text, 'f', COALESCE(` + genuine + `, true)::text FROM ` + m.local.rows + " t, " + lookVersion + " WHERE " + resides
	r := b.conn.PgConn().ExecParams(ctx, sql, nil, nil, nil, append(slices.Clone(formats), 0, 0, 0, 0, 0, 0))
	for err == nil && r.NextRow() {
		err = func() error {
			row := r.Values()
			key := keyValues(row[:n], formats)
			k, err := b.digests.Hash(ctx, m.local.hasher, key)
			if err != nil {
				return err
			}
			*here = append(*here, k)
			w, id, known, err := b.writerOf(append(slices.Clone(row[n:n+5]), []byte{row[n+5][0]}), k)
			if err != nil {
				return err
			}
			users := id == 0 && known && w.genuine && w.id >= b.XID && w.stamp > b.Since && !b.Known[w.stamp]
			if stamp, ok := b.unsent[returnedRow{w.stamp, k.Lo}]; ok && id == b.kept.back && w.genuine {
				users, w.stamp = true, stamp
			}
			_, held := slices.BinarySearchFunc(b.keys, k, compareHash)
			if !users && (held || m.local.merge != nil) {
				return nil
			}
			tuple := make([]wire.Value, len(m.cols))
			for j, i := range m.key {
				tuple[i] = wire.Value{Format: key[j].Format, Data: slices.Clone(key[j].Data)}
			}
			v, buried := b.gone(m.name(), k)
			switch {
			case users:
				b.mine[k] = mine{m, tuple, w.stamp}
				if !buried || held || m.local.merge != nil {
					return nil
				}
			case !buried: // nobody needs to remember when
				v = origin.Version{Origin: b.seen[0].Origin, Stamp: b.seen.MaxStamp() + 1}
			}
			b.doomed = append(b.doomed, doomed{m: m, tuple: tuple, version: v})
			return nil
		}()
	}
	if _, late := r.Close(); err == nil {
		err = late
	}
	return err
}

// eachGiven calls f for the rows of the delta.
func (b *comeback) eachGiven(f func(*txn, *mapping, wire.KeyHash, *wire.Change) error) error {
	return b.eachRow(func(t *txn, m *mapping, ch *wire.Change) error {
		k, err := b.planner.hash(m, ch.New)
		if err != nil {
			return err
		}
		return f(t, m, k, ch)
	})
}

// takeRows lets the delta's rows meet those that are here.
func (b *comeback) takeRows(ctx context.Context) error {
	more, rest := b.windows(ctx)
	for _, d := range b.doomed {
		b.watchFor(d.m)
		if err := more(copyStep(b.writtenBy(d.version), d.m, &wire.Change{Kind: wire.KindDelete, Old: d.tuple})); err != nil {
			return err
		}
	}
	err := b.eachGiven(func(t *txn, m *mapping, k wire.KeyHash, ch *wire.Change) error {
		if m.local.merge != nil {
			return nil
		}
		if _, ok := b.mine[k]; ok && b.knew(t) {
			return nil // the user has seen it
		}
		b.watchFor(m)
		s := copyStep(t, m, ch) // what is queued must outlive the record
		if b.deleted[k] {
			b.again++
			if err := b.pushAgain(m, s.ch.New, true); err != nil {
				return err
			}
		}
		return more(s)
	})
	if err != nil {
		return err
	}
	if err := rest(); err != nil {
		return err
	}
	if b.blind {
		return errUnknown
	}
	b.forgetKept()
	for _, e := range b.kept.all() {
		if _, ok := slices.BinarySearchFunc(b.keys, e.key, compareHash); !ok && b.entry(e.key) == e {
			b.unkeep(e.key)
		}
	}
	if err := b.settleOwn(ctx); err != nil {
		return err
	}
	if err := b.recordLasting(); err != nil {
		return err
	}
	return b.pushDebts()
}

// noteAgain notes the users' rows that stay, to be written again. Of merged tables takeMerged has noted them.
func (b *comeback) noteAgain(ctx context.Context) error {
	t := b.writtenAgain()
	for k, x := range b.mine {
		if x.m.local.merge != nil {
			b.wrote[k] = t
			continue
		}
		if b.wrote[k] != nil || b.buried.has(k) {
			continue
		}
		b.wrote[k] = t
		b.again++
		if err := b.pushAgain(x.m, x.tuple, false); err != nil {
			return err
		}
		if len(b.queue) >= windowChanges {
			if err := b.flush(ctx); err != nil {
				return err
			}
		}
	}
	return b.flush(ctx)
}

// pushAgain notes one row; tuple has its key.
func (b *comeback) pushAgain(m *mapping, tuple []wire.Value, gone bool) error {
	name := "ka"
	if gone {
		name = "kb"
	}
	ps, err := m.params(nil, tuple, m.key)
	if err != nil {
		return err
	}
	b.push("note rows to be written again", m.statement(name, func() (string, []uint32) { return m.againSQL(gone) }), ps)
	return nil
}

// againSQL notes that a row is to be written again; the parameters are its key.
func (m *mapping) againSQL(gone bool) (string, []uint32) {
	var types []uint32
	var names []string
	for n, k := range m.local.key {
		types = append(types, m.local.cols[k].param())
		names = append(names, fmt.Sprintf("$%d AS %s", n+1, m.local.cols[k].quoted))
	}
	return fmt.Sprintf("INSERT INTO pgbridge.rewrite (schema, name, key, gone) SELECT %s, %s, row_to_json(k.*), %t FROM (SELECT %s) k",
		literal(m.local.schema), literal(m.local.name), gone, strings.Join(names, ", ")), types
}

// takeMerged lets the donor's rows of merged tables take the place of those that are here. What users have inserted comes back as
// new rows; what they had changed is recorded.
func (b *comeback) takeMerged(ctx context.Context) error {
	err := b.eachGiven(func(t *txn, m *mapping, k wire.KeyHash, ch *wire.Change) error {
		x, ok := b.mine[k]
		if m.local.merge == nil || !ok {
			return nil
		}
		delete(b.mine, k)
		b.counted++
		b.t = t
		here := look{found: true, local: conflict.Local{Version: origin.Version{Origin: b.own, Stamp: x.stamp}}}
		s := copyStep(t, m, ch)
		return b.record(m, s.ch.New, m.rowOf(s.ch.New), here, conflict.Decision{RemoteWins: true, Conflict: true, Kind: conflict.UpdateUpdate})
	})
	if err != nil {
		return err
	}
	if err := b.flush(ctx); err != nil {
		return err
	}
	for _, x := range b.mine {
		if x.m.local.merge == nil {
			continue
		}
		b.again++
		ps, err := x.m.params(nil, x.tuple, x.m.key)
		if err != nil {
			return err
		}
		b.push("note rows to be written again", x.m.statement("kj", x.m.insertedSQL), ps)
	}
	for _, m := range b.tables() {
		if m.local.merge != nil {
			b.push("table "+m.local.quoted, &statement{sql: "DELETE FROM " + m.local.rows}, nil)
		}
	}
	err = b.eachGiven(func(_ *txn, m *mapping, _ wire.KeyHash, ch *wire.Change) error {
		if m.local.merge == nil {
			return nil
		}
		return b.takeMergedRow(ctx, m, ch)
	})
	b.t = b.all[0]
	return errors.Join(err, b.flush(ctx))
}

// insertedSQL notes a row that is taken out of a merged table, to be inserted again; the parameters are its key.
func (m *mapping) insertedSQL() (string, []uint32) {
	var where strings.Builder
	types := m.local.whereKey(&where, nil)
	return fmt.Sprintf("INSERT INTO pgbridge.rewrite (schema, name, key, gone, image) SELECT %s, %s, '{}', false, row_to_json(t.*) FROM %s t WHERE %s",
		literal(m.local.schema), literal(m.local.name), m.local.rows, where.String()), types
}

// quietWAL is that of a node of which nothing is captured.
type quietWAL struct{}

func (quietWAL) Passed() uint64                                         { return math.MaxUint64 }
func (quietWAL) WaitPassed(context.Context, uint64) error               { return nil }
func (quietWAL) LocalStamp(t origin.Stamp, _ wire.KeyHash) origin.Stamp { return t }
func (quietWAL) Wrote(origin.Stamp) bool                                { return false }
func (quietWAL) Before(origin.Stamp, uint64, uint64) bool               { return false }
func (quietWAL) Captured() uint64                                       { return 0 }
func (quietWAL) Hasten()                                                {}
func (quietWAL) MarkFor(uint64) (uint64, bool)                          { return 0, false }
func (quietWAL) MarkWithin(origin.Vector, origin.Origin) (uint64, bool) { return 0, false }
func (quietWAL) Vectors() (up, low origin.Vector)                       { return nil, nil }
func (quietWAL) RecentXIDs() []uint32                                   { return nil }

// Restore says that the node's data were set back: the next bridge that starts is to bring it back. No bridge may run.
func Restore(ctx context.Context, dsn string) error {
	conn, err := connectPlain(ctx, dsn, "pgbridge node restored")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var free bool
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock('pgbridge.node'::regclass::int, 0)`).Scan(&free); err != nil {
		return fmt.Errorf("lock node: %w", explain(err))
	}
	if !free {
		return ErrFenced
	}
	if _, err := conn.Exec(ctx, `UPDATE pgbridge.node SET restoring = true`); err != nil {
		return fmt.Errorf("note that the node is to be brought back: %w", explain(err))
	}
	return nil
}
