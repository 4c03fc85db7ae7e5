package integration

import (
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
)

// TestOwedRowThatIsKept: a row is owed to a node, and its author keeps it out of its table, as a later row has its value. So does the
// node with the older one that it has; and when that later row is gone, all have it as its author wrote it.
func TestOwedRowThatIsKept(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 3, Schema: toastSchema})
	a, b := c.Node("a"), c.Node("b")
	a.Exec(`INSERT INTO uniq VALUES (6, 7, ` + large(`'first'`) + `), (7, 70, ` + large(`'other'`) + `)`)
	c.WaitConverged()
	a.Links["b"].Cut()
	b.Links["a"].Cut()
	for _, n := range []*cluster.Node{a, b} {
		n.Links["c"].Cut()
		c.Node("c").Links[n.Name].Cut()
	}
	a.Exec(`UPDATE uniq SET big = ` + large(`'of a'`) + ` WHERE id = 6`)
	b.Exec(`UPDATE uniq SET n = 15 WHERE id = 6`)
	a.Exec(`INSERT INTO uniq VALUES (8, 15, 'later')`)
	for _, n := range c.Nodes {
		for _, l := range n.Links {
			l.Heal()
		}
	}
	c.WaitConverged()
	requireUniq := func(want string) {
		t.Helper()
		for _, n := range c.Nodes {
			if got := n.Value(`SELECT string_agg(concat_ws(' ', id, n, CASE big WHEN ` + large(`'first'`) + ` THEN 'first' END), ', ' ORDER BY id) FROM uniq`); got != want {
				t.Errorf("node %s has %s, want %s", n.Name, got, want)
			}
		}
	}
	requireUniq("7 70, 8 15")
	a.Stop()
	a.Start() // what is kept for that reason stays so
	a.Await(`SELECT count(*) FROM pgbridge.owed`, "1")
	a.Exec(`UPDATE uniq SET n = 71 WHERE id = 7`) // the table's rows are looked at
	c.WaitConverged()
	requireUniq("7 71, 8 15")
	c.Node("c").Exec(`DELETE FROM uniq WHERE id = 8`)
	for _, n := range c.Nodes {
		n.Await(`SELECT coalesce(sum(n), 0) FROM uniq WHERE id = 6`, "15")
		n.Await(`SELECT count(*) FROM pgbridge.owed`, "0")
		n.Await(`SELECT count(*) FROM pgbridge.quarantine`, "0")
	}
	c.WaitConverged()
	requireUniq("6 15 first, 7 71")
}
