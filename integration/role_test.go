package integration

import (
	"os"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// TestPrintedStatementsAreEnough: a superuser runs exactly what setup prints; bridges whose roles had nothing
// before then run with that, and replicate whatever a table's row security says.
func TestPrintedStatementsAreEnough(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		c := cluster.New(t, cluster.Options{Nodes: 2, Majors: []int{s.Major}, Idle: true, Schema: `
			CREATE SCHEMA "Of App"; CREATE TABLE "Of App".t (id text PRIMARY KEY, v text, n int UNIQUE);
			CREATE TABLE secured (id text PRIMARY KEY); ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
			CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
			CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100)`})
		for _, n := range c.Nodes {
			demote(t, n)
			sql, err := bridge.SetupSQL(t.Context(), n.Load())
			if err != nil {
				t.Fatal(err)
			}
			for _, statement := range sql {
				n.Exec(statement)
			}
			if again, err := bridge.SetupSQL(t.Context(), n.Load()); err != nil || len(again) != len(sql)-2 {
				t.Errorf("then %d statements instead of %d are printed, %v; publication and slot are there", len(again), len(sql), err)
			}
		}
		for _, n := range c.Nodes {
			n.Start()
		}
		a, b := c.Nodes[0], c.Nodes[1]
		for _, n := range c.Nodes {
			n.Exec(`INSERT INTO "Of App".t VALUES ($1, 'new'), ($1 || ' goes', 'new')`, n.Name)
			n.Exec(`INSERT INTO secured VALUES ($1)`, n.Name)
		}
		c.WaitConverged()
		b.Exec(`UPDATE "Of App".t SET v = 'of b' WHERE id = 'a'; DELETE FROM "Of App".t WHERE id = 'b goes'; TRUNCATE secured`)
		a.Exec(`INSERT INTO parted SELECT generate_series(1, 50); DELETE FROM "Of App".t WHERE id = 'a goes'`)
		c.WaitConverged()
		// The same key at once, so that the losers are looked at and kept.
		a.Links["b"].Cut()
		b.Links["a"].Cut()
		for _, n := range c.Nodes {
			n.Exec(`INSERT INTO "Of App".t VALUES ('both', $1)`, n.Name)
		}
		a.Links["b"].Heal()
		b.Links["a"].Heal()
		c.WaitConverged()
		if n := a.Value(`SELECT count(*) FROM "Of App".t`); n != "3" {
			t.Errorf("%s rows", n)
		}
		plant(t, c.Name, b, `UPDATE "Of App".t SET v = 'planted' WHERE id = 'a'; DELETE FROM parted WHERE id = 7; INSERT INTO secured VALUES ('planted')`)
		if r := verify(t, a, bridge.VerifyOptions{Repair: true}); r.Differences != 3 || r.Mended != 3 {
			t.Errorf("planted rows: %+v", r)
		}
		c.WaitConverged()
		for _, n := range c.Nodes {
			n.Stop()
		}
	})
}

// demote gives the node's bridge a role of its own that may connect and nothing else.
func demote(t *testing.T, n *cluster.Node) {
	t.Helper()
	role := "r_" + n.Value(`SELECT current_database()`)
	n.Exec(`CREATE ROLE ` + role + ` LOGIN`)
	t.Cleanup(func() { n.Exec(`DROP OWNED BY ` + role + `; DROP ROLE ` + role) })
	text, err := os.ReadFile(n.File)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(text), n.DSN, n.DSN+"&user="+role, 1)
	if changed == string(text) || !strings.Contains(n.DSN, "?") {
		t.Fatalf("cannot give %s another user", n.DSN)
	}
	if err := os.WriteFile(n.File, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
}
