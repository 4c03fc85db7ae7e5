package topology

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The kinds of graphs that have a name.
const (
	KindMesh  = "mesh"  // every node is linked to every other one
	KindRing  = "ring"  // each node is linked to the next one, and the last to the first, in the order of their names
	KindStar  = "star"  // all are linked to one center
	KindGraph = "graph" // the links are listed
)

// Link joins two nodes, in both directions.
type Link struct{ A, B string }

// String gives "a-b".
func (l Link) String() string { return l.A + "-" + l.B }

// ParseLink reads "a-b". Names of nodes have no hyphen.
func ParseLink(text string) (Link, error) {
	a, b, ok := strings.Cut(text, "-")
	a, b = strings.TrimSpace(a), strings.TrimSpace(b)
	if !ok || a == "" || b == "" || strings.Contains(b, "-") {
		return Link{}, fmt.Errorf("%q is not a link; write the names of two nodes with a hyphen between them, such as a-b", text)
	}
	if a == b {
		return Link{}, fmt.Errorf("link %q leads from a node to itself", text)
	}
	return Link{a, b}, nil
}

// Graph is nodes and links. It is not changed once made, and so safe for concurrent use.
type Graph struct {
	nodes []string // sorted
	near  map[string][]string
	roles map[string]string // of nodes that have one
}

// New makes a graph of nodes. Links to others are left out.
func New(nodes []string, links []Link) *Graph {
	g := &Graph{nodes: slices.Compact(slices.Sorted(slices.Values(nodes))), near: map[string][]string{}}
	for _, l := range links {
		if l.A != l.B && g.Has(l.A) && g.Has(l.B) {
			g.near[l.A], g.near[l.B] = append(g.near[l.A], l.B), append(g.near[l.B], l.A)
		}
	}
	for node, near := range g.near {
		slices.Sort(near)
		g.near[node] = slices.Compact(near)
	}
	return g
}

// Links returns the links of a kind of graph: center counts for a star only, links for a graph.
func Links(kind string, nodes []string, center string, links []Link) []Link {
	nodes = slices.Compact(slices.Sorted(slices.Values(nodes)))
	var all []Link
	switch kind {
	case KindMesh:
		for i, a := range nodes {
			for _, b := range nodes[i+1:] {
				all = append(all, Link{a, b})
			}
		}
	case KindRing:
		for i, a := range nodes {
			if b := nodes[(i+1)%len(nodes)]; a != b {
				all = append(all, Link{a, b})
			}
		}
	case KindStar:
		for _, a := range nodes {
			if a != center {
				all = append(all, Link{center, a})
			}
		}
	case KindGraph:
		all = links
	}
	return all
}

// Nodes returns all nodes, sorted; the caller must not change it.
func (g *Graph) Nodes() []string { return g.nodes }

// Has reports whether there is such a node.
func (g *Graph) Has(node string) bool {
	_, ok := slices.BinarySearch(g.nodes, node)
	return ok
}

// Neighbours returns the nodes to which node is linked, sorted; the caller must not change it.
func (g *Graph) Neighbours(node string) []string { return g.near[node] }

// Distances returns how many links are between root and each node that can be reached from it. Each edge in between counts for as many
// links as there are nodes.
func (g *Graph) Distances(root string) map[string]int {
	d := map[string]int{root: 0}
	for todo := []string{root}; len(todo) > 0; todo = todo[1:] {
		for _, n := range g.near[todo[0]] {
			if far := d[todo[0]] + g.step(todo[0], d); !has(d, n) || far < d[n] {
				d[n] = far
				todo = append(todo, n)
			}
		}
	}
	return d
}

func has(d map[string]int, node string) bool {
	_, ok := d[node]
	return ok
}

// step is how much farther than a node its neighbours are from where distances d begin.
func (g *Graph) step(node string, d map[string]int) int {
	if d[node] == 0 {
		return 1
	}
	return 1 + g.detour(node)
}

// Next returns the neighbour from which node gets what begins at root: the first one by name of those that are
// nearest to it. It is empty if there is no way, or node is root.
func (g *Graph) Next(node, root string) string {
	return g.nearer(node, g.Distances(root))
}

// nearer returns the first neighbour of node by name that is nearer to where distances d begin.
func (g *Graph) nearer(node string, d map[string]int) string {
	own, ok := d[node]
	if !ok || own == 0 {
		return ""
	}
	for _, n := range g.near[node] {
		if d[n]+g.step(n, d) == own {
			return n
		}
	}
	return ""
}

// Tree returns, for each other node that what begins at root reaches, from which neighbour it gets that, as Next does.
func (g *Graph) Tree(root string) map[string]string {
	d, tree := g.Distances(root), map[string]string{}
	for node := range d {
		if from := g.nearer(node, d); from != "" {
			tree[node] = from
		}
	}
	return tree
}

// HandsOn reports whether another node gets from node what begins at root, though node is not where it begins.
func (g *Graph) HandsOn(node, root string) bool {
	return node != root && slices.ContainsFunc(g.near[node], func(n string) bool { return g.Next(n, root) == node })
}

// Parts returns the nodes in groups between which there is no way; the groups and their nodes are in the order of names.
func (g *Graph) Parts() [][]string {
	var parts [][]string
	seen := map[string]bool{}
	for _, node := range g.nodes {
		if seen[node] {
			continue
		}
		part := slices.Sorted(maps.Keys(g.Distances(node)))
		for _, n := range part {
			seen[n] = true
		}
		parts = append(parts, part)
	}
	return parts
}
