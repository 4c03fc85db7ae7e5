package apply

import (
	"math"

	"github.com/pgbridge/pgbridge/integration/sim"
	"github.com/pgbridge/pgbridge/topology"
)

// What the simulation has of topology and routing: who reads whose transactions from whom, what is handed on when it is
// applied, and purged when nobody can need it any more. Ways are worked out at once, from what lives; the word that has to spread
// for that is tried in package topology.

// back brings a bridge back that was away.
func (n *simNode) back() {
	if n.down {
		n.w.log("%s: its bridge and its broker come back", n.own)
		n.down, n.w.ways = false, nil
		n.w.stats.restarts++
		n.restart()
	}
}

// handOn hands on what has been applied of an origin.
func (n *simNode) handOn(p int) {
	if n.w.s.Links == nil {
		return
	}
	frames, applied := n.w.nodes[p].frames, n.progress.vector().Seq(simOrigin(p))
	for n.handed[p] < n.reached[p] && frames[n.handed[p]].LastSeq <= applied {
		n.handed[p]++
		n.w.stats.handed++
	}
}

// giveUp purges what nobody can need any more of what was handed on.
func (n *simNode) giveUp() {
	if n.w.s.Links == nil {
		return
	}
	n.heard.turn(n.seq, n.told, nil)
	for p, q := range n.w.nodes {
		if p == n.id {
			continue
		}
		everywhere := n.heard.everywhereOf(simOrigin(p))
		if n.w.broken.forgetsHandedOn {
			everywhere = math.MaxInt64
		}
		for n.given[p] < n.handed[p] && q.frames[n.given[p]].LastSeq <= everywhere {
			n.given[p]++
			n.w.stats.purged++
		}
	}
}

// mayAsk requires that this node has kept what it may have to read again when it meets a transaction (past.go): the others'
// transactions that its author had not certainly seen.
func (n *simNode) mayAsk(t *txn) {
	if n.w.s.Links == nil {
		return
	}
	for p, q := range n.w.nodes {
		if at := n.given[p]; p != n.id && simOrigin(p) != t.origin && at > 0 && q.frames[at-1].LastSeq > t.low.Seq(simOrigin(p)) {
			n.w.fail("%s: meets %s:%d, which had seen %s, and has purged transaction %d of %s", n.own, t.origin.Node, t.Seq, t.low, q.frames[at-1].LastSeq, q.own)
		}
	}
}

// stands returns which frames of an origin stand where this node reads them.
func (n *simNode) stands(p int) (first, last int) {
	q := n.w.nodes[p]
	switch from := n.w.way(n.id, p); from {
	case p:
		for first < len(q.frames) && q.frames[first].LastSeq <= q.kept {
			first++
		}
		return first, len(q.frames)
	case -1:
		return 0, 0
	default:
		f := n.w.nodes[from]
		return f.given[p], f.handed[p]
	}
}

// away reports whether the link is cut over which an origin's transactions come.
func (n *simNode) away(p int) bool {
	from := n.w.way(n.id, p)
	return from < 0 || n.cut[from]
}

// way returns from which node another one's transactions are read.
func (w *simWorld) way(node, o int) int {
	if w.s.Links == nil {
		return o
	}
	if w.ways == nil {
		w.reroute()
	}
	return w.ways[node][o]
}

// reroute works out the ways through the nodes that live: over the links, and where these do not join them, over the first one by
// name.
func (w *simWorld) reroute() {
	var live []string
	var links []topology.Link
	for i, n := range w.nodes {
		if !n.down {
			live = append(live, sim.NodeName(i))
		}
	}
	for _, l := range w.s.Links {
		links = append(links, topology.Link{A: sim.NodeName(l.A), B: sim.NodeName(l.B)})
	}
	g := topology.New(live, links)
	if parts := g.Parts(); len(parts) > 1 {
		for _, part := range parts[1:] {
			links = append(links, topology.Link{A: parts[0][0], B: part[0]})
		}
		g = topology.New(live, links)
	}
	w.ways = nil
	for i := range w.nodes {
		ways := make([]int, len(w.nodes))
		for o := range w.nodes {
			root := o
			if w.nodes[o].down {
				root = w.furthest(o)
			}
			if ways[o] = -1; root >= 0 {
				if next := g.Next(sim.NodeName(i), sim.NodeName(root)); next != "" {
					ways[o] = int(next[0] - 'a')
				}
			}
		}
		w.ways = append(w.ways, ways)
	}
}

// furthest is who has handed on most of what a node wrote that is away; -1: nobody lives.
func (w *simWorld) furthest(o int) int {
	best := -1
	for i, n := range w.nodes {
		if !n.down && i != o && (best < 0 || n.handed[o] > w.nodes[best].handed[o]) {
			best = i
		}
	}
	return best
}
