package apply

import (
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// newest makes a pair on the newest server.
func newest(t *testing.T, schema string) *pair {
	t.Helper()
	return newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), schema)
}

// done is do, and capture has read what it wrote here.
func (p *pair) done(sql string) {
	p.t.Helper()
	p.do(sql)
	p.wal.mu.Lock()
	defer p.wal.mu.Unlock()
	p.wal.low = origin.Vector{{Origin: nodeA, Seq: p.seq, Stamp: p.last}}
}

// disturb makes the pair's next transactions go the careful path: it writes rows here that the origin
// has not seen, with a stamp that loses.
func (p *pair) disturb(sql string) {
	p.t.Helper()
	p.to.Exec(p.t, sql)
}

// TestDomainsAreWhatTheyAreMadeOf: a Type message names the type below a domain.
func TestDomainsAreWhatTheyAreMadeOf(t *testing.T) {
	p := newest(t, `CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE DOMAIN d_int AS int CHECK (VALUE > 0);
		CREATE DOMAIN d_mood AS mood; CREATE DOMAIN d_two AS d_int; CREATE DOMAIN d_array AS d_mood[];
		CREATE TABLE t (id d_two PRIMARY KEY, i d_int, m d_mood, a d_array)`)
	p.done(`INSERT INTO t VALUES (1, 2, 'sad', '{happy,sad}')`)
	p.done(`INSERT INTO t SELECT i, i, 'happy', NULL FROM generate_series(2, 20) i`)
	p.done(`UPDATE t SET i = i + 1, m = 'sad'`)
	p.same(`SELECT * FROM t ORDER BY id`)
}

// TestDomainAsKey: it is compared as what it is made of, with the help of its index.
func TestDomainAsKey(t *testing.T) {
	p := newest(t, `CREATE TYPE mood AS ENUM ('sad', 'happy', 'ok', 'meh', 'glad'); CREATE DOMAIN d_mood AS mood; CREATE DOMAIN d_char AS varchar(5);
		CREATE TABLE t (m d_mood, c d_char, v int, PRIMARY KEY (m, c))`)
	p.done(`INSERT INTO t SELECT unnest(enum_range(NULL::mood)), 'k', 1`)
	p.done(`UPDATE t SET v = 2`)
	p.done(`UPDATE t SET v = 3 WHERE m::mood = 'sad'; UPDATE t SET c = 'l' WHERE m::mood = 'ok'`)
	p.disturb(`UPDATE t SET v = 4`)
	p.done(`UPDATE t SET v = 5; DELETE FROM t WHERE m::mood = 'meh'`)
	p.same(`SELECT * FROM t ORDER BY m`)
	if st := p.status(); st.Careful != 1 {
		t.Errorf("status %+v, want one on the careful path", st)
	}
	tab, err := p.a.catalog.table(t.Context(), "public", "t")
	if err != nil {
		t.Fatal(err)
	}
	c := tab.cols[0]
	conn := p.to.Connect(t)
	if _, err := conn.Exec(t.Context(), `SET enable_seqscan = off`); err != nil {
		t.Fatal(err)
	}
	var plan string
	if err := conn.QueryRow(t.Context(), `EXPLAIN (FORMAT JSON) SELECT FROM t WHERE `+c.compared()+` `+c.equals+` 'sad'::mood`).Scan(&plan); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(plan, "Index Cond") {
		t.Errorf("the key's index is not used: %s", plan)
	}
}

// TestKeyWithoutOverlaps: such a key's index is GiST, where the third operator is not equality.
func TestKeyWithoutOverlaps(t *testing.T) {
	if pgtest.Newest(t) < 18 {
		return // no such keys before
	}
	p := newest(t, `CREATE TABLE t (id int4range, valid daterange, v text, PRIMARY KEY (id, valid WITHOUT OVERLAPS))`)
	p.done(`INSERT INTO t VALUES ('[1,5)', '[2024-01-01,2025-01-01)', 'a'), ('[2,3)', '[2024-06-01,2025-06-01)', 'b')`)
	p.done(`UPDATE t SET v = 'c' WHERE v = 'a'`)
	p.done(`DELETE FROM t WHERE v = 'b'`)
	p.same(`SELECT * FROM t`)
}

// TestEmptyValuesThatTheServerDoesNotReadBack are sent as text.
func TestEmptyValuesThatTheServerDoesNotReadBack(t *testing.T) {
	p := newest(t, `CREATE TABLE t (id int PRIMARY KEY, q tsquery, i int2vector, o oidvector)`)
	p.done(`INSERT INTO t VALUES (1, '', '', ''), (2, 'a & b', '1 2', '3 4')`)
	p.done(`INSERT INTO t SELECT i, '', '', '' FROM generate_series(10, 20) i`)
	p.done(`UPDATE t SET q = '', i = '5', o = '' WHERE id = 2`)
	p.same(`SELECT * FROM t ORDER BY id`)
	p.disturb(`UPDATE t SET q = 'x' WHERE id = 1`)
	p.done(`UPDATE t SET q = '', i = '' WHERE id = 1`)
	p.same(`SELECT * FROM t ORDER BY id`)
}

// TestEqualKeysWithOtherBytes: an update may change a key into one that is equal to it and looks
// different, and the row must look the same everywhere.
func TestEqualKeysWithOtherBytes(t *testing.T) {
	p := newest(t, `CREATE TABLE n (k numeric PRIMARY KEY, v int);
		CREATE TABLE f (k float8, l interval, v int, PRIMARY KEY (k, l));`)
	p.done(`INSERT INTO n VALUES (1.0, 1); INSERT INTO f VALUES (0, '1 day', 1)`)
	p.done(`UPDATE n SET k = 1.000; UPDATE f SET k = '-0', l = '24:00:00'`)
	p.same(`SELECT * FROM n`)
	p.same(`SELECT * FROM f`)
	if st := p.status(); st.Careful != 0 {
		t.Errorf("status %+v, want nothing on the careful path", st)
	}
	p.disturb(`UPDATE n SET v = 7; UPDATE f SET v = 7`)
	p.done(`UPDATE n SET k = 1.00, v = 8; UPDATE f SET k = 0, l = '1 day', v = 8`)
	p.same(`SELECT * FROM n`)
	p.same(`SELECT * FROM f`)
	p.disturb(`DELETE FROM n; INSERT INTO n VALUES (1.0000, 9)`)
	p.done(`UPDATE n SET v = 10`)
	p.same(`SELECT * FROM n`)
}

// TestIdentityAlwaysIsUpdated: PostgreSQL lets no UPDATE write a GENERATED ALWAYS AS IDENTITY column, but
// the origin's row has a value there.
func TestIdentityAlwaysIsUpdated(t *testing.T) {
	t.Parallel()
	p := newest(t, `CREATE TABLE t (k text PRIMARY KEY, id int GENERATED ALWAYS AS IDENTITY, v int, big text);
		ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
		CREATE TABLE o (id int GENERATED ALWAYS AS IDENTITY, n int, PRIMARY KEY (id, n));
		CREATE TABLE k (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int)`)
	p.to.Exec(t, `ALTER SEQUENCE t_id_seq RESTART 1000; ALTER SEQUENCE o_id_seq RESTART 1000; ALTER SEQUENCE k_id_seq RESTART 1000`)
	p.done(`INSERT INTO t (k, v, big) SELECT 'k' || i, i, repeat('x', 5000) FROM generate_series(1, 10) i; INSERT INTO o (n) VALUES (1), (2); INSERT INTO k (v) VALUES (1), (2)`)
	p.done(`UPDATE t SET v = 100 WHERE v = 1`)
	p.done(`UPDATE t SET v = v + 1; UPDATE o SET n = n; UPDATE k SET v = 0`)
	if st := p.status(); st.Careful != 0 {
		t.Errorf("status %+v, want nothing on the careful path", st)
	}
	all := func() {
		t.Helper()
		p.same(`SELECT * FROM t ORDER BY k`)
		p.same(`SELECT * FROM o ORDER BY id, n`)
		p.same(`SELECT * FROM k ORDER BY id`)
	}
	all()
	p.done(`UPDATE t SET id = DEFAULT WHERE v < 5; UPDATE o SET id = DEFAULT WHERE n = 1; UPDATE k SET id = DEFAULT WHERE id = 1`)
	all()
	p.done(`UPDATE t SET id = DEFAULT, k = 'new ' || k WHERE v > 9`)
	all()
	p.disturb(`UPDATE t SET v = -1; UPDATE k SET v = -1`)
	p.done(`UPDATE t SET v = 5, big = 'small'; UPDATE k SET v = 5`)
	all()
}

// TestInheritingTables: a change of a parent's row leaves the children's rows alone.
func TestInheritingTables(t *testing.T) {
	t.Parallel()
	p := newest(t, `CREATE TABLE parent (id int PRIMARY KEY, v text); CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent)`)
	p.done(`INSERT INTO parent SELECT i, 'parent' FROM generate_series(1, 10) i; INSERT INTO child SELECT i, 'child' FROM generate_series(1, 10) i`)
	all := func() {
		t.Helper()
		p.same(`SELECT tableoid::regclass, * FROM parent ORDER BY 1, 2`)
	}
	p.done(`UPDATE ONLY parent SET v = 'one' WHERE id = 1; DELETE FROM ONLY parent WHERE id = 2`)
	all()
	p.done(`UPDATE ONLY parent SET v = 'many' WHERE id < 9; DELETE FROM ONLY parent WHERE id > 4`)
	all()
	p.disturb(`UPDATE parent SET v = 'disturbed' WHERE id < 5`)
	p.done(`UPDATE child SET v = 'again' WHERE id < 5; UPDATE ONLY parent SET v = 'careful' WHERE id = 1; DELETE FROM ONLY parent WHERE id = 3`)
	p.done(`UPDATE ONLY parent SET v = 'careful' WHERE id < 5`)
	all()
	p.done(`TRUNCATE ONLY parent`)
	all()
}

// TestKeyThatIsStoredOutOfLine: the new row of an update has no value for such a key, only the old image.
func TestKeyThatIsStoredOutOfLine(t *testing.T) {
	t.Parallel()
	p := newest(t, `CREATE TABLE t (k text PRIMARY KEY, v int, w text); ALTER TABLE t ALTER k SET STORAGE EXTERNAL, ALTER w SET STORAGE EXTERNAL`)
	p.done(`INSERT INTO t SELECT repeat(md5(i::text), 80), i, repeat('w', 3000) FROM generate_series(1, 10) i`)
	p.done(`UPDATE t SET v = v + 1 WHERE v = 1`)
	p.done(`UPDATE t SET v = v + 1`)
	p.same(`SELECT * FROM t ORDER BY k`)
	if got := p.to.Value(t, `SELECT COALESCE(sum(octet_length(keys)), 0) FROM pgbridge.tombstone`); got != "0" {
		t.Errorf("%s bytes of tombstones without a delete", got)
	}
	p.disturb(`UPDATE t SET v = 0`)
	p.done(`UPDATE t SET v = v + 1, w = 'new'`)
	p.same(`SELECT * FROM t ORDER BY k`)
	p.done(`UPDATE t SET k = 'x' || v || k`)
	p.same(`SELECT * FROM t ORDER BY k`)
}

// TestPartitionsOldImage: the replica identity of the root says how pgoutput labels the old image, that
// of the partition what is in it.
func TestPartitionsOldImage(t *testing.T) {
	t.Parallel()
	p := newest(t, `CREATE TABLE t (k int PRIMARY KEY, v int, big text) PARTITION BY RANGE (k);
		CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (100); CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (100) TO (200);
		ALTER TABLE t1 ALTER big SET STORAGE EXTERNAL; ALTER TABLE t2 ALTER big SET STORAGE EXTERNAL;
		ALTER TABLE t REPLICA IDENTITY FULL`)
	p.done(`INSERT INTO t SELECT i, i, repeat('x', 5000) FROM generate_series(1, 150) i`)
	p.done(`UPDATE t SET k = k + 40 WHERE k = 150`)
	p.done(`UPDATE t SET k = 0 WHERE k = 20`)
	p.done(`UPDATE t SET v = 0 WHERE k < 10`)
	p.done(`DELETE FROM t WHERE k = 11`)
	p.same(`SELECT * FROM t ORDER BY k`)
}

// TestKeysOfUserTypesHashAlike: a key's hash must be the same for a row from the origin and for one that
// this node's own capture has read, though the two nodes' object ids differ.
func TestKeysOfUserTypesHashAlike(t *testing.T) {
	schema := `CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TABLE t (k mood[] PRIMARY KEY, v int)`
	s := pgtest.SharedServer(t, pgtest.Newest(t))
	p := newPairOf(t, s, s, schema, `CREATE TYPE dummy AS ENUM (); `+schema)
	tab, err := p.a.catalog.table(t.Context(), "public", "t")
	if err != nil {
		t.Fatal(err)
	}
	conn := p.to.Connect(t)
	var b []byte
	if err := conn.QueryRow(t.Context(), `SELECT array_send('{happy,sad}'::mood[])`).Scan(&b); err != nil {
		t.Fatal(err)
	}
	key := []wire.Value{{Format: wire.Binary, Data: b}}
	later := origin.Version{Stamp: origin.Stamp(1 << 60), Origin: origin.Origin{Node: "b", Epoch: 1}}
	p.a.LocalDelete("public", "t", key, tab.hasher.Hash(key, nil), later, 1, 500)
	p.done(`INSERT INTO t VALUES ('{happy,sad}', 1)`)
	if got := p.to.Value(t, `SELECT count(*) FROM t`); got != "0" {
		t.Error("an insert came through a later delete of its key")
	}
}

// TestTypesThatOnlyShareTheirName are refused, not read wrongly.
func TestTypesThatOnlyShareTheirName(t *testing.T) {
	table := `CREATE TYPE mood AS ENUM ('sad'); CREATE TYPE pair AS (a %, m mood); CREATE TABLE t (id int PRIMARY KEY, p pair)`
	s := pgtest.SharedServer(t, pgtest.Newest(t))
	p := newPairOf(t, s, s, strings.Replace(table, "%", "int8", 1), strings.Replace(table, "%", "float8", 1))
	p.from.Exec(t, `INSERT INTO t VALUES (1, (5, 'sad'))`)
	p.ship(nil, false)
	awaitTrue(t, func() bool { return strings.Contains(p.status().Waiting, "make the type equal on both nodes") })
}

// TestSystemTypesDifferBetweenMajors: the domains of the information schema have object ids below those
// of users, and not the same ones in all versions.
func TestSystemTypesDifferBetweenMajors(t *testing.T) {
	majors := pgtest.Versions(t)
	schema := `CREATE TABLE t (id int PRIMARY KEY, a information_schema.sql_identifier[], v information_schema.yes_or_no)`
	p := newPairOf(t, pgtest.SharedServer(t, majors[0]), pgtest.SharedServer(t, majors[len(majors)-1]), schema, schema)
	p.done(`INSERT INTO t VALUES (1, '{x,NULL}', 'YES')`)
	p.same(`SELECT * FROM t`)
}
