package integration

import (
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
)

// TestNodesLeaveAndAreRemoved: one of four leaves with nothing lost, another one dies and is removed; what they wrote stays, the others
// wait for neither, and neither comes back.
func TestNodesLeaveAndAreRemoved(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 4, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`, Config: map[string]string{"topology.failover_after": failoverAfter.String()}})
	a, b, dead, leaver := c.Node("a"), c.Node("b"), c.Node("c"), c.Node("d")
	for i, n := range c.Nodes {
		n.Exec(`INSERT INTO t SELECT i, $1 FROM generate_series($2::int, $2::int + 99) i`, n.Name, 1000*i)
	}
	c.WaitConverged()
	tell := bridge.MemberOptions{Logger: a.Logger(), Tell: func(text string) { t.Log(text) }}

	err := bridge.RemoveNode(t.Context(), a.Load(), "c", tell)
	requireSays(t, "removal of a node that lives", err, "node c lives", "leave")
	requireSays(t, "removal of nobody", bridge.RemoveNode(t.Context(), a.Load(), "x", tell), `no node "x"`)
	requireSays(t, "removal of itself", bridge.RemoveNode(t.Context(), a.Load(), "a", tell), "leave")

	leaver.Exec(`UPDATE t SET v = 'the last of d' WHERE id >= 3000`)
	if err := bridge.Leave(t.Context(), leaver.Load(), tell); err != nil {
		t.Fatalf("%v\n%s", err, leaver.LogTail())
	}
	requireSays(t, "bridge of the node that left", leaver.Ended(), "node d has left")
	requireSays(t, "its next one", leaver.Run(), "node d has left")
	if got := leaver.Value(`SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%_d' AND database = current_database()`) +
		leaver.Value(`SELECT count(*) FROM pg_publication`); got != "00" {
		t.Errorf("slot or publication are there: %s", got)
	}
	leaver.Exec(`DELETE FROM t WHERE id < 10`) // which is its own now
	c.Nodes = c.Nodes[:3]
	c.WaitConverged()
	if n := a.Value(`SELECT count(*) FROM t WHERE v = 'the last of d'`); n != "100" {
		t.Errorf("node a has %s of the last rows of d", n)
	}

	dead.Exec(`UPDATE t SET v = 'the last of c' WHERE id >= 3000`)
	c.WaitConverged()
	dead.Stop()
	c.Nodes = c.Nodes[:2]
	a.Exec(`DELETE FROM t WHERE id BETWEEN 10 AND 19`)
	b.Await(`SELECT count(*) FROM t WHERE id BETWEEN 10 AND 19`, "0")
	if n := b.Value(`SELECT count(*) > 0 FROM pgbridge.tombstone`); n != "t" {
		t.Error("nothing is kept for the dead node")
	}
	if err := bridge.RemoveNode(t.Context(), a.Load(), "c", tell); err != nil {
		t.Fatalf("%v\n%s", err, a.LogTail())
	}
	c.WaitConverged()
	for _, n := range c.Nodes {
		n.Exec(`DELETE FROM t WHERE id BETWEEN 20 AND 29`)
	}
	c.WaitConverged()
	for _, n := range c.Nodes {
		n.Await(`SELECT count(*) FROM pgbridge.tombstone`, "0") // nobody waits for those who are gone
		n.AwaitStatus(func(r *cluster.Report) bool { return alarmed(r, "node-gone") && !alarmed(r, "node-unreached") })
	}
	if err := bridge.RemoveNode(t.Context(), b.Load(), "c", tell); err != nil {
		t.Errorf("to remove it again says %v", err)
	}
	dead.Exec(`INSERT INTO t VALUES (9000, 'too late')`)
	requireSays(t, "bridge of the node that was removed", dead.Run(), "node c was removed", "another name")

	// Without them in the configuration; and again with a new one of an old name.
	c.Reconfigure()
	for _, n := range c.Nodes {
		n.Exec(`INSERT INTO t VALUES ($1, 'late')`, 100+int(n.Name[0]))
	}
	c.WaitConverged()
	again := c.Grow()
	requireSays(t, "join under the name of a node that was removed", bridge.Join(t.Context(), again.Load(), bridge.JoinOptions{From: "a", Jobs: 1, Logger: again.Logger()}),
		"a node c was removed", "another name")
}

// requireSays requires an error that says all of this.
func requireSays(t *testing.T, what string, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: the error is %v, it lacks %q", what, err, part)
		}
	}
}
