package apply

import (
	"slices"

	"github.com/pgbridge/pgbridge/origin"
)

// A parked transaction counts as applied for whoever waits for it, and is declared by all later local ones, but it has
// not been seen (PROOF.md R23): what is told to others, `done` in the markers, ends in front of an origin's oldest parked
// one. A vector has no holes, so that all behind it is not told either. So it is with one that left a row as it is, which is
// owed (owed.go): users here go on from a row that it did not make. This node itself knows more (readBack).

// unseenReason is why what is told of an origin ends.
type unseenReason int

const (
	isParked unseenReason = iota
	isOwed
	unseenReasons
)

// tellUpTo lets what is told of o end at end, which is in front of its oldest transaction of that kind; nil: there is none
// any more.
func (p *progress) tellUpTo(end *origin.Entry, o origin.Origin, why unseenReason) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if end == nil {
		delete(p.unseen[why], o)
	} else {
		p.unseen[why][o] = *end
	}
	p.signal()
}

func (p *progress) signal() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// applied is what is applied: all, and what of it is told to others.
type applied struct{ all, done origin.Vector }

// now returns copies of both, which are the same while there is nothing unseen; mu is held.
func (p *progress) now() applied {
	a := applied{all: p.applied.Clone()}
	a.done = a.all
	for _, ends := range p.unseen {
		for o, end := range ends {
			if a.done.Seq(o) > end.Seq {
				a.done = slices.DeleteFunc(a.done.Clone(), func(e origin.Entry) bool { return e.Origin == o })
				a.done.Advance(end)
			}
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

// told returns what others may be told that has been seen here.
func (p *progress) told() origin.Vector {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now().done
}
