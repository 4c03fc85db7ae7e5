package main

import (
	"context"
	"time"
)

// idleSettle is how long the bridges rest before what they take counts.
const idleSettle = 3 * time.Second

// idle measures what running bridges take in n seconds without a commit.
func (b *bench) idle(ctx context.Context, p *pair, r rival, n int) (s sample, err error) {
	if err := rest(ctx, idleSettle); err != nil {
		return s, err
	}
	before := p.ticks(r.processes())
	if err := rest(ctx, time.Duration(n)*time.Second); err != nil {
		return s, err
	}
	s.Seconds, s.CPU = float64(n), p.ticks(r.processes()).since(before)
	s.RSS, s.PeakRSS = residentNow(r.processes()), peakRSS(r.processes())
	if err := r.failed(); err != nil {
		return s, err
	}
	return s, p.compare(ctx)
}

// rest waits for a time, or for the end of ctx.
func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
