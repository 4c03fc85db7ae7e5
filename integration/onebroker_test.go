package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/natstest"
)

// onBroker starts the nodes of an idle cluster as a ring whose streams all live in the broker at url.
func onBroker(t *testing.T, c *cluster.Cluster, url, more string) {
	t.Helper()
	for _, n := range c.Nodes {
		text := fmt.Sprintf("cluster: %s\nnode: %s\ndata_dir: %s\npostgres: {dsn: %q}\nnats: {url: %q}\n%s\ntopology:\n  kind: ring\n  nodes:\n",
			c.Name, n.Name, filepath.Join(n.Dir, "data"), n.DSN, url, more)
		for _, m := range c.Nodes {
			text += fmt.Sprintf("    %s: %s\n", m.Name, url)
		}
		if err := os.WriteFile(n.File, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		n.Start()
	}
}

// TestOneBrokerForAll: the streams of all nodes live in one cluster of NATS servers, one of which is away for a while.
func TestOneBrokerForAll(t *testing.T) {
	t.Parallel()
	brokers := natstest.NewCluster(t, 3)
	c := cluster.New(t, cluster.Options{Nodes: 3, Schema: loadSchema, Idle: true})
	var urls []string
	for _, b := range brokers.Servers {
		urls = append(urls, b.URL())
	}
	onBroker(t, c, strings.Join(urls, ","), "stream: {replicas: 3}")
	l := startLoad(t, c, 1, seed(t))
	brokers.Servers[0].Stop()
	c.Node("b").Stop()
	c.Node("b").Start() // its connections are new ones
	l.run(time.Second)
	c.AwaitSent()
	brokers.Servers[0].Start(t)
	brokers.AwaitCurrent(t)
	c.WaitConverged()
	requireCounts(t, c, l)
}
