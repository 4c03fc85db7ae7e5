package topology

import (
	"math/rand/v2"
	"testing"
)

// TestWaysAvoidEdges: ways lead through an edge only where there is no other one, and what an edge writes, or gets, takes the
// shortest way.
func TestWaysAvoidEdges(t *testing.T) {
	edges := func(g *Graph, nodes ...string) *Graph {
		roles := map[string]string{}
		for _, node := range nodes {
			roles[node] = RoleEdge
		}
		return g.As(roles)
	}
	for _, x := range []struct {
		name       string
		graph      *Graph
		node, root string
		want       string
	}{
		{"around the ring", edges(named(KindRing, 6, ""), "b"), "c", "a", "d"},
		{"without edges", named(KindRing, 6, ""), "c", "a", "b"},
		{"of equal ways", edges(named(KindRing, 4, ""), "b"), "c", "a", "d"},
		{"to an edge", edges(named(KindRing, 6, ""), "b"), "b", "d", "c"},
		{"from an edge", edges(named(KindRing, 6, ""), "b"), "e", "b", "d"},
		{"no other way", edges(New(names(3), []Link{{"a", "b"}, {"b", "c"}}), "b"), "c", "a", "b"},
		{"one edge rather than two", edges(New(names(6), []Link{{"a", "b"}, {"b", "c"}, {"c", "d"}, {"d", "f"}, {"a", "e"}, {"e", "f"}}), "b", "d", "e"), "f", "a", "e"},
	} {
		if got := x.graph.Next(x.node, x.root); got != x.want {
			t.Errorf("%s: %s gets what begins at %s from %q, want %q", x.name, x.node, x.root, got, x.want)
		}
	}
}

// TestWaysWithEdgesAreTrees: also with edges in it, whichever way is taken gets to its root and does not go round, and the same nodes
// can be reached as without roles.
func TestWaysWithEdgesAreTrees(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for range 300 {
		g := anyGraph(r, 3+r.IntN(9))
		for _, root := range g.Nodes() {
			for _, node := range g.Nodes() {
				at := node
				for range g.Nodes() {
					if at != root {
						at = g.Next(at, root)
					}
				}
				if at != root {
					t.Fatalf("%s: from %s the way to %s ends at %q", g, node, root, at)
				}
			}
		}
	}
}

// TestRolesAreTold: nodes that were told of different roles differ, and those that were told the same do not.
func TestRolesAreTold(t *testing.T) {
	g := named(KindStar, 3, "a")
	edge := g.As(map[string]string{"b": RoleEdge, "c": "", "x": RoleReader})
	if got := edge.String(); got != "a b c b:edge a-b a-c" {
		t.Errorf("text: %s", got)
	}
	if got := Difference(edge.String(), g.As(map[string]string{"b": RoleReader}).String()); got != "only here: b:edge; only there: b:reader" {
		t.Errorf("difference: %s", got)
	}
}
