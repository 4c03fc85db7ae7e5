package apply

import (
	"context"
	"sync"
	"time"
)

// pace bounds how many bytes of transactions all workers together apply in a second. What was applied is paid for with time
// afterwards, when nothing is in flight that others could wait for, so that a transaction of any size gets through.
type pace struct {
	mu      sync.Mutex
	rate    int64         // bytes in a second; 0: no bound
	paid    time.Time     // when what was applied is paid for
	changed chan struct{} // closed when the rate is another one
}

func newPace(rate int64) *pace { return &pace{rate: rate, changed: make(chan struct{})} }

// set sets the rate, at once also for who waits.
func (p *pace) set(rate int64, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rate == rate {
		return
	}
	if debt := p.paid.Sub(now); rate == 0 {
		p.paid = time.Time{}
	} else if debt > 0 { // so many bytes, at the new rate
		p.paid = now.Add(time.Duration(float64(debt) * float64(p.rate) / float64(rate)))
	}
	p.rate = rate
	close(p.changed)
	p.changed = make(chan struct{})
}

// saved is how much of the time in which nothing was applied counts later.
const saved = 100 * time.Millisecond

// used notes what was applied.
func (p *pace) used(bytes int64, now time.Time) {
	if p == nil { // a simulated worker's
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rate == 0 {
		return
	}
	if least := now.Add(-saved); p.paid.Before(least) {
		p.paid = least
	}
	p.paid = p.paid.Add(time.Duration(float64(bytes) / float64(p.rate) * float64(time.Second)))
}

// due is how long to wait before more is applied, unless the rate is changed meanwhile.
func (p *pace) due(now time.Time) (wait time.Duration, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paid.Sub(now), p.changed
}

// paced waits until the pace allows more; it reports whether it had to.
func (w *worker) paced(ctx context.Context) (bool, error) {
	wait, changed := w.pace.due(time.Now())
	if wait <= 0 {
		return false, nil
	}
	return true, w.still(ctx, wait, changed)
}

// still waits, with nothing in flight, unless something is changed meanwhile.
func (w *worker) still(ctx context.Context, wait time.Duration, changed <-chan struct{}) error {
	if err := w.reap(ctx, 0); err != nil {
		return err
	}
	select {
	case <-time.After(wait):
	case <-changed:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}
