package apply

import (
	"context"
	"sync"

	"github.com/pgbridge/pgbridge/origin"
)

// progress is what this node has applied and announced, shared by the workers and the marker writer.
type progress struct {
	mu        sync.Mutex
	applied   origin.Vector // COMMIT acknowledged by this server
	announced origin.Vector // stands in a marker in the WAL
	changed   chan struct{} // closed and replaced whenever applied grows, or unseen changes
	// unseen holds what stands in front of an origin's oldest transaction that counts as applied for all who wait for it, and
	// as not applied in what is told to others (unseen.go).
	unseen [unseenReasons]map[origin.Origin]origin.Entry
	read   readBack
}

func newProgress() *progress {
	p := &progress{changed: make(chan struct{})}
	for i := range p.unseen {
		p.unseen[i] = map[origin.Origin]origin.Entry{}
	}
	return p
}

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

// unchanged returns a channel that is closed at the next change if nothing has changed since a, else nil.
func (p *progress) unchanged(a applied) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := p.now(); now.done.Equal(a.done) && now.all.Equal(a.all) {
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
