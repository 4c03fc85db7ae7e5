package integration

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// pitfallSchema has the tables of each pitfall, named by its number.
const pitfallSchema = `
CREATE TABLE p01 (id int PRIMARY KEY, v text);
CREATE TABLE p02 (id int PRIMARY KEY, v text);
CREATE TABLE p03 (id int PRIMARY KEY, v text);
CREATE TABLE p04 (id int PRIMARY KEY, note text, big text);
ALTER TABLE p04 ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
CREATE TABLE p04_plain (id int PRIMARY KEY, note text, big text);
ALTER TABLE p04_plain ALTER big SET STORAGE EXTERNAL;
CREATE TABLE p05 (id int PRIMARY KEY, email text UNIQUE, code int UNIQUE);
CREATE TABLE p06 (id int PRIMARY KEY, v text);
CREATE TABLE p07 (id int PRIMARY KEY, v text);
CREATE TABLE p08_later (id int PRIMARY KEY, v text);
CREATE TABLE p08_gone (id int PRIMARY KEY, v text);
ALTER TABLE p08_gone REPLICA IDENTITY FULL;
CREATE TABLE p09 (id int PRIMARY KEY, v text);
CREATE TABLE p12 (id int PRIMARY KEY, balance int CHECK (balance >= 0));
ALTER TABLE p12 REPLICA IDENTITY FULL;
CREATE TABLE p13 (id int PRIMARY KEY, v text);
CREATE TABLE p13_more (id int PRIMARY KEY, v text);
CREATE TABLE p13_columns (id int PRIMARY KEY, v text, w text);
ALTER TABLE p13_columns REPLICA IDENTITY FULL;
CREATE TABLE p14 (id int PRIMARY KEY);
CREATE TABLE p14_child (id int PRIMARY KEY, parent int REFERENCES p14);
CREATE TABLE p14_owned (id int PRIMARY KEY, parent int REFERENCES p14 ON DELETE CASCADE);
CREATE TABLE p15 (id int PRIMARY KEY, v text);
CREATE TABLE p15_child (id int PRIMARY KEY, parent int REFERENCES p15);
CREATE TABLE p17 (id int PRIMARY KEY, v text);
CREATE TABLE p18 (id int PRIMARY KEY, n int, note text);
ALTER TABLE p18 REPLICA IDENTITY FULL;
CREATE TABLE p20 (id int PRIMARY KEY, n int, v text);
CREATE INDEX ON p20 (v);
CREATE TABLE p26_nulls (id int PRIMARY KEY, u int, UNIQUE NULLS NOT DISTINCT (u));
CREATE TABLE p26_partial (id int PRIMARY KEY, u int, live bool);
CREATE UNIQUE INDEX ON p26_partial (u) WHERE live;
CREATE TABLE p26_expression (id int PRIMARY KEY, u text);
CREATE UNIQUE INDEX ON p26_expression (lower(u));
CREATE TABLE p26_deferred (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE p26_excluded (id int PRIMARY KEY, u int4range, EXCLUDE USING gist (u WITH &&));
CREATE TABLE p28 (id serial PRIMARY KEY, n int, double int GENERATED ALWAYS AS (n * 2) STORED,
	made timestamptz DEFAULT clock_timestamp(), dice float8 DEFAULT random());
CREATE TABLE p28_log (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), what text);
CREATE FUNCTION p28_before() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.n := NEW.n + 1; RETURN NEW; END $$;
CREATE FUNCTION p28_after() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN INSERT INTO public.p28_log (what) VALUES (TG_OP); RETURN NULL; END $$;
CREATE TRIGGER before BEFORE INSERT OR UPDATE ON p28 FOR EACH ROW EXECUTE FUNCTION p28_before();
CREATE TRIGGER after AFTER INSERT OR UPDATE OR DELETE ON p28 FOR EACH ROW EXECUTE FUNCTION p28_after();
CREATE TABLE p30 (id int PRIMARY KEY, n int, v text);
`

// pitfallConfig is how pitfallSchema is merged. What is cut off stays so.
var pitfallConfig = map[string]string{
	"topology.failover_after": "0s",
	"conflict.tables":         `*.p08_gone: .deletes=delete_wins; *.p12: balance=delta; *.p13_columns: "*"=last_writer_wins; *.p18: n=delta`,
}

// pitfalls are three nodes that a scenario cuts from each other and heals in the order that matters.
type pitfalls struct {
	*cluster.Cluster
	a, b, z *cluster.Node
}

// TestPitfalls replays the schedules by which multi-leader replication is known to go wrong. The numbers are those of
// docs/correctness.md.
func TestPitfalls(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Majors: []int{pgtest.Newest(t)}, Schema: pitfallSchema, Config: pitfallConfig})
	p := &pitfalls{c, c.Node("a"), c.Node("b"), c.Node("c")}
	for _, s := range []struct {
		name string
		run  func(*pitfalls, *testing.T)
	}{
		{"01 an update arrives before the insert", (*pitfalls).updateBeforeInsert},
		{"02 a delete arrives before the insert", (*pitfalls).deleteBeforeInsert},
		{"03 one key inserted and deleted 1000 times", (*pitfalls).keyReused},
		{"04 TOAST A/B/C", func(p *pitfalls, t *testing.T) { p.toast(t, "p04_plain") }},
		{"04 TOAST A/B/C, REPLICA IDENTITY FULL", func(p *pitfalls, t *testing.T) { p.toast(t, "p04") }},
		{"05 one unique value on two nodes", (*pitfalls).uniqueValue},
		{"06 keys changed on two nodes", (*pitfalls).keysChanged},
		{"07 VACUUM between update and delete", (*pitfalls).vacuumBetween},
		{"08 a delete arrives after a newer update", (*pitfalls).deleteAfterUpdate},
		{"09 a node comes back to frozen rows", (*pitfalls).frozen},
		{"12 merged columns violate a CHECK", (*pitfalls).checkViolated},
		{"13 one stamp for all rows of a transaction", (*pitfalls).oneStamp},
		{"14 a child beside the delete of its parent", (*pitfalls).foreignKeys},
		{"15 TRUNCATE beside writes", (*pitfalls).truncate},
		{"17 a table dropped and created again", (*pitfalls).recreated},
		{"18 counters with NULL and reset", (*pitfalls).counters},
		{"20 a hot row", (*pitfalls).hotRow},
		{"26 unique indexes of other kinds", (*pitfalls).uniqueKinds},
		{"28 triggers and defaults", (*pitfalls).sideEffects},
		{"30 locks in the other order", (*pitfalls).locksCrossed},
	} {
		t.Run(s.name, func(t *testing.T) {
			p.together()
			s.run(p, t)
		})
	}
}

// apart cuts every link, and together heals every one.
func (p *pitfalls) apart() {
	for _, n := range p.Nodes {
		for _, l := range n.Links {
			l.Cut()
		}
	}
}

func (p *pitfalls) together() {
	for _, n := range p.Nodes {
		for _, l := range n.Links {
			l.Heal()
		}
	}
}

// everywhere heals all links, waits until the nodes are equal, and requires what they show.
func (p *pitfalls) everywhere(t *testing.T, sql string, want ...string) {
	t.Helper()
	p.together()
	p.WaitConverged()
	for _, n := range p.Nodes {
		if got := strings.Join(n.Query(sql), " "); got != strings.Join(want, " ") {
			t.Errorf("node %s: %s gives %q, want %q", n.Name, sql, got, want)
		}
	}
}

// heard waits until n has received everything that another node has committed.
func (p *pitfalls) heard(t *testing.T, n, of *cluster.Node) {
	t.Helper()
	lsn := of.Value(`SELECT pg_current_wal_insert_lsn()`)
	of.AwaitStatus(func(r *cluster.Report) bool {
		return of.Value(`SELECT $1::text::pg_lsn >= $2::text::pg_lsn`, r.Slot.CapturedLSN, lsn) == "t"
	})
	awaitReceived(t, n, of.Name, of.Status().Seq)
}

func (p *pitfalls) updateBeforeInsert(t *testing.T) {
	p.z.Links["a"].Cut()
	p.a.Exec(`INSERT INTO p01 VALUES (1, 'a')`)
	p.b.Await(`SELECT v FROM p01`, "a")
	p.b.Exec(`UPDATE p01 SET v = 'b'`)
	p.heard(t, p.z, p.b)
	if rows := p.z.Query(`SELECT * FROM p01`); len(rows) > 0 {
		t.Errorf("c shows %q before the insert that it rests on", rows)
	}
	p.everywhere(t, `SELECT * FROM p01`, "1|b")
}

func (p *pitfalls) deleteBeforeInsert(t *testing.T) {
	p.a.Exec(`INSERT INTO p02 VALUES (2, 'old')`)
	p.everywhere(t, `SELECT * FROM p02`, "2|old")
	p.z.Links["a"].Cut()
	p.a.Exec(`INSERT INTO p02 VALUES (1, 'a')`)
	p.b.Await(`SELECT count(*) FROM p02`, "2")
	p.b.Exec(`DELETE FROM p02 WHERE id = 1`)
	p.heard(t, p.z, p.b)
	p.everywhere(t, `SELECT * FROM p02`, "2|old")

	// An update that is older than the delete and arrives behind it must not bring the row back.
	p.apart()
	p.a.Exec(`UPDATE p02 SET v = 'a' WHERE id = 2`)
	p.b.Exec(`DELETE FROM p02 WHERE id = 2`)
	p.z.Links["b"].Heal()
	p.z.Await(`SELECT count(*) FROM p02`, "0")
	p.everywhere(t, `SELECT * FROM p02`)
}

func (p *pitfalls) keyReused(t *testing.T) {
	again := func(n *cluster.Node, times int) {
		n.Exec(fmt.Sprintf(`DO $$ BEGIN FOR i IN 1..%d LOOP
			INSERT INTO p03 SELECT g, i FROM generate_series(1, 3) g ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v; COMMIT;
			DELETE FROM p03; COMMIT;
		END LOOP; END $$`, times))
	}
	for _, id := range []string{"a", "b"} { // c is apart from both
		p.z.Links[id].Cut()
		p.Node(id).Links["c"].Cut()
	}
	again(p.a, 500)
	again(p.z, 20)
	again(p.a, 500)
	p.z.Exec(`INSERT INTO p03 VALUES (1, 'older'), (3, 'older')`)
	p.a.Exec(`INSERT INTO p03 VALUES (1, 'a'), (2, 'older'), (3, 'a'); DELETE FROM p03 WHERE id = 3`)
	p.z.Exec(`INSERT INTO p03 VALUES (2, 'c')`)
	p.everywhere(t, `SELECT * FROM p03 ORDER BY 1`, "1|a", "2|c")
}

func (p *pitfalls) toast(t *testing.T, table string) {
	sql := func(format string, args ...any) string {
		return fmt.Sprintf(strings.ReplaceAll(format, "p04", table), args...)
	}
	p.a.Exec(sql(`INSERT INTO p04 SELECT i, '', %s FROM generate_series(1, 5) i`, large("0")))
	p.WaitConverged()
	old := p.a.Value(sql(`SELECT md5(big) FROM p04 WHERE id = 1`))

	// a changes the value, b changes another column and leaves the value that it has. c hears of b first, then of a first.
	for _, first := range []string{"b", "a"} {
		p.apart()
		id := map[string]int{"b": 1, "a": 2}[first]
		p.a.Exec(sql(`UPDATE p04 SET big = %s WHERE id = %d`, large("1"), id))
		p.b.Exec(sql(`UPDATE p04 SET note = 'b' WHERE id = %d`, id))
		p.z.Links[first].Heal()
		p.heard(t, p.z, p.Node(first))
		p.everywhere(t, sql(`SELECT note, md5(big) FROM p04 WHERE id = %d`, id), "b|"+old)
	}

	// The same the other way: the later write is the one that has changed the value.
	p.apart()
	p.b.Exec(sql(`UPDATE p04 SET note = 'b' WHERE id IN (3, 5)`))
	p.a.Exec(sql(`UPDATE p04 SET big = %s WHERE id = 3`, large("1")))
	p.z.Links["b"].Heal()
	p.z.Await(sql(`SELECT note FROM p04 WHERE id = 3`), "b")
	p.everywhere(t, sql(`SELECT note, md5(big) = '%s' FROM p04 WHERE id = 3`, old), "|f")

	// An update that leaves the value unchanged brings back a row that c has deleted.
	p.apart()
	p.z.Exec(sql(`DELETE FROM p04 WHERE id = 4`))
	p.b.Exec(sql(`UPDATE p04 SET note = 'b' WHERE id = 4`))
	p.everywhere(t, sql(`SELECT note, md5(big) FROM p04 WHERE id = 4`), "b|"+old)
}

// kept waits until each node keeps so many rows out of its tables, and is equal to the others.
func (p *pitfalls) kept(t *testing.T, rows int, sql string, want ...string) {
	t.Helper()
	p.together()
	for _, n := range p.Nodes {
		n.AwaitStatus(func(r *cluster.Report) bool { return r.Quarantined == rows })
	}
	p.everywhere(t, sql, want...)
	for _, n := range p.Nodes[1:] {
		if got, want := n.Query(keptSQL), p.a.Query(keptSQL); !slices.Equal(got, want) {
			t.Errorf("node %s keeps %q, node a %q", n.Name, got, want)
		}
	}
}

func (p *pitfalls) uniqueValue(t *testing.T) {
	const rows = `SELECT id, email, code FROM p05 ORDER BY id`
	p.apart()
	p.a.Exec(`BEGIN; INSERT INTO p05 VALUES (1, 'x', 1); INSERT INTO p05 VALUES (2, 'a', 2); COMMIT`)
	p.b.Exec(`INSERT INTO p05 VALUES (3, 'x', 3)`)
	p.z.Exec(`INSERT INTO p05 VALUES (4, 'z', 2)`)
	p.kept(t, 2, rows, "3|x|3", "4|z|2")
	p.apart()
	p.b.Exec(`UPDATE p05 SET code = 6 WHERE id = 3`)
	p.z.Exec(`UPDATE p05 SET code = 6 WHERE id = 4`) // hides row 3, so that 1 comes back, and lets 2 come back
	p.kept(t, 1, rows, "1|x|1", "2|a|2", "4|z|6")
	p.z.Exec(`DELETE FROM p05 WHERE id = 4`) // row 3 comes back, and hides 1
	p.kept(t, 1, rows, "2|a|2", "3|x|6")
	p.b.Exec(`UPDATE p05 SET email = 'y' WHERE id = 3`)
	p.kept(t, 0, rows, "1|x|1", "2|a|2", "3|y|6")
	for _, n := range p.Nodes {
		if n.Value(`SELECT count(*) FROM pgbridge.parked`) != "0" {
			t.Errorf("node %s has parked a transaction", n.Name)
		}
	}
}

func (p *pitfalls) uniqueKinds(t *testing.T) {
	for _, k := range []struct{ table, first, second, shown string }{
		{"p26_nulls", `(1, NULL)`, `(2, NULL)`, "2|∅"},
		{"p26_partial", `(1, 1, true), (3, 1, false)`, `(2, 1, true)`, "2|1 3|1"},
		{"p26_expression", `(1, 'x')`, `(2, 'X')`, "2|X"},
		{"p26_deferred", `(1, 1)`, `(2, 1)`, "2|1"},
		{"p26_excluded", `(1, '[1,5)')`, `(2, '[4,8)')`, "2|[4,8)"},
	} {
		p.apart()
		p.a.Exec(`INSERT INTO ` + k.table + ` VALUES ` + k.first)
		p.z.Exec(`INSERT INTO ` + k.table + ` VALUES ` + k.second)
		p.kept(t, 1, `SELECT id, u FROM `+k.table+` ORDER BY id`, strings.Fields(k.shown)...)
		p.b.Exec(`DELETE FROM ` + k.table + ` WHERE id = 2`)
		p.kept(t, 0, `SELECT count(*) FROM `+k.table+` WHERE id = 1`, "1")
	}
}

func (p *pitfalls) keysChanged(t *testing.T) {
	p.a.Exec(`INSERT INTO p06 SELECT i, 'row ' || i FROM generate_series(1, 3) i`)
	p.WaitConverged()
	p.apart()
	p.a.Exec(`UPDATE p06 SET id = 11 WHERE id = 1; UPDATE p06 SET id = 20 WHERE id = 2`)
	p.b.Exec(`UPDATE p06 SET id = 12 WHERE id = 1; UPDATE p06 SET id = 20 WHERE id = 3`)
	p.z.Exec(`UPDATE p06 SET v = 'c' WHERE id = 1`) // it is later than both
	p.z.Links["b"].Heal()
	p.z.Await(`SELECT count(*) FROM p06 WHERE id = 12`, "1")
	p.everywhere(t, `SELECT * FROM p06 ORDER BY 1`, "1|c", "11|row 1", "12|row 1", "20|row 3")
}

func (p *pitfalls) vacuumBetween(t *testing.T) {
	p.a.Exec(`INSERT INTO p07 VALUES (1, ''), (2, '')`)
	p.WaitConverged()
	p.apart()
	p.a.Exec(`UPDATE p07 SET v = 'older' WHERE id = 1`)
	p.b.Exec(`DELETE FROM p07`)
	p.a.Exec(`UPDATE p07 SET v = 'newer' WHERE id = 2`)
	p.z.Links["b"].Heal()
	p.z.Await(`SELECT count(*) FROM p07`, "0")
	// VACUUM keeps what a session that has been running since before the delete could still see.
	p.z.Await(fmt.Sprintf(`SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid()
		AND greatest(age(backend_xmin), age(backend_xid)) > age('%s'::xid)`, p.z.Value(`SELECT txid_current()`)), "0")
	p.z.Exec(`VACUUM (FULL) p07`)
	if p.b.Value(`SELECT pg_relation_size('p07') > 0`) != "t" || p.z.Value(`SELECT pg_relation_size('p07')`) != "0" {
		t.Fatal("the dead rows are gone where they must not be, or are there where they must be gone")
	}
	p.everywhere(t, `SELECT * FROM p07`, "2|newer")
}

func (p *pitfalls) deleteAfterUpdate(t *testing.T) {
	p.a.Exec(`INSERT INTO p08_later VALUES (1, ''); INSERT INTO p08_gone VALUES (1, '')`)
	p.WaitConverged()
	p.apart()
	p.a.Exec(`DELETE FROM p08_later; DELETE FROM p08_gone`)
	p.b.Exec(`UPDATE p08_later SET v = 'b'; UPDATE p08_gone SET v = 'b'`)
	p.everywhere(t, `SELECT v FROM p08_later UNION ALL SELECT v FROM p08_gone`, "b")
	if n := p.b.Value(`SELECT count(*) FROM pgbridge.conflict WHERE relation LIKE '%.p08_%'`); n != "2" {
		t.Errorf("b has %s conflicts in its history, want 2", n)
	}
}

func (p *pitfalls) frozen(t *testing.T) {
	p.a.Exec(`INSERT INTO p09 SELECT i, '' FROM generate_series(1, 3) i`)
	p.WaitConverged()
	for _, id := range []string{"a", "b"} {
		p.z.Links[id].Cut()
		p.Node(id).Links["c"].Cut()
	}
	p.z.Exec(`UPDATE p09 SET v = 'stale' WHERE id IN (1, 2)`)
	p.a.Exec(`UPDATE p09 SET v = 'a' WHERE id = 1`)
	p.b.Exec(`DELETE FROM p09 WHERE id = 2`)
	p.a.Await(`SELECT count(*) FROM p09`, "2")
	p.b.Await(`SELECT v FROM p09 WHERE id = 1`, "a")
	p.a.Exec(`VACUUM (FREEZE) p09`)
	p.b.Exec(`VACUUM (FREEZE) p09`)
	p.everywhere(t, `SELECT * FROM p09 ORDER BY 1`, "1|a", "3|")
	if n := p.a.Value(`SELECT count(*) FROM pgbridge.conflict WHERE relation LIKE '%.p09'`); n != "2" {
		t.Errorf("a has %s conflicts in its history, want 2", n)
	}
}

func (p *pitfalls) checkViolated(t *testing.T) {
	p.a.Exec(`INSERT INTO p12 VALUES (1, 10), (2, 10)`)
	p.WaitConverged()
	p.apart()
	p.a.Exec(`UPDATE p12 SET balance = balance - 7`)
	p.b.Exec(`UPDATE p12 SET balance = balance - 8 WHERE id = 1; UPDATE p12 SET balance = balance - 1 WHERE id = 2`)
	p.everywhere(t, `SELECT * FROM p12 ORDER BY 1`, "1|2", "2|2")
	p.z.Exec(`UPDATE p12 SET balance = balance + 100`)
	p.everywhere(t, `SELECT * FROM p12 ORDER BY 1`, "1|102", "2|102")
}

func (p *pitfalls) oneStamp(t *testing.T) {
	p.a.Exec(`INSERT INTO p13 SELECT i, '' FROM generate_series(1, 50) i; INSERT INTO p13_more SELECT * FROM p13;
		INSERT INTO p13_columns SELECT id, '', '' FROM p13`)
	p.WaitConverged()
	p.apart()
	early := `UPDATE p13 SET v = $1`
	late := `WITH m AS (UPDATE p13_more SET v = $1) UPDATE p13_columns SET v = $1, w = $1`
	// a's transaction encloses b's, and commits later.
	err := pgx.BeginFunc(t.Context(), pgtest.Connect(t, p.a.DSN), func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), early, "a"); err != nil {
			return err
		}
		if err := pgx.BeginFunc(t.Context(), pgtest.Connect(t, p.b.DSN), func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), late, "b")
			if err == nil {
				_, err = tx.Exec(t.Context(), early, "b")
			}
			return err
		}); err != nil {
			return err
		}
		_, err := tx.Exec(t.Context(), late, "a")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	p.everywhere(t, `SELECT v, count(*) FROM (SELECT v FROM p13 UNION ALL SELECT v FROM p13_more UNION ALL SELECT v || w FROM p13_columns) x GROUP BY 1 ORDER BY 1`,
		"a|100", "aa|50")
}

func (p *pitfalls) foreignKeys(t *testing.T) {
	p.a.Exec(`INSERT INTO p14 VALUES (1), (2), (3); INSERT INTO p14_owned VALUES (2, 2), (3, 3); INSERT INTO p14_child VALUES (3, 3)`)
	p.WaitConverged()
	p.apart()
	p.a.Exec(`DELETE FROM p14 WHERE id IN (1, 2)`)
	p.b.Exec(`INSERT INTO p14_child VALUES (1, 1); INSERT INTO p14_owned VALUES (4, 2)`)
	p.everywhere(t, `SELECT 'child', id FROM p14_child UNION ALL SELECT 'owned', id FROM p14_owned ORDER BY 1, 2`,
		"child|1", "child|3", "owned|3", "owned|4") // the cascade went with its transaction; two children have no parent
	p.orphans(t, p.z, bridge.OrphanOptions{}, "public.p14_child p14_child_parent_fkey 1 id=1", "public.p14_owned p14_owned_parent_fkey 1 id=4")
	p.orphans(t, p.z, bridge.OrphanOptions{Table: "*.p14_child", Fix: "null"}, "public.p14_child p14_child_parent_fkey 1 id=1")
	p.orphans(t, p.z, bridge.OrphanOptions{Fix: "delete"}, "public.p14_owned p14_owned_parent_fkey 1 id=4")
	p.everywhere(t, `SELECT 'child', id, parent FROM p14_child UNION ALL SELECT 'owned', id, parent FROM p14_owned ORDER BY 1, 2`,
		"child|1|∅", "child|3|3", "owned|3|3")
	p.orphans(t, p.a, bridge.OrphanOptions{})
}

// orphans requires which ones a node has.
func (p *pitfalls) orphans(t *testing.T, n *cluster.Node, o bridge.OrphanOptions, want ...string) {
	t.Helper()
	h, err := bridge.OpenHistory(t.Context(), n.Load(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close(context.Background())
	found, err := h.Orphans(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range found {
		got = append(got, fmt.Sprint(f.Table, " ", f.Constraint, " ", f.Orphans, " ", f.Keys[0]))
		if o.Fix != "" && (f.Mended != f.Orphans || f.Refused != "") {
			t.Errorf("not mended: %+v", f)
		}
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("orphans on node %s: %q, want %q", n.Name, got, want)
	}
}

func (p *pitfalls) truncate(t *testing.T) {
	p.a.Exec(`INSERT INTO p15 SELECT i, '' FROM generate_series(1, 4) i; INSERT INTO p15_child VALUES (1, 1)`)
	p.WaitConverged()
	p.apart()
	p.a.Exec(`UPDATE p15 SET v = 'older' WHERE id = 1; INSERT INTO p15 VALUES (8, 'older'); INSERT INTO p15_child VALUES (2, 2)`)
	p.b.Exec(`TRUNCATE p15 CASCADE`)
	p.a.Exec(`UPDATE p15 SET v = 'newer' WHERE id = 2; INSERT INTO p15 VALUES (9, 'newer'); INSERT INTO p15_child VALUES (3, 9)`)
	p.z.Links["b"].Heal()
	p.z.Await(`SELECT count(*) FROM p15`, "0")
	p.everywhere(t, `SELECT 'parent', id FROM p15 UNION ALL SELECT 'child', id FROM p15_child ORDER BY 1, 2`, "child|3", "parent|2", "parent|9")
}

func (p *pitfalls) recreated(t *testing.T) {
	p.a.Exec(`INSERT INTO p17 VALUES (1, 'of the first table')`)
	p.WaitConverged()
	p.Exec(`DROP TABLE p17`)
	p.Exec(`CREATE TABLE p17 (v text, id bigint PRIMARY KEY)`)
	for _, n := range p.Nodes {
		n.Await(`SELECT count(*) FROM pg_publication_tables WHERE tablename = 'p17'`, "1")
	}
	p.a.Exec(`INSERT INTO p17 VALUES ('a', 1)`)
	p.b.Exec(`INSERT INTO p17 VALUES ('b', 2)`)
	p.WaitConverged()
	p.z.Exec(`UPDATE p17 SET v = v || 'c'`)
	p.everywhere(t, `SELECT id, v FROM p17 ORDER BY 1`, "1|ac", "2|bc")
}

func (p *pitfalls) counters(t *testing.T) {
	p.a.Exec(`INSERT INTO p18 SELECT i, 10, '' FROM generate_series(1, 4) i`)
	p.WaitConverged()
	p.apart()
	p.a.Exec(`UPDATE p18 SET n = n + 5`)
	p.b.Exec(`UPDATE p18 SET n = n + 1 WHERE id = 1`)                                              // adds beside adds
	p.b.Exec(`UPDATE p18 SET n = NULL WHERE id = 2; UPDATE p18 SET n = 100 WHERE id = 2`)          // a reset
	p.b.Exec(`UPDATE p18 SET n = NULL WHERE id = 3`)                                               // and to nothing: NULL plus 5 is NULL
	p.b.Exec(`UPDATE p18 SET n = n, note = 'b' WHERE id = 4`)                                      // no change
	p.z.Exec(`UPDATE p18 SET n = n - 3 WHERE id IN (1, 2); UPDATE p18 SET n = n + 2 WHERE id = 4`) // has not seen the reset
	p.everywhere(t, `SELECT id, n FROM p18 ORDER BY 1`, "1|13", "2|102", "3|∅", "4|17")
}

func (p *pitfalls) hotRow(t *testing.T) {
	p.a.Exec(`INSERT INTO p20 VALUES (1, 0, ''), (2, 0, '')`)
	p.WaitConverged()
	var before []string
	for _, n := range p.Nodes {
		before = append(before, n.Value(`SELECT count(*) FROM pgbridge.conflict`))
	}
	// Each version is in another place of the index, and dead ones are pruned meanwhile.
	hot := `DO $$ BEGIN FOR i IN 1..400 LOOP UPDATE p20 SET n = n + 1, v = md5(n::text) WHERE id = %d; COMMIT; END LOOP; END $$`
	done := make(chan error, 2)
	for id, n := range map[int]*cluster.Node{1: p.a, 2: p.b} {
		go func() {
			conn, err := pgx.Connect(context.Background(), n.DSN)
			if err == nil {
				_, err = conn.Exec(context.Background(), fmt.Sprintf(hot, id))
				conn.Close(context.Background())
			}
			done <- err
		}()
	}
	for range cap(done) {
		p.z.Exec(`VACUUM p20`)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	p.everywhere(t, `SELECT id, n FROM p20 ORDER BY 1`, "1|400", "2|400")
	p.b.Exec(fmt.Sprintf(hot, 1)) // it has seen a's writes
	p.everywhere(t, `SELECT id, n FROM p20 ORDER BY 1`, "1|800", "2|400")
	for i, n := range p.Nodes {
		if got := n.Value(`SELECT count(*) FROM pgbridge.conflict`); got != before[i] {
			t.Errorf("node %s had %s conflicts and has %s now: %q", n.Name, before[i], got, n.Query(`SELECT kind, relation FROM pgbridge.conflict ORDER BY id DESC LIMIT 3`))
		}
	}
}

func (p *pitfalls) sideEffects(t *testing.T) {
	p.a.Exec(`INSERT INTO p28 (n) VALUES (1), (10)`)
	p.WaitConverged() // made and dice are the same
	p.b.Exec(`UPDATE p28 SET n = n + 100 WHERE id = 1`)
	p.WaitConverged()
	p.z.Exec(`DELETE FROM p28 WHERE id = 2`)
	p.everywhere(t, `SELECT id, n, double FROM p28`, "1|103|206")
	p.everywhere(t, `SELECT what, count(*) FROM p28_log GROUP BY 1 ORDER BY 1`, "DELETE|1", "INSERT|2", "UPDATE|1")
	if used := p.b.Value(`SELECT is_called FROM p28_id_seq`); used != "f" {
		t.Error("a default was evaluated on b")
	}
}

func (p *pitfalls) locksCrossed(t *testing.T) {
	const times = 3
	p.a.Exec(`INSERT INTO p30 VALUES (1, 0, ''), (2, 0, ''), (3, 0, '')`)
	p.WaitConverged()
	conn := pgtest.Connect(t, p.b.DSN)
	for range times {
		err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(t.Context(), `UPDATE p30 SET n = n + 1 WHERE id = 3`); err != nil {
				return err
			}
			p.a.Exec(`UPDATE p30 SET v = v || 'a' WHERE id = 1; UPDATE p30 SET v = v || 'a' WHERE id = 2`)
			p.a.Exec(`BEGIN; UPDATE p30 SET v = v || 'a' WHERE id = 1; UPDATE p30 SET v = v || 'a' WHERE id = 3; COMMIT`)
			p.heard(t, p.b, p.a)
			_, err := tx.Exec(t.Context(), `UPDATE p30 SET n = n + 1 WHERE id = 1`)
			return err
		})
		if err != nil {
			t.Errorf("the user's transaction: %v", err)
		}
	}
	p.everywhere(t, `SELECT id, v FROM p30 WHERE id = 2`, "2|"+strings.Repeat("a", times))
	p.a.Exec(`UPDATE p30 SET v = 'goes on'`)
	p.everywhere(t, `SELECT DISTINCT v FROM p30`, "goes on")
}
