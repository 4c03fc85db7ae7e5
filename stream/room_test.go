package stream

import (
	"testing"

	"github.com/pgbridge/pgbridge/integration/natstest"
)

// TestFenceMakesItsRoom has bridges start behind a stream that is full, again and again: nobody purges it before
// they have fenced it. When there is room, the limit is again what is configured.
func TestFenceMakesItsRoom(t *testing.T) {
	const maxBytes = 60_000
	s := natstest.New(t)
	nc := s.Connect(t)
	last := fill(t, nc, PublisherOptions{MaxBytes: maxBytes})
	var p *Publisher
	for epoch := uint64(2); epoch <= 4; epoch++ {
		p = open(t, nc, PublisherOptions{MaxBytes: maxBytes})
		if _, err := p.Fence(testContext(t), fenceFrame(epoch)); err != nil {
			t.Fatal(err)
		}
	}
	if err := newReader(t, nc).Run(testContext(t), 1, check(1, last)); err != errEnough {
		t.Errorf("numbers 1 to %d: %v", last, err)
	}
	if err := p.Purge(testContext(t), p.Durable()-MaxWindowFrames); err != nil {
		t.Fatal(err)
	}
	wantLimit(t, p, maxBytes)
	run(t, p.Run)
	await(t, p, publish(t, p, numbered(4, last+1, 1000)))
}

func wantLimit(t *testing.T, p *Publisher, want int64) {
	t.Helper()
	x, err := p.Info(testContext(t))
	if err != nil || x.MaxBytes != want {
		t.Fatalf("max_bytes is %d, want %d, %d bytes are stored: %v", x.MaxBytes, want, x.Bytes, err)
	}
}

// TestLimitIsNotSetBelowWhatIsStored: a limit that was lowered comes into force when what is stored fits.
func TestLimitIsNotSetBelowWhatIsStored(t *testing.T) {
	nc := natstest.New(t).Connect(t)
	fill(t, nc, PublisherOptions{MaxBytes: 100_000})
	p := open(t, nc, PublisherOptions{MaxBytes: 60_000})
	x, err := p.Info(testContext(t))
	if err != nil || x.MaxBytes != int64(x.Bytes) {
		t.Fatalf("max_bytes is %d, %d bytes are stored: %v", x.MaxBytes, x.Bytes, err)
	}
	if _, err := p.Fence(testContext(t), fenceFrame(2)); err != nil {
		t.Fatal(err)
	}
	if err := p.Purge(testContext(t), p.Durable()-MaxWindowFrames); err != nil {
		t.Fatal(err)
	}
	wantLimit(t, p, 60_000)
}

// TestGrow lets a full stream grow until what waits is stored, and then to its end.
func TestGrow(t *testing.T) {
	const maxBytes, window = 64_000, 16 // so few that all of them fit when the stream has grown
	nc := natstest.New(t).Connect(t)
	p, _ := running(t, nc, 1, PublisherOptions{MaxBytes: maxBytes, WindowFrames: window})
	last := uint64(0)
	for state := ""; state != StateFull; state, _ = p.State() {
		if p.InFlight() < window {
			last++
			publish(t, p, numbered(1, last, 1000))
		}
	}
	for n := int64(1); n <= growthSteps; n++ {
		if grown, err := p.Grow(testContext(t)); err != nil || !grown {
			t.Fatalf("step %d: %t, %v", n, grown, err)
		}
		wantLimit(t, p, maxBytes+n*maxBytes/growthSteps)
	}
	if grown, err := p.Grow(testContext(t)); err != nil || grown {
		t.Fatalf("it grew without end: %v", err)
	}
	await(t, p, p.Next()-1)
	wantStored(t, nc, last)
	if err := p.Purge(testContext(t), p.Durable()); err != nil {
		t.Fatal(err)
	}
	wantLimit(t, p, maxBytes)
}
