package integration

import (
	"context"
	"math/rand"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgcluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// TestCrashes kills bridges (and with each the NATS server inside it) and PostgreSQL servers at random
// moments under load, and starts them again as a supervisor would; nobody else touches anything. Nothing
// may be lost, nothing may be there twice. In a ring of four each node hands on what another one writes: what was applied
// and not handed on yet is read again.
func TestCrashes(t *testing.T) {
	t.Parallel()
	run := func(name string, kills int, o cluster.Options) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o.Schema, o.Own, o.Processes = loadSchema, true, true
			crashes(t, cluster.New(t, o), kills)
		})
	}
	ring := cluster.Options{Nodes: 4, Config: map[string]string{"topology.kind": "ring"}}
	if !pgtest.Soak() { // the other tests with kills have a mesh
		run("ring", 8, ring)
		return
	}
	run("mesh", 120, cluster.Options{})
	run("ring", 80, ring)
}

// crashes kills at random moments under load, so many times.
func crashes(t *testing.T, c *cluster.Cluster, kills int) {
	t.Helper()
	s := seed(t)
	l := startLoad(t, c, 2, s)
	r := rand.New(rand.NewSource(s))
	for i := range kills {
		moment, cancel := context.WithTimeout(context.Background(), time.Duration(r.Intn(1200))*time.Millisecond)
		<-moment.Done() // the random moment
		cancel()
		n := c.Nodes[r.Intn(len(c.Nodes))]
		switch what := r.Intn(3); what {
		case 0, 1:
			t.Logf("kill %d: bridge of %s", i, n.Name)
			n.Kill()
		case 2:
			t.Logf("kill %d: PostgreSQL of %s", i, n.Name)
			crash(t, n, r)
		}
		for _, n := range c.Nodes {
			if !n.Running() {
				n.Launch()
			}
		}
	}
	l.stop()
	for _, n := range c.Nodes {
		n.Supervise()
	}
	c.WaitConverged()
	requireCounts(t, c, l)
	for i, n := range c.Nodes {
		t.Logf("node %s: %d committed, %d unsure", n.Name, l.commits[i].Load(), l.unsure[i].Load())
	}
}

// crash stops a server without a checkpoint, and starts it again.
func crash(t *testing.T, n *cluster.Node, r *rand.Rand) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if r.Intn(2) == 0 {
		if err := n.PG.Kill(); err != nil {
			t.Fatal(err)
		}
	} else if err := n.PG.Stop(ctx, pgcluster.Immediate); err != nil {
		t.Fatal(err)
	}
	if err := n.PG.Restart(ctx); err != nil {
		t.Fatal(err)
	}
}
