package bridge

import (
	"context"
	"time"
)

// drainTick is how often a drain looks whether it is done.
const drainTick = 10 * time.Millisecond

// drainStall is how long a drain waits where nothing moves: what it waits for may come from a peer only.
const drainStall = time.Second

// stages are the contexts of a life's parts, in the order in which a stop ends them.
type stages struct {
	reading   context.Context // the peers' readers
	capturing context.Context
	working   context.Context // all else
}

// drain waits until stop ends, and then ends the stages: nothing more is taken in; what has arrived is applied,
// while capture still answers apply; what capture has sent is acknowledged. What is not done in time is done
// by the next start.
func (l *life) drain(stop context.Context, s stages, endReading, endCapturing, endWorking context.CancelFunc) {
	defer endWorking()
	select {
	case <-stop.Done():
	case <-s.working.Done():
		return
	}
	// The rest of the time is for closing what is open.
	ctx, cancel := context.WithTimeout(s.working, l.settings.now().ShutdownTimeout*3/4)
	defer cancel()
	endReading()
	settle(ctx, l.unapplied)
	endCapturing()
	settle(ctx, l.unacknowledged)
	l.log.Info("bridge stops", "unapplied", l.unapplied(), "unacknowledged", l.unacknowledged())
}

// settle waits until left gives 0, or nothing better for a while.
func settle(ctx context.Context, left func() int) {
	tick := time.NewTicker(drainTick)
	defer tick.Stop()
	least, since := left(), time.Now()
	for n := least; n > 0 && time.Since(since) < drainStall; n = left() {
		if n < least {
			least, since = n, time.Now()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// unapplied counts transactions that have arrived and are not applied; those of origins that wait for a person
// do not count.
func (l *life) unapplied() int {
	n := 0
	for _, o := range l.applier.Status() {
		if o.Waiting == "" {
			n += o.Queued
		}
	}
	return n
}

// unacknowledged counts frames that a broker which is there has not acknowledged.
func (l *life) unacknowledged() int {
	if _, err := l.publisher.State(); err != nil {
		return 0
	}
	return l.publisher.InFlight()
}
