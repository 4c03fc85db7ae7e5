package bridge

import (
	"context"
	"errors"
	"sync"
	"time"
)

// What a node has applied of another one it hands on. But what came ahead of the author's broker (stream/ahead.go) it may have in its
// database alone: when the author is dead, and its own bridge was killed before it had handed that on. Then nobody's stream has it, and
// none shows a gap. So whoever reads an author's transactions from another node, and hears nothing of them for a while, asks that node
// what it has applied.

// errNotHandedOn means that the node that is read from has transactions which it does not hand on.
var errNotHandedOn = errors.New("the node that is read from has transactions that no stream has any more")

// silenceLeast bounds from below how long nothing must have come before the node that is read from is asked: it hands on what its
// author's broker has not stored after topology.failover_after.
const silenceLeast = 2 * time.Second

// silence is how long that is.
func (p *peer) silence() time.Duration {
	return max(2*p.cfg.Topology.FailoverAfter, silenceLeast)
}

// readWatched is read. From another node than the origin it ends with errNotHandedOn when that has more than it hands on.
func (p *peer) readWatched(ctx context.Context, u *upstream, find bool) error {
	if p.direct(u) {
		return p.read(ctx, u, find)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var aside sync.WaitGroup
	defer aside.Wait()
	defer cancel(nil)
	aside.Go(func() { p.watchSilence(ctx, u, func() { cancel(errNotHandedOn) }) })
	err := p.read(ctx, u, find)
	if errors.Is(context.Cause(ctx), errNotHandedOn) {
		return errNotHandedOn
	}
	return err
}

// watchSilence calls found when the node that is read from has had more, at two looks, than this one has got, and no frame has come
// in between. What comes is counted, and not what is complete: a large transaction takes its time.
func (p *peer) watchSilence(ctx context.Context, u *upstream, found func()) {
	tick := time.NewTicker(p.silence())
	defer tick.Stop()
	came, before := p.came.Load(), false
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		behind := false
		if now := p.came.Load(); now != came {
			came = now
		} else if p.waitsForMore() {
			_, applied, err := p.askHas(ctx, u.name, u.nc)
			behind = err == nil && p.came.Load() == came && applied.Seq(p.origin) > p.applier.Received(p.origin)
		}
		if behind && before {
			found()
			return
		}
		before = behind
	}
}

// waitsForMore reports whether all of the origin's that has come is applied, and nobody wants that more waits.
func (p *peer) waitsForMore() bool {
	return p.applier.Applied().Seq(p.origin) >= p.applier.Received(p.origin) && len(p.applier.Paused()) == 0
}
