package topology

import (
	"maps"
	"slices"
	"time"
)

// Hello is what a node says of itself, again and again, to whoever listens to it, and what it has heard of the others.
// Nodes that get it pass it on in their own, so that all that are linked in whatever way know it.
type Hello struct {
	State
	Others []State `json:"others,omitempty"`
}

// State is a node as it last said of itself.
type State struct {
	Node string `json:"node"`
	// Life and N order a node's states: when its bridge began, and a count.
	Life int64  `json:"life"`
	N    uint64 `json:"n"`
	// Hears are the nodes that it hears directly, sorted, or expects to hear, as long as it has only begun.
	Hears []string `json:"hears,omitempty"`
	// Has is up to which seq it has the transactions of those other nodes that may be dead: what they wrote may have to spread from
	// the one that has most of it.
	Has map[string]uint64 `json:"has,omitempty"`
}

// newer reports whether s is later than o of the same node.
func (s *State) newer(o *State) bool { return s.Life > o.Life || s.Life == o.Life && s.N > o.N }

// View is which nodes and links live, as one node knows it by hellos, and by which ways transactions come to it now. It
// does no I/O and reads no clock: time is passed in, and must not go back. Not safe for concurrent use.
//
// There is no coordinator and no quorum. Nodes that know the same take the same ways; while what they know differs,
// transactions may come twice, or wait, and nothing else: readers find their place by seq.
type View struct {
	own   string
	graph *Graph
	after time.Duration
	began time.Time
	state State
	has   map[string]uint64 // what Hello was told last
	// unsure is when Look has found a node quiet last, or not reached it.
	unsure map[string]time.Time
	known  map[string]*known
	heard  map[string]*streak
	sought
}

const (
	// hellos is how many a node says in the time after which it is taken for dead, or more: mostPause is the longest pause.
	hellos    = 10
	mostPause = time.Second
	// forgets is after how many times the time of silence a node's last state is forgotten. Others pass it on for a while.
	forgets = 20
	// quiet is the part of the time of silence after which a node may be about to be dead.
	quiet = 3
)

// known is another node's state, and when it was news.
type known struct {
	State
	at time.Time
}

// streak is since when a node has been heard directly without a pause that is too long.
type streak struct{ since, last time.Time }

// NewView returns the view of node own, which begins at a time and takes for dead what it has not heard of for after. Until
// that has passed it takes for alive what it has not heard of yet.
func NewView(own string, g *Graph, after time.Duration, began time.Time) *View {
	return &View{own: own, graph: g, after: after, began: began, state: State{Node: own, Life: began.UnixNano()},
		unsure: map[string]time.Time{}, known: map[string]*known{}, heard: map[string]*streak{}, sought: sought{extra: map[string]time.Time{}}}
}

// Pause is the time from one hello to the next.
func (v *View) Pause() time.Duration { return min(v.after/hellos, mostPause) }

// Hear takes in a hello that came from the node that made it. It reports whether it told of links that were not known so.
func (v *View) Hear(h *Hello, now time.Time) (news bool) {
	if h.Node == v.own || !v.graph.Has(h.Node) {
		return false
	}
	s := v.heard[h.Node]
	if s == nil || now.Sub(s.last) > v.after {
		s = &streak{since: now}
		v.heard[h.Node], news = s, true
	}
	s.last = now
	for _, x := range append(slices.Clone(h.Others), h.State) {
		if x.Node == v.own || !v.graph.Has(x.Node) {
			continue
		}
		old := v.known[x.Node]
		if old != nil && !x.newer(&old.State) {
			continue
		}
		news = news || old == nil || !slices.Equal(old.Hears, x.Hears)
		v.known[x.Node] = &known{x, now}
	}
	return news
}

// Hello returns what to say now; has is up to which seq the transactions of each other node are here.
func (v *View) Hello(has map[string]uint64, now time.Time) *Hello {
	v.state.N++
	v.state.Has, v.state.Hears, v.has = map[string]uint64{}, nil, has
	for _, node := range v.graph.nodes {
		if node == v.own {
			continue
		}
		if v.from(v.own, node, now) {
			v.state.Hears = append(v.state.Hears, node)
		}
		if at, ok := v.unsure[node]; ok && now.Sub(at) <= 2*v.after {
			v.state.Has[node] = has[node]
		}
	}
	h := &Hello{State: v.state}
	for _, node := range slices.Sorted(maps.Keys(v.known)) {
		switch age := now.Sub(v.known[node].at); {
		case age <= v.after:
			h.Others = append(h.Others, v.known[node].State)
		case age > forgets*v.after:
			delete(v.known, node) // it may have begun anew with a clock that was set back
		}
	}
	return h
}

// young reports whether too little time has passed to take silence for death.
func (v *View) young(now time.Time) bool { return now.Sub(v.began) <= v.after }

// hears reports whether a node is heard directly. One that comes back counts when it has been heard for a while: a node that
// flaps must not change everybody's ways each time.
func (v *View) hears(node string, now time.Time) bool {
	s := v.heard[node]
	if s == nil {
		return false
	}
	steady := v.young(s.since) || s.last.Sub(s.since) >= v.after/2
	return steady && now.Sub(s.last) <= v.after
}

// alive reports whether a node has been heard of, or may yet be.
func (v *View) alive(node string, now time.Time) bool {
	if node == v.own {
		return true
	}
	k := v.known[node]
	if k == nil {
		return v.young(now)
	}
	return now.Sub(k.at) <= v.after
}

// Away returns the nodes that are not alive, and when each was heard of last.
func (v *View) Away(now time.Time) map[string]time.Time {
	away := map[string]time.Time{}
	for _, node := range v.graph.nodes {
		if v.alive(node, now) {
			continue
		}
		away[node] = v.began
		if k := v.known[node]; k != nil {
			away[node] = k.at
		}
	}
	return away
}

// from reports whether node a hears node b, as far as is known.
func (v *View) from(a, b string, now time.Time) bool {
	expected := slices.Contains(v.graph.near[a], b)
	if a == v.own {
		return v.hears(b, now) || expected && v.heard[b] == nil && v.young(now)
	}
	k := v.known[a]
	if k == nil {
		return expected && v.young(now)
	}
	return slices.Contains(k.Hears, b)
}

// live returns the nodes that live and the links between them that carry both ways: the configured ones, and, if extra ones
// count, others for as long as nodes keep them up.
func (v *View) live(now time.Time, extra bool) *Graph {
	var nodes []string
	for _, node := range v.graph.nodes {
		if v.alive(node, now) {
			nodes = append(nodes, node)
		}
	}
	var links []Link
	for i, a := range nodes {
		for _, b := range nodes[i+1:] {
			if (extra || slices.Contains(v.graph.near[a], b)) && v.from(a, b, now) && v.from(b, a, now) {
				links = append(links, Link{a, b})
			}
		}
	}
	return New(nodes, links).As(v.graph.roles)
}
