package capture

import (
	"slices"
	"sync"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

const (
	// writtenLimit bounds the transactions whose commit times are remembered, 8 bytes each.
	writtenLimit = 4 << 20
	writtenChunk = 4096
)

// written knows the commit times of the captured transactions that are not stable yet: a local row version
// whose commit time is not among them was written by nobody that others have heard of (PROOF.md R15).
//
// Commit times rise along the WAL but for clocks that step and for sessions that overtake each other between
// the time and the record (F1). So they are kept in sorted chunks, few of which can hold a given one.
type written struct {
	mu     sync.RWMutex
	chunks []writtenPart // oldest first; the last one is open and not sorted
	// forgotten is the highest commit time that went for lack of room: what lies below counts as captured.
	forgotten origin.Stamp
	lost      bool // forgotten is set
	last      uint64
	// Of transactions with a seq up to from, no commit time is remembered, but for those below forgotten: they were stable when they were
	// forgotten, or when their frames went. filled: something was added, or came behind what from says.
	from   uint64
	filled bool
}

type writtenPart struct {
	times    []origin.Stamp
	min, max origin.Stamp
	seq      uint64 // of the last
	xid      uint32 // the highest
}

// begin says that transactions up to seq were captured in an earlier life.
func (w *written) begin(seq uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = max(w.last, seq)
	if !w.filled {
		w.from = w.last
	}
}

// since says that what is added next begins with the transaction seq.
func (w *written) since(seq uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.filled {
		w.from, w.filled = seq-1, true
	}
}

// add remembers a transaction.
func (w *written) add(commitTime origin.Stamp, seq uint64, xid uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.filled {
		w.from, w.filled = seq-1, true
	}
	n := len(w.chunks)
	if n == 0 || len(w.chunks[n-1].times) == writtenChunk {
		if n > 0 {
			slices.Sort(w.chunks[n-1].times)
		}
		if n >= writtenLimit/writtenChunk {
			w.forgotten, w.lost = max(w.forgotten, w.chunks[0].max), true
			w.chunks = slices.Delete(w.chunks, 0, 1)
		}
		w.chunks = append(w.chunks, writtenPart{min: commitTime, max: commitTime, xid: xid})
		n = len(w.chunks)
	}
	c := &w.chunks[n-1]
	c.times = append(c.times, commitTime)
	c.min, c.max, c.seq = min(c.min, commitTime), max(c.max, commitTime), seq
	if int32(xid-c.xid) > 0 {
		c.xid = xid
	}
	w.last = max(w.last, seq)
}

// has reports whether a transaction with that commit time was captured, as far as is remembered.
func (w *written) has(commitTime origin.Stamp) bool {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.lost && commitTime <= w.forgotten {
		return true
	}
	for i := range w.chunks {
		c := &w.chunks[i]
		if commitTime < c.min || commitTime > c.max {
			continue
		}
		if i == len(w.chunks)-1 {
			if slices.Contains(c.times, commitTime) {
				return true
			}
		} else if _, ok := slices.BinarySearch(c.times, commitTime); ok {
			return true
		}
	}
	return false
}

// forget drops what lies below a mark whose seq is stable, by seq and by id: whoever asks knows these by the
// mark.
func (w *written) forget(below wire.Mark) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for n < len(w.chunks) && w.chunks[n].seq <= below.Seq && int32(w.chunks[n].xid-uint32(below.XID)) < 0 {
		w.from = max(w.from, w.chunks[n].seq)
		n++
	}
	w.chunks = slices.Delete(w.chunks, 0, n)
}

// below reports whether all transactions of which the commit times are not remembered have a seq of at most seq.
func (w *written) below(seq uint64) bool {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.from <= seq
}

// captured returns the seq of the last transaction.
func (w *written) captured() uint64 {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.last
}
