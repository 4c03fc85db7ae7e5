package integration

import (
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
)

// TestSchemaComesWithRows: while a node is away, and what it lacks is let go, the others change the schema, and so does it. It gets
// rows instead of transactions, and makes the others' changes with them; rows are fitted to changes that their nodes lacked.
func TestSchemaComesWithRows(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Config: map[string]string{"topology.failover_after": "0s"}, Schema: `
		CREATE TABLE t (id int PRIMARY KEY, v text, old int);
		CREATE TABLE gone (id int PRIMARY KEY, v text);
		CREATE TABLE left_alone (id int PRIMARY KEY, v text)`})
	a, b, away := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	a.Exec(`INSERT INTO t SELECT i, 'first', i FROM generate_series(1, 50) i`)
	a.Exec(`INSERT INTO gone SELECT i, 'first' FROM generate_series(1, 50) i`)
	c.WaitConverged()
	heal := isolate(c, away.Name)

	ddl(a, `ALTER TABLE t ADD COLUMN added int DEFAULT 1`)
	b.Await(columnsOf("t"), "added,id,old,v")
	a.Exec(`UPDATE t SET v = 'a', added = 2 WHERE id <= 20`)
	b.Await(`SELECT count(*) FROM t WHERE added = 2`, "20")
	breaking(b, `ALTER TABLE t RENAME COLUMN v TO w`)
	breaking(b, `ALTER TABLE t DROP COLUMN old; DROP TABLE gone; CREATE TABLE fresh (id int PRIMARY KEY, v text); CREATE INDEX ON t (w)`)
	b.Exec(`UPDATE t SET w = 'b', added = 3 WHERE id BETWEEN 16 AND 25`)
	b.Exec(`DELETE FROM t WHERE id IN (26, 36, 45)`)
	b.Exec(`INSERT INTO fresh VALUES (1, 'b')`)
	breaking(b, `DROP TABLE fresh; CREATE TABLE fresh (id int PRIMARY KEY, w text, n int DEFAULT 5)`)
	b.Exec(`INSERT INTO fresh VALUES (2, 'b')`)

	ddl(away, `ALTER TABLE t ADD COLUMN mine int DEFAULT 7; ALTER TABLE left_alone ADD COLUMN n int`)
	away.Exec(`UPDATE t SET v = 'away', mine = 8 WHERE id BETWEEN 10 AND 40`)
	away.Exec(`INSERT INTO gone VALUES (100, 'away')`)
	breaking(away, `ALTER TABLE left_alone DROP COLUMN v`)
	away.Exec(`INSERT INTO left_alone VALUES (1, 2)`)
	a.Exec(`INSERT INTO left_alone VALUES (3, 'a')`) // under the schema that away has left behind
	awaitSame(a, b, columnsOf("t"), `SELECT count(*) FROM fresh`, `SELECT count(*) FROM left_alone`)
	for _, n := range []*cluster.Node{a, b} {
		n.Purge()
	}
	// A late write of a third node meets what came with the table itself.
	a.Links["b"].Cut()
	b.Links["a"].Cut()
	a.Exec(`INSERT INTO fresh VALUES (7, 'a')`)
	b.Exec(`INSERT INTO fresh VALUES (7, 'b, later')`)
	away.Links["b"].Heal() // what it has changed reaches nobody yet
	away.Await(columnsOf("t"), "added,id,mine,w")
	away.Await(`SELECT w FROM fresh WHERE id = 7`, "b, later")
	b.Links["a"].Heal()
	a.Links["b"].Heal()
	heal()
	c.WaitConverged()
	requireSchemas(t, c)
	if got := resyncs(t, away); got != 1 {
		t.Errorf("node %s was given what it lacked %d times", away.Name, got)
	}
	for sql, want := range map[string]string{
		`SELECT string_agg(w || added || mine, ' ' ORDER BY id) FROM t WHERE id IN (1, 9, 10, 20, 25, 27, 36, 41)`: "a27 a27 away18 away18 away18 away18 away18 first17",
		`SELECT count(*) FROM t`: "49",
		`SELECT string_agg(id || w || n, ' ' ORDER BY id) FROM fresh`:                     "2b5 7b, later5",
		`SELECT string_agg(id || ' ' || coalesce(n, 0), ',' ORDER BY id) FROM left_alone`: "1 2,3 0",
		`SELECT to_regclass('gone') IS NULL`:                                              "t",
	} {
		if got := away.Value(sql); got != want {
			t.Errorf("%s: %s, want %s", sql, got, want)
		}
	}
	// Rows of the changed tables go on as ever, also after a start.
	away.Stop()
	away.Start()
	for i, n := range c.Nodes {
		n.Exec(`UPDATE t SET w = $1, mine = mine + 1 WHERE id BETWEEN $2 AND $3`, "late "+n.Name, i*10, i*10+15)
		n.Exec(`INSERT INTO fresh (id, w) VALUES ($1, 'late')`, 10+i)
	}
	c.WaitConverged()
}

// columnsOf lists the columns of a table.
func columnsOf(table string) string {
	return `SELECT string_agg(attname, ',' ORDER BY attname) FROM pg_attribute WHERE attrelid = '` + table + `'::regclass AND attnum > 0 AND NOT attisdropped`
}
