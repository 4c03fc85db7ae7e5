package apply

import (
	"slices"

	"github.com/pgbridge/pgbridge/origin"
)

// A parked transaction counts as applied for whoever waits for it, and is declared by all later local ones, but it has
// not been seen (PROOF.md R23): what is told to others, `done` in the markers, ends in front of an origin's oldest parked
// one. A vector has no holes, so that all behind it is not told either. This node itself knows more (readBack).

// park lets what is told of an origin end at before, which is in front of its oldest parked transaction.
func (p *progress) park(before origin.Entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.parked[before.Origin] = before
	p.signal()
}

// unpark says that nothing of o is parked any more.
func (p *progress) unpark(o origin.Origin) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.parked, o)
	p.signal()
}

func (p *progress) signal() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// applied is what is applied: all, and what of it is told to others.
type applied struct{ all, done origin.Vector }

// now returns copies of both, which are the same while nothing is parked or owed; mu is held.
func (p *progress) now() applied {
	a := applied{all: p.applied.Clone()}
	if a.done = a.all; len(p.parked)+len(p.owed) == 0 {
		return a
	}
	a.done = a.all.Clone()
	for _, held := range []map[origin.Origin]origin.Entry{p.parked, p.owed} {
		for o, before := range held {
			if a.done.Seq(o) <= before.Seq {
				continue
			}
			a.done = slices.DeleteFunc(a.done, func(e origin.Entry) bool { return e.Origin == o })
			a.done.Advance(before)
		}
	}
	return a
}

// readBack is what this node knows of the commits that its capture has passed, where that is more than markers tell:
// registrations and take-backs must end also behind a parked transaction, which has created nothing.
type readBack struct {
	marks  []readMark // of markers that capture has not passed, by LSN
	passed origin.Vector
}

// readMark says that applied stood in the WAL in front of lsn.
type readMark struct {
	lsn     uint64
	applied origin.Vector
}

// readMarks bounds the marks that are kept; above it every second one is forgotten, which makes the answer coarser.
const readMarks = 1000

// marked notes that a marker at lsn was written when all of a had been committed.
func (r *readBack) marked(lsn uint64, a applied) {
	if a.done.Equal(a.all) {
		return
	}
	if len(r.marks) >= readMarks {
		for i := range readMarks / 2 {
			r.marks[i] = r.marks[2*i+1]
		}
		r.marks = r.marks[:readMarks/2]
	}
	r.marks = append(r.marks, readMark{lsn, a.all})
}

// readBack returns the transactions whose commits capture has passed.
func (p *progress) readBack(wal WAL) origin.Vector {
	passed := wal.Passed()
	_, low := wal.Vectors()
	p.mu.Lock()
	defer p.mu.Unlock()
	r := &p.read
	n := 0
	for n < len(r.marks) && r.marks[n].lsn <= passed {
		r.passed = r.marks[n].applied
		n++
	}
	r.marks = slices.Delete(r.marks, 0, n)
	if low.Includes(r.passed) {
		r.passed = nil
		return low
	}
	v := low.Clone()
	v.Merge(r.passed)
	return v
}

// park says that the oldest parked transaction of o had seen low; nil: nothing of o is parked any more. What is still to
// come from o then includes no more than that (PROOF.md R22).
func (h *hearsay) park(o origin.Origin, low *origin.Vector) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if low == nil {
		delete(h.parked, o)
		return
	}
	h.parked[o] = *low
}
