package apply

import (
	"context"
	"slices"
	"sync"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// keyLocks keep apply connections out of each other's way by key (PROOF.md R21): before its first
// statement a transaction takes all the keys that it inserts, updates or deletes, and it keeps them until its
// COMMIT is acknowledged and its tombstones are in the index. Row locks of PostgreSQL would come too
// late: the row that two transactions fight for may not be there yet.
type keyLocks struct {
	// alone: there is only one other origin, and so nobody to exclude.
	alone bool

	mu      sync.Mutex
	keys    map[wire.KeyHash]*held
	whole   *held         // one transaction may hold all keys of all tables
	waiting []*held       // those that want to, the first one next; nobody else is let in before it
	holders map[*held]int // how many keys each holds
	freed   chan struct{} // closed and replaced at every release
}

// held is what one transaction holds. The origin tells apart who may wait for whom: transactions of one
// origin follow each other through one connection and never exclude each other.
type held struct {
	origin origin.Origin
	keys   []wire.KeyHash
	whole  bool
	// before holds, by place in keys, who held the key when it was taken over; nil if no key was.
	before []*held
}

// keep says that h goes on: its keys are its own until it is released.
func (h *held) keep() { h.before = nil }

func newKeyLocks(origins int) *keyLocks {
	return &keyLocks{alone: origins < 2, keys: map[wire.KeyHash]*held{}, holders: map[*held]int{}, freed: make(chan struct{})}
}

// try takes all of h's keys, or none and returns a channel that is closed at the next release.
func (l *keyLocks) try(h *held) (bool, <-chan struct{}) {
	if l.alone || len(h.keys) == 0 && !h.whole {
		return true, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// Transactions of other origins follow each other so closely that there is never an instant without
	// one. Whoever waits for all keys holds none, and those that hold some wait for none: they end.
	if len(l.waiting) > 0 && l.waiting[0].origin != h.origin {
		return false, l.freed
	}
	if l.whole != nil && l.whole.origin != h.origin {
		return false, l.freed
	}
	if h.whole {
		for other := range l.holders {
			if other.origin != h.origin {
				return false, l.freed
			}
		}
		l.whole = h
	}
	for _, k := range h.keys {
		if other := l.keys[k]; other != nil && other.origin != h.origin {
			return false, l.freed
		}
	}
	for i, k := range h.keys {
		// A later transaction of the same origin takes the key over.
		if other := l.keys[k]; other != nil && other != h {
			if h.before == nil {
				h.before = make([]*held, len(h.keys))
			}
			h.before[i] = other
		}
		l.keys[k] = h
	}
	l.holders[h] = len(h.keys)
	return true, nil
}

// lock takes all of h's keys. The caller must not hold keys: whoever waits here may be waited for.
func (l *keyLocks) lock(ctx context.Context, h *held) error {
	if h.whole && !l.alone {
		defer l.queue(h)()
	}
	for {
		ok, freed := l.try(h)
		if ok {
			return nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// queue puts h in the line of those that want all keys; the function that it returns takes h out of it.
func (l *keyLocks) queue(h *held) (leave func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(l.waiting, h)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.waiting = slices.DeleteFunc(l.waiting, func(o *held) bool { return o == h })
		l.wake()
	}
}

// wake has all who wait try again; mu is held.
func (l *keyLocks) wake() {
	close(l.freed)
	l.freed = make(chan struct{})
}

// release gives back what h holds, unless keep was called to those that it had taken it over from and that hold
// keys still; a second call does nothing.
func (l *keyLocks) release(h *held) {
	if h == nil || len(h.keys) == 0 && !h.whole {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.holders[h]; !ok {
		return
	}
	for i, k := range h.keys {
		if l.keys[k] != h {
			continue
		}
		delete(l.keys, k)
		if h.before != nil {
			if _, holds := l.holders[h.before[i]]; holds {
				l.keys[k] = h.before[i]
			}
		}
	}
	h.before = nil
	if l.whole == h {
		l.whole = nil
	}
	delete(l.holders, h)
	l.wake()
}
