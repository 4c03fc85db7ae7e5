package apply

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
)

// TestGuard asks of a row whether a transaction of a, which has seen c up to stamp 100, may write it: for each who
// could have written the row, and with markers before and behind it (PROOF.md R11, R28).
func TestGuard(t *testing.T) {
	const none = 0 // no marker proves anything
	db := pgtest.SharedServer(t, pgtest.Newest(t)).NewDatabase(t)
	db.Exec(t, `CREATE TABLE t (id int PRIMARY KEY)`)
	g := guard{}
	roident := func(name string) uint32 {
		name = db.Name + "_" + name
		id, err := strconv.Atoi(db.Value(t, `SELECT pg_replication_origin_create($1)`, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { // the session that had it may still be ending
			db.Exec(t, `SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
			db.Exec(t, `SELECT pg_replication_origin_drop($1)`, name)
		})
		return uint32(id)
	}
	c := origin.Origin{Node: "c", Epoch: 1}
	g.self = roident("a")
	g.others, g.ids = []origin.Origin{c}, []uint32{roident("c")}
	roident("unknown")
	deps := origin.Vector{{Origin: c, Seq: 1, Stamp: 100}}
	next := func() uint32 { // an id above all that were given, as a marker's xmin
		id, err := strconv.ParseUint(db.Value(t, `SELECT pg_current_xact_id()::text::bigint + 1`), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return uint32(id)
	}
	asker := db.Connect(t)
	for n, tt := range []struct {
		writer string // empty: a local session
		stamp  int64
		// may it be written if the newest marker within the dependencies is: none; before the row; behind it
		// for local sessions alone; behind it for everybody?
		want [4]bool
	}{
		{"", 0, [4]bool{false, false, true, true}},
		{"a", 500, [4]bool{true, true, true, true}},
		{"c", 100, [4]bool{true, true, true, true}},
		{"c", 101, [4]bool{false, false, false, true}},
		{"unknown", 1, [4]bool{false, false, false, true}},
	} {
		before := next()
		conn := db.Connect(t)
		exec := func(sql string, args ...any) {
			if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
				t.Fatal(err)
			}
		}
		if tt.writer != "" {
			exec(`SELECT pg_replication_origin_session_setup($1)`, db.Name+"_"+tt.writer)
		}
		exec(`BEGIN`)
		exec(`INSERT INTO t VALUES ($1)`, n)
		if tt.writer != "" {
			exec(fmt.Sprintf(`SELECT pg_replication_origin_xact_setup('0/0', timestamptz '2000-01-01 00:00:00Z' + interval '%d microseconds')`, tt.stamp))
		}
		exec(`COMMIT`)
		conn.Close(t.Context())
		behind := next()
		for i, marks := range [4]struct{ mark, within uint32 }{{none, none}, {before, before}, {behind, before}, {behind, behind}} {
			check := func(g guard, sql string) {
				var values [][]byte
				var formats []int16
				for _, p := range g.params(deps, marks.mark, marks.within) {
					values, formats = append(values, p.value), append(formats, int16(p.format))
				}
				r := asker.PgConn().ExecParams(t.Context(), fmt.Sprintf(`SELECT COALESCE(%s, false) FROM t WHERE id = %d`, sql, n), values, g.types(), formats, nil).Read()
				if r.Err != nil || len(r.Rows) != 1 {
					t.Fatalf("%d rows: %v", len(r.Rows), r.Err)
				}
				if got := string(r.Rows[0][0]) == "t"; got != tt.want[i] {
					t.Errorf("writer %q, stamp %d, markers %+v: %v by %s", tt.writer, tt.stamp, marks, got, sql)
				}
			}
			check(g, g.sql(1))
			check(g, g.brief(1))
			if two := (guard{self: g.self}); tt.writer == "" || tt.writer == "a" {
				check(two, two.sql(1))
				check(two, two.brief(1))
			}
		}
	}
}

// TestSchemaChangesHideNobody: rows that a schema change leaves where they are still tell who wrote them, unless something else may
// have rewritten the table.
func TestSchemaChangesHideNobody(t *testing.T) {
	db := pgtest.New(t)
	if err := Setup(t.Context(), pgtest.Connect(t, db.DSN), SetupOptions{Cluster: "c", Node: "a"}); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, `CREATE TABLE t (id int PRIMARY KEY, n int)`)
	db.Exec(t, `CREATE TABLE other (id int PRIMARY KEY)`)
	db.Exec(t, `INSERT INTO t VALUES (1, 1)`)
	const told = `SELECT coalesce(string_agg(id::text, ',' ORDER BY id), '') FROM t WHERE `
	for _, x := range []struct{ sql, want string }{
		{`SELECT pgbridge.ddl('ALTER TABLE t ADD COLUMN a int')`, "1"},
		{`INSERT INTO t VALUES (2, 1)`, "1,2"},
		{`SELECT pgbridge.ddl('ALTER TABLE t ADD COLUMN b int DEFAULT 7')`, "1,2"},
		{`SELECT pgbridge.ddl('ALTER TABLE other ADD COLUMN b int DEFAULT 7')`, "1,2"},
		{`ALTER TABLE t ALTER n TYPE bigint`, ""}, // rewrites it
		{`SELECT pgbridge.ddl('ALTER TABLE t ADD COLUMN c int')`, ""},
		{`INSERT INTO t VALUES (3, 1)`, "3"},
		{`SELECT pgbridge.ddl('ALTER TABLE t DROP COLUMN c; ALTER TABLE t ADD COLUMN d text', true)`, "3"},
		{`ALTER TABLE t ALTER a TYPE bigint`, ""},
		{`INSERT INTO t VALUES (4, 1)`, "4"},
		{`SELECT pgbridge.ddl('ALTER TABLE t ADD COLUMN e int')`, "4"},
		{`ALTER TABLE t ADD COLUMN f int`, ""}, // it may have been a rewrite, for all that is known
		{`SELECT pgbridge.ddl('ALTER TABLE t ADD COLUMN g int')`, ""},
	} {
		db.Exec(t, x.sql)
		if got := db.Value(t, told+genuine); got != x.want {
			t.Errorf("after %s, rows %q tell who wrote them, want %q", x.sql, got, x.want)
		}
	}
	if got := db.Value(t, told+untouched); got != "" {
		t.Errorf("rows %q tell it without the table of schema changes", got)
	}
}
