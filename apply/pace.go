package apply

import (
	"context"
	"sync"
	"time"
)

// pace bounds how many bytes of transactions all workers together apply in a second. What was applied is paid for with time
// afterwards, when nothing is in flight that others could wait for, so that a transaction of any size gets through.
type pace struct {
	rate int64 // bytes in a second; 0: no bound
	mu   sync.Mutex
	paid time.Time // when what was applied is paid for
}

// saved is how much of the time in which nothing was applied counts later.
const saved = 100 * time.Millisecond

// used notes what was applied.
func (p *pace) used(bytes int64, now time.Time) {
	if p == nil || p.rate == 0 { // nil: a simulated worker's
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if least := now.Add(-saved); p.paid.Before(least) {
		p.paid = least
	}
	p.paid = p.paid.Add(time.Duration(float64(bytes) / float64(p.rate) * float64(time.Second)))
}

// due is how long to wait before more is applied.
func (p *pace) due(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paid.Sub(now)
}

// paced waits until the pace allows more; it reports whether it had to.
func (w *worker) paced(ctx context.Context) (bool, error) {
	if w.pace.rate == 0 {
		return false, nil
	}
	wait := w.pace.due(time.Now())
	if wait <= 0 {
		return false, nil
	}
	if err := w.reap(ctx, 0); err != nil {
		return true, err
	}
	select {
	case <-time.After(wait):
		return true, nil
	case <-ctx.Done():
		return true, context.Cause(ctx)
	}
}
