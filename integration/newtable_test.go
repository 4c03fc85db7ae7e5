package integration

import (
	"slices"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
)

// TestNewTable: a table that is made on all nodes while the bridges run is replicated without a restart, and one
// that cannot be stops nobody.
func TestNewTable(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2})
	c.Exec(`CREATE TABLE fresh (id text PRIMARY KEY, v text); CREATE TABLE keyless (v text)`)
	for _, n := range c.Nodes {
		n.Await(`SELECT count(*) FROM pg_publication_tables WHERE tablename = 'fresh'`, "1")
	}
	a, b := c.Node("a"), c.Node("b")
	a.Exec(`INSERT INTO fresh VALUES ('of a', 1)`)
	b.Exec(`INSERT INTO fresh VALUES ('of b', 1)`)
	c.WaitConverged()
	a.Exec(`UPDATE fresh SET v = 2 WHERE id = 'of b'`)
	b.Exec(`DELETE FROM fresh WHERE id = 'of a'`)
	c.WaitConverged()
	if rows := b.Query(`SELECT id, v FROM fresh`); !slices.Equal(rows, []string{"of b|2"}) {
		t.Errorf("rows: %q", rows)
	}
	a.AwaitStatus(func(r *cluster.Report) bool { return hasAlarm(r, "table-unusable") && r.Waiting == "" })
	a.Exec(`ALTER TABLE keyless ADD PRIMARY KEY (v)`)
	a.AwaitStatus(func(r *cluster.Report) bool { return !hasAlarm(r, "table-unusable") })
}

// TestNewTableWithoutAutoSetup: where a DBA does the setup, status asks for it.
func TestNewTableWithoutAutoSetup(t *testing.T) {
	t.Parallel()
	keys := map[string]string{"postgres.auto_setup": "true"}
	c := cluster.New(t, cluster.Options{Nodes: 1, Config: keys})
	a := c.Node("a")
	a.Stop()
	keys["postgres.auto_setup"] = "false"
	a.Start()
	a.Exec(`CREATE TABLE fresh (id int PRIMARY KEY)`)
	a.AwaitStatus(func(r *cluster.Report) bool { return hasAlarm(r, "table-unpublished") && r.Waiting == "" })
}

func hasAlarm(r *cluster.Report, code string) bool {
	return slices.ContainsFunc(r.Alarms, func(a cluster.Alarm) bool { return a.Code == code })
}
