package stream

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
)

// Extent is what a stream holds.
type Extent struct {
	First, Last uint64 // stream sequences; Last < First: empty
	Frames      uint64
	Bytes       uint64 // on disk, without the broker's indexes
	MaxBytes    int64  // -1: no limit of its own
	Created     time.Time
}

// Info asks the stream's leader what the publisher's own stream holds.
func (p *Publisher) Info(ctx context.Context) (Extent, error) {
	st, err := p.api.stream(ctx, p.stream)
	if err != nil {
		return Extent{}, err
	}
	return Extent{
		First: st.State.FirstSeq, Last: st.State.LastSeq, Frames: st.State.Msgs, Bytes: st.State.Bytes,
		MaxBytes: st.Config.MaxBytes, Created: st.Created,
	}, nil
}

// Delete deletes a node's own stream, if it is there: it is to begin anew, with other sequences.
func Delete(ctx context.Context, nc *nats.Conn, cluster, node string) error {
	return newAPI(nc, "").remove(ctx, StreamName(cluster, node))
}

// DeleteShadow deletes the stream that a node has written in shadow mode, if it is there.
func DeleteShadow(ctx context.Context, nc *nats.Conn, cluster, node string) error {
	return newAPI(nc, "").remove(ctx, ShadowName(cluster, node))
}

// Purge removes the frames below belowSeq, but never the last durable one, by which a writer finds its
// place, nor a part of the fence of this publisher: a reader that begins within it must meet its epoch. A limit
// that Fence or Grow raised goes back to MaxBytes when what is left fits.
func (p *Publisher) Purge(ctx context.Context, belowSeq uint64) error {
	p.mu.Lock()
	below := min(belowSeq, p.window.durable)
	if below > p.fences.first && below <= p.fences.last {
		below = p.fences.first
	}
	p.mu.Unlock()
	if below <= 1 {
		return nil
	}
	if err := p.api.purge(ctx, p.stream, below); err != nil {
		return err
	}
	if p.raised.Load() {
		return p.lower(ctx)
	}
	return nil
}
