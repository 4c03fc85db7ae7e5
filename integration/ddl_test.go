package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// schemaSQL lists columns, indexes and constraints of a node, as other nodes must have them.
const schemaSQL = `
SELECT format('%s.%s %s %s %s %s', table_schema, table_name, column_name, data_type, is_nullable, column_default)
FROM information_schema.columns WHERE table_schema NOT IN ('pg_catalog', 'information_schema', 'pgbridge')
UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname NOT IN ('pg_catalog', 'pgbridge')
UNION ALL SELECT conrelid::regclass || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid <> 0 AND contype <> 'n' AND connamespace = 'public'::regnamespace
UNION ALL SELECT 'published ' || schemaname || '.' || tablename FROM pg_publication_tables
    WHERE pubname = (SELECT 'pgb_' || cluster || '_' || node FROM pgbridge.node)
			AND tablename <> 'part' -- which only some nodes have
ORDER BY 1`

// requireSchemas waits until all nodes have the schema of the first.
func requireSchemas(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	for _, n := range c.Nodes[1:] {
		n.AwaitLike(c.Nodes[0], schemaSQL)
	}
}

// ddl changes the schema on a node.
func ddl(n *cluster.Node, sql string) { n.Exec(`SELECT pgbridge.ddl($1)`, sql) }

// breaking changes it in a way that has to be confirmed.
func breaking(n *cluster.Node, sql string) { n.Exec(`SELECT pgbridge.ddl($1, true)`, sql) }

// TestSchemaChangesTravel: columns, indexes, tables and partitions that are made on one node are made on all, and rows that need
// them follow.
func TestSchemaChangesTravel(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Schema: `
		CREATE TABLE t (id int PRIMARY KEY, v text);
		CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
		CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100)`})
	a, b, d := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	a.Exec(`INSERT INTO t SELECT i, 'first' FROM generate_series(1, 20) i`)
	ddl(a, `ALTER TABLE t ADD COLUMN n int DEFAULT 7; CREATE INDEX ON t (v)`)
	a.Exec(`UPDATE t SET n = 8 WHERE id <= 5`)
	ddl(a, `CREATE TABLE fresh (id int PRIMARY KEY, at timestamptz DEFAULT now()); CREATE VIEW all_of_t AS SELECT * FROM t`)
	a.Exec(`INSERT INTO fresh VALUES (1)`)
	ddl(a, `CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200)`)
	a.Exec(`INSERT INTO p VALUES (1, 'one'), (101, 'hundred and one')`)
	c.WaitConverged()
	requireSchemas(t, c)
	b.Exec(`INSERT INTO fresh VALUES (2)`)
	d.Exec(`UPDATE t SET n = 9 WHERE id = 20`)
	c.WaitConverged()
	if got := b.Value(`SELECT count(*) FROM fresh`); got != "2" {
		t.Errorf("%s rows of the new table", got)
	}

	// In one transaction with rows in front of it and behind it.
	b.Exec(`BEGIN; UPDATE t SET v = 'none' WHERE id = 1; SELECT pgbridge.ddl('ALTER TABLE t ADD COLUMN m int'); UPDATE t SET m = id;
		SELECT pgbridge.ddl('ALTER TABLE t ALTER m SET NOT NULL', true); INSERT INTO t VALUES (21, 'x', 1, 1); COMMIT`)
	c.WaitConverged()
	requireSchemas(t, c)

	// A column that is dropped and added again is another one.
	breaking(d, `DROP VIEW all_of_t; ALTER TABLE t DROP COLUMN n`)
	ddl(d, `ALTER TABLE t ADD COLUMN n text`)
	d.Exec(`UPDATE t SET n = 'again' WHERE id = 3`)
	breaking(d, `ALTER TABLE t RENAME COLUMN v TO w; DROP TABLE fresh`)
	d.Exec(`UPDATE t SET w = 'renamed' WHERE id = 4`)
	c.WaitConverged()
	requireSchemas(t, c)
	if got := a.Value(`SELECT w || coalesce(n, '-') || m FROM t WHERE id = 4`); got != "renamed-4" {
		t.Errorf("row 4: %s", got)
	}
	for _, n := range c.Nodes {
		if got := n.Value(`SELECT count(*) FROM pgbridge.ddl`); got != "8" {
			t.Errorf("node %s has noted %s changes", n.Name, got)
		}
		n.Await(`SELECT count(*) FROM pgbridge.ddl WHERE seq IS NULL`, "0")
	}
}

// waitsFor waits until what the node says of the transactions of an origin contains a text, and returns what follows.
func waitsFor(n *cluster.Node, origin, text string) (rest string) {
	n.AwaitStatus(func(r *cluster.Report) bool {
		for _, l := range r.Links {
			if _, after, ok := strings.Cut(l.Waiting, text); ok && (origin == "" || l.Origin == origin) {
				rest = after
				return true
			}
		}
		return false
	})
	return rest
}

// haveDone makes the next schema change that waits on the node, since it is there already, count as made.
func haveDone(t *testing.T, n *cluster.Node, origin string) {
	t.Helper()
	name, _, _ := strings.Cut(waitsFor(n, origin, "pgbridge ddl --done "), " ")
	if err := bridge.SchemaDone(t.Context(), n.Load(), name); err != nil {
		t.Error(err)
	}
}

// TestSameColumnOnTwoNodes: additions of other columns at the same time go together. Where two nodes add the same one, each waits,
// says so with the mend, and goes on by it.
func TestSameColumnOnTwoNodes(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Config: map[string]string{"topology.failover_after": "0s"}, Schema: `
		CREATE TABLE t (id int PRIMARY KEY, v text)`})
	a, b, d := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	a.Exec(`INSERT INTO t VALUES (1), (2), (3)`)
	c.WaitConverged()
	cutAll(c)
	for _, n := range []*cluster.Node{a, b} {
		ddl(n, fmt.Sprintf(`ALTER TABLE t ADD COLUMN of_%s int DEFAULT 3`, n.Name))
		ddl(n, `ALTER TABLE t ADD COLUMN IF NOT EXISTS twice int`)
		n.Exec(fmt.Sprintf(`UPDATE t SET of_%s = 4, twice = 5 WHERE id = 1`, n.Name))
	}
	d.Exec(`UPDATE t SET v = 'of c' WHERE id IN (1, 2)`) // under the old schema, and later
	healAll(c)
	c.WaitConverged()
	requireSchemas(t, c)
	if got := a.Value(`SELECT row(v, of_a, of_b, twice)::text FROM t WHERE id = 1`); got != `("of c",3,3,)` {
		t.Errorf("the latest row lacks the columns, so that they have what was there before: %s", got)
	}

	cutAll(c)
	for i, n := range []*cluster.Node{a, b} {
		ddl(n, `ALTER TABLE t ADD COLUMN same int`)
		n.Exec(`UPDATE t SET same = $1 WHERE id = 2`, i)
	}
	healAll(c)
	waitsFor(a, "b", `column "same" of relation "t" already exists`)
	haveDone(t, a, "b")
	haveDone(t, b, "a")
	haveDone(t, d, "") // it has one of them
	c.WaitConverged()
	requireSchemas(t, c)
}

// TestSchemaChangeAcrossRelays: in a line of nodes a change goes on from node to node, also out of a transaction that PostgreSQL
// streams while it runs, with a change in it that is rolled back. The role that made it must be on all nodes.
func TestSchemaChangeAcrossRelays(t *testing.T) {
	t.Parallel()
	majors := oldAndNew()[0]
	c := cluster.New(t, cluster.Options{Majors: []int{majors[0], majors[0], majors[len(majors)-1]}, Config: map[string]string{
		"topology.kind": "graph", "topology.links": "a-b,b-c", "topology.failover_after": "0s"},
		Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`})
	a, z := c.Nodes[0], c.Nodes[2]
	a.Stop()
	a.Exec(`ALTER DATABASE ` + a.Value(`SELECT current_database()`) + ` SET logical_decoding_work_mem = '64kB'`)
	a.Start()
	a.Exec(`BEGIN; INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 5000) i;
		SAVEPOINT s; SELECT pgbridge.ddl('ALTER TABLE t ADD COLUMN never int'); INSERT INTO t SELECT i, 'void', 1 FROM generate_series(6001, 8000) i; ROLLBACK TO s;
		SAVEPOINT s2; SELECT pgbridge.ddl('ALTER TABLE t ADD COLUMN n int DEFAULT 2'); INSERT INTO t SELECT i, repeat('y', 100), 3 FROM generate_series(9001, 12000) i;
		RELEASE s2; UPDATE t SET n = 4 WHERE id % 2 = 0; COMMIT`)
	c.WaitConverged()
	requireSchemas(t, c)
	if got := z.Value(`SELECT count(*) || ' ' || sum(n) FROM t`); got != "8000 25500" {
		t.Errorf("rows and sum: %s", got)
	}
	if len(majors) < 2 {
		return // all nodes have the roles of one server
	}

	role := "migrator_" + c.Name
	a.Exec(`CREATE ROLE ` + role)
	for _, n := range c.Nodes[:2] {
		n.Exec(`GRANT CREATE ON SCHEMA public TO ` + role)
	}
	a.Exec(`GRANT USAGE ON SCHEMA pgbridge TO ` + role + `; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgbridge TO ` + role)
	a.Exec(`BEGIN; SET LOCAL ROLE ` + role + `; SELECT pgbridge.ddl('CREATE TABLE mine (id int PRIMARY KEY)'); INSERT INTO mine VALUES (1); COMMIT`)
	waitsFor(z, "a", "CREATE ROLE")
	z.Exec(`CREATE ROLE ` + role)
	t.Cleanup(func() {
		for _, n := range c.Nodes {
			n.Exec(`DROP OWNED BY ` + role)
		}
		a.Exec(`DROP ROLE ` + role)
		z.Exec(`DROP ROLE ` + role)
	})
	waitsFor(z, "a", "permission denied for schema public")
	z.Exec(`GRANT CREATE ON SCHEMA public TO ` + role)
	c.WaitConverged()
	if got := z.Value(`SELECT tableowner || (SELECT count(*) FROM mine) FROM pg_tables WHERE tablename = 'mine'`); got != role+"1" {
		t.Errorf("owner and rows: %s", got)
	}
}

// TestSchemaChangeGivesWay: a change that meets a user's open transaction on another node does not hold up others there.
func TestSchemaChangeGivesWay(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`})
	a, b := c.Nodes[0], c.Nodes[1]
	a.Exec(`INSERT INTO t VALUES (1)`)
	c.WaitConverged()
	tx, err := pgtest.Connect(t, b.DSN).Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), `UPDATE t SET v = 'of b'`)
	}
	if err != nil {
		t.Fatal(err)
	}
	ddl(a, `ALTER TABLE t ADD COLUMN n int`)
	a.Exec(`UPDATE t SET n = 3`)
	waitsFor(b, "a", "waits for sessions that use its tables")
	b.Exec(`INSERT INTO t VALUES (2)`)
	if _, err := tx.Exec(t.Context(), `UPDATE t SET v = 'of b again'`); err != nil {
		t.Error(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Error(err)
	}
	c.WaitConverged()
	requireSchemas(t, c)
}
