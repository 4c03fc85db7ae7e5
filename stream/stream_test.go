package stream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgbridge/pgbridge/integration/natstest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

func TestMain(m *testing.M) { natstest.Main(m) }

const (
	testCluster = "t"
	testNode    = "a"
	testStream  = "PGB_t_a"
)

// quiet drops the log: interruptions are what most tests here are about.
var quiet = slog.New(slog.DiscardHandler)

// testContext bounds a test, so that one that waits for ever fails with its name.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func testHeader(epoch uint64) wire.Header {
	return wire.Header{
		Cluster: testCluster, Sender: testNode, Origin: origin.Origin{Node: testNode, Epoch: 1}, WriterEpoch: epoch,
	}
}

func fenceFrame(epoch uint64) *wire.Frame {
	f := &wire.Frame{Header: testHeader(epoch)}
	f.Fence = true
	return f
}

// numbered is a frame that carries transaction n, and n in its body too, in size bytes.
func numbered(epoch, n uint64, size int) *wire.Frame {
	f := &wire.Frame{Header: testHeader(epoch), Body: make([]byte, max(size, 8))}
	f.FirstSeq, f.LastSeq = n, n
	binary.BigEndian.PutUint64(f.Body, n)
	return f
}

func number(f *wire.Frame) uint64 { return binary.BigEndian.Uint64(f.Body) }

func open(t testing.TB, nc *nats.Conn, o PublisherOptions) *Publisher {
	t.Helper()
	if o.Cluster == "" {
		o.Cluster, o.Node = testCluster, testNode
	}
	if o.Logger == nil {
		o.Logger = quiet
	}
	if o.AckTimeout == 0 {
		o.AckTimeout = 2 * time.Second
	}
	p, err := OpenPublisher(testContext(t), nc, o)
	for errors.Is(err, errAway) { // a link that was cut is so for a moment before the client knows
		if err = awaitConnected(testContext(t), nc); err == nil {
			p, err = OpenPublisher(testContext(t), nc, o)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// run calls f in a goroutine of its own; the returned function waits for its end and gives its error. At
// the end of the test f's context is cancelled and it is joined.
func run(t testing.TB, f func(ctx context.Context) error) (end func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(testContext(t))
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		err = f(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return func() error { <-done; return err }
}

// running returns a publisher with the fence of epoch, and the end of its Run.
func running(t testing.TB, nc *nats.Conn, epoch uint64, o PublisherOptions) (p *Publisher, end func() error) {
	t.Helper()
	p = open(t, nc, o)
	if _, err := p.Fence(testContext(t), fenceFrame(epoch)); err != nil {
		t.Fatal(err)
	}
	return p, run(t, p.Run)
}

func publish(t testing.TB, p *Publisher, f *wire.Frame) uint64 {
	t.Helper()
	seq, err := p.Publish(testContext(t), f)
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

// await waits until everything up to seq is durable.
func await(t testing.TB, p *Publisher, seq uint64) {
	t.Helper()
	if err := awaitDurable(testContext(t), p, seq); err != nil {
		state, cause := p.State()
		t.Fatalf("frame %d: %v; durable are %d, state %s: %v", seq, err, p.Durable(), state, cause)
	}
}

func awaitDurable(ctx context.Context, p *Publisher, seq uint64) error {
	for {
		changed := p.Changed()
		if p.Durable() >= seq {
			return nil
		}
		if state, cause := p.State(); state == StateStopped {
			return cause
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func newReader(t testing.TB, nc *nats.Conn) *Reader {
	t.Helper()
	r, err := NewReader(nc, ReaderOptions{Cluster: testCluster, Sender: testNode, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var errEnough = errors.New("enough")

// check is an fn for Reader.Run that wants the numbers from first to last, each once and in order, and
// leaves out fences.
func check(first, last uint64) func(context.Context, Message) error {
	next := first
	return func(_ context.Context, m Message) error {
		if m.Frame.Fence {
			return nil
		}
		if n := number(m.Frame); n != next {
			return fmt.Errorf("stream sequence %d: got number %d, want %d", m.Seq, n, next)
		}
		if next++; next > last {
			return errEnough
		}
		return nil
	}
}

// wantStored fails unless the stream holds exactly the numbers 1 to last, behind its fences.
func wantStored(t testing.TB, nc *nats.Conn, last uint64) {
	t.Helper()
	r := newReader(t, nc)
	if err := r.Run(testContext(t), 1, check(1, last)); err != errEnough {
		t.Fatalf("numbers 1 to %d: %v", last, err)
	}
	_, end, _, err := r.Info(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if r.Stats().Next != end {
		t.Errorf("the stream ends with frame %d, number %d is in frame %d", end, last, r.Stats().Next)
	}
}

// wantErr fails unless err is want.
func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

// testConfig is what OpenPublisher creates.
func testConfig() jetstream.StreamConfig {
	p := &Publisher{o: PublisherOptions{Cluster: testCluster, Node: testNode, Origin: testNode}, stream: testStream, subject: Subject(testCluster, testNode, testNode)}
	return p.config()
}

// createStream also waits for the server to be through with the files of a stream that was just deleted,
// which it removes after its answer.
func createStream(t testing.TB, nc *nats.Conn, c jetstream.StreamConfig) {
	t.Helper()
	const filesInTheWay = 10049
	ctx := testContext(t)
	for {
		_, err := newAPI(nc, "").create(ctx, c)
		if hasCode(err, filesInTheWay) && pause(ctx, minBackoff, nil) == nil {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
}

func deleteStream(t testing.TB, nc *nats.Conn) {
	t.Helper()
	if err := newAPI(nc, "").ask(testContext(t), "STREAM.DELETE."+testStream, nil, nil); err != nil {
		t.Fatal(err)
	}
}

// store publishes frames past every check, as a faulty or malicious writer would.
func store(t testing.TB, nc *nats.Conn, frames ...*wire.Frame) {
	t.Helper()
	for _, f := range frames {
		data, err := (&wire.Encoder{}).Append(nil, f)
		if err != nil {
			t.Fatal(err)
		}
		storeBytes(t, nc, data)
	}
}

func storeBytes(t testing.TB, nc *nats.Conn, data []byte) {
	t.Helper()
	m, err := nc.RequestWithContext(testContext(t), Subject(testCluster, testNode, testNode), data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newAckParser(testStream).read(m); err != nil {
		t.Fatal(err)
	}
}

// awaitState waits until a Publisher or Reader is in a state. There is no event for it: it is for people.
func awaitState(t testing.TB, state func() (string, error), want string) error {
	t.Helper()
	ctx := testContext(t)
	for {
		got, cause := state()
		if got == want {
			return cause
		}
		if err := pause(ctx, 5*time.Millisecond, nil); err != nil {
			t.Fatalf("state %s: %v; want %s", got, cause, want)
		}
	}
}
