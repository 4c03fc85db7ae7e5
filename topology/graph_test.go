package topology

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func names(n int) (all []string) {
	for i := range n {
		all = append(all, string(rune('a'+i)))
	}
	return all
}

func TestKinds(t *testing.T) {
	for _, x := range []struct {
		kind  string
		n     int
		links string
	}{
		{KindMesh, 1, "[]"},
		{KindMesh, 4, "[a-b a-c a-d b-c b-d c-d]"},
		{KindRing, 1, "[]"},
		{KindRing, 2, "[a-b b-a]"},
		{KindRing, 5, "[a-b b-c c-d d-e e-a]"},
		{KindStar, 4, "[b-a b-c b-d]"},
		{KindGraph, 3, "[a-b b-c]"},
	} {
		nodes := names(x.n)
		slices.Reverse(nodes)
		if got := fmt.Sprint(Links(x.kind, nodes, "b", []Link{{"a", "b"}, {"b", "c"}})); got != x.links {
			t.Errorf("%s of %d: %s, want %s", x.kind, x.n, got, x.links)
		}
	}
}

func TestParseLink(t *testing.T) {
	if l, err := ParseLink(" a - b_1"); err != nil || l != (Link{"a", "b_1"}) {
		t.Errorf("%v, %v", l, err)
	}
	for _, bad := range []string{"", "a", "a-", "-b", "a-a", "a-b-c"} {
		if l, err := ParseLink(bad); err == nil {
			t.Errorf("%q is %v", bad, l)
		}
	}
}

// TestWaysAreTrees: from whichever node frames begin, each other node has one neighbour that it gets them from, nearer
// than itself, so that none goes round, and each link that is used is crossed once.
func TestWaysAreTrees(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for range 200 {
		nodes := names(1 + r.IntN(9))
		var links []Link
		for range r.IntN(2 * len(nodes)) {
			links = append(links, Link{nodes[r.IntN(len(nodes))], nodes[r.IntN(len(nodes))]})
		}
		g := New(nodes, links)
		for _, part := range g.Parts() {
			for _, root := range part {
				tree := g.Tree(root)
				for _, node := range nodes {
					if next := g.Next(node, root); tree[node] != next {
						t.Fatalf("%v: to %s from %s: %q in the tree, %q by Next", links, node, root, tree[node], next)
					}
					way := []string{node}
					for way[len(way)-1] != root {
						next := g.Next(way[len(way)-1], root)
						if next == "" {
							break
						}
						if slices.Contains(way, next) {
							t.Fatalf("%v: the way from %s to %s goes round: %v", links, node, root, way)
						}
						if !slices.Contains(g.Neighbours(way[len(way)-1]), next) {
							t.Fatalf("%v: %s is no neighbour of %s", links, next, way[len(way)-1])
						}
						way = append(way, next)
					}
					if arrives := way[len(way)-1] == root; arrives != slices.Contains(part, node) {
						t.Fatalf("%v: from %s to %s: %v, part %v", links, node, root, way, part)
					}
				}
			}
		}
	}
}

func TestShortestWayByName(t *testing.T) {
	star := New(names(4), Links(KindStar, names(4), "b", nil))
	for _, x := range []struct {
		node, root string
		want       bool
	}{{"b", "a", true}, {"b", "b", false}, {"a", "b", false}, {"c", "a", false}} {
		if got := star.HandsOn(x.node, x.root); got != x.want {
			t.Errorf("%s hands on what begins at %s: %t", x.node, x.root, got)
		}
	}
	ring := New(names(6), Links(KindRing, names(6), "", nil))
	for node, want := range map[string]string{"a": "", "b": "a", "c": "b", "d": "c", "e": "f", "f": "a"} {
		if got := ring.Next(node, "a"); got != want {
			t.Errorf("%s gets what begins at a from %q, want %q", node, got, want)
		}
	}
}
