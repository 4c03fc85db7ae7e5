package integration

import (
	"fmt"
	"math/rand"
	"slices"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// failoverAfter is how long a node must be silent in these tests.
const failoverAfter = 2 * time.Second

// TestDeadNodeIsRoutedAround kills a node on which others depend, under load, and then one after the other at random. The others
// find each other by other ways, also where there is no configured one, and end equal; when it comes back, all do. In its long
// form it says how long it took until what any other node wrote was everywhere again.
func TestDeadNodeIsRoutedAround(t *testing.T) {
	t.Parallel()
	kills := 1
	if pgtest.Soak() {
		kills = 20
	}
	for _, x := range topologies {
		if x.name != "star of 5" && !pgtest.Soak() { // it needs links beside the configured ones
			continue
		}
		t.Run(x.name, func(t *testing.T) {
			if !pgtest.Soak() { // else they are timed
				t.Parallel()
			}
			config := linked(t, x.config, x.nodes)
			config["topology.failover_after"] = failoverAfter.String()
			c := cluster.New(t, cluster.Options{Nodes: x.nodes, Own: true, Schema: loadSchema + `; CREATE TABLE seen (what text, node text, PRIMARY KEY (what, node))`,
				Config: config, Processes: true})
			s := seed(t)
			l := startLoad(t, c, 1, s)
			dead := c.Node("c")
			f := &failover{t: t, c: c, all: c.Nodes}
			f.kill(dead, func() { l.run(time.Second) })
			f.revive(dead)
			r := rand.New(rand.NewSource(s))
			var took []time.Duration
			for range kills {
				dead := f.all[r.Intn(len(f.all))]
				took = append(took, f.kill(dead, func() {}))
				f.revive(dead)
			}
			slices.Sort(took)
			t.Logf("%d kills: flowing again after %s in the median, %s at most; failover_after %s", len(took),
				took[len(took)/2].Round(10*time.Millisecond), took[len(took)-1].Round(10*time.Millisecond), failoverAfter)
		})
	}
}

// failover kills nodes of a cluster and brings them back.
type failover struct {
	t     *testing.T
	c     *cluster.Cluster
	all   []*cluster.Node
	round int
}

// kill kills a node, its bridge and its server, behind a write of its own, lets something happen, and waits until what the others
// write is on all of them, and they are equal. It gives the time from the kill until the former.
func (f *failover) kill(dead *cluster.Node, then func()) time.Duration {
	f.written("with all")
	dead.Exec(`INSERT INTO seen VALUES ($1, $2)`, fmt.Sprintf("%d: its last", f.round), dead.Name)
	begun := time.Now()
	dead.Kill()
	if err := dead.PG.Kill(); err != nil {
		f.t.Fatal(err)
	}
	f.c.Nodes = slices.DeleteFunc(slices.Clone(f.all), func(n *cluster.Node) bool { return n == dead })
	then()
	f.written("without " + dead.Name)
	took := time.Since(begun)
	f.c.WaitConverged()
	return took
}

// revive brings a dead node back. In the end all are equal, with what its users wrote meanwhile.
func (f *failover) revive(dead *cluster.Node) {
	f.c.Nodes = f.all
	if err := dead.PG.Restart(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
	dead.Launch()
	f.c.WaitConverged()
}

// written has each node write, and waits until each has what all wrote.
func (f *failover) written(what string) {
	f.round++
	what = fmt.Sprintf("%d: %s", f.round, what)
	for _, n := range f.c.Nodes {
		n.Exec(`INSERT INTO seen VALUES ($1, $2)`, what, n.Name)
	}
	for _, n := range f.c.Nodes {
		n.Await(fmt.Sprintf(`SELECT count(*) FROM seen WHERE what = '%s'`, what), fmt.Sprint(len(f.c.Nodes)))
	}
}
