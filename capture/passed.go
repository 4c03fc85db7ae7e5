package capture

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
)

// waterline is the LSN up to which everything has been read and told. It only rises. One goroutine
// advances it, any number wait.
type waterline struct {
	lsn     atomic.Uint64
	waiting atomic.Int32 // len(waiters), so that advance need not lock when nobody waits

	mu      sync.Mutex
	waiters []waiter // guarded by mu
}

type waiter struct {
	lsn  uint64
	wake chan struct{} // closed by advance
}

func (w *waterline) advance(lsn uint64) {
	if lsn <= w.lsn.Load() {
		return
	}
	w.lsn.Store(lsn)
	if w.waiting.Load() == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiters = slices.DeleteFunc(w.waiters, func(x waiter) bool {
		if x.lsn > lsn {
			return false
		}
		close(x.wake)
		return true
	})
	w.waiting.Store(int32(len(w.waiters)))
}

func (w *waterline) wait(ctx context.Context, lsn uint64) error {
	if w.lsn.Load() >= lsn {
		return nil
	}
	wake := make(chan struct{})
	w.mu.Lock()
	w.waiters = append(w.waiters, waiter{lsn, wake})
	w.waiting.Store(int32(len(w.waiters)))
	w.mu.Unlock()
	defer w.forget(wake)
	// An advance before waiting was stored did not see this waiter; then the line is there to be seen.
	if w.lsn.Load() >= lsn {
		return nil
	}
	select {
	case <-wake:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (w *waterline) forget(wake chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiters = slices.DeleteFunc(w.waiters, func(x waiter) bool { return x.wake == wake })
	w.waiting.Store(int32(len(w.waiters)))
}
