package capture

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// Capture reads one slot. New makes it, Restore may follow, then Run, once; the questions are safe for
// concurrent use at any time.
type Capture struct {
	opts    Options
	state   *state
	tagger  *tagger
	ledger  *ledger
	restore *restorer // until Run
}

// New returns a Capture that goes on behind tail, the last own frame in the stream; nil if the stream is
// empty, which begins with seq 1 at the slot's present place. The error is that of Options.Validate, or a
// CheckError if tail is another origin's.
func New(opts Options, pub Publisher, del Deletes, tail *wire.Frame) (*Capture, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts = opts.withDefaults()
	if tail != nil && (tail.Cluster != opts.Cluster || tail.Origin != opts.Origin) {
		return nil, finding(CodeStreamOther, "own stream",
			fmt.Sprintf("ends with a frame of origin %s of cluster %q, this is %s of %q", tail.Origin, tail.Cluster, opts.Origin, opts.Cluster),
			"give this node a stream of its own")
	}
	c := &Capture{opts: opts, state: &state{hurried: make(chan struct{}, 1)}}
	c.ledger = &ledger{pub: pub, del: del, after: c.opts.ConfirmAfter}
	c.tagger = &tagger{
		opts: &c.opts, pub: pub, del: del, state: c.state, ledger: c.ledger,
		hashes: newHashes(opts.Logger),
		deps:   1, runs: map[uint32]*run{}, relations: map[uint32]*relation{}, types: map[uint32]typeName{},
	}
	c.tagger.txn.graves.dir = opts.SpoolDir
	c.restore = newRestorer(&c.opts, del, c.state)
	if tail != nil && tail.ResumeLSN != 0 {
		c.tagger.resume(&tail.Header)
		c.state.guard.resume(tail.Standbys)
		del.Told(c.tagger.told, c.tagger.low) // an earlier life has told it
		c.ledger.durable = tail.ResumeLSN
	}
	c.state.vectors.Store(&vectors{c.tagger.up, c.tagger.low})
	c.state.status.State = StateConnecting
	return c, nil
}

// resume takes over the state behind a frame.
func (t *tagger) resume(h *wire.Header) {
	t.seq, t.clock.Last = h.LastSeq, h.LastStamp
	t.up, t.low = h.Up.Clone(), h.Low.Clone()
	t.told = t.low
	t.mark, t.position = h.Mark, h.ResumeLSN
	t.pacing.deps, t.pacing.mark, t.pacing.resume, t.pacing.standbys = t.deps, t.mark, t.position, h.Standbys
	t.state.written.begin(t.seq)
}

// Pauses between two tries to connect to PostgreSQL.
const (
	minPause = 100 * time.Millisecond
	maxPause = 5 * time.Second
)

// Run reads until ctx ends, and returns its cause then. When the connection to PostgreSQL is lost it
// connects again. It ends early with a CheckError when a person has to act, with an error that wraps
// ErrProtocol when the server says what it should not, or with that of Publish.
func (c *Capture) Run(ctx context.Context) error {
	t := c.tagger
	c.Close()
	if t.mark.XID != 0 {
		c.state.marks.add(t.mark, t.up)
	}
	t.draft.begin(t.target())
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		before := t.position
		err := c.session(ctx)
		t.interrupted()
		t.report()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, errAgainRead) {
			continue
		}
		if !isLost(err) {
			return err
		}
		if t.position > before {
			pause = minPause
		}
		c.state.report(func(s *Status) { s.State, s.Waiting = StateConnecting, err.Error() })
		c.opts.Logger.Warn("connection to postgresql lost", "err", err.Error(), "pause", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		t.counters.Reconnects++
	}
}

// Close gives up what Restore needs; it can be called more than once. Run does it too.
func (c *Capture) Close() {
	if c.restore != nil {
		c.restore.close()
		c.restore = nil
	}
}

// Passed returns the LSN up to which every local commit has been read and told to Deletes.
func (c *Capture) Passed() uint64 { return c.state.passed.lsn.Load() }

// WaitPassed waits until Passed has reached lsn; the error is ctx's cause.
func (c *Capture) WaitPassed(ctx context.Context, lsn uint64) error {
	return c.state.passed.wait(ctx, lsn)
}

// LocalStamp returns the stamp of the last captured local transaction with that commit time that wrote the
// key; the commit time itself if it was not lifted (PROOF.md R15).
func (c *Capture) LocalStamp(commitTime origin.Stamp, key wire.KeyHash) origin.Stamp {
	return c.state.lifted.stamp(commitTime, key)
}

// Hasten has what is captured published without waiting for more.
func (c *Capture) Hasten() {
	c.state.hurry.Store(true)
	select {
	case c.state.hurried <- struct{}{}:
	default:
	}
}

// Wrote reports whether a local transaction with that commit time was captured, of those that are not stable
// yet. Once capture has passed its commit, a row version with another commit time is either older or was
// never captured (PROOF.md R15). One whose stamp is not remembered, for lack of room, counts as not captured: the stream says what
// it is.
func (c *Capture) Wrote(commitTime origin.Stamp) bool {
	return c.state.written.has(commitTime) && !c.state.lifted.unknown(commitTime)
}

// Before reports whether a local transaction with that commit time and id, which Wrote does not know, has a seq of at most seq if it was
// captured: it began before this Capture, and what that did not find in frames any more lies there.
func (c *Capture) Before(commitTime origin.Stamp, xid, seq uint64) bool {
	return !c.state.written.has(commitTime) && xid < c.opts.StartXID && c.state.written.below(seq)
}

// Captured returns the seq of the last local transaction that has been read.
func (c *Capture) Captured() uint64 { return c.state.written.captured() }

// MarkFor returns the transaction id of the newest marker whose seq is at most seq: every local transaction
// below it has a seq of at most seq, if it was captured (PROOF.md R11). It is a full id, with its epoch.
func (c *Capture) MarkFor(seq uint64) (xid uint64, ok bool) {
	m, ok := c.state.marks.newest(seq)
	return m.XID, ok
}

// MarkWithin returns the transaction id of the newest marker up to which deps covers everything: local
// transactions, as for MarkFor, and what had been announced of all other origins but except. Whatever a local
// transaction below it did to a row, captured or not, nothing that deps does not cover was there before.
func (c *Capture) MarkWithin(deps origin.Vector, except origin.Origin) (xid uint64, ok bool) {
	return c.state.marks.within(deps, c.opts.Origin, except)
}

// FirstMark returns the oldest marker that is remembered.
func (c *Capture) FirstMark() (wire.Mark, bool) { return c.state.marks.first() }

// Vectors returns what markers that capture has read back say: up is announced, low is applied (PROOF.md
// R8, R10). They must not be changed.
func (c *Capture) Vectors() (up, low origin.Vector) {
	v := c.state.vectors.Load()
	return v.up, v.low
}

// RecentXIDs returns the top-level ids of captured transactions that may not be visible in their own
// database yet (PROOF.md R14).
func (c *Capture) RecentXIDs() []uint32 { return c.state.recents.get() }

// Forget drops what is remembered of transactions that are stable (PROOF.md R22), and what only others than
// they could ask for.
func (c *Capture) Forget(stable origin.Vector) {
	seq := stable.Seq(c.opts.Origin)
	c.state.lifted.forget(seq)
	c.state.marks.forget(seq)
	c.state.marks.forgetWithin(stable, c.opts.Origin)
	if m, ok := c.state.marks.first(); ok && m.Seq <= seq {
		c.state.written.forget(m)
	}
}

// Status returns how far capture has come.
func (c *Capture) Status() Status {
	passed := c.Passed() // first, so that Seq has what lies below
	c.state.mu.Lock()
	s := c.state.status
	c.state.mu.Unlock()
	s.PassedLSN, s.ConfirmedLSN = passed, c.ledger.confirm()
	return s
}

// Restore takes a retained own frame, in stream order and before Run: it rebuilds what LocalStamp, Wrote,
// the questions for marks and RecentXIDs answer from, and tells Deletes of the deletes again. It connects to PostgreSQL
// once, for the keys of the published tables and for what only the server can hash.
func (c *Capture) Restore(f *wire.Frame) error {
	if c.restore == nil {
		return fmt.Errorf("restore frame: capture runs already")
	}
	if err := c.restore.frame(f); err != nil {
		return fmt.Errorf("restore frame up to transaction %d: %w", f.LastSeq, err)
	}
	return nil
}
