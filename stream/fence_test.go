package stream

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/integration/natstest"
	"github.com/pgbridge/pgbridge/wire"
)

func TestSecondWriterFencesTheFirst(t *testing.T) {
	s := natstest.New(t)
	old, end := running(t, s.Connect(t), 1, PublisherOptions{})
	await(t, old, publish(t, old, numbered(1, 1, 0)))
	p, _ := running(t, s.Connect(t), 2, PublisherOptions{})
	publish(t, old, numbered(1, 2, 0)) // it does not know yet
	wantErr(t, end(), ErrFenced)
	await(t, p, publish(t, p, numbered(2, 2, 0)))
	wantStored(t, s.Connect(t), 2)
}

// TestNothingOnItsWayPassesAFence holds an old writer's frames back on the link until the fence is
// stored. All but the first expect a sequence that a single fence frame would make right.
func TestNothingOnItsWayPassesAFence(t *testing.T) {
	s := natstest.New(t)
	proxy := natstest.NewProxy(t, s.Addr())
	old, end := running(t, natstest.Connect(t, proxy.URL()), 1, PublisherOptions{})
	await(t, old, publish(t, old, numbered(1, 1, 0)))
	proxy.Hold(true)
	for n := uint64(2); n <= MaxWindowFrames+1; n++ {
		publish(t, old, numbered(1, n, 0))
	}
	p, _ := running(t, s.Connect(t), 2, PublisherOptions{})
	fence := p.Durable()
	proxy.Hold(false)
	wantErr(t, end(), ErrFenced)
	x, err := p.Info(testContext(t))
	if err != nil || x.Last != fence {
		t.Fatalf("the fence ended with frame %d, the stream now ends with %d: %v", fence, x.Last, err)
	}
	await(t, p, publish(t, p, numbered(2, 2, 0)))
	wantStored(t, s.Connect(t), 2)
}

func TestFenceNeedsAHigherEpoch(t *testing.T) {
	s := natstest.New(t)
	running(t, s.Connect(t), 2, PublisherOptions{})
	for _, epoch := range []uint64{1, 2} {
		p := open(t, s.Connect(t), PublisherOptions{})
		_, err := p.Fence(testContext(t), fenceFrame(epoch))
		wantErr(t, err, ErrFenced)
	}
	p := open(t, s.Connect(t), PublisherOptions{})
	if _, err := p.Fence(testContext(t), numbered(3, 1, 0)); err == nil {
		t.Error("a frame that is no fence was taken for one")
	}
}

func TestFenceSeesThatTheTailMoved(t *testing.T) {
	s := natstest.New(t)
	old, _ := running(t, s.Connect(t), 1, PublisherOptions{})
	p := open(t, s.Connect(t), PublisherOptions{})
	last := publish(t, old, numbered(1, 1, 0))
	await(t, old, last)
	_, err := p.Fence(testContext(t), fenceFrame(2))
	wantErr(t, err, ErrTailMoved)
	seq, f := p.Tail()
	if seq != last || f.Fence || number(f) != 1 {
		t.Fatalf("tail is frame %d, want %d", seq, last)
	}
	if seq, err = p.Fence(testContext(t), fenceFrame(2)); err != nil || seq != last+MaxWindowFrames {
		t.Fatalf("second attempt ended with frame %d: %v", seq, err)
	}
	if _, f := p.Tail(); !f.Fence || f.WriterEpoch != 2 {
		t.Errorf("tail is %+v", f.Header)
	}
}

// TestFenceAmidAnOldersFrames has frames of an older writer arrive between the copies of the fence.
func TestFenceAmidAnOldersFrames(t *testing.T) {
	s := natstest.New(t)
	nc := s.Connect(t)
	createStream(t, nc, testConfig())
	var between atomic.Int32
	stray, err := (&wire.Encoder{}).Append(nil, numbered(1, 99, 0))
	if err != nil {
		t.Fatal(err)
	}
	watcher := s.Connect(t)
	_, err = watcher.Subscribe(Subject(testCluster, testNode, testNode), func(m *nats.Msg) {
		if between.Add(1) == 1 { // the first copy
			_ = watcher.PublishMsg(&nats.Msg{Subject: m.Subject, Data: stray, Header: nats.Header{
				"Nats-Expected-Last-Sequence": {"1"},
			}})
			_ = watcher.Flush()
		}
	})
	if err != nil || watcher.Flush() != nil {
		t.Fatal(err, watcher.LastError())
	}
	p, _ := running(t, nc, 2, PublisherOptions{})
	if seq, f := p.Tail(); !f.Fence || f.WriterEpoch != 2 || p.Next() != seq+1 || seq < MaxWindowFrames {
		t.Fatalf("tail is frame %d %+v", seq, f.Header)
	}
	await(t, p, publish(t, p, numbered(2, 1, 0)))
	wantStored(t, s.Connect(t), 1)
}

// TestFenceUnderCuts fences through a link that is cut again and again.
func TestFenceUnderCuts(t *testing.T) {
	r := seeded(t)
	s := natstest.New(t)
	proxy := natstest.NewProxy(t, s.Addr())
	nc := natstest.Connect(t, proxy.URL())
	for epoch := uint64(1); epoch <= 5; epoch++ {
		if err := awaitConnected(testContext(t), nc); err != nil {
			t.Fatal(err)
		}
		p := open(t, nc, PublisherOptions{})
		before := p.Next()
		cutAt := 1 + r.IntN(MaxWindowFrames)
		seen := 0
		watcher := s.Connect(t)
		if _, err := watcher.Subscribe(Subject(testCluster, testNode, testNode), func(*nats.Msg) {
			if seen++; seen == cutAt {
				proxy.Cut()
			}
		}); err != nil || watcher.Flush() != nil {
			t.Fatal(err)
		}
		seq, err := p.Fence(testContext(t), fenceFrame(epoch))
		if err != nil || seq < before-1+MaxWindowFrames {
			t.Fatalf("fence %d ended with frame %d, began with %d: %v", epoch, seq, before, err)
		}
		watcher.Close()
		_, last, _, err := newReader(t, s.Connect(t)).Info(testContext(t))
		if err != nil || last != seq {
			t.Fatalf("fence %d ended with frame %d, the stream ends with %d: %v", epoch, seq, last, err)
		}
		p.Close()
	}
}

// TestFenceEndsWithACopy has older frames stand where the last copy should.
func TestFenceEndsWithACopy(t *testing.T) {
	s := natstest.New(t)
	nc := s.Connect(t)
	p := open(t, nc, PublisherOptions{})
	f := fenceFrame(2)
	data, err := p.encode(f)
	if err != nil {
		t.Fatal(err)
	}
	c := fencing{p: p, epoch: 2, data: data}
	if err := c.send(testContext(t)); err != nil || c.first != 1 {
		t.Fatalf("first copy is frame %d: %v", c.first, err)
	}
	for n := uint64(2); n <= MaxWindowFrames; n++ {
		store(t, nc, numbered(1, n, 0))
	}
	if err := c.run(testContext(t)); err != nil {
		t.Fatal(err)
	}
	last, err := newReader(t, nc).Get(testContext(t), MaxWindowFrames+1)
	if err != nil || !last.Fence || c.last != MaxWindowFrames+1 {
		t.Errorf("the fence ends with frame %d: %v", c.last, err)
	}
}

// TestTwoFencesAtOnce has a bridge with a higher writer epoch come in between.
func TestTwoFencesAtOnce(t *testing.T) {
	s := natstest.New(t)
	p := open(t, s.Connect(t), PublisherOptions{})
	running(t, s.Connect(t), 3, PublisherOptions{})
	_, err := p.Fence(testContext(t), fenceFrame(2))
	wantErr(t, err, ErrFenced)
}

// TestIdleWriterLearnsThatItIsFenced has nothing to publish when its connection comes back.
func TestIdleWriterLearnsThatItIsFenced(t *testing.T) {
	s := natstest.New(t)
	proxy := natstest.NewProxy(t, s.Addr())
	_, end := running(t, natstest.Connect(t, proxy.URL()), 1, PublisherOptions{})
	running(t, s.Connect(t), 2, PublisherOptions{})
	proxy.Cut()
	wantErr(t, end(), ErrFenced)
}

// TestUnfinishedFence has a bridge that died within its fence, and an older writer's frames behind it.
func TestUnfinishedFence(t *testing.T) {
	s := natstest.New(t)
	nc := s.Connect(t)
	createStream(t, nc, testConfig())
	store(t, nc, fenceFrame(1), numbered(1, 1, 0), numbered(1, 2, 0), fenceFrame(2), numbered(1, 3, 0), numbered(1, 4, 0))
	p := open(t, nc, PublisherOptions{})
	if seq, f := p.Tail(); seq != 4 || !f.Fence || f.WriterEpoch != 2 || p.Next() != 7 {
		t.Fatalf("tail is frame %d %+v, next is %d", seq, f.Header, p.Next())
	}
	if _, err := p.Fence(testContext(t), fenceFrame(3)); err != nil {
		t.Fatal(err)
	}
	run(t, p.Run)
	await(t, p, publish(t, p, numbered(3, 3, 0)))
	wantStored(t, nc, 3)

	for _, from := range []uint64{5, 6} { // within what is void
		r := newReader(t, nc)
		if err := r.Run(testContext(t), from, check(3, 3)); err != errEnough {
			t.Errorf("from %d: %v", from, err)
		}
		if got := r.Stats().Skipped; got != 7-from {
			t.Errorf("from %d: %d frames skipped", from, got)
		}
	}
	n := 0
	err := p.Scan(testContext(t), 5, p.Durable(), func(_ uint64, f *wire.Frame) error {
		if f.WriterEpoch < 3 {
			t.Errorf("scan gave a frame of writer epoch %d", f.WriterEpoch)
		}
		n++
		return nil
	})
	if err != nil || n != MaxWindowFrames+1 {
		t.Errorf("scan gave %d frames: %v", n, err)
	}
}

// TestOlderFramesBehindAFinishedFence is what should not be possible: a writer with a wider window. The
// publisher must see it and must not store anything behind it.
func TestOlderFramesBehindAFinishedFence(t *testing.T) {
	s := natstest.New(t)
	nc := s.Connect(t)
	p, end := running(t, nc, 2, PublisherOptions{})
	store(t, nc, numbered(1, 99, 0))
	publish(t, p, numbered(2, 1, 0))
	wantErr(t, end(), ErrTailMoved)
	x, err := p.Info(testContext(t))
	if err != nil || x.Last != MaxWindowFrames+1 {
		t.Errorf("the stream ends with frame %d: %v", x.Last, err)
	}
}

// TestFenceWaitsForRoom has a store whose limit nobody can raise from here.
func TestFenceWaitsForRoom(t *testing.T) {
	s := natstest.NewWith(t, natstest.Options{MaxStore: 60_000})
	nc := s.Connect(t)
	fill(t, nc, PublisherOptions{})
	p := open(t, nc, PublisherOptions{})
	fence := run(t, func(ctx context.Context) error {
		_, err := p.Fence(ctx, fenceFrame(2))
		return err
	})
	if cause := awaitState(t, p.State, StateFull); !isFull(cause) {
		t.Errorf("cause of a full stream: %v", cause)
	}
	if err := p.Purge(testContext(t), p.Durable()); err != nil {
		t.Fatal(err)
	}
	if err := fence(); err != nil {
		t.Fatal(err)
	}
}

// fill has a bridge with writer epoch 1 publish until the stream is full, and end then. It returns the number of
// the last frame that is stored.
func fill(t *testing.T, nc *nats.Conn, o PublisherOptions) uint64 {
	t.Helper()
	p, _ := running(t, nc, 1, o)
	filled := run(t, func(ctx context.Context) error {
		for n := uint64(1); ; n++ {
			if _, err := p.Publish(ctx, numbered(1, n, 1000)); err != nil {
				return err
			}
		}
	})
	awaitState(t, p.State, StateFull)
	p.Close()
	wantErr(t, filled(), ErrStopped)
	return p.Durable() - MaxWindowFrames
}
