package bridge

import (
	"context"
	"slices"
	"sort"
	"sync"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/wire"
)

// outbox hands capture's frames to the publisher and remembers which frame holds which seq, so that what
// is stable can be purged.
type outbox struct {
	*stream.Publisher
	published func(ctx context.Context, f *wire.Frame) // told of each frame
	probes    probes
	traces    *traces
	mu        sync.Mutex
	frames    []sent // oldest first
	sum       uint64 // of their bytes, and of those before
	back      uint64 // of the last frame
	// before is the last state in front of the node's first transaction; nil: that is not known, or long ago.
	before *wire.Header
	// told is what a durable frame said, next what one says that will be, and newest what the last one says.
	told, next, newest told
}

// told is what a frame says of what this node had seen by its last transaction.
type told struct {
	stream, last uint64
	low          origin.Vector
}

// sent is one frame: reading on behind seq last begins at resume; commits from lsn on are in later frames.
type sent struct {
	stream, last, resume, lsn uint64
	sum                       uint64       // of the bytes of all frames up to it
	stamp                     origin.Stamp // of its last transaction
}

// outboxLimit bounds the frames that are remembered; above it every second one is forgotten, which only
// makes the purge coarser.
const outboxLimit = 20_000

// Publish implements capture.Publisher.
func (o *outbox) Publish(ctx context.Context, f *wire.Frame) (uint64, error) {
	seq, err := o.Publisher.Publish(ctx, f)
	if err == nil {
		o.note(seq, f)
		o.probes.published(seq, f)
		o.traces.handed(seq, f)
		if o.published != nil {
			o.published(ctx, f)
		}
	}
	return seq, err
}

func (o *outbox) note(seq uint64, f *wire.Frame) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.newest = told{seq, f.LastSeq, f.Low}
	if f.LastSeq == 0 {
		h := f.Header
		o.before = &h
	}
	if o.next.stream <= o.told.stream {
		o.next = o.newest
	}
	resume := seq
	if o.back != 0 {
		resume = o.back
	}
	o.back = f.Back
	if len(o.frames) >= outboxLimit {
		keep := o.frames[:0]
		for i := range o.frames {
			if i%2 == 1 {
				keep = append(keep, o.frames[i])
			}
		}
		o.frames = keep
	}
	o.sum += uint64(len(f.Body))
	o.frames = append(o.frames, sent{seq, f.LastSeq, resume, f.ResumeLSN, o.sum, f.LastStamp})
}

// lag is how many bytes the frames have that hold own transactions behind seq, and the stamp of the first frame; 0 if none is known.
func (o *outbox) lag(seq uint64) (bytes uint64, oldest origin.Stamp) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := sort.Search(len(o.frames), func(i int) bool { return o.frames[i].last > seq })
	if n == len(o.frames) {
		return 0, 0
	}
	before := uint64(0)
	if n > 0 {
		before = o.frames[n-1].sum
	}
	return o.sum - before, o.frames[n].stamp
}

// below returns the stream sequence below which nothing is needed any more once own transactions up to
// stable are, 0 for none. A reader that has applied stable begins at its frame's resume. hold, unless 0, is the
// lowest commit LSN of a local delete that a restart must hear of again: its frame stays.
func (o *outbox) below(stable, hold uint64) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.forget(o.settled(stable, hold))
}

// toward is below, but goes no further than to the first place at or behind want that is known.
func (o *outbox) toward(want, stable, hold uint64) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	most := o.settled(stable, hold)
	n := min(2, most)
	for n < most && o.frames[n-1].resume < want {
		n++
	}
	return o.forget(n)
}

// settled is how many frames from the first one on hold nothing but what is stable, and no local delete from hold on; mu is held.
func (o *outbox) settled(stable, hold uint64) int {
	n := 0
	for n < len(o.frames) && o.frames[n].last <= stable && (hold == 0 || o.frames[n].lsn <= hold) {
		n++
	}
	return n
}

// forget forgets all but the last of n frames, and returns where reading begins behind that one: it has the last stable
// transaction itself. mu is held.
func (o *outbox) forget(n int) uint64 {
	if n < 2 {
		return 0
	}
	o.frames = o.frames[n-1:]
	return o.frames[0].resume
}

// beforeLSN returns the stream sequence of a frame in front of which all commits begin below lsn, the last known one; 0 if none is.
func (o *outbox) beforeLSN(lsn uint64) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := len(o.frames) - 1; i >= 0; i-- {
		if o.frames[i].lsn <= lsn {
			return o.frames[i].stream
		}
	}
	return 0
}

// beginningStep is how many bytes of WAL may be held for the state that is noted, if nothing else in it has changed.
const beginningStep = 1 << 20

// beginning returns the state to note in place of noted, with which the stream begins anew as long as none of its transactions is
// known to be durable; nil: noted will do.
func (o *outbox) beginning(noted *wire.Header) *wire.Header {
	o.mu.Lock()
	defer o.mu.Unlock()
	h := o.before
	if h == nil || noted != nil && h.ResumeLSN < noted.ResumeLSN+beginningStep && h.Up.Equal(noted.Up) && h.Low.Equal(noted.Low) {
		return nil
	}
	return h
}

// behind returns the stream sequence at which reading must begin to meet all own transactions behind seq
// whole, 0 for the stream's first frame.
func (o *outbox) behind(seq uint64) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, _ := slices.BinarySearchFunc(o.frames, seq, func(f sent, seq uint64) int {
		if f.last <= seq {
			return -1
		}
		return 1
	})
	if n == 0 {
		return 0
	}
	return o.frames[n-1].resume
}

// lastTold returns the last transaction of a durable frame, of the newest ones, and what had been seen by then.
func (o *outbox) lastTold() (seq uint64, low origin.Vector) {
	durable := o.Durable()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.next.stream <= durable {
		o.told, o.next = o.next, o.newest // which nothing may follow for long
	}
	return o.told.last, o.told.low
}

// durableSeq returns the highest own seq in a frame that is safe at the broker.
func (o *outbox) durableSeq() uint64 {
	seq, _ := o.durableLast()
	return seq
}

// durableLast is durableSeq with that transaction's stamp.
func (o *outbox) durableLast() (seq uint64, stamp origin.Stamp) {
	durable := o.Durable()
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := len(o.frames) - 1; i >= 0; i-- {
		if o.frames[i].stream <= durable {
			return o.frames[i].last, o.frames[i].stamp
		}
	}
	return 0, 0
}

// deletes tells apply what capture has met.
type deletes struct {
	*apply.Applier
	outbox *outbox
}

// HoldLSN implements capture.Deletes: for apply, and for the node's first transactions, which the WAL must bring again until the
// database knows that some were published. A stream that is empty then tells of a broker that has lost it; before, of a new node.
func (d deletes) HoldLSN() uint64 { return holdFirst(d.Applier.Node(), d.Applier.HoldLSN()) }

// holdFirst is hold, or the LSN at which the own stream begins anew if that is lower, or if nothing else is held.
func holdFirst(n apply.Node, hold uint64) uint64 {
	if n.Published > 0 {
		return hold
	}
	begins := uint64(1)
	if n.Beginning != nil {
		begins = n.Beginning.ResumeLSN
	}
	if hold == 0 || begins < hold {
		return begins
	}
	return hold
}

// LocalDelete implements capture.Deletes.
func (d deletes) LocalDelete(x capture.Delete) {
	d.Applier.LocalDelete(x.Relation.Schema, x.Relation.Name, x.Key, x.Hash, x.Version, x.Seq, x.CommitLSN)
}

// LocalTruncate implements capture.Deletes.
func (d deletes) LocalTruncate(x capture.Truncate) {
	d.Applier.LocalTruncate(x.Relation.Schema, x.Relation.Name, x.Version, x.Seq, x.CommitLSN)
}
