package topology

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

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
		{"hub of devices", devices(), []string{"c"}},
		{"devices", devices(), []string{"a", "d"}},
		{"one of two hubs", hubs(), []string{"b"}},
		{"both of two hubs", hubs(), []string{"b", "c"}},
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
			tn.revive(anew, d.nodes...)
			// Heard for long enough, not needed for twice the time, and silent.
			tn.run(5 + 2*10 + 10 + 3*len(d.graph.nodes))
			what := fmt.Sprintf("%d: %v for a while, anew %t", i, d, anew)
			tn.mustHold(t, what, 20, tn.unlike)
			if got := tn.extras(); got != nil {
				t.Errorf("%s: still listened to: %v", what, got)
			}
			for _, node := range tn.graph.nodes {
				if got := tn.homes[node].view.live(tn.now, true).links(); !slices.Equal(got, d.graph.links()) {
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
				tn.revive(anew, d.nodes...)
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
					if p[0] != q[0] && !tn.graph.Edge(node) && tn.joins(p[0], node) {
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

// TestViewKnowsWhoIsAway: a node is away when nothing was heard of it for a while, directly or by others, and from its last hello on.
func TestViewKnowsWhoIsAway(t *testing.T) {
	began := time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)
	at := func(s int) time.Time { return began.Add(time.Duration(s) * time.Second) }
	v := NewView("a", named(KindMesh, 4, ""), 10*time.Second, began)
	if away := v.Away(at(9)); len(away) != 0 {
		t.Errorf("%v are away before they may have been heard", away)
	}
	v.Hear(&Hello{State: State{Node: "b", Life: 1, N: 1}, Others: []State{{Node: "c", Life: 1, N: 1}}}, at(5))
	v.Hear(&Hello{State: State{Node: "b", Life: 1, N: 2}}, at(12))
	if away, want := v.Away(at(16)), map[string]time.Time{"c": at(5), "d": began}; !maps.Equal(away, want) {
		t.Errorf("%v are away, want %v", away, want)
	}
	v.Hear(&Hello{State: State{Node: "b", Life: 1, N: 3}, Others: []State{{Node: "c", Life: 1, N: 2}}}, at(17))
	if away, want := v.Away(at(18)), map[string]time.Time{"d": began}; !maps.Equal(away, want) {
		t.Errorf("%v are away when one is back, want %v", away, want)
	}
}
