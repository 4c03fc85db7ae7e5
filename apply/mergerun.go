package apply

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// Rows of merged tables always go the careful path. What such a row looks like is a function of all writes of it that not
// every node has seen, so that the order in which they come does not matter, and neither does it who wrote the row last.
// That a write is one of a local session matters for one thing only: it must be in the journal before others are merged
// with it.

// mergedRow is one row of a merged table while a window of changes is decided.
type mergedRow struct {
	m     *mapping
	key   wire.KeyHash
	tuple []wire.Value    // holds the key
	here  []conflict.Cell // the row as it stands; nil: there is none
	lineage
	held  bool // the journal held writes of it
	steps []mergedStep
}

// mergedStep is one of the transaction's own writes, in the row's writes.
type mergedStep struct {
	at    int
	t     *txn
	tuple []wire.Value // what it wants the row to be; nil for a delete
}

// holdFor is how long an open transaction may wait for capture and the journal, once it has found another local writer
// before: on a row that is written without a pause there is always one. It is longer each time, up to mostHold. PROOF.md R4
// forbids more than a moment.
const (
	holdFor  = 100 * time.Millisecond
	mostHold = 400 * time.Millisecond
)

// judgeMerged finds out what stands here for a key of a merged table, as far as one must know before the journal is
// asked: that it knows of whoever wrote the row last.
func (c *carefulRun) judgeMerged(m *mapping, k wire.KeyHash, row [][]byte, inserts bool) (look, error) {
	if row == nil {
		if !inserts && !c.waited {
			return look{}, errUnknown
		}
		// A local delete that capture has yet to read is made good later (R18); one that it has read must be in the journal.
		// So must one whose tombstone is forgotten since all have seen it, the transaction's author too.
		if _, deleted := c.absence.tombstone(m.name(), k); deleted && c.journal.upTo() < c.wal.Captured() || c.journal.upTo() < c.t.up.Seq(c.journal.own) {
			return look{}, errUnknown
		}
		return look{local: conflict.Local{Absent: true}}, nil
	}
	l := look{found: true, mine: string(row[4]) == "t"}
	if l.mine || string(row[3]) != "0" && !c.isAgain(row) || string(row[1]) == "t" { // a remote transaction's, or long forgotten
		return l, nil
	}
	xmin, err := strconv.ParseUint(string(row[0]), 10, 32)
	if err != nil {
		return l, fmt.Errorf("read row version: %w", err)
	}
	micros, err := strconv.ParseInt(string(row[2]), 10, 64)
	if err != nil {
		return l, fmt.Errorf("read row version: %w", err)
	}
	id := c.xmax + uint64(int64(int32(uint32(xmin)-uint32(c.xmax))))
	if id < c.opts.FirstXID || c.known[uint32(xmin)] || c.journal.holds(uint32(xmin), origin.StampOf(time.UnixMicro(micros)), k) {
		return l, nil
	}
	c.unsure[uint32(xmin)] = true
	return l, errUnknown
}

// holds reports whether what the local transaction with that id and commit time wrote to a row is in the journal.
func (j *journal) holds(xmin uint32, at origin.Stamp, k wire.KeyHash) bool {
	newest, ok := j.wal.MarkFor(math.MaxUint64)
	return ok && int32(xmin-uint32(newest)) < 0 && j.reached(j.wal.LocalStamp(at, k))
}

// holdOn waits for capture and the journal while the rows stay locked; false if that takes too long.
func (c *carefulRun) holdOn(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, min(holdFor<<min(c.tries-2, 8), mostHold))
	defer cancel()
	lsn, err := c.markers.flush(ctx)
	if err == nil {
		err = c.wal.WaitPassed(ctx, lsn)
	}
	if err == nil {
		err = c.journal.wait(ctx, c.wal.Captured())
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return false, nil
	case err != nil:
		return false, err
	}
	for x := range c.unsure {
		c.known[x] = true
	}
	return true, nil
}

// orHoldOn looks, and again if a local writer was unknown and is known after a moment, while the rows stay locked. Only an
// attempt behind the first one holds on: most are known by then.
func (c *carefulRun) orHoldOn(ctx context.Context, look func() (unknown bool, err error)) (unknown bool, err error) {
	unknown, err = look()
	if err != nil || !unknown || c.tries < 2 || len(c.unsure) == 0 {
		return unknown, err
	}
	if known, err := c.holdOn(ctx); err != nil || !known {
		return true, err
	}
	return look()
}

// loadMerged reads the rows of merged tables that pending touches, and their journal.
func (c *carefulRun) loadMerged(ctx context.Context, pending []step) error {
	c.merged = nil
	var order []*mapping
	groups := map[*mapping][]*mergedRow{}
	want := func(m *mapping, tuple []wire.Value, k wire.KeyHash) {
		if _, ok := c.merged[k]; ok {
			return
		}
		if c.merged == nil {
			c.merged = map[wire.KeyHash]*mergedRow{}
		}
		r := &mergedRow{m: m, key: k, tuple: tuple}
		c.merged[k] = r
		if groups[m] == nil {
			order = append(order, m)
		}
		groups[m] = append(groups[m], r)
	}
	for i := range pending {
		if s := &pending[i]; s.m.local.merge != nil {
			want(s.m, s.before(), s.from)
			if s.to != s.from {
				want(s.m, s.ch.New, s.to)
			}
		}
	}
	for _, m := range order {
		rows := groups[m]
		keys := make([]wire.KeyHash, len(rows))
		for i, r := range rows {
			keys[i] = r.key
		}
		if err := c.readMerged(ctx, m, rows); err != nil {
			return fmt.Errorf("read rows of %s: %w", m.local.quoted, err)
		}
		ls, err := c.journal.lineages(ctx, c.conn.PgConn(), m.local, keys)
		if err != nil {
			return err
		}
		for i, r := range rows {
			r.lineage = ls[i]
			r.held = len(r.writes) > 0
			if !r.based {
				r.base = r.here
			}
		}
	}
	return nil
}

// readMerged reads the rows as they stand.
func (c *carefulRun) readMerged(ctx context.Context, m *mapping, rows []*mergedRow) error {
	rows = slices.DeleteFunc(slices.Clone(rows), func(r *mergedRow) bool { return !c.rows[r.key].found })
	if len(rows) == 0 {
		return nil
	}
	g := &keyGroup{}
	for _, r := range rows {
		g.hashes, g.tuples = append(g.hashes, r.key), append(g.tuples, r.tuple)
	}
	if !m.runs(nil) || !g.binary(m) {
		for _, r := range rows {
			where, types, ps, err := m.keyCondition(r.tuple)
			if err == nil {
				r.here, err = cellsAt(ctx, c.conn.PgConn(), m.local, where, types, ps)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	ps, err := g.params(m)
	if err != nil {
		return err
	}
	cols, formats := m.local.selectCells()
	sql, types := m.keysSQL("SELECT v.n, "+cols+" FROM ", "", "")
	values, in := raw(ps)
	r := c.conn.PgConn().ExecParams(ctx, sql, values, types, in, append([]int16{1}, formats...)).Read()
	for _, row := range r.Rows {
		rows[binary.BigEndian.Uint64(row[0])-1].here = m.local.cellsOf(row[1:])
	}
	return r.Err
}

// merge takes one change of a merged table into the row's writes.
func (c *carefulRun) merge(s *step) error {
	if s.logged != nil {
		c.mergeLogged(s)
		return nil
	}
	rows, err := s.m.rowWrites(&s.ch, c.planner.hash)
	if err != nil {
		return err
	}
	for _, w := range rows {
		c.part++
		r := c.merged[w.key]
		step := mergedStep{at: len(r.writes), t: s.t}
		if w.new != nil {
			step.tuple, r.tuple = s.ch.New, s.ch.New
		}
		r.steps = append(r.steps, step)
		r.add(*s.t.logged(w.kind, c.part, w.ops), s.m.local.keeps(w.new))
	}
	return nil
}

// writeMerged queues what the window's merged rows have become, who lost, and what the journal must keep.
func (c *carefulRun) writeMerged(ctx context.Context, conn *pgconn.PgConn) error {
	var writes []journaled
	var bases []journalBase
	for _, r := range c.mergedRows() {
		if len(r.steps) == 0 {
			continue
		}
		out, err := r.lineage.merged(ctx, conn, r.m.local)
		if err != nil {
			return fmt.Errorf("merge a row of %s: %w", r.m.local.quoted, err)
		}
		if out.Row != nil && r.base == nil && !slices.ContainsFunc(r.writes, func(w conflict.Logged) bool { return w.Kind == conflict.Insert }) {
			return errUnknown // an update without the row: a local delete has come in between
		}
		for i := range r.steps {
			if err := c.recordMerged(r, &r.steps[i], out); err != nil {
				return err
			}
		}
		if err := c.becomes(r, out.Row); err != nil {
			return err
		}
		if c.seenByAll(r) {
			continue
		}
		if !r.based {
			bases = append(bases, journalBase{key: r.key, local: r.m.local, cells: r.base})
		}
		for _, s := range r.steps {
			writes = append(writes, journaled{key: r.key, origin: c.journalID(r.writes[s.at].Origin), write: &r.writes[s.at], image: r.images[s.at], local: r.m.local})
		}
	}
	if len(bases) > 0 {
		c.push("journal", c.journalBaseStatement, baseParams(bases))
	}
	if len(writes) > 0 {
		c.push("journal", c.journalStatement, journalParams(writes))
	}
	return nil
}

// mergedRows are the window's merged rows, in the order of their keys.
func (c *carefulRun) mergedRows() []*mergedRow {
	rows := make([]*mergedRow, 0, len(c.merged))
	for _, r := range c.merged {
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(a, b *mergedRow) int { return compareHash(a.key, b.key) })
	return rows
}

// seenByAll reports whether the journal need not know of the transaction's writes: none of the row's is in it, and every
// node has seen these. So it is with two nodes that do not write the same rows at once. Where no row was, a local delete may
// be on its way into the journal, which this node's own stability says nothing of.
func (c *carefulRun) seenByAll(r *mergedRow) bool {
	return !c.delta && r.here != nil && !r.held && !r.based && len(r.truncates) == 0 && c.final().Seq <= c.heard.stableSeq(c.origin)
}

// becomes queues the statement that makes the row look like cells; nil: that there is none.
func (c *carefulRun) becomes(r *mergedRow, cells []conflict.Cell) error {
	m := r.m
	t := m.local
	if sameCells(r.here, cells) {
		if cells == nil && !c.waited { // a local session's row may be on the other nodes and not yet visible here (R14)
			return errUnknown
		}
		return nil
	}
	place := func(li int) conflict.Cell { return cells[slices.Index(t.merge.cols, li)] }
	write := func(s *statement, ps []param) {
		c.push("table "+t.quoted, s, ps)
		c.queue[len(c.queue)-1].row = rowKey{m, r.tuple}
	}
	if cells == nil {
		if err := c.bereave(m, r.tuple); err != nil {
			return err
		}
		ps, err := m.params(nil, r.tuple, m.key)
		write(m.statement("kd", func() (string, []uint32) { return m.deleteSQL(nil) }), ps)
		return err
	}
	var ps []param
	if r.here == nil {
		for _, li := range m.cols {
			if li >= 0 {
				ps = append(ps, t.cellParam(li, place(li)))
			}
		}
		write(m.statement("ki", m.insertSQL), ps)
		return nil
	}
	var set []int // remote columns
	replace := false
	for i, li := range m.cols {
		if li < 0 {
			continue
		}
		if n := slices.Index(t.merge.cols, li); !cells[n].Equal(r.here[n]) {
			set, replace = append(set, i), replace || t.cols[li].always
			ps = append(ps, t.cellParam(li, cells[n]))
		}
	}
	if len(set) == 0 {
		return nil // only columns differ that the origin does not have
	}
	ps, err := m.params(ps, r.tuple, m.key)
	if err != nil {
		return err
	}
	if replace || len(m.always) > 0 {
		write(m.statement("kr"+shape(set), func() (string, []uint32) { return m.replaceSQL(set) }), ps)
		return nil
	}
	write(m.statement("ku"+shape(set), func() (string, []uint32) { return m.updateSQL(set, nil) }), ps)
	return nil
}

// recordMerged records the conflict that a write of the transaction's was part of, if a value was lost in it.
func (c *carefulRun) recordMerged(r *mergedRow, s *mergedStep, out conflict.Merged) error {
	w := &r.writes[s.at]
	other, remoteWins := r.rival(w, out)
	if other == nil {
		return nil
	}
	tuple := s.tuple
	if tuple == nil && !remoteWins && out.Row == nil {
		return nil // both deleted it
	}
	d := conflict.Decision{RemoteWins: remoteWins, Conflict: true, Kind: conflict.KindOf(conflict.Case{
		Write: w.Kind, Local: conflict.Local{Deleted: other.Kind == conflict.Delete}})}
	for u := range r.m.local.merge.rules.Units {
		if r.m.local.merge.rules.Units[u].Rule == conflict.Manual && wrote(w, u) && wrote(other, u) {
			d.Kind = conflict.Undecided
		}
	}
	l := look{found: r.here != nil, local: conflict.Local{Version: origin.Version{Stamp: other.Stamp, Origin: other.Origin}}}
	defer func(t *txn) { c.t = t }(c.t)
	c.t = s.t
	return c.record(r.m, tuple, r.m.rowOf(r.tuple), l, d)
}

// wrote reports whether a write changed a unit.
func wrote(w *conflict.Logged, unit int) bool { return unit < len(w.Ops) && len(w.Ops[unit]) > 0 }

// rival returns the write that w lost to, or the latest that lost to w, if neither had seen the other; nil if nothing was
// lost.
func (r *mergedRow) rival(w *conflict.Logged, out conflict.Merged) (other *conflict.Logged, wins bool) {
	apart := func(v *conflict.Logged) bool { return v.Origin != w.Origin && !w.Covers(v) && !v.Covers(w) } // a delta has both
	if out.Row == nil {
		if w.Kind == conflict.Delete {
			return r.latest(func(v *conflict.Logged) bool { return v.Kind != conflict.Delete && apart(v) }), true
		}
		if out.Deleted >= 0 && apart(&r.writes[out.Deleted]) {
			return &r.writes[out.Deleted], false
		}
		return nil, false
	}
	if w.Kind == conflict.Delete {
		return r.latest(func(v *conflict.Logged) bool { return v.Kind != conflict.Delete && apart(v) }), false
	}
	for u, at := range out.Winner {
		if !wrote(w, u) || at < 0 {
			continue
		}
		if v := &r.writes[at]; v != w && apart(v) {
			return v, false
		}
	}
	return r.latest(func(v *conflict.Logged) bool {
		if !apart(v) {
			return false
		}
		if v.Kind == conflict.Delete {
			return true
		}
		for u, at := range out.Winner {
			if at >= 0 && &r.writes[at] == w && wrote(w, u) && wrote(v, u) {
				return true
			}
		}
		return false
	}), true
}

// latest returns the last of the writes that fit.
func (r *mergedRow) latest(fits func(*conflict.Logged) bool) *conflict.Logged {
	var last *conflict.Logged
	for i := range r.writes {
		if v := &r.writes[i]; fits(v) && (last == nil || later(v, last) > 0) {
			last = v
		}
	}
	return last
}
