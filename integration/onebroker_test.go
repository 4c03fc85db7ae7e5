package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/natstest"
)

// TestOneBrokerForAll: the streams of all nodes live in one cluster of NATS servers, one of which is away for a while.
func TestOneBrokerForAll(t *testing.T) {
	t.Parallel()
	brokers := natstest.NewCluster(t, 3)
	c := cluster.New(t, cluster.Options{Nodes: 3, Schema: loadSchema, Idle: true})
	// Clients that are cut off go to another server by themselves; one that begins while the server is away that it was given does not.
	url := brokers.Servers[1].URL()
	for _, n := range c.Nodes {
		text := fmt.Sprintf("cluster: %s\nnode: %s\ndata_dir: %s\npostgres: {dsn: %q}\nnats: {url: %q}\nstream: {replicas: 3}\ntopology:\n  kind: ring\n  nodes:\n",
			c.Name, n.Name, filepath.Join(n.Dir, "data"), n.DSN, url)
		for _, m := range c.Nodes {
			text += fmt.Sprintf("    %s: %s\n", m.Name, url)
		}
		if err := os.WriteFile(n.File, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		n.Start()
	}
	l := startLoad(t, c, 1, seed(t))
	brokers.Servers[0].Stop()
	l.run(time.Second)
	c.AwaitSent()
	brokers.Servers[0].Start(t)
	brokers.AwaitCurrent(t)
	c.WaitConverged()
	requireCounts(t, c, l)
}
