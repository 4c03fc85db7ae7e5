package demo

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// failoverAfter is how long a node must be silent here before it is routed around. The default is 10 s, which nobody wants to
// watch.
const failoverAfter = 3 * time.Second

// datacenters is the script of that name: one data centre is lost for good while everybody writes.
func (d *demo) datacenters(ctx context.Context) error {
	d.screen.say("pgbridge demo: %d data centres, a %s, PostgreSQL %s, %s of writing in all of them",
		d.opts.Nodes, d.opts.Topology, d.install.Version, d.opts.Duration)
	config := fmt.Sprintf("  kind: %s\n  failover_after: %s\n", d.opts.Topology, failoverAfter)
	if d.opts.Topology == "star" {
		config += "  center: a\n"
	}
	return inOrder(
		func() error { return d.setUp(ctx, shop, "a "+d.opts.Topology, config) },
		func() error { return d.lossUnderLoad(ctx) },
		func() error { return d.judge(ctx) },
	)
}

func (d *demo) lossUnderLoad(ctx context.Context) error {
	return d.whileAllWrite(ctx, func(ctx context.Context, l *load) error {
		return inOrder(
			func() error { return d.watch(ctx, l.begun.Add(d.opts.Duration*2/5)) },
			func() error { return d.lose(ctx) },
			func() error { return d.watchOn(ctx, l.begun.Add(d.opts.Duration)) },
		)
	})
}

// lose kills the node that the others depend on most, for good, and measures how long it takes until what every other one
// writes is on all of them.
func (d *demo) lose(ctx context.Context) error {
	s, i := d.screen, 1
	if d.opts.Topology == "star" {
		i = 0
	}
	n := d.nodes[i]
	s.title("A data centre is lost")
	s.say("SIGKILL for the bridge of %s, pid %d, and for its PostgreSQL, pid %d. They never come back.", n.name, n.bridge.pid(), n.pg.Pid())
	begun := time.Now()
	close(n.gone)
	n.bridge.kill()
	if err := n.pg.Kill(); err != nil {
		return err
	}
	d.nodes, d.lost = slices.Delete(slices.Clone(d.nodes), i, i+1), append(d.lost, n)
	if err := d.checkpoint(ctx); err != nil {
		return err
	}
	s.say("%s after that, what each of the others wrote was on all of them (a node is given up after %s).", age(time.Since(begun)), age(failoverAfter))
	return nil
}
