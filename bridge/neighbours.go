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
// are routed around, by the links that live. For that it says hello at its own broker, and listens at those of its
// neighbours. Where the configured links join the living no more, it looks for the others itself.
type neighbours struct {
	*life
	nc *nats.Conn // to the own broker

	mu      sync.Mutex // guards what follows
	view    *topology.View
	ways    map[string]way // by node
	changed chan struct{}  // closed and replaced when ways change
	watches map[string]*watch
	closed  bool   // nobody is listened to any more
	probe   string // the node that was looked for last
	joined  time.Time
}

// way is how another node's transactions are read.
type way struct {
	from string // the node that is read from, "" if from none
	lost bool   // the one who writes them is not reached by any way: what it has sent to some only must spread
}

// watch is a connection to another node's broker, to hear that node.
type watch struct {
	nc    *nats.Conn // nil as long as it is being made
	named bool       // the graph has a link to the node
	since time.Time
	last  time.Time // when it was heard last; zero: never
}

const (
	// hellosAfter is how many hellos a node says in the time after which it is taken for dead, if it is silent; but one in
	// mostHello at least.
	hellosAfter = 10
	mostHello   = time.Second
	// probeFor is for how many hellos a node is listened to that is looked for.
	probeFor = 3
)

// rerouted reports whether dead nodes are routed around: with two nodes there is no other way.
func (b *bridge) rerouted() bool {
	return b.cfg.Topology.FailoverAfter > 0 && len(b.cfg.Topology.Nodes) > 2
}

func (l *life) openNeighbours() {
	n := &neighbours{life: l, nc: l.conns[0], changed: make(chan struct{}), ways: map[string]way{}, watches: map[string]*watch{}}
	g := l.cfg.Graph()
	for _, o := range l.others() {
		n.ways[o.Node] = way{from: g.Next(l.cfg.Node, o.Node)}
	}
	l.neighbours = n
}

// way returns how to read what node o writes, and a channel that is closed when ways change.
func (n *neighbours) way(o string) (way, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ways[o], n.changed
}

// alarms tells of nodes that are routed around.
func (n *neighbours) alarms() (all []Alarm) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.view == nil {
		return nil
	}
	for _, node := range n.view.Unreached(time.Now()) {
		all = append(all, Alarm{Code: "node-unreached", Severity: SeverityWarning,
			Text: fmt.Sprintf("node %s has not been heard of for topology.failover_after of %s, by no way, and is routed around", node, n.cfg.Topology.FailoverAfter),
			Mend: "let its bridge run and be reached; what it lacks is kept for it meanwhile, by the brokers of the others"})
	}
	return all
}

// stays returns when what o writes is to be read in another way, or ctx ends.
func (n *neighbours) stays(ctx context.Context, o string, w way) {
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
	if !n.rerouted() {
		<-ctx.Done()
		return nil
	}
	after := n.cfg.Topology.FailoverAfter
	n.mu.Lock()
	n.view = topology.NewView(n.cfg.Node, n.cfg.Graph(), after, time.Now())
	n.mu.Unlock()
	said := make(chan struct{}, 1) // something was heard that others should hear soon
	defer n.close()
	stop, err := stream.Listen(n.nc, stream.KnockSubject(n.cfg.Cluster, n.cfg.Node), func(data []byte) { n.listen(string(data), said) })
	if err != nil {
		return err
	}
	defer stop()
	tick := time.NewTicker(min(after/hellosAfter, mostHello))
	defer tick.Stop()
	for {
		for _, node := range n.cfg.Graph().Neighbours(n.cfg.Node) {
			n.listen(node, said)
		}
		if err := n.hello(time.Now(), said); err != nil {
			n.log.Debug("hello is not said", "err", err.Error())
		}
		select {
		case <-tick.C:
		case <-said:
		case <-ctx.Done():
			return nil
		}
	}
}

func (n *neighbours) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	for node := range n.watches {
		n.unwatch(node)
	}
}

// unwatch needs mu held.
func (n *neighbours) unwatch(node string) {
	if w := n.watches[node]; w.nc != nil {
		w.nc.Close()
	}
	delete(n.watches, node)
}

// listen begins to hear a node, if it is not heard yet. One without a configured link is given up again when it is not needed.
func (n *neighbours) listen(node string, said chan<- struct{}) {
	url, ok := n.cfg.Topology.Nodes[node]
	n.mu.Lock()
	defer n.mu.Unlock()
	if !ok || n.closed || node == n.cfg.Node || n.watches[node] != nil {
		return
	}
	w := &watch{named: slices.Contains(n.cfg.Graph().Neighbours(n.cfg.Node), node), since: time.Now()}
	n.watches[node] = w
	go n.open(node, url, w, said) // which takes long where packets get lost
}

// open makes the connection of a watch. It comes too late if the watch was given up meanwhile.
func (n *neighbours) open(node, url string, w *watch, said chan<- struct{}) {
	nc, err := n.connect(url, node)
	if err == nil {
		_, err = stream.Listen(nc, stream.HelloSubject(n.cfg.Cluster, node), func(data []byte) { n.hear(node, data, said) })
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	current := n.watches[node] == w
	if current && err == nil {
		w.nc = nc
		return
	}
	if nc != nil {
		nc.Close()
	}
	if err != nil {
		n.log.Debug("node cannot be listened to", "node", node, "err", err.Error())
	}
	if current {
		delete(n.watches, node) // it is tried again
	}
}

func (n *neighbours) hear(node string, data []byte, said chan<- struct{}) {
	var h topology.Hello
	if err := json.Unmarshal(data, &h); err != nil || h.Node != node {
		n.log.Debug("hello cannot be read", "node", node)
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	w := n.watches[node]
	if w == nil {
		return
	}
	w.last = time.Now()
	if n.view.Hear(&h, w.last) {
		select {
		case said <- struct{}{}:
		default:
		}
	}
}

// hello says what is known now, looks at which ways are open, and for nodes that are missing.
func (n *neighbours) hello(now time.Time, said chan<- struct{}) error {
	has := map[string]uint64{}
	for _, o := range n.applier.Status() {
		has[o.Origin.Node] = o.Received // it will be applied, and handed on
	}
	n.mu.Lock()
	h := n.view.Hello(has, now)
	ways, unreached := map[string]way{}, n.view.Unreached(now)
	for o, from := range n.view.Ways(now) {
		ways[o] = way{from, slices.Contains(unreached, o)}
	}
	if !maps.Equal(ways, n.ways) {
		for _, o := range slices.Sorted(maps.Keys(ways)) {
			if ways[o] != n.ways[o] {
				n.log.Info("way has changed", "origin", o, "from", n.ways[o].from, "to", ways[o].from, "lost", ways[o].lost)
			}
		}
		n.ways = ways
		close(n.changed)
		n.changed = make(chan struct{})
	}
	missing := n.view.Missing(now)
	n.tidy(now)
	n.mu.Unlock()
	n.look(missing, now, said)
	data, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return stream.Say(n.nc, stream.HelloSubject(n.cfg.Cluster, n.cfg.Node), data)
}

// tidy gives up listening to nodes without a configured link: to those that do not answer, and when the configured links do.
// mu is held.
func (n *neighbours) tidy(now time.Time) {
	after := n.cfg.Topology.FailoverAfter
	if n.joined.IsZero() || n.view.Needed(now) {
		n.joined = now
	}
	for node, w := range n.watches {
		silent := now.Sub(w.last) > 2*after && now.Sub(w.since) > probeFor*min(after/hellosAfter, mostHello)
		if !w.named && (silent || now.Sub(n.joined) > 2*after && now.Sub(w.since) > 2*after) {
			n.unwatch(node)
		}
	}
}

// look looks for one of the missing nodes, the next one each time, and knocks at those that answer.
func (n *neighbours) look(missing []string, now time.Time, said chan<- struct{}) {
	if len(missing) == 0 {
		return
	}
	n.mu.Lock()
	at, _ := slices.BinarySearch(missing, n.probe+"\x00")
	n.probe = missing[at%len(missing)]
	node := n.probe
	n.mu.Unlock()
	n.listen(node, said)
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, node := range missing {
		if w := n.watches[node]; w != nil && !w.named && w.nc != nil && w.nc.IsConnected() {
			_ = stream.Say(w.nc, stream.KnockSubject(n.cfg.Cluster, node), []byte(n.cfg.Node))
		}
	}
}
