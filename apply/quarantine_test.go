package apply

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// versions feeds an applier with transactions of several origins, each with the stamp that the test gives it. They are
// written in a database whose tables have no unique indexes besides their keys.
type versions struct {
	*pair
	seqs map[origin.Origin]uint64
	base origin.Stamp
	sent map[origin.Origin]uint64
}

func newVersions(t *testing.T, s *pgtest.Server, tables, uniques string) *versions {
	t.Helper()
	p := newPairOf(t, s, s, tables, tables+";"+uniques, "c", "d")
	return &versions{pair: p, seqs: map[origin.Origin]uint64{}, sent: map[origin.Origin]uint64{}, base: origin.StampOf(time.Now())}
}

func node(name string) origin.Origin { return origin.Origin{Node: name, Epoch: 1} }

// write has an origin commit sql as one transaction at a stamp behind base, and waits until it is applied.
func (v *versions) write(name string, at int, sql string) {
	v.t.Helper()
	v.from.Exec(v.t, sql)
	v.ship(name, at)
}

func (v *versions) ship(name string, at int) {
	v.t.Helper()
	o := node(name)
	rows, err := v.src.Query(v.t.Context(), `SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, NULL,
		'proto_version', '1', 'publication_names', 'p', 'binary', 'true')`, v.slot())
	if err != nil {
		v.t.Fatal(err)
	}
	messages, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		v.t.Fatal(err)
	}
	v.seqs[o]++
	stamp := v.base + origin.Stamp(at)
	var changes []byte
	types := map[uint32][2]string{}
	for _, m := range messages {
		switch m[0] {
		case 'Y':
			names := strings.SplitN(string(m[5:]), "\x00", 3)
			types[binary.BigEndian.Uint32(m[1:])] = [2]string{names[0], names[1]}
		case 'R':
			r := parseRelation(m, types)
			v.rels[r.ID] = r
		case 'I', 'U', 'D':
			id := binary.BigEndian.Uint32(m[1:])
			changes = wire.AppendRelation(changes, v.rels[id])
			changes = wire.AppendChange(changes, wire.Kind(m[0]), id, m[5:])
		case 'T':
			id := binary.BigEndian.Uint32(m[6:])
			changes = wire.AppendRelation(changes, v.rels[id])
			changes = wire.AppendTruncate(changes, m[5], []uint32{id})
		}
	}
	begin := wire.Begin{Seq: v.seqs[o], Stamp: stamp, CommitTime: stamp}
	body := append(append(wire.AppendBegin(wire.AppendDeps(nil, nil, nil), begin), changes...), wire.AppendCommit(nil)...)
	v.sent[o]++
	f := &wire.Frame{Header: wire.Header{Cluster: v.to.Name, Sender: name, Origin: o, WriterEpoch: 1, LastSeq: v.seqs[o], LastStamp: stamp}, Body: body}
	if err := v.a.Feed(v.t.Context(), o, v.sent[o], f); err != nil {
		v.t.Fatal(err)
	}
	awaitTrue(v.t, func() bool {
		return v.a.progress.vector().Covers(o, v.seqs[o])
	})
}

// shows waits until the visible rows of a table, and those that are kept out of it, are as expected, by id.
func (v *versions) shows(table, visible, kept string) {
	v.t.Helper()
	var a, b string
	v.t.Cleanup(func() {
		if v.t.Failed() {
			v.t.Logf("table %s: visible %q, kept %q at last; %+v", table, a, b, v.a.Status())
		}
	})
	awaitTrue(v.t, func() bool {
		a = v.to.Value(v.t, `SELECT COALESCE(string_agg(id::text, ' ' ORDER BY id), '') FROM `+table)
		b = v.to.Value(v.t, `SELECT COALESCE(string_agg(id, ' ' ORDER BY id::int), '') FROM (SELECT image[array_position(columns, 'id')] AS id FROM pgbridge.quarantine WHERE name = $1) q`, table)
		return a == visible && b == kept
	})
}

// collide makes two rows of two nodes collide in a table: the first one is kept.
func (v *versions) collide(table string) {
	v.t.Helper()
	v.write("a", 10, "INSERT INTO "+table+" VALUES (1, 7, 'first')")
	v.write("c", 20, "INSERT INTO "+table+" VALUES (2, 7, 'second')")
	v.shows(table, "2", "1")
}

// TestVisibleRowsDoNotDependOnTheOrder is the example of PROOF.md R30: in all orders the same rows are visible.
func TestVisibleRowsDoNotDependOnTheOrder(t *testing.T) {
	t.Parallel()
	orders := []string{"123", "132", "213", "231", "312", "321"}
	tables, uniques := "", ""
	for _, o := range orders {
		tables += "CREATE TABLE t" + o + " (id int PRIMARY KEY, e text, f text);"
		uniques += "CREATE UNIQUE INDEX ON t" + o + " (e); ALTER TABLE t" + o + " ADD UNIQUE (f);"
	}
	v := newVersions(t, pgtest.SharedServer(t, pgtest.Newest(t)), tables, uniques)
	rows := map[rune]string{'1': `(1, 'e1', 'f1')`, '2': `(2, 'e1', 'f2')`, '3': `(3, 'e2', 'f2')`}
	from := map[rune]string{'1': "a", '2': "c", '3': "d"}
	for _, o := range orders {
		table := "t" + o
		for _, n := range o {
			v.write(from[n], int(n-'0'), "INSERT INTO "+table+" VALUES "+rows[n])
		}
		v.shows(table, "1 3", "2")
		if got := v.to.Query(t, `SELECT DISTINCT kind FROM pgbridge.conflict WHERE relation = 'public.' || $1`, table); !slices.Equal(got, []string{"unique"}) {
			t.Errorf("order %s: history has %q", o, got)
		}
		// Without 3, 2 is the latest; without 2, 1 is in nobody's way.
		v.write("d", 10, "DELETE FROM "+table+" WHERE id = 3")
		v.shows(table, "2", "1")
		v.write("c", 11, "DELETE FROM "+table+" WHERE id = 2")
		v.shows(table, "1", "")
	}
}

// TestAllKindsOfUniques has two rows of two nodes collide, and a third one not, on each kind of index and constraint. In
// both orders the later one is visible, and when it is gone or gives the value up, the earlier one, as it was.
func TestAllKindsOfUniques(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, server *pgtest.Server) {
		kinds := []struct{ name, columns, unique, first, second, third, moves string }{
			{"plain", "e int, f text", "UNIQUE (e)", "7, 'x'", "7, 'y'", "8, 'z'", "e = 9"},
			{"twocols", "e int, f text", "UNIQUE (f, e)", "7, 'x'", "7, 'x'", "7, 'z'", "f = 'w'"},
			{"partial", "e int, f text", "INDEX (e) WHERE f <> 'off'", "7, 'x'", "7, 'y'", "7, 'off'", "f = 'off'"},
			{"expression", "e int, f text", "INDEX (lower(f), abs(e))", "7, 'Ab'", "-7, 'aB'", "7, 'b'", "f = 'c'"},
			{"deferrable", "e int, f text", "UNIQUE (e) DEFERRABLE", "7, 'x'", "7, 'y'", "8, 'z'", "e = 9"},
			{"deferred", "e int, f text", "UNIQUE (f) DEFERRABLE INITIALLY DEFERRED", "7, 'x'", "8, 'x'", "8, 'z'", "f = 'w'"},
			{"exclude", "e int4range, f int", "EXCLUDE USING gist (e WITH &&)", "'[1,5)', 1", "'[4,9)', 1", "'[20,30)', 1", "e = '[6,9)'"},
			{"excluded", "e int4range, f text", "EXCLUDE USING gist (e WITH &&) WHERE (f <> 'off') DEFERRABLE INITIALLY DEFERRED", "'[1,5)', 'x'", "'[4,9)', 'x'", "'[4,9)', 'off'", "f = 'off'"},
			{"generated", "e int, f text, g int GENERATED ALWAYS AS (e % 10) STORED", "UNIQUE (g)", "7, 'x'", "17, 'y'", "8, 'z'", "e = 9"},
			{"covering", "e int, f text", "UNIQUE (e) INCLUDE (f)", "7, 'x'", "7, 'y'", "8, 'z'", "e = 9"},
			{"domain", "e d, f text", "UNIQUE (e)", "7, 'x'", "7, 'y'", "8, 'z'", "e = 9"},
			{"nocase", "e text COLLATE nocase, f text", "UNIQUE (e)", "'a', 'x'", "'A', 'y'", "'b', 'z'", "e = 'c'"},
			{"recollated", "e text, f text", "INDEX (e COLLATE nocase)", "'a', 'x'", "'A', 'y'", "'b', 'z'", "e = 'c'"},
			{"nullsequal", "e int, f text", "UNIQUE NULLS NOT DISTINCT (e)", "NULL, 'x'", "NULL, 'y'", "8, 'z'", "e = 9"},
		}
		tables := `CREATE DOMAIN d AS int CHECK (VALUE > 0); CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);`
		uniques := ""
		for _, k := range kinds {
			for _, order := range []string{"fwd", "back"} {
				table := k.name + order
				tables += fmt.Sprintf("CREATE TABLE %s (id int PRIMARY KEY, %s);", table, k.columns)
				if rest, ok := strings.CutPrefix(k.unique, "INDEX"); ok {
					uniques += fmt.Sprintf("CREATE UNIQUE INDEX ON %s %s;", table, rest)
				} else {
					uniques += fmt.Sprintf("ALTER TABLE %s ADD %s;", table, k.unique)
				}
			}
		}
		v := newVersions(t, server, tables, uniques)
		// Each step is one transaction for all tables.
		step := func(name string, at int, orders []string, sql func(i int, table string) string) {
			var all strings.Builder
			for i, k := range kinds {
				for _, order := range orders {
					all.WriteString(sql(i, k.name+order) + ";")
				}
			}
			v.write(name, at, "BEGIN;"+all.String()+"COMMIT")
		}
		insert := func(id int, values func(i int) string) func(int, string) string {
			return func(i int, table string) string {
				return fmt.Sprintf("INSERT INTO %s (id, e, f) VALUES (%d, %s)", table, id, values(i))
			}
		}
		first, second := insert(1, func(i int) string { return kinds[i].first }), insert(2, func(i int) string { return kinds[i].second })
		fwd, back := []string{"fwd"}, []string{"back"}
		step("a", 1, fwd, first)
		step("c", 2, fwd, second)
		step("c", 2, back, second)
		step("a", 1, back, first)
		step("d", 3, []string{"fwd", "back"}, insert(3, func(i int) string { return kinds[i].third }))
		each := func(f func(table string)) {
			for _, k := range kinds {
				f(k.name + "fwd")
				f(k.name + "back")
			}
		}
		each(func(table string) { v.shows(table, "2 3", "1") })
		step("d", 4, []string{"fwd", "back"}, func(i int, table string) string {
			return fmt.Sprintf("UPDATE %s SET %s WHERE id = 2", table, kinds[i].moves)
		})
		each(func(table string) {
			v.shows(table, "1 2 3", "")
			v.same("SELECT * FROM " + table + " ORDER BY id")
		})
	})
}

// TestKeptRowsAreVersions: what other nodes do to a row that is kept here meets it as it would meet a visible one.
func TestKeptRowsAreVersions(t *testing.T) {
	t.Parallel()
	tables, uniques := "", ""
	names := []string{"moves", "stays", "removed", "older", "newkey", "wiped", "again", "swap", "alone"}
	for _, n := range names {
		tables += "CREATE TABLE " + n + " (id int PRIMARY KEY, e int, f text);"
		uniques += "ALTER TABLE " + n + " ADD UNIQUE (e);"
	}
	v := newVersions(t, pgtest.SharedServer(t, pgtest.Newest(t)), tables, uniques)
	v.collide("moves") // to a value that is free
	v.write("d", 30, "UPDATE moves SET e = 8 WHERE id = 1")
	v.shows("moves", "1 2", "")
	v.same("SELECT * FROM moves ORDER BY id")

	v.collide("stays") // an update that leaves the value makes it the later row
	v.write("d", 30, "UPDATE stays SET f = 'later' WHERE id = 1")
	v.shows("stays", "1", "2")

	v.collide("removed")
	v.write("d", 30, "DELETE FROM removed WHERE id = 1")
	v.shows("removed", "2", "")
	v.write("c", 31, "DELETE FROM removed WHERE id = 2")
	v.shows("removed", "", "")

	v.collide("older") // than the kept version: it loses, and the history says so
	v.write("d", 5, "UPDATE older SET e = 99 WHERE id = 1")
	v.shows("older", "2", "1")
	if got := v.to.Query(t, `SELECT kind, outcome, local_row->>'f', remote_row->>'e' FROM pgbridge.conflict WHERE relation = 'public.older' AND kind <> 'unique'`); !slices.Equal(got, []string{"update_update|local wins|first|99"}) {
		t.Errorf("history %q", got)
	}

	v.collide("newkey") // the kept row gets another key, and with it comes free
	v.write("d", 30, "UPDATE newkey SET id = 5, e = 6 WHERE id = 1")
	v.shows("newkey", "2 5", "")

	v.collide("wiped")
	v.write("d", 30, "TRUNCATE wiped")
	v.shows("wiped", "", "")

	v.collide("again") // one that was kept for a while still loses to what is later than its version
	v.write("c", 30, "DELETE FROM again WHERE id = 2")
	v.shows("again", "1", "")
	v.write("d", 5, "UPDATE again SET f = 'too old' WHERE id = 1")
	v.write("d", 9, "DELETE FROM again WHERE id = 1")
	v.shows("again", "1", "")
	if got := v.to.Value(t, "SELECT f FROM again"); got != "first" {
		t.Errorf("the row that came back became %q", got)
	}
	v.write("c", 40, "INSERT INTO again VALUES (1, 7, 'later')")
	if got := v.to.Value(t, "SELECT f FROM again"); got != "later" {
		t.Errorf("the row that came back stayed %q", got)
	}

	v.write("a", 10, "INSERT INTO swap VALUES (1, 1, 'x'), (2, 2, 'x'), (3, 3, 'x')") // all on the way collide
	v.from.Exec(t, "BEGIN; UPDATE swap SET e = 2 WHERE id = 1; UPDATE swap SET e = 3 WHERE id = 2; UPDATE swap SET e = 1 WHERE id = 3; COMMIT")
	v.ship("c", 20)
	v.shows("swap", "1 2 3", "")
	v.same("SELECT * FROM swap ORDER BY id")
	// A row of the transaction that collides with another one of it on the way is there when the transaction is.
	v.from.Exec(t, "BEGIN; UPDATE swap SET e = 9 WHERE id = 1; UPDATE swap SET e = 9 WHERE id = 2; UPDATE swap SET e = 8 WHERE id = 1; COMMIT")
	v.ship("c", 30)
	v.shows("swap", "1 2 3", "")
	v.same("SELECT * FROM swap ORDER BY id")
	if got := v.to.Value(t, "SELECT count(DISTINCT xmin::text) FROM swap WHERE id < 3"); got != "1" {
		t.Error("the transaction was not visible at once")
	}
	// No conflict is what the author had seen and has moved himself.
	v.from.Exec(t, "BEGIN; UPDATE swap SET e = 90 WHERE id = 1; UPDATE swap SET e = 91 WHERE id = 2; COMMIT")
	v.ship("a", 40)
	v.from.Exec(t, "BEGIN; UPDATE swap SET e = 91 WHERE id = 1; UPDATE swap SET e = 90 WHERE id = 2; COMMIT")
	v.ship("a", 50)
	v.shows("swap", "1 2 3", "")
	v.same("SELECT * FROM swap ORDER BY id")
	v.write("a", 60, "INSERT INTO alone VALUES (1, 7, 'first')") // by somebody who does not have the constraint
	v.write("a", 70, "INSERT INTO alone VALUES (2, 7, 'second')")
	v.shows("alone", "2", "1")
	wantRows(t, "history", v.to.Query(t, `SELECT relation, kind, outcome, local_row->>'id', remote_row->>'id' FROM pgbridge.conflict
		WHERE kind = 'unique' AND remote_stamp >= $1 AND relation IN ('public.swap', 'public.alone')`, int64(v.base+50)),
		"public.alone|unique|remote wins|1|2")
}

// TestQuarantineOutlivesARestart: what is kept, and what has come back, are as they were.
func TestQuarantineOutlivesARestart(t *testing.T) {
	t.Parallel()
	v := newVersions(t, pgtest.SharedServer(t, pgtest.Newest(t)), `CREATE TABLE t (id int PRIMARY KEY, e int, f text)`, `ALTER TABLE t ADD UNIQUE (e)`)
	v.write("a", 10, "INSERT INTO t VALUES (1, 7, 'first'), (11, 8, 'eleven')")
	v.write("c", 20, "INSERT INTO t VALUES (2, 7, 'second'), (12, 8, 'twelve')")
	v.write("c", 21, "DELETE FROM t WHERE id = 12")
	v.shows("t", "2 11", "1")
	if err := v.stop(); err != nil && !strings.Contains(err.Error(), "canceled") {
		t.Fatal(err)
	}
	v.start("c", "d")
	v.shows("t", "2 11", "1")
	v.write("d", 5, "UPDATE t SET f = 'too old' WHERE id = 11")
	v.write("c", 30, "DELETE FROM t WHERE id = 2")
	v.shows("t", "1 11", "")
	v.from.Exec(t, "UPDATE t SET f = 'eleven' WHERE id = 11") // which has lost
	v.same("SELECT * FROM t ORDER BY id")
}

// TestLocalWritesMeetKeptRows: local sessions do not see kept rows. A row that they insert under the key of one is later,
// and so is its delete; a delete of the row that is in the way lets the kept one come back.
func TestLocalWritesMeetKeptRows(t *testing.T) {
	t.Parallel()
	tables, uniques := "", ""
	for _, n := range []string{"inserted", "deleted", "freed", "returned"} {
		tables += "CREATE TABLE " + n + " (id int PRIMARY KEY, e int, f text);"
		uniques += "ALTER TABLE " + n + " ADD UNIQUE (e);"
	}
	v := newVersions(t, pgtest.SharedServer(t, pgtest.Newest(t)), tables, uniques)
	seq := uint64(0)
	deleted := func(table string, id int) {
		t.Helper()
		tab, err := v.a.catalog.table(t.Context(), "public", table)
		if err != nil {
			t.Fatal(err)
		}
		seq++
		key := intKey(id)
		v.a.LocalDelete("public", table, key, tab.hasher.Hash(key, nil), origin.Version{Stamp: v.base + 1000 + origin.Stamp(seq), Origin: node("b")}, seq, 500+seq)
	}
	v.collide("inserted")
	v.to.Exec(t, "INSERT INTO inserted VALUES (1, 9, 'local')")
	v.write("d", 30, "UPDATE inserted SET f = 'remote' WHERE id = 2") // wakes up whoever looks
	tab, err := v.a.catalog.table(t.Context(), "public", "inserted")
	if err != nil {
		t.Fatal(err)
	}
	v.a.kept.touch(tab.hasher.Hash(intKey(1), nil))
	v.shows("inserted", "1 2", "")
	if got := v.to.Value(t, "SELECT f FROM inserted WHERE id = 1"); got != "local" {
		t.Errorf("the local row became %q", got)
	}

	v.collide("deleted") // as capture tells of an insert and a delete that apply has not met
	deleted("deleted", 1)
	v.shows("deleted", "2", "")

	v.collide("freed")
	v.to.Exec(t, "DELETE FROM freed WHERE id = 2")
	deleted("freed", 2)
	v.shows("freed", "1", "")

	v.collide("returned") // and is beaten by a local delete of which capture tells only then
	v.write("c", 30, "DELETE FROM returned WHERE id = 2")
	v.shows("returned", "1", "")
	deleted("returned", 1)
	v.shows("returned", "", "")
}

// TestParkedRowsMeetKeptOnes: a transaction that was parked takes its place among the rows by its own stamp when it is tried
// again, and so do those that were kept meanwhile.
func TestParkedRowsMeetKeptOnes(t *testing.T) {
	t.Parallel()
	v := newVersions(t, pgtest.SharedServer(t, pgtest.Newest(t)), `CREATE TABLE t (id int PRIMARY KEY, e int, f text)`,
		`ALTER TABLE t ADD UNIQUE (e), ADD CHECK (f <> 'bad')`)
	v.write("a", 10, "INSERT INTO t VALUES (1, 7, 'bad')")
	v.write("d", 11, "INSERT INTO t VALUES (3, 8, 'third'), (5, 9, 'fifth')")
	v.write("a", 12, "INSERT INTO t VALUES (4, 8, 'bad'), (6, 10, 'bad')")
	v.write("c", 20, "INSERT INTO t VALUES (2, 7, 'second'), (7, 9, 'seventh')")
	v.shows("t", "2 3 7", "5")
	wantRows(t, "parked", v.parkedHere(), "a:1 23514", "a:2 23514")
	v.to.Exec(t, `ALTER TABLE t DROP CONSTRAINT t_f_check`)
	v.request("a:1", requestRetry)
	v.shows("t", "2 3 7", "1 5")
	v.request("a:2", requestRetry)
	v.shows("t", "2 4 6 7", "1 3 5")
	wantRows(t, "parked", v.parkedHere())
	v.write("c", 30, "DELETE FROM t WHERE id = 2")
	v.write("a", 31, "DELETE FROM t WHERE id = 4")
	v.shows("t", "1 3 6 7", "5")
	v.write("d", 32, "UPDATE t SET f = 'second' WHERE id = 1") // a row that is back is a row like any other
	if got := v.to.Value(t, "SELECT f FROM t WHERE id = 1"); got != "second" {
		t.Errorf("the row that came back is %q", got)
	}
}
