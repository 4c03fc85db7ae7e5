package bridge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/wire"
)

// rereadPatience is how long nothing may come of a stream that is read again. Whoever asks is told then, and
// asks again.
const rereadPatience = 10 * time.Second

// errReread ends a reading when it has come to its end.
var errReread = errors.New("all is read")

// streams reads transactions back for apply.
type streams struct{ *life }

// Reread implements apply.Streams.
func (s streams) Reread(ctx context.Context, o origin.Origin, after, upTo uint64, fn func(*wire.Frame) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(rereadPatience, func() {
		cancel(fmt.Errorf("nothing came of the stream of %s for %s", o.Node, rereadPatience))
	})
	defer silent.Stop()
	take := func(f *wire.Frame) error {
		silent.Reset(rereadPatience)
		if f.Origin != o {
			return nil
		}
		if err := fn(f); err != nil {
			return err
		}
		if f.LastSeq >= upTo {
			return errReread
		}
		return nil
	}
	var err error
	if node := s.applier.Node(); o.Node == node.Name {
		err = s.rereadOwn(ctx, after, upTo, take)
	} else {
		err = s.rereadPeer(ctx, o, after, upTo, take)
	}
	switch {
	case errors.Is(err, errReread):
		return nil
	case err == nil:
		return fmt.Errorf("stream of %s ends before transaction %d", o.Node, upTo)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, stream.ErrGap):
		return fmt.Errorf("%w: %w", apply.ErrGap, err)
	}
	return err
}

// rereadOwn waits until transaction upTo is safe at the broker.
func (s streams) rereadOwn(ctx context.Context, after, upTo uint64, take func(*wire.Frame) error) error {
	for {
		changed := s.publisher.Changed()
		if s.outbox.durableSeq() >= upTo {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if _, gone := s.applier.Gone(); after < gone {
		return fmt.Errorf("own transactions up to %d were let go: %w", gone, stream.ErrGap)
	}
	from := s.outbox.behind(after)
	if from == 0 {
		info, err := s.publisher.Info(ctx)
		if err != nil {
			return err
		}
		from = info.First
	}
	return s.publisher.Scan(ctx, from, s.publisher.Durable(), func(_ uint64, f *wire.Frame) error { return take(f) })
}

// rereadPeer reads what this node hands on itself: whom that came from may be away, or need it no longer. Only who reads an author's
// own stream, and has nobody behind it, has nothing.
func (s streams) rereadPeer(ctx context.Context, o origin.Origin, after, upTo uint64, take func(*wire.Frame) error) error {
	for _, p := range s.peers {
		if p.origin != o {
			continue
		}
		if p.relay != nil {
			if err := p.relay.reread(ctx, after, upTo, take); !errors.Is(err, stream.ErrGap) {
				return err
			}
		}
		at := p.at.Load()
		if at == nil || !at.nc.IsConnected() {
			return fmt.Errorf("nothing of %s is read", o.Node)
		}
		// A reader of its own: the peer's is reading.
		r, err := stream.NewReader(at.nc, stream.ReaderOptions{Cluster: s.cfg.Cluster, Sender: at.name, Origin: o.Node, Verifier: s.signing.verifier, Logger: s.log})
		if err != nil {
			return err
		}
		from, err := r.Find(ctx, o, after+1)
		if err != nil {
			return err
		}
		return r.Run(ctx, from, func(_ context.Context, m stream.Message) error { return take(m.Frame) })
	}
	return fmt.Errorf("%s is not in topology.nodes", o)
}
