package apply

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// How far the nodes' clocks are apart is measured by the bridge and noted in the database, for those who read the conflict
// history.

// NoteClock remembers how far another node's clock is ahead of this machine's, known within so much, and compares this machine's
// with the database's for that.
func (a *Applier) NoteClock(ctx context.Context, node string, ahead, within time.Duration) error {
	a.catalog.mu.Lock()
	defer a.catalog.mu.Unlock()
	var now time.Time
	asked := time.Now()
	if err := a.catalog.conn.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
		return fmt.Errorf("read the database's clock: %w", err)
	}
	half := time.Since(asked) / 2
	ahead -= now.Sub(asked.Add(half))
	if _, err := a.catalog.conn.Exec(ctx, `INSERT INTO pgbridge.clock (node, ahead_us, within_us) VALUES ($1, $2, $3)
		ON CONFLICT (node) DO UPDATE SET ahead_us = EXCLUDED.ahead_us, within_us = EXCLUDED.within_us, at = EXCLUDED.at`,
		node, ahead.Microseconds(), (within + half).Microseconds()); err != nil {
		return fmt.Errorf("note the clock of node %s: %w", node, err)
	}
	a.clocks.mu.Lock()
	defer a.clocks.mu.Unlock()
	a.clocks.by[node] = Clock{Node: node, Ahead: ahead, Within: within + half}
	return nil
}

// Clock is how far another node's clock was ahead of this node's when they were compared last.
type Clock struct {
	Node          string
	Ahead, Within time.Duration // Within: how exactly that is known
}

// clocks are those that were compared, by node.
type clocks struct {
	mu sync.Mutex // guards by
	by map[string]Clock
}

// Clocks returns those that were compared since the start, by name. It is safe for concurrent use.
func (a *Applier) Clocks() []Clock {
	a.clocks.mu.Lock() // not catalog.mu: its session may wait for a user's lock
	defer a.clocks.mu.Unlock()
	return slices.SortedFunc(maps.Values(a.clocks.by), func(x, y Clock) int { return cmp.Compare(x.Node, y.Node) })
}

// AssumedClockError is what clocks that NTP keeps over a wide network are at most apart, for want of a measurement.
const AssumedClockError = 10 * time.Millisecond

// ClockSource says where a History has its clock error from.
type ClockSource string

// The sources of a clock error.
const (
	ClockGiven    ClockSource = "given"
	ClockMeasured ClockSource = "measured"
	ClockAssumed  ClockSource = "assumed"
)

// ClockError returns how far apart two nodes' clocks may be, and who says so.
func (h *History) ClockError() (time.Duration, ClockSource) { return h.clockError, h.source }

// measureClocks reads what the bridge has measured. The table may be of a version without it.
func (h *History) measureClocks(ctx context.Context) error {
	h.clockError, h.source = AssumedClockError, ClockAssumed
	var there bool
	if err := h.conn.QueryRow(ctx, `SELECT to_regclass('pgbridge.clock') IS NOT NULL`).Scan(&there); err != nil || !there {
		return err
	}
	var most *int64
	err := h.conn.QueryRow(ctx, `SELECT max(abs(ahead_us) + within_us) FROM pgbridge.clock WHERE at > clock_timestamp() - interval '1 day'`).Scan(&most)
	if hasCode(err, "42501") {
		return nil // a role that may only read the history
	}
	if err == nil && most != nil {
		h.clockError, h.source = time.Duration(*most)*time.Microsecond, ClockMeasured
	}
	return err
}
