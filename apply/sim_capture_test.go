package apply

import (
	"context"
	"slices"

	"github.com/pgbridge/pgbridge/integration/sim"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// The model of capture: it reads what the server has committed, later, and answers as apply.WAL.

// show notes that a transaction is visible here.
func (n *simNode) show(t *simTxn) {
	if t.node == n.id { // its seq may not be known yet
		return
	}
	n.shown[t.node] = max(n.shown[t.node], t.Seq)
}

// ---- capture ----

// capture reads a record from the WAL.
func (n *simNode) capture() {
	r := &n.pg.WAL[n.read]
	switch of := r.Of.(type) {
	case *simMarker:
		up, low := n.up.Clone(), n.low.Clone() // frames share the old ones
		more, done := up.Merge(of.Up), low.Merge(of.Done)
		n.up, n.low = up, low
		if n.w.broken.lowIsUp {
			n.low = n.up
		}
		told := n.absence.told(n.told, n.low)
		if n.w.broken.tellsUnsettled {
			told = n.low
		}
		news := !told.Equal(n.told)
		n.told = told
		n.marks = append(n.marks, simMark{wire.Mark{XID: of.XMin, Seq: n.seq}, n.up})
		if more || done || news || len(of.Lost) > 0 {
			n.publish(nil, of.Lost)
		}
	case *simNote:
		body, ok := wire.AppendNote(nil, of.prefix, of.content)
		if !ok {
			n.w.fail("%s: a message is no %s", n.own, of.prefix)
		}
		n.publish(nil, nil, body...)
	case *simTxn:
		n.tag(of, r.Commit.LSN)
	}
	n.read++
}

// tag makes a transaction of what a user committed.
func (n *simNode) tag(t *simTxn, lsn uint64) {
	deps := n.up
	if n.w.broken.unlifted {
		deps = nil
	}
	n.seq++
	t.published, t.up, t.low = true, n.up, n.told
	t.Entry = origin.Entry{Origin: n.own, Seq: n.seq, Stamp: n.clock.Next(t.commitTime, deps)}
	n.shown[n.id] = n.seq
	for p, seq := range t.seen {
		if p != n.id && n.up.Seq(simOrigin(p)) < seq {
			n.w.fail("%s had seen %s:%d, which it does not declare", t, sim.NodeName(p), seq)
		}
	}
	n.captured = append(n.captured, t)
	n.tell(t, n.low.Includes(n.start))
	n.publish(t, nil)
	n.w.published(t)
}

// publish sends a frame: of a transaction, or of what has changed in the vectors and lost.
func (n *simNode) publish(t *simTxn, lost []wire.Loss, note ...byte) {
	f := &wire.Frame{Header: wire.Header{Origin: n.own, WriterEpoch: 1, FirstSeq: n.seq + 1, LastSeq: n.seq, LastStamp: n.clock.Last, Up: n.up, Low: n.told}}
	f.Body = note
	if len(lost) > 0 {
		f.Body = wire.AppendLost(nil, lost)
	}
	if t != nil {
		f.FirstSeq = t.Seq
		f.Body = wire.AppendDeps(f.Body, t.up, t.low)
		for i, table := range n.w.tables {
			if slices.ContainsFunc(t.changes, func(c simChange) bool { return c.table == i }) {
				f.Body = append(f.Body, table.record...)
			}
		}
		f.Body = wire.AppendBegin(f.Body, wire.Begin{Seq: t.Seq, Stamp: t.Stamp, CommitTime: t.commitTime, XID: t.xid})
		f.Body = wire.AppendCommit(t.body(f.Body, n.w.tables, false))
	}
	n.frames = append(n.frames, f)
}

// tell hands the deletes of a captured transaction over, as capture does when it reads it, and from the own stream at a
// start. passed says that capture has read whatever an earlier life has applied.
func (n *simNode) tell(t *simTxn, passed bool) {
	lsn := uint64(0)
	if c := n.commitOf(t.xid); c != nil {
		lsn = c.LSN
	}
	stone := tombstone{t.version(), t.Seq}
	for i := range t.changes {
		c := &t.changes[i]
		m := n.w.tables[c.table]
		switch {
		case c.kind == wire.KindTruncate:
			n.absence.truncatedHere(m.mapping.name(), stone, lsn, passed)
		case c.kind == wire.KindDelete || c.kind == wire.KindUpdate && c.from != c.to:
			n.absence.deleted(m.mapping.name(), values(c.old[:1]), m.hash(c.from), stone, lsn, passed)
		}
	}
	n.dropTombs()
}

func (n *simNode) commitOf(xid uint32) *sim.Commit { return n.pg.CommitOf(&sim.Version{XID: xid}) }

// dropTombs is what a bridge without tombstones would know.
func (n *simNode) dropTombs() {
	if n.w.broken.noTombstones {
		clear(n.absence.tombs)
	}
}

// confirm tells the server how much of the WAL is not needed any more.
func (n *simNode) confirm() {
	lsn := sim.LSN(n.read)
	if hold := n.absence.holdLSN(); hold != 0 && lsn >= hold {
		lsn = hold - 1
	}
	n.confirmed = max(n.confirmed, lsn)
}

// mark puts a marker into the WAL.
func (n *simNode) mark(up origin.Entry, lost []wire.Loss) {
	n.progress.mu.Lock()
	now := n.progress.now()
	m := wire.Marker{Up: n.progress.announced.Clone(), Done: now.done, Lost: lost, XMin: uint64(n.pg.XMin())}
	if up.Seq != 0 {
		m.Up.Advance(up)
	}
	n.progress.announced.Merge(m.Up)
	n.pg.Emit(&simMarker{m})
	n.progress.read.marked(sim.LSN(len(n.pg.WAL)), now)
	n.progress.mu.Unlock()
}

// flush writes a marker and brings the WAL up to it on disk.
func (n *simNode) flush() {
	n.mark(origin.Entry{}, nil)
	n.pg.Flushed = len(n.pg.WAL)
}

// What apply asks of capture.

func (n *simNode) Passed() uint64 { return sim.LSN(n.read) }

// Hasten implements WAL.
func (n *simNode) Hasten() {}

func (n *simNode) Captured() uint64     { return n.seq }
func (n *simNode) RecentXIDs() []uint32 { return nil } // the simulated wait asks the server itself

func (n *simNode) WaitPassed(context.Context, uint64) error { return errUnknown } // nothing that is simulated waits

func (n *simNode) LocalStamp(at origin.Stamp, k wire.KeyHash) origin.Stamp {
	found := at
	for _, t := range n.captured[n.from:] {
		if t.commitTime != at {
			continue
		}
		for i := range n.w.tables {
			for key := 1; key <= n.w.s.Keys; key++ {
				if n.w.tables[i].hash(key) == k && t.writes(i, key) {
					found = t.Stamp
				}
			}
		}
		if n.w.broken.firstByTime {
			return t.Stamp
		}
	}
	if n.w.broken.rawStamps {
		return at
	}
	return found
}

func (n *simNode) Wrote(at origin.Stamp) bool {
	return slices.ContainsFunc(n.captured[n.from:], func(t *simTxn) bool { return t.commitTime == at })
}

func (n *simNode) Before(at origin.Stamp, xid, seq uint64) bool {
	return !n.Wrote(at) && xid < n.next && n.from <= seq && !n.w.broken.goneHides
}

func (n *simNode) MarkFor(seq uint64) (uint64, bool) {
	for _, m := range slices.Backward(n.marks) {
		if m.Seq <= seq {
			return m.XID, true
		}
	}
	return 0, false
}

func (n *simNode) MarkWithin(deps origin.Vector, except origin.Origin) (uint64, bool) {
	for _, m := range slices.Backward(n.marks) {
		if m.Seq <= deps.Seq(n.own) && !slices.ContainsFunc(m.up, func(e origin.Entry) bool {
			return e.Origin != n.own && e.Origin != except && !deps.Covers(e.Origin, e.Seq)
		}) {
			return m.XID, true
		}
	}
	return 0, false
}

func (n *simNode) Vectors() (up, low origin.Vector) { return n.up, n.low }

// ---- what else runs beside the workers ----
