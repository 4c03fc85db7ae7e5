package capture

import (
	"context"
	"fmt"
	"time"

	"github.com/pgbridge/pgbridge/wire"
)

const (
	// emptyInterval is the least time between two frames that hold nothing but vectors: markers come
	// with every batch that is applied, and peers need not know each of them.
	emptyInterval = 100 * time.Millisecond
	// idleAdvance is how much WAL without anything of ours must have passed before a frame says so.
	idleAdvance = 1 << 20
	// freshCommit is how old a commit may be to leave at once although its frame is not full. Clocks of
	// server and bridge may differ; then it leaves after the linger time.
	freshCommit = 20 * time.Millisecond
	// lateShare and lateLinger: behind, a frame waits for more to fill it for a fourth of the time by which its last commit
	// is late anyway, up to this: each frame costs a sync of the broker's disk.
	lateShare  = 4
	lateLinger = 50 * time.Millisecond
	// chunkLinger is how long chunks of unfinished transactions wait for a frame to fill.
	chunkLinger = 100 * time.Millisecond
	// bodyReserve is what is left below the largest possible body for the records that end a frame:
	// a V record and the ends of transactions and runs.
	bodyReserve = 16 << 10
)

// pacing is what the decision when a frame leaves rests on beside the draft.
type pacing struct {
	deps     uint64 // generation of the dependencies in the last frame's header
	mark     wire.Mark
	resume   uint64
	standbys string    // that the last frame names
	sent     time.Time // the last frame of any kind
	empty    time.Time // the last frame without records
}

// target returns the size at which a frame is closed now.
func (t *tagger) target() int {
	limit := t.pub.MaxBody()
	return min(t.opts.FrameBytes, max(limit-bodyReserve, limit/2))
}

// header is the origin's state as of now.
func (t *tagger) header() wire.Header {
	d := &t.draft
	h := wire.Header{
		Sealed: t.opts.Seal != nil, Cluster: t.opts.Cluster, Sender: t.opts.Node, Origin: t.opts.Origin, WriterEpoch: t.opts.WriterEpoch,
		FirstSeq: d.firstSeq, LastSeq: t.seq, LastStamp: t.clock.Last,
		FirstCommitTime: d.first, LastCommitTime: d.last,
		Up: t.up, Low: t.told, ResumeLSN: t.position, Mark: t.mark,
		SystemID: t.opts.SystemID, Timeline: t.opts.Timeline, Standbys: t.state.guard.names(),
	}
	if len(t.open) > 0 {
		h.Back = t.open[0].start
	}
	return h
}

// publish hands the draft over and begins the next one. The draft must not end within a transaction.
func (t *tagger) publish(ctx context.Context) error {
	whole := t.showWhole(time.Now())
	next := t.pub.Next()
	for _, r := range t.open {
		if r.start == 0 {
			r.start = next
		}
	}
	f := wire.Frame{Header: t.header(), Body: t.draft.body}
	seq, err := t.pub.Publish(ctx, &f)
	if err != nil {
		return fmt.Errorf("publish frame up to transaction %d: %w", t.seq, err)
	}
	if seq != next {
		return fmt.Errorf("frame up to transaction %d got stream sequence %d instead of %d: somebody else writes to the stream",
			t.seq, seq, next)
	}
	if !whole {
		t.unshown = seq
	}
	t.ledger.push(seq, t.position)
	t.state.hurry.Store(false)
	now := time.Now()
	t.counters.Frames++
	t.counters.Bytes += uint64(len(f.Body))
	if len(f.Body) == 0 {
		t.counters.EmptyFrames++
		t.pacing.empty = now
	}
	t.pacing.deps, t.pacing.mark, t.pacing.resume, t.pacing.sent, t.pacing.standbys = t.deps, t.mark, t.position, now, f.Standbys
	t.draft.begin(t.target())
	t.report()
	return nil
}

// full publishes the draft if it has reached its size.
func (t *tagger) full(ctx context.Context) error {
	if len(t.draft.body) < t.draft.target || t.inline() {
		return nil
	}
	return t.publish(ctx)
}

// inline reports whether the draft ends within a transaction.
func (t *tagger) inline() bool { return t.txn.open && t.txn.seq != 0 && t.txn.run == nil }

// overflow makes room in a draft whose last transaction has grown beyond its size: it leaves without that
// transaction or, if it holds nothing else, the transaction becomes a run.
func (t *tagger) overflow(ctx context.Context) error {
	if t.draft.worth {
		if err := t.cut(ctx); err != nil || len(t.draft.body) <= t.draft.target {
			return err
		}
	}
	return t.grow(ctx)
}

// cut publishes what stands in front of the transaction that the draft ends within, and moves that to the
// next draft.
func (t *tagger) cut(ctx context.Context) error {
	x := &t.txn
	t.moved = append(t.moved[:0], t.draft.body[x.start:]...)
	t.draft.truncate(x.start)
	if err := t.publish(ctx); err != nil {
		return err
	}
	t.depend()
	for _, r := range x.before() {
		t.draft.declare(r)
	}
	x.start = len(t.draft.body)
	t.draft.body = append(t.draft.body, t.moved...)
	return nil
}

// tend publishes what is due now. drained says that all that has arrived has been walked. It returns how
// long nothing more will be due unless something arrives or Publisher.Changed fires.
func (t *tagger) tend(ctx context.Context, now time.Time, drained bool) (time.Duration, error) {
	if t.draft.worth || len(t.chunk) > 0 {
		return t.tendDraft(ctx, now, drained)
	}
	if t.inline() || !drained {
		return t.opts.StatusInterval, nil
	}
	return t.tendState(ctx, now)
}

// fresh reports whether the draft's last transaction was committed just now. If it was not, we are behind
// and more is coming: frames that leave at once would be small, and cost more than they gain.
func (t *tagger) fresh(now time.Time) bool {
	return t.draft.firstSeq != 0 && now.Sub(t.draft.last.Time()) < freshCommit
}

func (t *tagger) tendDraft(ctx context.Context, now time.Time, drained bool) (time.Duration, error) {
	if t.draft.since.IsZero() {
		t.draft.since = now
	}
	linger := t.opts.Linger
	if t.draft.firstSeq == 0 { // nobody can apply anything of it yet
		linger = max(linger, chunkLinger)
	} else {
		linger = max(linger, min(now.Sub(t.draft.last.Time())/lateShare, lateLinger))
	}
	fresh, complete := t.fresh(now), drained && !t.inline()
	again, idle := t.opts.StatusInterval, fresh && complete && t.pub.InFlight() == 0
	if fresh && t.showable() {
		idle, linger = false, max(linger, shownLingers*t.opts.Linger)
		if complete {
			again = t.show(now)
		}
	}
	left := linger - now.Sub(t.draft.since)
	if left > 0 && !idle && !(t.draft.firstSeq != 0 && t.state.hurry.Load()) {
		return min(left, again), nil
	}
	if len(t.chunk) > 0 {
		r := t.stream
		if r == nil {
			r = t.txn.run
		}
		if err := t.flushChunk(ctx, r); err != nil || !t.draft.worth {
			return t.opts.StatusInterval, err
		}
	}
	if t.inline() {
		return t.opts.StatusInterval, t.cut(ctx)
	}
	return t.opts.StatusInterval, t.publish(ctx)
}

// tendState publishes a frame without records when the state that it would carry is worth one.
func (t *tagger) tendState(ctx context.Context, now time.Time) (time.Duration, error) {
	p := &t.pacing
	if p.deps != t.deps { // peers, and the own retention, wait for low
		if left := emptyInterval - now.Sub(p.empty); left > 0 {
			return left, nil
		}
		if t.pub.InFlight() > 0 && now.Sub(p.sent) < emptyInterval {
			return emptyInterval, nil
		}
		return t.opts.StatusInterval, t.publish(ctx)
	}
	left := t.opts.StatusInterval - now.Sub(p.sent)
	if left > 0 {
		return left, nil
	}
	if p.mark == t.mark && t.position < p.resume+idleAdvance && p.standbys == t.state.guard.names() {
		return t.opts.StatusInterval, nil
	}
	return t.opts.StatusInterval, t.publish(ctx)
}

// report makes the figures visible to Status.
func (t *tagger) report() {
	t.state.report(func(s *Status) {
		s.Seq, s.Stamp, s.OpenRuns, s.Counters = t.seq, t.clock.Last, len(t.open), t.counters
	})
}
