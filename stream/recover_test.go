package stream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgbridge/pgbridge/integration/natstest"
)

// seeded returns a random source whose seed a failed test shows.
func seeded(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

// TestCutsLoseAndDoubleNothing publishes and reads at once, each through a link that is cut at random
// moments, and wants each number once and in order on the other side.
func TestCutsLoseAndDoubleNothing(t *testing.T) {
	r := seeded(t)
	const last = 2000
	s := natstest.New(t)
	out, in := natstest.NewProxy(t, s.Addr()), natstest.NewProxy(t, s.Addr())
	p, _ := running(t, natstest.Connect(t, out.URL()), 1, PublisherOptions{})
	reader := newReader(t, natstest.Connect(t, in.URL()))
	want := check(1, last)
	cutAt := uint64(1 + r.IntN(100))
	read := run(t, func(ctx context.Context) error {
		return reader.Run(ctx, 1, func(ctx context.Context, m Message) error {
			if m.Seq >= cutAt {
				cutAt = m.Seq + uint64(r.IntN(150))
				in.Cut()
			}
			return want(ctx, m)
		})
	})
	cuts := rand.New(rand.NewPCG(r.Uint64(), 0))
	for n := uint64(1); n <= last; n++ {
		publish(t, p, numbered(1, n, cuts.IntN(3000)))
		if cuts.IntN(60) == 0 {
			out.Cut()
		}
	}
	await(t, p, p.Next()-1)
	wantErr(t, read(), errEnough)
	wantStored(t, s.Connect(t), last)
}

// TestKilledServer kills the broker's process with frames in flight, several times.
func TestKilledServer(t *testing.T) {
	r := seeded(t)
	s := natstest.StartProcess(t, natstest.Options{})
	nc := natstest.Connect(t, s.URL())
	p, _ := running(t, nc, 1, PublisherOptions{})
	reader := newReader(t, natstest.Connect(t, s.URL()))
	const last = 600
	read := run(t, func(ctx context.Context) error { return reader.Run(ctx, 1, check(1, last)) })
	kill := uint64(1 + r.IntN(200))
	for n := uint64(1); n <= last; n++ {
		publish(t, p, numbered(1, n, r.IntN(10_000)))
		if n == kill {
			kill += uint64(1 + r.IntN(200))
			s.Kill()
			s.Start(t)
		}
	}
	await(t, p, p.Next()-1)
	wantErr(t, read(), errEnough)
	wantStored(t, natstest.Connect(t, s.URL()), last)
}

func TestBrokerAwayAtFirst(t *testing.T) {
	s := natstest.New(t)
	p, _ := running(t, s.Connect(t), 1, PublisherOptions{})
	s.Stop()
	for n := uint64(1); n <= 3; n++ {
		publish(t, p, numbered(1, n, 0)) // the window takes them
	}
	if cause := awaitState(t, p.State, StateRecovering); cause == nil {
		t.Error("no cause for recovering")
	}
	s.Start(t)
	await(t, p, p.Next()-1)
	wantStored(t, s.Connect(t), 3)
}

// TestSilentBroker has a link that takes everything and delivers nothing: only the missing ack tells.
func TestSilentBroker(t *testing.T) {
	s := natstest.New(t)
	proxy := natstest.NewProxy(t, s.Addr())
	p, _ := running(t, natstest.Connect(t, proxy.URL()), 1, PublisherOptions{AckTimeout: 50 * time.Millisecond})
	proxy.Hold(true)
	for n := uint64(1); n <= 5; n++ {
		publish(t, p, numbered(1, n, 0))
	}
	wantErr(t, awaitState(t, p.State, StateRecovering), errOverdue)
	proxy.Hold(false)
	await(t, p, p.Next()-1)
	wantStored(t, s.Connect(t), 5)
}

// TestAcksThatDoNotCount feeds acks that a sound broker never sends, or sends too late.
func TestAcksThatDoNotCount(t *testing.T) {
	s := natstest.New(t)
	proxy := natstest.NewProxy(t, s.Addr())
	p := open(t, natstest.Connect(t, proxy.URL()), PublisherOptions{})
	if _, err := p.Fence(testContext(t), fenceFrame(1)); err != nil {
		t.Fatal(err)
	}
	proxy.Hold(true)
	first := publish(t, p, numbered(1, 1, 0))
	publish(t, p, numbered(1, 2, 0))
	ack := func(life, seq, stored uint64) error {
		return p.takeAcks(&nats.Msg{Subject: ackSubject("x", life, seq),
			Data: fmt.Appendf(nil, `{"stream":"%s", "seq":%d}`, testStream, stored)})
	}
	for name, tc := range map[string]struct {
		life, seq, stored uint64
		want              error
	}{
		"earlier life":      {p.life - 1, first, first, nil},
		"other sequence":    {p.life, first, first + 1, errChain},
		"one left out":      {p.life, first + 1, first + 1, errChain},
		"already durable":   {p.life, first - 1, first - 1, errChain},
		"never sent at all": {p.life, first + 9, first + 9, errChain},
	} {
		if err := ack(tc.life, tc.seq, tc.stored); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
	}
	if p.Durable() != first-1 {
		t.Errorf("frames up to %d are durable, want %d", p.Durable(), first-1)
	}
	if err := ack(p.life, first, first); err != nil || p.Durable() != first {
		t.Errorf("a sound ack: %v", err)
	}
}

func TestStreamDeletedUnderThePublisher(t *testing.T) {
	s := natstest.New(t)
	nc := s.Connect(t)
	p, end := running(t, nc, 1, PublisherOptions{})
	publish(t, p, numbered(1, 1, 0))
	await(t, p, p.Next()-1)
	deleteStream(t, nc)
	publish(t, p, numbered(1, 2, 0))
	wantErr(t, end(), ErrStreamLost)
	if _, err := p.Publish(testContext(t), numbered(1, 3, 0)); err == nil {
		t.Error("Publish went on")
	}
}

// TestStreamRecreatedUnderThePublisher has a new stream with the very frames of the old one.
func TestStreamRecreatedUnderThePublisher(t *testing.T) {
	s := natstest.New(t)
	nc := s.Connect(t)
	proxy := natstest.NewProxy(t, s.Addr())
	p, end := running(t, natstest.Connect(t, proxy.URL()), 1, PublisherOptions{})
	deleteStream(t, nc)
	createStream(t, nc, testConfig())
	for range MaxWindowFrames {
		store(t, nc, fenceFrame(1))
	}
	proxy.Cut()
	publish(t, p, numbered(1, 1, 0))
	wantErr(t, end(), ErrStreamLost)
}

// TestStreamRewound restores the broker's files from an old copy.
func TestStreamRewound(t *testing.T) {
	s := natstest.New(t)
	p, end := running(t, s.Connect(t), 1, PublisherOptions{})
	publish(t, p, numbered(1, 1, 0))
	await(t, p, p.Next()-1)
	s.Stop()
	old := copyStore(t, s)
	s.Start(t)
	publish(t, p, numbered(1, 2, 0))
	await(t, p, p.Next()-1)
	s.Stop()
	restoreStore(t, s, old)
	s.Start(t)
	wantErr(t, end(), ErrStreamLost)
}

// TestStreamRewoundAndOvertaken restores an old copy to which another frame was added since, so that only
// its content tells.
func TestStreamRewoundAndOvertaken(t *testing.T) {
	s := natstest.New(t)
	proxy := natstest.NewProxy(t, s.Addr())
	p, end := running(t, natstest.Connect(t, proxy.URL()), 1, PublisherOptions{})
	publish(t, p, numbered(1, 1, 0))
	await(t, p, p.Next()-1)
	s.Stop()
	old := copyStore(t, s)
	s.Start(t)
	publish(t, p, numbered(1, 2, 0))
	await(t, p, p.Next()-1)
	proxy.Refuse(true)
	proxy.Cut()
	s.Stop()
	restoreStore(t, s, old)
	s.Start(t)
	store(t, s.Connect(t), numbered(1, 3, 0))
	proxy.Refuse(false)
	wantErr(t, end(), ErrStreamLost)
}

func copyStore(t *testing.T, s *natstest.Server) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(dir, os.DirFS(s.Dir())); err != nil {
		t.Fatal(err)
	}
	return dir
}

func restoreStore(t *testing.T, s *natstest.Server, dir string) {
	t.Helper()
	if err := os.RemoveAll(s.Dir()); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(s.Dir(), os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
}

// TestFullStreamGoesOnWhenThereIsRoom fills a stream, makes room, and wants all frames in order.
func TestFullStreamGoesOnWhenThereIsRoom(t *testing.T) {
	for name, tc := range map[string]struct {
		server natstest.Options
		o      PublisherOptions
	}{
		"stream": {natstest.Options{}, PublisherOptions{MaxBytes: 100_000}},
		"store":  {natstest.Options{MaxStore: 100_000}, PublisherOptions{}},
	} {
		t.Run(name, func(t *testing.T) {
			s := natstest.NewWith(t, tc.server)
			p, _ := running(t, s.Connect(t), 1, tc.o)
			const last = 300
			reader := newReader(t, s.Connect(t))
			want := check(1, last)
			read := run(t, func(ctx context.Context) error { return reader.Run(ctx, 1, want) })
			end := run(t, func(ctx context.Context) error {
				for n := uint64(1); n <= last; n++ {
					if _, err := p.Publish(ctx, numbered(1, n, 1000)); err != nil {
						return err
					}
				}
				return nil
			})
			if cause := awaitState(t, p.State, StateFull); !isFull(cause) {
				t.Fatalf("cause of a full stream: %v", cause)
			}
			for p.Next() <= MaxWindowFrames+last || p.InFlight() > 0 {
				if err := p.Purge(testContext(t), reader.Stats().Next); err != nil {
					t.Fatal(err)
				}
				if err := pause(testContext(t), 5*time.Millisecond, nil); err != nil {
					t.Fatal(err)
				}
			}
			if err := end(); err != nil {
				t.Fatal(err)
			}
			wantErr(t, read(), errEnough)
		})
	}
}

// TestFullStreamIsTriedWithOneFrame watches what reaches a stream that has no room: not the whole window
// again and again.
func TestFullStreamIsTriedWithOneFrame(t *testing.T) {
	s := natstest.New(t)
	p, _ := running(t, s.Connect(t), 1, PublisherOptions{MaxBytes: 60_000})
	run(t, func(ctx context.Context) error {
		for n := uint64(1); ; n++ {
			if _, err := p.Publish(ctx, numbered(1, n, 1000)); err != nil {
				return err
			}
		}
	})
	awaitState(t, p.State, StateFull)
	sub, err := s.Connect(t).SubscribeSync(Subject(testCluster, testNode, testNode))
	if err != nil {
		t.Fatal(err)
	}
	var first string
	for range 3 {
		m, err := sub.NextMsgWithContext(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		expected := m.Header.Get(jetstream.ExpectedLastSeqHeader)
		if first == "" {
			first = expected
		}
		if expected != first {
			t.Fatalf("frames behind %s and %s were sent", first, expected)
		}
	}
}
