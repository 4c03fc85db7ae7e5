package demo

import (
	"context"
	"fmt"
	"time"
)

// crash kills the last node's bridge under load and lets its primary go on alone until then.
func (d *demo) crash(ctx context.Context, until time.Time) error {
	n, s := d.nodes[len(d.nodes)-1], d.screen
	s.title("A crash")
	s.say("SIGKILL for the bridge of %s, pid %d. Everybody writes on, on %s too.", n.name, n.bridge.pid(), n.name)
	before := n.ledger.count()
	n.bridge.kill()
	if err := d.watch(ctx, until); err != nil {
		return err
	}
	s.say("While its bridge was away, %s's own sessions committed %s transactions.", n.name, grouped(n.ledger.count()-before))
	return d.tellWaiting(ctx, n)
}

// restart brings the killed bridge back and measures how it catches up.
func (d *demo) restart(ctx context.Context) error {
	n, s := d.nodes[len(d.nodes)-1], d.screen
	begun := time.Now()
	if err := n.startBridge(d.opts.Executable); err != nil {
		return err
	}
	s.say("The bridge of %s is started again, pid %d.", n.name, n.bridge.pid())
	if err := n.awaitBridge(ctx); err != nil {
		return err
	}
	up := time.Since(begun)
	if err := d.checkpoint(ctx); err != nil {
		return err
	}
	s.say("It ran after %s; after %s every node had all of it.", age(up), age(time.Since(begun)))
	return nil
}

// tellWaiting says what waits for the bridge of n, and for n's own transactions.
func (d *demo) tellWaiting(ctx context.Context, n *node) error {
	there, err := n.look(ctx)
	if err != nil {
		return err
	}
	theirs, own := 0, 0
	for _, m := range d.nodes {
		if m == n {
			continue
		}
		theirs += max(0, m.ledger.count()-there.applied[m.name])
		elsewhere, err := m.look(ctx)
		if err != nil {
			return err
		}
		own = max(own, n.ledger.count()-elsewhere.applied[n.name])
	}
	var held string
	err = n.conn.QueryRow(ctx, `SELECT pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn))
		FROM pg_replication_slots WHERE slot_name = $1`, fmt.Sprintf("pgb_%s_%s", clusterName, n.name)).Scan(&held)
	if err != nil {
		return fmt.Errorf("look at the slot of node %s: %w", n.name, err)
	}
	d.screen.say("Waiting: %s transactions of %s for the others (its slot holds %s of WAL), %s of the others for %s.",
		grouped(own), n.name, held, grouped(theirs), n.name)
	return nil
}
