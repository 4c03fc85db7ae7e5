package stream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgbridge/pgbridge/integration/natstest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

func TestFramesAreReadAsPublished(t *testing.T) {
	s := natstest.New(t)
	p, _ := running(t, s.Connect(t), 1, PublisherOptions{Zstd: true})
	var last uint64
	for n := uint64(1); n <= 500; n++ {
		next := p.Next()
		seq := publish(t, p, numbered(1, n, int(n*7)))
		if seq != next || last != 0 && seq != last+1 {
			t.Fatalf("frame %d behind frame %d, Next said %d", seq, last, next)
		}
		last = seq
	}
	await(t, p, last)
	if p.InFlight() != 0 || p.Next() != last+1 {
		t.Errorf("%d in flight, next is %d", p.InFlight(), p.Next())
	}
	if state, err := p.State(); state != StatePublishing || err != nil {
		t.Errorf("state %s: %v", state, err)
	}
	wantStored(t, s.Connect(t), 500)
}

// TestAnotherNodesFramesAreHandedOn: they have a stream of their own, beside the node's, which its reader gets from
// whoever hands them on.
func TestAnotherNodesFramesAreHandedOn(t *testing.T) {
	s := natstest.New(t)
	nc := s.Connect(t)
	own, _ := running(t, nc, 1, PublisherOptions{})
	p := open(t, nc, PublisherOptions{Cluster: testCluster, Node: testNode, Origin: "b"})
	of := func(f *wire.Frame) *wire.Frame {
		f.Origin, f.OriginWriter, f.Hops = origin.Origin{Node: "b", Epoch: 3}, 7, []string{"b"}
		return f
	}
	if _, err := p.Fence(testContext(t), of(fenceFrame(1))); err != nil {
		t.Fatal(err)
	}
	run(t, p.Run)
	publish(t, own, numbered(1, 1, 0))
	publish(t, p, of(numbered(1, 2, 0)))
	if _, err := p.Publish(testContext(t), numbered(1, 3, 0)); err == nil {
		t.Error("an own frame was put among another node's")
	}
	r, err := NewReader(nc, ReaderOptions{Cluster: testCluster, Sender: testNode, Origin: "b", Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	err = r.Run(testContext(t), 1, func(_ context.Context, m Message) error {
		if m.Frame.Fence {
			return nil
		}
		if number(m.Frame) != 2 || m.Frame.Origin.Node != "b" || m.Frame.RunWriter() != 7 || fmt.Sprint(m.Frame.Hops) != "[b]" {
			t.Errorf("got number %d, %+v", number(m.Frame), m.Frame.Header)
		}
		return errEnough
	})
	wantErr(t, err, errEnough)
	stored, err := own.api.stream(testContext(t), RelayName(testCluster, testNode, "b"))
	if err != nil || stored.Config.PersistMode != jetstream.AsyncPersistMode {
		t.Errorf("the broker syncs what can be had again: %v, %v", stored.Config.PersistMode, err)
	}
}

func TestReopenedPublisherGoesOnAtTheTail(t *testing.T) {
	s := natstest.New(t)
	p := open(t, s.Connect(t), PublisherOptions{FirstSeq: 1_000_001})
	if seq, f := p.Tail(); seq != 1_000_000 || f != nil || p.Next() != 1_000_001 {
		t.Fatalf("tail of the empty stream is %d, %v; next is %d", seq, f, p.Next())
	}
	if _, err := p.Fence(testContext(t), fenceFrame(1)); err != nil {
		t.Fatal(err)
	}
	end := run(t, p.Run)
	seq := publish(t, p, numbered(1, 1, 0))
	await(t, p, seq)
	p.Close()
	wantErr(t, end(), ErrStopped)
	_, err := p.Publish(testContext(t), numbered(1, 2, 0))
	wantErr(t, err, ErrStopped)

	p = open(t, s.Connect(t), PublisherOptions{})
	got, f := p.Tail()
	if got != seq || f == nil || number(f) != 1 || p.Durable() != seq {
		t.Fatalf("tail is frame %d %v, durable %d, want frame %d with number 1", got, f, p.Durable(), seq)
	}
}

func TestPublishRefusesWhatIsNotItsOwn(t *testing.T) {
	s := natstest.New(t)
	p := open(t, s.Connect(t), PublisherOptions{})
	if _, err := p.Publish(testContext(t), numbered(1, 1, 0)); err == nil {
		t.Error("a frame before the fence was taken")
	}
	if err := p.Run(testContext(t)); err == nil {
		t.Error("Run before the fence returned nil")
	}
	p, _ = running(t, s.Connect(t), 1, PublisherOptions{})
	for name, change := range map[string]func(*wire.Header){
		"cluster": func(h *wire.Header) { h.Cluster = "other" },
		"sender":  func(h *wire.Header) { h.Sender = "c" },
		"epoch":   func(h *wire.Header) { h.WriterEpoch = 2 },
		"fence":   func(h *wire.Header) { h.Fence = true },
	} {
		f := numbered(1, 1, 0)
		change(&f.Header)
		if _, err := p.Publish(testContext(t), f); err == nil {
			t.Errorf("a frame with another %s was taken", name)
		}
	}
	if p.InFlight() != 0 {
		t.Errorf("%d refused frames are in flight", p.InFlight())
	}
}

func TestFrameAboveMaxPayloadIsRefusedAlone(t *testing.T) {
	s := natstest.NewWith(t, natstest.Options{MaxPayload: 100 << 10})
	p, _ := running(t, s.Connect(t), 1, PublisherOptions{})
	publish(t, p, numbered(1, 1, p.MaxBody()))
	_, err := p.Publish(testContext(t), numbered(1, 2, 100<<10))
	wantErr(t, err, ErrFrameTooLarge)
	if !strings.Contains(err.Error(), "max_payload") || !strings.Contains(err.Error(), s.Addr()) {
		t.Errorf("the error does not say what to mend and where: %v", err)
	}
	await(t, p, publish(t, p, numbered(1, 2, 0)))
	wantStored(t, s.Connect(t), 2)
}

func TestMaxPayloadLoweredBelowAFrameInFlight(t *testing.T) {
	o := natstest.Options{MaxPayload: 200 << 10, Dir: t.TempDir()}
	s := natstest.NewWith(t, o)
	proxy := natstest.NewProxy(t, s.Addr())
	p, end := running(t, natstest.Connect(t, proxy.URL()), 1, PublisherOptions{})
	proxy.Hold(true)
	publish(t, p, numbered(1, 1, 150<<10))
	proxy.Cut()
	s.Stop()
	o.MaxPayload, o.Port = 100<<10, s.Port()
	natstest.NewWith(t, o)
	proxy.Hold(false)
	wantErr(t, end(), ErrFrameTooLarge)
}

func TestWindowHoldsBackPublish(t *testing.T) {
	for name, tc := range map[string]struct {
		o    PublisherOptions
		size int
		fit  int
	}{
		"frames": {PublisherOptions{WindowFrames: 4}, 8, 4},
		"bytes":  {PublisherOptions{WindowBytes: 10_000}, 3000, 3},
		"large":  {PublisherOptions{WindowBytes: 10_000}, 20_000, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := natstest.New(t)
			proxy := natstest.NewProxy(t, s.Addr())
			tc.o.AckTimeout = time.Minute
			p, _ := running(t, natstest.Connect(t, proxy.URL()), 1, tc.o)
			proxy.Hold(true)
			n := uint64(0)
			for range tc.fit {
				n++
				publish(t, p, numbered(1, n, tc.size))
			}
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			_, err := p.Publish(ctx, numbered(1, n+1, tc.size))
			wantErr(t, err, context.DeadlineExceeded)
			if p.InFlight() != tc.fit {
				t.Errorf("%d in flight, want %d", p.InFlight(), tc.fit)
			}
			end := run(t, func(ctx context.Context) error {
				_, err := p.Publish(ctx, numbered(1, n+1, tc.size))
				return err
			})
			proxy.Hold(false)
			if err := end(); err != nil {
				t.Fatal(err)
			}
			await(t, p, p.Next()-1)
			wantStored(t, s.Connect(t), n+1)
		})
	}
}

func TestForeignStreamIsRefused(t *testing.T) {
	for name, change := range map[string]func(*jetstream.StreamConfig){
		"subjects":  func(c *jetstream.StreamConfig) { c.Subjects = []string{"pgb.other.a.>"} },
		"retention": func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy },
		"discard":   func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld },
		"age":       func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour },
		"number":    func(c *jetstream.StreamConfig) { c.MaxMsgs = 1000 },
		"memory":    func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage },
		"purge":     func(c *jetstream.StreamConfig) { c.DenyPurge = true },
	} {
		t.Run(name, func(t *testing.T) {
			s := natstest.New(t)
			nc := s.Connect(t)
			c := testConfig()
			change(&c)
			createStream(t, nc, c)
			_, err := OpenPublisher(testContext(t), nc, PublisherOptions{Cluster: testCluster, Node: testNode, Logger: quiet})
			wantErr(t, err, ErrForeignStream)
			if !strings.Contains(err.Error(), testStream) {
				t.Errorf("the error does not name the stream: %v", err)
			}
		})
	}
}

func TestTailOfAnotherClusterIsRefused(t *testing.T) {
	s := natstest.New(t)
	nc := s.Connect(t)
	createStream(t, nc, testConfig())
	f := numbered(1, 1, 0)
	f.Cluster = "other"
	store(t, nc, f)
	_, err := OpenPublisher(testContext(t), nc, PublisherOptions{Cluster: testCluster, Node: testNode, Logger: quiet})
	wantErr(t, err, ErrForeignStream)
	if !strings.Contains(err.Error(), `"other"`) || !strings.Contains(err.Error(), `"t"`) {
		t.Errorf("the error does not name both clusters: %v", err)
	}
}

func TestSubjectsOfAnotherStream(t *testing.T) {
	s := natstest.New(t)
	nc := s.Connect(t)
	c := testConfig()
	c.Name, c.Subjects = "ORDERS", []string{"pgb.>"}
	createStream(t, nc, c)
	_, err := OpenPublisher(testContext(t), nc, PublisherOptions{Cluster: testCluster, Node: testNode, Logger: quiet})
	if err == nil || !strings.Contains(err.Error(), "another stream") {
		t.Errorf("got %v", err)
	}
}

func TestLimitsAreAdjusted(t *testing.T) {
	s := natstest.New(t)
	nc := s.Connect(t)
	open(t, nc, PublisherOptions{MaxBytes: 1 << 20})
	p := open(t, nc, PublisherOptions{MaxBytes: 2 << 20})
	x, err := p.Info(testContext(t))
	if err != nil || x.MaxBytes != 2<<20 {
		t.Errorf("max_bytes is %d: %v", x.MaxBytes, err)
	}
}

func TestPublisherOptionsAreChecked(t *testing.T) {
	for name, o := range map[string]PublisherOptions{
		"cluster":  {Cluster: "", Node: "a"},
		"node":     {Cluster: "t", Node: "A"},
		"long":     {Cluster: "t", Node: "abcdefghijklmnopq"},
		"wildcard": {Cluster: "t", Node: "*"},
		"window":   {Cluster: "t", Node: "a", WindowFrames: MaxWindowFrames + 1},
		"bytes":    {Cluster: "t", Node: "a", WindowBytes: -1},
		"replicas": {Cluster: "t", Node: "a", Replicas: 6},
	} {
		if err := o.Validate(); err == nil {
			t.Errorf("%s: %+v was accepted", name, o)
		}
	}
	if err := (&PublisherOptions{Cluster: "t", Node: "a_1"}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestScanGivesOwnFramesBack(t *testing.T) {
	s := natstest.New(t)
	p, _ := running(t, s.Connect(t), 1, PublisherOptions{})
	first := p.Next()
	for n := uint64(1); n <= 200; n++ {
		publish(t, p, numbered(1, n, 0))
	}
	await(t, p, first+199)
	next := uint64(51)
	err := p.Scan(testContext(t), first+50, first+149, func(seq uint64, f *wire.Frame) error {
		if n := number(f); n != next || seq != first+n-1 {
			t.Errorf("sequence %d: number %d, want %d", seq, n, next)
		}
		next++
		return nil
	})
	if err != nil || next != 151 {
		t.Errorf("scan ended before number %d: %v", next, err)
	}
	wantErr(t, p.Scan(testContext(t), first, first+10, func(uint64, *wire.Frame) error { return errEnough }), errEnough)
	if err := p.Purge(testContext(t), first+100); err != nil {
		t.Fatal(err)
	}
	err = p.Scan(testContext(t), first+50, first+149, func(uint64, *wire.Frame) error { return nil })
	gap := (*GapError)(nil)
	if !errors.As(err, &gap) || gap.Need != first+50 || gap.First != first+100 {
		t.Errorf("scan of purged frames: %v", err)
	}
}

func TestPurgeKeepsTheTail(t *testing.T) {
	s := natstest.New(t)
	p, _ := running(t, s.Connect(t), 1, PublisherOptions{})
	fence := p.Durable()
	for n := uint64(1); n <= 10; n++ {
		publish(t, p, numbered(1, n, 0))
	}
	await(t, p, fence+10)
	for _, tc := range []struct{ below, first uint64 }{
		{0, 1},
		{fence, 1}, // within the fence, which stays whole
		{fence + 1, fence + 1},
		{fence + 5, fence + 5},
		{fence + 1000, fence + 10},
	} {
		if err := p.Purge(testContext(t), tc.below); err != nil {
			t.Fatal(err)
		}
		x, err := p.Info(testContext(t))
		if err != nil || x.First != tc.first || x.Last != fence+10 {
			t.Errorf("purge below %d: %d to %d are left, want %d to %d: %v", tc.below, x.First, x.Last, tc.first, fence+10, err)
		}
	}
}
