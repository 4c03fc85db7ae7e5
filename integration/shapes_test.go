package integration

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// shape is a way to build tables and to write to them. All shapes live in one cluster of two nodes, and
// take their steps together: after each step the nodes must be equal, bit by bit. A column that is called
// only_here is left out of that.
type shape struct {
	name   string
	schema string    // on both nodes
	on     [2]string // besides, on each
	since  int       // first major version that can do it; both nodes must have it
	steps  []step
	// check, if set, looks at the nodes after the last step.
	check func(t *testing.T, c *cluster.Cluster)
}

// step is what one node's session does: statements that are sent one by one.
type step struct {
	node   int
	sql    []string
	before *step // on another node
}

func on(node int, sql ...string) step { return step{node: node, sql: sql} }

// then is what comes next in the same step.
func (s step) then(next step) step { next.before = &s; return next }

// TestShapes runs all shapes on two nodes of each version, and on two of different versions.
func TestShapes(t *testing.T) {
	t.Parallel()
	eachPair(t, func(t *testing.T, majors []int) {
		var shapes []shape
		for _, s := range allShapes() {
			if s.since <= slices.Min(majors) {
				shapes = append(shapes, s)
			}
		}
		c := cluster.New(t, cluster.Options{Nodes: 2, Majors: majors, Idle: true})
		var wg sync.WaitGroup
		for i, n := range c.Nodes {
			wg.Go(func() {
				for _, s := range shapes {
					if s.schema+s.on[i] != "" {
						execLong(t, n.DSN, s.schema+";"+s.on[i])
					}
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		for _, n := range c.Nodes {
			n.Start()
		}
		walk(t, c, shapes)
	})
}

// walk lets all shapes take their steps.
func walk(t *testing.T, c *cluster.Cluster, shapes []shape) {
	t.Helper()
	forgetPrepared(t, c)
	j := newJudge(t, c)
	var conns []*pgx.Conn
	for _, n := range c.Nodes {
		conns = append(conns, pgtest.Connect(t, n.DSN))
	}
	for i := 0; ; i++ {
		some := false
		for _, s := range shapes {
			if i < len(s.steps) {
				some = true
				take(t, c, conns, s.name, s.steps[i])
			}
		}
		if t.Failed() {
			return
		}
		if !some {
			break
		}
		awaitEach(t, c)
		j.require(".")
		if t.Failed() {
			t.Fatalf("after step %d", i)
		}
	}
	for _, s := range shapes {
		if s.check != nil {
			t.Run(s.name, func(t *testing.T) { s.check(t, c) })
		}
	}
	for _, n := range c.Nodes {
		if got := n.Value(`SELECT count(*) FROM pgbridge.conflict`); got != "0" {
			t.Errorf("node %s recorded %s conflicts, though nobody wrote at the same time: %q", n.Name, got,
				n.Query(`SELECT relation, kind, local_row, remote_row FROM pgbridge.conflict`))
		}
	}
}

func take(t *testing.T, c *cluster.Cluster, conns []*pgx.Conn, name string, s step) {
	t.Helper()
	if s.before != nil {
		take(t, c, conns, name, *s.before)
	}
	for _, sql := range s.sql {
		// Prepared transactions have names of the whole server.
		sql = strings.ReplaceAll(sql, "%CLUSTER%", c.Name)
		if _, err := conns[s.node].Exec(context.Background(), sql); err != nil {
			t.Errorf("shape %s on node %s: %v\n%s", name, c.Nodes[s.node].Name, err, sql)
		}
	}
}

// mirrored are the same steps with the nodes' parts exchanged.
func mirrored(steps []step) []step {
	var out []step
	for _, s := range steps {
		s.node = 1 - s.node
		if s.before != nil {
			s.before = &mirrored([]step{*s.before})[0]
		}
		out = append(out, s)
	}
	return out
}

// forgetPrepared rolls back what a failed test leaves prepared, since it keeps its database.
func forgetPrepared(t *testing.T, c *cluster.Cluster) {
	t.Cleanup(func() {
		for _, n := range c.Nodes {
			for _, gid := range n.Query(`SELECT gid FROM pg_prepared_xacts WHERE database = current_database()`) {
				n.Exec(`ROLLBACK PREPARED ` + quoteLiteral(gid))
			}
		}
	})
}

func allShapes() []shape {
	return slices.Concat(nameShapes(), columnShapes(), keyShapes(), toastShapes(), partitionShapes(), transactionShapes(), sideShapes())
}

// nameShapes: what things may be called.
func nameShapes() []shape {
	long := strings.Repeat("ü", 31) + "x" // 63 bytes
	return []shape{{
		name: "quoted names",
		schema: `CREATE SCHEMA "Sch ""ö.""";
			CREATE TABLE "Sch ""ö."""."Tab.le ""x; y" ("Id" int, "sp ace" text, "quo""te" int, "日本" text, "select" int, "$1" int, "%s" text,
				"t" int, "c" int, "v" int, "v1" int, "u" int, "k1" int, "n" int, "\" text, PRIMARY KEY ("quo""te", "Id"))`,
		steps: []step{
			on(0, `INSERT INTO "Sch ""ö."""."Tab.le ""x; y" SELECT i, 'a', i, 'b', i, i, 'c', i, i, i, i, i, i, i, 'd' FROM generate_series(1, 20) i`),
			on(1, `UPDATE "Sch ""ö."""."Tab.le ""x; y" SET "sp ace" = 'é', "日本" = NULL, "select" = 0, "$1" = -1, "t" = 5, "n" = 6, "v1" = 7`),
			on(0, `UPDATE "Sch ""ö."""."Tab.le ""x; y" SET "quo""te" = -1 WHERE "Id" = 1; UPDATE "Sch ""ö."""."Tab.le ""x; y" SET "\" = '\\' WHERE "Id" = 2`),
			on(1, `DELETE FROM "Sch ""ö."""."Tab.le ""x; y" WHERE "Id" < 10`),
			on(0, `TRUNCATE "Sch ""ö."""."Tab.le ""x; y"`, `INSERT INTO "Sch ""ö."""."Tab.le ""x; y" ("Id", "quo""te") VALUES (1, 1)`),
		},
	}, {
		name: "long names",
		schema: fmt.Sprintf(`CREATE SCHEMA "%[1]s"; CREATE TABLE "%[1]s"."%[1]s" ("%[1]s" int PRIMARY KEY, "%[2]s" text)`,
			long, strings.ToUpper(long)),
		steps: []step{
			on(0, fmt.Sprintf(`INSERT INTO "%[1]s"."%[1]s" SELECT i, 'x' FROM generate_series(1, 10) i`, long)),
			on(1, fmt.Sprintf(`UPDATE "%[1]s"."%[1]s" SET "%[2]s" = 'y'`, long, strings.ToUpper(long))),
		},
	}, {
		name: "one name in several schemas",
		schema: `CREATE SCHEMA s1; CREATE SCHEMA "S1"; CREATE TABLE s1.same (id int PRIMARY KEY, v text);
			CREATE TABLE "S1".same (id text PRIMARY KEY, w int); CREATE TABLE public.same (id uuid PRIMARY KEY)`,
		steps: []step{
			on(0, `INSERT INTO s1.same VALUES (1, 'x'); INSERT INTO "S1".same VALUES ('1', 1); INSERT INTO same VALUES (gen_random_uuid())`),
			on(1, `INSERT INTO s1.same SELECT i, 'y' FROM generate_series(2, 9) i; INSERT INTO "S1".same SELECT i, 2 FROM generate_series(2, 9) i;
				INSERT INTO same SELECT gen_random_uuid() FROM generate_series(2, 9)`),
			on(0, `DELETE FROM s1.same WHERE id > 4; UPDATE "S1".same SET w = 0; DELETE FROM same`),
		},
	}}
}

// sideShapes: what else is beside a table and must neither be replicated twice nor stand in the way.
func sideShapes() []shape {
	return []shape{{
		name: "triggers and rules do not fire on apply",
		schema: `CREATE TABLE audited (id int PRIMARY KEY, v text, changes int NOT NULL DEFAULT 0);
			CREATE TABLE audit (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), what text);
			CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.changes := NEW.changes + 1; RETURN NEW; END $$;
			CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.audit (what) VALUES (TG_OP); RETURN NULL; END $$;
			CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'must not fire'; END $$;
			CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON audited FOR EACH ROW EXECUTE FUNCTION touch();
			CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON audited FOR EACH ROW EXECUTE FUNCTION note();
			CREATE TRIGGER notes AFTER TRUNCATE ON audited FOR EACH STATEMENT EXECUTE FUNCTION note();
			CREATE RULE twice AS ON INSERT TO audited WHERE NEW.id < 0 DO ALSO INSERT INTO audit (what) VALUES ('rule')`,
		on: [2]string{1: `CREATE TRIGGER refuse BEFORE DELETE ON audited FOR EACH ROW EXECUTE FUNCTION refuse()`},
		steps: []step{
			on(0, `INSERT INTO audited SELECT i, 'x' FROM generate_series(-2, 10) i`),
			on(1, `UPDATE audited SET v = 'y'`),
			on(0, `DELETE FROM audited WHERE id < 3`, `TRUNCATE audited`),
			on(1, `INSERT INTO audited VALUES (1, 'z')`),
		},
		check: func(t *testing.T, c *cluster.Cluster) {
			if got := c.Nodes[0].Value(`SELECT count(*) FROM audit`); got != "35" { // 13 + 2 by the rule, 13, 5 + 1, 1
				t.Errorf("%s audit rows", got)
			}
		},
	}, {
		name: "foreign keys",
		schema: `CREATE TABLE fk_parent (id int PRIMARY KEY, v text);
			CREATE TABLE fk_child (id int PRIMARY KEY, parent int NOT NULL REFERENCES fk_parent ON DELETE CASCADE ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED);
			CREATE TABLE fk_self (id int PRIMARY KEY, up int REFERENCES fk_self ON DELETE SET NULL)`,
		steps: []step{
			on(0, `BEGIN; INSERT INTO fk_child SELECT i, i % 5 FROM generate_series(1, 20) i; INSERT INTO fk_parent SELECT i, 'p' FROM generate_series(0, 5) i; COMMIT;
				INSERT INTO fk_self SELECT i, NULLIF(i / 2, 0) FROM generate_series(1, 20) i`),
			on(1, `UPDATE fk_parent SET id = 100 WHERE id = 1; DELETE FROM fk_parent WHERE id = 2; DELETE FROM fk_self WHERE id IN (1, 4)`),
			on(0, `INSERT INTO fk_child VALUES (50, 100); UPDATE fk_child SET parent = 100`),
			on(1, `DELETE FROM fk_parent`),
		},
	}, {
		name: "other constraints",
		schema: `CREATE TABLE uniques (id int PRIMARY KEY, u int UNIQUE, d int UNIQUE DEFERRABLE INITIALLY DEFERRED, r int4range, EXCLUDE USING gist (r WITH &&));
			CREATE UNIQUE INDEX ON uniques ((u * 2)) WHERE u > 0; ALTER TABLE uniques ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY`,
		steps: []step{
			on(0, `INSERT INTO uniques SELECT i, i, i, int4range(i * 10, i * 10 + 9) FROM generate_series(1, 10) i`),
			on(1, `UPDATE uniques SET d = 11 - d; BEGIN; UPDATE uniques SET u = -1, r = NULL WHERE id = 1; UPDATE uniques SET u = 1, r = '[10,15)' WHERE id = 2; COMMIT`),
			on(0, `UPDATE uniques SET u = u + 100; UPDATE uniques SET u = -u`),
			on(1, `BEGIN; DELETE FROM uniques WHERE id = 3; INSERT INTO uniques VALUES (30, -103, 300, '[30,35)'); COMMIT`),
		},
	}, {
		name: "what is not published",
		schema: `CREATE TABLE beside (id int PRIMARY KEY, v text);
			CREATE MATERIALIZED VIEW seen AS SELECT * FROM beside; CREATE VIEW shown AS SELECT * FROM beside; CREATE SEQUENCE counter`,
		steps: []step{
			on(0, `BEGIN; CREATE TEMP TABLE mine (id int PRIMARY KEY); CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY); INSERT INTO mine VALUES (1); INSERT INTO unlogged VALUES (1); SELECT nextval('counter'); COMMIT`,
				`BEGIN; INSERT INTO mine VALUES (2); UPDATE mine SET id = 3 WHERE id = 1; COMMIT`, `REFRESH MATERIALIZED VIEW seen`),
			on(0, `BEGIN; INSERT INTO shown VALUES (1, 'x'); REFRESH MATERIALIZED VIEW seen; CREATE TEMP TABLE more AS SELECT * FROM shown; UPDATE shown SET v = 'y'; COMMIT`),
			on(1, `UPDATE shown SET v = 'z'; SELECT lo_from_bytea(0, 'large')`),
		},
	}}
}
