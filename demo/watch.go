package demo

import (
	"context"
	"fmt"
	"time"
)

// What a bridge does, as the figures call it.
const (
	bridgeRuns   = "runs"
	bridgePaused = "paused"
	bridgeKilled = "killed"
)

// lookInterval is how often all nodes are looked at while everybody writes.
const lookInterval = 500 * time.Millisecond

// looks counts what the observers saw on all nodes.
type looks struct {
	total   int
	partial int // a part of a transaction, or a child without its parent
}

// sight is what one node shows at one moment, in one snapshot.
type sight struct {
	applied   map[string]int // by the others' names: their last transaction that is there
	conflicts int
	partial   int // orders without their account or without some of their lines
}

// partialSQL counts orders without their account or without some of their lines.
const partialSQL = `SELECT count(*) FROM orders o WHERE (NOT EXISTS (SELECT FROM accounts a WHERE a.id = o.account)
	OR o.lines <> (SELECT count(*) FROM order_lines l WHERE l.order_id = o.id))`

// sightSQL looks only for partial orders that came lately, so that it stays cheap however long it runs.
const sightSQL = `
SELECT (SELECT json_object_agg(origin, seq) FROM pgbridge.position),
       (SELECT count(*) FROM pgbridge.conflict),
       (` + partialSQL + ` AND o.placed_at > now() - interval '15 s')`

// plainSightSQL is sightSQL where there are no orders.
const plainSightSQL = `
SELECT (SELECT json_object_agg(origin, seq) FROM pgbridge.position), (SELECT count(*) FROM pgbridge.conflict), 0`

func (n *node) look(ctx context.Context) (sight, error) {
	var s sight
	sql := plainSightSQL
	if n.world == shop {
		sql = sightSQL
	}
	if err := n.conn.QueryRow(ctx, sql).Scan(&s.applied, &s.conflicts, &s.partial); err != nil {
		return s, fmt.Errorf("look at node %s: %w", n.name, err)
	}
	return s, nil
}

// watch shows the figures until then.
func (d *demo) watch(ctx context.Context, until time.Time) error {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	end := time.NewTimer(time.Until(until))
	defer end.Stop()
	for {
		select {
		case <-tick.C:
		case <-end.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := d.show(ctx); err != nil {
			return err
		}
	}
}

// watchOn is watch after something else, if there is time left.
func (d *demo) watchOn(ctx context.Context, until time.Time) error {
	if time.Now().After(until) {
		return nil
	}
	d.screen.title("Everybody writes on")
	return d.watch(ctx, until)
}

// show takes one look at all nodes and draws what it saw.
func (d *demo) show(ctx context.Context) error {
	all := make([]figure, len(d.nodes))
	for i, n := range d.nodes {
		if err := n.alive(); err != nil {
			return err
		}
		f, err := d.figure(ctx, n)
		if err != nil {
			return err
		}
		all[i] = f
	}
	d.screen.figures(time.Since(d.begun), all)
	d.shown = time.Now()
	return nil
}

// glance is show, but not more often than lookInterval: for those who wait for something else.
func (d *demo) glance(ctx context.Context) error {
	if time.Since(d.shown) < lookInterval {
		return nil
	}
	return d.show(ctx)
}

// figure looks at one node. What the others had committed is counted before, so that what is missing was
// really missing.
func (d *demo) figure(ctx context.Context, n *node) (figure, error) {
	committed, now := map[string]int{}, time.Now()
	for _, m := range d.nodes {
		committed[m.name] = m.ledger.count()
	}
	s, err := n.look(ctx)
	if err != nil {
		return figure{}, err
	}
	d.looks.total++
	d.looks.partial += s.partial
	f := figure{node: n.name, bridge: n.bridge.state(), commits: committed[n.name], rows: n.ledger.tally(), conflicts: s.conflicts}
	for _, m := range d.nodes {
		if m == n {
			continue
		}
		applied := s.applied[m.name]
		f.applied += applied
		if missing := committed[m.name] - applied; missing > 0 {
			f.missing += missing
			f.lag = max(f.lag, now.Sub(m.ledger.at(applied+1)))
		}
	}
	return f, nil
}
