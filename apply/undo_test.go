package apply

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// openHistory opens the history of the node that applies.
func openHistory(t *testing.T, db *pgtest.Database, more string) *History {
	t.Helper()
	h, err := OpenHistory(t.Context(), HistoryOptions{DSN: db.DSN + more, Cluster: db.Name, Node: "b", ClockError: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close(context.Background()) })
	return h
}

func (p *pair) history() *History { return openHistory(p.t, p.to, "") }

// clash has both nodes write before either hears of the other; the second one wins.
func (p *pair) clash(first *pgtest.Database, firstSQL, secondSQL string) {
	p.t.Helper()
	second := p.to
	if first == p.to {
		second = p.from
	}
	first.Exec(p.t, firstSQL)
	second.Exec(p.t, secondSQL)
	p.ship(nil, false)
	p.await()
}

// newest is the id of the last conflict.
func (p *pair) newest() int64 {
	p.t.Helper()
	id, err := strconv.ParseInt(p.to.Value(p.t, `SELECT max(id) FROM pgbridge.conflict`), 10, 64)
	if err != nil {
		p.t.Fatal(err)
	}
	return id
}

// undo brings the loser of the last conflict back.
func (p *pair) undo(h *History) *Undone {
	p.t.Helper()
	u, err := h.Undo(p.t.Context(), p.newest(), UndoOptions{By: "tester"})
	if err != nil {
		p.t.Fatalf("undo: %v", err)
	}
	return u
}

// TestUndoOfEachKind: whoever lost, and whatever it was, comes back, by a write that has no origin.
func TestUndoOfEachKind(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		p := newPair(t, s, tableT)
		p.do(`INSERT INTO t SELECT i, 'x', i FROM generate_series(1, 9) i`)
		h := p.history()
		for _, c := range []struct {
			kind, outcome string
			here, there   string // what each side does
			want          string // of the loser
		}{
			{"insert_insert", remoteWins, `INSERT INTO t VALUES (101, 'here', 1.10)`, `INSERT INTO t VALUES (101, 'there', 2)`, "101|here|1.10"},
			{"insert_insert", localWins, `INSERT INTO t VALUES (102, 'here', 1)`, `INSERT INTO t VALUES (102, 'there', 2.20)`, "102|there|2.20"},
			{"update_update", remoteWins, `UPDATE t SET v = 'here' WHERE id = 1`, `UPDATE t SET v = 'there', n = 7 WHERE id = 1`, "1|here|1"},
			{"update_update", localWins, `UPDATE t SET v = 'here' WHERE id = 2`, `UPDATE t SET v = NULL, n = 7 WHERE id = 2`, "2|∅|7"},
			{"delete_update", remoteWins, `UPDATE t SET v = 'here' WHERE id = 3`, `DELETE FROM t WHERE id = 3`, "3|here|3"},
			{"delete_update", localWins, `UPDATE t SET v = 'here' WHERE id = 4`, `DELETE FROM t WHERE id = 4`, ""},
		} {
			if c.outcome == remoteWins {
				p.clash(p.to, c.here, c.there)
			} else {
				p.clash(p.from, c.there, c.here)
			}
			d, err := h.Show(t.Context(), p.newest())
			if err != nil || d.Kind != c.kind || d.Outcome != c.outcome {
				t.Fatalf("%s, %s: the last conflict is %+v, %v", c.kind, c.outcome, d, err)
			}
			u := p.undo(h)
			id := strings.TrimPrefix(u.Key.String(), "id=")
			if got := strings.Join(p.to.Query(t, `SELECT * FROM t WHERE id = $1::text::int`, id), ","); got != c.want || u.Deleted != (c.want == "") {
				t.Errorf("%s, %s: row %s is %q, want %q; %+v", c.kind, c.outcome, id, got, c.want, u)
			}
		}
		if got := p.to.Value(t, `SELECT count(*) FROM t, pg_xact_commit_timestamp_origin(xmin) c WHERE c.roident = 0 AND v IS DISTINCT FROM 'x'`); got != "5" {
			t.Errorf("%s rows were written without an origin, want 5", got)
		}
		if got := p.to.Value(t, `SELECT count(*) FROM pgbridge.conflict WHERE undone_at > now() - interval '1 hour' AND undone_by LIKE 'tester as %'`); got != "6" {
			t.Errorf("%s conflicts are noted as undone, want 6", got)
		}
	})
}

// loseByHand records a conflict by hand: the images are SQL for a row, empty for none.
func loseByHand(t *testing.T, db *pgtest.Database, relation, kind, outcome, local, remote string) int64 {
	t.Helper()
	json := func(row string) string {
		if row == "" {
			return "NULL"
		}
		return "(SELECT row_to_json(r.*) FROM (" + row + ") r)"
	}
	id := db.Value(t, fmt.Sprintf(`INSERT INTO pgbridge.conflict (relation, kind, outcome, remote_origin, remote_seq, remote_stamp, local_origin, local_stamp, local_row, remote_row)
		VALUES ('%s', '%s', '%s', 'a', 1, 20000, 'b', 10000, %s, %s) RETURNING id`, relation, kind, outcome, json(local), json(remote)))
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// setUp makes a database of node b with a history that has nothing yet.
func setUp(t *testing.T, s *pgtest.Server, schema string) *pgtest.Database {
	t.Helper()
	db := s.NewDatabase(t)
	db.Exec(t, schema)
	if err := Setup(t.Context(), pgtest.Connect(t, db.DSN), SetupOptions{Cluster: db.Name, Node: "b", Peers: []string{"a"}}); err != nil {
		t.Fatal(err)
	}
	return db
}

// TestUndoOfDeletes: kinds whose local side is a delete.
func TestUndoOfDeletes(t *testing.T) {
	db := setUp(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT+`; INSERT INTO t VALUES (1, 'there', 1), (2, 'there', 2), (5, 'cut', 5)`)
	h := openHistory(t, db, "")
	for _, c := range []struct {
		kind, outcome, local, remote string
		id                           int
		want                         string
	}{
		{"update_delete", remoteWins, "", `SELECT 1 AS id, 'there' AS v, 1 AS n`, 1, ""},
		{"insert_delete", remoteWins, "", `SELECT 2 AS id, 'there' AS v, 2 AS n`, 2, ""},
		{"update_delete", localWins, "", `SELECT 3 AS id, 'there' AS v, 3.0 AS n`, 3, "3|there|3.0"},
		{"insert_delete", localWins, "", `SELECT 4 AS id, NULL AS v, NULL AS n`, 4, "4|∅|∅"},
		{"truncate_update", localWins, `SELECT 5 AS id, 'cut' AS v, 5 AS n`, "", 5, ""},
		{"truncate_update", remoteWins, `SELECT 6 AS id, 'cut' AS v, 6 AS n`, "", 6, "6|cut|6"},
	} {
		u, err := h.Undo(t.Context(), loseByHand(t, db, "public.t", c.kind, c.outcome, c.local, c.remote), UndoOptions{})
		if err != nil {
			t.Errorf("%s, %s: %v", c.kind, c.outcome, err)
			continue
		}
		if got := strings.Join(db.Query(t, `SELECT * FROM t WHERE id = $1`, c.id), ","); got != c.want || u.Key.String() != fmt.Sprintf("id=%d", c.id) {
			t.Errorf("%s, %s: %q, want %q; %+v", c.kind, c.outcome, got, c.want, u)
		}
	}
}

// everyType has a column of each kind of type, the values of two versions of a row, and no key.
const everyType = `
CREATE TYPE mood AS ENUM ('sad', 'it''s "fine"'); CREATE DOMAIN price AS numeric(8,3) CHECK (VALUE > 0); CREATE DOMAIN ints AS int[];
CREATE TYPE pair AS (n numeric, t text[], m mood); CREATE DOMAIN d_pair AS pair;
CREATE TABLE every (id int PRIMARY KEY, i2 int2, i8 int8, nu numeric, ns numeric(10,4), f4 float4, f8 float8, b bool, t text, vc varchar(9), bc char(5), c1 "char", by bytea,
	d date, ts timestamp, tz timestamptz, ti time, tt timetz, iv interval, u uuid, j json, jb jsonb, ia int[], ta text[], na numeric[], ba bytea[], en mood, ea mood[],
	co pair, ca pair[], dn price, di ints, dc d_pair, r int4range, rn numrange, mr nummultirange, ip inet, ci cidr, ma macaddr, bi bit(3), vb varbit, po point, tv tsvector, mo money, nm name)`

func everyVersions() [2]string {
	return [2]string{
		`-1, 9007199254740993, 'NaN', 1.5, 'NaN', '-0', true, E'a''b\n\t"\\ ü 🙂', 'é', 'ab', 'x', '\x00ff5c', '4713-01-01 BC', '0044-03-15 12:00:00.000001 BC', '2026-11-24 10:00:00.123456+02', '24:00', '10:00:00.5+05:30',
		'1 year -2 mons 3 days -04:05:06.789', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', E'{"b" : 1.0,\n "b":2,  "a":[1 , null]}', '{"n": 123456789012345678901234567890.10, "u": "\u00fc"}', '{{1,NULL},{3,4}}', ARRAY['', 'NULL', 'a,"b\', NULL], '{1.10,NaN}',
		ARRAY['\x00'::bytea, ''], 'it''s "fine"', ARRAY['sad', NULL]::mood[], ROW(1.10, ARRAY['x', NULL], 'sad'), ARRAY[ROW(2.0, '{}', NULL), NULL]::pair[], 1.5, '{7,8}', ROW(NULL, NULL, NULL), '[1,5)', 'empty',
		'{[1.0,2.0),[3,)}', '10.0.0.1/8', '10.0.0.0/8', '08:00:2b:01:02:03', B'101', B'', '(1.5,-0)', $$'it''s':1A b:2,3$$, '-12.34', 'N'`,
		`NULL, -1, 1e-20, -0.0001, 1.1, 'Infinity', NULL, '', NULL, '', NULL, '', 'infinity', '-infinity', 'infinity', '00:00:00.000001', '00:00+15', '0', NULL, '[]', 'true', '{}', '{}', NULL, '{}', NULL, '{}',
		NULL, '{}', NULL, NULL, ROW(1, '{{a,b},{c,d}}', 'sad'), NULL, '(,1.0]', '{}', '::1', NULL, NULL, B'000', B'1', NULL, '', NULL, ''`,
	}
}

// TestUndoOfEachType: every value comes back as it was, out of the image of either side.
func TestUndoOfEachType(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		p := newPair(t, s, everyType)
		h := p.history()
		for n, values := range everyVersions() {
			for i, first := range []*pgtest.Database{p.to, p.from} {
				id := 10*n + i
				p.clash(first, fmt.Sprintf(`INSERT INTO every VALUES (%d, %s)`, id, values), fmt.Sprintf(`INSERT INTO every (id, t) VALUES (%d, 'wins')`, id))
				if got := p.to.Value(t, `SELECT t FROM every WHERE id = $1`, id); got != "wins" {
					t.Fatalf("the schedule does not lead there: row %d has %q", id, got)
				}
				p.undo(h)
				// A third database has never seen anything of it but the INSERT itself.
				p.to.Exec(t, fmt.Sprintf(`CREATE TABLE want_%d (LIKE every); INSERT INTO want_%d VALUES (%d, %s)`, id, id, id, values))
				want, got := p.to.Value(t, fmt.Sprintf(`SELECT w::text FROM want_%d w`, id)), p.to.Value(t, `SELECT e::text FROM every e WHERE id = $1`, id)
				if got != want {
					t.Errorf("row %d comes back as\n%s, was\n%s", id, got, want)
				}
				if same := p.to.Value(t, fmt.Sprintf(`SELECT w *= e FROM want_%d w, every e WHERE e.id = $1`, id), id); same != "t" {
					t.Errorf("row %d has other bytes than it had", id)
				}
			}
		}
	})
}

// TestWhatJSONCannotTellApart holds docs/history.md to what it says of the limits.
func TestWhatJSONCannotTellApart(t *testing.T) {
	db := setUp(t, pgtest.SharedServer(t, pgtest.Newest(t)), `CREATE TABLE t (id int PRIMARY KEY, j jsonb, a int[], ja jsonb[]); CREATE EXTENSION hstore; CREATE TABLE h (id int PRIMARY KEY, h hstore)`)
	h := openHistory(t, db, "")
	undo := func(relation, row string, o UndoOptions) error {
		_, err := h.Undo(t.Context(), loseByHand(t, db, relation, "update_delete", localWins, "", row), o)
		return err
	}
	if err := undo("public.t", `SELECT 1 AS id, 'null'::jsonb AS j, '[5:6]={1,2}'::int[] AS a, ARRAY['1', '{"a": [2]}']::jsonb[] AS ja`, UndoOptions{}); err != nil {
		t.Error(err)
	}
	if got := db.Value(t, `SELECT * FROM t`); got != `1|∅|{1,2}|{1,"{\"a\": [2]}"}` {
		t.Errorf("row %s", got)
	}
	nested := `SELECT 2 AS id, NULL AS j, NULL AS a, ARRAY['[1]', '[2]']::jsonb[] AS ja`
	if err := undo("public.t", nested, UndoOptions{}); err == nil || !strings.Contains(err.Error(), `JSON cannot tell whether the arrays in "ja" were elements or dimensions`) {
		t.Errorf("arrays in a jsonb[]: %v", err)
	}
	if err := undo("public.t", nested, UndoOptions{Force: true}); err != nil || db.Value(t, `SELECT ja FROM t WHERE id = 2`) != "{{1},{2}}" {
		t.Errorf("arrays in a jsonb[], by force: %v", err)
	}
	if err := undo("public.h", `SELECT 1 AS id, 'a=>1'::hstore AS h`, UndoOptions{}); err == nil || !strings.Contains(err.Error(), `turn what was recorded into a row of "public"."h": ERROR: syntax error in hstore`) {
		t.Errorf("hstore: %v", err)
	}
}

// TestUndoInTablesOfEachShape: identity and generated columns, partitions, keys that look different, no primary key.
func TestUndoInTablesOfEachShape(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		p := newPair(t, s, `CREATE DOMAIN d_key AS int;
			CREATE TABLE always (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text, g text GENERATED ALWAYS AS ('<' || v || '>') STORED);
			CREATE TABLE beside (no int GENERATED ALWAYS AS IDENTITY, id d_key PRIMARY KEY, v text);
			CREATE TABLE parts (id int, region text COLLATE "C", v text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
			CREATE TABLE parts_x PARTITION OF parts FOR VALUES IN ('x'); CREATE TABLE parts_rest PARTITION OF parts DEFAULT;
			CREATE SCHEMA "Of.App"; CREATE TABLE "Of.App"."T""1" (k numeric NOT NULL UNIQUE, "V v" text); ALTER TABLE "Of.App"."T""1" REPLICA IDENTITY FULL;
			CREATE TABLE toast (id int PRIMARY KEY, big text, v text); ALTER TABLE toast ALTER big SET STORAGE EXTERNAL`)
		h := p.history()
		p.do(`INSERT INTO always (v) VALUES ('old'), ('old'); INSERT INTO parts VALUES (1, 'x', 'old'), (2, 'y', 'old'); INSERT INTO "Of.App"."T""1" VALUES (1.0, 'old');
			INSERT INTO toast VALUES (1, repeat('x', 9000), 'old')`)
		for _, c := range []struct {
			name, first, second string
			rows, want          string
		}{
			{"identity as key", `UPDATE always SET v = 'lost' WHERE id = 1`, `UPDATE always SET v = 'won' WHERE id = 1`, `SELECT * FROM always WHERE id = 1`, "1|lost|<lost>"},
			{"identity as key, deleted", `UPDATE always SET v = 'lost' WHERE id = 2`, `DELETE FROM always WHERE id = 2`, `SELECT * FROM always WHERE id = 2`, "2|lost|<lost>"},
			{"identity beside the key", `INSERT INTO beside OVERRIDING SYSTEM VALUE VALUES (1000, 7, 'lost')`, `INSERT INTO beside OVERRIDING SYSTEM VALUE VALUES (2000, 7, 'won')`,
				`SELECT * FROM beside`, "1000|7|lost"},
			{"partition", `UPDATE parts SET v = 'lost' WHERE id = 1`, `UPDATE parts SET v = 'won' WHERE id = 1`, `SELECT * FROM parts_x`, "1|x|lost"},
			{"partition, deleted", `UPDATE parts SET v = 'lost' WHERE id = 2`, `DELETE FROM parts WHERE id = 2`, `SELECT * FROM parts_rest`, "2|y|lost"},
			{"spelling", `UPDATE "Of.App"."T""1" SET k = 1.00, "V v" = 'lost'`, `UPDATE "Of.App"."T""1" SET k = 1.000, "V v" = 'won'`, `SELECT * FROM "Of.App"."T""1"`, "1.00|lost"},
		} {
			for _, first := range []*pgtest.Database{p.to, p.from} {
				if first == p.from && strings.HasPrefix(c.second, "DELETE") {
					continue // there is no capture that would tell of a delete here
				}
				if first == p.from { // both nodes begin with the same row again
					p.from.Exec(t, `TRUNCATE always, beside, parts, "Of.App"."T""1" RESTART IDENTITY; INSERT INTO always (v) VALUES ('old'), ('old');
						INSERT INTO parts VALUES (1, 'x', 'old'), (2, 'y', 'old'); INSERT INTO "Of.App"."T""1" VALUES (1.0, 'old')`)
					p.ship(nil, false)
					p.await()
				}
				before := p.newestOr0()
				p.clash(first, c.first, c.second)
				if p.newestOr0() == before {
					t.Fatalf("%s: there was no conflict", c.name)
				}
				p.undo(h)
				if got := strings.Join(p.to.Query(t, c.rows), ","); got != c.want {
					t.Errorf("%s: %q, want %q", c.name, got, c.want)
				}
			}
		}
	})
}

func (p *pair) newestOr0() int64 {
	p.t.Helper()
	id, err := strconv.ParseInt(p.to.Value(p.t, `SELECT COALESCE(max(id), 0) FROM pgbridge.conflict`), 10, 64)
	if err != nil {
		p.t.Fatal(err)
	}
	return id
}

// TestUndoLeavesWhatWasNotSent: a remote image without a large value that did not change.
func TestUndoLeavesWhatWasNotSent(t *testing.T) {
	db := setUp(t, pgtest.SharedServer(t, pgtest.Newest(t)), `CREATE TABLE t (no int GENERATED ALWAYS AS IDENTITY, id int PRIMARY KEY, big text NOT NULL DEFAULT 'small', v text);
		INSERT INTO t (id, big, v) VALUES (1, repeat('x', 9000), 'won'), (2, repeat('y', 9000), 'won')`)
	h := openHistory(t, db, "")
	won := `SELECT * FROM t WHERE id = %d`
	for _, c := range []struct{ id, no int }{{1, 1}, {2, 77}} { // as it is, and with another identity
		id := loseByHand(t, db, "public.t", "update_update", localWins, fmt.Sprintf(won, c.id), fmt.Sprintf(`SELECT %d AS no, %d AS id, 'lost' AS v`, c.no, c.id))
		if _, err := h.Undo(t.Context(), id, UndoOptions{}); err != nil {
			t.Error(err)
		}
		if got, want := db.Value(t, `SELECT no, length(big), v FROM t WHERE id = $1`, c.id), fmt.Sprintf("%d|9000|lost", c.no); got != want {
			t.Errorf("row %q, want %q", got, want)
		}
	}
	gone := loseByHand(t, db, "public.t", "update_delete", localWins, "", `SELECT 3 AS no, 3 AS id, 'lost' AS v`)
	requireRefused(t, h, gone, UndoOptions{}, `row id=3 of "public"."t" is not there any more, and what was recorded lacks "big"`)
	if _, err := h.Undo(t.Context(), gone, UndoOptions{Force: true}); err != nil {
		t.Error(err)
	}
	if got := db.Value(t, `SELECT * FROM t WHERE id = 3`); got != "3|3|small|lost" {
		t.Errorf("row %q", got)
	}
}

// requireRefused requires that an undo fails with what begins or contains want, and has written nothing.
func requireRefused(t *testing.T, h *History, id int64, o UndoOptions, want string) {
	t.Helper()
	u, err := h.Undo(t.Context(), id, o)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("undo of %d: %v, %+v; want %q", id, err, u, want)
	}
	if h.conn.PgConn().TxStatus() != 'I' {
		t.Errorf("undo of %d left a transaction open", id)
	}
}

// TestUndoRefuses tells what is in the way, and --force is for what a person can judge.
func TestUndoRefuses(t *testing.T) {
	db := setUp(t, pgtest.SharedServer(t, pgtest.Newest(t)), `CREATE TABLE t (id int PRIMARY KEY, v text, n int UNIQUE, old int);
		CREATE TABLE cut (id int PRIMARY KEY, v numeric(8,2)); CREATE TABLE gone (id int PRIMARY KEY); CREATE TABLE rekeyed (id int PRIMARY KEY, k int NOT NULL);
		CREATE TABLE parent (no int GENERATED ALWAYS AS IDENTITY, id int PRIMARY KEY); CREATE TABLE child (id int PRIMARY KEY, p int REFERENCES parent ON DELETE CASCADE);
		INSERT INTO t VALUES (1, 'won', 1), (2, 'won', 2), (3, 'won', 3); INSERT INTO cut VALUES (1, 2); INSERT INTO parent OVERRIDING SYSTEM VALUE VALUES (5, 1); INSERT INTO child VALUES (1, 1)`)
	h := openHistory(t, db, "")
	row := func(id int, v string) string { return fmt.Sprintf(`SELECT %d AS id, '%s' AS v, %d AS n`, id, v, id) }
	uu := func(id int) int64 {
		return loseByHand(t, db, "public.t", "update_update", localWins, row(id, "won"), row(id, "lost"))
	}
	changed, gone, twice, removed, back := uu(1), uu(2), uu(3), uu(9), loseByHand(t, db, "public.t", "delete_update", remoteWins, row(3, "lost"), "")
	column := loseByHand(t, db, "public.t", "update_update", localWins, `SELECT * FROM t WHERE id = 3`, `SELECT 3 AS id, 'lost' AS v, 3 AS n, 0 AS "Ol""d", 0 AS older`)
	dropped := loseByHand(t, db, "public.gone", "insert_insert", localWins, `SELECT 1 AS id`, `SELECT 1 AS id`)
	rekeyed := loseByHand(t, db, "public.rekeyed", "insert_insert", localWins, `SELECT 1 AS id`, `SELECT 1 AS id`)
	rounded := loseByHand(t, db, "public.cut", "update_update", localWins, `SELECT 1 AS id, 2.00 AS v`, `SELECT 1 AS id, 1.25 AS v`)
	cascade := loseByHand(t, db, "public.parent", "insert_insert", localWins, `SELECT * FROM parent`, `SELECT 6 AS no, 1 AS id`)
	unrecorded := loseByHand(t, db, "public.t", "update_update", localWins, `SELECT 'not recorded: row too long' AS pgbridge`, `SELECT 'not recorded: row too long' AS pgbridge`)
	both := loseByHand(t, db, "public.t", "delete_delete", localWins, "", "")
	db.Exec(t, `DROP TABLE gone; ALTER TABLE rekeyed DROP CONSTRAINT rekeyed_pkey, ADD PRIMARY KEY (k); UPDATE t SET v = 'changed', old = 1, n = 10 WHERE id = 1; DELETE FROM t WHERE id = 2;
		ALTER TABLE cut ALTER v TYPE numeric(8,1)`)
	if _, err := h.Undo(t.Context(), twice, UndoOptions{By: "somebody"}); err != nil {
		t.Fatal(err)
	}
	requireRefused(t, h, changed, UndoOptions{}, `row id=1 of "public"."t" is not the version that won any more: "v", "n" changed since; --force writes it all the same`)
	requireRefused(t, h, gone, UndoOptions{}, `row id=2 of "public"."t" has been deleted since; --force`)
	requireRefused(t, h, twice, UndoOptions{}, " by somebody as ")
	requireRefused(t, h, uu(3), UndoOptions{}, `row id=3 of "public"."t" is what it was before it lost already`)
	requireRefused(t, h, back, UndoOptions{}, `row id=3 of "public"."t" is what it was before it lost already`)
	requireRefused(t, h, loseByHand(t, db, "public.t", "delete_update", remoteWins, row(3, "another"), ""), UndoOptions{}, `row id=3 of "public"."t" had been deleted, and has been inserted since`)
	requireRefused(t, h, removed, UndoOptions{}, `has been deleted since`)
	requireRefused(t, h, loseByHand(t, db, "public.t", "delete_update", localWins, row(9, "won"), ""), UndoOptions{Force: true}, `there is nothing to delete`)
	hidden := loseByHand(t, db, "public.t", "unique", remoteWins, row(9, "kept"), row(3, "won"))
	db.Exec(t, `UPDATE pgbridge.conflict SET constraint_name = 't_n_key' WHERE kind = 'unique'`)
	requireRefused(t, h, hidden, UndoOptions{Force: true}, `kept until no later row has its value of t_n_key`)
	requireRefused(t, h, unrecorded, UndoOptions{Force: true}, `its row was not recorded, since the server refused: row too long`)
	requireRefused(t, h, both, UndoOptions{Force: true}, `both sides deleted the row`)
	requireRefused(t, h, column, UndoOptions{Force: true}, `table "public"."t" has no column "Ol""d", "older" any more`)
	requireRefused(t, h, dropped, UndoOptions{Force: true}, `table public.gone is not here any more`)
	requireRefused(t, h, rekeyed, UndoOptions{Force: true}, `table "public"."rekeyed" has column "k" in its key now`)
	requireRefused(t, h, rounded, UndoOptions{}, `its types have changed, of "v"`)
	requireRefused(t, h, cascade, UndoOptions{Force: true}, `foreign keys that refer to the table would delete`)
	requireRefused(t, h, loseByHand(t, db, "public.t", "insert_insert", localWins, row(1, "won"), `SELECT 1 AS id, 'lost' AS v, 3 AS n`), UndoOptions{Force: true}, `another row has what must be unique`)
	if _, err := h.Undo(t.Context(), 999, UndoOptions{}); !errors.Is(err, ErrNoConflict) {
		t.Errorf("an id that is not there: %v", err)
	}
	if got := strings.Join(db.Query(t, `SELECT * FROM t ORDER BY id`), ","); got != "1|changed|10|1,3|lost|3|∅" {
		t.Errorf("rows %q", got)
	}
	for _, id := range []int64{changed, twice} {
		if _, err := h.Undo(t.Context(), id, UndoOptions{Force: true}); err != nil {
			t.Errorf("forced: %v", err)
		}
	}
	requireRefused(t, h, gone, UndoOptions{}, "has been deleted")
	if got := strings.Join(db.Query(t, `SELECT * FROM t ORDER BY id`), ","); got != "1|lost|1|1,3|lost|3|∅" {
		t.Errorf("rows %q", got)
	}
	if got := db.Value(t, `SELECT count(*) FROM pgbridge.conflict WHERE undone_at IS NOT NULL`); got != "2" {
		t.Errorf("%s are noted as undone", got)
	}
}

// TestUndoMeetsAWriteAtTheSameMoment: another session inserts the row, and has not committed when the undo looks for it.
func TestUndoMeetsAWriteAtTheSameMoment(t *testing.T) {
	db := setUp(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
	for id, o := range map[int]UndoOptions{1: {}, 2: {Force: true}} {
		h := openHistory(t, db, "")
		other := db.Connect(t)
		if _, err := other.Exec(t.Context(), fmt.Sprintf(`BEGIN; INSERT INTO t VALUES (%d, 'other', 0)`, id)); err != nil {
			t.Fatal(err)
		}
		conflict := loseByHand(t, db, "public.t", "update_delete", localWins, "", fmt.Sprintf(`SELECT %d AS id, 'lost' AS v, 0 AS n`, id))
		done := make(chan error, 1)
		go func() {
			_, err := h.Undo(t.Context(), conflict, o)
			done <- err
		}()
		awaitTrue(t, func() bool {
			return db.Value(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'pgbridge conflicts' AND wait_event_type = 'Lock'`) == "1"
		})
		if _, err := other.Exec(t.Context(), `COMMIT`); err != nil {
			t.Fatal(err)
		}
		err := <-done
		want := "lost"
		if !o.Force {
			want = "other"
		}
		if got := db.Value(t, `SELECT v FROM t WHERE id = $1`, id); got != want || (err == nil) != o.Force || err != nil && !strings.Contains(err.Error(), "has been inserted since") {
			t.Errorf("%+v: row %q, %v", o, got, err)
		}
	}
}

// TestUndoIsAnOrdinaryWrite: triggers fire, under the search_path of the role, whatever session_replication_role it has.
func TestUndoIsAnOrdinaryWrite(t *testing.T) {
	db := setUp(t, pgtest.SharedServer(t, pgtest.Newest(t)), `CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY, v text); CREATE TABLE app.log (v text);
		CREATE FUNCTION app.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO log VALUES (TG_OP || ' ' || NEW.v); RETURN NULL; END $$;
		CREATE TRIGGER note AFTER INSERT OR UPDATE ON app.t FOR EACH ROW EXECUTE FUNCTION app.note(); INSERT INTO app.log VALUES ('x'); TRUNCATE app.log`)
	db.Exec(t, fmt.Sprintf(`ALTER DATABASE %s SET search_path = app; ALTER DATABASE %s SET session_replication_role = replica`, db.Name, db.Name))
	h := openHistory(t, db, "")
	id := loseByHand(t, db, "app.t", "update_delete", localWins, "", `SELECT 1 AS id, 'lost' AS v`)
	u, err := h.Undo(t.Context(), id, UndoOptions{DryRun: true})
	if err != nil || db.Value(t, `SELECT count(*) FROM app.t`) != "0" || db.Value(t, `SELECT count(undone_at) FROM pgbridge.conflict`) != "0" {
		t.Fatalf("a dry run writes: %+v, %v", u, err)
	}
	if _, err := h.Undo(t.Context(), id, UndoOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := db.Value(t, `SELECT v FROM app.log`); got != "INSERT lost" {
		t.Errorf("the trigger wrote %q", got)
	}
	// What the dry run printed is what a person can run.
	db.Exec(t, `DELETE FROM app.t`)
	db.Exec(t, "BEGIN;"+strings.Join(u.Statements, ";")+"; COMMIT")
	if got := db.Value(t, `SELECT v FROM app.t`); got != "lost" {
		t.Errorf("the printed statements wrote %q", got)
	}
	db.Exec(t, `CREATE FUNCTION app.no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$; CREATE TRIGGER no BEFORE INSERT ON app.t FOR EACH ROW EXECUTE FUNCTION app.no();
		ALTER TABLE app.t ENABLE ALWAYS TRIGGER no`)
	requireRefused(t, h, loseByHand(t, db, "app.t", "update_delete", localWins, "", `SELECT 2 AS id, 'lost' AS v`), UndoOptions{}, "0 rows were written instead of one")
}

// TestHistoryNeedsPrivileges: what is lacking is told with the statement that mends it, and that is enough.
func TestHistoryNeedsPrivileges(t *testing.T) {
	db := setUp(t, pgtest.SharedServer(t, pgtest.Newest(t)), `CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY, v text, n numeric); INSERT INTO app.t VALUES (1, 'won', 1)`)
	id := loseByHand(t, db, "app.t", "update_update", localWins, `SELECT * FROM app.t`, `SELECT 1 AS id, 'lost' AS v, 1 AS n`)
	role := "r_" + db.Name
	db.Exec(t, `CREATE ROLE `+role+` LOGIN`)
	t.Cleanup(func() { db.Exec(t, `DROP OWNED BY `+role+`; DROP ROLE `+role) })
	o := HistoryOptions{DSN: db.DSN + "&user=" + role, Cluster: db.Name, Node: "b"}
	// mend runs what an error tells to run.
	mend := func(err error) {
		t.Helper()
		var told interface{ ExitCode() int }
		if err == nil || !errors.As(err, &told) {
			t.Fatalf("no mend: %v", err)
		}
		_, sql, _ := strings.Cut(err.Error(), "; run ")
		sql, _, _ = strings.Cut(sql, ", or name")
		sql, _, _ = strings.Cut(sql, ", and where")
		db.Exec(t, sql)
	}
	_, err := OpenHistory(t.Context(), o)
	mend(err)
	h := openHistory(t, db, "&user="+role)
	if p, err := h.List(t.Context(), ConflictFilter{}); err != nil || len(p.Conflicts) != 1 || p.Conflicts[0].Key.String() != "id=1" {
		t.Fatalf("list: %+v, %v", p, err)
	}
	_, err = h.Undo(t.Context(), id, UndoOptions{})
	mend(err)
	if _, err := h.Undo(t.Context(), id, UndoOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := db.Value(t, `SELECT v FROM app.t`); got != "lost" {
		t.Errorf("row %q", got)
	}
	db.Exec(t, `REVOKE SELECT ON pgbridge.conflict FROM `+role)
	if _, err := h.List(t.Context(), ConflictFilter{}); err == nil || !strings.Contains(err.Error(), "GRANT SELECT, UPDATE ON pgbridge.conflict") {
		t.Errorf("list without a privilege: %v", err)
	}
}

// TestHistoryOfAnEarlierVersion can be read, and is undone once setup has run.
func TestHistoryOfAnEarlierVersion(t *testing.T) {
	db := setUp(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
	id := loseByHand(t, db, "public.t", "update_delete", localWins, "", `SELECT 1 AS id, 'lost' AS v, 1 AS n`)
	db.Exec(t, `ALTER TABLE pgbridge.conflict DROP undone_at, DROP undone_by`)
	h := openHistory(t, db, "")
	if p, err := h.List(t.Context(), ConflictFilter{}); err != nil || len(p.Conflicts) != 1 {
		t.Errorf("list: %+v, %v", p, err)
	}
	if d, err := h.Show(t.Context(), id); err != nil || d.UndoneAt != nil {
		t.Errorf("show: %+v, %v", d, err)
	}
	if n, err := h.Stats(t.Context(), ConflictFilter{}); err != nil || len(n) != 1 || n[0].Undone != 0 {
		t.Errorf("stats: %+v, %v", n, err)
	}
	requireRefused(t, h, id, UndoOptions{}, "run pgbridge setup")
	if err := Setup(t.Context(), pgtest.Connect(t, db.DSN), SetupOptions{Cluster: db.Name, Node: "b", Peers: []string{"a"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := openHistory(t, db, "").Undo(t.Context(), id, UndoOptions{}); err != nil {
		t.Error(err)
	}
	db.Exec(t, `DROP SCHEMA pgbridge CASCADE`)
	if _, err := OpenHistory(t.Context(), HistoryOptions{DSN: db.DSN, Cluster: db.Name, Node: "b"}); !errors.Is(err, ErrNotSetUp) {
		t.Errorf("without a schema: %v", err)
	}
}
