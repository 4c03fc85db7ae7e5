package integration

import (
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
)

// TestNewerFramesWait: a node that is upgraded later than another one waits in front of frames that it cannot read, says so, goes on
// with all else, and when it can read them nothing is missing.
func TestNewerFramesWait(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`})
	a, b := c.Node("a"), c.Node("b")
	b.Exec(`INSERT INTO t VALUES (1, 'old')`)
	a.Await(`SELECT v FROM t`, "old")
	a.Links["b"].Rewrite(cluster.Back, "PGBF\x01", "PGBF\x7f") // the next frames are what a newer pgbridge writes
	b.Exec(`INSERT INTO t VALUES (2, 'new')`)
	b.Exec(`UPDATE t SET v = 'newer' WHERE id = 1`)
	a.AwaitStatus(func(r *cluster.Report) bool {
		for _, x := range r.Alarms {
			if x.Code == "frames-newer" {
				return strings.Contains(x.Text, "node b") && strings.Contains(x.Text, "version 127") && strings.Contains(x.Mend, "upgrade")
			}
		}
		return false
	})
	a.Exec(`INSERT INTO t VALUES (3, 'a')`)
	b.Await(`SELECT v FROM t WHERE id = 3`, "a")
	if got := a.Value(`SELECT string_agg(id || v, ' ' ORDER BY id) FROM t`); got != "1old 3a" {
		t.Errorf("node a has %s", got)
	}
	a.Links["b"].Heal() // it is upgraded
	c.WaitConverged()
	a.AwaitStatus(func(r *cluster.Report) bool { return !hasAlarm(r, "frames-newer") })
}
