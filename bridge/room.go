package bridge

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/pgbridge/pgbridge/stream"
)

// fullPatience is for how long a full stream must not have moved before it may grow.
const fullPatience = 10 * time.Second

// standstill is how long the own stream has been full and no peer has told of having seen more of it.
type standstill struct {
	stable uint64
	since  time.Time // zero: it is not full
}

// lasts reports whether that has been so for fullPatience, and then begins to count anew.
func (s *standstill) lasts(full bool, stable uint64, now time.Time) bool {
	switch {
	case !full:
		s.since = time.Time{}
		return false
	case s.since.IsZero() || stable > s.stable:
		s.stable, s.since = stable, now
		return false
	case now.Sub(s.since) < fullPatience:
		return false
	}
	s.since = now
	return true
}

// relieve lets the own stream grow beyond stream.max_bytes when it is full and stands still though all peers are
// there. Two nodes whose streams are both full wait for each other: what each has seen of the other is told by
// frames that stand behind its own backlog. While a peer is away growing would only put off the stop.
func (l *life) relieve(ctx context.Context, s *standstill, stable uint64) {
	state, _ := l.publisher.State()
	full := state == stream.StateFull
	for _, p := range l.peers {
		_, err := p.state()
		full = full && err == nil
	}
	if !s.lasts(full, stable, time.Now()) {
		return
	}
	if _, err := l.publisher.Grow(ctx); err != nil && ctx.Err() == nil {
		l.log.Warn("own stream is full and cannot grow", "err", err.Error())
	}
}

// fullAlarm says for whom the frames are kept that fill the own stream.
func (l *life) fullAlarm(cause string, held int64) Alarm {
	durable := l.outbox.durableSeq()
	var slow []string
	for _, p := range l.peers {
		if seen := p.seen.Load(); seen < durable {
			what := fmt.Sprintf("%s (has seen %d of %d transactions", p.origin.Node, seen, durable)
			if state, err := p.state(); err != nil {
				what += ", is " + state
			}
			slow = append(slow, what+")")
		}
	}
	return fullAlarm(cause, slow, held)
}

func fullAlarm(cause string, slow []string, held int64) Alarm {
	back := ""
	if len(slow) > 0 {
		back = fmt.Sprintf("bring back or speed up %s, or ", strings.Join(slow, ", "))
	}
	return Alarm{Code: "stream-full", Severity: SeverityError,
		Text: fmt.Sprintf("own stream is full: %s; the slot holds %d bytes of WAL", cause, held),
		Mend: back + "raise stream.max_bytes and restart; nothing is lost meanwhile, but the WAL grows"}
}
