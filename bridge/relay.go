package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/wire"
)

const (
	// relayBytes bounds what waits to be applied before it is handed on, and to be stored. Beyond it the origin is not read.
	relayBytes = 32 << 20
	// relayPurge is the time between two looks at what need not be kept any more.
	relayPurge = 10 * time.Second
)

// relay hands one other node's frames on, record for record, when this node has applied what they hold (PROOF.md R24): to
// neighbours that have no link to that node, and to those that have lost it. They stay until every node has them.
type relay struct {
	*life
	origin origin.Origin
	pub    *stream.Publisher
	reader *stream.Reader // of the same stream, to find places in it
	fenced uint64         // the last frame of the fence, which goes as a whole

	mu      sync.Mutex // guards what follows
	queue   []received
	current *received // out of the queue and not handed on yet
	handed  uint64    // the frame of our stream that was handed on last
	bytes   int64
	changed chan struct{}
	last    uint64 // the origin's seq behind what was taken last
	open    bool   // a run, behind what was taken last of this reading
	reading uint64 // raised whenever reading begins anew: stream sequences of before say nothing then

	// Touched by run only: where frames from the oldest open run on stand, and what was handed on last.
	places places
	head   wire.Header

	givenUp atomic.Bool // frames that not every node has, for want of room
}

// received is a frame that waits to be handed on.
type received struct {
	reading uint64
	seq     uint64 // stream sequence at the sender; 0 of a frame that came ahead of the stream
	frame   *wire.Frame
}

// place says where a frame of a sender's stream stands in ours.
type place struct{ theirs, ours uint64 }

// openRelay takes the stream over in which this node hands o's frames on.
func (l *life) openRelay(ctx context.Context, nc *nats.Conn, o origin.Origin) (*relay, error) {
	pub, err := stream.OpenPublisher(ctx, nc, stream.PublisherOptions{
		Cluster: l.cfg.Cluster, Node: l.cfg.Node, Origin: o.Node, Replicas: l.cfg.Stream.Replicas,
		Zstd: l.cfg.Stream.Compression == "zstd", Notes: l.notes(), Logger: l.log,
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
			tail.Keep()
			f.Header = tail.Header
			r.last = tail.LastSeq
		}
		f.Fence, f.WriterEpoch, f.Back, f.FirstSeq = true, r.node.WriterEpoch, 0, 0
		last, err := r.pub.Fence(ctx, f)
		if !errors.Is(err, stream.ErrTailMoved) {
			r.fenced, r.handed, r.head = last, last, f.Header
			return err
		}
	}
}

// begin says that reading begins anew: from another neighbour, or from one whose stream has changed. Chunks that come again are
// handed on again, which nobody minds: they are known by their place in the run.
func (r *relay) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reading++
	r.open = false
}

// upTo is the origin's seq behind what was taken last.
func (r *relay) upTo() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// take takes a frame that has come, with its stream sequence at the sender, 0 if it came ahead of the stream. It waits while
// too much waits.
func (r *relay) take(ctx context.Context, seq uint64, f *wire.Frame) error {
	if f.Fence {
		return nil
	}
	size := int64(len(f.Body))
	r.mu.Lock()
	defer r.mu.Unlock()
	// Where ways change, a node may read what it has handed on: no frame goes round. What is missing in its stream it has lost
	// since.
	if slices.Contains(f.Hops, r.cfg.Node) && f.LastSeq <= r.last {
		return nil
	}
	// Reading that begins anew brings again what was taken. Only where a run is open is that needed, for the place of its begin, and
	// where it ends.
	if f.FirstSeq != 0 && f.LastSeq <= r.last && f.Back == 0 && !r.open {
		return nil
	}
	if err := r.await(ctx, func() bool { return len(r.queue) == 0 || r.bytes+size <= relayBytes }); err != nil {
		return err
	}
	r.queue = append(r.queue, received{r.reading, seq, f})
	r.bytes += size
	r.last, r.open = max(r.last, f.LastSeq), f.Back != 0
	r.signal()
	return nil
}

// await waits until ok holds; mu is held when it is asked and when await returns.
func (r *relay) await(ctx context.Context, ok func() bool) error {
	for !ok() {
		changed := r.changed
		r.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		r.mu.Lock()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// signal needs mu held.
func (r *relay) signal() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// run hands on what was taken, in order, when it is applied.
func (r *relay) run(ctx context.Context) error {
	var reading uint64
	for {
		x, err := r.next(ctx)
		if err == nil {
			err = r.applier.WaitApplied(ctx, r.origin, x.frame.LastSeq)
		}
		if err == nil {
			if x.reading != reading {
				reading, r.places = x.reading, nil
			}
			err = r.handOn(ctx, x)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return relayFault(err)
		}
	}
}

// publish runs the publisher of the stream.
func (r *relay) publish(ctx context.Context) error { return relayFault(r.pub.Run(ctx)) }

// relayFault takes from an error that a stream is lost: that of an own one ends the bridge, but all of this one can be had
// again, and the next life begins it anew.
func relayFault(err error) error {
	if errors.Is(err, stream.ErrStreamLost) {
		return errors.New(err.Error())
	}
	return err
}

func (r *relay) next(ctx context.Context) (received, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.await(ctx, func() bool { return len(r.queue) > 0 }); err != nil {
		return received{}, err
	}
	x := r.queue[0]
	r.current = &x
	r.queue[0] = received{}
	r.queue = r.queue[1:]
	r.bytes -= int64(len(x.frame.Body))
	r.signal()
	return x, nil
}

// handOn publishes the frame as ours: its records as they are, unless they were handed on, its places as they are here.
func (r *relay) handOn(ctx context.Context, x received) error {
	f := *x.frame
	if err := f.GoOn(&r.head); err != nil {
		return err
	}
	f.OriginWriter = x.frame.RunWriter()
	f.Hops = append(slices.Clone(x.frame.Hops), x.frame.Sender)
	f.Sender, f.WriterEpoch = r.cfg.Node, r.node.WriterEpoch
	f.Back = r.places.handedOn(x.seq, r.pub.Next(), x.frame.Back)
	seq, err := r.pub.Publish(ctx, &f)
	if err == nil {
		r.head = f.Header
		r.mu.Lock()
		r.current, r.handed = nil, seq
		r.mu.Unlock()
	}
	return err
}

// reread calls fn for frames, in order, among which are all that hold a part of the origin's transactions from seq after+1 to
// upTo, which have been applied here. ErrGap: they were given up, or lost.
func (r *relay) reread(ctx context.Context, after, upTo uint64, fn func(*wire.Frame) error) error {
	r.mu.Lock()
	if err := r.await(ctx, func() bool { return r.last >= upTo }); err != nil {
		r.mu.Unlock()
		return err
	}
	// What is not handed on yet may wait for whoever asks.
	var waiting []*wire.Frame
	if r.current != nil {
		waiting = append(waiting, r.current.frame)
	}
	for _, x := range r.queue {
		waiting = append(waiting, x.frame)
	}
	handed := r.handed
	r.mu.Unlock()
	for changed := r.pub.Changed(); r.pub.Durable() < handed; changed = r.pub.Changed() {
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	from, err := r.reader.Find(ctx, r.origin, after+1)
	if err != nil {
		return err
	}
	if err := r.pub.Scan(ctx, from, handed, func(_ uint64, f *wire.Frame) error { return fn(f) }); err != nil {
		return err
	}
	for _, f := range waiting {
		if err := fn(f); err != nil {
			return err
		}
	}
	return nil
}

// places are where frames of a sender's stream stand in ours, from the oldest open run on.
type places []place

// handedOn takes in a frame that stands at theirs in the sender's stream, 0 if it came ahead of it, and at ours in ours. It returns what its
// back is here.
func (p *places) handedOn(theirs, ours, back uint64) uint64 {
	if theirs != 0 { // what came ahead begins no run
		*p = append(*p, place{theirs, ours})
	}
	if back == 0 {
		*p = (*p)[:0]
		return 0
	}
	return p.oldest(back)
}

// oldest gives where the frame stands in our stream that stands in the sender's at back, and forgets those before it; 0 if
// nothing of this reading stands there.
func (p *places) oldest(back uint64) uint64 {
	if len(*p) == 0 {
		return 0
	}
	n, _ := slices.BinarySearchFunc(*p, back, func(p place, back uint64) int {
		if p.theirs < back {
			return -1
		}
		return 1
	})
	*p = slices.Delete(*p, 0, min(n, len(*p)-1))
	return (*p)[0].ours
}

// retain forgets what every node has, and beyond stream.absent_bytes what only those lack that are away.
func (r *relay) retain(ctx context.Context) error {
	tick := time.NewTicker(relayPurge)
	defer tick.Stop()
	var done purged
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		err := r.purge(ctx, &done)
		if err == nil {
			err = r.limit(ctx)
		}
		if err != nil && ctx.Err() == nil {
			r.log.Warn("frames that were handed on cannot be purged", "origin", r.origin.String(), "err", err.Error())
		}
	}
}

// purged is up to which transaction frames were purged, and which one had been handed on last by then.
type purged struct{ seq, handed uint64 }

// purge forgets what need not be kept. Frames that hold no transaction need not behind the last one that every node has: a node whose
// users do not write has no others.
func (r *relay) purge(ctx context.Context, done *purged) error {
	stable := min(max(r.applier.EverywhereSeq(r.origin), r.mayGo(ctx)), r.upTo())
	r.mu.Lock()
	handed := r.handed
	r.mu.Unlock()
	if stable < done.seq || stable == done.seq && handed == done.handed {
		return nil
	}
	below, err := r.reader.Find(ctx, r.origin, stable+1)
	if err == nil {
		err = r.pub.Purge(ctx, below)
	}
	switch {
	case errors.Is(err, stream.ErrGap):
		return nil
	case err == nil:
		*done = purged{stable, handed}
	}
	return err
}

// mayGo is up to which transaction frames may go though nodes that are away lack them; 0 while the stream is small enough. They stay
// as long as the node that they came from has them, and so its author: when that one's broker loses its disk, its stream is made
// again out of this one, and must hold what the author has not noted of its own frames (letgo.go).
func (r *relay) mayGo(ctx context.Context) uint64 {
	seq, budget := r.applier.EverywhereSeqBut(r.origin), r.settings.now().Stream.AbsentBytes
	if seq == 0 || budget == 0 {
		return 0
	}
	info, err := r.pub.Info(ctx)
	if err != nil || surplus(info, uint64(budget), true) == 0 {
		return 0
	}
	gone, err := r.goneBefore(ctx)
	if err != nil && ctx.Err() == nil {
		r.log.Debug("it is not known what is gone where frames come from", "origin", r.origin.String(), "err", err.Error())
	}
	return min(seq, gone)
}

// goneBefore is up to which transaction they are gone from the stream that is read.
func (r *relay) goneBefore(ctx context.Context) (uint64, error) {
	for _, p := range r.peers {
		at := p.at.Load()
		if p.relay != r || at == nil || !at.nc.IsConnected() {
			continue
		}
		// A reader of its own: the peer's is reading.
		reader, err := stream.NewReader(at.nc, stream.ReaderOptions{Cluster: r.cfg.Cluster, Sender: at.name, Origin: r.origin.Node, Logger: r.log})
		if err != nil {
			return 0, err
		}
		first, last, _, err := reader.Info(ctx)
		if err != nil || last < first {
			return 0, err
		}
		f, err := reader.Get(ctx, first)
		switch {
		case err != nil:
			return 0, err
		case f.FirstSeq == 0: // it holds no transaction's end
			return f.LastSeq, nil
		}
		return f.FirstSeq - 1, nil
	}
	return 0, nil
}

// limit keeps the stream below stream.max_bytes, which the broker is not told: it would set as much disk aside for each such
// stream. Beyond it a quarter of the oldest frames goes: a node that needs them has been away for too long.
func (r *relay) limit(ctx context.Context) error {
	info, err := r.pub.Info(ctx)
	if err != nil || info.Bytes <= uint64(r.cfg.Stream.MaxBytes) {
		return err
	}
	if !r.givenUp.Swap(true) {
		r.log.Error("frames are given up that not every node has", "origin", r.origin.String(), "bytes", info.Bytes)
	}
	return r.pub.Purge(ctx, max(info.First+(info.Last-info.First)/4, r.fenced+1))
}

// alarm tells of frames that were given up since the bridge started; nil if none were.
func (r *relay) alarm() *Alarm {
	if !r.givenUp.Load() {
		return nil
	}
	return &Alarm{Code: "frames-given-up", Severity: SeverityError,
		Text: fmt.Sprintf("what this node hands on of node %s was more than stream.max_bytes, and the oldest was given up: a node that needs it from here must be given what came of it", r.origin.Node),
		Mend: "nothing: it is given what came of them (docs/resync.md); raise stream.max_bytes to keep more"}
}
