package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/wire"
)

// Fence shuts out older writers of the stream and takes it over: it publishes f, whose writer epoch must
// be higher than any in the stream, and returns the stream sequence of its last copy, behind which
// Publish goes on. It is called once, before Run and Publish.
//
// One fence frame is not enough. An older writer that was only asleep has up to MaxWindowFrames frames on
// their way, the k-th of which is accepted exactly when k-1 messages were stored since; the fence counts
// as one, so the first would be refused but the second fit. All of them expect a last sequence below t +
// MaxWindowFrames, where t is the last message before the fence, since none is sent so far beyond an ack.
// So the fence is repeated until a copy stands at t + MaxWindowFrames or behind: nothing that was on its
// way can be stored any more. What slipped in between is void by its lower writer epoch, for readers and
// for whoever reads the tail.
//
// In a full stream it makes the room for its copies itself, by raising max_bytes: whoever purges the stream comes
// after the fence, so nobody else could. Where the broker's own limits forbid that, and while the broker is away,
// Fence tries until ctx ends (see State). Purge may run meanwhile.
//
// ErrTailMoved: frames were stored after OpenPublisher or the last Fence read the tail. Tail has the new
// one; build f from it and try again. ErrFenced: the stream has a writer epoch as high as f's.
func (p *Publisher) Fence(ctx context.Context, f *wire.Frame) (uint64, error) {
	p.publishing.Lock()
	defer p.publishing.Unlock()
	p.sending.Lock()
	defer p.sending.Unlock()
	if err := p.checkFence(f); err != nil {
		return 0, err
	}
	data, err := p.encode(f)
	if err != nil {
		return 0, err
	}
	nc := p.api.nc
	c := fencing{
		p: p, epoch: f.WriterEpoch, data: data, last: p.tail.last,
		status: nc.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.CLOSED),
	}
	defer nc.RemoveStatusListener(c.status)
	if err := c.run(ctx); err != nil {
		return 0, err
	}
	p.epoch = f.WriterEpoch
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tail = tail{seq: c.last, frame: f, last: c.last}
	p.window = newWindow(c.last, data)
	p.fences = span{c.first, c.last}
	p.life++
	p.live, p.state, p.cause = true, StatePublishing, nil
	p.notify()
	return c.last, nil
}

func (p *Publisher) checkFence(f *wire.Frame) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.end != nil:
		return p.end
	case p.running || p.epoch != 0:
		return fmt.Errorf("fence stream %s: it is fenced already", p.stream)
	case !f.Fence || f.WriterEpoch == 0 || len(f.Body) != 0:
		return fmt.Errorf("fence stream %s: the frame is not a fence with a writer epoch", p.stream)
	case p.tail.frame != nil && p.tail.frame.WriterEpoch >= f.WriterEpoch:
		return fmt.Errorf("fence stream %s with writer epoch %d: frame %d has %d: %w",
			p.stream, f.WriterEpoch, p.tail.seq, p.tail.frame.WriterEpoch, ErrFenced)
	}
	return nil
}

// fencing is one call of Fence. It has the publisher's locks publishing and sending.
type fencing struct {
	p      *Publisher
	epoch  uint64
	data   []byte
	status chan nats.Status
	last   uint64 // the last message of the stream, as far as we know
	first  uint64 // the first copy; 0: none is stored yet
	reach  uint64 // a copy must stand there or behind; set with first
}

func (c *fencing) run(ctx context.Context) error {
	for try := 0; c.first == 0 || c.last < c.reach; try++ {
		err := c.send(ctx)
		if err == nil {
			continue
		}
		c.p.note(err)
		if !isFull(err) || !c.makeRoom(ctx) {
			if err := pause(ctx, backoff(try), c.status); err != nil {
				return fmt.Errorf("fence stream %s: %w", c.p.stream, err)
			}
		}
		if err := c.look(ctx); err != nil {
			return err
		}
	}
	return nil
}

// makeRoom raises the limit of a full stream by what a whole fence takes, and reports whether it did.
func (c *fencing) makeRoom(ctx context.Context) bool {
	fence := MaxWindowFrames * int64(len(c.data)+len(c.p.subject)+messageRoom)
	raised, err := c.p.raise(ctx, "the fence of a bridge that starts", func(_, stored int64) int64 { return stored + fence })
	if err != nil {
		c.p.note(err)
	}
	return raised
}

// send publishes the copies that are missing, all at once behind the first, and takes their acks.
func (c *fencing) send(ctx context.Context) error {
	p := c.p
	p.mu.Lock()
	p.life++
	life := p.life
	p.mu.Unlock()
	to := c.last + 1
	if c.first != 0 {
		to = max(c.reach, to)
	}
	for seq := c.last + 1; seq <= to; seq++ {
		if err := p.send(pending{seq: seq, data: c.data}, life); err != nil {
			return err
		}
	}
	for c.last < to {
		if err := c.take(ctx, life); err != nil {
			return err
		}
	}
	return nil
}

// take waits for the ack of the next copy.
func (c *fencing) take(ctx context.Context, life uint64) error {
	t := time.NewTimer(c.p.o.AckTimeout)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
			return errors.Join(nats.ErrTimeout, c.p.api.nc.LastError())
		case s := <-c.status:
			if s != nats.CONNECTED {
				return errAway
			}
		case m := <-c.p.acks:
			l, seq, ok := parseAckSubject(m.Subject)
			if !ok || l != life {
				continue
			}
			stored, err := c.p.parse.read(m)
			if err != nil {
				return err
			}
			if stored != seq || seq != c.last+1 {
				return fmt.Errorf("ack of frame %d says %d", seq, stored)
			}
			c.stored(seq)
			return nil
		}
	}
}

func (c *fencing) stored(seq uint64) {
	c.last = seq
	if c.first == 0 {
		c.first, c.reach = seq, seq-1+MaxWindowFrames
	}
}

// look finds out, after a failure, what was stored behind c.last.
func (c *fencing) look(ctx context.Context) error {
	p := c.p
	st, err := p.api.stream(ctx, p.stream)
	if p.api.nc.IsClosed() {
		return fmt.Errorf("fence stream %s: %w", p.stream, nats.ErrConnectionClosed)
	}
	if err != nil {
		return nil // the broker is away; sending again will show it
	}
	if !st.Created.Equal(p.created) || st.State.LastSeq < c.last {
		return fmt.Errorf("fence stream %s: it ended with frame %d, now with %d: %w", p.stream, c.last, st.State.LastSeq, ErrStreamLost)
	}
	for seq := c.last + 1; seq <= st.State.LastSeq; seq++ {
		data, err := p.api.message(ctx, p.stream, seq)
		if err != nil {
			return nil
		}
		if bytes.Equal(data, c.data) {
			c.stored(seq)
			continue
		}
		if err := c.foreign(ctx, seq, data); err != nil {
			return err
		}
	}
	return nil
}

// foreign judges a message that another writer stored behind c.last.
func (c *fencing) foreign(ctx context.Context, seq uint64, data []byte) error {
	p := c.p
	f, err := p.decode(seq, data)
	if err != nil {
		return err
	}
	if f.WriterEpoch >= c.epoch {
		return fmt.Errorf("fence stream %s with writer epoch %d: frame %d has %d: %w", p.stream, c.epoch, seq, f.WriterEpoch, ErrFenced)
	}
	if c.first == 0 {
		if err := p.readTail(ctx); err != nil {
			return err
		}
		return fmt.Errorf("fence stream %s: frame %d: %w", p.stream, seq, ErrTailMoved)
	}
	c.last = seq
	c.reach = max(c.reach, seq+1) // the last message must be a copy
	return nil
}
