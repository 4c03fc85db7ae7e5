package integration

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// TestTablesOfOthers: users are refused where topology.writers names other nodes. What a node writes there all the same, in whatever
// way, is parked by the others, who go on with what else it writes; and so is what touches the same rows. With the node among the
// writers all of it is applied.
func TestTablesOfOthers(t *testing.T) {
	t.Parallel()
	settings := map[string]string{"topology.writers": "public.price=a b, public.other=a", "capture.frame_bytes": "64KiB", "apply.batch_transactions": "4"}
	c := cluster.New(t, cluster.Options{Nodes: 3, Config: settings, Schema: `
		CREATE TABLE price (id int PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY, v text); CREATE TABLE free (id int PRIMARY KEY, v text)`})
	a, b, x := c.Node("a"), c.Node("b"), c.Node("c")
	a.Exec(`INSERT INTO price VALUES (1, 'a'), (2, 'a')`)
	c.WaitConverged()

	conn := pgtest.Connect(t, x.DSN)
	if _, err := conn.Exec(t.Context(), `UPDATE price SET v = 'c'`); err == nil || !strings.Contains(err.Error(), "table public.price cannot be written on node c, since topology.writers names others") {
		t.Errorf("a user's write: %v", err)
	}
	if _, err := pgtest.Connect(t, b.DSN).Exec(t.Context(), `INSERT INTO other VALUES (1)`); err == nil || !strings.Contains(err.Error(), "on node b, since topology.writers names others") {
		t.Errorf("a user's write: %v", err)
	}
	b.Exec(`INSERT INTO price VALUES (3, 'b')`)

	force := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), `SET session_replication_role = replica; `+sql+`; RESET session_replication_role`); err != nil {
			t.Fatal(err)
		}
	}
	// Small ones among others, a merged batch, a large one of inserts, one of updates, a TRUNCATE, and one that touches what is free, too.
	for i := range 20 {
		x.Exec(`INSERT INTO free VALUES ($1, 'c')`, i)
	}
	force(`INSERT INTO free VALUES (100, 'c'); INSERT INTO price VALUES (10, 'c')`)
	x.Exec(`INSERT INTO free VALUES (20, 'c')`)
	force(`UPDATE price SET v = 'c' WHERE id = 1`)
	force(`INSERT INTO other SELECT i, repeat('x', 50) FROM generate_series(1, 3000) i`)
	force(`UPDATE other SET v = 'c'`)
	force(`TRUNCATE other`)
	x.Exec(`INSERT INTO free VALUES (21, 'c')`)
	x.Exec(`UPDATE free SET v = 'later' WHERE id = 100`) // depends on a parked one
	x.Exec(`UPDATE free SET v = 'later' WHERE id = 20`)

	for _, n := range []*cluster.Node{a, b} {
		n.Await(`SELECT count(*) FILTER (WHERE v = 'later') || ' ' || count(*) FROM free`, "1 22")
		n.Await(`SELECT count(*) FROM pgbridge.parked`, "6")
		if got := n.Value(`SELECT string_agg(coalesce(sqlstate, '-'), ' ' ORDER BY seq) FROM pgbridge.parked`); got != "PGB02 PGB02 PGB02 - PGB02 -" {
			t.Errorf("node %s has parked %s", n.Name, got)
		}
		if got := n.Value(`SELECT string_agg(id || v, ' ' ORDER BY id) FROM price`); got != "1a 2a 3b" {
			t.Errorf("node %s has %s", n.Name, got)
		}
		if got := n.Value(`SELECT count(*) FROM other`); got != "0" {
			t.Errorf("node %s has %s rows of other", n.Name, got)
		}
	}
	out, err := exec.Command(cluster.Binary(t), "parked", "retry", "--all", "--config", a.File).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "node c does not write table public.price: topology.writers names others") {
		t.Errorf("retried, they say %v\n%s", err, out)
	}
	x.Exec(`SELECT pgbridge.ddl('ALTER TABLE free ADD COLUMN w int')`)
	a.AwaitStatus(func(r *cluster.Report) bool {
		for _, l := range r.Links {
			if l.Origin == x.Name && strings.Contains(l.Waiting, "changes the schema, and node c does not write all tables (topology.writers)") {
				return true
			}
		}
		return false
	})

	settings["topology.writers"] = ""
	for _, n := range c.Nodes {
		n.Stop()
	}
	c.WriteConfig()
	for _, n := range c.Nodes {
		n.Start()
	}
	for _, n := range []*cluster.Node{a, b} {
		out, err := exec.Command(cluster.Binary(t), "parked", "retry", "--all", "--config", n.File).CombinedOutput()
		t.Logf("%v %s", err, out)
		n.Await(`SELECT count(*) FROM pgbridge.parked`, "0")
	}
	if _, err := conn.Exec(t.Context(), `UPDATE price SET v = 'c' WHERE id = 2`); err != nil {
		t.Errorf("a user's write, now that it may: %v", err)
	}
	c.WaitConverged()
	if got := a.Value(`SELECT string_agg(id || v, ' ' ORDER BY id) FROM price`); got != "1c 2c 3b 10c" {
		t.Errorf("node a has %s", got)
	}
}
