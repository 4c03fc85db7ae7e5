package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/topology"
)

// peer reads one other node's transactions into apply: from its own stream, or from that of a neighbour that hands them on.
type peer struct {
	*life
	name, url string // of the neighbour
	origin    origin.Origin
	relay     *relay // hands on what is read; nil: nobody needs that
	reader    atomic.Pointer[stream.Reader]
	conn      atomic.Pointer[nats.Conn] // nil before run has begun
	problem   atomic.Pointer[string]    // why nothing is read; nil if something is
	seen      atomic.Uint64             // own transactions that the peer's frames say it has; for status
	// agreed is the writer epoch whose policies are this node's; disagrees: those of the newest are not.
	agreed    uint64
	disagrees atomic.Bool
	graph     atomic.Pointer[string] // in what the neighbour's topology differs from ours; nil: in nothing
}

// run reads until ctx ends. What goes wrong with one peer's stream concerns that peer alone: it is said,
// tried again, and the others go on.
func (p *peer) run(ctx context.Context) error {
	nc, err := p.connect(p.url, p.name)
	if err != nil {
		return err
	}
	defer nc.Close()
	r, err := stream.NewReader(nc, stream.ReaderOptions{Cluster: p.cfg.Cluster, Sender: p.name, Origin: p.origin.Node, Ahead: p.cfg.Apply.Ahead, Logger: p.log})
	if err != nil {
		return err
	}
	p.reader.Store(r)
	p.conn.Store(nc)
	var clocks sync.WaitGroup
	defer clocks.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if p.direct() {
		clocks.Go(func() { p.compareClocks(ctx, r) })
	}
	find, pauses, most := false, pauses{}, p.applier.Received(p.origin)
	for {
		err := p.read(ctx, r, find)
		if ctx.Err() != nil {
			return nil
		}
		find = errors.Is(err, stream.ErrGap) || errors.Is(err, stream.ErrStreamChanged) || errors.Is(err, apply.ErrGap)
		text := err.Error()
		if old := p.problem.Swap(&text); old == nil || *old != text {
			p.log.Warn("peer is not read", "sender", p.name, "err", text)
		}
		// What was read before the fault is read again each time, so that only what is new counts.
		got := p.applier.Received(p.origin)
		pause := pauses.next(got > most)
		most = max(most, got)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
}

// direct reports whether the neighbour is the origin itself.
func (p *peer) direct() bool { return p.name == p.origin.Node }

// begin says where to begin reading: at this node's position, or found by seq in a stream that does not go on there.
func (p *peer) begin(ctx context.Context, r *stream.Reader, find bool) (uint64, error) {
	from, err := p.applier.ResumeSeq(ctx, p.origin)
	if err != nil {
		return 0, err
	}
	want := p.applier.Received(p.origin) + 1
	if p.relay != nil && p.relay.upTo()+1 < want {
		// Applied, but not handed on. If it is gone, all nodes have it.
		from, err := r.Find(ctx, p.origin, p.relay.upTo()+1)
		if err == nil || !errors.Is(err, stream.ErrGap) {
			return from, named("find what is to be handed on of "+p.origin.Node, err)
		}
		find = true
	}
	if from != 0 && !find && p.direct() {
		return from, nil
	}
	if from, err = r.Find(ctx, p.origin, want); err != nil {
		return 0, fmt.Errorf("find transaction %d of %s in the stream of %s: %w", want, p.origin.Node, p.name, err)
	}
	return from, nil
}

func (p *peer) read(ctx context.Context, r *stream.Reader, find bool) error {
	from, err := p.begin(ctx, r, find)
	if err != nil {
		return err
	}
	p.applier.Restart(p.origin)
	if p.relay != nil {
		p.relay.begin()
	}
	p.agreed = 0
	return r.Run(ctx, from, func(ctx context.Context, m stream.Message) error {
		if m.Ahead {
			if m.Frame.WriterEpoch != p.agreed {
				return nil
			}
			return p.applier.FeedAhead(ctx, p.origin, p.place(m.Seq), m.Frame)
		}
		if m.Frame.WriterEpoch != p.agreed {
			if err := p.agree(ctx, r, m.Frame.WriterEpoch); err != nil {
				return err
			}
		}
		p.problem.Store(nil)
		p.seen.Store(max(p.seen.Load(), m.Frame.Low.Seq(p.own)))
		if err := p.applier.Feed(ctx, p.origin, p.place(m.Seq), m.Frame); err != nil || p.relay == nil {
			return err
		}
		return p.relay.take(ctx, m.Seq, m.Frame)
	})
}

// place is what apply remembers of a stream sequence: that of the origin's own stream.
func (p *peer) place(seq uint64) uint64 {
	if p.direct() {
		return seq
	}
	return 0
}

// agree refuses to read a node that decides conflicts by other policies: nodes would end with different rows. It waits until they
// are the same. One that does not say has none that are new.
func (p *peer) agree(ctx context.Context, r *stream.Reader, epoch uint64) error {
	notes, err := r.Notes(ctx)
	if err != nil {
		return err
	}
	own := p.cfg.Policies()
	for _, key := range slices.Sorted(maps.Keys(own)) {
		if theirs, ok := notes[key]; ok && theirs != own[key] {
			p.disagrees.Store(true)
			return fmt.Errorf("%s of node %s is %q, and here it is %q; let all nodes have the same, and start them again", key, p.name, theirs, own[key])
		}
	}
	p.graph.Store(nil)
	if theirs, ok := notes[topologyNote]; ok {
		if d := topology.Difference(p.cfg.Graph().String(), theirs); d != "" {
			p.graph.Store(&d)
			p.log.Warn("topologies differ", "node", p.name, "difference", d)
		}
	}
	p.agreed = epoch
	p.disagrees.Store(false)
	return nil
}

// clockPause is the time from one comparison of clocks to the next.
const clockPause = time.Minute

// compareClocks measures how far the peer's clock is from this node's, for those who read the conflict history. A node's broker
// runs beside its primary.
func (p *peer) compareClocks(ctx context.Context, r *stream.Reader) {
	for pause := time.Second; ; pause = min(2*pause, clockPause) { // the first ones may come while much else begins
		ahead, within, err := r.Clock(ctx)
		if err == nil {
			err = p.applier.NoteClock(ctx, p.name, ahead, within)
		}
		if err != nil && ctx.Err() == nil {
			p.log.Debug("clocks are not compared", "sender", p.name, "err", err.Error())
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}
