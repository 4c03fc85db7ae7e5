package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgbridge/pgbridge/wire"
)

const (
	// MaxWindowFrames bounds the frames in flight. A fence reaches just as far (see Fence), so it is part
	// of what bridges of one node must agree on, whatever their versions.
	MaxWindowFrames = 64

	defaultWindowBytes = 8 << 20
	// defaultAckTimeout is time for one frame over a link of 100 kB/s.
	defaultAckTimeout = 10 * time.Second

	// headerRoom is what a frame's own header and the message's headers may take beside the body, in
	// bytes: two vectors of 64 origins and more.
	headerRoom = 8 << 10
	// messageRoom is the message's headers' part of that.
	messageRoom = 256
)

// PublisherOptions say whose stream is written, and how.
type PublisherOptions struct {
	Cluster, Node string
	// Origin is the node whose frames the stream holds; empty: Node itself. Another one's are handed on: all of them can
	// be had again elsewhere, so that the broker need not sync them.
	Origin       string
	Shadow       bool          // the stream is that of a node in shadow mode
	Domain       string        // of JetStream; empty: the broker's own
	Replicas     int           // of the stream; 0: one, or as many as it has
	MaxBytes     int64         // of the stream on disk; 0: no limit of its own
	FirstSeq     uint64        // of a new stream; 0: 1. A recreated one begins far behind the old one's last
	WindowFrames int           // in flight, at most MaxWindowFrames; 0: MaxWindowFrames
	WindowBytes  int64         // in flight; 0: 8 MiB. One frame may be larger
	AckTimeout   time.Duration // without any ack while frames wait; 0: 10 s
	Zstd         bool
	Signer       *wire.Signer // of own frames; nil: they are not signed
	// Notes are what readers must know of the writer before they read: Reader.Notes. They stay with the stream.
	Notes  map[string]string
	Logger *slog.Logger // nil: slog.Default()
}

func (o *PublisherOptions) setDefaults() {
	if o.Origin == "" {
		o.Origin = o.Node
	}
	if o.WindowFrames == 0 {
		o.WindowFrames = MaxWindowFrames
	}
	if o.WindowBytes == 0 {
		o.WindowBytes = defaultWindowBytes
	}
	if o.AckTimeout == 0 {
		o.AckTimeout = defaultAckTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
}

// Validate checks the options, each and all together.
func (o *PublisherOptions) Validate() error {
	if err := errors.Join(checkName("cluster", o.Cluster), checkName("node", o.Node), checkName("origin", cmp.Or(o.Origin, o.Node))); err != nil {
		return err
	}
	switch {
	case o.WindowFrames < 0 || o.WindowFrames > MaxWindowFrames:
		return fmt.Errorf("window of %d frames: it is 1 to %d", o.WindowFrames, MaxWindowFrames)
	case o.WindowBytes < 0 || o.MaxBytes < 0 || o.AckTimeout < 0:
		return errors.New("window bytes, stream bytes and ack timeout are not negative")
	case o.Replicas < 0 || o.Replicas > 5:
		return fmt.Errorf("%d replicas: a stream has 1 to 5", o.Replicas)
	}
	return nil
}

// Publisher writes one node's stream. Its life: OpenPublisher, Fence, then Publish in one goroutine and
// Run in another, Close. Safe for concurrent use; frames are stored in the order of Publish calls.
type Publisher struct {
	o       PublisherOptions
	api     api
	stream  string
	subject string
	created time.Time // of the stream
	inbox   string    // acks come to <inbox>.<life>.<sequence>
	acks    chan *nats.Msg
	sub     *nats.Subscription
	parse   ackParser

	publishing sync.Mutex // one Publish at a time; guards what follows
	encoder    wire.Encoder
	ahead      ahead
	epoch      uint64 // ours, since Fence; also read under mu

	// sending keeps frames on the wire in the order of their sequences. It is taken before mu, and held
	// while the connection takes a frame, which mu never is.
	sending sync.Mutex
	message nats.Msg // reused for each frame; guarded by sending

	failed chan struct{} // capacity 1: a send did not work, Run must recover
	done   chan struct{} // closed when end is set

	durable    atomic.Uint64 // = window.durable
	maxPayload atomic.Int64
	raised     atomic.Bool // the stream's max_bytes is above what is configured

	mu       sync.Mutex // guards what follows
	window   window
	tail     tail
	fences   span          // of frames; what Fence wrote
	life     uint64        // raised whenever sending stops: acks of an earlier life do not count
	live     bool          // frames are sent as they come
	running  bool          // Run has been called
	state    string        // one of the states below
	cause    error         // of the state, if it is not a good one
	end      error         // why nothing can be published any more
	acked    time.Time     // when the last ack came, or sending began again
	changed  chan struct{} // closed at the next change of durable or end; nil: nobody waits
	recovers int           // recoveries since the last ack
}

// The states that Publisher.State tells.
const (
	StateIdle       = "idle"       // before Fence
	StatePublishing = "publishing" // frames go out as they come
	StateRecovering = "recovering" // the broker is away, or what it has stored is being compared
	StateFull       = "full"       // the broker has no room; frames wait
	StateStopped    = "stopped"    // for good
)

// span is a range of stream sequences, both ends included; zero: none.
type span struct{ first, last uint64 }

// OpenPublisher creates the node's stream, or checks the one that is there, and reads its tail from the
// leader. nc stays the caller's. ErrForeignStream: the stream is not this node's. A broker that cannot
// be reached is an error here; see CheckBroker for a better text.
func OpenPublisher(ctx context.Context, nc *nats.Conn, o PublisherOptions) (*Publisher, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o.setDefaults()
	p := &Publisher{
		o: o, api: newAPI(nc, o.Domain), stream: streamOf(o.Cluster, o.Node, o.Origin), subject: Subject(o.Cluster, o.Node, o.Origin),
		inbox: nc.NewInbox(), acks: make(chan *nats.Msg, 4*MaxWindowFrames),
		encoder: wire.Encoder{Zstd: o.Zstd, Signer: o.Signer}, ahead: newAhead(AheadSubject(o.Cluster, o.Node, o.Origin), o.Signer),
		failed: make(chan struct{}, 1), done: make(chan struct{}), state: StateIdle,
	}
	if o.Shadow {
		p.stream, p.subject = ShadowName(o.Cluster, o.Node), Subject(o.Cluster, o.Node, shadow)
	}
	p.message.Header = nats.Header{jetstream.ExpectedLastSeqHeader: {""}}
	p.parse = newAckParser(p.stream)
	st, err := p.openStream(ctx)
	if err != nil {
		return nil, err
	}
	p.created = st.Created
	p.maxPayload.Store(nc.MaxPayload())
	if err := p.readTail(ctx); err != nil {
		return nil, err
	}
	if p.sub, err = nc.ChanSubscribe(p.inbox+".>", p.acks); err != nil {
		return nil, fmt.Errorf("subscribe to the acks of stream %s: %w", p.stream, err)
	}
	return p, nil
}

// Close ends the publisher: Publish and Run return. Frames that are not durable are forgotten. Closing
// twice is legal.
func (p *Publisher) Close() {
	p.stop(ErrStopped)
	_ = p.sub.Unsubscribe() // fails only if the connection is gone already
}

// Tail returns the last frame that counts and its stream sequence: the state to go on from. Behind it may
// stand what an older bridge wrote after the fence of a newer one, which counts for nothing. nil if the
// stream is empty; the sequence is then that of the last message it ever had. Fence moves the tail.
func (p *Publisher) Tail() (streamSeq uint64, f *wire.Frame) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tail.seq, p.tail.frame
}

// Publish gives f the next stream sequence and sends it; the frame must not be changed until it returns.
// It waits while the window is full, as it gets when the broker is away, and returns before the frame is
// durable. Nothing has happened on an error, which is ctx's, ErrFrameTooLarge (a smaller frame may
// follow) or the one that Run ended with.
func (p *Publisher) Publish(ctx context.Context, f *wire.Frame) (streamSeq uint64, err error) {
	p.publishing.Lock()
	defer p.publishing.Unlock()
	if f.Fence || f.WriterEpoch != p.epoch || p.epoch == 0 {
		return 0, fmt.Errorf("publish on stream %s: frame of writer epoch %d (fence: %t), the fence in force has %d",
			p.stream, f.WriterEpoch, f.Fence, p.epoch)
	}
	data, err := p.encode(f)
	if err != nil {
		return 0, err
	}
	for {
		seq, full, err := p.offer(data)
		if full == nil {
			return seq, err
		}
		select {
		case <-full:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// encode needs publishing held. The bytes belong to the window once they are pushed.
func (p *Publisher) encode(f *wire.Frame) ([]byte, error) {
	if f.Cluster != p.o.Cluster || f.Sender != p.o.Node || f.Origin.Node != p.o.Origin {
		return nil, fmt.Errorf("publish on stream %s: frame of cluster %q, sender %q, origin %s", p.stream, f.Cluster, f.Sender, f.Origin)
	}
	p.mu.Lock()
	buf := p.window.buffer(len(f.Body) + headerRoom/8)
	p.mu.Unlock()
	data, err := p.encoder.Append(buf, f)
	if err != nil {
		return nil, fmt.Errorf("publish on stream %s: %w", p.stream, err)
	}
	if limit := p.maxPayload.Load(); int64(len(data))+messageRoom > limit {
		return nil, p.tooLarge(len(data), limit)
	}
	return data, nil
}

func (p *Publisher) tooLarge(size int, limit int64) error {
	return fmt.Errorf("publish %d bytes on stream %s: %w of %d bytes; raise max_payload of the broker at %s to %d or more",
		size, p.stream, ErrFrameTooLarge, limit, brokerName(p.api.nc), size+messageRoom)
}

// offer puts a frame into the window and sends it if sending is on. If there is no room it returns a
// channel that is closed when that may have changed.
func (p *Publisher) offer(data []byte) (seq uint64, full <-chan struct{}, err error) {
	p.sending.Lock()
	defer p.sending.Unlock()
	p.mu.Lock()
	if p.end != nil {
		defer p.mu.Unlock()
		return 0, nil, p.end
	}
	if !p.window.hasRoom(len(data), p.o.WindowFrames, p.o.WindowBytes) {
		defer p.mu.Unlock()
		return 0, p.changedLocked(), nil
	}
	f := p.window.push(data, time.Now())
	live, life := p.live, p.life
	p.mu.Unlock()
	if live && p.send(f, life) != nil {
		p.signalFailure()
	}
	return f.seq, nil, nil
}

// send needs sending held. Its error says that the connection did not take the frame.
func (p *Publisher) send(f pending, life uint64) error {
	var num [20]byte
	p.message.Header[jetstream.ExpectedLastSeqHeader][0] = string(strconv.AppendUint(num[:0], f.seq-1, 10))
	p.message.Subject, p.message.Data = p.subject, f.data
	p.message.Reply = ackSubject(p.inbox, life, f.seq)
	return p.api.nc.PublishMsg(&p.message)
}

func (p *Publisher) signalFailure() {
	select {
	case p.failed <- struct{}{}:
	default: // one is waiting already
	}
}

// Durable returns the highest stream sequence up to which everything is stored and acknowledged.
func (p *Publisher) Durable() uint64 { return p.durable.Load() }

// Changed returns a channel that is closed at the next change of Durable, or when the publisher ends.
// Take it before asking Durable, or a change in between goes unseen.
func (p *Publisher) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changedLocked()
}

func (p *Publisher) changedLocked() <-chan struct{} {
	if p.changed == nil {
		p.changed = make(chan struct{})
	}
	return p.changed
}

// notify needs mu held.
func (p *Publisher) notify() {
	p.durable.Store(p.window.durable)
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}

// Next returns the stream sequence that the next frame will get.
func (p *Publisher) Next() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.window.next
}

// InFlight returns how many frames are not durable yet.
func (p *Publisher) InFlight() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.window.waiting())
}

// MaxBody returns the largest body of a frame, in bytes, that the broker's max_payload allows. It can
// change when the broker was away.
func (p *Publisher) MaxBody() int { return int(p.maxPayload.Load()) - headerRoom }

// State returns one of the states above and, unless it is a good one, why. For status.
func (p *Publisher) State() (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state, p.cause
}

// stop ends the publisher for good, with the first error that is given.
func (p *Publisher) stop(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.end == nil {
		p.end, p.cause, p.state, p.live = err, err, StateStopped, false
		p.life++
		close(p.done)
	}
	p.notify()
}
