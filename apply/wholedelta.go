package apply

import (
	"context"
	"fmt"
	"math"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// A node whose data were set back has told the others of more than it has now, so that they may have forgotten what it lacks: deletes
// without a tombstone, merged writes that are in the rows alone. So its delta tells besides which keys there are at the donor: what
// it has beyond them, and the donor has seen, was deleted. Merged tables come whole, with their journal. Of its own rows those are
// left out alone that every other node has seen: by which transaction id the others were written, its server does not tell any more.

// Whole asks for such a delta.
type Whole struct {
	For origin.Origin
	// Settled is what all others have seen (Applier.SettledBut), asked before the snapshot is taken.
	Settled origin.Vector
	// Keys are those of rows that must be in the delta though the other node has seen them: it has them no more.
	Keys map[wire.KeyHash]bool
}

// proved is what the node that asks has for certain of what every node has seen.
func (w *Whole) proved(have origin.Vector) (v origin.Vector) {
	for _, e := range have {
		if stable := w.Settled.Get(w.For); e.Origin == w.For && stable.Seq < e.Seq {
			e = stable
		}
		if e.Seq > 0 {
			v.Advance(e)
		}
	}
	return v
}

// SettledBut is what this node and all others but one have seen of each other, and of that one: whatever is still to come from them
// includes it. So does what comes from that one once it has been given what is here.
func (a *Applier) SettledBut(but origin.Origin) (v origin.Vector) {
	wal := a.wal.Load()
	if wal == nil {
		return nil
	}
	_, own := (*wal).Vectors()
	lows := a.heard.lows(but)
	lows[a.own] = []origin.Vector{own}
	for o := range lows {
		least := origin.Entry{Origin: o, Seq: math.MaxInt64, Stamp: math.MaxInt64}
		for p, some := range lows {
			for _, low := range some {
				if e := low.Get(o); p != o && e.Seq < least.Seq {
					least = e
				}
			}
		}
		v.Advance(least)
	}
	return v
}

// lows are what the others but one had seen, by node.
func (h *hearsay) lows(but origin.Origin) map[origin.Origin][]origin.Vector {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := map[origin.Origin][]origin.Vector{but: nil}
	for p, low := range h.low {
		if p == but {
			continue
		}
		all[p] = append(all[p], low)
		if parked, ok := h.parked[p]; ok {
			all[p] = append(all[p], parked)
		}
	}
	return all
}

// given is the version under which a row is given: that of its last writer, or, if this node does not know it any more since all others
// have seen it, one that they all cover. given is false for a row that was here before there was a cluster.
func (x *donor) given(l look, row [][]byte, k wire.KeyHash) (v origin.Version, given bool, err error) {
	if !l.local.Ancient {
		return l.local.Version, true, nil
	}
	w, id, known, err := x.writerOf(row, k)
	if err != nil || w.id < x.opts.FirstXID && !x.wants(k) {
		return v, false, err
	}
	if known && w.genuine && id == 0 {
		return origin.Version{Origin: x.own, Stamp: w.stamp}, true, nil
	}
	return x.oldest(), true, nil
}

// goes reports whether the row will be taken back here by a delete that the snapshot has (R19).
func (x *donor) goes(m *mapping, k wire.KeyHash, l look) bool {
	d, ok := x.absence.tombstone(m.name(), k)
	return ok && x.seen.Covers(d.Origin, d.seq) && (l.local.Ancient || d.Version.Later(l.local.Version))
}

// holds notes the key of a row that the other node has seen, and reports whether the row must be looked at all the same.
func (x *donor) holds(m *mapping, tuple []wire.Value) (bool, error) {
	k, err := x.planner.hash(m, tuple)
	if err != nil {
		return false, err
	}
	if _, ok := x.absence.tombstone(m.name(), k); ok {
		return true, nil
	}
	x.keys = append(x.keys, k)
	return x.wants(k), x.writeKeys(goneKeys)
}

func (x *donor) wants(k wire.KeyHash) bool { return x.whole != nil && x.whole.Keys[k] }

// oldest is a version that all that is to come covers.
func (x *donor) oldest() origin.Version { return origin.Version{Origin: x.seen[0].Origin, Stamp: 1} }

// writeKeys writes the keys that have come together, if there are more than so many.
func (x *donor) writeKeys(most int) error {
	if len(x.keys) <= most {
		return nil
	}
	err := x.write(wire.AppendKeys(x.buf[:0], x.keys))
	x.keys = x.keys[:0]
	return err
}

// mergedWhole writes all rows of merged tables, and all of their journal. Nothing may go from that meanwhile (HoldJournal). A row that was
// made again behind a local delete which capture had yet to read may be about to be taken back by it (R18), and stand in the snapshot.
func (x *donor) mergedWhole(ctx context.Context, tables []*table) error {
	for _, t := range tables {
		m, err := x.selfMapping(t)
		if err != nil {
			return err
		}
		if err := x.write(wire.AppendRelation(x.buf[:0], m.remote)); err != nil {
			return err
		}
		held := t.withheldFrom(x.asker)
		cols, formats := m.allColumns()
		r := x.reader.PgConn().ExecParams(ctx, "SELECT "+cols+" FROM "+m.local.rows+" t", nil, nil, nil, formats)
		for err == nil && r.NextRow() {
			tuple := tupleOf(r.Values(), formats)
			if err = x.staysMerged(m, tuple); err == nil {
				held.hide(m.remote, tuple)
				err = x.row(m.remote.ID, x.oldest(), tuple)
			}
		}
		if _, late := r.Close(); err == nil {
			err = late
		}
		if err != nil {
			return fmt.Errorf("read rows of %s: %w", t.quoted, err)
		}
	}
	if x.journal == nil {
		return nil
	}
	return x.wholeJournal(ctx)
}

func (x *donor) staysMerged(m *mapping, tuple []wire.Value) error {
	k, err := x.planner.hash(m, tuple)
	if err != nil {
		return err
	}
	if d, ok := x.absence.tombstone(m.name(), k); ok && d.Origin == x.own && d.seq > x.settled {
		return &NoDelta{fmt.Sprintf("a row of table %s that was just deleted there may be about to go; ask again", m.local.quoted)}
	}
	return nil
}

const basesSQL = `SELECT hi, lo, schema, name, cells FROM pgbridge.journal_base`

func (x *donor) wholeJournal(ctx context.Context) error {
	err := x.eachLogged(ctx, func(l *wire.Logged, _ tableName) error { return x.write(wire.AppendLogged(x.buf[:0], l)) })
	if err != nil {
		return err
	}
	conn, err := connect(ctx, x.opts.DSN, fmt.Sprintf("pgbridge %s delta", x.opts.Node), map[string]string{"enable_seqscan": "on", "enable_hashjoin": "on"})
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, basesSQL)
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	var hi, lo int64
	var b wire.Base
	_, err = pgx.ForEachRow(rows, []any{&hi, &lo, &b.Schema, &b.Table, &b.Cells}, func() error {
		b.Key = wire.KeyHash{Hi: uint64(hi), Lo: uint64(lo)}
		if x.without(b.Schema, b.Table) {
			return nil
		}
		held, err := x.withheldOf(ctx, tableName{b.Schema, b.Table})
		if err == nil {
			b.Cells, err = held.cells(b.Cells)
		}
		if err != nil {
			return err
		}
		return x.write(wire.AppendBase(x.buf[:0], &b))
	})
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	return nil
}

// HoldJournal keeps what is in the journal there until the function that it returns is called. settled is an own transaction up to which no
// delete takes a row of a merged table back any more (Donation.Settled).
func (a *Applier) HoldJournal(ctx context.Context) (settled uint64, release func(), err error) {
	wal := a.wal.Load()
	if a.journal == nil || wal == nil {
		return 0, func() {}, nil
	}
	settled = (*wal).Captured()
	if a.absence.mayTakeBack((*wal).Passed()) {
		return 0, nil, &NoDelta{"rows that were deleted there are about to go; ask again"}
	}
	select {
	case a.journal.purging <- struct{}{}:
		return settled, func() { <-a.journal.purging }, nil
	case <-ctx.Done():
		return 0, nil, context.Cause(ctx)
	}
}
