package apply

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// TestLargeTransactionOnTheCarefulPath touches the same rows in windows far apart: what it lost, what it
// wrote and what it deleted must be known again without being kept.
func TestLargeTransactionOnTheCarefulPath(t *testing.T) {
	t.Parallel()
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
	p.do(`INSERT INTO t SELECT i, 'before' FROM generate_series(1, 100) i`)
	tx := p.from.Connect(t) // commits first, and so loses to what is written here
	exec := func(sql string) {
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	between := `INSERT INTO t SELECT i, 'between' FROM generate_series(%d, %d) i`
	exec(`BEGIN; UPDATE t SET v = 'first' WHERE id < 20; DELETE FROM t WHERE id BETWEEN 20 AND 29`)
	exec(fmt.Sprintf(between, 1000, 9000))
	exec(`UPDATE t SET v = 'second' WHERE id < 10; INSERT INTO t SELECT i, 'again' FROM generate_series(20, 24) i; INSERT INTO t VALUES (200, 'new')`)
	exec(fmt.Sprintf(between, 10000, 19000))
	exec(`DELETE FROM t WHERE id < 5 OR id IN (20, 200); UPDATE t SET v = 'third' WHERE id = 21; INSERT INTO t VALUES (200, 'new again')`)
	exec(`COMMIT`)
	p.to.Exec(t, `UPDATE t SET v = 'local' WHERE id IN (1, 2, 6, 15, 20, 21)`)
	p.ship(nil, true)
	p.await()
	const q = `SELECT id, v FROM t WHERE id NOT IN (1, 2, 6, 15, 20, 21) ORDER BY id`
	p.same(q)
	if got := strings.Join(p.to.Query(t, `SELECT id FROM t WHERE v = 'local' ORDER BY id`), " "); got != "1 2 6 15 20 21" {
		t.Errorf("local rows %s", got)
	}
	got := p.to.Query(t, `SELECT kind, outcome, local_row->>'v', remote_row->>'v', count(*) FROM pgbridge.conflict GROUP BY 1, 2, 3, 4 ORDER BY 1`)
	want := []string{"delete_update|local wins|local|∅|2", "update_update|local wins|local|first|4"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("history %q, want each row once: %q", got, want)
	}
}

// TestConflictsThatCannotBeShown are recorded all the same, and the transaction goes on.
func TestConflictsThatCannotBeShown(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, setup, value, local, image string }{
		{"a zero in json", `CREATE TABLE t (id int PRIMARY KEY, v json)`, `'"\u0000 remote"'`, `'"\u0000 local"'`, `{"id":1,"v":"\u0000 local"}`},
		{"a cast that fails", `CREATE TYPE odd AS ENUM ('x', 'remote', 'local');
			CREATE FUNCTION odd_json(odd) RETURNS json LANGUAGE plpgsql AS $$BEGIN RAISE 'no "JSON"'; END$$;
			CREATE CAST (odd AS json) WITH FUNCTION odd_json(odd); CREATE TABLE t (id int PRIMARY KEY, v odd)`, `'remote'`, `'local'`,
			`{"pgbridge":"not recorded: no \"JSON\""}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), c.setup)
			p.do(`INSERT INTO t VALUES (1, NULL)`)
			p.to.Exec(t, `UPDATE t SET v = `+c.local)
			p.do(`UPDATE t SET v = ` + c.value)
			p.same(`SELECT v::text FROM t`)
			if got := p.to.Query(t, `SELECT local_row FROM pgbridge.conflict`); len(got) != 1 || got[0] != c.image {
				t.Errorf("history %q", got)
			}
			if got := p.to.Value(t, `SELECT remote_row IS NOT NULL FROM pgbridge.conflict`); got != "true" && got != "t" {
				t.Errorf("remote image there: %s", got)
			}
		})
	}
}

func TestKeySet(t *testing.T) {
	var s keySet
	const n = 50_000
	for i := range uint64(n) {
		s.add(hashOf(i * 2654435761 % 1_000_003))
		s.add(hashOf(i / 2 * 2654435761 % 1_000_003))
	}
	for i := range uint64(n) {
		if !s.has(hashOf(i * 2654435761 % 1_000_003)) {
			t.Fatalf("%d is missing", i)
		}
	}
	if s.has(hashOf(1_000_004)) || len(s.all()) != n || len(s.sorted) > 10 {
		t.Errorf("%d keys in %d runs", len(s.all()), len(s.sorted))
	}
}

// TestCarefulPathKeepsLittle: what is known of a row is forgotten with its window of changes, but for who won.
func TestCarefulPathKeepsLittle(t *testing.T) {
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
	const rows = 12_000
	fill := fmt.Sprintf(`INSERT INTO t SELECT i, repeat('x', 1500) FROM generate_series(1, %d) i`, rows)
	p.from.Exec(t, fill)
	p.ship(nil, true)
	p.await()
	p.from.Exec(t, `UPDATE t SET v = 'y'`)
	p.to.Exec(t, `UPDATE t SET v = 'local' WHERE id = $1`, rows)
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, last := heap(), uint64(0)
	p.wal.mu.Lock()
	p.wal.judged = func() { last = heap() } // at the last row
	p.wal.mu.Unlock()
	p.ship(nil, true)
	p.await()
	awaitTrue(t, func() bool { return p.status().Careful == 1 })
	if last == 0 {
		t.Fatal("the local row was not judged")
	}
	if limit := before + 10<<20; last > limit {
		t.Errorf("%d MiB are kept for %d rows", (last-before)>>20, rows)
	}
}

// TestConflictsComeInSwarms: while one transaction after the other meets a conflict, only few try the optimistic path
// first; once none does any more, all go that path again.
func TestConflictsComeInSwarms(t *testing.T) { // alone: what it counts depends on how much waits at a time
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
	p.do(`INSERT INTO t SELECT generate_series(1, 300)`)
	for i := range 300 {
		p.from.Exec(t, `UPDATE t SET v = 'remote' WHERE id = $1`, i+1)
	}
	p.to.Exec(t, `UPDATE t SET v = 'local'`) // later: it wins
	behind := xmin(t, p)
	p.wal.mu.Lock()
	p.wal.mark = func(seq uint64) (uint64, bool) {
		if seq == 1<<64-1 {
			return behind, true // capture has read it
		}
		return 0, false // a has not seen it
	}
	p.wal.mu.Unlock()
	conn := p.to.Connect(t)
	rolledBack := func() (n int) {
		if err := conn.QueryRow(t.Context(), `SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	p.ship(nil, false)
	p.await()
	if st := p.status(); st.Careful != 300 || st.Conflicts != 300 {
		t.Errorf("status %+v", st)
	}
	p.stop() // the session's counts are told at its end
	awaitTrue(t, func() bool { return rolledBack() > 0 })
	if n := rolledBack(); n > 30 {
		t.Errorf("%d transactions were rolled back", n)
	}
	p.start()
	for i := range 300 {
		p.from.Exec(t, `INSERT INTO t VALUES ($1)`, 1000+i)
	}
	p.ship(nil, false)
	p.await()
	if st := p.status(); st.Careful != 0 {
		t.Errorf("status %+v", st)
	}
}

// TestTruncateKeepsTheImage of a row that it takes away although its author had not seen it.
func TestTruncateKeepsTheImage(t *testing.T) {
	t.Parallel()
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
	p.do(`INSERT INTO t VALUES (1, 'x')`)
	p.to.Exec(t, `UPDATE t SET v = 'local'`)
	p.do(`TRUNCATE t`) // later: it wins
	if got := p.to.Value(t, `SELECT (SELECT count(*) FROM t) || ' ' || COALESCE((SELECT local_row->>'v' FROM pgbridge.conflict), 'no image')`); got != "0 local" {
		t.Errorf("rows and image: %s", got)
	}
}
