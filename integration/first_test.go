package integration

import (
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
)

// TestOneRow is the thinnest whole thing: one row, committed on one primary, is seen on the other.
func TestOneRow(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`})
	c.Node("a").Exec(`INSERT INTO t VALUES (1, 'hello')`)
	c.Node("b").Await(`SELECT v FROM t WHERE id = 1`, "hello")
	c.Node("b").Exec(`UPDATE t SET v = 'and back' WHERE id = 1`)
	c.Node("a").Await(`SELECT v FROM t WHERE id = 1`, "and back")
	c.WaitConverged()
	for _, n := range c.Nodes {
		if got := n.Value(`SELECT count(*) FROM pgbridge.conflict`); got != "0" {
			t.Errorf("node %s recorded %s conflicts", n.Name, got)
		}
	}
}
