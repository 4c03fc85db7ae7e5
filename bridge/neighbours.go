package bridge

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/topology"
)

// neighbours knows from which node each other node's transactions are to be read: by the configured graph, or, if dead nodes
// are routed around, as its view has it. For that it says hello at its own broker, and listens at those of the nodes that the view
// names.
type neighbours struct {
	*life
	nc    *nats.Conn    // to the own broker
	hurry chan struct{} // of capacity 1: something was heard that others should hear soon

	mu      sync.Mutex     // guards what follows
	view    *topology.View // nil: dead nodes are not routed around
	ways    map[string]topology.Way
	changed chan struct{}     // closed and replaced when ways change
	watches map[string]*watch // of the nodes that are listened to
}

// watch is a connection to another node's broker, to hear that node. An edge holds a door open there, through which it is read.
type watch struct {
	nc   *nats.Conn // nil as long as it is being made
	shut func()     // the door; nil: there is none
}

func (w *watch) close() {
	if w.nc != nil {
		w.nc.Close()
	}
	if w.shut != nil {
		w.shut()
	}
}

// rerouted reports whether dead nodes are routed around: with two nodes there is no other way.
func (b *bridge) rerouted() bool {
	return b.cfg.Topology.FailoverAfter > 0 && len(b.cfg.Topology.Nodes) > 2
}

func (l *life) openNeighbours() {
	n := &neighbours{life: l, nc: l.conns[0], hurry: make(chan struct{}, 1), changed: make(chan struct{}),
		ways: map[string]topology.Way{}, watches: map[string]*watch{}}
	g := l.cfg.Graph()
	for _, o := range l.others() {
		n.ways[o.Node] = topology.Way{From: g.Next(l.cfg.Node, o.Node)}
	}
	if l.rerouted() {
		n.view = topology.NewView(l.cfg.Node, g, l.cfg.Topology.FailoverAfter, time.Now())
	}
	l.neighbours = n
}

// way returns how to read what node o writes, and a channel that is closed when ways change.
func (n *neighbours) way(o string) (topology.Way, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ways[o], n.changed
}

// alarms tells of nodes that are routed around.
func (n *neighbours) alarms() (all []Alarm) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, node := range slices.Sorted(maps.Keys(n.ways)) {
		if n.ways[node].Lost && !n.cfg.Edge(node) && !n.applier.IsGone(node) { // an edge is away as a rule
			all = append(all, Alarm{Code: "node-unreached", Severity: SeverityWarning,
				Text: fmt.Sprintf("node %s has not been heard of for topology.failover_after of %s, by no way, and is routed around", node, n.cfg.Topology.FailoverAfter),
				Mend: "let its bridge run and be reached; what it lacks is kept for it meanwhile, by the brokers of the others, up to stream.absent_bytes"})
		}
	}
	return all
}

// awayAfter is for how many times topology.failover_after a node must have been silent to count as away: one that flaps, or whose
// bridge is started again, is not.
const awayAfter = 3

// away returns the nodes that have been silent for so long, by all ways, sorted. None if dead nodes are not routed around: nobody
// knows then.
func (n *neighbours) away(now time.Time) (nodes []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.view == nil {
		return nil
	}
	for node, last := range n.view.Away(now) {
		if now.Sub(last) > awayAfter*n.cfg.Topology.FailoverAfter && !n.applier.IsGone(node) {
			nodes = append(nodes, node)
		}
	}
	slices.Sort(nodes)
	return nodes
}

// stays returns when what o writes is to be read in another way, or ctx ends.
func (n *neighbours) stays(ctx context.Context, o string, w topology.Way) {
	for {
		now, changed := n.way(o)
		if now != w {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// run says hello and listens until ctx ends.
func (n *neighbours) run(ctx context.Context) error {
	defer n.listen(nil)
	if n.view == nil {
		return n.openDoors(ctx)
	}
	stop, err := stream.Listen(n.nc, stream.KnockSubject(n.cfg.Cluster, n.cfg.Node), n.knocked)
	if err != nil {
		return err
	}
	defer stop()
	tick := time.NewTicker(n.view.Pause())
	defer tick.Stop()
	for {
		if err := n.hello(time.Now()); err != nil {
			n.log.Debug("hello is not said", "err", err.Error())
		}
		select {
		case <-tick.C:
		case <-n.hurry:
		case <-ctx.Done():
			return nil
		}
	}
}

// doorPause is the time after which an edge tries again to open a door, where no hello makes it do so.
const doorPause = time.Second

// openDoors opens an edge's doors at its neighbours' brokers, where nobody says hello.
func (n *neighbours) openDoors(ctx context.Context) error {
	tick := time.NewTicker(doorPause)
	defer tick.Stop()
	for {
		if n.cfg.Edge(n.cfg.Node) {
			n.listen(n.cfg.Graph().Neighbours(n.cfg.Node))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// hello says what is known now, and does what follows from it.
func (n *neighbours) hello(now time.Time) error {
	has := map[string]uint64{}
	for _, o := range n.applier.Status() {
		has[o.Origin.Node] = o.Received // it will be applied, and handed on
	}
	n.mu.Lock()
	h, look := n.view.Hello(has, now), n.view.Look(now)
	n.take(look.Ways)
	n.mu.Unlock()
	n.listen(look.Listen)
	n.knock(look.Knock)
	data, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return stream.Say(n.nc, stream.HelloSubject(n.cfg.Cluster, n.cfg.Node), data)
}

// take needs mu held.
func (n *neighbours) take(ways map[string]topology.Way) {
	if maps.Equal(ways, n.ways) {
		return
	}
	for _, o := range slices.Sorted(maps.Keys(ways)) {
		if ways[o] != n.ways[o] {
			n.log.Info("way has changed", "origin", o, "from", n.ways[o].From, "to", ways[o].From, "lost", ways[o].Lost)
		}
	}
	n.ways = ways
	close(n.changed)
	n.changed = make(chan struct{})
}

// listen listens to these nodes and to no others.
func (n *neighbours) listen(nodes []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for node, w := range n.watches {
		if !slices.Contains(nodes, node) {
			w.close()
			delete(n.watches, node)
		}
	}
	for _, node := range nodes {
		if n.watches[node] == nil {
			w := &watch{}
			n.watches[node] = w
			go n.open(node, w) // which takes long where packets get lost
		}
	}
}

// open makes the connection of a watch. It comes too late if the watch was given up meanwhile.
func (n *neighbours) open(node string, w *watch) {
	made := watch{}
	var err error
	if made.nc, err = n.reach(node); err == nil {
		_, err = stream.Listen(made.nc, stream.HelloSubject(n.cfg.Cluster, node), func(data []byte) { n.hear(node, data) })
	}
	if err == nil && n.cfg.Edge(n.cfg.Node) {
		made.shut, err = stream.OpenDoor(made.nc, n.cfg.Cluster, n.cfg.Node, node, n.server.InProcessConn, n.log.With("link", node))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	current := n.watches[node] == w
	if current && err == nil {
		*w = made
		return
	}
	made.close()
	if err != nil {
		n.log.Debug("node cannot be listened to", "node", node, "err", err.Error())
	}
	if current {
		delete(n.watches, node) // it is tried again
	}
}

func (n *neighbours) hear(node string, data []byte) {
	var h topology.Hello
	if err := json.Unmarshal(data, &h); err != nil || h.Node != node {
		n.log.Debug("hello cannot be read", "node", node)
		return
	}
	if n.applier.IsGone(node) {
		return
	}
	h.Others = slices.DeleteFunc(h.Others, func(s topology.State) bool { return n.applier.IsGone(s.Node) })
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.view == nil || n.watches[node] == nil || !n.view.Hear(&h, time.Now()) {
		return
	}
	select {
	case n.hurry <- struct{}{}:
	default:
	}
}

// knock asks nodes that were looked for to listen back, at the brokers of those that are there.
func (n *neighbours) knock(nodes []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, node := range nodes {
		if w := n.watches[node]; w != nil && w.nc != nil && w.nc.IsConnected() {
			_ = stream.Say(w.nc, stream.KnockSubject(n.cfg.Cluster, node), []byte(n.cfg.Node)) // and again at the next hello
		}
	}
}

// knocked is called with the name of a node that asks to be listened to.
func (n *neighbours) knocked(node []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.view.Knocked(string(node), time.Now())
}
