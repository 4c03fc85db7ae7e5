package integration

import (
	"context"
	"fmt"
	"math/rand"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// during lets a fault last. The time is the fault's size, not something that is waited for.
func during(d time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	<-ctx.Done()
}

// both does something to the links between two nodes.
func both(a, b *cluster.Node, f func(*cluster.Link)) {
	f(a.Links[b.Name])
	f(b.Links[a.Name])
}

// mute loses all that one node sends to another one, on whichever connection.
func mute(from, to *cluster.Node) {
	from.Links[to.Name].Mute(cluster.There)
	to.Links[from.Name].Mute(cluster.Back)
}

// far makes a link as bad as one over the ocean on a bad day.
func far(l *cluster.Link) {
	l.Delay(100 * time.Millisecond) // 200 ms for a way and back
	l.Lose(0.02)
}

// TestNetworkFaults: under load on all nodes, whatever the network does, nothing is lost, nothing is there twice, and no
// node ever shows an effect without its cause.
func TestNetworkFaults(t *testing.T) {
	t.Parallel()
	lasts := failoverAfter + time.Second/2
	if pgtest.Soak() {
		lasts = time.Minute
	}
	c := cluster.New(t, cluster.Options{Nodes: 4, Schema: loadSchema, Config: map[string]string{
		"topology.kind": "ring", "topology.failover_after": failoverAfter.String()}})
	l := newLoad(t, c, 1, seed(t))
	each := func(f func(a, b *cluster.Node)) {
		for i, a := range c.Nodes {
			for _, b := range c.Nodes[i+1:] {
				f(a, b)
			}
		}
	}
	for _, x := range []struct {
		name  string
		fault func()
	}{
		{"two halves", func() {
			each(func(a, b *cluster.Node) {
				if (a.Name < "c") != (b.Name < "c") {
					both(a, b, (*cluster.Link).Cut)
				}
			})
			during(lasts)
		}},
		{"nothing that b sends arrives", func() {
			for _, n := range c.Nodes {
				if n.Name != "b" {
					mute(c.Node("b"), n)
				}
			}
			during(lasts)
		}},
		{"nothing from c arrives at d", func() {
			mute(c.Node("c"), c.Node("d"))
			during(lasts)
		}},
		{"200 ms, and 2 % of the packets lost", func() {
			each(func(a, b *cluster.Node) { both(a, b, far) })
			during(lasts)
		}},
		{"connections reset each second", func() {
			for range max(1, int(lasts/time.Second)) {
				during(time.Second)
				each(func(a, b *cluster.Node) { both(a, b, (*cluster.Link).Reset) })
			}
		}},
	} {
		l.start()
		x.fault()
		l.stop()
		healAll(c)
		c.WaitConverged()
		requireCounts(t, c, l)
		if t.Failed() {
			t.Fatalf("after: %s", x.name)
		}
	}
}

// faults plays random faults on a cluster under load.
type faults struct {
	t     *testing.T
	c     *cluster.Cluster
	l     *load
	r     *rand.Rand
	kinds map[string]string // the cluster's configuration
	log   []string
	large int      // numbers the large rows
	whole []string // nodes that can give others what they lack, and must be reached for it; empty: all can
}

// TestRandomFaults plays schedules of random faults on random topologies, most of them with an edge and a reader: bridges and
// servers are killed and come back, also with a large transaction on its way, links are cut, muted, slow, and heal, clocks step, brokers
// lose their disks, and nodes are away until the others let them go, all under load. In the end all nodes hold the same rows, and each acknowledged write is there.
func TestRandomFaults(t *testing.T) {
	t.Parallel()
	nodes, schedules, least := []int{4}, 4, 2
	if pgtest.Soak() {
		nodes, schedules, least = []int{3, 4, 5, 6}, 50, 4
	}
	for _, n := range nodes {
		t.Run(fmt.Sprintf("%d nodes", n), func(t *testing.T) { playFaults(t, n, schedules, least) })
	}
}

// playFaults plays so many schedules, each of at least so many faults, on one cluster.
func playFaults(t *testing.T, nodes, schedules, least int) {
	s := seed(t)
	t.Logf("%d nodes, %d schedules from seed %d", nodes, schedules, s)
	f := &faults{t: t, kinds: letGoConfig()}
	f.kinds["stream.absent_bytes"] = "256KiB"
	var have []string // that have what others have not
	if s%2 == 0 {     // only some have a table that is written everywhere
		r := rand.New(rand.NewSource(s))
		for _, i := range r.Perm(nodes)[:2+r.Intn(nodes-2)] {
			have = append(have, string(rune('a'+i)))
		}
		f.kinds["topology.residency"] = "public.hot=" + strings.Join(have, " ")
		t.Log(f.kinds["topology.residency"])
	}
	placed := s%4 == 1 || s%8 == 3 // only some have some of its rows
	if placed {
		f.kinds["topology.rows"], f.whole = randomPlaces(nodes, rand.New(rand.NewSource(s)))
		t.Log(f.kinds["topology.rows"])
	}
	var columns []string // of one that is merged only some have some columns' values
	switch {
	case s%4 == 0:
		columns = have
	case s%8 == 7:
		_, columns = randomPlaces(nodes, rand.New(rand.NewSource(s)))
		f.whole = columns
	}
	if columns != nil {
		f.kinds["topology.columns"], f.kinds["conflict.tables"] = columnsAt(columns), columnedRules
		t.Log(f.kinds["topology.columns"])
	}
	keys := s%4 < 2 // so that it is sealed there
	f.c = cluster.New(t, cluster.Options{Nodes: nodes, Keys: keys, Schema: loadSchema + placedTable + columnedTable + fullSchema, Own: true, Clocks: true, Processes: true, Config: f.kinds,
		Settings: map[string]string{"logical_decoding_work_mem": "64kB"}})
	f.l = newLoad(t, f.c, 1, s)
	f.l.placed, f.l.columns = placed, columns
	every := min(schedules/2, 5) // schedules on one topology
	for i := range schedules {
		x := s + int64(i)
		if i == every+1 {
			x = 857910 // with which it has failed before, on a star
		}
		f.r = rand.New(rand.NewSource(x))
		if i%every == 0 {
			f.rearrange(i == every)
		}
		begun := time.Now()
		f.play(least + f.r.Intn(least+1))
		t.Logf("schedule %d, equal after %s: %s", i, time.Since(begun).Round(100*time.Millisecond), strings.Join(f.log, "; "))
		if t.Failed() {
			t.Fatalf("schedule %d of seed %d failed, on %v", i, s, f.kinds)
		}
	}
}

// rearrange gives the cluster another topology, a star or any, as an operator would: all bridges are stopped for it.
func (f *faults) rearrange(star bool) {
	for _, n := range f.c.Nodes {
		n.Stop()
	}
	for _, key := range []string{"topology.kind", "topology.center", "topology.links", "topology.roles"} {
		delete(f.kinds, key)
	}
	var kind string
	draw := f.r.Intn(4)
	if star {
		draw = 2
	}
	switch draw {
	case 0:
		kind = "mesh"
	case 1:
		kind = "ring"
	case 2:
		kind = "star"
		f.kinds["topology.center"] = f.node().Name
	case 3:
		kind = "graph"
		f.kinds["topology.links"] = randomLinks(f.r, len(f.c.Nodes))
	}
	f.kinds["topology.kind"] = kind
	a, b := f.pair()
	for slices.Contains(f.whole, a.Name) {
		a, b = f.pair()
	}
	if f.r.Intn(3) > 0 {
		f.kinds["topology.roles"] = a.Name + "=edge," + b.Name + "=reader"
	}
	f.c.WriteConfig()
	for _, n := range f.c.Nodes {
		n.Launch()
	}
	for _, n := range f.c.Nodes { // what was a reader may be written again
		n.AwaitStatus(func(r *cluster.Report) bool { return r.Waiting == "" })
	}
	f.c.WaitConverged()
	f.t.Logf("topology: %v", f.kinds)
}

func (f *faults) node() *cluster.Node { return f.c.Nodes[f.r.Intn(len(f.c.Nodes))] }

// pair is two nodes.
func (f *faults) pair() (a, b *cluster.Node) {
	p := f.r.Perm(len(f.c.Nodes))
	return f.c.Nodes[p[0]], f.c.Nodes[p[1]]
}

// play plays a schedule of so many faults, and waits until all is well again.
func (f *faults) play(faults int) {
	f.log = nil
	f.l.start()
	switch f.r.Intn(6) { // what needs the others to be well
	case 0:
		f.log = append(f.log, f.letGo())
	case 1:
		f.log = append(f.log, f.wipe())
	case 2, 3:
		f.log = append(f.log, f.killInARun())
	}
	for range faults {
		f.log = append(f.log, f.fault())
		during(time.Duration(f.r.Intn(800)) * time.Millisecond) // the random moment
	}
	f.l.stop()
	healAll(f.c)
	var leave []func()
	for _, n := range f.c.Nodes {
		if !n.Running() {
			n.Launch()
		}
		leave = append(leave, n.Supervise())
	}
	f.t.Logf("waiting behind: %s", strings.Join(f.log, "; "))
	f.c.WaitConverged()
	requireCounts(f.t, f.c, f.l)
	if f.l.columns != nil {
		requireColumned(f.t, f.c, f.l.columns)
	}
	for _, leave := range leave {
		leave()
	}
}

// insertLarge writes eight large rows of a node, numbered from one on: a run, as long as any other of its node.
const insertLarge = `INSERT INTO big SELECT $1, $2 + k, decode(repeat(md5(($2 + k)::text), 4096), 'hex') FROM generate_series(1, 8) k`

// killInARun kills a bridge, and starts it again, while a large transaction is on its way; then that is committed, or rolled back and
// followed by another one, which is as long and has the same id on its way.
func (f *faults) killInARun() string {
	n := f.node()
	for n.Reader() {
		n = f.node()
	}
	f.large++
	ctx := f.t.Context()
	conn := pgtest.Connect(f.t, n.DSN)
	defer conn.Close(ctx)
	tx, err := conn.Begin(ctx)
	if err == nil {
		_, err = tx.Exec(ctx, insertLarge, n.Name, 100*f.large)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	during(time.Duration(f.r.Intn(300)) * time.Millisecond) // the random moment
	n.Kill()
	what := "kill " + n.Name + " in a run"
	if f.r.Intn(2) == 0 {
		err = tx.Commit(ctx)
	} else if err = tx.Rollback(ctx); err == nil {
		what += " that is rolled back"
		n.Exec(insertLarge, n.Name, 100*f.large+8)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	f.l.others[n.Name]++
	n.Launch()
	return what
}

// letGo kills the bridge of a node until all others have let the node go.
func (f *faults) letGo() string {
	away := f.node()
	away.Kill()
	f.large++
	for _, n := range f.c.Nodes {
		if n == away || n.Reader() {
			continue
		}
		for i := range 4 {
			n.Exec(insertLarge, n.Name, 100*f.large+8*i)
			f.l.others[n.Name]++
		}
	}
	for _, n := range f.c.Nodes {
		if n != away && !n.Reader() { // whose stream never holds too much
			n.AwaitStatus(func(r *cluster.Report) bool { return isLetGo(r, away) })
		}
	}
	return "let go of " + away.Name
}

// wipe takes a broker's disk, with nothing on it for which the slot was confirmed and that nobody else has.
func (f *faults) wipe() string {
	n := f.node()
	for token, err := bridge.Token(f.t.Context(), n.Load()); ; {
		if err != nil {
			f.t.Fatal(err)
		}
		m := f.node()
		if m == n {
			continue
		}
		if got := m.Value(`SELECT pgbridge.wait($1, '2 min')`, token); got != "t" {
			f.t.Fatalf("node %s has not got %s", m.Name, token)
		}
		break
	}
	n.Kill()
	wipe(f.t, n)
	n.Launch()
	return "wipe the broker of " + n.Name
}

// fault does one thing, and tells what.
func (f *faults) fault() string {
	a, b := f.pair()
	ab := a.Name + "-" + b.Name
	switch f.r.Intn(10) {
	case 0, 1:
		a.Kill()
		return "kill " + a.Name
	case 2:
		crash(f.t, a, f.r)
		return "crash the server of " + a.Name
	case 3, 4:
		for _, n := range f.c.Nodes {
			if !n.Running() {
				n.Launch()
				return "revive " + n.Name
			}
		}
		healAll(f.c)
		return "heal all"
	case 5, 6:
		both(a, b, (*cluster.Link).Cut)
		return "cut " + ab
	case 7:
		mute(a, b)
		return "mute " + ab
	case 8:
		both(a, b, far)
		return "slow " + ab
	default:
		ahead := time.Duration(f.r.Intn(1200)) * time.Second // and back, but not to before the tables were made (docs/limits.md)
		if err := a.PG.SetClock(ahead); err != nil {
			f.t.Fatal(err)
		}
		return fmt.Sprintf("clock of %s %v ahead", a.Name, ahead)
	}
}
