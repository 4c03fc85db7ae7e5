package integration

import (
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
)

// TestMigrateFromNative does what docs/migrate.md says, with the SQL that stands there: a subscriber becomes a leader while the publisher is
// written to, and what it lacks comes along.
func TestMigrateFromNative(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2, Own: true, Idle: true, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`})
	a, b := c.Node("a"), c.Node("b")
	b.Exec(`TRUNCATE t, pgb_sentinel`)
	a.Exec(`INSERT INTO t SELECT i, 'row ' || i FROM generate_series(1, 5000) i`)
	a.Exec(`CREATE PUBLICATION shop_pub FOR ALL TABLES`)
	b.Exec(`CREATE SUBSCRIPTION shop_sub CONNECTION '` + a.DSN + `' PUBLICATION shop_pub`)
	b.Await(`SELECT count(*) FROM t`, "5000")
	a.Exec(`UPDATE t SET v = 'native' WHERE id < 10`)
	b.Await(`SELECT count(*) FROM t WHERE v = 'native'`, "9")

	run := map[*cluster.Node]int{}
	for _, s := range readShown(t, "../docs/migrate.md") {
		for at, n := range map[string]*cluster.Node{"-- at a": a, "-- at b": b} {
			if s.kind == shownSQL && strings.HasPrefix(s.sql, at) {
				n.Exec(s.sql)
				run[n]++
			}
		}
	}
	if run[a] != 1 || run[b] != 1 {
		t.Fatalf("%v of the statements were run", run)
	}
	if got := a.Value(`SELECT count(*) FROM pg_replication_slots WHERE plugin = 'pgoutput' AND slot_name = 'shop_sub'`); got != "0" {
		t.Errorf("%s slots are left", got)
	}
	a.Exec(`UPDATE t SET v = 'between' WHERE id < 5`)
	a.Start()
	a.Exec(`UPDATE t SET v = 'late' WHERE id BETWEEN 100 AND 199; DELETE FROM t WHERE id > 4990; INSERT INTO t VALUES (6000, 'late')`)
	kept := int64(0)
	o := bridge.JoinOptions{From: "a", Jobs: 2, Existing: true, Logger: b.Logger(), Tell: func(text string) { t.Log(text) }, Progress: func(p bridge.JoinProgress) { kept = p.Bytes }}
	if err := bridge.Join(t.Context(), b.Load(), o); err != nil {
		t.Fatalf("%v\n%s", err, b.LogTail())
	}
	if kept > 50_000 { // all rows have 100 kB
		t.Errorf("%d bytes were copied of what was there", kept)
	}
	b.Start()
	b.Exec(`UPDATE t SET v = 'of b' WHERE id = 1`)
	a.Await(`SELECT v FROM t WHERE id = 1`, "of b")
	c.WaitConverged()
}
