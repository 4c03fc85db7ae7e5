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

// town is nodes that hear each other, in virtual time. It does with views what the bridge does: it says hello each tick, looks
// for nodes that are missing, and gives up links beside the configured ones when they are not needed.
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
	extra  map[string]*ear // nodes that are listened to without a configured link
	probe  string
	joined time.Time
}

type ear struct{ since, last time.Time }

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
		*h = home{view: NewView(node, tn.graph, patience, tn.now), has: h.has, extra: map[string]*ear{}}
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
func (tn *town) joins(a, b string) bool { return !tn.cut[Link{a, b}] && !tn.cut[Link{b, a}] }

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
		missing := h.view.Missing(tn.now)
		tn.tidy(h)
		tn.look(node, missing)
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
			if e := h.extra[l.h.Node]; e != nil {
				e.last = tn.now
			}
		}
		return true
	})
}

func (tn *town) listens(node, to string) bool {
	return tn.lives(node) && (slices.Contains(tn.graph.near[node], to) || tn.homes[node].extra[to] != nil)
}

func (tn *town) listen(node, to string) {
	if tn.lives(node) && !tn.listens(node, to) {
		tn.homes[node].extra[to] = &ear{since: tn.now}
	}
}

func (tn *town) tidy(h *home) {
	// Without such links it does not matter, and is spared.
	if len(h.extra) == 0 || h.view.Needed(tn.now) {
		h.joined = tn.now
	}
	maps.DeleteFunc(h.extra, func(_ string, e *ear) bool {
		age := tn.now.Sub(e.since)
		silent := age > 3*tick && tn.now.Sub(e.last) > 2*patience
		return silent || age > 2*patience && tn.now.Sub(h.joined) > 2*patience
	})
}

// look tries the next of the missing nodes: who reaches it listens to it, and asks it to listen back.
func (tn *town) look(node string, missing []string) {
	if len(missing) == 0 {
		return
	}
	h := tn.homes[node]
	at, _ := slices.BinarySearch(missing, h.probe+"\x00")
	h.probe = missing[at%len(missing)]
	for _, o := range missing {
		if tn.lives(o) && !tn.cut[Link{node, o}] && (o == h.probe || h.extra[o] != nil) {
			tn.listen(node, o)
			tn.listen(o, node)
		}
	}
}

func (tn *town) ways() map[string]map[string]string {
	all := map[string]map[string]string{}
	for _, node := range tn.living() {
		all[node] = tn.homes[node].view.Ways(tn.now)
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
		for _, o := range slices.Sorted(maps.Keys(tn.homes[node].extra)) {
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

// anyGraph returns a graph in which there is a way between all nodes.
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
	return New(nodes, links)
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
		"joined stars": joinedStars(),
	}
	for i := range 4 {
		all[fmt.Sprint("any ", i)] = anyGraph(r, 3+r.IntN(6))
	}
	return all
}

// inOrder gives shapes in the order of their names, so that a seed makes the same towns again.
func inOrder(all map[string]*Graph) []string { return slices.Sorted(maps.Keys(all)) }

// TestHear: only what is new about links is news, and nobody is told of itself or of strangers.
func TestHear(t *testing.T) {
	g := named(KindRing, 4, "")
	now := time.Unix(1e9, 0)
	v := NewView("a", g, patience, now)
	hello := func(node string, n uint64, hears ...string) *Hello {
		return &Hello{State: State{Node: node, Life: 1, N: n, Hears: hears}}
	}
	for _, x := range []struct {
		what string
		h    *Hello
		news bool
	}{
		{"a stranger", hello("x", 1), false},
		{"itself", hello("a", 1), false},
		{"the first hello", hello("b", 1), true},
		{"nothing new", hello("b", 2), false},
		{"another link", hello("b", 3, "a"), true},
		{"an old one", hello("b", 2), false},
		{"of another", &Hello{State: hello("b", 4, "a").State, Others: []State{hello("c", 1, "b").State}}, true},
		{"of another, again", &Hello{State: hello("b", 5, "a").State, Others: []State{hello("c", 1).State}}, false},
		{"of itself", &Hello{State: hello("b", 6, "a").State, Others: []State{hello("a", 9, "c").State}}, false},
	} {
		if news := v.Hear(x.h, now); news != x.news {
			t.Errorf("%s is news: %t", x.what, news)
		}
	}
	if v.known["x"] != nil || v.known["a"] != nil || len(v.known["c"].Hears) != 1 {
		t.Errorf("known: %v", v.known)
	}
	if now = now.Add(patience + 1); !v.Hear(hello("b", 7, "a"), now) {
		t.Error("that b is heard again is no news")
	}
}

// TestViewOfWhatIsWhole: while nothing is broken, ways are those of the graph, from before the first hello on.
func TestViewOfWhatIsWhole(t *testing.T) {
	r := seeded(t)
	all := shapes(r)
	for _, name := range inOrder(all) {
		tn := newTown(all[name], r)
		tn.begin(tn.graph.nodes...)
		tn.mustHold(t, name, 40, tn.unlike)
		if got := tn.extras(); got != nil {
			t.Errorf("%s: looked for %v", name, got)
		}
	}
}

// TestViewBeginsOneByOne: nodes that do not begin at once, but soon enough, wait for each other with the ways of the graph.
func TestViewBeginsOneByOne(t *testing.T) {
	r := seeded(t)
	all := shapes(r)
	for _, name := range inOrder(all) {
		tn := newTown(all[name], r)
		at := map[string]int{}
		for _, node := range tn.graph.nodes {
			at[node] = r.IntN(5)
		}
		for i := range 5 {
			for _, node := range tn.graph.nodes {
				if at[node] == i {
					tn.begin(node)
				}
			}
			tn.mustHold(t, name, 1, tn.unlike)
		}
		tn.mustHold(t, name, 40, tn.unlike)
	}
}

// soon is how many ticks it may take until all go around dead nodes: they are silent for a while, and the word spreads. If
// the others are apart without them, they have to find each other, and to hear each other for a while.
func soon(tn *town) int {
	n := len(tn.graph.nodes)
	if len(New(tn.living(), tn.graph.links()).Parts()) == 1 {
		return 10 + n + 1
	}
	return 10 + n + n + 5 + n + 1
}

// deaths are which nodes of which graphs die in tests.
func deaths(r *rand.Rand) (all []death) {
	star := named(KindStar, 6, "c")
	all = []death{
		{"ring of 5", named(KindRing, 5, ""), []string{"b"}},
		{"ring of 5, first", named(KindRing, 5, ""), []string{"a"}},
		{"ring of 6, two", named(KindRing, 6, ""), []string{"b", "e"}},
		{"mesh", named(KindMesh, 5, ""), []string{"a", "d"}},
		{"star's center", star, []string{"c"}},
		{"star's center that is first", named(KindStar, 5, "a"), []string{"a"}},
		{"star's center and leaf", star, []string{"a", "c"}},
		{"star's leaf", star, []string{"b"}},
		{"joint of stars", joinedStars(), []string{"d"}},
		{"joint and center of stars", joinedStars(), []string{"d", "f"}},
	}
	for i := range 6 {
		g := anyGraph(r, 4+r.IntN(5))
		dead := slices.Clone(g.nodes)
		r.Shuffle(len(dead), func(i, j int) { dead[i], dead[j] = dead[j], dead[i] })
		all = append(all, death{fmt.Sprint("any ", i), g, dead[:1+i%2]})
	}
	return all
}

type death struct {
	name  string
	graph *Graph
	nodes []string
}

func (d death) String() string { return fmt.Sprintf("%s without %v", d.name, d.nodes) }

// TestViewGoesAround: when nodes die, the others soon get what each of them writes around them, and what the dead ones wrote
// from the one that has most of it.
func TestViewGoesAround(t *testing.T) {
	r := seeded(t)
	for _, d := range deaths(r) {
		tn := oldTown(d.graph, r)
		tn.kill(d.nodes...)
		tn.run(soon(tn))
		tn.mustHold(t, d.String(), 40, func() string { return tn.wrong(tn.living()) })
	}
}

// TestViewComesBack: when the dead live again, ways are soon those of the graph, and no other links stay.
func TestViewComesBack(t *testing.T) {
	r := seeded(t)
	for i, d := range deaths(r) {
		for _, anew := range []bool{true, false} {
			tn := oldTown(d.graph, r)
			tn.pause(true, d.nodes...)
			tn.run(40)
			tn.pause(false, d.nodes...)
			if anew {
				tn.begin(d.nodes...)
			}
			// Heard for long enough, not needed for twice the time, and silent.
			tn.run(5 + 2*10 + 10 + 3*len(d.graph.nodes))
			what := fmt.Sprintf("%d: %v for a while, anew %t", i, d, anew)
			tn.mustHold(t, what, 20, tn.unlike)
			if got := tn.extras(); got != nil {
				t.Errorf("%s: still listened to: %v", what, got)
			}
			for _, node := range tn.graph.nodes {
				if got := tn.homes[node].view.Live(tn.now).links(); !slices.Equal(got, d.graph.links()) {
					t.Errorf("%s: %s takes for alive %v", what, node, got)
				}
			}
		}
	}
}

// TestViewOfFlapping: a node that lives for too short a time each time changes nobody's ways.
func TestViewOfFlapping(t *testing.T) {
	r := seeded(t)
	for _, d := range deaths(r) {
		for _, anew := range []bool{true, false} {
			tn := oldTown(d.graph, r)
			tn.pause(true, d.nodes...)
			tn.run(80)
			others := tn.living()
			before := tn.ways()
			same := func() string {
				ways := tn.ways()
				for _, node := range others {
					if !maps.Equal(ways[node], before[node]) {
						return fmt.Sprintf("%s had ways %v and has %v", node, before[node], ways[node])
					}
				}
				return ""
			}
			for range 3 {
				tn.pause(false, d.nodes...)
				if anew {
					tn.begin(d.nodes...)
				}
				what := fmt.Sprintf("%v that flap, anew %t", d, anew)
				tn.mustHold(t, what+", alive", 1+r.IntN(4), same)
				tn.pause(true, d.nodes...)
				tn.mustHold(t, what+", dead", 12+r.IntN(15), same)
			}
		}
	}
}

// TestViewOfOneWay: a link that carries one way only is used by nobody.
func TestViewOfOneWay(t *testing.T) {
	r := seeded(t)
	all := map[string]*Graph{"ring": named(KindRing, 5, ""), "mesh": named(KindMesh, 4, ""), "star": named(KindStar, 4, "b")}
	for _, name := range inOrder(all) {
		g := all[name]
		for _, l := range []Link{{"a", "b"}, {"b", "a"}} {
			tn := oldTown(g, r)
			tn.cut[l] = true
			tn.run(10 + 5 + 3*len(g.nodes))
			what := fmt.Sprintf("%s where %s does not hear %s", name, l.A, l.B)
			tn.mustHold(t, what, 60, func() string {
				for node, ways := range tn.ways() {
					for _, x := range []Link{{"a", "b"}, {"b", "a"}} {
						for o, way := range ways {
							if node == x.A && way == x.B {
								return fmt.Sprintf("%s gets %s from %s", node, o, way)
							}
						}
					}
				}
				return tn.wrong(tn.living())
			})
			delete(tn.cut, l)
			tn.run(5 + 2*10 + 10 + 3*len(g.nodes))
			tn.mustHold(t, what+", healed", 20, tn.unlike)
		}
	}
}

// TestViewOfHalves: of nodes that are cut in halves, each goes on by itself, with what it has most of the other. When that is
// over, ways are those of the graph again.
func TestViewOfHalves(t *testing.T) {
	r := seeded(t)
	for _, x := range []struct {
		name  string
		graph *Graph
		half  []string
	}{
		{"ring", named(KindRing, 6, ""), []string{"a", "b", "c"}},
		{"ring, interleaved", named(KindRing, 6, ""), []string{"a", "c", "e"}},
		{"mesh", named(KindMesh, 6, ""), []string{"b", "c", "f"}},
		{"star", named(KindStar, 6, "c"), []string{"a", "b", "d"}},
		{"any", anyGraph(r, 8), []string{"a", "c", "f"}},
	} {
		tn := oldTown(x.graph, r)
		rest := slices.DeleteFunc(slices.Clone(x.graph.nodes), func(node string) bool { return slices.Contains(x.half, node) })
		tn.part(true, x.half, rest)
		n := len(x.graph.nodes)
		tn.run(10 + 5 + 3*n)
		tn.mustHold(t, x.name+" in halves", 60, func() string { return tn.wrong(x.half, rest) })
		tn.part(false, x.half, rest)
		tn.run(5 + 2*10 + 10 + 3*n)
		tn.mustHold(t, x.name+" whole again", 20, tn.unlike)
	}
}

// TestViewOfSlowLinks: hellos that come late, but come, change nothing.
func TestViewOfSlowLinks(t *testing.T) {
	r := seeded(t)
	all := shapes(r)
	for _, name := range inOrder(all) {
		for _, first := range []bool{true, false} {
			tn := newTown(all[name], r)
			slow := func() {
				links := tn.graph.links()
				l := links[r.IntN(len(links))]
				tn.late[l] = 3
				if r.IntN(2) == 0 {
					tn.late[Link{l.B, l.A}] = 3
				}
			}
			tn.begin(tn.graph.nodes...)
			if first {
				slow()
			}
			tn.mustHold(t, name, 30, tn.unlike)
			if !first {
				slow()
			}
			tn.mustHold(t, fmt.Sprintf("%s, slow %v from the first hello %t", name, tn.late, first), 40, tn.unlike)
		}
	}
}

// TestViewOfAnotherLife: what a node says that began again is believed, though it counts from one again, and what it said in
// its life before is not.
func TestViewOfAnotherLife(t *testing.T) {
	r := seeded(t)
	for _, dead := range []int{3, 15, 40} {
		tn := oldTown(named(KindRing, 5, ""), r)
		was := tn.homes["b"].view.Hello(tn.homes["b"].has, tn.now)
		tn.kill("b")
		tn.run(dead)
		tn.begin("b")
		tn.run(10)
		for _, node := range []string{"a", "c", "d", "e"} {
			v := tn.homes[node].view
			life := tn.homes["b"].view.state.Life
			if node == "a" || node == "c" {
				v.Hear(was, tn.now)
			}
			if k := v.known["b"]; k.Life != life || k.N > 10 || !v.alive("b", tn.now) {
				t.Errorf("dead for %d ticks: %s knows of b %+v, which lives since %d", dead, node, k.State, life)
			}
		}
		tn.run(40)
		tn.mustHold(t, fmt.Sprintf("dead for %d ticks", dead), 20, tn.unlike)
	}
}

// TestViewOfShortRestart: a node that begins again before the others take it for dead changes nobody's ways, and nobody looks
// for others because of it.
func TestViewOfShortRestart(t *testing.T) {
	r := seeded(t)
	for _, d := range deaths(r) {
		tn := oldTown(d.graph, r)
		tn.kill(d.nodes...)
		what := fmt.Sprintf("%v for a moment", d)
		// Shorter than it could be: who is heard of only by way of the dead must not be silent for too long either.
		tn.mustHold(t, what, 1+r.IntN(2), tn.unlike)
		tn.begin(d.nodes...)
		tn.mustHold(t, what+", begun again", 40, tn.unlike)
		if got := tn.extras(); got != nil {
			t.Errorf("%s: looked for %v", what, got)
		}
	}
}

// differ says which nodes see it otherwise than the first one of those that they reach, or "".
func (tn *town) differ() string {
	for _, node := range tn.living() {
		live := tn.homes[node].view.Live(tn.now)
		first := slices.Min(slices.Collect(maps.Keys(live.distances(node))))
		if !tn.lives(first) {
			return fmt.Sprintf("%s takes %s for alive", node, first)
		}
		other := tn.homes[first].view.Live(tn.now)
		if !slices.Equal(live.nodes, other.nodes) || !slices.Equal(live.links(), other.links()) {
			return fmt.Sprintf("%s sees %v %v, %s sees %v %v", node, live.nodes, live.links(), first, other.nodes, other.links())
		}
	}
	return ""
}

// parts are the groups of those that live and reach each other, as they see it.
func (tn *town) parts() (all [][]string) {
	for _, node := range tn.living() {
		part := slices.Sorted(maps.Keys(tn.homes[node].view.Live(tn.now).distances(node)))
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

// TestViewsAgree: whatever dies, comes back, is cut or healed, when that ends, those that reach each other soon see the same,
// and what each wrote comes to all of them. Those apart are so because who looks for them cannot reach them.
func TestViewsAgree(t *testing.T) {
	r := seeded(t)
	for i := range 15 {
		tn := oldTown(anyGraph(r, 3+r.IntN(6)), r)
		nodes := tn.graph.nodes
		what := fmt.Sprintf("town %d", i)
		for range 15 {
			a, b := nodes[r.IntN(len(nodes))], nodes[r.IntN(len(nodes))]
			switch x := r.IntN(8); {
			case x < 2 && tn.lives(a):
				tn.kill(a)
			case x == 2 && tn.lives(a):
				tn.pause(true, a)
			case x < 5 && tn.homes[a].view == nil:
				tn.begin(a)
			case x < 5:
				tn.pause(false, a)
			case x < 7 && a != b:
				tn.cut[Link{a, b}] = true
			default:
				tn.cut[Link{a, b}], tn.cut[Link{b, a}] = false, false
			}
			for range 1 + r.IntN(15) {
				tn.tick()
				for _, node := range tn.living() {
					tn.homes[node].has[node]++
				}
				tn.read()
			}
		}
		// Links that are not needed any more go in the quiet too: then views differ until the word has spread.
		tn.run(30)
		for range len(nodes) {
			if tn.differ() == "" {
				break
			}
			tn.tick()
		}
		tn.mustHold(t, what, 1, tn.differ)
		tn.run(30)
		tn.mustHold(t, what, 10, tn.differ)
		parts := tn.parts()
		tn.mustHold(t, what, 10, func() string { return tn.wrong(parts...) })
		for _, p := range parts {
			for _, q := range parts {
				for _, node := range q {
					if p[0] != q[0] && tn.joins(p[0], node) {
						t.Fatalf("%s: parts %v, but %s and %s can reach each other", what, parts, p[0], node)
					}
				}
			}
		}
		for range 3 * len(nodes) {
			tn.tick()
			tn.read()
		}
		for _, part := range parts {
			for _, o := range nodes {
				for _, node := range part {
					if got, want := tn.homes[node].has[o], tn.homes[tn.furthest(o, part)].has[o]; got != want {
						t.Fatalf("%s: in part %v, %s has %d of %s, want %d", what, part, node, got, o, want)
					}
				}
			}
		}
	}
}
