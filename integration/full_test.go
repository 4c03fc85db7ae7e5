package integration

import (
	"fmt"
	"slices"
	"testing"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/stream"
)

// fullSchema has rows that fill a stream soon.
const fullSchema = `CREATE TABLE big (node text, id int, v bytea NOT NULL, PRIMARY KEY (node, id));
ALTER TABLE big ALTER v SET STORAGE EXTERNAL`

// fillStream writes more than stream.max_bytes on a node whose peers are away, until its stream is full.
func fillStream(n *cluster.Node) {
	for i := range 72 { // MiB
		n.Exec(fmt.Sprintf(`INSERT INTO big SELECT '%s', %d + k, decode(repeat(md5(k::text), 4096), 'hex') FROM generate_series(1, 16) k`, n.Name, 16*i))
	}
	n.AwaitStatus(func(r *cluster.Report) bool {
		return r.Publisher.State == stream.StateFull &&
			slices.ContainsFunc(r.Alarms, func(a bridge.Alarm) bool { return a.Code == "stream-full" })
	})
}

func cutAll(c *cluster.Cluster) {
	for _, n := range c.Nodes {
		for _, l := range n.Links {
			l.Cut()
		}
	}
}

func healAll(c *cluster.Cluster) {
	for _, n := range c.Nodes {
		for _, l := range n.Links {
			l.Heal()
		}
	}
}

func newFull(t *testing.T) *cluster.Cluster {
	return cluster.New(t, cluster.Options{Nodes: 2, Schema: fullSchema, Config: map[string]string{
		"stream.max_bytes": "64MiB", "nats.embedded.max_store": "64MiB", "nats.embedded.sync": "interval"}})
}

// TestRestartBehindAFullStream starts a bridge whose own stream is full, in a store that holds no more than that.
func TestRestartBehindAFullStream(t *testing.T) {
	t.Parallel()
	c := newFull(t)
	a := c.Node("a")
	cutAll(c)
	fillStream(a)
	for range 2 {
		a.Stop()
		a.Start()
	}
	healAll(c)
	c.WaitConverged()
}

// TestBothStreamsAreFull: what each node has seen of the other stands behind its own backlog.
func TestBothStreamsAreFull(t *testing.T) {
	t.Parallel()
	pgtest.Long(t)
	c := cluster.New(t, cluster.Options{Nodes: 2, Schema: fullSchema, Config: map[string]string{
		"stream.max_bytes": "64MiB", "nats.embedded.max_store": "256MiB", "nats.embedded.sync": "interval"}})
	cutAll(c)
	for _, n := range c.Nodes {
		fillStream(n)
	}
	healAll(c)
	c.WaitConverged()
}
