// Command scale works out what a cluster costs that is too large to be tried on one machine: 50 leaders, 1000 edge nodes. It
// takes the product's own graphs, frames and hellos, and prices each step of a transaction's way by what was measured with few
// nodes. What it prints stands in docs/scale.md.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/topology"
	"github.com/pgbridge/pgbridge/wire"
)

// What was measured (docs/benchmarks.md, docs/topology.md), on two cores.
const (
	// near is from a commit to being visible on a neighbour.
	near = 2 * time.Millisecond
	// step is each further one: a frame is stored by its author's broker, and may wait to be filled.
	step = 22 * time.Millisecond
	// each is what applying one small transaction of many costs a server, and decoding and publishing an own one.
	each = 50 * time.Microsecond
)

// load is how many transactions a second each leader writes, and each edge node.
const leaderRate, edgeRate = 100, 1

func main() {
	fmt.Println("| | links | most readers at a node | streams at a node | steps at most | frame's vectors | hello | hellos in, a second and node | ways worked out in | everywhere after | transactions a second and node | of one core |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|---|")
	for _, c := range clusters() {
		r, err := c.report()
		if err != nil {
			fmt.Fprintln(os.Stderr, "scale:", err)
			os.Exit(1)
		}
		fmt.Println(r)
	}
}

// cluster is some leaders, and some edge nodes, each linked to one leader.
type cluster struct {
	name           string
	leaders, edges int
	links          []topology.Link
	nodes          []string
}

func clusters() []*cluster {
	return []*cluster{
		newCluster("mesh of 3", 3, 0, "mesh"),
		newCluster("mesh of 8", 8, 0, "mesh"),
		newCluster("mesh of 50", 50, 0, "mesh"),
		newCluster("ring of 50", 50, 0, "ring"),
		newCluster("mesh of 5, 20 edges each", 5, 100, "mesh"),
		newCluster("mesh of 50, 4 edges each", 50, 200, "mesh"),
		newCluster("mesh of 50, 20 edges each", 50, 1000, "mesh"),
	}
}

func newCluster(name string, leaders, edges int, kind string) *cluster {
	c := &cluster{name: name, leaders: leaders, edges: edges}
	for i := range leaders {
		c.nodes = append(c.nodes, fmt.Sprintf("dc%02d", i))
	}
	c.links = topology.Links(kind, c.nodes, "", nil)
	for i := range edges {
		edge := fmt.Sprintf("edge%04d", i)
		c.links = append(c.links, topology.Link{A: c.nodes[i%leaders], B: edge})
		c.nodes = append(c.nodes, edge)
	}
	return c
}

func (c *cluster) report() (string, error) {
	g := topology.New(c.nodes, c.links)
	n := len(c.nodes)
	vectors, err := c.vectorBytes()
	if err != nil {
		return "", err
	}
	hello, ways, err := c.hello(g)
	if err != nil {
		return "", err
	}
	most := 0
	for _, node := range c.nodes {
		most = max(most, len(g.Neighbours(node)))
	}
	rate := c.leaders*leaderRate + c.edges*edgeRate
	steps := c.steps(g)
	return fmt.Sprintf("| %s | %d | %s | %d | %d | %s | %s | %s | %s | %s | %d | %.0f %% |", c.name, len(c.links), grouped(c.readers(g)), n,
		steps, size(vectors), size(hello), size(hello*most), ways.Round(100*time.Microsecond), (near + time.Duration(steps-1)*step).String(), rate, 100*float64(rate)*each.Seconds()), nil
}

// readers is how many consumers there are at most at one node's broker: one for each node whose transactions a neighbour gets from
// there.
func (c *cluster) readers(g *topology.Graph) int {
	count := map[string]int{}
	most := 0
	for _, o := range c.nodes {
		for _, from := range g.Tree(o) {
			count[from]++
			most = max(most, count[from])
		}
	}
	return most
}

// steps is the length of the longest way.
func (c *cluster) steps(g *topology.Graph) int {
	most := 0
	for _, node := range c.nodes {
		for _, d := range g.Distances(node) {
			most = max(most, d)
		}
	}
	return most
}

// vectorBytes is what the header's vectors add to a frame: what the author may have seen, and what it certainly had.
func (c *cluster) vectorBytes() (int, error) {
	var v origin.Vector
	for i, node := range c.nodes {
		v.Advance(origin.Entry{Origin: origin.Origin{Node: node, Epoch: 1}, Seq: 10_000_000 + uint64(i), Stamp: origin.StampOf(time.Date(2026, 11, 1, 0, 0, i, 0, time.UTC))})
	}
	var e wire.Encoder
	h := wire.Header{Cluster: "shop", Sender: c.nodes[0], Origin: origin.Origin{Node: c.nodes[0], Epoch: 1}}
	without, err := e.Append(nil, &wire.Frame{Header: h})
	if err != nil {
		return 0, err
	}
	h.Up, h.Low = v, v
	with, err := e.Append(nil, &wire.Frame{Header: h})
	return len(with) - len(without), err
}

// hello is how large each hello of the first leader is when all are well, and how long it takes there, each time, to work out who
// lives and which ways there are.
func (c *cluster) hello(g *topology.Graph) (bytes int, ways time.Duration, err error) {
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	v := topology.NewView(c.nodes[0], g, 10*time.Second, now)
	for _, node := range c.nodes[1:] {
		h := &topology.Hello{State: topology.State{Node: node, Life: now.UnixNano(), N: 100_000, Hears: g.Neighbours(node)}}
		v.Hear(h, now)
	}
	began := time.Now()
	h := v.Hello(nil, now)
	v.Look(now)
	ways = time.Since(began)
	data, err := json.Marshal(h)
	return len(data), ways, err
}

// size gives bytes as a person would.
func size(n int) string {
	switch {
	case n < 10_000:
		return fmt.Sprintf("%d B", n)
	case n < 10_000_000:
		return fmt.Sprintf("%d kB", n/1000)
	}
	return fmt.Sprintf("%d MB", n/1_000_000)
}

// grouped writes 12345 as 12 345.
func grouped(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s %03d", grouped(n/1000), n%1000)
}
