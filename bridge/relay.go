package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/wire"
)

// relayBytes bounds what waits to be applied before it is handed on, and to be stored. Beyond it the origin is not read.
const relayBytes = 32 << 20

// A stream of frames that are handed on has no limit of the broker's, which would set as much disk aside for each. When it
// holds more than stream.max_bytes, a quarter of its oldest frames goes: a node that needs them has been away for too long.

// relayPurge is the time between two looks at what need not be kept any more.
const relayPurge = 10 * time.Second

// relay hands one other node's frames on, record for record, when this node has applied what they hold (PROOF.md R24): to
// neighbours that have no link to that node, and to those that have lost it. They stay until every node has them.
type relay struct {
	*life
	origin origin.Origin
	pub    *stream.Publisher
	reader *stream.Reader // of the same stream, to find places in it

	mu      sync.Mutex // guards what follows
	queue   []received
	bytes   int64
	changed chan struct{}
	last    uint64 // the origin's seq behind what was taken last

	// Of the neighbour that the origin is read from; touched by the reading goroutine only.
	sender string
	taken  uint64 // stream sequence there

	// Touched by run only: where frames from the oldest open run on stand.
	places []place
}

// received is a frame that waits to be handed on.
type received struct {
	sender string
	seq    uint64 // stream sequence there
	frame  *wire.Frame
}

// place says where a frame of a sender's stream stands in ours.
type place struct{ theirs, ours uint64 }

// openRelay takes the stream over in which this node hands o's frames on.
func (l *life) openRelay(ctx context.Context, nc *nats.Conn, o origin.Origin) (*relay, error) {
	pub, err := stream.OpenPublisher(ctx, nc, stream.PublisherOptions{
		Cluster: l.cfg.Cluster, Node: l.cfg.Node, Origin: o.Node,
		Zstd: l.cfg.Stream.Compression == "zstd", Notes: notes(l.cfg), Logger: l.log,
	})
	if err != nil {
		return nil, err
	}
	r := &relay{life: l, origin: o, pub: pub, changed: make(chan struct{})}
	r.reader, err = stream.NewReader(nc, stream.ReaderOptions{Cluster: l.cfg.Cluster, Sender: l.cfg.Node, Origin: o.Node, Logger: l.log})
	if err == nil {
		err = r.fence(ctx)
	}
	if err != nil {
		pub.Close()
		return nil, named("hand on frames of "+o.Node, err)
	}
	return r, nil
}

func (r *relay) fence(ctx context.Context) error {
	for {
		_, tail := r.pub.Tail()
		f := &wire.Frame{Header: wire.Header{Cluster: r.cfg.Cluster, Sender: r.cfg.Node, Origin: r.origin}}
		if tail != nil {
			f.Header = tail.Header
			r.last = tail.LastSeq
		}
		f.Fence, f.WriterEpoch, f.Back, f.FirstSeq = true, r.node.WriterEpoch, 0, 0
		if _, err := r.pub.Fence(ctx, f); !errors.Is(err, stream.ErrTailMoved) {
			return err
		}
	}
}

// begin says that the origin's frames come from a sender's stream from now on, perhaps some of them again.
func (r *relay) begin(sender string) {
	if sender != r.sender {
		r.sender, r.taken = sender, 0
	}
}

// upTo is the origin's seq behind what was taken last.
func (r *relay) upTo() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// take takes a frame that has come from the sender. It waits while too much waits.
func (r *relay) take(ctx context.Context, seq uint64, f *wire.Frame) error {
	if f.Fence || seq <= r.taken {
		return nil
	}
	if slices.Contains(f.Hops, r.cfg.Node) {
		return fmt.Errorf("frame of %s has come round by %v", r.origin, f.Hops)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.queue) > 0 && r.bytes+int64(len(f.Body)) > relayBytes {
		changed := r.changed
		r.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			r.mu.Lock()
			return context.Cause(ctx)
		}
		r.mu.Lock()
	}
	r.taken = seq
	r.queue = append(r.queue, received{r.sender, seq, f})
	r.bytes += int64(len(f.Body))
	r.last = max(r.last, f.LastSeq)
	r.signal()
	return nil
}

// signal needs mu held.
func (r *relay) signal() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// run hands on what was taken, in order, when it is applied.
func (r *relay) run(ctx context.Context) error {
	sender := ""
	for {
		x, err := r.next(ctx)
		if err == nil {
			err = r.applier.WaitApplied(ctx, r.origin, x.frame.LastSeq)
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if x.sender != sender {
			sender, r.places = x.sender, nil
		}
		if err := r.handOn(ctx, x); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			// Not as its own error: that this stream is lost or foreign ends no bridge, since all of it can be had again.
			return fmt.Errorf("hand on frames of %s: %v", r.origin, err)
		}
	}
}

func (r *relay) next(ctx context.Context) (received, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.queue) == 0 {
		changed := r.changed
		r.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			r.mu.Lock()
			return received{}, context.Cause(ctx)
		}
		r.mu.Lock()
	}
	x := r.queue[0]
	r.queue[0] = received{}
	r.queue = r.queue[1:]
	r.bytes -= int64(len(x.frame.Body))
	r.signal()
	return x, nil
}

// handOn publishes the frame as ours: its records as they are, its places as they are here.
func (r *relay) handOn(ctx context.Context, x received) error {
	f := *x.frame
	f.OriginWriter = x.frame.RunWriter()
	f.Hops = append(slices.Clone(x.frame.Hops), x.frame.Sender)
	f.Sender, f.WriterEpoch = r.cfg.Node, r.node.WriterEpoch
	r.places = append(r.places, place{x.seq, r.pub.Next()})
	if f.Back != 0 {
		f.Back = r.oldest(x.frame.Back)
	} else {
		r.places = r.places[:0]
	}
	_, err := r.pub.Publish(ctx, &f)
	return err
}

// oldest gives where the frame stands in our stream that stands in the sender's at back, and forgets those before it.
func (r *relay) oldest(back uint64) uint64 {
	n, _ := slices.BinarySearchFunc(r.places, back, func(p place, back uint64) int {
		if p.theirs < back {
			return -1
		}
		return 1
	})
	r.places = slices.Delete(r.places, 0, min(n, len(r.places)-1))
	return r.places[0].ours
}

// retain forgets what every node has.
func (r *relay) retain(ctx context.Context) error {
	tick := time.NewTicker(relayPurge)
	defer tick.Stop()
	var purged uint64
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if err := r.limit(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("frames that were handed on cannot be purged", "origin", r.origin.String(), "err", err.Error())
		}
		stable := min(r.applier.StableSeq(r.origin), r.upTo())
		if stable == purged {
			continue
		}
		below, err := r.reader.Find(ctx, r.origin, stable+1)
		if err == nil {
			err = r.pub.Purge(ctx, below)
		}
		switch {
		case err == nil:
			purged = stable
		case ctx.Err() == nil && !errors.Is(err, stream.ErrGap):
			r.log.Warn("frames that were handed on cannot be purged", "origin", r.origin.String(), "err", err.Error())
		}
	}
}

// limit keeps the stream below stream.max_bytes.
func (r *relay) limit(ctx context.Context) error {
	info, err := r.pub.Info(ctx)
	if err != nil || info.Bytes <= uint64(r.cfg.Stream.MaxBytes) {
		return err
	}
	r.log.Error("frames are given up that a node which is away needs from here; it will have to join anew, or get them from another one",
		"origin", r.origin.String(), "bytes", info.Bytes)
	return r.pub.Purge(ctx, info.First+(info.Last-info.First)/4)
}
