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

// TestDeadNodeIsRoutedAround kills a node on which others depend, for good, under load. The others find each other by other ways,
// also where there is no configured one, and end equal. When it comes back, all do.
func TestDeadNodeIsRoutedAround(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		name     string
		nodes    int
		dead     string
		from, to string // who are neighbours of the dead one, and not of each other
		soak     bool
		topology map[string]string
	}{
		{name: "ring of 5", nodes: 5, dead: "c", from: "b", to: "d", soak: true, topology: map[string]string{"topology.kind": "ring"}},
		{name: "star of 4", nodes: 4, dead: "b", from: "a", to: "d", topology: map[string]string{"topology.kind": "star", "topology.center": "b"}},
		{name: "mesh of 3", nodes: 3, dead: "b", from: "a", to: "c", soak: true, topology: map[string]string{"topology.kind": "mesh"}},
		{name: "two stars", nodes: 6, dead: "d", from: "a", to: "e", soak: true, topology: map[string]string{"topology.kind": "graph", "topology.links": "a-b,a-c,a-d,d-e,d-f"}},
		{name: "ring of 8", nodes: 8, dead: "f", from: "e", to: "g", soak: true, topology: map[string]string{"topology.kind": "ring"}},
	} {
		if x.soak && !pgtest.Soak() {
			continue
		}
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			x.topology["topology.failover_after"] = "1s"
			c := cluster.New(t, cluster.Options{Nodes: x.nodes, Schema: loadSchema + `; CREATE TABLE seen (what text PRIMARY KEY)`, Config: x.topology, Processes: true})
			l := startLoad(t, c, 1, seed(t))
			from, to, dead := c.Node(x.from), c.Node(x.to), c.Node(x.dead)
			from.Exec(`INSERT INTO seen VALUES ('before')`)
			to.Await(`SELECT count(*) FROM seen WHERE what = 'before'`, "1")
			killed := time.Now()
			dead.Kill()
			l.run(time.Second)
			from.Exec(`INSERT INTO seen VALUES ('after')`)
			to.Await(`SELECT count(*) FROM seen WHERE what = 'after'`, "1")
			t.Logf("%s to %s again %s after the kill of %s", x.from, x.to, time.Since(killed).Round(time.Millisecond), x.dead)
			all := c.Nodes
			c.Nodes = slices.DeleteFunc(slices.Clone(all), func(n *cluster.Node) bool { return n == dead })
			c.WaitConverged()
			c.Nodes = all
			dead.Launch()
			c.WaitConverged() // with what the dead node's users wrote meanwhile
		})
	}
}

// TestKillsAreRoutedAround kills one node after the other, brings each back, and says how long it took until what any other node
// wrote was everywhere again. In the long run, 20 kills for each topology.
func TestKillsAreRoutedAround(t *testing.T) {
	if !pgtest.Soak() {
		t.Skip("takes long; TestDeadNodeIsRoutedAround is the short form")
	}
	const after = 2 * time.Second
	for _, x := range []struct {
		name     string
		nodes    int
		topology map[string]string
	}{
		{"mesh of 3", 3, map[string]string{"topology.kind": "mesh"}},
		{"ring of 5", 5, map[string]string{"topology.kind": "ring"}},
		{"star of 5", 5, map[string]string{"topology.kind": "star", "topology.center": "c"}},
		{"two stars", 6, map[string]string{"topology.kind": "graph", "topology.links": "a-b,a-c,a-d,d-e,d-f"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			x.topology["topology.failover_after"] = after.String()
			c := cluster.New(t, cluster.Options{Nodes: x.nodes, Schema: `CREATE TABLE seen (what text, node text, PRIMARY KEY (what, node))`,
				Config: x.topology, Processes: true})
			r := rand.New(rand.NewSource(seed(t)))
			all := c.Nodes
			written := func(what string) {
				for _, n := range c.Nodes {
					n.Exec(`INSERT INTO seen VALUES ($1, $2)`, what, n.Name)
				}
				for _, n := range c.Nodes {
					n.Await(fmt.Sprintf(`SELECT count(*) FROM seen WHERE what = '%s'`, what), fmt.Sprint(len(c.Nodes)))
				}
			}
			var took []time.Duration
			for i := range 20 {
				c.Nodes = all
				written(fmt.Sprintf("before %d", i))
				dead := all[r.Intn(len(all))]
				dead.Exec(`INSERT INTO seen VALUES ($1, $2)`, fmt.Sprintf("last %d", i), dead.Name)
				begun := time.Now()
				dead.Kill()
				c.Nodes = slices.DeleteFunc(slices.Clone(all), func(n *cluster.Node) bool { return n == dead })
				written(fmt.Sprintf("without %s %d", dead.Name, i))
				took = append(took, time.Since(begun))
				c.WaitConverged()
				c.Nodes = all
				dead.Launch()
				c.WaitConverged()
			}
			slices.Sort(took)
			t.Logf("%d kills: flowing again after %s in the median, %s at most; failover_after %s", len(took),
				took[len(took)/2].Round(10*time.Millisecond), took[len(took)-1].Round(10*time.Millisecond), after)
		})
	}
}
