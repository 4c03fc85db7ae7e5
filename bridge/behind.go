package bridge

import (
	"fmt"
	"sync"
	"time"
)

// What a person asks first: whether all is well, and who is behind.

// judge says whether all is well.
func (r *Report) judge() {
	graver := 0
	for _, a := range r.Alarms {
		if a.Severity == SeverityError {
			graver++
		}
	}
	var parked uint64
	for _, l := range r.Links {
		parked += l.Parked
	}
	switch warnings := len(r.Alarms) - graver; {
	case r.Waiting != "":
		r.Verdict = "it does not work: " + r.Waiting
	case graver > 0:
		r.Verdict = fmt.Sprintf("%s a person", count(graver, "alarm needs", "alarms need"))
	case warnings > 0:
		r.Well, r.Verdict = true, fmt.Sprintf("it works, with %s", count(warnings, "warning", "warnings"))
	default:
		r.Well, r.Verdict = true, "all is well"
	}
	if parked > 0 {
		r.Verdict += fmt.Sprintf("; %s parked", count(int(parked), "transaction is", "transactions are"))
	}
}

// count writes a number with its word.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// reportNodes tells how far the other nodes are behind this one.
func (l *life) reportNodes() []NodeReport {
	all := []NodeReport{}
	last := l.outbox.durableSeq()
	for _, p := range l.peers {
		n := NodeReport{Node: p.origin.Node, SeenSeq: max(p.seen.Load(), l.applier.SeenBy(p.origin.Node))}
		switch {
		case n.SeenSeq >= last:
		case n.SeenSeq == 0:
			n.Unknown = true
		default:
			n.Transactions = last - n.SeenSeq
			bytes, oldest := l.outbox.lag(n.SeenSeq)
			if n.Bytes = bytes; oldest != 0 {
				n.Seconds = max(time.Since(oldest.Time()).Seconds(), 0)
			}
		}
		all = append(all, n)
	}
	return all
}

// conflictCount is how many conflicts were recorded since the applier has begun.
func (l *life) conflictCount() (n uint64) {
	for _, o := range l.applier.Status() {
		n += o.Conflicts
	}
	return n
}

// minute remembers a counter for a minute.
type minute struct {
	mu      sync.Mutex
	samples []sample // oldest first; guarded by mu
}

// sample is what the counter said at a time.
type sample struct {
	at time.Time
	n  uint64
}

// note takes a sample, and forgets those that are not needed any more: one that is a minute old stays.
func (m *minute) note(now time.Time, n uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.samples = append(m.samples, sample{now, n})
	for len(m.samples) > 1 && now.Sub(m.samples[1].at) >= time.Minute {
		m.samples = m.samples[1:]
	}
}

// lastMinute is by how much the counter has risen to n within a minute; while there is no older sample, since it began at 0.
func (m *minute) lastMinute(now time.Time, n uint64) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := uint64(0)
	for _, s := range m.samples {
		if now.Sub(s.at) >= time.Minute {
			before = s.n
		}
	}
	return n - min(before, n)
}
