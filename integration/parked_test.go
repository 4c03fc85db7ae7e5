package integration

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
)

// poisonous makes node c refuse some of the load's transactions: which, its users do not know.
const poisonous = `ALTER TABLE entry ADD CONSTRAINT fussy CHECK (node = 'c' OR amount <> 99 OR account > 100)`

// TestPoisonIsParkedAndRetried: a constraint that is on one of three nodes only makes transactions poison there. They are
// parked, and those that touch their rows; all else goes on, under load, and through a restart. When the constraint is gone
// and they are tried again, all nodes are equal, and every transaction was applied once.
func TestPoisonIsParkedAndRetried(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 3, Schema: loadSchema})
	n := c.Node("c")
	n.Exec(poisonous)
	l := newLoad(t, c, 1, seed(t))
	l.parks = n.Name
	l.start()
	awaitParked(n, 5)
	n.Stop()
	n.Start()
	awaitParked(n, 12)
	l.run(loadTime() / 20)

	// All that does not touch their rows comes through, though the nodes' own transactions are all behind parked ones.
	c.Exec(`INSERT INTO parent VALUES (current_database(), 7)`)
	for _, m := range c.Nodes {
		n.Await(fmt.Sprintf(`SELECT count(*) FROM parent WHERE id = '%s'`, m.Value(`SELECT current_database()`)), "1")
	}
	parked := n.Value(`SELECT count(*) FROM pgbridge.parked`)
	dependent := n.Value(`SELECT count(*) FROM pgbridge.parked WHERE sqlstate IS NULL`)
	t.Logf("parked at c: %s transactions, %s of them behind others", parked, dependent)
	if got := n.Value(`SELECT count(*) FROM entry WHERE node <> 'c' AND amount = 99 AND account <= 100`); got != "0" {
		t.Errorf("%s rows are there that the constraint forbids", got)
	}
	requireAlarm(t, n)
	for _, m := range []*cluster.Node{c.Node("a"), c.Node("b")} {
		if got := m.Value(`SELECT count(*) FROM pgbridge.parked`); got != "0" {
			t.Errorf("node %s has parked %s transactions", m.Name, got)
		}
	}

	n.Exec(`ALTER TABLE entry DROP CONSTRAINT fussy`)
	out, err := exec.Command(cluster.Binary(t), "parked", "retry", "--all", "--config", n.File).CombinedOutput()
	if err != nil {
		t.Logf("parked retry: %v\n%.2000s", err, out)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("parked still:\n%s", strings.Join(n.Query(`SELECT origin, seq, depends_on, sqlstate, message, attempts, request FROM pgbridge.parked ORDER BY id LIMIT 20`), "\n"))
		}
	})
	n.Await(`SELECT count(*) FROM pgbridge.parked`, "0")
	c.WaitConverged()
	requireApplied(t, c, l)
	if got := n.Value(orphansSQL); got != "0" {
		t.Errorf("%s children are left without parents", got)
	}
	n.AwaitStatus(func(r *cluster.Report) bool { return len(r.Alarms) == 0 })
}

func awaitParked(n *cluster.Node, least int) {
	n.AwaitStatus(func(r *cluster.Report) bool {
		parked := uint64(0)
		for _, l := range r.Links {
			parked += l.Parked
		}
		return parked >= uint64(least)
	})
}

// requireAlarm checks that status and list tell of what is parked.
func requireAlarm(t *testing.T, n *cluster.Node) {
	t.Helper()
	found := false
	for _, a := range n.Status().Alarms {
		found = found || a.Code == "parked" && a.Severity == bridge.SeverityError && strings.Contains(a.Mend, "pgbridge parked list")
	}
	if !found {
		t.Errorf("no alarm: %+v", n.Status().Alarms)
	}
	out, err := exec.Command(cluster.Binary(t), "parked", "list", "--config", n.File).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "23514") || !strings.Contains(string(out), "fussy") {
		t.Errorf("parked list: %v\n%.2000s", err, out)
	}
}

// requireApplied checks that every committed transaction's entry is on every node.
func requireApplied(t *testing.T, c *cluster.Cluster, l *load) {
	t.Helper()
	for i, o := range c.Nodes {
		for _, n := range c.Nodes {
			entries := n.Value(`SELECT count(*) FROM entry WHERE node = $1`, o.Name)
			if want := l.commits[i].Load(); l.unsure[i].Load() == 0 && entries != fmt.Sprint(want) {
				t.Errorf("node %s has %s entries of %s, committed were %d", n.Name, entries, o.Name, want)
			}
		}
	}
}

// TestDiscardedParkedIsOvercome: one transaction is given up; the node differs in its row until that is written again, and
// then no more.
func TestDiscardedParkedIsOvercome(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2, Schema: `CREATE TABLE r (id int PRIMARY KEY, v int)`})
	a, b := c.Node("a"), c.Node("b")
	a.Exec(`INSERT INTO r VALUES (1, 1), (2, 2)`)
	c.WaitConverged()
	b.Exec(`ALTER TABLE r ADD CONSTRAINT small CHECK (v < 100)`)
	a.Exec(`UPDATE r SET v = 1000 WHERE id = 1`)
	awaitParked(b, 1)
	a.Exec(`UPDATE r SET v = 3 WHERE id = 2`)
	b.Await(`SELECT v FROM r WHERE id = 2`, "3")
	b.Stop()
	name := "a:" + b.Value(`SELECT seq FROM pgbridge.parked`)
	out, err := exec.Command(cluster.Binary(t), "parked", "discard", name, "--config", b.File).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "no bridge runs here; it is done when it starts") {
		t.Errorf("discard: %v\n%s", err, out)
	}
	b.Start()
	b.Await(`SELECT kind || ' ' || (remote_row->>'v') || ' ' || (local_row->>'v') FROM pgbridge.conflict`, "discarded 1000 1")
	b.Exec(`UPDATE r SET v = v WHERE id = 1`)
	a.Await(`SELECT v FROM r WHERE id = 1`, "1")
	c.WaitConverged()
	b.AwaitStatus(func(r *cluster.Report) bool { return len(r.Alarms) == 0 })
}
