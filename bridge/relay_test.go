package bridge

import (
	"context"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

func testRelay() *relay {
	return &relay{life: &life{bridge: &bridge{cfg: &config.Config{Node: "b"}}}, origin: origin.Origin{Node: "a", Epoch: 1},
		changed: make(chan struct{})}
}

func TestRelayTakesEachFrameOnce(t *testing.T) {
	r := testRelay()
	take := func(seq, last uint64, hops ...string) error {
		return r.take(t.Context(), seq, &wire.Frame{Header: wire.Header{LastSeq: last, Hops: hops}})
	}
	r.begin("a")
	for _, seq := range []uint64{1, 2, 2, 1, 3} {
		if err := take(seq, 10*seq); err != nil {
			t.Fatal(err)
		}
	}
	r.begin("a") // read again from the same stream
	r.begin("c") // another neighbour, whose stream has numbers of its own
	if err := take(1, 40, "a"); err != nil {
		t.Fatal(err)
	}
	if len(r.queue) != 4 || r.upTo() != 40 || r.queue[3].sender != "c" {
		t.Errorf("%d frames wait, up to transaction %d", len(r.queue), r.upTo())
	}
	if err := take(2, 50, "a", "b", "c"); err == nil || !strings.Contains(err.Error(), "come round") {
		t.Errorf("a frame that was here already: %v", err)
	}
}

func TestRelayWaitsForRoom(t *testing.T) {
	r := testRelay()
	r.begin("a")
	big := func(seq uint64) *wire.Frame {
		return &wire.Frame{Header: wire.Header{LastSeq: seq}, Body: make([]byte, relayBytes*2/3)}
	}
	if err := r.take(t.Context(), 1, big(1)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- r.take(t.Context(), 2, big(2)) }()
	if x, err := r.next(t.Context()); err != nil || x.seq != 1 {
		t.Errorf("%+v, %v", x, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.take(ctx, 3, big(3)); err == nil {
		t.Error("a frame was taken beyond the bound")
	}
}

// TestRelayKnowsWhereRunsBegin: a run that is open behind a frame begins in our stream where we have handed on its first
// chunk.
func TestRelayKnowsWhereRunsBegin(t *testing.T) {
	r := testRelay()
	for i, theirs := range []uint64{10, 11, 13, 14} {
		r.places = append(r.places, place{theirs, uint64(100 + i)})
	}
	for _, x := range []struct{ back, ours uint64 }{{10, 100}, {11, 101}, {12, 102}, {14, 103}} {
		if got := r.oldest(x.back); got != x.ours {
			t.Errorf("their frame %d is our %d, want %d", x.back, got, x.ours)
		}
	}
}
