package stream

import (
	"context"
	"fmt"

	"github.com/pgbridge/pgbridge/wire"
)

// Scan reads the publisher's own frames from the sequence from to the sequence to, both included, at most
// to the last that is durable, and calls fn for each in order. Frames that count for nothing, since a
// newer fence stands before them, are left out. A few MiB are in memory at any time. A GapError says
// that from is purged. fn's error ends the scan and is returned.
func (p *Publisher) Scan(ctx context.Context, from, to uint64, fn func(seq uint64, f *wire.Frame) error) error {
	from, to = max(from, 1), min(to, p.Durable())
	if to < from {
		return nil
	}
	st, err := p.api.stream(ctx, p.stream)
	if err != nil {
		return err
	}
	if from < st.State.FirstSeq {
		return &GapError{p.stream, from, st.State.FirstSeq}
	}
	var dec wire.Decoder
	var epoch uint64
	begin := max(st.State.FirstSeq, lookback(from))
	return scan(ctx, p.api, p.stream, span{begin, to}, func(seq uint64, data []byte) error {
		f, err := decodeOf(&dec, p.o.Cluster, p.o.Node, p.stream, seq, data)
		if err != nil {
			return err
		}
		if f.WriterEpoch < epoch {
			return nil
		}
		epoch = f.WriterEpoch
		if seq < from {
			return nil
		}
		return fn(seq, f)
	})
}

// scan reads the messages of a range, which must all be there, in order.
func scan(ctx context.Context, a api, stream string, r span, fn func(seq uint64, data []byte) error) error {
	c, err := openCursor(ctx, a, stream, r.first, 0)
	if err != nil {
		return err
	}
	defer c.close()
	for next := r.first; next <= r.last; next++ {
		seq, data, _, err := c.take(ctx)
		if err != nil {
			return fmt.Errorf("read frame %d of stream %s: %w", next, stream, err)
		}
		if seq != next {
			return &GapError{stream, next, seq}
		}
		if err := fn(seq, data); err != nil {
			return err
		}
	}
	return nil
}
