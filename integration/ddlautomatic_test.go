package integration

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// TestSchemaChangesTravelByThemselves: where event triggers are made, ordinary statements change the schema on all nodes as pgbridge.ddl does,
// once each; what cannot is refused with the mend, and what is for one node stays there.
func TestSchemaChangesTravelByThemselves(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Majors: oldestAndNewest(t), Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`})
	a, b, d := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	for _, n := range []*cluster.Node{a, b} {
		for range 2 {
			if err := bridge.AutomaticSchema(t.Context(), n.Load(), true); err != nil {
				t.Fatal(err)
			}
		}
	}
	demote(t, d)
	if err := bridge.AutomaticSchema(t.Context(), d.Load(), true); err == nil || !strings.Contains(err.Error(), "run as a superuser:\nDROP EVENT TRIGGER IF EXISTS pgbridge_ddl_started;\nCREATE EVENT TRIGGER") {
		t.Errorf("as one that may connect and nothing else it says %v", err)
	}
	session := pgtest.Connect(t, a.DSN)
	run := func(sql string) error {
		_, err := session.PgConn().Exec(t.Context(), sql).ReadAll()
		return err
	}
	travels, made := 0, func(statements ...string) {
		t.Helper()
		for _, sql := range statements {
			if err := run(sql); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
	}
	made(`INSERT INTO t SELECT i, 'first' FROM generate_series(1, 20) i`,
		`ALTER TABLE t ADD COLUMN n int DEFAULT 7`,
		`UPDATE t SET n = 8 WHERE id <= 5`,
		`BEGIN`, `UPDATE t SET v = 'none' WHERE id = 1`, `ALTER TABLE t ADD COLUMN m int -- a comment; with a semicolon`, `UPDATE t SET m = id`,
		`CREATE TABLE fresh (id int PRIMARY KEY, at timestamptz DEFAULT now());`, `INSERT INTO fresh VALUES (1)`, `COMMIT`,
		`COMMENT ON TABLE t IS E'one; it\'s two /* three'`,
		`/* a comment; too */ CREATE FUNCTION twice(int) RETURNS int LANGUAGE plpgsql AS $f$ BEGIN RETURN 2 * $1; END $f$`,
		`CREATE FUNCTION thrice(int) RETURNS int LANGUAGE sql AS $$ SELECT 2; SELECT 3 * $1 $$`,
		`CREATE VIEW "a;b" AS SELECT * FROM t`,
		`CREATE INDEX by_v ON t (v)`)
	travels += 8
	c.WaitConverged()
	b.Exec(`INSERT INTO fresh VALUES (twice(1))`)
	d.Exec(`UPDATE t SET n = twice(m) WHERE id = 20`)
	b.Exec(`ALTER TABLE t ADD COLUMN of_b text DEFAULT 'b'`)
	travels++
	ddl(a, `ALTER TABLE fresh ADD COLUMN x int; CREATE INDEX ON fresh (x)`)
	travels++
	c.WaitConverged()
	requireSchemas(t, c)

	// What stays here.
	made(`CREATE TEMP TABLE mine (id int PRIMARY KEY)`, `ALTER TABLE mine ADD COLUMN v text`, `CREATE INDEX ON mine (v)`, `DROP TABLE mine`,
		`CREATE INDEX CONCURRENTLY not_there ON t (n)`, `DROP INDEX CONCURRENTLY not_there`, `CREATE TABLE IF NOT EXISTS fresh (id int)`,
		`SET pgbridge.ddl = 'local'`, `CREATE TABLE only_here (id int PRIMARY KEY)`, `DO $$ BEGIN ALTER TABLE only_here ADD v text; END $$`, `DROP TABLE only_here`, `RESET pgbridge.ddl`)
	d.Exec(`CREATE TABLE only_there (id int PRIMARY KEY)`)
	d.Exec(`DROP TABLE only_there`)

	// What is refused, and changes nothing.
	for sql, want := range map[string]string{
		`ALTER TABLE t ADD z int; CREATE INDEX ON t (z)`:                                 "as one statement that is sent alone",
		`DO $$ BEGIN ALTER TABLE t ADD z int; END $$`:                                    "as one statement that is sent alone",
		`INSERT INTO t VALUES (99); ALTER TABLE t ADD z int`:                             "as one statement that is sent alone",
		`CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END`:                     "SELECT pgbridge.ddl(...)",
		`CREATE TABLE filled AS SELECT 1 AS id`:                                          "it writes rows of public.filled",
		`SELECT 1 AS id INTO filled`:                                                     "it writes rows of public.filled",
		`ALTER TABLE fresh ALTER x TYPE bigint`:                                          "SET pgbridge.ddl = 'local' keeps it on this node",
		`ALTER TABLE fresh DROP COLUMN x`:                                                "SET pgbridge.ddl = 'breaking' confirms it",
		`DROP TABLE fresh`:                                                               "SET pgbridge.ddl = 'breaking' confirms it",
		`ALTER TABLE t ADD COLUMN r float8 DEFAULT random()`:                             "another value on each node",
		`CREATE TABLE huge (id int PRIMARY KEY) /*` + strings.Repeat("x", 300000) + `*/`: "at most 256 KiB",
	} {
		err := run(sql)
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || !strings.Contains(pg.Message+" "+pg.Hint, want) {
			t.Errorf("%.80s: %v, want %q", sql, err, want)
		}
	}
	made(`SET pgbridge.ddl = 'breaking'`, `ALTER TABLE t RENAME COLUMN v TO w`, `RESET pgbridge.ddl`, `UPDATE t SET w = 'renamed' WHERE id = 4`, `DROP VIEW "a;b"`, `DROP INDEX by_v`)
	travels += 3
	made(`CREATE SCHEMA app`, `SET search_path = app, public`, `CREATE TABLE there (id int PRIMARY KEY, v int)`, `INSERT INTO there VALUES (1, twice(4))`, `RESET search_path`)
	travels += 2

	// A bridge that starts sets itself up beside the triggers.
	for _, n := range []*cluster.Node{a, b} {
		n.Stop()
		n.Start()
	}
	c.WaitConverged()
	requireSchemas(t, c)
	for _, n := range c.Nodes {
		if got := n.Value(`SELECT count(*) FROM pgbridge.ddl`); got != fmt.Sprint(travels) {
			t.Errorf("node %s has made %s changes, and there were %d: %q", n.Name, got, travels, n.Query(`SELECT sql FROM pgbridge.ddl ORDER BY id`))
		}
		if got := n.Value(`SELECT string_agg(w || n || m || of_b, ' ' ORDER BY id) FROM t WHERE id IN (1, 4, 20)`); got != "none81b renamed84b first4020b" {
			t.Errorf("node %s has the rows %s", n.Name, got)
		}
	}

	// It ends when it is said, and goes with pgbridge.
	if err := bridge.AutomaticSchema(t.Context(), b.Load(), false); err != nil {
		t.Fatal(err)
	}
	b.Exec(`ALTER TABLE t ADD COLUMN only_b int; ALTER TABLE t DROP COLUMN only_b`)
	a.Stop()
	a.Exec(`DROP SCHEMA pgbridge CASCADE`)
	for _, n := range []*cluster.Node{a, b} {
		if got := n.Value(`SELECT count(*) FROM pg_event_trigger`); got != "0" {
			t.Errorf("node %s has %s event triggers", n.Name, got)
		}
	}
	made(`ALTER TABLE t ADD COLUMN after_all int`)
}
