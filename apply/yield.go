package apply

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Where many sessions of users are at work at once, apply works a part of the time only: after each slice it waits, with nothing in
// flight and no row locked, for as much longer as its share asks. The share is halved at each look that finds the server busy, down
// to leastShare, and grows when it is not, so that apply never stops and goes on at full speed when the users are through.

const (
	// leastShare is the least part of the time that apply works.
	leastShare = 1.0 / 8
	// slice is how long apply works at a stretch while it gives way; a large transaction takes longer, and rests longer.
	slice = 50 * time.Millisecond
	// longestRest bounds one rest.
	longestRest = time.Second
	// yieldLook is the time from one look at the users' sessions to the next.
	yieldLook = 250 * time.Millisecond
)

// busySQL counts the sessions of users that are at work, among them those that wait for a lock; seen: the role may see that.
const busySQL = `
SELECT count(*) FILTER (WHERE state IN ('active', 'fastpath function call')), pg_has_role('pg_read_all_stats', 'USAGE')
FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND application_name NOT LIKE 'pgbridge %'`

// yields is how apply gives way to users. Its methods are safe for concurrent use; nil, a simulated worker's, gives way to nobody.
type yields struct {
	mu      sync.Mutex
	at      int // sessions of users at work from which on apply gives way; 0: never
	busy    int // at the last look
	blind   bool
	share   float64 // of the time in which apply works
	rests   uint64  // since the start
	changed chan struct{}
}

func newYields(at int) *yields { return &yields{at: at, share: 1, changed: make(chan struct{})} }

// set sets from how many sessions on apply gives way.
func (y *yields) set(at int) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.at == at {
		return
	}
	y.at = at
	if at == 0 {
		y.busy, y.blind = 0, false
		y.turn(1)
	}
}

func (y *yields) limit() int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.at
}

// look takes in how many sessions of users are at work; seen: that is known.
func (y *yields) look(busy int, seen bool) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.at == 0 {
		return
	}
	y.busy, y.blind = busy, !seen
	if seen && busy >= y.at {
		y.turn(max(y.share/2, leastShare))
	} else {
		y.turn(min(y.share*2, 1))
	}
}

// turn sets the share; mu is held.
func (y *yields) turn(share float64) {
	if y.share = share; share == 1 {
		close(y.changed) // who rests need not any more
		y.changed = make(chan struct{})
	}
}

// rest is how long to wait after so much work, and what is closed when that is over before.
func (y *yields) rest(worked time.Duration) (time.Duration, <-chan struct{}) {
	if y == nil {
		return 0, nil
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.share == 1 || worked < slice {
		return 0, y.changed
	}
	y.rests++
	return min(time.Duration(float64(worked)*(1/y.share-1)), longestRest), y.changed
}

// Yield is how apply gives way to users now.
type Yield struct {
	At    int     // sessions of users at work from which on it does; 0: never
	Busy  int     // of these at the last look
	Share float64 // of the time in which it works
	Rests uint64  // how often it has waited for users since the start
	Blind bool    // the role may not see what sessions of others do
}

// Yields returns how apply gives way to users now.
func (a *Applier) Yields() Yield {
	y := a.yields
	y.mu.Lock()
	defer y.mu.Unlock()
	return Yield{y.at, y.busy, y.share, y.rests, y.blind}
}

// watchUsers looks at the users' sessions until ctx ends, if apply is to give way to them.
func (a *Applier) watchUsers(ctx context.Context) error {
	tick := time.NewTicker(yieldLook)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if a.yields.limit() == 0 {
			continue
		}
		var busy int
		var seen bool
		err := a.catalog.ask(ctx, func(ctx context.Context, conn *pgx.Conn) error {
			return conn.QueryRow(ctx, busySQL).Scan(&busy, &seen)
		})
		if err != nil {
			return fmt.Errorf("count sessions of users: %w", err)
		}
		a.yields.look(busy, seen)
	}
}

// idled says that nothing was done for users' sessions to notice since then.
func (w *worker) idled(since time.Time) {
	if !w.working.IsZero() {
		w.working = w.working.Add(time.Since(since))
	}
}

// rested waits, with nothing in flight, for as long as apply is to leave the server to its users; it reports whether it has waited.
func (w *worker) rested(ctx context.Context) (bool, error) {
	now := time.Now()
	if w.working.IsZero() {
		w.working = now
	}
	wait, changed := w.yields.rest(now.Sub(w.working))
	if wait <= 0 {
		return false, nil
	}
	err := w.still(ctx, wait, changed)
	w.working = time.Now()
	return true, err
}
