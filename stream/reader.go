package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// ReaderOptions say whose stream is read.
type ReaderOptions struct {
	Cluster, Sender string
	Origin          string         // whose frames are read; empty: the sender's own
	Shadow          bool           // the sender's stream of shadow mode is read
	Domain          string         // of JetStream at the sender's broker; empty: the broker's own
	Ahead           bool           // take also what the stream has not stored yet, as far as it comes
	Verifier        *wire.Verifier // of what Run delivers; nil: it is delivered as it is
	FetchBytes      int64          // on the way and in memory before fn; 0: 4 MiB, raised to two of the largest messages

	// What was remembered with the position from-1; zero values are not checked.
	Created     time.Time // of the stream
	Sum         uint32    // Message.Sum of frame from-1
	WriterEpoch uint64    // the highest seen up to from-1

	Logger *slog.Logger // nil: slog.Default()
}

// Message is a frame with its place in the stream.
type Message struct {
	Seq   uint64      // stream sequence
	Frame *wire.Frame // the receiver owns it
	Size  int         // bytes, as stored
	Sum   uint32      // its CRC: with Seq it says where a reader stands
	// Ahead: not stored yet, and not the whole frame perhaps. Seq is then the first one that has not been delivered
	// from the stream, where all of this will stand or, if the sender's broker loses it, stand again.
	Ahead bool
}

// ReaderStats counts what a Reader has done.
type ReaderStats struct {
	Next     uint64 // the stream sequence that is delivered next; 0 before Run
	Frames   uint64 // delivered
	Bytes    uint64 // of these, as stored
	Aheads   uint64 // messages delivered before the stream had stored them
	Skipped  uint64 // not delivered, as a newer writer's fence stands before them
	Reopened uint64 // how often reading began anew after an interruption
}

// Reader reads another node's stream. Safe for concurrent use, but Run is called once at a time.
type Reader struct {
	o      ReaderOptions
	api    api
	stream string

	mu      sync.Mutex // guards what follows
	state   string
	cause   error
	decoder wire.Decoder // of Get and Find

	next, frames, bytes, aheads, skipped, reopened atomic.Uint64
}

// The states that Reader.State tells, beside StateIdle and StateStopped.
const (
	StateReading = "reading" // frames are delivered as they come
	StateWaiting = "waiting" // for the broker or the stream; it is retried
)

// NewReader returns a reader of the stream of o.Sender on nc, which stays the caller's. It makes no
// request yet.
func NewReader(nc *nats.Conn, o ReaderOptions) (*Reader, error) {
	if err := errors.Join(checkName("cluster", o.Cluster), checkName("sender", o.Sender), checkName("origin", cmp.Or(o.Origin, o.Sender))); err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	o.Origin = cmp.Or(o.Origin, o.Sender)
	r := &Reader{o: o, api: newAPI(nc, o.Domain), stream: streamOf(o.Cluster, o.Sender, o.Origin), state: StateIdle}
	if o.Shadow {
		r.stream = ShadowName(o.Cluster, o.Sender)
	}
	return r, nil
}

// subjectOf is where the sender publishes the frames of o.
func (r *Reader) subjectOf(o origin.Origin) string {
	if r.o.Shadow {
		return Subject(r.o.Cluster, r.o.Sender, shadow)
	}
	return Subject(r.o.Cluster, r.o.Sender, o.Node)
}

// State returns one of the states and, unless it is a good one, why. For status.
func (r *Reader) State() (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state, r.cause
}

// Stats returns the counters.
func (r *Reader) Stats() ReaderStats {
	return ReaderStats{
		Next: r.next.Load(), Frames: r.frames.Load(), Bytes: r.bytes.Load(), Aheads: r.aheads.Load(),
		Skipped: r.skipped.Load(), Reopened: r.reopened.Load(),
	}
}

func (r *Reader) note(state string, cause error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state, r.cause = state, cause
}

// Run calls fn for each frame with a stream sequence of from or higher, once and in order, one at a time.
// Frames that an older writer stored behind a newer one's fence are left out, so the sequences that fn
// sees rise but may jump there. With ReaderOptions.Ahead, fn also gets what the stream is about to store, in the same
// order, and then gets it again from there. A broker or stream that is away is waited for.
//
// Run returns what fn or ctx ended with, a GapError if the next frame is gone, ErrStreamChanged,
// ErrForeignStream for a frame of another cluster or sender, wire.ErrCorrupt or wire.ErrVersion.
func (r *Reader) Run(ctx context.Context, from uint64, fn func(ctx context.Context, m Message) error) error {
	if from == 0 {
		return fmt.Errorf("read stream %s: frames are numbered from 1", r.stream)
	}
	nc := r.api.nc
	w := walk{
		r: r, fn: fn, next: from, epoch: r.o.WriterEpoch, sum: r.o.Sum, created: r.o.Created,
		status: nc.StatusChanged(nats.CONNECTED, nats.CLOSED),
	}
	defer nc.RemoveStatusListener(w.status)
	r.next.Store(from)
	r.note(StateWaiting, nil)
	err := w.run(ctx)
	r.note(StateStopped, err)
	return err
}

// walk is one Run.
type walk struct {
	r      *Reader
	fn     func(ctx context.Context, m Message) error
	status chan nats.Status // wakes a retry when the connection is back
	dec    wire.Decoder

	next    uint64      // the sequence to deliver next
	epoch   uint64      // the highest writer epoch seen
	sum     uint32      // CRC of frame next-1; 0: unknown
	created time.Time   // of the stream; zero: not met yet
	settled bool        // epoch is that of frame next-1 or the highest before it
	part    part        // of the frame that is coming ahead
	head    wire.Header // of frame next-1, if frames are checked
	whole   uint64      // up to this sequence all frames from next on came ahead; below next: none did
}

// retryError is what may be better next time.
type retryError struct{ error }

func (e retryError) Unwrap() error { return e.error }

func (w *walk) run(ctx context.Context) error {
	log := w.r.o.Logger.With("stream", w.r.stream)
	for retry := 0; ; retry++ {
		before := w.next
		err := w.attempt(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if again := (retryError{}); !errors.As(err, &again) || w.r.api.nc.IsClosed() {
			return err
		}
		w.r.note(StateWaiting, err)
		w.r.reopened.Add(1)
		if w.next != before {
			retry = 0
		}
		if retry == 0 {
			log.Info("reading interrupted", "stream_seq", w.next, "err", err)
		}
		if err := pause(ctx, backoff(retry), w.status); err != nil {
			return err
		}
	}
}

// attempt reads until something is in the way.
func (w *walk) attempt(ctx context.Context) error {
	begin, err := w.begin(ctx)
	if err != nil {
		return err
	}
	c, err := openCursor(ctx, w.r.api, w.r.stream, begin, w.r.o.FetchBytes)
	if err != nil {
		return retryError{err}
	}
	defer c.close()
	if w.r.o.Ahead {
		if err := c.listen(AheadSubject(w.r.o.Cluster, w.r.o.Sender, w.r.o.Origin)); err != nil {
			return retryError{err}
		}
	}
	w.r.note(StateReading, nil)
	for {
		seq, data, ahead, err := c.take(ctx)
		if err != nil {
			return retryError{fmt.Errorf("read frame %d of stream %s: %w", w.next, w.r.stream, err)}
		}
		switch {
		case ahead != nil:
			err = w.ahead(ctx, ahead)
		case seq < w.next:
			err = w.lookAt(seq, data)
		case seq == w.next:
			err = w.deliver(ctx, data)
		default:
			err = w.hole(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// begin checks that the stream is the one that we know, and says where to read from: before next, so that
// frame next-1 can be compared and, the first time, the writer epoch be found.
func (w *walk) begin(ctx context.Context) (uint64, error) {
	st, err := w.r.api.stream(ctx, w.r.stream)
	if IsNoStream(err) {
		return 0, retryError{fmt.Errorf("stream %s does not exist at %s yet", w.r.stream, brokerName(w.r.api.nc))}
	}
	if err != nil {
		return 0, retryError{err}
	}
	switch {
	case !w.created.IsZero() && !st.Created.Equal(w.created):
		return 0, fmt.Errorf("stream %s was created %v, the one read up to frame %d was created %v: %w", w.r.stream,
			st.Created, w.next-1, w.created, ErrStreamChanged)
	case st.State.LastSeq+1 < w.next:
		return 0, fmt.Errorf("stream %s ends with frame %d, it was read up to frame %d: %w", w.r.stream,
			st.State.LastSeq, w.next-1, ErrStreamChanged)
	case st.State.FirstSeq > w.next:
		return 0, &GapError{w.r.stream, w.next, st.State.FirstSeq}
	}
	w.created = st.Created
	begin := max(w.next-1, 1)
	if !w.settled {
		begin = lookback(w.next)
	}
	return min(max(begin, st.State.FirstSeq, 1), w.next), nil
}

// lookAt takes a frame before next. It has been read already, or is below what we were asked for.
func (w *walk) lookAt(seq uint64, data []byte) error {
	if seq == w.next-1 && w.sum != 0 && checksum(data) != w.sum {
		return fmt.Errorf("frame %d of stream %s has CRC %08x, the one that was read had %08x: %w", seq, w.r.stream,
			checksum(data), w.sum, ErrStreamChanged)
	}
	if w.settled {
		return nil
	}
	f, err := w.decode(seq, data)
	if err != nil {
		return err
	}
	w.epoch = max(w.epoch, f.WriterEpoch)
	return nil
}

func (w *walk) decode(seq uint64, data []byte) (*wire.Frame, error) {
	return decodeOf(&w.dec, w.r.o.Cluster, w.r.o.Sender, w.r.stream, seq, data)
}

func (w *walk) deliver(ctx context.Context, data []byte) error {
	f, err := w.decode(w.next, data)
	if err != nil {
		return err
	}
	w.settled = true
	if f.WriterEpoch < w.epoch {
		w.r.skipped.Add(1)
	} else {
		if f.WriterEpoch > w.epoch { // what came ahead from the older one may never be stored
			w.whole, w.part = 0, part{}
		}
		w.epoch = f.WriterEpoch
		if err := w.check(f); err != nil {
			return err
		}
		if err := w.fn(ctx, Message{Seq: w.next, Frame: f, Size: len(data), Sum: checksum(data)}); err != nil {
			return err
		}
		w.r.frames.Add(1)
		w.r.bytes.Add(uint64(len(data)))
	}
	w.sum = checksum(data)
	w.next++
	w.r.next.Store(w.next)
	return nil
}

// check refuses a frame that is not as its author has signed it. What comes again goes on, as it does unchecked.
func (w *walk) check(f *wire.Frame) error {
	v, again := w.r.o.Verifier, f.Claim != nil
	if v == nil {
		return nil
	}
	err := v.Check(f)
	if err == nil && again && !f.Fence && w.head.Origin == f.Origin {
		err = f.GoOn(&w.head)
	}
	if err != nil {
		return fmt.Errorf("frame %d of stream %s: %w", w.next, w.r.stream, err)
	}
	w.head = f.Header
	return nil
}

// hole finds out why frame next did not come: lost on its way, or gone from the stream.
func (w *walk) hole(ctx context.Context) error {
	if _, err := w.begin(ctx); err != nil {
		return err
	}
	_, _, err := w.r.api.direct(ctx, w.r.stream, w.next, "")
	if errors.Is(err, ErrNoFrame) {
		first, _, err := w.r.api.direct(ctx, w.r.stream, w.next, ">")
		if err == nil {
			return &GapError{w.r.stream, w.next, first}
		}
	}
	return retryError{fmt.Errorf("%w: frame %d of stream %s did not come", errCursorLost, w.next, w.r.stream)}
}
