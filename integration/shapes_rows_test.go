package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// large is an SQL expression for a text of 100 kB that does not compress.
func large(seed string) string {
	return fmt.Sprintf(`(SELECT string_agg(md5(%s::text || g), '') FROM generate_series(1, 3200) g)`, seed)
}

// toastShapes: values that are stored out of line, and updates that leave them there.
func toastShapes() []shape {
	steps := func(table string) []step {
		return []step{
			on(0, fmt.Sprintf(`INSERT INTO %s SELECT i, i, %s, 'small' FROM generate_series(1, 8) i`, table, large("i"))),
			on(0, fmt.Sprintf(`UPDATE %[1]s SET n = n + 1; UPDATE %[1]s SET n = 0 WHERE id = 1; UPDATE %[1]s SET w = 'w' || id WHERE id < 3`, table)),
			on(0, fmt.Sprintf(`UPDATE %[1]s SET id = -id WHERE id IN (3, 4); UPDATE %[1]s SET id = 100, n = 100 WHERE id = 5; UPDATE %[1]s SET big = 'short' WHERE id = 6`, table)),
			on(0, fmt.Sprintf(`BEGIN; UPDATE %[1]s SET n = 7 WHERE id = 7; UPDATE %[1]s SET w = %[2]s WHERE id = 7; UPDATE %[1]s SET n = 8 WHERE id = 7; UPDATE %[1]s SET id = 77 WHERE id = 7; COMMIT`, table, large("'w'"))),
			on(0, fmt.Sprintf(`DELETE FROM %[1]s WHERE id = -3; BEGIN; INSERT INTO %[1]s VALUES (9, 9, %[2]s, NULL); UPDATE %[1]s SET n = 10 WHERE id = 9; COMMIT`, table, large("'9'"))),
		}
	}
	const columns = ` (id int PRIMARY KEY, n int, big text, w text); ALTER TABLE `
	external := func(table string) string {
		return `CREATE TABLE ` + table + columns + table + ` ALTER big SET STORAGE EXTERNAL, ALTER w SET STORAGE EXTERNAL;`
	}
	// What one node has written, the other one updates: the value that it leaves unchanged is the other's.
	shared := []step{
		on(0, fmt.Sprintf(`INSERT INTO toast_shared SELECT i, i, %s, 'small' FROM generate_series(1, 8) i`, large("i"))),
		on(1, `UPDATE toast_shared SET n = n + 1; UPDATE toast_shared SET id = -1 WHERE id = 1`),
		on(0, `UPDATE toast_shared SET n = n + 1; UPDATE toast_shared SET id = -2 WHERE id = 2`),
		on(1, fmt.Sprintf(`UPDATE toast_shared SET big = %s WHERE id = 3; UPDATE toast_shared SET w = 'x'`, large("'new'"))),
		on(0, `UPDATE toast_shared SET w = 'y'; DELETE FROM toast_shared WHERE id = 4`),
	}
	return []shape{
		{name: "unchanged TOAST values", schema: external("toast"), steps: steps("toast")},
		{name: "unchanged TOAST values, FULL", schema: external("toast_full") + `ALTER TABLE toast_full REPLICA IDENTITY FULL`, steps: steps("toast_full")},
		{name: "unchanged TOAST values of the other node", schema: external("toast_shared"), steps: shared},
		{
			name:   "key stored out of line",
			schema: `CREATE TABLE toast_key (k text PRIMARY KEY, n int, w text); ALTER TABLE toast_key ALTER k SET STORAGE EXTERNAL, ALTER w SET STORAGE EXTERNAL`,
			steps: []step{
				on(0, `INSERT INTO toast_key SELECT repeat(md5(i::text), 80), i, repeat('w', 5000) FROM generate_series(1, 10) i`),
				on(1, `UPDATE toast_key SET n = n + 1`),
				on(0, `UPDATE toast_key SET k = 'x' || k WHERE n < 5; UPDATE toast_key SET n = 0 WHERE n = 7`),
				on(1, `DELETE FROM toast_key WHERE n < 5`),
			},
		},
		{
			name:   "large rows",
			schema: `CREATE TABLE huge (id int PRIMARY KEY, v text, b bytea)`,
			steps: []step{
				on(0, `INSERT INTO huge VALUES (1, repeat('x', 3000000), decode(repeat('00', 3000000), 'hex')), (2, 'small', NULL)`),
				on(1, `UPDATE huge SET v = repeat('y', 5000000) WHERE id = 2; UPDATE huge SET b = NULL WHERE id = 1`),
			},
		},
	}
}

// partitionShapes: partitioned and inheriting tables, differently on the nodes.
func partitionShapes() []shape {
	return []shape{{
		name: "other partitions",
		on: [2]string{
			`CREATE TABLE parts (id int, region text, v text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
				CREATE TABLE parts_eu PARTITION OF parts FOR VALUES IN ('de', 'fr'); CREATE TABLE parts_us PARTITION OF parts FOR VALUES IN ('us');
				CREATE TABLE parts_rest PARTITION OF parts DEFAULT PARTITION BY RANGE (id); CREATE TABLE parts_rest1 PARTITION OF parts_rest FOR VALUES FROM (0) TO (1000)`,
			`CREATE TABLE parts (v text, region text, id int, PRIMARY KEY (region, id)) PARTITION BY HASH (id);
				CREATE TABLE parts_0 (id int NOT NULL, region text NOT NULL, v text); ALTER TABLE parts ATTACH PARTITION parts_0 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
				CREATE TABLE parts_1 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 1)`,
		},
		steps: []step{
			on(0, `INSERT INTO parts SELECT i, (ARRAY['de', 'us', 'jp'])[i % 3 + 1], 'a' FROM generate_series(1, 30) i`, `INSERT INTO parts_eu VALUES (100, 'fr', 'direct')`),
			on(1, `INSERT INTO parts SELECT 'b', 'us', i FROM generate_series(31, 50) i; UPDATE parts SET v = 'c' WHERE id < 20`, `UPDATE parts_1 SET v = 'direct' WHERE id = 21`),
			on(0, `UPDATE parts SET region = 'us' WHERE region = 'de' AND id < 10; UPDATE parts SET region = 'jp', v = 'moved' WHERE id = 100; UPDATE parts SET id = 200 WHERE id = 31`),
			on(1, `UPDATE parts SET id = id + 1000 WHERE id > 40 AND id < 60; UPDATE parts SET id = id - 300 WHERE id > 1000`, `DELETE FROM parts WHERE id < 4`),
			on(0, `ALTER TABLE parts DETACH PARTITION parts_us; ALTER TABLE parts ATTACH PARTITION parts_us FOR VALUES IN ('us')`, `UPDATE parts SET v = 'end'`),
			on(1, `TRUNCATE parts`),
			on(0, `INSERT INTO parts VALUES (1, 'de', 'again')`),
		},
	}, {
		name: "partitions on one node",
		on: [2]string{
			`CREATE TABLE parted (at date, id int, v text, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
				CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (MINVALUE) TO ('2024-01-01'); CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM ('2024-01-01') TO (MAXVALUE);
				ALTER TABLE parted_1 REPLICA IDENTITY FULL`,
			`CREATE TABLE parted (at date, id int, v text, PRIMARY KEY (at, id))`,
		},
		steps: []step{
			on(0, `INSERT INTO parted SELECT date '2023-12-20' + i, i, 'a' FROM generate_series(1, 30) i`),
			on(1, `UPDATE parted SET v = 'b'; UPDATE parted SET at = at - 20 WHERE id = 15`),
			on(0, `UPDATE parted SET at = at + 20; UPDATE parted SET v = 'c' WHERE id = 1`),
			on(1, `INSERT INTO parted VALUES ('2020-01-01', 1, 'd'), ('2030-01-01', 1, 'd'); DELETE FROM parted WHERE id > 20`),
		},
	}, {
		name: "root FULL, partitions DEFAULT, TOAST",
		schema: `CREATE TABLE ptoast (id int PRIMARY KEY, n int, big text) PARTITION BY RANGE (id);
			CREATE TABLE ptoast_1 PARTITION OF ptoast FOR VALUES FROM (0) TO (100); CREATE TABLE ptoast_2 PARTITION OF ptoast FOR VALUES FROM (100) TO (200);
			ALTER TABLE ptoast_1 ALTER big SET STORAGE EXTERNAL; ALTER TABLE ptoast_2 ALTER big SET STORAGE EXTERNAL; ALTER TABLE ptoast REPLICA IDENTITY FULL`,
		steps: []step{
			on(0, `INSERT INTO ptoast SELECT i * 20, i, `+large("i")+` FROM generate_series(1, 8) i`),
			on(0, `UPDATE ptoast SET n = n + 1; UPDATE ptoast SET id = 21 WHERE id = 20; UPDATE ptoast SET id = 141 WHERE id = 40`),
			on(0, `DELETE FROM ptoast WHERE id = 60; UPDATE ptoast SET n = 0 WHERE id = 141`),
		},
	}, {
		name:   "inheritance",
		schema: `CREATE TABLE heir_of (id int PRIMARY KEY, v text); CREATE TABLE heir (PRIMARY KEY (id), w int) INHERITS (heir_of)`,
		steps: []step{
			on(0, `INSERT INTO heir_of SELECT i, 'parent' FROM generate_series(1, 10) i; INSERT INTO heir SELECT i, 'child', i FROM generate_series(1, 10) i`),
			on(1, `UPDATE ONLY heir_of SET v = 'x' WHERE id < 6; UPDATE heir SET w = 0 WHERE id = 1; UPDATE heir_of SET v = 'both' WHERE id = 7; DELETE FROM ONLY heir_of WHERE id = 2`),
			on(0, `DELETE FROM ONLY heir_of WHERE id > 4`),
			on(1, `TRUNCATE ONLY heir_of`),
			on(0, `INSERT INTO heir_of VALUES (1, 'again')`, `TRUNCATE heir_of`),
		},
	}}
}

// transactionShapes: what a transaction is made of.
func transactionShapes() []shape {
	return []shape{{
		name: "TRUNCATE",
		schema: `CREATE TABLE tr_parent (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, v text); CREATE TABLE tr_child (id serial PRIMARY KEY, parent int REFERENCES tr_parent);
			CREATE TABLE tr_other (id int PRIMARY KEY, big text); CREATE TABLE tr_kept (id int PRIMARY KEY)`,
		steps: []step{
			on(0, `INSERT INTO tr_parent (v) SELECT 'x' FROM generate_series(1, 10); INSERT INTO tr_child (parent) SELECT generate_series(1, 10); INSERT INTO tr_other SELECT generate_series(1, 2000); INSERT INTO tr_kept VALUES (1)`),
			on(1, `TRUNCATE tr_parent, tr_other RESTART IDENTITY CASCADE`),
			on(0, `BEGIN; INSERT INTO tr_other VALUES (1, 'before'); TRUNCATE tr_other; INSERT INTO tr_other VALUES (1, 'after'), (2, 'after'); COMMIT`),
			on(1, `BEGIN; UPDATE tr_other SET big = 'x'; SAVEPOINT s; TRUNCATE tr_other, tr_kept; ROLLBACK TO s; DELETE FROM tr_other WHERE id = 2; COMMIT`),
			on(0, `INSERT INTO tr_parent VALUES (1, 'again'); INSERT INTO tr_child VALUES (1, 1)`, `TRUNCATE tr_child`),
		},
	}, {
		name:   "subtransactions that roll back",
		schema: `CREATE TABLE sub (id int PRIMARY KEY, v text)`,
		steps:  subtransactions("sub", 8),
	}, {
		name:   "two-phase commits",
		schema: `CREATE TABLE phases (id int PRIMARY KEY, v text)`,
		steps:  twoPhases("phases", 5),
	}, {
		name:   "empty transactions",
		schema: `CREATE TABLE empty (id int PRIMARY KEY)`,
		steps: []step{
			on(0, `BEGIN`, `COMMIT`, `SELECT pg_current_xact_id()`, `BEGIN; INSERT INTO empty VALUES (1); ROLLBACK`, `BEGIN; SAVEPOINT s; INSERT INTO empty VALUES (1); ROLLBACK TO s; COMMIT`,
				`BEGIN; LOCK TABLE empty; SELECT FROM empty FOR UPDATE; COMMIT`),
			on(1, `BEGIN; INSERT INTO empty VALUES (1); DELETE FROM empty; COMMIT`, `DO $$ BEGIN END $$`, `UPDATE empty SET id = 2`),
		},
	}, {
		name:   "rows written more than once",
		schema: `CREATE TABLE again (id int PRIMARY KEY, v int)`,
		steps: []step{
			on(0, `BEGIN; INSERT INTO again SELECT i, 0 FROM generate_series(1, 10) i; UPDATE again SET v = v + 1; UPDATE again SET v = v + 1; DELETE FROM again WHERE id < 3; INSERT INTO again VALUES (1, 10); COMMIT`),
			on(1, `BEGIN; UPDATE again SET id = id + 100; UPDATE again SET id = id - 100; DELETE FROM again WHERE id = 4; INSERT INTO again VALUES (4, 1); DELETE FROM again WHERE id = 4; COMMIT`,
				`INSERT INTO again SELECT i, 1 FROM generate_series(3, 20) i ON CONFLICT (id) DO UPDATE SET v = again.v + 100`),
			on(0, `MERGE INTO again USING (SELECT generate_series(10, 30) AS id) s ON again.id = s.id WHEN MATCHED AND s.id % 2 = 0 THEN DELETE
				WHEN MATCHED THEN UPDATE SET v = -1 WHEN NOT MATCHED THEN INSERT VALUES (s.id, 7)`),
			// each row's new key is the one that the row before it has just left
			on(1, `DO $$ BEGIN FOR i IN REVERSE 30 .. 1 LOOP UPDATE public.again SET id = id + 1 WHERE id = i; END LOOP; END $$`),
		},
	}, {
		name:   "COPY",
		schema: `CREATE TABLE copied (id int PRIMARY KEY, v text)`,
		steps: []step{
			on(0, `COPY copied (id) FROM PROGRAM 'seq 1 3000'`),
			on(1, `BEGIN; DELETE FROM copied WHERE id > 1000; COPY copied (id) FROM PROGRAM 'seq 2001 2010' WITH (FREEZE off); UPDATE copied SET v = 'x'; COMMIT`),
		},
	}, {
		name:   "identity changes between writes",
		schema: `CREATE TABLE changing (id int PRIMARY KEY, v text, u int NOT NULL UNIQUE)`,
		steps: []step{
			on(0, `INSERT INTO changing SELECT i, 'a', i FROM generate_series(1, 10) i`),
			on(0, `BEGIN; UPDATE changing SET v = 'b'; ALTER TABLE changing REPLICA IDENTITY FULL; UPDATE changing SET v = 'c' WHERE id < 5; DELETE FROM changing WHERE id = 1; COMMIT`),
			on(1, `UPDATE changing SET id = -id WHERE id = 2; UPDATE changing SET v = 'd'`),
			on(0, `BEGIN; DELETE FROM changing WHERE id = 3; ALTER TABLE changing REPLICA IDENTITY DEFAULT; UPDATE changing SET id = -id WHERE id > 8; COMMIT`),
		},
	}, {
		name:   "DDL between writes",
		schema: `CREATE TABLE ddl (id int PRIMARY KEY, v text, n int)`,
		steps: []step{
			on(0, `INSERT INTO ddl SELECT i, 'a', i FROM generate_series(1, 10) i`),
			on(1, `ALTER TABLE ddl ADD COLUMN w text DEFAULT 'new'`).then(on(0, `BEGIN; UPDATE ddl SET v = 'b' WHERE id = 1; ALTER TABLE ddl ADD COLUMN w text DEFAULT 'new'; INSERT INTO ddl VALUES (11, 'c', 11, 'w'); UPDATE ddl SET w = 'x' WHERE id < 8; COMMIT`)),
			on(1, `BEGIN; UPDATE ddl SET w = 'y'; CREATE INDEX ON ddl (w); ALTER TABLE ddl ALTER v SET NOT NULL; INSERT INTO ddl VALUES (12, 'd', 12); COMMIT`),
			on(0, `BEGIN; CREATE TABLE unrelated AS SELECT * FROM ddl; ALTER TABLE ddl ALTER n TYPE int USING n * 1; UPDATE ddl SET n = n + 1 WHERE id < 9; DROP TABLE unrelated; COMMIT`),
			on(1, `UPDATE ddl SET n = n + 1; UPDATE ddl SET v = 'end' WHERE id = 1; DELETE FROM ddl WHERE id = 2`), // on rows that the other node has rewritten
		},
	}}
}

// subtransactions writes n rows in each of several subtransactions, some of which roll back.
func subtransactions(table string, n int) []step {
	insert := func(from int) string {
		return fmt.Sprintf(`INSERT INTO %s SELECT i, repeat('v', 100) FROM generate_series(%d, %d) i;`, table, from, from+n-1)
	}
	f := func(format string) string { return fmt.Sprintf(format, table, n) }
	return []step{
		on(0, `BEGIN; `+insert(1)+` SAVEPOINT a; `+insert(1+n)+` ROLLBACK TO a; `+insert(1+2*n)+` SAVEPOINT b; `+insert(1+3*n)+` SAVEPOINT c; `+insert(1+4*n)+
			` ROLLBACK TO c; RELEASE b; SAVEPOINT d; `+insert(1+5*n)+` RELEASE d; COMMIT`),
		on(1, f(`BEGIN; UPDATE %[1]s SET v = 'top' WHERE id <= %[2]d; SAVEPOINT a; UPDATE %[1]s SET v = 'void'; SAVEPOINT b; DELETE FROM %[1]s; ROLLBACK TO a;
			UPDATE %[1]s SET v = v || ' again' WHERE id <= %[2]d; COMMIT`)),
		on(0, f(`DO $$ BEGIN FOR i IN 1000001 .. 1000000 + %[2]d LOOP BEGIN INSERT INTO public.%[1]s VALUES (i, repeat('e', 100));
			IF i %% 3 = 0 THEN RAISE EXCEPTION 'no'; END IF; EXCEPTION WHEN raise_exception THEN UPDATE public.%[1]s SET v = 'caught ' || i WHERE id = 1; END; END LOOP; END $$`)),
		on(1, f(`BEGIN; SAVEPOINT a; DELETE FROM %[1]s; ROLLBACK TO a; SAVEPOINT b; UPDATE %[1]s SET v = 'void'; ROLLBACK; `),
			f(`BEGIN; SAVEPOINT a; DELETE FROM %[1]s WHERE id > 1000000; RELEASE a; SAVEPOINT a; TRUNCATE %[1]s; ROLLBACK TO a; UPDATE %[1]s SET v = 'end' WHERE id = 2; COMMIT`)),
	}
}

// twoPhases prepares transactions of n rows, and commits and rolls them back with others in between.
func twoPhases(table string, n int) []step {
	f := func(format string) string { return fmt.Sprintf(format, table, n) }
	return []step{
		on(0, f(`BEGIN; INSERT INTO %[1]s SELECT i, repeat('p', 100) FROM generate_series(1, %[2]d) i; PREPARE TRANSACTION '%%CLUSTER%% %[1]s 1'`),
			f(`BEGIN; INSERT INTO %[1]s SELECT i, 'void' FROM generate_series(100001, 100000 + %[2]d) i; PREPARE TRANSACTION '%%CLUSTER%% %[1]s 2'`),
			f(`INSERT INTO %[1]s VALUES (-1, 'between')`),
			f(`COMMIT PREPARED '%%CLUSTER%% %[1]s 1'`), f(`ROLLBACK PREPARED '%%CLUSTER%% %[1]s 2'`)),
		on(1, f(`BEGIN; UPDATE %[1]s SET v = 'u'; SAVEPOINT a; DELETE FROM %[1]s; ROLLBACK TO a; PREPARE TRANSACTION '%%CLUSTER%% %[1]s 3'`)),
		on(0, f(`INSERT INTO %[1]s VALUES (-2, 'while it is prepared')`)),
		on(1, f(`COMMIT PREPARED '%%CLUSTER%% %[1]s 3'`)),
	}
}

// TestStreamedTransactions: the same in transactions so large that the server streams them while they run,
// each sent by the oldest version and by the newest.
func TestStreamedTransactions(t *testing.T) {
	t.Parallel()
	versions := pgtest.Versions(t)
	var schema strings.Builder
	for _, table := range []string{"sub", "sub_m", "phases", "phases_m", "more", "more_m"} {
		fmt.Fprintf(&schema, "CREATE TABLE %s (id int PRIMARY KEY, v text);\n", table)
	}
	c := cluster.New(t, cluster.Options{Nodes: 2, Majors: []int{slices.Min(versions), slices.Max(versions)}, Own: true, Schema: schema.String(),
		Settings: map[string]string{"logical_decoding_work_mem": "64kB", "fsync": "off"}})
	const n = 3000
	walk(t, c, []shape{
		{name: "subtransactions", steps: subtransactions("sub", n)},
		{name: "subtransactions", steps: mirrored(subtransactions("sub_m", n))},
		{name: "two-phase commits", steps: twoPhases("phases", n)},
		{name: "two-phase commits", steps: mirrored(twoPhases("phases_m", n))},
		{name: "all in one", steps: allInOne("more", n)},
		{name: "all in one", steps: mirrored(allInOne("more_m", n))},
	})
}

// allInOne mixes all kinds of changes in transactions of n rows.
func allInOne(table string, n int) []step {
	f := func(format string) string { return fmt.Sprintf(format, table, n) }
	return []step{
		on(0, f(`BEGIN; INSERT INTO %[1]s SELECT i, repeat('a', 100) FROM generate_series(1, %[2]d) i; UPDATE %[1]s SET v = 'b' || id; SAVEPOINT a; DELETE FROM %[1]s; ROLLBACK TO a;
			DELETE FROM %[1]s WHERE id %% 2 = 0; UPDATE %[1]s SET id = -id WHERE id < 200; COMMIT`)),
		on(1, f(`BEGIN; TRUNCATE %[1]s; INSERT INTO %[1]s SELECT i, repeat('c', 100) FROM generate_series(1, %[2]d) i; ROLLBACK`)),
		on(0, f(`BEGIN; TRUNCATE %[1]s; INSERT INTO %[1]s SELECT i, repeat('d', 100) FROM generate_series(1, %[2]d) i; COMMIT`)),
		on(1, f(`BEGIN; UPDATE %[1]s SET v = 'e'; ALTER TABLE %[1]s ALTER id TYPE int USING id * 1; UPDATE %[1]s SET v = v || 'f' WHERE id < 2000; COMMIT`)),
		on(0, f(`UPDATE %[1]s SET v = v || 'g'`)),
	}
}
