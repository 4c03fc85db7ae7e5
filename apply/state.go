package apply

import (
	"context"
	"math"
	"sync"

	"github.com/pgbridge/pgbridge/origin"
)

// progress is what this node has applied and announced, shared by the workers and the marker writer.
type progress struct {
	mu        sync.Mutex
	applied   origin.Vector // COMMIT acknowledged by this server
	announced origin.Vector // stands in a marker in the WAL
	changed   chan struct{} // closed and replaced whenever applied grows
}

func newProgress() *progress { return &progress{changed: make(chan struct{})} }

// advance records that e is applied here and wakes whoever holds a transaction for it.
func (p *progress) advance(e origin.Entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.applied.Advance(e) {
		p.announced.Advance(e)
		close(p.changed)
		p.changed = make(chan struct{})
	}
}

func (p *progress) vector() origin.Vector {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.applied.Clone()
}

// watch returns what is applied and a channel that is closed at its next change.
func (p *progress) watch() (origin.Vector, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.applied.Clone(), p.changed
}

// unchanged returns a channel that is closed at the next change if v is what is applied, else nil.
func (p *progress) unchanged(v origin.Vector) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.applied.Equal(v) {
		return p.changed
	}
	return nil
}

// lacks returns the first of deps that is not applied yet, leaving out own (this node) and self (the
// transaction's origin, whose order its seq keeps).
func (p *progress) lacks(deps origin.Vector, self, own origin.Origin) (origin.Entry, <-chan struct{}, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range deps {
		if e.Origin != self && e.Origin != own && !p.applied.Covers(e.Origin, e.Seq) {
			return e, p.changed, true
		}
	}
	return origin.Entry{}, nil, false
}

// hold waits until all of deps is applied here (invariant 3). waiting is told what it waits for.
func (p *progress) hold(ctx context.Context, deps origin.Vector, self, own origin.Origin, waiting func(origin.Entry)) error {
	for {
		e, changed, lacks := p.lacks(deps, self, own)
		if !lacks {
			return nil
		}
		waiting(e)
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// hearsay is what the other nodes had seen by the last transaction of theirs that was applied here
// (PROOF.md R22). Vectors learnt in any other way prove nothing about what is still to come.
type hearsay struct {
	mu  sync.Mutex
	low map[origin.Origin]origin.Vector // of every other origin; nil until something is heard
}

func newHearsay(others []origin.Origin) *hearsay {
	h := &hearsay{low: map[origin.Origin]origin.Vector{}}
	for _, o := range others {
		h.low[o] = nil
	}
	return h
}

// hear takes in low of the last transaction of o, or of a vector behind it.
func (h *hearsay) hear(o origin.Origin, low origin.Vector) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if low.Includes(h.low[o]) { // it grows along the stream; what is read again may be older
		h.low[o] = low
	}
}

// stableSeq returns the highest seq of o that is stable.
func (h *hearsay) stableSeq(o origin.Origin) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	seq := uint64(math.MaxInt64)
	for p, low := range h.low {
		if p != o {
			seq = min(seq, low.Seq(o))
		}
	}
	return seq
}
