package stream

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/integration/natstest"
	"github.com/pgbridge/pgbridge/wire"
)

func TestReaderBeginsWhereItIsTold(t *testing.T) {
	s := natstest.New(t)
	nc := s.Connect(t)
	createStream(t, nc, testConfig())
	for n := uint64(1); n <= 200; n++ {
		store(t, nc, numbered(1, n, 0))
	}
	for _, from := range []uint64{1, 2, 63, 64, 65, 150, 200} {
		if err := newReader(t, nc).Run(testContext(t), from, check(from, 200)); err != errEnough {
			t.Errorf("from %d: %v", from, err)
		}
	}
	if err := newReader(t, nc).Run(testContext(t), 0, check(1, 1)); err == nil || err == errEnough {
		t.Errorf("from 0: %v", err)
	}
}

// TestReaderAtTheEndWaits begins behind the last frame and sees what comes then.
func TestReaderAtTheEndWaits(t *testing.T) {
	s := natstest.New(t)
	p, _ := running(t, s.Connect(t), 1, PublisherOptions{})
	r := newReader(t, s.Connect(t))
	end := run(t, func(ctx context.Context) error { return r.Run(ctx, p.Next(), check(1, 100)) })
	if cause := awaitState(t, r.State, StateReading); cause != nil {
		t.Error(cause)
	}
	for n := uint64(1); n <= 100; n++ {
		publish(t, p, numbered(1, n, 0))
	}
	wantErr(t, end(), errEnough)
	if st := r.Stats(); st.Frames != 99 || st.Next != p.Next()-1 || st.Reopened != 0 {
		t.Errorf("%+v", st)
	}
	if state, err := r.State(); state != StateStopped || err != errEnough {
		t.Errorf("state %s: %v", state, err)
	}
}

func TestReaderEndsWithItsContext(t *testing.T) {
	s := natstest.New(t)
	createStream(t, s.Connect(t), testConfig())
	r := newReader(t, s.Connect(t))
	ctx, cancel := context.WithCancel(testContext(t))
	end := run(t, func(context.Context) error { return r.Run(ctx, 1, check(1, 1)) })
	awaitState(t, r.State, StateReading)
	cancel()
	wantErr(t, end(), context.Canceled)
}

// TestReaderWaitsForServerAndStream has neither at first.
func TestReaderWaitsForServerAndStream(t *testing.T) {
	s := natstest.New(t)
	s.Stop()
	nc, err := Connect(ConnectOptions{URL: s.URL(), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	r := newReader(t, nc)
	end := run(t, func(ctx context.Context) error { return r.Run(ctx, 1, check(1, 3)) })
	if cause := awaitState(t, r.State, StateWaiting); cause == nil {
		awaitState(t, func() (string, error) {
			state, cause := r.State()
			if cause == nil {
				return "waiting without a cause", nil
			}
			return state, cause
		}, StateWaiting)
	}
	s.Start(t)
	awaitState(t, func() (string, error) {
		_, cause := r.State()
		if cause != nil && strings.Contains(cause.Error(), "does not exist") {
			return "absent", cause
		}
		return "", cause
	}, "absent")
	other := s.Connect(t)
	createStream(t, other, testConfig())
	store(t, other, numbered(1, 1, 0), numbered(1, 2, 0), numbered(1, 3, 0))
	wantErr(t, end(), errEnough)
}

func TestPurgeUnderASlowReader(t *testing.T) {
	s := natstest.New(t)
	p, _ := running(t, s.Connect(t), 1, PublisherOptions{})
	first := p.Next()
	for n := uint64(1); n <= 3; n++ {
		publish(t, p, numbered(1, n, 0))
	}
	await(t, p, first+2)
	r := newReader(t, s.Connect(t))
	at, release := make(chan struct{}), make(chan struct{})
	end := run(t, func(ctx context.Context) error {
		return r.Run(ctx, first, func(ctx context.Context, m Message) error {
			if m.Seq == first {
				close(at)
				<-release
			}
			return nil
		})
	})
	<-at
	// What is in the reader's buffer is delivered; what is not is gone.
	last := first + 2
	for n := uint64(4); last-first < 3*fetchFrames; n++ {
		last = publish(t, p, numbered(1, n, 0))
	}
	await(t, p, last)
	if err := p.Purge(testContext(t), last); err != nil {
		t.Fatal(err)
	}
	close(release)
	err := end()
	var gap *GapError
	if !errors.As(err, &gap) || !errors.Is(err, ErrGap) || gap.First != last || gap.Need != r.Stats().Next {
		t.Errorf("got %v, next was %d, the stream begins with %d", err, r.Stats().Next, last)
	}
}

func TestReaderBelowTheStreamsFirst(t *testing.T) {
	s := natstest.New(t)
	p, _ := running(t, s.Connect(t), 1, PublisherOptions{})
	await(t, p, publish(t, p, numbered(1, 1, 0)))
	if err := p.Purge(testContext(t), p.Durable()); err != nil {
		t.Fatal(err)
	}
	err := newReader(t, s.Connect(t)).Run(testContext(t), 5, check(1, 1))
	var gap *GapError
	if !errors.As(err, &gap) || gap.Need != 5 || gap.First != p.Durable() {
		t.Errorf("got %v", err)
	}
}

// TestReaderOfAnEmptiedStream has no frame from which a gap could be seen.
func TestReaderOfAnEmptiedStream(t *testing.T) {
	s := natstest.New(t)
	nc := s.Connect(t)
	createStream(t, nc, testConfig())
	store(t, nc, numbered(1, 1, 0), numbered(1, 2, 0), numbered(1, 3, 0))
	if err := newAPI(nc, "").purge(testContext(t), testStream, 100); err != nil {
		t.Fatal(err)
	}
	err := newReader(t, nc).Run(testContext(t), 2, check(2, 3))
	wantErr(t, err, ErrGap)
}

// TestFrameDeletedByHand has a hole that the broker's consumers step over in silence.
func TestFrameDeletedByHand(t *testing.T) {
	s := natstest.New(t)
	nc := s.Connect(t)
	createStream(t, nc, testConfig())
	for n := uint64(1); n <= 5; n++ {
		store(t, nc, numbered(1, n, 0))
	}
	req := struct {
		Seq uint64 `json:"seq"`
	}{3}
	if err := newAPI(nc, "").ask(testContext(t), "STREAM.MSG.DELETE."+testStream, req, nil); err != nil {
		t.Fatal(err)
	}
	err := newReader(t, nc).Run(testContext(t), 1, check(1, 5))
	var gap *GapError
	if !errors.As(err, &gap) || gap.Need != 3 || gap.First != 4 {
		t.Errorf("got %v", err)
	}
}

func TestStreamRecreatedUnderTheReader(t *testing.T) {
	s := natstest.New(t)
	nc := s.Connect(t)
	createStream(t, nc, testConfig())
	store(t, nc, numbered(1, 1, 0))
	r := newReader(t, s.Connect(t))
	end := run(t, func(ctx context.Context) error {
		return r.Run(ctx, 1, func(context.Context, Message) error { return nil })
	})
	awaitRead(t, r, 1)
	deleteStream(t, nc)
	awaitState(t, r.State, StateWaiting)
	createStream(t, nc, testConfig())
	store(t, nc, numbered(1, 1, 0), numbered(1, 2, 0), numbered(1, 3, 0))
	wantErr(t, end(), ErrStreamChanged)
}

// awaitRead waits until a reader has delivered the frame seq.
func awaitRead(t testing.TB, r *Reader, seq uint64) {
	t.Helper()
	awaitState(t, func() (string, error) {
		if r.Stats().Next > seq {
			return "read", nil
		}
		return "", nil
	}, "read")
}

// TestStreamRewoundUnderTheReader restores the broker's files from an old copy, with and without other
// frames where the lost ones were.
func TestStreamRewoundUnderTheReader(t *testing.T) {
	for name, added := range map[string][]*wire.Frame{
		"shorter": nil,
		"longer":  {numbered(1, 7, 0), numbered(1, 8, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			s := natstest.New(t)
			proxy := natstest.NewProxy(t, s.Addr())
			nc := s.Connect(t)
			createStream(t, nc, testConfig())
			store(t, nc, numbered(1, 1, 0))
			s.Stop()
			old := copyStore(t, s)
			s.Start(t)
			store(t, s.Connect(t), numbered(1, 2, 0))
			r := newReader(t, natstest.Connect(t, proxy.URL()))
			end := run(t, func(ctx context.Context) error {
				return r.Run(ctx, 1, func(context.Context, Message) error { return nil })
			})
			awaitRead(t, r, 2)
			proxy.Refuse(true)
			proxy.Cut()
			s.Stop()
			restoreStore(t, s, old)
			s.Start(t)
			store(t, s.Connect(t), added...)
			proxy.Refuse(false)
			wantErr(t, end(), ErrStreamChanged)
		})
	}
}

// TestRememberedPositionIsChecked restarts a reader with what it remembered of its position.
func TestRememberedPositionIsChecked(t *testing.T) {
	s := natstest.New(t)
	nc := s.Connect(t)
	createStream(t, nc, testConfig())
	store(t, nc, numbered(1, 1, 0), numbered(1, 2, 0), numbered(1, 3, 0))
	var at Message
	err := newReader(t, nc).Run(testContext(t), 1, func(_ context.Context, m Message) error {
		if at = m; m.Seq == 2 {
			return errEnough
		}
		return nil
	})
	wantErr(t, err, errEnough)
	_, _, created, err := newReader(t, nc).Info(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		o    ReaderOptions
		want error
	}{
		"same":    {ReaderOptions{Created: created, Sum: at.Sum, WriterEpoch: 1}, errEnough},
		"created": {ReaderOptions{Created: created.Add(time.Second)}, ErrStreamChanged},
		"sum":     {ReaderOptions{Created: created, Sum: at.Sum + 1}, ErrStreamChanged},
	} {
		tc.o.Cluster, tc.o.Sender, tc.o.Logger = testCluster, testNode, quiet
		r, err := NewReader(nc, tc.o)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Run(testContext(t), 3, check(3, 3)); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
	}
	r, err := NewReader(nc, ReaderOptions{Cluster: testCluster, Sender: testNode, WriterEpoch: 2, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	end := run(t, func(ctx context.Context) error { return r.Run(ctx, 3, check(4, 4)) })
	store(t, nc, numbered(2, 4, 0))
	wantErr(t, end(), errEnough)
	if r.Stats().Skipped != 1 {
		t.Errorf("%+v: a frame below the remembered writer epoch counts", r.Stats())
	}
}

func TestReaderRefusesWhatIsNotItsSenders(t *testing.T) {
	newer, err := (&wire.Encoder{}).Append(nil, numbered(1, 1, 0))
	if err != nil {
		t.Fatal(err)
	}
	newer[4] = wire.Version + 1
	for name, tc := range map[string]struct {
		change func(*wire.Frame)
		raw    []byte
		want   error
		text   []string
	}{
		"cluster": {change: func(f *wire.Frame) { f.Cluster = "other" }, want: ErrForeignStream, text: []string{`"other"`, `"t"`}},
		"sender":  {change: func(f *wire.Frame) { f.Sender = "b" }, want: ErrForeignStream, text: []string{`"b"`, `"a"`}},
		"corrupt": {raw: []byte("no frame at all"), want: wire.ErrCorrupt, text: []string{testStream, "frame 1 "}},
		"empty":   {raw: []byte{}, want: wire.ErrCorrupt, text: []string{testStream}},
		"version": {raw: newer, want: wire.ErrVersion, text: []string{testStream}},
	} {
		t.Run(name, func(t *testing.T) {
			s := natstest.New(t)
			nc := s.Connect(t)
			createStream(t, nc, testConfig())
			if tc.change != nil {
				f := numbered(1, 1, 0)
				tc.change(f)
				store(t, nc, f)
			} else {
				storeBytes(t, nc, tc.raw)
			}
			err := newReader(t, nc).Run(testContext(t), 1, check(1, 1))
			wantErr(t, err, tc.want)
			for _, text := range tc.text {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%q does not name %s", err, text)
				}
			}
		})
	}
}

// TestLargeFrames has frames near the largest payload, of which few fit what is fetched at once.
func TestLargeFrames(t *testing.T) {
	s := natstest.NewWith(t, natstest.Options{MaxPayload: 8 << 20})
	p, _ := running(t, s.Connect(t), 1, PublisherOptions{})
	for n := uint64(1); n <= 4; n++ {
		publish(t, p, numbered(1, n, p.MaxBody()-int(n)))
	}
	await(t, p, p.Next()-1)
	wantStored(t, s.Connect(t), 4)
}

// TestBlockedReaderBuffersLittle blocks fn while far more than a fetch is in the stream.
func TestBlockedReaderBuffersLittle(t *testing.T) {
	s := natstest.New(t)
	p, _ := running(t, s.Connect(t), 1, PublisherOptions{})
	first := p.Next()
	const size, last = 100 << 10, 150
	for n := uint64(1); n <= last; n++ {
		publish(t, p, numbered(1, n, size))
	}
	await(t, p, p.Next()-1)
	nc := s.Connect(t)
	r := newReader(t, nc)
	want := check(1, last)
	at, release := make(chan struct{}), make(chan struct{})
	end := run(t, func(ctx context.Context) error {
		return r.Run(ctx, first, func(ctx context.Context, m Message) error {
			if m.Seq == first+1 {
				close(at)
				<-release
			}
			return want(ctx, m)
		})
	})
	<-at
	for range 5 { // each makes sure that what was on its way has come
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if in := nc.Stats().InBytes; in > defaultFetchBytes+(MaxWindowFrames+2)*size {
		t.Errorf("%d bytes came to a reader that is blocked", in)
	}
	close(release)
	wantErr(t, end(), errEnough)
}

func TestGet(t *testing.T) {
	s := natstest.New(t)
	nc := s.Connect(t)
	createStream(t, nc, testConfig())
	store(t, nc, numbered(1, 1, 0), numbered(1, 2, 0))
	r := newReader(t, nc)
	f, err := r.Get(testContext(t), 2)
	if err != nil || number(f) != 2 {
		t.Errorf("frame 2: %v", err)
	}
	_, err = r.Get(testContext(t), 3)
	wantErr(t, err, ErrNoFrame)
}
