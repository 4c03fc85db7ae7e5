package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// startTimeout bounds the start of all servers, with initdb on a busy machine.
const startTimeout = 2 * time.Minute

// sharedAccounts are changed by everybody, so that some changes meet.
const sharedAccounts = 1000

// setUp brings up servers, tables and bridges, and sees the first rows arrive everywhere.
func (d *demo) setUp(ctx context.Context, w *world, topology, config string) error {
	d.screen.title("Set-up")
	return inOrder(
		func() error { return d.startServers(ctx, w) },
		func() error { return d.startBridges(ctx, topology, config) },
		func() error { return d.firstRows(ctx) },
	)
}

func (d *demo) startServers(ctx context.Context, w *world) error {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	started, errs := make([]*node, d.opts.Nodes), make([]error, d.opts.Nodes)
	inParallel(d.opts.Nodes, func(i int) {
		started[i], errs[i] = newNode(ctx, w, i, d.install)
	})
	for _, n := range started {
		if n != nil { // also of a failed one what runs must be closed
			d.nodes = append(d.nodes, n)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	d.screen.say("%s  %d PostgreSQL clusters, each with %s", took(begun), len(d.nodes), w.tables)
	return nil
}

// startBridges starts them with a configuration that says nothing that has a default, but for config.
func (d *demo) startBridges(ctx context.Context, topology, config string) error {
	begun := time.Now()
	addrs, err := freeAddrs(len(d.nodes))
	if err != nil {
		return err
	}
	for i, n := range d.nodes {
		if !slices.Contains(n.world.edges, n.name) {
			n.listen = addrs[i]
		}
	}
	for _, n := range d.nodes {
		if err := n.writeConfig(d.nodes, config); err != nil {
			return fmt.Errorf("write the configuration of bridge %s: %w", n.name, err)
		}
		if err := n.startBridge(d.opts.Executable); err != nil {
			return err
		}
	}
	for _, n := range d.nodes {
		if err := n.awaitBridge(ctx); err != nil {
			return err
		}
	}
	d.screen.say("%s  %d bridges, each a program with a NATS server inside: %s of %d links",
		took(begun), len(d.nodes), topology, d.links())
	for _, n := range d.nodes {
		nats := "on " + n.listen
		if n.listen == "" {
			nats = "on no address"
		}
		d.screen.say("         %s: PostgreSQL on 127.0.0.1:%d, NATS %s, bridge pid %d", n.name, n.pg.Port(), nats, n.bridge.pid())
	}
	return nil
}

// links is how many readers there are between nodes that are linked.
func (d *demo) links() int {
	n := len(d.nodes)
	switch {
	case d.opts.Topology == "ring":
		return 2 * n
	case d.opts.Topology == "star", d.opts.Scenario == Offline:
		return 2 * (n - 1)
	}
	return n * (n - 1)
}

// firstRows writes the shared accounts on the first node and waits until they stand on all.
func (d *demo) firstRows(ctx context.Context) error {
	begun := time.Now()
	n := d.nodes[0]
	tag, err := n.conn.Exec(ctx, `INSERT INTO accounts (id, owner, city, changed_on)
		SELECT lpad(i::text, 32, '0')::uuid, 'shared ' || i, 'Rome', $1 FROM generate_series(0, $2) i`, n.name, sharedAccounts)
	if err != nil {
		return fmt.Errorf("insert the first rows on node %s: %w", n.name, err)
	}
	n.ledger.note(tally{inserts: int(tag.RowsAffected())})
	if err := d.checkpoint(ctx); err != nil {
		return err
	}
	d.screen.say("%s  the first %s rows, inserted on %s, stand on all nodes", took(begun), grouped(int(tag.RowsAffected())), n.name)
	return nil
}

// checkpointTimeout is what everything that was committed may take to arrive everywhere.
const checkpointTimeout = 60 * time.Second

// checkpoint writes a row on each node, behind everything that was committed there before, and waits
// until every node shows all of them: a node applies another's transactions in their order.
func (d *demo) checkpoint(ctx context.Context) error {
	d.rounds++
	d.shown = time.Now()
	for _, n := range d.nodes {
		tag, err := n.conn.Exec(ctx, `INSERT INTO checkpoints VALUES ($1, $2)
			ON CONFLICT (node) DO UPDATE SET round = EXCLUDED.round`, n.name, d.rounds)
		if err != nil {
			return fmt.Errorf("write checkpoint on node %s: %w", n.name, err)
		}
		t := tally{inserts: int(tag.RowsAffected())}
		if d.rounds > 1 {
			t = tally{updates: t.inserts}
		}
		n.ledger.note(t)
	}
	return await(ctx, checkpointTimeout, func(ctx context.Context) (string, error) {
		if err := d.glance(ctx); err != nil {
			return "", err
		}
		for _, n := range d.nodes {
			var arrived int
			err := n.conn.QueryRow(ctx, `SELECT count(*) FROM checkpoints WHERE round >= $1`, d.rounds).Scan(&arrived)
			if err != nil {
				return "", fmt.Errorf("read checkpoints on node %s: %w", n.name, err)
			}
			if arrived < len(d.nodes) {
				return fmt.Sprintf("node %s has not received everything: %d of %d checkpoints are there", n.name, arrived, len(d.nodes)), nil
			}
		}
		return "", nil
	})
}

// took gives the time since then, as wide as "12.34 s".
func took(since time.Time) string { return fmt.Sprintf("%5.2f s", time.Since(since).Seconds()) }
