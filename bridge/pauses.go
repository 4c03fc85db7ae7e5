package bridge

import "time"

const (
	minPause = 100 * time.Millisecond
	maxPause = 5 * time.Second
)

// pauses are those between tries: each twice as long as the one before, from the shortest again after a try that
// came to something.
type pauses struct{ last time.Duration }

func (p *pauses) next(better bool) time.Duration {
	if better {
		p.last = 0
	}
	p.last = min(max(2*p.last, minPause), maxPause)
	return p.last
}
