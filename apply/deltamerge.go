package apply

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// Of merged tables a delta has the writes: the journal holds all that not every node is known to have seen, and so all that the
// other node lacks.

const loggedSQL = `SELECT j.hi, j.lo, j.origin, j.seq, j.part, j.stamp, j.kind::text, j.seen, j.ops, j.image, coalesce(b.schema, ''), coalesce(b.name, '')
	FROM pgbridge.journal j LEFT JOIN pgbridge.journal_base b ON b.hi = j.hi AND b.lo = j.lo`

// loggedWrites are those that the other node lacks, by table and key.
func (x *donor) loggedWrites(ctx context.Context) (map[tableName]map[wire.KeyHash][]*wire.Logged, error) {
	all := map[tableName]map[wire.KeyHash][]*wire.Logged{}
	return all, x.eachLogged(ctx, func(w *wire.Logged, n tableName) error {
		switch {
		case x.t.up.Covers(w.Version.Origin, w.Seq):
			return nil
		case w.Kind == wire.KindTruncate || n.name == "":
			return &NoDelta{"a merged table (conflict.tables) was truncated, which a delta cannot tell; let the node join anew"}
		}
		if all[n] == nil {
			all[n] = map[wire.KeyHash][]*wire.Logged{}
		}
		l := *w
		l.Seen, l.Ops, l.Image = slices.Clone(w.Seen), slices.Clone(w.Ops), slices.Clone(w.Image)
		all[n][w.Key] = append(all[n][w.Key], &l)
		return nil
	})
}

// eachLogged calls f for the writes in the journal that the snapshot has, with their table, empty if it is not known; what f gets is
// valid during the call only.
func (x *donor) eachLogged(ctx context.Context, f func(*wire.Logged, tableName) error) error {
	if err := x.journal.wait(ctx, x.seen.Seq(x.own)); err != nil {
		return err
	}
	conn, err := connect(ctx, x.opts.DSN, fmt.Sprintf("pgbridge %s delta", x.opts.Node), map[string]string{"enable_seqscan": "on", "enable_hashjoin": "on"})
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, loggedSQL)
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	var hi, lo, seq, stamp int64
	var id int32
	var kind string
	var l wire.Logged
	var n tableName
	_, err = pgx.ForEachRow(rows, []any{&hi, &lo, &id, &seq, &l.Part, &stamp, &kind, &l.Seen, &l.Ops, &l.Image, &n.schema, &n.name}, func() error {
		o, ok := x.journal.origins[id]
		if !ok {
			return fmt.Errorf("the journal names origin %d, which is not in pgbridge.position", id)
		}
		l.Key, l.Version = wire.KeyHash{Hi: uint64(hi), Lo: uint64(lo)}, origin.Version{Stamp: origin.Stamp(stamp), Origin: o}
		if l.Seq, l.Kind = uint64(seq), wire.Kind(kind[0]); !x.seen.Covers(o, l.Seq) {
			return nil
		}
		if x.without(n.schema, n.name) {
			return nil
		}
		held, err := x.withheldOf(ctx, n)
		if err != nil {
			return err
		}
		if n.name == "" && len(l.Ops) > 0 && x.opts.Columns.Of != nil {
			return &NoDelta{"the journal does not say which table a write is of, and columns of some are not for all nodes (topology.columns); ask again later"}
		}
		if l.Ops, err = held.ops(l.Ops); err != nil {
			return err
		}
		if l.Image, err = held.cells(l.Image); err != nil {
			return err
		}
		return f(&l, n)
	})
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	return nil
}

// merged writes what the other node lacks of merged tables.
func (x *donor) merged(ctx context.Context, tables []*table) error {
	if len(tables) == 0 {
		return nil
	}
	all, err := x.loggedWrites(ctx)
	if err != nil {
		return err
	}
	for _, t := range tables {
		keys := all[tableName{t.schema, t.name}]
		if len(keys) == 0 {
			continue
		}
		m, err := x.selfMapping(t)
		if err != nil {
			return err
		}
		if err := x.write(wire.AppendRelation(x.buf[:0], m.remote)); err != nil {
			return err
		}
		rows, err := x.rowsOf(ctx, m, func(k wire.KeyHash) bool { return keys[k] != nil })
		if err != nil {
			return err
		}
		held := t.withheldFrom(x.asker)
		for k, writes := range keys {
			for _, w := range writes {
				w.Relation = m.remote.ID
				if tuple := rows[k]; tuple != nil {
					held.hide(m.remote, tuple)
					w.Row = wire.AppendTuple(nil, tuple)
				}
				if err := x.write(wire.AppendLogged(x.buf[:0], w)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// rowsOf reads the rows of a table whose keys are wanted, all of them, since only the keys' hashes are known.
func (c *carefulRun) rowsOf(ctx context.Context, m *mapping, want func(wire.KeyHash) bool) (map[wire.KeyHash][]wire.Value, error) {
	found := map[wire.KeyHash][]wire.Value{}
	cols, formats := m.allColumns()
	rows := c.conn.PgConn().ExecParams(ctx, "SELECT "+cols+" FROM "+m.local.rows+" t", nil, nil, nil, formats)
	var err error
	for err == nil && rows.NextRow() {
		tuple := tupleOf(rows.Values(), formats)
		var k wire.KeyHash
		if k, err = c.planner.hash(m, tuple); err == nil && want(k) {
			for i := range tuple {
				tuple[i].Data = slices.Clone(tuple[i].Data)
			}
			found[k] = tuple
		}
	}
	if _, late := rows.Close(); err == nil {
		err = late
	}
	if err != nil {
		return nil, fmt.Errorf("read rows of %s: %w", m.local.quoted, err)
	}
	return found, nil
}

// allColumns lists the columns of the mapping for a SELECT from alias t, and the format codes in which capture gets them.
func (m *mapping) allColumns() (string, []int16) {
	names, formats := make([]string, len(m.cols)), make([]int16, len(m.cols))
	for i, li := range m.cols {
		if names[i] = "NULL"; li >= 0 {
			names[i], formats[i] = "t."+m.local.cols[li].quoted, m.local.cols[li].typ.format()
		}
	}
	return strings.Join(names, ", "), formats
}

// tupleOf makes a tuple of a row that came in those formats. It shares memory with the row.
func tupleOf(row [][]byte, formats []int16) []wire.Value {
	tuple := keyValues(row, formats)
	for i := range tuple {
		if row[i] == nil {
			tuple[i] = wire.Value{Format: wire.Null}
		}
	}
	return tuple
}

// loggedRow is what a delta has of one row of a merged table.
type loggedRow struct {
	key    wire.KeyHash
	tuple  []wire.Value // the donor's row, or else the row here; nil: there is neither
	writes []loggedWrite
}

// loggedWrite is one write in a loggedRow.
type loggedWrite struct {
	conflict.Logged
	low   origin.Vector
	image []conflict.Cell
	t     *txn // that stands for its transaction
}

// loggedRows reads what the delta has of merged tables.
func (r *resync) loggedRows(ctx context.Context) error {
	relations := map[uint32]*wire.Relation{}
	r.logged = map[*mapping]map[wire.KeyHash]*loggedRow{}
	err := r.records(func(rec wire.Record) error {
		switch rec.Kind {
		case wire.KindRelation:
			rel, err := wire.ParseRelation(rec.Payload)
			if err == nil {
				relations[rel.ID] = rel
			}
			return err
		case wire.KindLogged:
			l, err := wire.ParseLogged(rec.Payload)
			if err != nil {
				return err
			}
			rel := relations[l.Relation]
			if rel != nil && r.lag.drops(rel) {
				return nil
			}
			m, err := r.mapping(rel, l.Relation)
			if err != nil {
				return err
			}
			return r.loggedRow(m, l)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read delta: %w", err)
	}
	for m, rows := range r.logged {
		here, err := r.rowsOf(ctx, m, func(k wire.KeyHash) bool { return rows[k] != nil && rows[k].tuple == nil })
		if err != nil {
			return err
		}
		for k, tuple := range here {
			rows[k].tuple = tuple
		}
	}
	return nil
}

func (r *resync) loggedRow(m *mapping, l *wire.Logged) error {
	if m.local.merge == nil {
		return blocked("table %s is merged at the donor and not here; let all nodes have the same conflict.tables", m.local.quoted)
	}
	if r.logged[m] == nil {
		r.logged[m] = map[wire.KeyHash]*loggedRow{}
	}
	row := r.logged[m][l.Key]
	if row == nil {
		row = &loggedRow{key: l.Key}
		r.logged[m][l.Key] = row
	}
	if len(l.Row) > 0 && row.tuple == nil {
		tuple, _, err := wire.ParseTuple(nil, slices.Clone(l.Row))
		if err != nil {
			return err
		}
		row.tuple = tuple
	}
	w := loggedWrite{Logged: conflict.Logged{Origin: l.Version.Origin, Seq: l.Seq, Part: conflict.Part(l.Part), Stamp: l.Version.Stamp}, t: r.writtenBy(l.Version)}
	seen, err := wire.ParseVectors(slices.Clone(l.Seen), 2)
	if err != nil {
		return err
	}
	w.Up, w.low = seen[0], seen[1]
	if w.Kind, err = writeOf(l.Kind); err != nil {
		return err
	}
	if w.Ops, err = m.local.merge.decodeOps(slices.Clone(l.Ops)); err != nil {
		return err
	}
	if l.Image != nil {
		if w.image, err = m.local.decodeCells(slices.Clone(l.Image)); err != nil {
			return err
		}
	}
	row.writes = append(row.writes, w)
	return nil
}

// eachLogged calls f for the rows of merged tables that are here or at the donor.
func (r *resync) eachLogged(f func(step) error) error {
	for m, rows := range r.logged {
		for _, row := range rows {
			if row.tuple == nil {
				continue
			}
			s := step{t: row.writes[0].t, m: m, ch: wire.Change{Kind: wire.KindInsert, New: row.tuple}, from: row.key, to: row.key, logged: row.writes}
			if err := f(s); err != nil {
				return err
			}
		}
	}
	return nil
}

// mergeLogged takes the writes of a delta into those of a row, but for those that are there.
func (c *carefulRun) mergeLogged(s *step) {
	r := c.merged[s.from]
	for i := range s.logged {
		w := &s.logged[i]
		if slices.ContainsFunc(r.writes, func(v conflict.Logged) bool { return v.Origin == w.Origin && v.Seq == w.Seq && v.Part == w.Part }) {
			continue
		}
		step := mergedStep{at: len(r.writes), t: w.t}
		if w.Kind != conflict.Delete {
			step.tuple = s.ch.New
		}
		r.steps = append(r.steps, step)
		r.add(w.Logged, w.low, w.image)
	}
}

// pushUnseen keeps the writes of rows that are neither here nor at the donor: what comes later is merged with them.
func (r *resync) pushUnseen(ctx context.Context) error {
	var writes []journaled
	var bases []journalBase
	for m, rows := range r.logged {
		for k, row := range rows {
			if row.tuple != nil {
				continue
			}
			bases = append(bases, journalBase{key: k, local: m.local})
			for i := range row.writes {
				w := &row.writes[i]
				writes = append(writes, journaled{key: k, origin: r.journalID(w.Origin), write: &w.Logged, low: w.low, image: w.image, local: m.local})
			}
		}
	}
	for part := range slices.Chunk(bases, windowChanges) {
		r.push("journal", r.journalBaseStatement, baseParams(part))
	}
	for part := range slices.Chunk(writes, windowChanges) {
		r.push("journal", r.journalStatement, journalParams(part))
		if err := r.flush(ctx); err != nil {
			return err
		}
	}
	return nil
}

// journalID is the number under which the journal has the writes of an origin.
func (c *carefulRun) journalID(o origin.Origin) int32 {
	if !c.delta {
		return int32(c.id)
	}
	for i, other := range c.guard.others {
		if other == o {
			return int32(c.guard.ids[i])
		}
	}
	return 0
}
