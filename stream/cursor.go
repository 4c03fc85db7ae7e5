package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

const (
	// defaultFetchBytes is what a cursor has on its way or in memory, unless a message can be larger.
	defaultFetchBytes = 4 << 20
	// fetchFrames bounds the same for tiny frames.
	fetchFrames = 4096
	// statusRoom is for the broker's status messages, which come through the same channel.
	statusRoom = 256

	pullExpires = 30 * time.Second
	heartbeat   = 2 * time.Second
	// silence is how long nothing may come before the consumer counts as lost: two heartbeats and a bit.
	silence = 5 * time.Second
	// forgetAfter is when the broker drops a consumer that nobody asks.
	forgetAfter = time.Minute
)

// errCursorLost is wrapped by errors after which a new cursor must be opened.
var errCursorLost = errors.New("consumer lost")

// cursor reads a stream from a sequence on, as the broker sends it: it does not check that nothing is
// missing. It is an ephemeral pull consumer without acks. Not safe for concurrent use.
type cursor struct {
	api     api
	stream  string
	name    string
	inbox   string
	sub     *nats.Subscription
	msgs    chan *nats.Msg     // the client sends, never closes; its capacity is what may be on its way
	listens *nats.Subscription // nil: to nothing else
	ahead   chan *nats.Msg     // of listens
	silent  *time.Timer
	// patient: silent runs since the last message of the consumer.
	patient bool
	status  chan nats.Status // the client says when the connection is lost

	limit  int64 // bytes to have on their way or in msgs
	bytes  int64 // asked for and not taken yet
	frames int   // likewise
}

// openCursor returns a cursor, which the caller closes. isNoStream tells that there is no stream.
func openCursor(ctx context.Context, a api, stream string, from uint64, fetchBytes int64) (*cursor, error) {
	c := &cursor{
		api: a, stream: stream, name: "pgbridge_" + nuid.Next(), inbox: a.nc.NewInbox(),
		msgs: make(chan *nats.Msg, fetchFrames+statusRoom),
		// A request for half of the limit must still have room for the largest message.
		limit: max(fetchBytes, defaultFetchBytes, 2*(a.nc.MaxPayload()+headerRoom)),
	}
	var err error
	if c.sub, err = a.nc.ChanSubscribe(c.inbox, c.msgs); err != nil {
		return nil, fmt.Errorf("subscribe to stream %s: %w", stream, err)
	}
	c.status = a.nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	c.silent = time.NewTimer(silence)
	if err := c.create(ctx, from); err != nil {
		c.close()
		return nil, fmt.Errorf("create a consumer of stream %s from frame %d: %w", stream, from, err)
	}
	return c, nil
}

func (c *cursor) create(ctx context.Context, from uint64) error {
	req := struct {
		Stream string                   `json:"stream_name"`
		Config jetstream.ConsumerConfig `json:"config"`
		Action string                   `json:"action"`
	}{c.stream, jetstream.ConsumerConfig{
		Name: c.name, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from,
		AckPolicy: jetstream.AckNonePolicy, MaxDeliver: -1, ReplayPolicy: jetstream.ReplayInstantPolicy,
		InactiveThreshold: forgetAfter, MemoryStorage: true, Replicas: 1,
	}, "create"}
	return c.api.ask(ctx, "CONSUMER.CREATE."+c.stream+"."+c.name, req, nil)
}

// listen has take return also what comes on that subject.
func (c *cursor) listen(subject string) error {
	c.ahead = make(chan *nats.Msg, aheadRoom)
	var err error
	if c.listens, err = c.api.nc.ChanSubscribe(subject, c.ahead); err != nil {
		return fmt.Errorf("subscribe to %s: %w", subject, err)
	}
	return nil
}

// close gives the consumer up. The broker is told without waiting for it; it would forget by itself.
func (c *cursor) close() {
	c.silent.Stop()
	c.api.nc.RemoveStatusListener(c.status)
	_ = c.sub.Unsubscribe()
	if c.listens != nil {
		_ = c.listens.Unsubscribe()
	}
	_ = c.api.nc.PublishRequest(c.api.prefix+"CONSUMER.DELETE."+c.stream+"."+c.name, c.inbox, nil)
}

// take waits for the next message of the stream, whose data is the caller's, or for one that came ahead, of those that
// it listens to. Errors are ctx's or wrap errCursorLost.
func (c *cursor) take(ctx context.Context) (seq uint64, data []byte, ahead *nats.Msg, err error) {
	for {
		if err := c.pull(); err != nil {
			return 0, nil, nil, fmt.Errorf("%w: ask for more: %w", errCursorLost, err)
		}
		m, ahead, err := c.receive(ctx)
		if err != nil || ahead != nil {
			return 0, nil, ahead, err
		}
		if isStatus(m) {
			if err := c.note(m); err != nil {
				return 0, nil, nil, err
			}
			continue
		}
		c.bytes = max(c.bytes-int64(m.Size()), 0)
		c.frames = max(c.frames-1, 0)
		meta, err := m.Metadata()
		if err != nil {
			return 0, nil, nil, fmt.Errorf("%w: message without a place in the stream: %w", errCursorLost, err)
		}
		return meta.Sequence.Stream, m.Data, nil, nil
	}
}

func (c *cursor) receive(ctx context.Context) (m, ahead *nats.Msg, err error) {
	select {
	case m := <-c.msgs: // the fast way, when there is a backlog
		c.patient = false
		return m, nil, ctx.Err()
	default:
	}
	if !c.patient {
		c.silent.Reset(silence)
	}
	c.patient = false
	select {
	case m := <-c.msgs:
		return m, nil, nil
	case ahead := <-c.ahead:
		c.patient = true // that this comes does not say that the consumer lives
		return nil, ahead, nil
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	case <-c.silent.C:
		return nil, nil, fmt.Errorf("%w: nothing heard for %v", errCursorLost, silence)
	case s := <-c.status: // what was on its way is lost; a consumer without acks does not send it again
		return nil, nil, fmt.Errorf("%w: connection is %v", errCursorLost, s)
	}
}

// pull asks for more when less than half of the limit is on its way.
func (c *cursor) pull() error {
	if c.bytes > c.limit/2 && c.frames > fetchFrames/2 {
		return nil
	}
	req, err := json.Marshal(struct {
		Batch     int           `json:"batch"`
		MaxBytes  int64         `json:"max_bytes"`
		Expires   time.Duration `json:"expires"`
		Heartbeat time.Duration `json:"idle_heartbeat"`
	}{fetchFrames - c.frames, c.limit - c.bytes, pullExpires, heartbeat})
	if err != nil {
		return err
	}
	c.bytes, c.frames = c.limit, fetchFrames
	return c.api.nc.PublishRequest(c.api.prefix+"CONSUMER.MSG.NEXT."+c.stream+"."+c.name, c.inbox, req)
}

// isStatus reports whether a message is the broker's own: only those have this header, since a frame's
// headers are written by the Publisher.
func isStatus(m *nats.Msg) bool { return len(m.Data) == 0 && m.Header.Get("Status") != "" }

// note takes a status message: how much of a request will not be served, or why the consumer is lost.
func (c *cursor) note(m *nats.Msg) error {
	code, text := m.Header.Get("Status"), m.Header.Get("Description")
	if code == "100" {
		return nil
	}
	frames, err1 := strconv.Atoi(m.Header.Get("Nats-Pending-Messages"))
	bytes, err2 := strconv.ParseInt(m.Header.Get("Nats-Pending-Bytes"), 10, 64)
	if err1 != nil || err2 != nil {
		return fmt.Errorf("%w: broker says %s %s", errCursorLost, code, text)
	}
	c.frames, c.bytes = max(c.frames-frames, 0), max(c.bytes-bytes, 0)
	return nil
}
