package stream

import (
	"context"
	"fmt"
)

const (
	// MaxGrowth is how many times PublisherOptions.MaxBytes a stream may hold after calls of Grow.
	MaxGrowth = 2
	// growthSteps are the steps in which Grow goes from MaxBytes to twice that.
	growthSteps = 8
)

// limit is the max_bytes that a stream should have: what is configured, but not less than it stores. A lower one
// would bring nothing back, and a fence, which needs room for itself alone, would have to raise it over all that.
func limit(want int64, stored uint64) int64 {
	if want <= 0 {
		return -1
	}
	return max(want, int64(stored))
}

// raise sets the stream's max_bytes to what to makes of it and of what is stored, unless it is that high already,
// and reports whether it was raised.
func (p *Publisher) raise(ctx context.Context, why string, to func(limit, stored int64) int64) (bool, error) {
	st, err := p.api.stream(ctx, p.stream)
	if err != nil {
		return false, err
	}
	c := st.Config
	was, bytes := c.MaxBytes, to(c.MaxBytes, int64(st.State.Bytes))
	if was <= 0 || bytes <= was {
		return false, nil
	}
	c.MaxBytes = bytes
	if _, err := p.api.update(ctx, c); err != nil {
		return false, fmt.Errorf("raise max_bytes of stream %s from %d to %d: %w", p.stream, was, bytes, err)
	}
	p.raised.Store(true)
	p.o.Logger.Warn("stream is full, its limit was raised", "stream", p.stream, "for", why, "from", was, "max_bytes", bytes)
	return true, nil
}

// Grow lets a full stream hold an eighth of MaxBytes more, up to MaxGrowth times MaxBytes, and reports whether it
// does. Purge takes that back as soon as what is stored fits again.
func (p *Publisher) Grow(ctx context.Context) (bool, error) {
	if p.o.MaxBytes == 0 {
		return false, nil
	}
	return p.raise(ctx, "frames by which peers may purge", func(limit, _ int64) int64 {
		return min(limit+p.o.MaxBytes/growthSteps, MaxGrowth*p.o.MaxBytes)
	})
}

// lower sets a max_bytes that was raised back to what is configured, if what is stored fits.
func (p *Publisher) lower(ctx context.Context) error {
	st, err := p.api.stream(ctx, p.stream)
	if err != nil || int64(st.State.Bytes) > p.o.MaxBytes {
		return err
	}
	want := p.config()
	if _, err := p.adjust(ctx, st, &want); err != nil {
		return err
	}
	p.raised.Store(false)
	return nil
}
