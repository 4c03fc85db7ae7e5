package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// rivalry is a table that both nodes write to while neither hears of the other. Who wins is a matter of
// the policy; here both must end with the same rows, whatever the table is like.
type rivalry struct {
	name   string
	schema string
	on     [2]string // besides, on each node
	before string    // on the first node, seen by both
	rivals [2]string // what each does then
}

func rivalries() []rivalry {
	// The same moves for every kind of table with the columns id, n and v.
	moves := func(name, schema, table string) rivalry {
		f := func(sql string) string { return strings.ReplaceAll(sql, "TABLE", table) }
		return rivalry{name: name, schema: schema,
			before: f(`INSERT INTO TABLE (id, n, v) SELECT i, i, 'v' FROM generate_series(1, 40) i`),
			rivals: [2]string{
				f(`UPDATE TABLE SET v = 'a' WHERE id <= 10; DELETE FROM TABLE WHERE id BETWEEN 11 AND 15; UPDATE TABLE SET v = 'a' WHERE id BETWEEN 16 AND 20;
					UPDATE TABLE SET id = id + 200 WHERE id BETWEEN 21 AND 25; UPDATE TABLE SET v = 'a' WHERE id BETWEEN 26 AND 30; INSERT INTO TABLE (id, n, v) SELECT i, 1000 + i, 'a' FROM generate_series(101, 110) i;
					DELETE FROM TABLE WHERE id BETWEEN 31 AND 33; INSERT INTO TABLE (id, n, v) SELECT i, i, 'again a' FROM generate_series(31, 33) i; UPDATE TABLE SET id = 500 WHERE id = 34`),
				f(`UPDATE TABLE SET n = -n WHERE id <= 10; UPDATE TABLE SET v = 'b' WHERE id BETWEEN 11 AND 15; DELETE FROM TABLE WHERE id BETWEEN 16 AND 20;
					UPDATE TABLE SET v = 'b' WHERE id BETWEEN 21 AND 25; UPDATE TABLE SET id = id + 300 WHERE id BETWEEN 26 AND 30; INSERT INTO TABLE (id, n, v) SELECT i, 2000 + i, 'b' FROM generate_series(101, 110) i;
					DELETE FROM TABLE WHERE id BETWEEN 31 AND 33; INSERT INTO TABLE (id, n, v) SELECT i, i, 'again b' FROM generate_series(31, 33) i; UPDATE TABLE SET id = 500 WHERE id = 35`),
			}}
	}
	all := []rivalry{
		moves("default", `CREATE TABLE r_default (id int PRIMARY KEY, n int, v text)`, "r_default"),
		moves("FULL", `CREATE TABLE r_full (id int PRIMARY KEY, n int, v text); ALTER TABLE r_full REPLICA IDENTITY FULL`, "r_full"),
		moves("FULL without a key", `CREATE TABLE r_none (id int NOT NULL UNIQUE, n int, v text); ALTER TABLE r_none REPLICA IDENTITY FULL`, "r_none"),
		moves("USING INDEX", `CREATE TABLE r_index (pk bigserial, id int NOT NULL UNIQUE, n int, v text); ALTER TABLE r_index REPLICA IDENTITY USING INDEX r_index_id_key`, "r_index"),
		moves("generated", `CREATE TABLE r_generated (id int PRIMARY KEY, n int, g int GENERATED ALWAYS AS (n + 1) STORED, v text)`, "r_generated"),
		moves("numeric key", `CREATE TABLE r_numeric (id numeric PRIMARY KEY, n int, v text)`, "r_numeric"),
		moves("domain key", `CREATE DOMAIN r_key AS int CHECK (VALUE > 0); CREATE TABLE r_domain (id r_key PRIMARY KEY, n int, v text)`, "r_domain"),
		moves("TOAST, FULL", `CREATE TABLE r_toast (id int PRIMARY KEY, n int, v text, big text DEFAULT `+`repeat('x', 10000)); ALTER TABLE r_toast ALTER big SET STORAGE EXTERNAL; ALTER TABLE r_toast REPLICA IDENTITY FULL`, "r_toast"),
	}
	orders := moves("column orders", "", "r_order")
	orders.on = [2]string{`CREATE TABLE r_order (id int PRIMARY KEY, n int, v text)`, `CREATE TABLE r_order (v text, n int, id int PRIMARY KEY)`}
	parts := moves("partitions", "", "r_parts")
	parts.on = [2]string{
		`CREATE TABLE r_parts (id int PRIMARY KEY, n int, v text) PARTITION BY RANGE (id); CREATE TABLE r_parts_1 PARTITION OF r_parts FOR VALUES FROM (0) TO (100);
			CREATE TABLE r_parts_2 PARTITION OF r_parts DEFAULT`,
		`CREATE TABLE r_parts (id int PRIMARY KEY, n int, v text) PARTITION BY HASH (id); CREATE TABLE r_parts_1 PARTITION OF r_parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
			CREATE TABLE r_parts_2 PARTITION OF r_parts FOR VALUES WITH (MODULUS 2, REMAINDER 1)`}
	always := moves("identity", `CREATE TABLE r_always (no int GENERATED ALWAYS AS IDENTITY, id int PRIMARY KEY, n int, v text)`, "r_always")
	always.on = [2]string{1: `ALTER TABLE r_always ALTER no RESTART 1000`}
	always.rivals[0] += `; UPDATE r_always SET no = DEFAULT WHERE id IN (2, 4, 6)`
	always.rivals[1] += `; UPDATE r_always SET no = DEFAULT WHERE id IN (3, 4, 5)`
	heirs := moves("inheritance", `CREATE TABLE r_parent (id int PRIMARY KEY, n int, v text); CREATE TABLE r_heir (PRIMARY KEY (id)) INHERITS (r_parent)`, "r_heir")
	// Both have rows of one key, or the child alone has: each is judged by its own writer only.
	heirs.before += `; INSERT INTO r_parent SELECT i, i, 'parent' FROM generate_series(1, 12) i`
	heirs.rivals[0] += `; UPDATE ONLY r_parent SET v = 'a' WHERE id <= 4; DELETE FROM ONLY r_parent WHERE id IN (5, 6); INSERT INTO r_parent VALUES (36, 0, 'a')`
	heirs.rivals[1] += `; UPDATE ONLY r_parent SET v = 'b' WHERE id IN (3, 4, 5); DELETE FROM ONLY r_parent WHERE id IN (1, 2, 6); INSERT INTO r_parent VALUES (36, 0, 'b')`
	all = append(all, orders, parts, always, heirs,
		rivalry{name: "TRUNCATE", schema: `CREATE TABLE r_cut (id int PRIMARY KEY, n int, v text); CREATE TABLE r_cut2 (id int PRIMARY KEY)`,
			before: `INSERT INTO r_cut SELECT i, i, 'v' FROM generate_series(1, 20) i; INSERT INTO r_cut2 SELECT generate_series(1, 20)`,
			rivals: [2]string{
				`TRUNCATE r_cut, r_cut2; INSERT INTO r_cut VALUES (1, 1, 'a')`,
				`UPDATE r_cut SET v = 'b' WHERE id < 10; INSERT INTO r_cut SELECT i, i, 'b' FROM generate_series(30, 40) i; DELETE FROM r_cut WHERE id = 15; INSERT INTO r_cut2 VALUES (99)`,
			}},
		rivalry{name: "both TRUNCATE", schema: `CREATE TABLE r_cuts (id int PRIMARY KEY, v text)`,
			before: `INSERT INTO r_cuts SELECT i, 'v' FROM generate_series(1, 20) i`,
			rivals: [2]string{
				`INSERT INTO r_cuts VALUES (100, 'a'); TRUNCATE r_cuts; INSERT INTO r_cuts VALUES (1, 'a'), (2, 'a')`,
				`INSERT INTO r_cuts VALUES (100, 'b'); TRUNCATE r_cuts; INSERT INTO r_cuts VALUES (1, 'b'), (3, 'b')`,
			}},
		rivalry{name: "nothing but a key", schema: `CREATE TABLE r_key_only (id int PRIMARY KEY)`,
			before: `INSERT INTO r_key_only SELECT generate_series(1, 20)`,
			rivals: [2]string{
				`UPDATE r_key_only SET id = id WHERE id < 5; DELETE FROM r_key_only WHERE id = 6; UPDATE r_key_only SET id = 100 WHERE id = 8; INSERT INTO r_key_only VALUES (200)`,
				`UPDATE r_key_only SET id = id WHERE id < 7; DELETE FROM r_key_only WHERE id = 3; UPDATE r_key_only SET id = 101 WHERE id = 8; INSERT INTO r_key_only VALUES (200)`,
			}},
	)
	return append(all, respellings()...)
}

// respelledSchema has the types and the collation of the rivalries that respelled makes.
const respelledSchema = `CREATE EXTENSION citext; CREATE DOMAIN r_num AS numeric; CREATE TYPE r_pair_type AS (n numeric, t citext);
	CREATE COLLATION r_ignore_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`

// respellings are rivalries over keys of all kinds of which one can be spelled in two ways.
func respellings() []rivalry {
	var all []rivalry
	for _, r := range []struct {
		name, table, typ string
		k, other         [5]string
	}{
		{"numeric", "r_amount", "numeric", [5]string{"1.0", "2.0", "3.0", "4.0", "9.0"}, [5]string{"1.00", "2.000", "3.00", "4.000", "9.00"}},
		{"domain", "r_num_key", "r_num", [5]string{"1.0", "2.0", "3.0", "4.0", "9.0"}, [5]string{"1.00", "2.000", "3.00", "4.000", "9.00"}},
		{"float8", "r_float8", "float8", [5]string{"0", "0", "0", "0", "0"}, [5]string{"-0", "-0", "-0", "-0", "-0"}},
		{"interval", "r_span", "interval", [5]string{"1 day", "2 days", "1 month", "4 days", "9 days"}, [5]string{"24:00", "48:00", "30 days", "96:00", "216:00"}},
		{"bpchar", "r_padded", "bpchar", [5]string{"a", "b", "c", "d", "nine"}, [5]string{"a ", "b  ", "c ", "d ", "nine "}},
		{"jsonb", "r_jsonb", "jsonb", [5]string{"1.0", `[2, "x"]`, `{"a": 3, "b": null}`, "[[4], 1]", "-9"}, [5]string{"1", `[2.0, "x"]`, `{"b": null, "a": 3.00}`, "[[4.0], 1]", "-9.0"}},
		{"range", "r_range", "numrange", [5]string{"[1,2)", "[2,3)", "[3,)", "(4,5)", "[9,10]"}, [5]string{"[1.0,2)", "[2,3.0)", "[3.00,)", "(4.0,5.0)", "[9.0,10]"}},
		{"array", "r_array", "numeric[]", [5]string{"{1.0}", "{2,2}", "{{3}}", "{4,NULL}", "{9}"}, [5]string{"{1}", "{2.0,2}", "{{3.0}}", "{4.00,NULL}", "{9.0}"}},
		{"citext", "r_citext", "citext", [5]string{"a", "b", "c", "d", "nine"}, [5]string{"A", "B", "C", "D", "NINE"}},
		{"composite", "r_pair", "r_pair_type", [5]string{"(1,a)", "(2,b)", "(3,c)", "(4,d)", "(9,nine)"}, [5]string{"(1.0,a)", "(2,B)", "(3.0,C)", "(4,D)", "(9.0,Nine)"}},
		{"collation", "r_nocase", "text COLLATE r_ignore_case", [5]string{"a", "b", "c", "d", "nine"}, [5]string{"A", "B", "C", "D", "NINE"}},
	} {
		// Neighbours, so that in one the first node has the last word, in the other the second.
		all = append(all, respelled(r.name, r.table, r.typ, r.k, r.other), respelled(r.name+" (again)", r.table+"_again", r.typ, r.k, r.other))
	}
	return all
}

// respelled is a rivalry over rows whose keys have two spellings: on one node they are spelled anew, deleted,
// or deleted and inserted anew, while the other writes to them or spells them anew. The fifth is inserted on
// both.
func respelled(name, table, typ string, k, other [5]string) rivalry {
	sql := func(text string) string {
		names := []string{"TABLE", table}
		for i := range k {
			names = append(names, fmt.Sprintf("KEY%d", i+1), literal(k[i]), fmt.Sprintf("OTHER%d", i+1), literal(other[i]))
		}
		return strings.NewReplacer(names...).Replace(text)
	}
	return rivalry{
		name: name + " keys that look different", schema: fmt.Sprintf(`CREATE TABLE %s (k %s, n int, v int, PRIMARY KEY (k, n))`, table, typ),
		before: sql(`INSERT INTO TABLE VALUES (KEY1, 1, 0), (KEY2, 2, 0), (KEY3, 3, 0), (KEY4, 4, 0)`),
		rivals: [2]string{
			sql(`UPDATE TABLE SET k = OTHER1 WHERE n = 1; UPDATE TABLE SET v = 1 WHERE n = 2; DELETE FROM TABLE WHERE n = 3;
				DELETE FROM TABLE WHERE n = 4; INSERT INTO TABLE VALUES (OTHER4, 4, 1); INSERT INTO TABLE VALUES (KEY5, 5, 1)`),
			sql(`UPDATE TABLE SET v = 2 WHERE n = 1; UPDATE TABLE SET k = OTHER2 WHERE n = 2; UPDATE TABLE SET k = OTHER3 WHERE n = 3;
				UPDATE TABLE SET k = OTHER4 WHERE n = 4; INSERT INTO TABLE VALUES (OTHER5, 5, 2)`),
		},
	}
}

func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// TestRivals cuts the nodes from each other, has both write to tables of all shapes, and lets them hear of
// each other again. Each rivalry has its turn first on one node and then on the other.
func TestRivals(t *testing.T) {
	t.Parallel()
	versions := pgtest.Versions(t)
	c := cluster.New(t, cluster.Options{Nodes: 2, Majors: []int{slices.Min(versions), slices.Max(versions)}, Idle: true})
	all := rivalries()
	for i, n := range c.Nodes {
		execLong(t, n.DSN, respelledSchema)
		for _, r := range all {
			execLong(t, n.DSN, r.schema+";"+r.on[i])
		}
		n.Start()
	}
	a, b := c.Nodes[0], c.Nodes[1]
	for _, r := range all {
		execLong(t, a.DSN, r.before)
	}
	c.WaitConverged()
	a.Links[b.Name].Cut()
	b.Links[a.Name].Cut()
	for i, r := range all {
		for _, turn := range []int{i % 2, 1 - i%2} { // the later one wins
			execLong(t, c.Nodes[turn].DSN, r.rivals[turn])
		}
	}
	a.Links[b.Name].Heal()
	b.Links[a.Name].Heal()
	awaitEach(t, c)
	j := newJudge(t, c)
	j.require("^r_")
	if n := a.Value(`SELECT count(*) FROM pgbridge.conflict`); n == "0" {
		t.Error("there were no conflicts: nothing was shown")
	}
}

// TestToastOfTheOtherNodeAtOnce: a node updates another column of a row as soon as it sees it, while the
// other node's value is large and stays unchanged.
func TestToastOfTheOtherNodeAtOnce(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 3, Schema: `CREATE TABLE toast (id int PRIMARY KEY, n int, big text); ALTER TABLE toast ALTER big SET STORAGE EXTERNAL`})
	a, b := c.Nodes[0], c.Nodes[1]
	conn := pgtest.Connect(t, b.DSN)
	for i := range 20 {
		a.Exec(fmt.Sprintf(`INSERT INTO toast VALUES (%d, 0, %s)`, i, large("0")))
		for {
			tag, err := conn.Exec(t.Context(), `UPDATE toast SET n = 1 WHERE id = $1`, i)
			if err != nil {
				t.Fatal(err)
			}
			if tag.RowsAffected() == 1 {
				break
			}
		}
	}
	c.WaitConverged()
}
