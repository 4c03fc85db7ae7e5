package apply

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// ResumeSeq is the stream sequence at which reading origin o's stream must begin; 0: what was applied last was handed on
// by another node, and the place must be found by seq.
func (a *Applier) ResumeSeq(ctx context.Context, o origin.Origin) (uint64, error) {
	a.catalog.mu.Lock()
	defer a.catalog.mu.Unlock()
	var seq int64
	err := a.catalog.conn.QueryRow(ctx, `SELECT stream_seq FROM pgbridge.position WHERE origin = $1 AND epoch = $2`,
		o.Node, int64(o.Epoch)).Scan(&seq)
	if err != nil {
		return 0, fmt.Errorf("read position of %s: %w", o, err)
	}
	return uint64(seq), nil
}

// WaitApplied waits until o's transactions up to seq count as applied here; the error is ctx's cause.
func (a *Applier) WaitApplied(ctx context.Context, o origin.Origin, seq uint64) error {
	nobody := origin.Origin{}
	return a.progress.hold(ctx, origin.Vector{{Origin: o, Seq: seq}}, nobody, nobody, func(origin.Entry) {})
}

// Seen returns what a session that begins now sees: all that was applied or committed here before the call. It waits until
// capture has read that far; the error is ctx's cause, or that of a lost connection.
func (a *Applier) Seen(ctx context.Context, wal WAL) (origin.Vector, error) {
	lsn, err := a.markers.flush(ctx)
	if err == nil {
		err = wal.WaitPassed(ctx, lsn)
	}
	if err != nil {
		return nil, err
	}
	v := a.progress.vector()
	v.Advance(origin.Entry{Origin: a.own, Seq: wal.Captured()})
	return v, nil
}

// EverywhereSeq is the highest seq of another origin o that is stable at every node, by the last Turn: nobody needs it any more.
func (a *Applier) EverywhereSeq(o origin.Origin) uint64 { return a.heard.everywhereOf(o) }

// EverywhereSeqBut is EverywhereSeq without the nodes that were away at the last Turn; 0 if none were, or no other one is left.
func (a *Applier) EverywhereSeqBut(o origin.Origin) uint64 { return a.heard.everywhereOfBut(o) }

// Turn works out what EverywhereSeq says, and EverywhereSeqBut. own is the last own transaction that is durable in the stream, and
// low what its frame says that had been seen.
func (a *Applier) Turn(own uint64, low origin.Vector, away []string) { a.heard.turn(own, low, away) }

// Feed takes in one frame of o's transactions, in order: of its own stream, or of another node's that hands it on, of which
// streamSeq is 0. It blocks while o's inbox is full. Only one goroutine may feed an origin.
func (a *Applier) Feed(ctx context.Context, o origin.Origin, streamSeq uint64, f *wire.Frame) error {
	w := a.worker(o)
	if w == nil {
		return fmt.Errorf("frame of origin %s, which is not in topology.nodes", o)
	}
	before := w.inbox.again.Load()
	err := w.inbox.push(ctx, streamSeq, f)
	if n := w.inbox.again.Load(); n > before && time.Since(w.saidAgain) >= sayAgain {
		w.saidAgain = time.Now()
		a.opts.Logger.Info("transactions came again, and are passed over", "origin", o.Node, "of_last_frame", n-before, "since_start", n)
	}
	return err
}

// sayAgain is how often the log says that transactions come again: where reading begins anew there are many such frames.
const sayAgain = time.Minute

// FeedAhead takes in a frame, or the first part of one, that o's stream has not stored yet; the stream has been fed to
// Feed up to next-1. Like Feed otherwise.
func (a *Applier) FeedAhead(ctx context.Context, o origin.Origin, next uint64, f *wire.Frame) error {
	if w := a.worker(o); w != nil {
		return w.inbox.pushAhead(ctx, next, f)
	}
	return nil // Feed says it
}

// Restart says that o's stream is read anew from ResumeSeq on; the feeding goroutine calls it.
func (a *Applier) Restart(o origin.Origin) {
	if w := a.worker(o); w != nil {
		w.inbox.restart()
	}
}

// Received returns the highest seq of o that has arrived here.
func (a *Applier) Received(o origin.Origin) uint64 {
	if w := a.worker(o); w != nil {
		last, _, _ := w.inbox.received()
		return last
	}
	return 0
}

func (a *Applier) worker(o origin.Origin) *worker {
	for _, w := range a.workers {
		if w.origin == o {
			return w
		}
	}
	return nil
}

// NotePublished remembers the highest own seq that is durable in the stream, with its stamp, so that a stream that was lost or rewound is
// noticed at the next start, and that a node whose data are set back knows what it has of its own.
func (a *Applier) NotePublished(ctx context.Context, seq uint64, stamp origin.Stamp) error {
	if seq <= a.Node().Published {
		return nil
	}
	a.catalog.mu.Lock()
	defer a.catalog.mu.Unlock()
	if _, err := a.catalog.conn.Exec(ctx, `UPDATE pgbridge.node SET published = $1, published_stamp = $2 WHERE published < $1`, int64(seq), int64(stamp)); err != nil {
		return fmt.Errorf("note published transaction %d: %w", seq, err)
	}
	a.nodeMu.Lock()
	defer a.nodeMu.Unlock()
	a.node.Published, a.node.PublishedStamp = seq, stamp
	return nil
}

// NoteBeginning remembers the state, which stands in a frame of the own stream, with which that begins anew if the broker loses it before
// any transaction is known to be durable there: the slot must not be confirmed beyond its LSN until then.
func (a *Applier) NoteBeginning(ctx context.Context, h *wire.Header) error {
	b, err := new(wire.Encoder).Append(nil, &wire.Frame{Header: *h})
	if err != nil {
		return err
	}
	a.catalog.mu.Lock()
	defer a.catalog.mu.Unlock()
	_, err = a.catalog.conn.Exec(ctx, `UPDATE pgbridge.node SET beginning = $1`, b)
	switch {
	case hasCode(err, "42703"):
		return &refusal{errors.New("the table pgbridge.node is of an earlier version, without the column beginning"), "run pgbridge setup"}
	case err != nil:
		return fmt.Errorf("note where the own stream begins: %w", err)
	}
	a.nodeMu.Lock()
	defer a.nodeMu.Unlock()
	a.node.Beginning = h
	return nil
}

// Published takes in a frame of the own stream, in order, also if it is not durable yet. Frame and body may be used again
// when it returns.
func (a *Applier) Published(ctx context.Context, f *wire.Frame) {
	if a.journal != nil {
		a.journal.offer(ctx, f)
	}
	a.keeper.offer(f)
}

// Stable returns, for every origin, what all other nodes have seen of it, by what they have published and was
// applied here: whatever is still to come from them includes it (PROOF.md R22).
func (a *Applier) Stable() origin.Vector {
	var v origin.Vector
	add := func(o origin.Origin) {
		if seq := a.heard.stableSeq(o); seq < math.MaxInt64 { // else there is no other node to see it
			v.Advance(origin.Entry{Origin: o, Seq: seq})
		}
	}
	add(a.own)
	for _, w := range a.workers {
		add(w.origin)
	}
	return v
}

// StableEverywhere returns the highest own seq that is stable at every node: own frames up to it are not
// needed any more.
func (a *Applier) StableEverywhere() uint64 { return a.inJournal(a.heard.everywhereSeq()) }

// StableBut is StableEverywhere without the nodes that are away; 0 if no other one is left.
func (a *Applier) StableBut(away []string) uint64 { return a.inJournal(a.heard.everywhereBut(away)) }

// inJournal bounds a seq by what the journal, which reads own frames back, has taken in, and by schema changes that are to be
// noted.
func (a *Applier) inJournal(seq uint64) uint64 {
	if seq == math.MaxInt64 {
		return 0
	}
	seq = a.schema.bound(seq)
	if a.journal != nil {
		seq = min(seq, a.journal.upTo())
	}
	return seq
}
