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

// TestOneBrokerForAll: the streams of all nodes live in one cluster of NATS servers, one of which is away for a while.
func TestOneBrokerForAll(t *testing.T) {
	t.Parallel()
	brokers := natstest.NewCluster(t, 3)
	c := cluster.New(t, cluster.Options{Nodes: 3, Schema: loadSchema, Idle: true})
	var urls []string
	for _, b := range brokers.Servers {
		urls = append(urls, b.URL())
	}
	for _, n := range c.Nodes {
		text := fmt.Sprintf("cluster: %s\nnode: %s\ndata_dir: %s\npostgres: {dsn: %q}\nnats: {url: %q}\nstream: {replicas: 3}\ntopology:\n  kind: ring\n  nodes:\n",
			c.Name, n.Name, filepath.Join(n.Dir, "data"), n.DSN, strings.Join(urls, ","))
		for _, m := range c.Nodes {
			text += fmt.Sprintf("    %s: %s\n", m.Name, strings.Join(urls, ","))
		}
		if err := os.WriteFile(n.File, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		n.Start()
	}
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
