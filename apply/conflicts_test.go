package apply

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
)

// TestConflictsAreFound by each filter, the newest first, each with the key that its table has.
func TestConflictsAreFound(t *testing.T) {
	db := setUp(t, pgtest.SharedServer(t, pgtest.Newest(t)), `CREATE SCHEMA app; CREATE TABLE app.items (b text, a int, v numeric, PRIMARY KEY (b, a)); CREATE TABLE app.items_2 (id int PRIMARY KEY);
		CREATE SCHEMA "x.y"; CREATE TABLE "x.y".z (id int PRIMARY KEY); CREATE SCHEMA x; CREATE TABLE x."y.z" (id int PRIMARY KEY, j int); CREATE TABLE x."only.one" (id int PRIMARY KEY)`)
	item := `SELECT 'k"' AS b, %d AS a, 1.50 AS v`
	loseByHand(t, db, "app.items", "update_update", remoteWins, fmt.Sprintf(item, 1), fmt.Sprintf(item, 2)) // 1
	loseByHand(t, db, "app.items", "update_delete", localWins, "", fmt.Sprintf(item, 3))                    // 2
	loseByHand(t, db, "app.items", "delete_delete", localWins, "", "")                                      // 3
	loseByHand(t, db, "app.items_2", "delete_update", localWins, `SELECT 4 AS id`, "")                      // 4
	loseByHand(t, db, "x.y.z", "insert_insert", localWins, `SELECT 5 AS id`, `SELECT 5 AS id`)              // 5
	loseByHand(t, db, "x.only.one", "insert_insert", localWins, `SELECT 6 AS id`, `SELECT 6 AS id`)         // 6
	loseByHand(t, db, "dropped.t", "insert_insert", remoteWins, `SELECT 7 AS id`, `SELECT 7 AS id`)         // 7
	db.Exec(t, `UPDATE pgbridge.conflict SET at = '2026-11-24 10:00 UTC'::timestamptz + id * interval '1 hour', remote_origin = CASE id WHEN 4 THEN 'c/2' WHEN 5 THEN 'c' ELSE 'a' END`)
	at := func(hour int) time.Time { return time.Date(2026, 11, 24, 10+hour, 0, 0, 0, time.UTC) }
	h := openHistory(t, db, "")
	for _, c := range []struct {
		f    ConflictFilter
		want string
	}{
		{ConflictFilter{}, "7  6 id=6 5  4 id=4 3  2 a=3,b=\"k\\\"\" 1 a=1,b=\"k\\\"\""},
		{ConflictFilter{Limit: 2}, "7  6 id=6 more"},
		{ConflictFilter{Before: 6}, "5  4 id=4 3  2 a=3,b=\"k\\\"\" 1 a=1,b=\"k\\\"\""},
		{ConflictFilter{Before: 6, Limit: 2}, "5  4 id=4 more"},
		{ConflictFilter{Kind: "unique"}, ""},
		{ConflictFilter{Limit: 7, Table: "app.*"}, "4 id=4 3  2 a=3,b=\"k\\\"\" 1 a=1,b=\"k\\\"\""},
		{ConflictFilter{Table: "app.items_2"}, "4 id=4"},
		{ConflictFilter{Table: "*.item?_*"}, "4 id=4"},
		{ConflictFilter{Table: "app.items%"}, ""},
		{ConflictFilter{Kind: "delete_update"}, "4 id=4"},
		{ConflictFilter{Outcome: "remote"}, "7  1 a=1,b=\"k\\\"\""},
		{ConflictFilter{Outcome: "local wins", Kind: "insert_insert"}, "6 id=6 5 "},
		{ConflictFilter{Origin: "c"}, "5  4 id=4"},
		{ConflictFilter{Origin: "c/2"}, "4 id=4"},
		{ConflictFilter{Origin: "b", Limit: 1}, "7  more"},
		{ConflictFilter{Origin: "nobody"}, ""},
		{ConflictFilter{Since: at(6)}, "7  6 id=6"},
		{ConflictFilter{Since: at(3), Until: at(4)}, "4 id=4 3 "},
		{ConflictFilter{Key: map[string]string{"id": "7"}}, "7 "},
		{ConflictFilter{Key: map[string]string{"b": `k"`, "a": "2"}}, "1 a=1,b=\"k\\\"\""}, // in the winner's image
		{ConflictFilter{Key: map[string]string{"b": `k"`, "a": "4"}}, ""},
		{ConflictFilter{Key: map[string]string{"v": "1.50", "a": "3"}}, "2 a=3,b=\"k\\\"\""},
		{ConflictFilter{Key: map[string]string{"absent": "1"}}, ""},
	} {
		p, err := h.List(t.Context(), c.f)
		if err != nil {
			t.Errorf("%+v: %v", c.f, err)
			continue
		}
		var got []string
		for _, x := range p.Conflicts {
			got = append(got, fmt.Sprint(x.ID, " ", x.Key))
		}
		if p.More {
			got = append(got, "more")
		}
		if g := strings.Join(got, " "); g != c.want {
			t.Errorf("%+v: %s, want %s", c.f, g, c.want)
		}
	}
	for _, f := range []ConflictFilter{{Table: "items"}, {Table: ".x"}, {Kind: "update"}, {Outcome: "none"}, {Limit: -1}, {Since: at(2), Until: at(1)}} {
		_, err := h.List(t.Context(), f)
		if coded, ok := err.(interface{ ExitCode() int }); !ok || coded.ExitCode() != 2 {
			t.Errorf("%+v: %v; want wrong usage", f, err)
		}
	}
}

func TestStatsOfConflicts(t *testing.T) {
	db := setUp(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
	for range 3 {
		loseByHand(t, db, "public.t", "update_update", remoteWins, `SELECT 1 AS id`, `SELECT 1 AS id`)
	}
	loseByHand(t, db, "public.t", "update_update", localWins, `SELECT 1 AS id`, `SELECT 1 AS id`)
	db.Exec(t, `UPDATE pgbridge.conflict SET remote_stamp = local_stamp + CASE id WHEN 1 THEN -9999 ELSE 10000 END, undone_at = CASE id WHEN 2 THEN now() END,
		at = '2026-11-24 10:00 UTC'::timestamptz + id * interval '1 hour'`)
	h := openHistory(t, db, "")
	got, err := h.Stats(t.Context(), ConflictFilter{})
	want := []ConflictCount{
		{"public.t", "update_update", "a", 3, 1, 1, time.Date(2026, 11, 24, 13, 0, 0, 0, time.UTC)},
		{"public.t", "update_update", "b", 1, 0, 0, time.Date(2026, 11, 24, 14, 0, 0, 0, time.UTC)},
	}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if got, err := h.Stats(t.Context(), ConflictFilter{Since: want[0].Newest, Limit: 1}); err != nil || len(got) != 2 || got[0].Conflicts != 1 {
		t.Errorf("since then: %v, %v", got, err)
	}
}

// TestShowTellsBothVersions: as the images have them, with what differs and by how much.
func TestShowTellsBothVersions(t *testing.T) {
	db := setUp(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
	id := loseByHand(t, db, "public.t", "update_update", remoteWins, `SELECT 1 AS id, 'x' AS v, 1.0 AS n, 2 AS g`, `SELECT 1 AS id, 'x' AS v, 1.00 AS n, 3 AS new`)
	d, err := openHistory(t, db, "").Show(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	_, got, _ := strings.Cut(string(b), `"table"`)
	const want = `:"public.t","key":{"id":1},"kind":"update_update","outcome":"remote wins","winner":"a","loser":"b",` +
		`"remote":{"origin":"a","stamp":"2000-01-01T00:00:00.02Z"},"local":{"origin":"b","stamp":"2000-01-01T00:00:00.01Z"},"margin_seconds":0.01,"close":false,` +
		`"local_row":{"id":1,"v":"x","n":1.0,"g":2},"remote_row":{"id":1,"v":"x","n":1.00,"new":3},"columns":[` +
		`{"name":"id","local":1,"remote":1,"differs":false},{"name":"v","local":"x","remote":"x","differs":false},{"name":"n","local":1.0,"remote":1.00,"differs":true},` +
		`{"name":"g","local":2,"differs":false},{"name":"new","remote":3,"differs":false}]}`
	if got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
	if d, err := openHistory(t, db, "").Show(t.Context(), loseByHand(t, db, "public.t", "update_delete", localWins, "",
		`SELECT 'not recorded: row too long' AS pgbridge`)); err != nil || d.NotRecorded != "row too long" || d.Key != nil {
		t.Errorf("not recorded: %+v, %v", d, err)
	}
}

// TestClockErrorOfTheHistory: what is given counts, else what was measured lately, at its worst.
func TestClockErrorOfTheHistory(t *testing.T) {
	db := setUp(t, pgtest.SharedServer(t, pgtest.Newest(t)), "")
	require := func(given, want time.Duration, from ClockSource) {
		t.Helper()
		h, err := OpenHistory(t.Context(), HistoryOptions{DSN: db.DSN, Cluster: db.Name, Node: "b", ClockError: given})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close(t.Context())
		if got, source := h.ClockError(); got != want || source != from {
			t.Errorf("%s, %s; want %s, %s", got, source, want, from)
		}
	}
	require(0, AssumedClockError, ClockAssumed)
	require(time.Second, time.Second, ClockGiven)
	db.Exec(t, `INSERT INTO pgbridge.clock (node, ahead_us, within_us) VALUES ('a', -5000, 2000), ('c', 3000, 1000), ('d', 90000, 1);
		UPDATE pgbridge.clock SET at = at - interval '2 days' WHERE node = 'd'`)
	require(0, 7*time.Millisecond, ClockMeasured)
	require(time.Second, time.Second, ClockGiven)
	db.Exec(t, `DELETE FROM pgbridge.clock WHERE node <> 'd'`)
	require(0, AssumedClockError, ClockAssumed)
	db.Exec(t, `DROP TABLE pgbridge.clock`)
	require(0, AssumedClockError, ClockAssumed)
}

// TestLostDeletesAreRecorded once, and only where the insert's author had not seen the delete.
func TestLostDeletesAreRecorded(t *testing.T) {
	for _, large := range []bool{false, true} {
		p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
		p.do(`INSERT INTO t VALUES (9, 'x')`)
		tab, err := p.a.catalog.table(t.Context(), "public", "t")
		if err != nil {
			t.Fatal(err)
		}
		for id := 1; id <= 3; id++ {
			v := origin.Version{Stamp: p.last + 1, Origin: nodeB}
			p.a.LocalDelete("public", "t", intKey(id), tab.hasher.Hash(intKey(id), nil), v, uint64(id), uint64(500+id))
		}
		seen := origin.Vector{{Origin: nodeB, Seq: 2, Stamp: p.last + 1}}
		insert := func(id int) {
			p.from.Exec(t, `INSERT INTO t VALUES ($1, 'later')`, id)
			p.ship(seen, large)
			p.await()
		}
		insert(2)
		if got := p.to.Value(t, `SELECT count(*) FROM pgbridge.conflict`); got != "0" {
			t.Errorf("large %v: %s conflicts with a delete that was seen", large, got)
		}
		insert(3)
		p.from.Exec(t, `BEGIN; TRUNCATE t; INSERT INTO t VALUES (3, 'again'); COMMIT`) // its author has emptied the table since
		p.ship(seen, large)
		p.await()
		p.from.Exec(t, `TRUNCATE t`)
		insert(3)
		if got := p.to.Value(t, `SELECT string_agg(kind || ' ' || outcome, ', ') FROM pgbridge.conflict`); got != "insert_delete remote wins" {
			t.Errorf("large %v: met %s", large, got)
		}
		p.same(`SELECT * FROM t`)
	}
}

// TestForgottenDeletesHideOlderOnes: what is inserted behind a delete that every node has seen does not meet an older one, which the
// insert's author has not seen.
func TestForgottenDeletesHideOlderOnes(t *testing.T) {
	t.Parallel()
	for older, from := range map[string]int{"a key": bulkLimit, "many keys": 1, "the table": 0} {
		for _, later := range []string{"DELETE FROM t", "TRUNCATE t"} {
			t.Run(later+" behind that of "+older, func(t *testing.T) {
				t.Parallel()
				p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
				p.do(fmt.Sprintf(`INSERT INTO t VALUES (%d, 'x')`, bulkLimit))
				tab, err := p.a.catalog.table(t.Context(), "public", "t")
				if err != nil {
					t.Fatal(err)
				}
				v := origin.Version{Stamp: p.last + 1, Origin: nodeB}
				if from == 0 {
					p.a.LocalTruncate("public", "t", v, 1, 500)
				} else {
					for id := from; id <= bulkLimit; id++ {
						p.a.LocalDelete("public", "t", intKey(id), tab.hasher.Hash(intKey(id), nil), v, 1, 500)
					}
				}
				awaitTrue(t, func() bool { return p.a.HoldLSN() == 0 })
				forget := func() int { return p.a.absence.purge(p.a.heard.stableSeq) }
				p.do(later)
				forget()
				p.do(fmt.Sprintf(`INSERT INTO t VALUES (%d, 'again')`, bulkLimit))
				if got := p.to.Value(t, `SELECT count(*) FROM pgbridge.conflict WHERE kind = 'insert_delete'`); got != "0" {
					t.Errorf("the insert has met %s deletes", got)
				}
				p.from.Exec(t, `UPDATE t SET v = 'all seen'`)
				p.ship(origin.Vector{{Origin: nodeB, Seq: 1, Stamp: v.Stamp}}, false)
				p.await()
				if n := forget(); n != 0 {
					t.Errorf("%d tombstones stay", n)
				}
				p.same(`SELECT * FROM t`)
			})
		}
	}
}
