package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgbridge/pgbridge/wire"
)

var (
	errAway    = errors.New("the broker is away")
	errOverdue = errors.New("no ack in time")
	errSend    = errors.New("the connection did not take a frame")
	errChain   = errors.New("an ack out of order")
)

// Run takes the broker's acks, and recovers after each failure, until ctx ends, Close is called, or the
// stream cannot be written any more: ErrFenced, ErrTailMoved, ErrStreamLost, ErrForeignStream,
// ErrFrameTooLarge (the broker's max_payload was lowered). The publisher is stopped then.
func (p *Publisher) Run(ctx context.Context) error {
	p.mu.Lock()
	p.running = true
	fenced := p.fences.last != 0
	p.mu.Unlock()
	if !fenced {
		return fmt.Errorf("run publisher of stream %s: it has not been fenced", p.stream)
	}
	nc := p.api.nc
	status := nc.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.CLOSED)
	defer nc.RemoveStatusListener(status)
	err := p.drive(ctx, status)
	if ctx.Err() != nil {
		p.stop(ErrStopped)
	} else {
		p.stop(err)
	}
	return err
}

func (p *Publisher) drive(ctx context.Context, status <-chan nats.Status) error {
	tick := time.NewTicker(max(p.o.AckTimeout/4, time.Millisecond))
	defer tick.Stop()
	for {
		var cause error
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case m := <-p.acks:
			cause = p.takeAcks(m)
		case <-p.done:
			return p.stopped()
		case <-p.failed:
			cause = errSend
		case now := <-tick.C:
			cause = p.overdue(now)
		case s := <-status:
			if s != nats.CONNECTED {
				cause = errAway
			}
		}
		if cause == nil {
			continue
		}
		if err := p.recover(ctx, cause, status); err != nil {
			return err
		}
	}
}

// takeAcks takes m and whatever else has come, and tells of the change once.
func (p *Publisher) takeAcks(m *nats.Msg) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.window.durable
	err := p.takeAck(m)
	for n := len(p.acks); n > 0 && err == nil; n-- {
		err = p.takeAck(<-p.acks)
	}
	if p.window.durable != before {
		p.recovers, p.acked = 0, time.Now()
		p.notify()
	}
	return err
}

// takeAck needs mu held. Acks of an earlier life say nothing that the tail has not said since.
func (p *Publisher) takeAck(m *nats.Msg) error {
	life, seq, ok := parseAckSubject(m.Subject)
	if !ok || life != p.life || !p.live {
		return nil
	}
	stored, err := p.parse.read(m)
	if err != nil {
		return err
	}
	if stored != seq || seq != p.window.durable+1 {
		return fmt.Errorf("%w: frame %d stored as %d, %d is next", errChain, seq, stored, p.window.durable+1)
	}
	p.window.settle(seq)
	return nil
}

// overdue returns an error if a frame waits and no ack has come for too long.
func (p *Publisher) overdue(now time.Time) error {
	p.mu.Lock()
	w := p.window.waiting()
	late := len(w) > 0 && now.Sub(w[0].since) > p.o.AckTimeout && now.Sub(p.acked) > p.o.AckTimeout
	var f pending
	if late {
		f = w[0]
	}
	p.mu.Unlock()
	if !late {
		return nil
	}
	return p.api.explain(p.subject, fmt.Errorf("%w: frame %d waits since %v", errOverdue, f.seq, f.since.Format(time.RFC3339)))
}

// recover stops sending, finds out what is stored, and goes on from there, as often as it takes. Its
// error means that this publisher cannot go on.
func (p *Publisher) recover(ctx context.Context, cause error, status <-chan nats.Status) error {
	p.o.Logger.Warn("publishing interrupted", "stream", p.stream, "err", cause)
	retry := p.halt(cause)
	for ; ; retry++ {
		if retry > 0 {
			if err := pause(ctx, backoff(retry-1), status); err != nil {
				return err
			}
		}
		err := p.resume(ctx)
		if err == nil {
			p.o.Logger.Info("publishing goes on", "stream", p.stream, "stream_seq", p.Durable())
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if isFinal(err) {
			return err
		}
		p.note(err)
	}
}

// isFinal reports whether trying again cannot help.
func isFinal(err error) bool {
	for _, e := range []error{ErrFenced, ErrTailMoved, ErrStreamLost, ErrForeignStream, ErrFrameTooLarge, ErrStopped,
		wire.ErrCorrupt, wire.ErrVersion, nats.ErrConnectionClosed} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// stopped returns what ended the publisher, or nil.
func (p *Publisher) stopped() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.end
}

// halt stops sending and returns how many recoveries there were without an ack in between.
func (p *Publisher) halt(cause error) int {
	p.note(cause)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.live = false
	p.life++
	p.recovers++
	return p.recovers - 1
}

func (p *Publisher) note(cause error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.end != nil {
		return
	}
	p.state, p.cause = StateRecovering, cause
	if isFull(cause) {
		p.state = StateFull
		p.cause = fmt.Errorf("stream %s has no room; raise max_bytes or the broker's limits, or wait for readers: %w",
			p.stream, cause)
	}
}

// resume is one attempt: read what is stored, drop it from the window, send the rest.
func (p *Publisher) resume(ctx context.Context) error {
	if end := p.stopped(); end != nil {
		return end
	}
	p.mu.Lock()
	full := p.state == StateFull
	p.mu.Unlock()
	if p.api.nc.IsClosed() {
		return nats.ErrConnectionClosed
	}
	if err := p.compare(ctx); err != nil {
		return err
	}
	if full {
		if err := p.try(ctx); err != nil {
			return err
		}
	}
	return p.restart()
}

// compare asks the stream's leader what is stored of the frames in flight, each by its bytes, and settles
// those in the window.
func (p *Publisher) compare(ctx context.Context) error {
	st, err := p.api.stream(ctx, p.stream)
	if IsNoStream(err) {
		return p.lost("it is gone")
	}
	if err != nil {
		return err
	}
	last := st.State.LastSeq
	durable, next, sum := p.ends()
	switch {
	case !st.Created.Equal(p.created):
		return p.lost(fmt.Sprintf("it was created %v, now %v", p.created, st.Created))
	case last < durable:
		return p.lost(fmt.Sprintf("it ends with frame %d", last))
	case last == durable && st.State.Msgs > 0:
		if err := p.compareLast(ctx, last, sum); err != nil {
			return err
		}
	}
	for seq := durable + 1; seq <= min(last, next-1); seq++ {
		if err := p.compareFrame(ctx, seq); err != nil {
			return err
		}
	}
	if last >= next {
		data, err := p.api.message(ctx, p.stream, last)
		if err != nil {
			return err
		}
		return p.foreign(last, data)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.window.durable < last {
		p.window.settle(last)
		p.notify()
	}
	return nil
}

func (p *Publisher) ends() (durable, next uint64, sum uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.window.durable, p.window.next, p.window.sum
}

func (p *Publisher) lost(found string) error {
	durable, _, _ := p.ends()
	return fmt.Errorf("stream %s: frames up to %d were acknowledged, %s: %w", p.stream, durable, found, ErrStreamLost)
}

// compareLast looks whether the last durable frame is still the one it was.
func (p *Publisher) compareLast(ctx context.Context, seq uint64, sum uint32) error {
	data, err := p.api.message(ctx, p.stream, seq)
	if isNoMessage(err) {
		return p.lost("the last of them is missing")
	}
	if err != nil {
		return err
	}
	if got := checksum(data); got != sum {
		return p.lost(fmt.Sprintf("the last of them has CRC %08x instead of %08x", got, sum))
	}
	return nil
}

// compareFrame looks whether what is stored under a sequence in flight is the frame that has it.
func (p *Publisher) compareFrame(ctx context.Context, seq uint64) error {
	data, err := p.api.message(ctx, p.stream, seq)
	if err != nil {
		return err
	}
	p.mu.Lock()
	f, ok := p.window.at(seq)
	same := ok && bytes.Equal(f.data, data)
	p.mu.Unlock()
	if !same {
		return p.foreign(seq, data)
	}
	return nil
}

// foreign judges a message that stands where a frame of ours should.
func (p *Publisher) foreign(seq uint64, data []byte) error {
	f, err := p.decode(seq, data)
	if err != nil {
		return err
	}
	p.mu.Lock()
	epoch := p.tail.frame.WriterEpoch // Run comes after Fence
	p.mu.Unlock()
	if f.WriterEpoch < epoch {
		return fmt.Errorf("stream %s: frame %d has writer epoch %d, ours is %d: %w", p.stream, seq, f.WriterEpoch, epoch, ErrTailMoved)
	}
	return fmt.Errorf("stream %s: frame %d has writer epoch %d, ours is %d: %w", p.stream, seq, f.WriterEpoch, epoch, ErrFenced)
}

// try sends the first waiting frame alone and waits for its ack: in a full stream the others would be
// sent for nothing.
func (p *Publisher) try(ctx context.Context) error {
	durable, _, _ := p.ends()
	p.mu.Lock()
	f, ok := p.window.at(durable + 1)
	p.mu.Unlock()
	if !ok {
		return nil
	}
	m := &nats.Msg{Subject: p.subject, Data: f.data, Header: nats.Header{
		jetstream.ExpectedLastSeqHeader: {fmt.Sprint(durable)},
	}}
	ack, err := p.api.request(ctx, m)
	if err != nil {
		return p.refused(f, err)
	}
	stored, err := p.parse.read(ack)
	if err != nil {
		return err
	}
	if stored != f.seq {
		return fmt.Errorf("%w: frame %d stored as %d", errChain, f.seq, stored)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.window.settle(stored)
	p.recovers = 0
	p.notify()
	return nil
}

// refused turns the connection's error for one frame into ours.
func (p *Publisher) refused(f pending, err error) error {
	if errors.Is(err, nats.ErrMaxPayload) {
		return p.tooLarge(len(f.data), p.api.nc.MaxPayload())
	}
	return fmt.Errorf("send frame %d of stream %s: %w", f.seq, p.stream, err)
}

// restart sends what waits and switches to sending as frames come.
func (p *Publisher) restart() error {
	p.maxPayload.Store(p.api.nc.MaxPayload())
	p.sending.Lock()
	defer p.sending.Unlock()
	p.mu.Lock()
	if p.end != nil {
		defer p.mu.Unlock()
		return p.end
	}
	frames := slices.Clone(p.window.waiting())
	life := p.life
	p.live, p.state, p.cause, p.acked = true, StatePublishing, nil, time.Now()
	p.mu.Unlock()
	for _, f := range frames {
		if err := p.send(f, life); err != nil {
			p.halt(err)
			return p.refused(f, err)
		}
	}
	return nil
}
