package stream

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	minBackoff = 20 * time.Millisecond
	maxBackoff = 2 * time.Second
)

// backoff is how long to wait before the given retry, from 0: doubling, with a jitter of a quarter so
// that several who lost the same broker do not come back at once.
func backoff(retry int) time.Duration {
	d := maxBackoff
	if retry < 7 {
		d = min(minBackoff<<retry, maxBackoff)
	}
	return d - time.Duration(rand.Int64N(int64(d)/4+1))
}

// pause waits for d, or until the connection's state changes, or ctx ends.
func pause(ctx context.Context, d time.Duration, status <-chan nats.Status) error {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case s := <-status:
			if s == nats.CONNECTED || s == nats.CLOSED {
				return nil
			}
		case <-t.C:
			return nil
		}
	}
}
