package capture

import (
	"slices"
	"sync"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// Bounds of the index of lifted transactions: about 64 and 32 MiB.
const (
	liftedLimit     = 1 << 20
	liftedKeysLimit = 2 << 20
)

// lifted remembers the transactions whose stamp lies above their commit time, since PostgreSQL's own record
// of them holds the commit time only (PROOF.md R15).
type lifted struct {
	mu      sync.RWMutex
	entries []liftedEntry // oldest first; guarded by mu
	gone    uint64        // entries that were dropped off the front: entry i of all is entries[i-gone]
	keys    int           // all entries' keys together
	// lost has the highest commit time and the last seq of the entries that went for lack of room; seq 0: none did. Of what
	// committed up to then, the index does not know the stamp.
	lost liftedEntry
	// last holds, for each commit time, 1 + the number of its last entry; entries link back.
	last map[origin.Stamp]uint64
}

type liftedEntry struct {
	commitTime origin.Stamp
	stamp      origin.Stamp
	seq        uint64
	before     uint64 // 1 + number of the entry before with this commit time, 0 for none
	keys       []wire.KeyHash
	many       bool // counts as having written every key
}

// add remembers a transaction and returns how many older ones had to be forgotten for it. It copies keys.
func (l *lifted) add(commitTime, stamp origin.Stamp, seq uint64, keys []wire.KeyHash, many bool) (lost int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil {
		l.last = map[origin.Stamp]uint64{}
	}
	for len(l.entries) >= liftedLimit || l.keys > liftedKeysLimit && len(l.entries) > 0 {
		e := &l.entries[0]
		l.lose(e.commitTime, e.seq)
		l.drop()
		lost++
	}
	e := liftedEntry{commitTime: commitTime, stamp: stamp, seq: seq, before: l.last[commitTime], many: many}
	if !many {
		e.keys = slices.Clone(keys)
		l.keys += len(keys)
	}
	l.entries = append(l.entries, e)
	l.last[commitTime] = l.gone + uint64(len(l.entries))
	return lost
}

// lose notes that entries up to a seq are not known any more; mu is held.
func (l *lifted) lose(commitTime origin.Stamp, seq uint64) {
	if l.lost.seq != 0 {
		commitTime = max(commitTime, l.lost.commitTime)
	}
	l.lost.commitTime, l.lost.seq = commitTime, max(seq, l.lost.seq)
}

// unknown reports whether the stamp of a transaction with that commit time may have gone for lack of room.
func (l *lifted) unknown(commitTime origin.Stamp) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.lost.seq != 0 && commitTime <= l.lost.commitTime
}

// drop forgets the oldest entry; mu is held.
func (l *lifted) drop() {
	e := &l.entries[0]
	l.keys -= len(e.keys)
	l.gone++
	if l.last[e.commitTime] == l.gone {
		delete(l.last, e.commitTime)
	}
	*e = liftedEntry{}
	l.entries = l.entries[1:]
}

// forget drops what lies at or below seq.
func (l *lifted) forget(seq uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.entries) > 0 && l.entries[0].seq <= seq {
		l.drop()
	}
	if l.lost.seq <= seq {
		l.lost = liftedEntry{}
	}
}

// stamp returns the stamp of the last transaction with that commit time that wrote the key; the commit time
// if none of them was lifted.
func (l *lifted) stamp(commitTime origin.Stamp, key wire.KeyHash) origin.Stamp {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for at := l.last[commitTime]; at > l.gone; {
		e := &l.entries[at-1-l.gone]
		if e.many || slices.Contains(e.keys, key) {
			return e.stamp
		}
		at = e.before
	}
	return commitTime
}
