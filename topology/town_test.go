package topology

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

const (
	tick     = 100 * time.Millisecond
	patience = 10 * tick
)

// town is nodes that hear each other, in virtual time. It does with views what the bridge does.
type town struct {
	graph *Graph
	r     *rand.Rand
	now   time.Time
	homes map[string]*home
	cut   map[Link]bool // A does not hear B
	late  map[Link]int  // by how many ticks A hears B late
	post  []letter
}

// home is a node. It is dead while it has no view or is paused.
type home struct {
	view   *View
	paused bool
	has    map[string]uint64
	look   *Outlook // at its last hello
}

type letter struct {
	to  string
	h   *Hello
	due time.Time
}

// newTown returns a town in which nobody lives yet. What the nodes have of each other differs, with ties.
func newTown(g *Graph, r *rand.Rand) *town {
	tn := &town{graph: g, r: r, now: time.Unix(1e9, 0), homes: map[string]*home{}, cut: map[Link]bool{}, late: map[Link]int{}}
	for _, node := range g.nodes {
		h := &home{has: map[string]uint64{}}
		for _, o := range g.nodes {
			h.has[o] = uint64(10 + r.IntN(4))
		}
		h.has[node] = 20
		tn.homes[node] = h
	}
	return tn
}

// oldTown returns a town in which all have lived for a while.
func oldTown(g *Graph, r *rand.Rand) *town {
	tn := newTown(g, r)
	tn.begin(g.nodes...)
	tn.run(12)
	return tn
}

// begin starts nodes anew: they know nothing but what they have.
func (tn *town) begin(nodes ...string) {
	for _, node := range nodes {
		h := tn.homes[node]
		*h = home{view: NewView(node, tn.graph, patience, tn.now), has: h.has}
	}
}

func (tn *town) kill(nodes ...string) {
	for _, node := range nodes {
		tn.homes[node].view = nil
	}
}

// pause makes nodes dead that remember everything when they wake.
func (tn *town) pause(paused bool, nodes ...string) {
	for _, node := range nodes {
		tn.homes[node].paused = paused
	}
}

// revive brings dead nodes back, with what they knew or anew.
func (tn *town) revive(anew bool, nodes ...string) {
	tn.pause(false, nodes...)
	if anew {
		tn.begin(nodes...)
	}
}

func (tn *town) lives(node string) bool { return tn.homes[node].view != nil && !tn.homes[node].paused }

func (tn *town) living() []string {
	return slices.DeleteFunc(slices.Clone(tn.graph.nodes), func(node string) bool { return !tn.lives(node) })
}

// part cuts all links between two groups, or heals them.
func (tn *town) part(cut bool, as, bs []string) {
	for _, a := range as {
		for _, b := range bs {
			tn.cut[Link{a, b}], tn.cut[Link{b, a}] = cut, cut
		}
	}
}

// joins reports whether two nodes can hear each other.
func (tn *town) joins(a, b string) bool {
	return !tn.cut[Link{a, b}] && !tn.cut[Link{b, a}] && !(tn.graph.Edge(a) && tn.graph.Edge(b))
}

func (tn *town) run(ticks int) {
	for range ticks {
		tn.tick()
	}
}

// tick lets each node act, in any order: what it says may be passed on in the same tick, or in the next one.
func (tn *town) tick() {
	tn.now = tn.now.Add(tick)
	tn.deliver()
	nodes := tn.living()
	tn.r.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	for _, node := range nodes {
		h := tn.homes[node]
		hello := h.view.Hello(maps.Clone(h.has), tn.now)
		h.look = h.view.Look(tn.now)
		for _, o := range h.look.Knock {
			if tn.graph.Edge(o) {
				panic(node + " knocks at edge " + o)
			}
			if tn.lives(o) && !tn.cut[Link{node, o}] { // who reaches it can ask it
				tn.homes[o].view.Knocked(node, tn.now)
			}
		}
		for _, to := range tn.graph.nodes {
			if l := (Link{to, node}); tn.listens(to, node) && !tn.cut[l] {
				tn.post = append(tn.post, letter{to, hello, tn.now.Add(time.Duration(tn.late[l]) * tick)})
			}
		}
		tn.deliver()
	}
}

func (tn *town) deliver() {
	tn.post = slices.DeleteFunc(tn.post, func(l letter) bool {
		if l.due.After(tn.now) {
			return false
		}
		if h := tn.homes[l.to]; tn.lives(l.to) {
			h.view.Hear(l.h, tn.now)
		}
		return true
	})
}

// listens reports whether a node hears another one that it can reach. An edge is reached where it has dialled itself.
func (tn *town) listens(node, to string) bool {
	return tn.asks(node, to) && (!tn.graph.Edge(to) || tn.asks(to, node) && !tn.cut[Link{to, node}])
}

// asks reports whether a node wants to hear another one.
func (tn *town) asks(node, to string) bool {
	return tn.lives(node) && tn.homes[node].look != nil && slices.Contains(tn.homes[node].look.Listen, to)
}

func (tn *town) ways() map[string]map[string]string {
	all := map[string]map[string]string{}
	for _, node := range tn.living() {
		v := tn.homes[node].view
		g := v.live(tn.now, true)
		all[node] = map[string]string{}
		for o, w := range v.ways(g, g.Distances(node)) {
			all[node][o] = w.From
		}
	}
	return all
}

// unlike says which way of a living node is not that of the graph, or "".
func (tn *town) unlike() string {
	ways := tn.ways()
	for _, node := range tn.living() {
		for _, o := range tn.graph.nodes {
			if want := tn.graph.Next(node, o); ways[node][o] != want {
				return fmt.Sprintf("%s gets %s from %q, want %q", node, o, ways[node][o], want)
			}
		}
	}
	return ""
}

// extras says which links beside the configured ones there are.
func (tn *town) extras() (all []string) {
	for _, node := range tn.living() {
		for _, o := range slices.Sorted(maps.Keys(tn.homes[node].view.extra)) {
			all = append(all, node+"<"+o)
		}
	}
	return all
}

// furthest returns the first one by name of those in a group that have most of what a node wrote.
func (tn *town) furthest(o string, group []string) string {
	best := group[0]
	for _, node := range group {
		if tn.homes[node].has[o] > tn.homes[best].has[o] {
			best = node
		}
	}
	return best
}

// wrong says which way is wrong, or "". In each group, what a node of it wrote must lead from there to all of it, and what
// another one wrote from the one that has most; each hop by the node's own view, over a link that carries both ways.
func (tn *town) wrong(groups ...[]string) string {
	ways := tn.ways()
	for _, group := range groups {
		for _, o := range tn.graph.nodes {
			root, end := o, ""
			if !slices.Contains(group, o) {
				root = tn.furthest(o, group)
				if slices.Contains(tn.graph.near[root], o) {
					end = o
				}
				if ways[root][o] != end {
					return fmt.Sprintf("%s, which has most of %s, gets it from %q, want %q", root, o, ways[root][o], end)
				}
			}
			for _, node := range group {
				way := []string{node}
				for at := node; at != root; at = way[len(way)-1] {
					next := ways[at][o]
					way = append(way, next)
					if !slices.Contains(group, next) || !tn.joins(at, next) || len(way) > len(group) {
						return fmt.Sprintf("%s gets %s by %q, want a way to %s", node, o, way, root)
					}
				}
			}
		}
	}
	return ""
}

// mustHold checks at each of some ticks.
func (tn *town) mustHold(t *testing.T, what string, ticks int, fault func() string) {
	t.Helper()
	begun := tn.now
	for range ticks {
		if text := fault(); text != "" {
			t.Fatalf("%s, links %v, %v later: %s", what, tn.graph.links(), tn.now.Sub(begun), text)
		}
		tn.tick()
	}
}

// links returns each link once.
func (g *Graph) links() (all []Link) {
	for _, a := range g.nodes {
		for _, b := range g.near[a] {
			if a < b {
				all = append(all, Link{a, b})
			}
		}
	}
	return all
}

func named(kind string, n int, center string) *Graph {
	return New(names(n), Links(kind, names(n), center, nil))
}

// joinedStars are two stars with one node between their centers, d.
func joinedStars() *Graph {
	return New(names(7), []Link{{"a", "b"}, {"c", "b"}, {"b", "d"}, {"d", "f"}, {"e", "f"}, {"g", "f"}})
}

// hubs are three nodes that are all linked, and an edge that is linked to two of them: the ways of what these write are open without
// it.
func hubs() *Graph {
	return New(names(4), []Link{{"b", "c"}, {"b", "d"}, {"c", "d"}, {"a", "b"}, {"a", "c"}}).As(map[string]string{"a": RoleEdge})
}

// devices are a star of edges, and of one node that they can dial beside the center.
func devices() *Graph {
	return named(KindStar, 5, "c").As(map[string]string{"a": RoleEdge, "d": RoleEdgeReader, "e": RoleEdge})
}

// someEdges makes some nodes edges that have no links to each other, so that three others stay.
func someEdges(r *rand.Rand, g *Graph) *Graph {
	roles := map[string]string{}
	for range r.IntN(max(len(g.nodes)-2, 1)) {
		node := g.nodes[r.IntN(len(g.nodes))]
		if !slices.ContainsFunc(g.near[node], func(n string) bool { return roles[n] != "" }) {
			roles[node] = RoleEdge
		}
	}
	return g.As(roles)
}

// anyGraph returns a graph in which there is a way between all nodes. Some of them may be edges.
func anyGraph(r *rand.Rand, n int) *Graph {
	nodes := names(n)
	r.Shuffle(n, func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	var links []Link
	for i := 1; i < n; i++ {
		links = append(links, Link{nodes[i], nodes[r.IntN(i)]})
	}
	for range r.IntN(n) {
		links = append(links, Link{nodes[r.IntN(n)], nodes[r.IntN(n)]})
	}
	return someEdges(r, New(nodes, links))
}

func seeded(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// shapes are graphs by what they are.
func shapes(r *rand.Rand) map[string]*Graph {
	all := map[string]*Graph{
		"mesh": named(KindMesh, 5, ""), "ring of 5": named(KindRing, 5, ""), "ring of 6": named(KindRing, 6, ""),
		"star": named(KindStar, 5, "c"), "star, first": named(KindStar, 5, "a"), "star, last": named(KindStar, 5, "e"),
		"joined stars": joinedStars(), "hubs": hubs(), "devices": devices(),
	}
	for i := range 4 {
		all[fmt.Sprint("any ", i)] = anyGraph(r, 3+r.IntN(6))
	}
	return all
}

// inOrder gives shapes in the order of their names, so that a seed makes the same towns again.
func inOrder(all map[string]*Graph) []string { return slices.Sorted(maps.Keys(all)) }

// differ says which nodes see it otherwise than the first one of those that they reach, or "".
func (tn *town) differ() string {
	for _, node := range tn.living() {
		live := tn.homes[node].view.live(tn.now, true)
		first := slices.Min(slices.Collect(maps.Keys(live.Distances(node))))
		if !tn.lives(first) {
			return fmt.Sprintf("%s takes %s for alive", node, first)
		}
		other := tn.homes[first].view.live(tn.now, true)
		if !slices.Equal(live.nodes, other.nodes) || !slices.Equal(live.links(), other.links()) {
			return fmt.Sprintf("%s sees %v %v, %s sees %v %v", node, live.nodes, live.links(), first, other.nodes, other.links())
		}
	}
	return ""
}

// parts are the groups of those that live and reach each other, as they see it.
func (tn *town) parts() (all [][]string) {
	for _, node := range tn.living() {
		part := slices.Sorted(maps.Keys(tn.homes[node].view.live(tn.now, true).Distances(node)))
		if part[0] == node {
			all = append(all, part)
		}
	}
	return all
}

// read lets each node get from whom it reads all that one has.
func (tn *town) read() {
	ways := tn.ways()
	for _, node := range tn.living() {
		for o, from := range ways[node] {
			if from != "" && tn.lives(from) && !tn.cut[Link{node, from}] {
				tn.homes[node].has[o] = max(tn.homes[node].has[o], tn.homes[from].has[o])
			}
		}
	}
}
