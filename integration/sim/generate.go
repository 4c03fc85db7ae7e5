package sim

import (
	"math/rand/v2"
	"slices"

	"github.com/pgbridge/pgbridge/conflict"
)

// skew bounds how far clocks are from true time, in microseconds: ten minutes.
const skew = 600_000_000

// Generate makes the schedule of a seed.
func Generate(seed uint64) *Schedule {
	g := &generator{r: rand.New(rand.NewPCG(seed, 0)), s: &Schedule{Seed: seed}}
	g.settings()
	for len(g.s.Events) < g.length {
		e := g.event()
		g.s.Events = append(g.s.Events, e)
		if (g.crash || g.kill) && g.chance(100) {
			g.s.Events = append(g.s.Events, g.lateDelete(e.Node, e.Peer)...)
		}
		if g.patches && g.chance(60) {
			g.s.Events = append(g.s.Events, g.owed(e.Node, e.Peer)...)
		}
		if g.tidal && g.chance(40) {
			g.s.Events = append(g.s.Events, g.tides()...)
		}
	}
	g.route()
	return g.s
}

// route links the nodes of some schedules otherwise than each with each, and lets bridges be away for a while. A generator of its
// own keeps all other schedules what they were.
func (g *generator) route() {
	r, s := rand.New(rand.NewPCG(g.s.Seed, 3)), g.s
	if s.Nodes == 2 || r.IntN(4) > 0 {
		return
	}
	for b := 1; b < s.Nodes; b++ { // a tree
		s.Links = append(s.Links, Link{r.IntN(b), b})
	}
	for range r.IntN(3) { // and ways round
		l := Link{r.IntN(s.Nodes - 1), s.Nodes - 1}
		if r.IntN(2) == 0 {
			l = Link{0, s.Nodes - 1}
		}
		if !slices.Contains(s.Links, l) {
			s.Links = append(s.Links, l)
		}
	}
	often := 10 + r.IntN(60)
	var events []Event
	down := -1
	for _, e := range s.Events {
		events = append(events, e)
		if r.IntN(often) > 0 {
			continue
		}
		if down >= 0 && r.IntN(3) > 0 {
			events = append(events, Event{Kind: Up, Node: down, Peer: (down + 1) % s.Nodes})
			down = -1
			continue
		}
		n := r.IntN(s.Nodes)
		events = append(events, Event{Kind: Down, Node: n, Peer: (n + 1) % s.Nodes})
		down = n
	}
	s.Events = events
}

type generator struct {
	r *rand.Rand
	s *Schedule
	// What this schedule is like, since all of everything at once would be the same each time.
	length  int
	busy    int   // users' share among the events
	crash   bool  // servers crash
	kill    bool  // bridges are killed
	purge   bool  // what is stable is forgotten
	wipe    bool  // tables are truncated
	wipes   bool  // one after the other
	tidal   bool  // now and then nearly all that is under way arrives, and nodes hear that it has
	partly  bool  // large values are left unchanged
	patches bool  // mostly
	lag     bool  // capture is late
	late    bool  // own writes are late in the journal
	merged  int   // of 5 statements, how many are of the merged table
	gone    int   // of 8 statements, how many delete
	reach   int64 // how far clocks step
	mean    int   // roughly how many records or frames one event takes in
}

func (g *generator) chance(n int) bool { return g.r.IntN(n) == 0 }

func (g *generator) settings() {
	r, s := g.r, g.s
	s.Nodes, s.Keys = 3+r.IntN(4)/2, 1+r.IntN(2)
	if g.chance(12) {
		s.Nodes = 5
	}
	s.Layout, s.Deletes = r.IntN(Layouts), conflict.Deletes(r.IntN(DeleteChoices))
	s.Full, s.Filled = g.chance(2), g.chance(2)
	s.Grain = []int64{1, 1, 40}[r.IntN(3)]
	s.InTurn = g.chance(16)
	g.length = []int{40, 80, 160, 400}[r.IntN(4)]
	g.busy = []int{3, 6, 10}[r.IntN(3)]
	g.crash, g.kill, g.purge, g.wipe, g.partly = g.chance(2), g.chance(2), g.chance(2), g.chance(4), g.chance(2)
	g.lag, g.merged = g.chance(3), []int{0, 2, 3, 5}[r.IntN(4)]
	g.gone = 1 + r.IntN(3)
	g.mean = 1 + r.IntN(4)
	g.reach = []int64{0, 30, 400, skew}[r.IntN(4)]
	// Often enough to matter, users update rows beside each other and leave the large value alone. A generator of its own
	// keeps all other schedules what they were.
	if rand.New(rand.NewPCG(s.Seed, 1)).IntN(6) == 0 {
		s.Full, s.Filled, s.InTurn, s.Keys = false, true, false, 1
		g.partly, g.patches, g.merged, g.gone, g.busy = true, true, 0, 1, 10
	}
	// With one other node alone, what this one has applied is soon what all have seen.
	shape := rand.New(rand.NewPCG(s.Seed, 2))
	if shape.IntN(5) == 0 {
		s.Nodes = 2
	}
	g.late = shape.IntN(3) == 0
	if shape.IntN(10) == 0 {
		g.wipes, g.purge, g.merged = true, true, max(g.merged, 3)
	}
	g.tidal = g.purge && shape.IntN(3) == 0
	for range s.Nodes {
		s.Skew = append(s.Skew, g.ahead())
	}
}

// ahead is a clock's distance from true time.
func (g *generator) ahead() int64 { return g.r.Int64N(2*g.reach+1) - g.reach }

func (g *generator) node() int { return g.r.IntN(g.s.Nodes) }

func (g *generator) event() Event {
	e := Event{Node: g.node()}
	for e.Peer = g.node(); e.Peer == e.Node; {
		e.Peer = g.node()
	}
	e.N = int64(g.r.IntN(2 * g.mean))
	n := g.r.IntN(100)
	switch {
	case n < g.busy:
		e.Kind, e.N = Begin, int64(g.r.IntN(4))
		for range 1 + g.r.IntN(2) {
			e.Ops = append(e.Ops, g.op())
		}
	case n < 26:
		e.Kind, e.N = Step, g.r.Int64N(3)
	case n < 32:
		e.Kind = Flush
	case n < 42:
		if e.Kind = Capture; g.lag && !g.chance(6) {
			e.Kind, e.N = Apply, g.r.Int64N(8)
		}
	case n < 54:
		e.Kind = Deliver
	case n < 79:
		e.Kind, e.N = Apply, g.r.Int64N(8)
	case n < 83:
		e.Kind = Take
	case n < 87:
		if e.Kind = Journal; g.late && !g.chance(8) {
			e.Kind = Apply
		}
	case n < 91:
		e.Kind, e.N = Mark, g.r.Int64N(2)
	case n < 92:
		e.Kind = Confirm
	case n < 96:
		e.Kind = Purge
		if !g.purge {
			e.Kind = Apply
		}
	default:
		g.trouble(&e)
	}
	return e
}

// trouble makes the event one that should not matter.
func (g *generator) trouble(e *Event) {
	switch n := g.r.IntN(12); {
	case n < 2 && g.crash:
		e.Kind = Crash
	case n < 4 && g.kill:
		e.Kind = Restart
	case n < 6:
		e.Kind = Cut
	case n < 8:
		e.Kind = Heal
	case n < 9 && g.reach > 0:
		e.Kind, e.N = Clock, g.ahead()
	default:
		e.Kind = Step
	}
}

// tides lets users write a little, brings nearly everything to nearly everybody, and the news of it, so that some of it can
// be forgotten, and so on.
func (g *generator) tides() []Event {
	var all []Event
	do := func(k Kind, at, with int, n int64) { all = append(all, Event{Kind: k, Node: at, Peer: with, N: n}) }
	for range 2 + g.r.IntN(6) {
		for range g.r.IntN(5) {
			at := g.node()
			all = append(all, Event{Kind: Begin, Node: at, Peer: (at + 1) % g.s.Nodes, Ops: []Op{g.op()}})
			for range 4 {
				do(Step, at, (at+1)%g.s.Nodes, 0)
			}
		}
		first := g.node()
		for i := range g.s.Nodes {
			at := (first + i) % g.s.Nodes
			for with := range g.s.Nodes {
				if with != at {
					do(Deliver, at, with, 9)
					for range 10 {
						do(Apply, at, with, 0)
					}
				}
			}
			for _, k := range []Kind{Flush, Capture, Journal, Mark, Flush, Capture, Purge} {
				do(k, at, (at+1)%g.s.Nodes, 9)
			}
		}
	}
	return slices.DeleteFunc(all, func(e Event) bool { return g.chance(30) || e.Kind == Purge && !g.chance(3) })
}

// owed is what hardly comes about by chance: a node cannot write what another one's update made of a row, is sent the row
// again, and meanwhile its users go on from what it has; a third node hears of it all in some order. Some of the steps are
// left out.
func (g *generator) owed(node, peer int) []Event {
	if g.s.Nodes == 2 {
		return nil
	}
	third := 0
	for third == node || third == peer {
		third++
	}
	var all []Event
	do := func(k Kind, at, with int, n int64) { all = append(all, Event{Kind: k, Node: at, Peer: with, N: n}) }
	commit := func(at int, kind OpKind) {
		all = append(all, Event{Kind: Begin, Node: at, Peer: peer, N: 0, Ops: []Op{{Kind: kind, Key: 1, Arg: g.r.Uint64() >> 16}}})
		for range 4 {
			do(Step, at, peer, 0)
		}
	}
	send := func(at int) {
		do(Flush, at, peer, 9)
		do(Capture, at, peer, 9)
	}
	receive := func(at, from int, n int64) {
		do(Deliver, at, from, n)
		for range 3 {
			for range 4 {
				do(Apply, at, from, 0)
			}
			send(at)
			do(Journal, at, from, 0)
		}
	}
	commit(node, Put)
	commit(peer, Patch)
	send(peer)
	receive(node, peer, 9)
	receive(third, peer, 9)
	for range 1 + g.r.IntN(3) {
		do(Mark, node, peer, 1)
		send(node)
	}
	do(Deliver, peer, node, 9)
	do(Mark, peer, node, 0)
	for range 4 {
		do(Step, peer, node, 0)
	}
	send(peer)
	commit(node, Patch)
	send(node)
	receive(third, node, 9)
	return slices.DeleteFunc(all, func(Event) bool { return g.chance(30) })
}

func (g *generator) op() Op {
	r := g.r
	o := Op{Kind: Put, Merged: r.IntN(5) < g.merged, Key: 1 + r.IntN(g.s.Keys), Arg: r.Uint64() >> 16}
	switch n := r.IntN(24); {
	case n < 3*g.gone:
		o.Kind = Remove
	case n < 10 && g.partly, n < 20 && g.patches:
		o.Kind = Patch
	case n == 22 && g.s.Keys > 1:
		o.Kind = Move
		o.To = 1 + r.IntN(g.s.Keys)
	case n == 23 && g.wipe, n >= 20 && g.wipes:
		o.Kind = Truncate
	}
	return o
}

// lateDelete is what hardly comes about by chance: a row is inserted on two nodes and deleted on one of them, where the
// other's insert is applied before capture meets the delete; then that node loses what it has in memory, or what it has
// not on disk. Some of the steps are left out.
func (g *generator) lateDelete(node, peer int) []Event {
	put := g.op()
	put.Kind = Put
	remove := put
	remove.Kind = Remove
	commit := Event{Kind: Step, Node: peer}
	all := []Event{{Kind: Begin, Node: peer, Ops: []Op{put}}, commit, commit, commit, commit, {Kind: Flush, Node: peer, N: 9}, {Kind: Capture, Node: peer, N: 9}}
	all = append(all, Event{Kind: Begin, Node: node, N: 1, Ops: []Op{put, remove}})
	for range 6 {
		all = append(all, Event{Kind: Step, Node: node})
	}
	all = append(all, Event{Kind: Deliver, Node: node, N: 9})
	for range 8 {
		all = append(all, Event{Kind: Apply, Node: node})
	}
	rest := []Kind{Flush, Capture, Journal, Take, Confirm, Crash}
	if !g.crash || g.kill && g.chance(2) {
		rest = []Kind{Restart, Flush, Capture, Journal, Take}
	}
	for _, k := range rest {
		all = append(all, Event{Kind: k, Node: node, N: 9})
	}
	for i := range all {
		if all[i].Peer = peer; all[i].Node == peer {
			all[i].Peer = node
		}
	}
	return slices.DeleteFunc(all, func(Event) bool { return g.chance(20) })
}
