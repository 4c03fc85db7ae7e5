package cluster

import (
	"context"
	"errors"

	"github.com/pgbridge/pgbridge/bridge"
)

// Grow adds a node whose database has the tables and no rows, and tells all others of it, whose bridges start again one after the other.
// It has yet to join.
func (c *Cluster) Grow() *Node {
	c.t.Helper()
	c.add(len(c.Nodes))
	n := c.Nodes[len(c.Nodes)-1]
	for _, m := range c.Nodes[:len(c.Nodes)-1] {
		m.Links[n.Name] = newLink(c.t, n.Listen)
		n.Links[m.Name] = newLink(c.t, m.Listen)
	}
	n.Exec(sentinelTable + c.opts.Schema)
	for _, table := range n.tables() {
		n.Exec("TRUNCATE " + table.name + " CASCADE")
	}
	c.Reconfigure()
	return n
}

// Reconfigure writes all configurations anew, of the nodes as they are now, and starts the bridges that run again one after the other.
func (c *Cluster) Reconfigure() {
	c.t.Helper()
	for _, n := range c.Nodes {
		n.writeConfig()
		if n.stop != nil || n.process != nil {
			n.Stop()
			n.Start()
		}
	}
}

// Ended waits until the node's bridge, in process, has ended by itself, and returns why.
func (n *Node) Ended() error {
	n.t.Helper()
	err := <-n.ended
	n.ended <- err // for whoever stops it
	return err
}

// Run runs the node's bridge until it ends by itself, and returns why.
func (n *Node) Run() error {
	n.t.Helper()
	ctx, cancel := context.WithTimeoutCause(n.t.Context(), convergeTime, errors.New("it does not end"))
	defer cancel()
	if err := bridge.Run(ctx, n.Load(), bridge.Options{Logger: n.Logger()}); err != nil {
		return err
	}
	return context.Cause(ctx)
}
