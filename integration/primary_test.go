package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
)

// TestLocalWritesDoNotWait: with the peer away, with its link cut, and with the own bridge and broker
// away, local transactions commit as ever; status says what waits; on return all catches up.
func TestLocalWritesDoNotWait(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2, Schema: `CREATE TABLE t (id text PRIMARY KEY, v int)`})
	a, b := c.Node("a"), c.Node("b")
	write := func(what string) {
		t.Helper()
		for i := range 200 {
			a.Exec(`INSERT INTO t VALUES ($1, $2)`, fmt.Sprint(what, i), i)
		}
	}
	b.Stop()
	write("peer stopped ")
	r := a.Status()
	if r.Waiting != "" || r.Seq == 0 {
		t.Errorf("status with the peer away: %+v", r)
	}
	a.AwaitStatus(func(r *cluster.Report) bool { return linkState(r, "b") != "connected" })
	b.Start()
	b.Await(`SELECT count(*) FROM t`, "200")
	b.Links["a"].Cut()
	write("link cut ")
	b.AwaitStatus(func(r *cluster.Report) bool { return linkState(r, "a") != "connected" })
	b.Links["a"].Heal()
	b.Await(`SELECT count(*) FROM t`, "400")
	a.Stop()
	write("own bridge stopped ")
	if r := a.Status(); r.Slot.WALHeldBytes == 0 || !strings.Contains(r.Waiting, "no bridge runs") {
		t.Errorf("status with the own bridge away: %+v", r)
	}
	a.Start()
	c.WaitConverged()
}

func linkState(r *cluster.Report, name string) string {
	for _, l := range r.Links {
		if l.Link == name {
			return l.State
		}
	}
	return ""
}
