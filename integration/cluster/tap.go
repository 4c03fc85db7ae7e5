package cluster

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"

	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/wire"
)

// Tap counts what crosses the links from one node: it reads a stream of the node's beside its peers.
type Tap struct {
	mu     sync.Mutex
	seqs   map[uint64]int
	frames int
	err    error
}

// Tap begins to count on every node, in the order of Nodes, from the beginning of what the streams still have.
func (c *Cluster) Tap() []*Tap {
	var taps []*Tap
	for _, n := range c.Nodes {
		taps = append(taps, n.tap(c.t, n.Name))
	}
	return taps
}

// TapRelays begins to count what every node hands on of others' transactions to neighbours that have no shorter way to
// them; by "sender-origin".
func (c *Cluster) TapRelays() map[string]*Tap {
	taps := map[string]*Tap{}
	for _, n := range c.Nodes {
		g := n.Load().Graph()
		for _, o := range c.Nodes {
			if next := g.Next(n.Name, o.Name); next != "" && next != o.Name && taps[next+"-"+o.Name] == nil {
				taps[next+"-"+o.Name] = c.Node(next).tap(c.t, o.Name)
			}
		}
	}
	return taps
}

// Rounds returns how many sentinel transactions the node has written.
func (n *Node) Rounds() int { return n.rounds }

func (n *Node) tap(t testing.TB, origin string) *Tap {
	p := &Tap{seqs: map[uint64]int{}}
	ctx, cancel := context.WithCancel(context.Background())
	r, err := stream.NewReader(n.Connect(), stream.ReaderOptions{Cluster: n.c.Name, Sender: n.Name, Origin: origin, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		count := func(_ context.Context, m stream.Message) error { p.count(m.Frame); return nil }
		err := r.Run(ctx, 1, count)
		var gap *stream.GapError
		for p.frames == 0 && errors.As(err, &gap) { // what stood in front of all transactions may be purged already
			err = r.Run(ctx, gap.First, count)
		}
		if ctx.Err() == nil {
			p.mu.Lock()
			p.err = err
			p.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if p.err != nil {
			t.Errorf("tap of node %s: %v", n.Name, p.err)
		}
	})
	return p
}

func (p *Tap) count(f *wire.Frame) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frames++
	for recs := wire.NewRecords(f.Body); ; {
		rec, err := recs.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			p.err = err
			return
		}
		switch rec.Kind {
		case wire.KindBegin:
			b, _ := wire.ParseBegin(rec.Payload)
			p.seqs[b.Seq]++
		case wire.KindLargeCommit:
			l, _ := wire.ParseLargeCommit(rec.Payload)
			p.seqs[l.Seq]++
		}
	}
}

// Crossed returns how often each transaction was sent, by seq.
func (p *Tap) Crossed() map[uint64]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[uint64]int, len(p.seqs))
	for s, n := range p.seqs {
		out[s] = n
	}
	return out
}
