package bridge

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/integration/natstest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/wire"
)

func TestMain(m *testing.M) { natstest.Main(m) }

// TestStatusSaysWhyAFenceWaits has a broker whose store is full, where the stream's own limit is not what binds.
func TestStatusSaysWhyAFenceWaits(t *testing.T) {
	nc := natstest.NewWith(t, natstest.Options{MaxStore: 60_000}).Connect(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	fillStore(ctx, t, nc)
	b := &bridge{log: slog.New(slog.DiscardHandler), cfg: &config.Config{Cluster: "t", Node: "a"}}
	p := openStream(ctx, t, nc)
	l := &life{bridge: b, publisher: p}
	fenced := make(chan error, 1)
	go func() {
		_, err := l.fence(ctx, apply.Node{Name: "a", Epoch: 1, WriterEpoch: 2}, capture.SlotInfo{}, origin.Origin{Node: "a", Epoch: 1})
		fenced <- err
	}()
	for {
		if _, err := b.current.get(); err != nil {
			if !strings.Contains(err.Error(), "no room") {
				t.Errorf("status says %v", err)
			}
			break
		}
		select {
		case err := <-fenced:
			t.Fatalf("the fence ended with %v", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	if err := p.Purge(ctx, p.Durable()); err != nil {
		t.Fatal(err)
	}
	if err := <-fenced; err != nil {
		t.Error(err)
	}
}

func openStream(ctx context.Context, t *testing.T, nc *nats.Conn) *stream.Publisher {
	t.Helper()
	p, err := stream.OpenPublisher(ctx, nc, stream.PublisherOptions{Cluster: "t", Node: "a", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// fillStore has a bridge with writer epoch 1 publish until there is no room.
func fillStore(ctx context.Context, t *testing.T, nc *nats.Conn) {
	t.Helper()
	p := openStream(ctx, t, nc)
	h := wire.Header{Cluster: "t", Sender: "a", Origin: origin.Origin{Node: "a", Epoch: 1}, WriterEpoch: 1}
	fence := h
	fence.Fence = true
	if _, err := p.Fence(ctx, &wire.Frame{Header: fence}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	for state := ""; state != stream.StateFull; state, _ = p.State() {
		if p.InFlight() < stream.MaxWindowFrames {
			if _, err := p.Publish(ctx, &wire.Frame{Header: h, Body: make([]byte, 1000)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.Close()
	if err := <-ended; !errors.Is(err, stream.ErrStopped) {
		t.Fatal(err)
	}
}
