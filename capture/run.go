package capture

import (
	"context"
	"fmt"
	"slices"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// run is a transaction that travels in chunks: one that pgoutput streams while it is in progress, or one
// that has outgrown a frame.
type run struct {
	xid       uint32 // of the top-level transaction
	foreign   bool   // applied here by a bridge: dropped whole
	relations map[uint32]*relation
	id        uint64 // 0 before its first row
	length    uint64 // bytes of its chunks in frames, the draft's included
	start     uint64 // stream sequence of the frame with its first chunk, 0 if that is the draft
	declared  map[*relation]struct{}
	last      *relation // of the last row
	sub       uint32    // subtransaction of the last row

	changes uint64
	aborts  uint64 // Z records
	schemas uint64 // M records
	top     bool   // a row was written by the top-level transaction: nothing but its end can void that
	live    xidSet // subtransactions with rows that are not rolled back
	void    xidSet // subtransactions with rows that are
	touched
}

// begun gives a run its id, now that it has a row.
func (t *tagger) begun(r *run) {
	if r.id == 0 {
		t.lastRun++
		r.id, r.sub = t.lastRun, r.xid
		r.declared = map[*relation]struct{}{}
		t.counters.Runs++
	}
}

func (t *tagger) streamStart(b []byte) error {
	c := cursor{b: b}
	xid, first := c.u32(), c.u8()
	if c.bad || t.txn.open || t.stream != nil {
		return protocolError("stream start of %d bytes", len(b))
	}
	r := t.runs[xid]
	if (r == nil) != (first == 1) {
		return protocolError("stream start of transaction %d with first segment %d", xid, first)
	}
	if r == nil {
		r = &run{xid: xid, relations: map[uint32]*relation{}}
		r.graves.dir = t.opts.SpoolDir
		t.runs[xid] = r
	}
	t.stream = r
	return nil
}

func (t *tagger) streamStop(ctx context.Context) error {
	if t.stream == nil {
		return protocolError("stream stop without a start")
	}
	r := t.stream
	t.stream = nil
	return t.flushChunk(ctx, r)
}

// runRow takes a row of a run: kind and tuples as in row.
func (t *tagger) runRow(ctx context.Context, r *run, xid uint32, kind wire.Kind, id uint32, tuples []byte) error {
	if r.foreign {
		return nil
	}
	rel, err := t.runUse(r, xid, id)
	if err != nil {
		return err
	}
	var records int
	if t.chunk, records, err = t.appendRow(t.chunk, rel, kind, id, tuples); err != nil {
		return err
	}
	r.changes += uint64(records - 1) // runUse has counted one
	t.counters.Changes += uint64(records - 1)
	if err := t.lookHome(rel, tuples); err != nil {
		return err
	}
	if tuples[0] != 'N' {
		if err := t.note(ctx, &r.touched, rel, kind, xid, tuples); err != nil {
			return err
		}
	}
	return t.flushFull(ctx, r)
}

func (t *tagger) runTruncate(ctx context.Context, r *run, xid uint32, options byte, ids []uint32) error {
	if r.foreign || len(ids) == 0 {
		return nil
	}
	var rels []*relation
	for _, id := range ids {
		rel, err := t.runUse(r, xid, id)
		if err != nil {
			return err
		}
		rels = append(rels, rel)
		r.changes-- // of the T record together there is one
		t.counters.Changes--
		table, err := t.table(ctx, rel)
		if err != nil {
			return err
		}
		if err := r.graves.add(grave{sub: xid, table: table}); err != nil {
			return err
		}
	}
	r.changes++
	t.counters.Changes++
	t.chunk = appendTruncate(t.chunk, options, rels)
	return t.flushFull(ctx, r)
}

// runUse makes the run's end ready for a change of that relation by that subtransaction, and counts it.
func (t *tagger) runUse(r *run, xid, id uint32) (*relation, error) {
	t.begun(r)
	rel := r.last
	if rel == nil || rel.ID != id {
		if rel = r.relations[id]; rel == nil {
			rel = t.relations[id] // a transaction that was not streamed
		}
		if rel == nil {
			return nil, protocolError("row of relation %d, which was not announced", id)
		}
		t.runDeclare(r, rel)
		r.last = rel
	}
	t.runBy(r, xid)
	r.changes++
	t.counters.Changes++
	return rel, nil
}

// runBy says whose the run's next record is.
func (t *tagger) runBy(r *run, xid uint32) {
	if xid != r.sub {
		t.chunk = wire.AppendNumber(t.chunk, wire.KindSub, uint64(xid))
		r.sub = xid
	}
	if xid == r.xid {
		r.top = true
	} else {
		r.live.add(xid)
	}
}

func (t *tagger) runDeclare(r *run, rel *relation) {
	if _, ok := r.declared[rel]; !ok {
		r.declared[rel] = struct{}{}
		at := len(t.chunk)
		t.chunk = rel.sealed(wire.AppendRelation(t.chunk, &rel.Relation), at, wire.SealedRelation)
	}
}

// chunkHead is more than a K record takes beside its bytes.
const chunkHead = 1 + 10 + 10 + 10

func (t *tagger) flushFull(ctx context.Context, r *run) error {
	if len(t.draft.body)+len(t.chunk)+chunkHead < t.draft.target {
		return nil
	}
	return t.flushChunk(ctx, r)
}

// flushChunk moves what has been gathered of the run into frames, cut wherever a frame is full.
func (t *tagger) flushChunk(ctx context.Context, r *run) error {
	for b := t.chunk; len(b) > 0; {
		room := t.draft.target - len(t.draft.body) - chunkHead
		if room < min(len(b), MinFrameBytes/4) {
			if err := t.publish(ctx); err != nil {
				return err
			}
			continue
		}
		n := min(room, len(b))
		if r.length == 0 {
			t.open = append(t.open, r)
		}
		t.draft.body = wire.AppendChunk(t.draft.body, r.id, r.length, b[:n])
		t.draft.worth, t.draft.waits = true, true
		r.length += uint64(n)
		b = b[n:]
	}
	t.chunk = t.chunk[:0]
	return t.full(ctx)
}

// grow turns the transaction in the draft into a run.
func (t *tagger) grow(ctx context.Context) error {
	x := &t.txn
	// Scratch, since publishing reuses the body.
	t.moved = append(t.moved[:0], t.draft.body[x.start:]...)
	t.draft.truncate(x.start)
	r := &run{xid: x.xid, relations: t.relations, top: true}
	r.touched, x.touched = x.touched, touched{graves: graves{dir: t.opts.SpoolDir}}
	x.run = r
	t.begun(r)
	for _, rel := range x.before() {
		t.runDeclare(r, rel)
	}
	recs := wire.NewRecords(t.moved)
	if _, err := recs.Next(); err != nil { // its B; L takes its place
		return err
	}
	t.chunk = append(t.chunk, recs.Rest()...)
	for {
		rec, err := recs.Next()
		if err != nil {
			break
		}
		switch rec.Kind {
		case wire.KindRelation:
		case wire.KindSchema:
			r.schemas++
		case wire.KindSealed:
			if part, err := wire.SealedPartOf(rec.Payload); err == nil && part == wire.SealedChange {
				r.changes++
			}
		default:
			r.changes++
		}
	}
	r.lifted, r.keys, r.many = false, nil, true
	return t.flushFull(ctx, r)
}

func (t *tagger) streamCommit(ctx context.Context, b []byte) error {
	c := cursor{b: b}
	xid := c.u32()
	lsn, end, at, err := commitOf(c.b)
	if err != nil || c.bad || t.txn.open || t.stream != nil {
		return protocolError("stream commit of %d bytes", len(b))
	}
	r := t.runs[xid]
	if r == nil {
		return protocolError("stream commit of transaction %d, which was not begun", xid)
	}
	if err := r.settle(ctx); err != nil {
		return err
	}
	delete(t.runs, xid)
	t.adopt(r)
	if err := t.commitRun(ctx, r, lsn, at); err != nil {
		return err
	}
	t.passed(end)
	return t.full(ctx)
}

// adopt makes a committed run's relations those of the session: the server does not announce them again.
func (t *tagger) adopt(r *run) {
	for id, rel := range r.relations {
		if old := t.relations[id]; old == nil || old.arrival < rel.arrival {
			rel.table = nil // it may have been created in the transaction itself
			t.relations[id] = rel
		}
	}
}

// commitRun ends a run as a transaction, or, if nothing is left of it, without a trace: a transaction whose
// rows were all rolled back would have had no row if it had not been streamed, and no seq (PROOF.md R6).
func (t *tagger) commitRun(ctx context.Context, r *run, lsn uint64, at origin.Stamp) error {
	defer r.graves.close()
	if r.foreign {
		t.counters.Foreign++
		return nil
	}
	if err := t.flushChunk(ctx, r); err != nil {
		return err
	}
	if !r.top && r.live.len() == 0 {
		t.abandon(r)
		return nil
	}
	clock := t.clock
	stamp := clock.Next(at, t.up)
	t.depend()
	t.draft.body = wire.AppendLargeCommit(t.draft.body, wire.LargeCommit{
		Begin:  wire.Begin{Seq: t.seq + 1, Stamp: stamp, CommitTime: at, CommitLSN: lsn, XID: r.xid},
		Run:    r.id,
		Length: r.length, Changes: r.changes, Aborts: r.aborts, Schemas: r.schemas,
	})
	t.draft.waits = true
	t.clock = clock
	t.close(r)
	r.many = true
	if r.schemas > 0 {
		t.del.LocalSchema(t.seq+1, r.xid)
	}
	return t.tell(t.seq+1, stamp, at, lsn, r.xid, &r.touched, &r.void)
}

// abandon ends a run that will never be committed.
func (t *tagger) abandon(r *run) {
	r.graves.close()
	if r.length == 0 {
		return
	}
	t.draft.body = wire.AppendNumber(t.draft.body, wire.KindRunAbort, r.id)
	t.draft.worth, t.draft.waits = true, true
	t.counters.RunsAborted++
	t.close(r)
}

func (t *tagger) close(r *run) {
	t.open = slices.DeleteFunc(t.open, func(x *run) bool { return x == r })
}

func (t *tagger) streamAbort(ctx context.Context, b []byte) error {
	c := cursor{b: b}
	xid, sub := c.u32(), c.u32()
	if c.bad || t.txn.open || t.stream != nil {
		return protocolError("stream abort of %d bytes", len(b))
	}
	r := t.runs[xid]
	if r == nil {
		// PostgreSQL 18 marks the subtransactions of a transaction that it finds aborted as streamed
		// (ReorderBufferCheckAndTruncateAbortedTXN), though nothing of them was.
		return nil
	}
	if sub == xid {
		delete(t.runs, xid)
		t.abandon(r)
		return t.full(ctx)
	}
	if !r.live.remove(sub) {
		return nil // it had no rows
	}
	r.void.add(sub)
	r.aborts++
	t.chunk = wire.AppendNumber(t.chunk, wire.KindSubAbort, uint64(sub))
	return t.flushChunk(ctx, r)
}

// interrupted gives up what the connection was lost in the middle of: the server begins these transactions
// anew.
func (t *tagger) interrupted() {
	if x := &t.txn; x.open && x.seq != 0 && x.run == nil {
		t.draft.truncate(x.start)
	} else if x.open && x.run != nil {
		t.abandon(x.run)
	}
	t.txn.open = false
	t.txn.last = nil
	t.chunk = t.chunk[:0]
	for _, xid := range sortedKeys(t.runs) { // sorted, so that equal histories give equal frames
		t.abandon(t.runs[xid])
	}
	clear(t.runs)
	clear(t.relations)
	clear(t.types)
	t.stream, t.big = nil, nil
}

func sortedKeys(m map[uint32]*run) []uint32 {
	keys := make([]uint32, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// String names the run in errors and logs.
func (r *run) String() string { return fmt.Sprintf("run %d of transaction %d", r.id, r.xid) }
