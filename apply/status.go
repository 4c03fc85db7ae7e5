package apply

import (
	"time"

	"github.com/pgbridge/pgbridge/origin"
)

// OriginStatus is how far one origin has come here.
type OriginStatus struct {
	Origin    origin.Origin
	Seq       uint64       // applied
	Stamp     origin.Stamp // of that transaction
	Received  uint64       // highest seq that has arrived
	Queued    int          // transactions that have arrived and are not applied
	Bytes     int64        // of these in memory and on disk
	Lag       time.Duration
	Waiting   string // why nothing moves, with the mend; empty if it does
	Applied   uint64 // transactions since the start
	Careful   uint64 // of them, by the careful path
	Bundled   uint64 // of them, together with others in one local transaction
	Conflicts uint64 // recorded since the start
	Parked    uint64 // put aside: they cannot be applied here
	Again     uint64 // that the stream brought once more since the start, and that were passed over
}

// Status returns how far every origin has come.
func (a *Applier) Status() []OriginStatus {
	applied := a.progress.vector()
	var all []OriginStatus
	for _, w := range a.workers {
		e := applied.Get(w.origin)
		s := OriginStatus{Origin: w.origin, Seq: e.Seq, Stamp: e.Stamp,
			Applied: w.applied.Load(), Careful: w.careful.Load(), Bundled: w.bundles.Load(), Conflicts: w.conflicts.Load(), Parked: a.parked.of(w.origin), Again: w.inbox.again.Load()}
		var oldest origin.Stamp
		if s.Received, s.Queued, oldest = w.inbox.received(); s.Queued > 0 {
			s.Lag = a.opts.Now().Sub(oldest.Time())
		}
		s.Bytes = w.inbox.held()
		if reason := w.waiting.Load(); reason != nil {
			s.Waiting = *reason
		}
		all = append(all, s)
	}
	return all
}

// Applied returns the vector of what is applied here, own transactions left out.
func (a *Applier) Applied() origin.Vector { return a.progress.vector() }

// WatchApplied returns what is applied here, and a channel that is closed when that has become more.
func (a *Applier) WatchApplied() (origin.Vector, <-chan struct{}) { return a.progress.watch() }
