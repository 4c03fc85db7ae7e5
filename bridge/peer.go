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
	"github.com/pgbridge/pgbridge/wire"
)

// peer reads one other node's transactions into apply: from its own stream, or from that of a node that hands them on, whichever
// way is open.
type peer struct {
	*life
	origin  origin.Origin
	relay   *relay                   // hands on what is read; nil: nobody needs that
	at      atomic.Pointer[upstream] // nil while nothing is read
	problem atomic.Pointer[string]   // why nothing is read; nil if something is
	came    atomic.Uint64            // frames that have come, to whatever end
	seen    atomic.Uint64            // own transactions that the peer's frames say it has; for status
	// disagrees: the newest policies of the node that is read from are not this node's.
	disagrees atomic.Bool
	// newer: what comes next was written by a pgbridge whose frames this one cannot read.
	newer atomic.Bool
	// forged: what comes next is not signed by the peer. refused counts how often that was met.
	forged  atomic.Bool
	refused atomic.Uint64
	graph   atomic.Pointer[difference] // in what that node's topology differs from ours; nil: in nothing
}

// difference is in what another node's topology differs.
type difference struct{ node, text string }

// upstream is a node that is read from.
type upstream struct {
	name   string
	nc     *nats.Conn
	reader *stream.Reader
	agreed uint64 // the writer epoch whose policies are this node's

	mu     sync.Mutex
	aheads []early // what the stream has not brought yet, guarded by mu
}

// early is a frame that came ahead of its stream.
type early struct {
	*wire.Frame
	at time.Time
}

// run reads until ctx ends, from one node after the other as ways open and close.
func (p *peer) run(ctx context.Context) error {
	moved := false
	for {
		way, changed := p.neighbours.way(p.origin.Node)
		if way.From == "" {
			p.trouble("", fmt.Errorf("no node is reached that has what %s writes", p.origin.Node))
			select {
			case <-changed:
			case <-ctx.Done():
				return nil
			}
			continue
		}
		err := p.follow(ctx, way, moved)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		moved = true
	}
}

// follow reads in one way until ctx ends, or the way is another one. What goes wrong with one stream concerns it
// alone: it is said, tried again, and the others go on.
func (p *peer) follow(whole context.Context, w topology.Way, moved bool) error {
	ctx, cancel := context.WithCancel(whole)
	var aside sync.WaitGroup
	defer aside.Wait()
	defer cancel()
	aside.Go(func() {
		defer cancel()
		p.neighbours.stays(ctx, p.origin.Node, w)
	})
	nc, err := p.reach(w.From)
	if err != nil {
		return err
	}
	defer nc.Close()
	r, err := stream.NewReader(nc, stream.ReaderOptions{Cluster: p.cfg.Cluster, Sender: w.From, Origin: p.origin.Node, Ahead: p.cfg.Apply.Ahead, Verifier: p.signing.verifier, Logger: p.log})
	if err != nil {
		return err
	}
	u := &upstream{name: w.From, nc: nc, reader: r}
	if err := p.wanted(ctx, u); err != nil {
		return err
	}
	p.at.Store(u)
	p.problem.Store(nil)
	defer p.at.Store(nil)
	if p.relay != nil && p.rerouted() {
		aside.Go(func() { p.watchAhead(ctx, u) })
	}
	if p.direct(u) {
		aside.Go(func() { p.compareClocks(ctx, u) })
	}
	if err := p.readOn(ctx, u, moved); err != nil {
		return err
	}
	return p.handOnAhead(whole, u, 0)
}

// readOn reads, again and again, until ctx ends. errLacks: what comes next is gone there for good.
func (p *peer) readOn(ctx context.Context, u *upstream, find bool) error {
	pauses, most := pauses{}, p.applier.Received(p.origin)
	gaps := 0
	for {
		err := p.readWatched(ctx, u, find)
		if ctx.Err() != nil {
			return nil
		}
		if out := (*outcast)(nil); errors.As(err, &out) {
			return err
		}
		gone := errors.Is(err, stream.ErrGap) && !find
		if gaps++; !find || !errors.Is(err, stream.ErrGap) && !errors.Is(err, apply.ErrGap) {
			gaps = 0
		}
		if gaps >= gapsForGood || errors.Is(err, errNotHandedOn) {
			p.trouble(u.name, err)
			late := p.fetch(ctx, u)
			if late == nil {
				return fmt.Errorf("%w: %w", errLacks, err)
			}
			if ctx.Err() != nil {
				return nil
			}
			err = errors.Join(err, late)
		}
		find = errors.Is(err, stream.ErrGap) || errors.Is(err, stream.ErrStreamChanged) || errors.Is(err, apply.ErrGap)
		if gone { // the place that was remembered, which says nothing yet of the transactions
			continue
		}
		p.trouble(u.name, err)
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

// gapsForGood is how often in a row a gap must have been met: a stream may just be being made again.
const gapsForGood = 3

// handOnAhead hands on what came ahead of the stream so long ago and has not come from there: others may never get it there. Its
// broker may have died before it stored it.
func (p *peer) handOnAhead(ctx context.Context, u *upstream, ago time.Duration) error {
	if p.relay == nil || ctx.Err() != nil {
		return nil
	}
	u.mu.Lock()
	aheads := slices.Clone(u.aheads)
	u.mu.Unlock()
	for _, f := range aheads {
		last := p.relay.upTo()
		if time.Since(f.at) < ago || f.FirstSeq > last+1 || f.LastSeq <= last || f.LastSeq > p.applier.Received(p.origin) {
			continue
		}
		p.log.Info("handed on though the author's broker has not stored it", "origin", p.origin.Node, "seq", f.LastSeq)
		if err := p.relay.take(ctx, 0, f.Frame); err != nil {
			return err
		}
	}
	return nil
}

// watchAhead hands on what an author's broker does not bring. Most often that is since the author has died.
func (p *peer) watchAhead(ctx context.Context, u *upstream) {
	after := p.cfg.Topology.FailoverAfter
	tick := time.NewTicker(after / 4)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = p.handOnAhead(ctx, u, after) // only ctx ends it
		case <-ctx.Done():
			return
		}
	}
}

// aheadsLimit bounds the frames that are remembered until the stream brings them: a broker stores them in no time, or not at all.
const aheadsLimit = 1000

// tookAhead remembers a frame that came ahead of the stream; one that has grown takes the place of what it was.
func (u *upstream) tookAhead(f *wire.Frame) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch n := len(u.aheads); {
	case n > 0 && u.aheads[n-1].FirstSeq == f.FirstSeq:
		u.aheads[n-1].Frame = f
	case n < aheadsLimit:
		u.aheads = append(u.aheads, early{f, time.Now()})
	}
}

// took forgets what the stream has brought now.
func (u *upstream) took(f *wire.Frame) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.aheads = slices.DeleteFunc(u.aheads, func(e early) bool { return e.LastSeq <= f.LastSeq })
}

// trouble says why nothing is read.
func (p *peer) trouble(way string, err error) {
	text := err.Error()
	if fault := p.linkFault(way); fault != "" {
		text = fault
	}
	p.newer.Store(errors.Is(err, wire.ErrVersion))
	p.forged.Store(errors.Is(err, wire.ErrSignature))
	if p.forged.Load() {
		p.refused.Add(1)
	}
	if old := p.problem.Swap(&text); old == nil || *old != text {
		p.log.Warn("peer is not read", "origin", p.origin.Node, "sender", way, "err", text)
	}
}

// direct reports whether the node that is read from is the origin itself.
func (p *peer) direct(u *upstream) bool { return u.name == p.origin.Node }

// begin says where to begin reading: at this node's position, or found by seq in a stream that does not go on there.
func (p *peer) begin(ctx context.Context, u *upstream, find bool) (uint64, error) {
	from, err := p.applier.ResumeSeq(context.WithoutCancel(ctx), p.origin) // a way that closes must not cost the session
	if err != nil {
		return 0, err
	}
	want := p.applier.Received(p.origin) + 1
	if p.relay != nil && p.relay.upTo()+1 < want {
		// Applied, but not handed on. If it is gone, all nodes have it.
		from, err := u.reader.Find(ctx, p.origin, p.relay.upTo()+1)
		if err == nil || !errors.Is(err, stream.ErrGap) {
			return from, named("find what is to be handed on of "+p.origin.Node, err)
		}
		find = true
	}
	if from != 0 && !find && p.direct(u) {
		return from, nil
	}
	if from, err = u.reader.Find(ctx, p.origin, want); err != nil {
		return 0, fmt.Errorf("find transaction %d of %s in the stream of %s: %w", want, p.origin.Node, u.name, err)
	}
	return p.toldBefore(ctx, u, from, want), nil
}

// toldBefore is from, or the frame in front of it, all of which is here: until somebody writes at the origin again, it is all that tells
// what the origin has seen.
func (p *peer) toldBefore(ctx context.Context, u *upstream, from, want uint64) uint64 {
	if from < 2 {
		return from
	}
	f, err := u.reader.Get(ctx, from-1)
	if err != nil || p.signing.verifier.Check(f) != nil || f.Origin != p.origin || f.Back != 0 || f.LastSeq+1 != want {
		return from
	}
	return from - 1
}

func (p *peer) read(ctx context.Context, u *upstream, find bool) error {
	from, err := p.begin(ctx, u, find)
	if err != nil {
		return err
	}
	p.applier.Restart(p.origin)
	if p.relay != nil {
		p.relay.begin()
	}
	u.agreed = 0
	return u.reader.Run(ctx, from, func(ctx context.Context, m stream.Message) error {
		p.came.Add(1)
		if m.Ahead {
			if m.Frame.WriterEpoch != u.agreed {
				return nil
			}
			if p.relay != nil {
				u.tookAhead(m.Frame)
			}
			p.traces.arrived(m.Frame)
			return p.applier.FeedAhead(ctx, p.origin, p.place(u, m.Seq), m.Frame)
		}
		u.took(m.Frame)
		if m.Frame.WriterEpoch != u.agreed {
			if err := p.agree(ctx, u, m.Frame.WriterEpoch); err != nil {
				return err
			}
		}
		p.problem.Store(nil)
		p.newer.Store(false)
		p.forged.Store(false)
		p.seen.Store(max(p.seen.Load(), m.Frame.Low.Seq(p.own)))
		p.traces.arrived(m.Frame)
		if err := p.applier.Feed(ctx, p.origin, p.place(u, m.Seq), m.Frame); err != nil || p.relay == nil {
			return err
		}
		return p.relay.take(ctx, m.Seq, m.Frame)
	})
}

// place is what apply remembers of a stream sequence: that of the origin's own stream.
func (p *peer) place(u *upstream, seq uint64) uint64 {
	if p.direct(u) {
		return seq
	}
	return 0
}

// agree refuses to read a node that decides conflicts by other policies: nodes would end with different rows. It waits until they
// are the same. One that does not say has none that are new.
func (p *peer) agree(ctx context.Context, u *upstream, epoch uint64) error {
	notes, err := u.reader.Notes(ctx)
	if err != nil {
		return err
	}
	if err := p.checkWanted(notes, u.name); err != nil {
		return err
	}
	own := p.cfg.Policies()
	for _, key := range slices.Sorted(maps.Keys(own)) {
		if theirs, ok := notes[key]; ok && theirs != own[key] {
			p.disagrees.Store(true)
			return fmt.Errorf("%s of node %s is %q, and here it is %q; let all nodes have the same, and start them again", key, u.name, theirs, own[key])
		}
	}
	p.graph.Store(nil)
	if theirs, ok := notes[topologyNote]; ok {
		if d := topology.Difference(p.cfg.Graph().String(), theirs); d != "" {
			p.graph.Store(&difference{u.name, d})
			p.log.Warn("topologies differ", "node", u.name, "difference", d)
		}
	}
	u.agreed = epoch
	p.disagrees.Store(false)
	return nil
}

// clockPause is the time from one comparison of clocks to the next.
const clockPause = time.Minute

// compareClocks measures how far the peer's clock is from this node's, for those who read the conflict history. A node's broker
// runs beside its primary.
func (p *peer) compareClocks(ctx context.Context, u *upstream) {
	for pause := time.Second; ; pause = min(2*pause, clockPause) { // the first ones may come while much else begins
		ahead, within, err := u.reader.Clock(ctx)
		if err == nil {
			err = p.applier.NoteClock(context.WithoutCancel(ctx), u.name, ahead, within)
		}
		if err != nil && ctx.Err() == nil {
			p.log.Debug("clocks are not compared", "sender", u.name, "err", err.Error())
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}
