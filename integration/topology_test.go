package integration

import (
	"maps"
	"math/rand"
	"slices"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// topologies are those that tests run on: nodes, and how they are linked.
var topologies = []struct {
	name   string
	nodes  int
	config map[string]string
}{
	{"mesh of 3", 3, map[string]string{"topology.kind": "mesh"}},
	{"mesh of 5", 5, map[string]string{"topology.kind": "mesh"}},
	{"ring of 3", 3, map[string]string{"topology.kind": "ring"}},
	{"ring of 5", 5, map[string]string{"topology.kind": "ring"}},
	{"star of 5", 5, map[string]string{"topology.kind": "star", "topology.center": "c"}},
	{"two stars", 6, map[string]string{"topology.kind": "graph", "topology.links": "a-b,a-c,a-d,d-e,d-f"}},
	{"ring of 8", 8, map[string]string{"topology.kind": "ring"}},
	{"random graph of 8", 8, map[string]string{"topology.kind": "graph"}},
}

// linked completes a topology's configuration: of a random graph with random links.
func linked(t *testing.T, config map[string]string, nodes int) map[string]string {
	config = maps.Clone(config)
	if config["topology.kind"] == "graph" && config["topology.links"] == "" {
		config["topology.links"] = randomLinks(rand.New(rand.NewSource(seed(t))), nodes)
		t.Log(config["topology.links"])
	}
	return config
}

// randomLinks is a random tree of nodes a, b, and so on, and up to two links more.
func randomLinks(r *rand.Rand, nodes int) string {
	name := func(i int) string { return string(rune('a' + i)) }
	var links []string
	for i := 1; i < nodes; i++ {
		links = append(links, name(r.Intn(i))+"-"+name(i))
	}
	for range r.Intn(3) {
		p := r.Perm(nodes)
		if l := name(min(p[0], p[1])) + "-" + name(max(p[0], p[1])); !slices.Contains(links, l) {
			links = append(links, l)
		}
	}
	return strings.Join(links, ",")
}

// TestTopologiesConverge: whoever is linked to whom, all nodes get all that is written, once.
func TestTopologiesConverge(t *testing.T) {
	t.Parallel()
	for _, x := range topologies {
		if x.name != "two stars" && !pgtest.Soak() { // TestCrashes has a ring
			continue
		}
		t.Run(x.name, func(t *testing.T) {
			if !pgtest.Soak() {
				t.Parallel()
			}
			many := x.nodes > 6 // each node's slot decodes all WAL of its server
			c := cluster.New(t, cluster.Options{Nodes: x.nodes, Own: many, Schema: loadSchema, Config: linked(t, x.config, x.nodes)})
			taps := c.TapRelays()
			l := startLoad(t, c, 1, seed(t))
			l.run(loadTime() / 2)
			c.WaitConverged()
			requireCounts(t, c, l)
			for link, tap := range taps {
				crossed := tap.Crossed()
				if len(crossed) == 0 {
					t.Errorf("%s: nothing was handed on", link)
				}
				for seq, times := range crossed {
					if times != 1 {
						t.Errorf("%s: transaction %d was handed on %d times", link, seq, times)
					}
				}
				t.Logf("%s: %d transactions were handed on once", link, len(crossed))
			}
		})
	}
}

// TestLargeTransactionsAreHandedOn: their chunks go on as they come, through a chain, also when it is cut and a bridge in
// the middle starts anew in between.
func TestLargeTransactionsAreHandedOn(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 4, Schema: `CREATE TABLE big (id int PRIMARY KEY, v text)`, Config: map[string]string{
		"topology.kind": "graph", "topology.links": "a-b,b-c,c-d", "capture.frame_bytes": "16KiB"}})
	a, b, d := c.Node("a"), c.Node("b"), c.Node("d")
	b.Links["a"].Cut()
	a.Exec(`INSERT INTO big SELECT i, repeat('x', 100) FROM generate_series(1, 20000) i`)
	b.Links["a"].Heal()
	a.Exec(`UPDATE big SET v = 'y' WHERE id % 10 = 0`)
	b.Stop()
	b.Start()
	a.Exec(`DELETE FROM big WHERE id % 10 = 1`)
	d.Exec(`INSERT INTO big SELECT -i, repeat('z', 100) FROM generate_series(1, 20000) i`)
	c.WaitConverged()
	for _, n := range c.Nodes {
		if got := n.Value(`SELECT count(*) || ' ' || count(*) FILTER (WHERE v = 'y') || ' ' || min(id) FROM big`); got != "38000 2000 -20000" {
			t.Errorf("node %s has %s", n.Name, got)
		}
	}
}

// TestTopologiesThatDiffer: who was given another graph than a neighbour says so, with the difference.
func TestTopologiesThatDiffer(t *testing.T) {
	t.Parallel()
	keys := map[string]string{"topology.kind": "ring"}
	c := cluster.New(t, cluster.Options{Nodes: 4, Schema: `CREATE TABLE t (id int PRIMARY KEY)`, Config: keys})
	c.WaitConverged()
	a, b := c.Node("a"), c.Node("b")
	b.Stop()
	keys["topology.kind"], keys["topology.center"] = "star", "b"
	b.Start()
	differs := func(n *cluster.Node, node, text string) {
		t.Helper()
		n.AwaitStatus(func(r *cluster.Report) bool {
			return slices.ContainsFunc(r.Alarms, func(x cluster.Alarm) bool {
				return x.Code == "topology-differs" && strings.Contains(x.Text, "of node "+node) && strings.Contains(x.Text, text)
			})
		})
	}
	a.Exec(`INSERT INTO t VALUES (1)`)
	differs(b, "a", "only here: b-d; only there: a-d, c-d")
	differs(a, "b", "only here: a-d, c-d; only there: b-d")
	b.Stop()
	delete(keys, "topology.center")
	keys["topology.kind"] = "ring"
	b.Start()
	a.Exec(`INSERT INTO t VALUES (2)`)
	for _, n := range []*cluster.Node{a, b} {
		n.AwaitStatus(func(r *cluster.Report) bool { return r.Waiting == "" && len(r.Alarms) == 0 })
	}
	c.WaitConverged()
}
