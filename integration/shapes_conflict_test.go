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
	return append(all, orders, parts, always, heirs,
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
		rivalry{name: "equal keys that look different", schema: `CREATE EXTENSION citext; CREATE TABLE r_amount (k numeric PRIMARY KEY, v int); CREATE TABLE r_citext (k citext PRIMARY KEY, v int);
				CREATE DOMAIN r_num AS numeric; CREATE TABLE r_num_key (k r_num PRIMARY KEY, v int); CREATE TABLE r_span (k interval PRIMARY KEY, v int)`,
			before: `INSERT INTO r_amount VALUES (1.0, 0), (2.0, 0), (3.0, 0), (4.0, 0); INSERT INTO r_citext VALUES ('a', 0), ('b', 0), ('c', 0), ('d', 0);
				INSERT INTO r_num_key VALUES (1.0, 0), (2.0, 0), (3.0, 0), (4.0, 0); INSERT INTO r_span VALUES ('1 day', 0), ('2 days', 0), ('3 days', 0), ('4 days', 0)`,
			rivals: [2]string{
				`UPDATE r_amount SET k = 1.00 WHERE k = 1; UPDATE r_amount SET v = 1 WHERE k = 2; DELETE FROM r_amount WHERE k = 3; INSERT INTO r_amount VALUES (9.0, 1); DELETE FROM r_amount WHERE k = 4; INSERT INTO r_amount VALUES (4.000, 1);
					UPDATE r_num_key SET k = 1.00 WHERE k = 1; UPDATE r_num_key SET v = 1 WHERE k = 2; DELETE FROM r_num_key WHERE k = 3; INSERT INTO r_num_key VALUES (9.0, 1); DELETE FROM r_num_key WHERE k = 4; INSERT INTO r_num_key VALUES (4.000, 1);
					UPDATE r_span SET k = '24:00' WHERE k = '1 day'; UPDATE r_span SET v = 1 WHERE k = '2 days'; DELETE FROM r_span WHERE k = '3 days'; INSERT INTO r_span VALUES ('9 days', 1); DELETE FROM r_span WHERE k = '4 days'; INSERT INTO r_span VALUES ('96:00', 1);
					UPDATE r_citext SET k = 'A' WHERE k = 'a'; UPDATE r_citext SET v = 1 WHERE k = 'b'; DELETE FROM r_citext WHERE k = 'c'; INSERT INTO r_citext VALUES ('nine', 1); DELETE FROM r_citext WHERE k = 'd'; INSERT INTO r_citext VALUES ('D', 1)`,
				`UPDATE r_amount SET v = 2 WHERE k = 1; UPDATE r_amount SET k = 2.000 WHERE k = 2; UPDATE r_amount SET k = 3.00 WHERE k = 3; INSERT INTO r_amount VALUES (9.00, 2); UPDATE r_amount SET k = 4.0000 WHERE k = 4;
					UPDATE r_num_key SET v = 2 WHERE k = 1; UPDATE r_num_key SET k = 2.000 WHERE k = 2; UPDATE r_num_key SET k = 3.00 WHERE k = 3; INSERT INTO r_num_key VALUES (9.00, 2); UPDATE r_num_key SET k = 4.0000 WHERE k = 4;
					UPDATE r_span SET v = 2 WHERE k = '1 day'; UPDATE r_span SET k = '48:00' WHERE k = '2 days'; UPDATE r_span SET k = '72:00' WHERE k = '3 days'; INSERT INTO r_span VALUES ('216:00', 2); UPDATE r_span SET k = '95:59:60' WHERE k = '4 days';
					UPDATE r_citext SET v = 2 WHERE k = 'a'; UPDATE r_citext SET k = 'B' WHERE k = 'b'; UPDATE r_citext SET k = 'C' WHERE k = 'c'; INSERT INTO r_citext VALUES ('NINE', 2); UPDATE r_citext SET v = 5 WHERE k = 'd'`,
			}},
	)
}

// TestRivals cuts the nodes from each other, has both write to tables of all shapes, and lets them hear of
// each other again. Each rivalry has its turn first on one node and then on the other.
func TestRivals(t *testing.T) {
	versions := pgtest.Versions(t)
	c := cluster.New(t, cluster.Options{Nodes: 2, Majors: []int{slices.Min(versions), slices.Max(versions)}, Idle: true})
	all := rivalries()
	for i, n := range c.Nodes {
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
