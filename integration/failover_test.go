package integration

import (
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
		{name: "ring of 5", nodes: 5, dead: "c", from: "b", to: "d", topology: map[string]string{"topology.kind": "ring"}},
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
