package integration

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// TestUnequalShapesWaitForAMend: what cannot be applied because the nodes' tables are not alike waits with
// a reason, and goes on by itself when they are.
func TestUnequalShapesWaitForAMend(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		name, schema, ahead, write, reason, mend string
		parked                                   bool // its origin goes on meanwhile
	}{{
		name:   "a column that only the writer has",
		schema: `CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'old')`,
		ahead:  `ALTER TABLE t ADD COLUMN more int DEFAULT 7`, mend: `ALTER TABLE t ADD COLUMN more int DEFAULT 7`,
		write:  `INSERT INTO t VALUES (2, 'x', 8); UPDATE t SET more = 9`,
		reason: `table "public"."t" has no column "more" here`,
	}, {
		name:   "a label that only the writer has",
		schema: `CREATE TYPE mood AS ENUM ('ok'); CREATE TABLE t (id int PRIMARY KEY, m mood, a mood[])`,
		ahead:  `ALTER TYPE mood ADD VALUE 'new' BEFORE 'ok'`, mend: `ALTER TYPE mood ADD VALUE 'new'`,
		write:  `INSERT INTO t SELECT i, 'new', '{ok,new}' FROM generate_series(1, 10) i; UPDATE t SET m = 'ok' WHERE id = 1`,
		reason: `invalid input value for enum`, parked: true,
	}, {
		name:   "a type that has changed",
		schema: `CREATE TABLE t (id int PRIMARY KEY, n int)`,
		ahead:  `ALTER TABLE t ALTER n TYPE bigint`, mend: `ALTER TABLE t ALTER n TYPE bigint`,
		write:  `INSERT INTO t SELECT i, 10000000000 + i FROM generate_series(1, 10) i; UPDATE t SET n = n + 1`,
		reason: `column "n" of "public"."t" is of type pg_catalog.int4 here and of the type with object id 20 at the origin`,
	}, {
		name:   "a field that only the writer has",
		schema: `CREATE TYPE pair AS (a int, d int); CREATE TABLE t (id int PRIMARY KEY, p pair)`,
		ahead:  `ALTER TYPE pair ADD ATTRIBUTE b text CASCADE`, mend: `ALTER TYPE pair ADD ATTRIBUTE b text CASCADE`,
		write:  `INSERT INTO t VALUES (1, (1, 2, 'x'))`,
		reason: `wrong number of columns`,
	}, {
		name:   "a constraint that only the reader has",
		schema: `CREATE TABLE t (id int PRIMARY KEY, n int CHECK (n > 0))`,
		ahead:  `ALTER TABLE t DROP CONSTRAINT t_n_check`, mend: `ALTER TABLE t DROP CONSTRAINT t_n_check`,
		write:  `INSERT INTO t VALUES (1, -1)`,
		reason: `violates check constraint`, parked: true,
	}, {
		name:   "a column that must have a value",
		schema: `CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL)`,
		ahead:  `ALTER TABLE t ALTER n DROP NOT NULL`, mend: `ALTER TABLE t ALTER n DROP NOT NULL`,
		write:  `INSERT INTO t VALUES (1)`,
		reason: `null value in column "n"`, parked: true,
	}, {
		name:   "a partition that only the writer has",
		schema: `CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)`,
		ahead:  `CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (20)`, mend: `CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (100)`,
		write:  `INSERT INTO t SELECT generate_series(1, 19)`,
		reason: `no partition of relation`, parked: true,
	}, {
		name:   "another key",
		schema: `CREATE TABLE t (id int NOT NULL, u int NOT NULL, PRIMARY KEY (id)); INSERT INTO t SELECT i, i FROM generate_series(1, 9) i`,
		ahead:  `ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (u)`, mend: `ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (u)`,
		write:  `UPDATE t SET id = -id WHERE u < 5; DELETE FROM t WHERE u = 9`,
		reason: `another key here than its replica identity`,
	}} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			c := cluster.New(t, cluster.Options{Nodes: 2, Schema: x.schema})
			a, b := c.Nodes[0], c.Nodes[1]
			a.Exec(x.ahead)
			a.Exec(x.write)
			b.AwaitStatus(func(r *cluster.Report) bool {
				if r == nil || len(r.Links) != 1 {
					return false
				}
				if x.parked {
					return strings.Contains(b.Value(`SELECT coalesce(string_agg(message, ' '), '') FROM pgbridge.parked`), x.reason)
				}
				return strings.Contains(r.Links[0].Waiting, x.reason)
			})
			b.Exec(x.mend)
			if x.parked {
				b.Exec(`UPDATE pgbridge.parked SET request = 'retry'`)
				b.Await(`SELECT count(*) FROM pgbridge.parked`, "0")
			}
			awaitEach(t, c)
			newJudge(t, c).require("^t$")
		})
	}
}

// TestRewriteWhileChangesAreUnderWay: an ALTER TABLE that rewrites a table gives every row a new local
// version (PROOF.md F10, R28). What the other node wrote before, and what arrives after, must not lose to
// it: nobody wrote these rows here.
func TestRewriteWhileChangesAreUnderWay(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2, Schema: `CREATE TABLE t (id int PRIMARY KEY, n int)`})
	a, b := c.Nodes[0], c.Nodes[1]
	a.Exec(`INSERT INTO t SELECT i, i FROM generate_series(1, 10) i`)
	c.WaitConverged()
	b.Links[a.Name].Cut()
	a.Exec(`UPDATE t SET n = -n`)
	c.Exec(`ALTER TABLE t ALTER n TYPE bigint`)
	b.Links[a.Name].Heal()
	awaitEach(t, c)
	newJudge(t, c).require("^t$")
}

// oddDefaults are settings that a database may have for its users; none may change what is replicated.
var oddDefaults = []string{
	"extra_float_digits = -15", "bytea_output = escape", "IntervalStyle = iso_8601", "DateStyle = 'German, DMY'", "TimeZone = 'Asia/Kathmandu'",
	"default_transaction_isolation = serializable", "default_transaction_deferrable = on", "statement_timeout = '1s'", "lock_timeout = '100ms'",
	"idle_in_transaction_session_timeout = '300ms'", "search_path = 'nowhere'", "xmloption = document", "client_encoding = LATIN1",
	"enable_indexscan = off", "row_security = off", "lc_monetary = 'C'", "transform_null_equals = on", "quote_all_identifiers = on", "array_nulls = off",
	"standard_conforming_strings = off", "plan_cache_mode = force_custom_plan", "synchronous_commit = off", "work_mem = 64",
}

// TestOddDefaults: settings of the database, and an encoding that is not the other node's, change nothing.
func TestOddDefaults(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Run("odd", func(t *testing.T) { testDefaults(t, s.Major, oddDefaults) })
		t.Run("read only", func(t *testing.T) { testDefaults(t, s.Major, []string{"default_transaction_read_only = on"}) })
	})
}

func testDefaults(t *testing.T, major int, defaults []string) {
	c := cluster.New(t, cluster.Options{Nodes: 2, Majors: []int{major}, Idle: true})
	makeLatin1(t, c.Nodes[0])
	const table = `CREATE TABLE "tä" ("ö" text PRIMARY KEY, j jsonb, x xml, n name, "c" "char", a text[], f float8, ts timestamptz, iv interval, b bytea, m money, acl aclitem, ch char(5))`
	var conns []*pgx.Conn
	var databases []string
	for _, n := range c.Nodes {
		// The test's own session, which has the database's defaults of now.
		conn := pgtest.Connect(t, n.DSN+"&client_encoding=UTF8")
		conns = append(conns, conn)
		database := n.Value(`SELECT current_database()`)
		databases = append(databases, database)
		if _, err := conn.Exec(t.Context(), table); err != nil {
			t.Fatal(err)
		}
		for _, d := range defaults {
			if _, err := conn.Exec(t.Context(), "ALTER DATABASE "+database+" SET "+d); err != nil {
				t.Fatalf("%s: %v", d, err)
			}
		}
		n.Start()
	}
	for i, key := range []string{"ä", "ß"} {
		for _, sql := range []string{
			`INSERT INTO "tä" SELECT '` + key + `' || i, '{"ä": "é"}', '<ü/>', 'ñ', 'x', '{ÿ,NULL}', 0.1::float8 + 0.2, '2024-03-31 02:30:00.123456+01', '1 mon -2 days 03:04:05.6',
				'\x00ff5c27', 12.34, 'postgres=r/postgres', 'é' FROM generate_series(1, 10) i`,
			`UPDATE "tä" SET j = '["ÿ"]', f = f / 3 WHERE "ö" LIKE '` + key + `%'`,
			`UPDATE "tä" SET "ö" = 'new' || "ö" WHERE "ö" = '` + key + `3'`} {
			if _, err := conns[i].Exec(t.Context(), sql); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
	}
	for i := range c.Nodes { // what the harness asks from here on
		if _, err := conns[i].Exec(t.Context(), "ALTER DATABASE "+databases[i]+" RESET ALL"); err != nil {
			t.Fatal(err)
		}
	}
	awaitEach(t, c)
	const read = `SELECT array_agg(t::text ORDER BY "ö" COLLATE "C")::text, count(*) FROM "tä" t WHERE j->>0 = 'ÿ'`
	var rows [2]string
	for i, conn := range conns {
		var n int
		if err := conn.QueryRow(t.Context(), read).Scan(&rows[i], &n); err != nil || n != 20 {
			t.Errorf("%d rows, want 20 (%v)", n, err)
		}
	}
	if rows[0] != rows[1] {
		t.Errorf("nodes differ:\n%s\n%s", rows[0], rows[1])
	}
}

// makeLatin1 makes the node's database anew, with another encoding.
func makeLatin1(t *testing.T, n *cluster.Node) {
	t.Helper()
	name := n.Value(`SELECT current_database()`)
	conn := pgtest.Connect(t, strings.Replace(n.DSN, name, "postgres", 1))
	for _, sql := range []string{`DROP DATABASE ` + name + ` WITH (FORCE)`, `CREATE DATABASE ` + name + ` ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'`} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	n.Exec(`CREATE TABLE pgb_sentinel (node text PRIMARY KEY, round int NOT NULL)`)
}
