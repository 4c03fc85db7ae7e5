package apply

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

const tableT = `CREATE TABLE t (id int PRIMARY KEY, v text, n numeric)`

func TestRowsOfEveryShapeAreApplied(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		p := newPair(t, s, tableT)
		p.do(`INSERT INTO t VALUES (1, 'one', 1.50), (2, NULL, NULL)`)
		p.do(`INSERT INTO t SELECT i, 'row ' || i, i / 3.0 FROM generate_series(10, 3000) i`)
		p.do(`UPDATE t SET v = v || '!' WHERE id % 3 = 0`)
		p.do(`UPDATE t SET v = NULL WHERE id = 1`)
		p.do(`UPDATE t SET id = 5 WHERE id = 1`)
		p.do(`DELETE FROM t WHERE id = 2`)
		p.do(`DELETE FROM t WHERE id > 100 AND id % 2 = 0`)
		p.do(`BEGIN; INSERT INTO t VALUES (7, 'a'); UPDATE t SET v = 'b' WHERE id = 7; DELETE FROM t WHERE id = 7; INSERT INTO t VALUES (7, 'c'); COMMIT`)
		p.same(`SELECT * FROM t ORDER BY id`)
		if st := p.status(); st.Seq != p.seq || st.Careful != 0 {
			t.Errorf("status %+v, want seq %d and nothing on the careful path", st, p.seq)
		}
		if got := p.to.Value(t, `SELECT seq FROM pgbridge.position WHERE origin = 'a'`); got == "0" {
			t.Error("the position did not move")
		}
	})
}

func TestLargeTransactions(t *testing.T) {
	t.Parallel()
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
	large := func(sql string) {
		p.from.Exec(t, sql)
		p.ship(nil, true)
		p.await()
	}
	large(`INSERT INTO t SELECT i, repeat('x', i % 50), i FROM generate_series(1, 30000) i`)
	large(`UPDATE t SET v = 'y' || id`)
	large(`DELETE FROM t WHERE id % 2 = 0`)
	p.same(`SELECT count(*), sum(hashtext(t::text)) FROM t`)
	if st := p.status(); st.Careful != 0 {
		t.Errorf("status %+v, want nothing on the careful path", st)
	}
	large(`TRUNCATE t`)
	p.same(`SELECT count(*) FROM t`)
}

// TestStampAndOriginAreInTheCommit: the row version carries its stamp and origin (R1, R5).
func TestStampAndOriginAreInTheCommit(t *testing.T) {
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
	p.do(`INSERT INTO t VALUES (1, 'x')`)
	p.do(`INSERT INTO t VALUES (2, 'y')`)
	got := p.to.Query(t, `SELECT (extract(epoch FROM c.timestamp - '2000-01-01 UTC') * 1000000)::int8, o.roname
		FROM t, pg_xact_commit_timestamp_origin(t.xmin) c JOIN pg_replication_origin o ON o.roident = c.roident ORDER BY id`)
	if len(got) != 2 || !strings.HasSuffix(got[0], "_b_a_1") || got[0] == got[1] {
		t.Errorf("got %q", got)
	}
	want := p.to.Value(t, `SELECT stamp FROM pgbridge.position WHERE origin = 'a'`)
	if !strings.HasPrefix(got[1], want+"|") {
		t.Errorf("the last row has %s, the position %s", got[1], want)
	}
}

// TestConcurrentUpdatesConverge: a local write that the author had not seen meets a remote one; the later
// wins and the loser is kept.
func TestConcurrentUpdatesConverge(t *testing.T) {
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
	p.do(`INSERT INTO t VALUES (1, 'x'), (2, 'x')`)
	p.from.Exec(t, `UPDATE t SET v = 'remote, earlier' WHERE id = 1`)
	p.to.Exec(t, `UPDATE t SET v = 'local' WHERE id = 1`)
	p.to.Exec(t, `UPDATE t SET v = 'local' WHERE id = 2`)
	p.from.Exec(t, `UPDATE t SET v = 'remote, later' WHERE id = 2`)
	p.ship(nil, false)
	p.await()
	if got := p.to.Query(t, `SELECT v FROM t ORDER BY id`); got[0] != "local" || got[1] != "remote, later" {
		t.Errorf("rows %q", got)
	}
	got := p.to.Query(t, `SELECT kind, outcome, local_row->>'v', remote_row->>'v' FROM pgbridge.conflict ORDER BY id`)
	want := []string{"update_update|local wins|local|remote, earlier", "update_update|remote wins|local|remote, later"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("history %q", got)
	}
	if st := p.status(); st.Careful != 2 || st.Conflicts != 2 {
		t.Errorf("status %+v", st)
	}
}

// TestSeenWritesAreNoConflict: an update whose author had seen the local version applies on the
// optimistic path, however far its clock is behind (invariant 5).
func TestSeenWritesAreNoConflict(t *testing.T) {
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
	p.do(`INSERT INTO t VALUES (1, 'x')`)
	p.to.Exec(t, `UPDATE t SET v = 'local' WHERE id = 1`)
	up := p.seen()
	p.from.Exec(t, `UPDATE t SET v = 'had seen it' WHERE id = 1`)
	p.ship(up, false)
	p.await()
	if got := p.to.Value(t, `SELECT v FROM t`); got != "had seen it" {
		t.Errorf("row %q", got)
	}
	if st := p.status(); st.Careful != 0 || st.Conflicts != 0 {
		t.Errorf("status %+v", st)
	}
}

// TestDeclaredWritesMayHaveRespelledTheKey: an update that declares the row's last version may come from a node where that
// one had lost, and with it the spelling that it had given the key. The row gets the update's.
func TestDeclaredWritesMayHaveRespelledTheKey(t *testing.T) {
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), `CREATE TABLE t (id numeric PRIMARY KEY, v text)`)
	p.do(`INSERT INTO t SELECT i + 0.0, 'x' FROM generate_series(1, 3) i`)
	p.to.Exec(t, `UPDATE t SET id = id + 0.00, v = 'local'`)
	up := p.seen()
	p.from.Exec(t, `UPDATE t SET v = 'of another node'`) // to the receiver, a run
	p.ship(up, false)
	p.await()
	if got := p.to.Value(t, `SELECT string_agg(id || v, ' ' ORDER BY id) FROM t`); got != "1.0of another node 2.0of another node 3.0of another node" {
		t.Errorf("rows %q", got)
	}
	if st := p.status(); st.Careful != 0 || st.Conflicts != 0 {
		t.Errorf("status %+v", st)
	}
}

// seen has capture know the receiver's last transaction, which wrote table t, as its first, and returns what one declares that
// has seen it.
func (p *pair) seen() origin.Vector {
	p.t.Helper()
	stamp := p.to.Value(p.t, `SELECT (extract(epoch FROM pg_xact_commit_timestamp(xmin) - '2000-01-01 UTC') * 1000000)::int8 FROM t LIMIT 1`)
	p.wal.mu.Lock()
	defer p.wal.mu.Unlock()
	p.wal.mark = func(seq uint64) (uint64, bool) {
		if seq < 1 {
			return 0, false
		}
		return xmin(p.t, p), true
	}
	return origin.Vector{{Origin: origin.Origin{Node: "b", Epoch: 1}, Seq: 1, Stamp: parseStamp(p.t, stamp)}}
}

// TestDeleteTakesBackAnOlderRemoteInsert: capture meets a local delete only after apply has inserted the
// row that it beats (R19); the tombstone stays for what arrives later still.
func TestDeleteTakesBackAnOlderRemoteInsert(t *testing.T) {
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
	p.do(`INSERT INTO t VALUES (1, 'x'), (2, 'x')`)
	tab, err := p.a.catalog.table(t.Context(), "public", "t")
	if err != nil {
		t.Fatal(err)
	}
	key := intKey(1)
	v := origin.Version{Stamp: p.last + 1000, Origin: origin.Origin{Node: "b", Epoch: 1}}
	// Capture tells of a local delete of key 1, later than the insert: the row must go.
	p.a.LocalDelete("public", "t", key, tab.hasher.Hash(key, nil), v, 1, 500)
	if p.a.HoldLSN() != 500 {
		t.Errorf("the slot must be held at the delete, it is at %d", p.a.HoldLSN())
	}
	awaitValue(t, p, `SELECT count(*) FROM t WHERE id = 1`, "0")
	awaitTrue(t, func() bool { return p.a.HoldLSN() == 0 })
	// An insert of the same key that is older still loses to the tombstone.
	p.from.Exec(t, `DELETE FROM t WHERE id = 1`)
	p.ship(nil, false)
	p.from.Exec(t, `INSERT INTO t VALUES (1, 'older')`)
	p.last = min(p.last, v.Stamp-10)
	p.ship(nil, false)
	p.await()
	if got := p.to.Value(t, `SELECT count(*) FROM t WHERE id = 1`); got != "0" && p.last < v.Stamp {
		t.Errorf("an insert at %d came through a delete at %d", p.last, v.Stamp)
	}
}

func TestMissingTableWaitsAndGoesOn(t *testing.T) {
	t.Parallel()
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
	p.from.Exec(t, `CREATE TABLE late (id int PRIMARY KEY)`)
	p.from.Exec(t, `INSERT INTO late VALUES (1)`)
	p.from.Exec(t, `INSERT INTO t VALUES (1, 'behind it')`)
	p.ship(nil, false)
	awaitTrue(t, func() bool { return strings.Contains(p.status().Waiting, `table "public"."late" is not here`) })
	p.to.Exec(t, `CREATE TABLE late (id int PRIMARY KEY)`)
	p.await()
	p.same(`SELECT * FROM late`)
	p.same(`SELECT * FROM t`)
	if w := p.status().Waiting; w != "" {
		t.Errorf("still says %q", w)
	}
}

func TestRestartGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
	p.do(`INSERT INTO t VALUES (1, 'x')`)
	if err := p.stop(); err != nil && !strings.Contains(err.Error(), "canceled") {
		t.Fatal(err)
	}
	p.start()
	if got := p.a.Received(nodeA); got != p.seq {
		t.Errorf("begins behind transaction %d, want %d", got, p.seq)
	}
	p.do(`UPDATE t SET v = 'y'`)
	p.same(`SELECT * FROM t`)
}

// TestChildRowsAreOthers: a table that inherits has rows of the same keys, and they are no rivals of the
// parent's.
func TestChildRowsAreOthers(t *testing.T) {
	t.Parallel()
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT+`; CREATE TABLE heir (PRIMARY KEY (id)) INHERITS (t)`)
	p.to.Exec(t, `INSERT INTO heir SELECT i, 'child' FROM generate_series(1, 3) i`)
	p.do(`INSERT INTO t VALUES (1, 'x'), (2, 'x')`)
	p.to.Exec(t, `UPDATE ONLY t SET v = 'local' WHERE id = 1`)
	p.to.Exec(t, `DELETE FROM ONLY t WHERE id = 2`)
	p.from.Exec(t, `BEGIN; UPDATE t SET v = 'y'; INSERT INTO t VALUES (3, 'y'); UPDATE t SET v = 'z' WHERE id = 3; COMMIT`)
	p.ship(nil, false)
	p.await()
	p.same(`SELECT * FROM ONLY t ORDER BY id`)
	if got := p.to.Value(t, `SELECT string_agg(v, ',') FROM heir`); got != "child,child,child" {
		t.Errorf("the child's rows are %s", got)
	}
}

// TestTakeBacksThatFail do not keep the others from being done.
func TestTakeBacksThatFail(t *testing.T) {
	t.Parallel()
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT+`; CREATE TABLE stubborn (id int PRIMARY KEY)`)
	const rows = takesAtOnce + 100
	p.do(fmt.Sprintf(`INSERT INTO t SELECT generate_series(1, %d)`, rows))
	p.do(`INSERT INTO stubborn VALUES (1)`)
	p.to.Exec(t, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no'; END$$;
		CREATE TRIGGER refuse BEFORE DELETE ON stubborn FOR EACH ROW EXECUTE FUNCTION refuse();
		ALTER TABLE stubborn ENABLE ALWAYS TRIGGER refuse`)
	remove := func(table string, id int, lsn uint64) {
		tab, err := p.a.catalog.table(t.Context(), "public", table)
		if err != nil {
			t.Fatal(err)
		}
		key := intKey(id)
		p.a.LocalDelete("public", table, key, tab.hasher.Hash(key, nil), origin.Version{Stamp: p.last + 1000, Origin: origin.Origin{Node: "b", Epoch: 1}}, 1, lsn)
	}
	remove("stubborn", 1, 500)
	for i := range rows {
		remove("t", i+1, 501)
	}
	awaitValue(t, p, `SELECT count(*) FROM t`, "0")
	if got := p.a.HoldLSN(); got != 500 {
		t.Errorf("the slot is held at %d, want it at what failed", got)
	}
	p.to.Exec(t, `DROP TRIGGER refuse ON stubborn`)
	awaitValue(t, p, `SELECT count(*) FROM stubborn`, "0")
	awaitTrue(t, func() bool { return p.a.HoldLSN() == 0 })
}

// TestTruncateKnowsLiftedStamps: a local row whose commit time is below the TRUNCATE's stamp and whose own
// stamp is above it stays, as it does on all nodes.
func TestTruncateKnowsLiftedStamps(t *testing.T) {
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), `CREATE TABLE t (v text, b int, a text, PRIMARY KEY (b, a))`)
	p.to.Exec(t, `INSERT INTO t VALUES ('goes', 1, 'k')`)
	p.to.Exec(t, `INSERT INTO t VALUES ('lifted', 2, 'k')`)
	at := p.to.Value(t, `SELECT (extract(epoch FROM pg_xact_commit_timestamp(xmin) - '2000-01-01 UTC') * 1000000)::int8 FROM t WHERE b = 2`)
	tab, err := p.a.catalog.table(t.Context(), "public", "t")
	if err != nil {
		t.Fatal(err)
	}
	key := append([]wire.Value{{Format: wire.Binary, Data: []byte("k")}}, intKey(2)...)
	p.wal.mu.Lock()
	p.wal.keys = map[wire.KeyHash]bool{tab.hasher.Hash(key, nil): true}
	p.wal.lifted[parseStamp(t, at)] = parseStamp(t, at) + 3600e6
	p.wal.mu.Unlock()
	p.do(`TRUNCATE t`)
	if got := p.to.Value(t, `SELECT string_agg(v, ',') FROM t`); got != "lifted" {
		t.Errorf("left: %s", got)
	}
}

// TestFailureInFrontOfAMissingTable: a transaction in flight fails while the one behind it cannot even be
// planned. The first one must be tried again, and free its keys.
func TestFailureInFrontOfAMissingTable(t *testing.T) {
	t.Parallel()
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT, "c")
	p.do(`INSERT INTO t VALUES (1, 'x')`)
	p.to.Exec(t, `UPDATE t SET v = 'local'`) // fails the guard
	p.from.Exec(t, `CREATE TABLE late (id int PRIMARY KEY)`)
	p.from.Exec(t, `BEGIN; UPDATE t SET v = 'y'; INSERT INTO t VALUES (2); COMMIT`)
	p.from.Exec(t, `INSERT INTO late VALUES (1)`)
	p.ship(nil, false)
	awaitTrue(t, func() bool { return p.status().Seq == p.seq-1 })
	awaitTrue(t, func() bool { return strings.Contains(p.status().Waiting, `"late" is not here`) })
	p.same(`SELECT * FROM t ORDER BY id`)
	locks := p.a.workers[0].locks
	locks.mu.Lock()
	defer locks.mu.Unlock()
	if len(locks.holders) != 0 {
		t.Errorf("%d transactions hold keys", len(locks.holders))
	}
}

// TestHotRowsAreDecidedSoon: whenever apply has waited for capture, local sessions have written the rows again.
func TestHotRowsAreDecidedSoon(t *testing.T) {
	t.Parallel()
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
	p.do(`INSERT INTO t SELECT generate_series(1, 20)`)
	hot := func() {
		for i := range 20 {
			p.to.Exec(t, `UPDATE t SET v = 'hot' WHERE id = $1`, i+1)
		}
	}
	hot()
	waits := 0
	p.wal.onPassed(func() { waits++; hot() })
	p.do(`UPDATE t SET v = 'y'`)
	if got := p.to.Value(t, `SELECT DISTINCT v FROM t`); got != "hot" || waits > 1 {
		t.Errorf("rows %s after %d waits", got, waits)
	}
}

// TestTakeBackUnderAnotherKey: the table's key has shrunk since capture read the delete.
func TestTakeBackUnderAnotherKey(t *testing.T) {
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), `CREATE TABLE t (a int, b int, PRIMARY KEY (a, b))`)
	p.do(`INSERT INTO t VALUES (1, 1)`)
	tab, err := p.a.catalog.table(t.Context(), "public", "t")
	if err != nil {
		t.Fatal(err)
	}
	p.to.Exec(t, `ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (a)`)
	key := append(intKey(1), intKey(1)...)
	p.a.LocalDelete("public", "t", key, tab.hasher.Hash(key, nil), origin.Version{Stamp: p.last + 1000, Origin: origin.Origin{Node: "b", Epoch: 1}}, 1, 500)
	awaitTrue(t, func() bool { return p.a.HoldLSN() == 0 })
	if got := p.to.Value(t, `SELECT count(*) FROM t`); got != "1" {
		t.Errorf("%s rows", got)
	}
}

// TestUpdatedKeysAreLocked, so that two origins do not meet on them in the database.
func TestUpdatedKeysAreLocked(t *testing.T) {
	t.Parallel()
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT, "c")
	p.do(`INSERT INTO t VALUES (1, 'x')`)
	tab, err := p.a.catalog.table(t.Context(), "public", "t")
	if err != nil {
		t.Fatal(err)
	}
	conn := p.to.Connect(t) // keeps the update in flight
	exec := func(sql string) {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(`BEGIN; SELECT FROM t FOR UPDATE`)
	p.from.Exec(t, `UPDATE t SET v = 'y'`)
	p.ship(nil, false)
	locks, key := p.a.workers[0].locks, tab.hasher.Hash(intKey(1), nil)
	awaitTrue(t, func() bool { return locks.holds(key) != nil })
	exec(`COMMIT`)
	p.await()
}

// TestTakeBacksThatCannotBePrepared leave the others alone, and nothing behind that is in their way.
func TestTakeBacksThatCannotBePrepared(t *testing.T) {
	t.Parallel()
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT+`; CREATE TABLE odd (id int PRIMARY KEY)`)
	p.do(`INSERT INTO t VALUES (1, 'x'), (2, 'x'); INSERT INTO odd VALUES (1)`)
	p.to.Exec(t, `CREATE RULE again AS ON DELETE TO odd DO INSTEAD DELETE FROM odd WHERE id = OLD.id; ALTER TABLE odd ENABLE ALWAYS RULE again`)
	for i, table := range []string{"t", "odd", "t"} {
		key := intKey(1 + i/2)
		tab, err := p.a.catalog.table(t.Context(), "public", table)
		if err != nil {
			t.Fatal(err)
		}
		p.a.LocalDelete("public", table, key, tab.hasher.Hash(key, nil), origin.Version{Stamp: p.last + 1000, Origin: origin.Origin{Node: "b", Epoch: 1}}, 1, uint64(500+i))
	}
	awaitValue(t, p, `SELECT count(*) FROM t`, "0")
	awaitTrue(t, func() bool { return p.a.HoldLSN() == 501 })
	p.to.Exec(t, `DROP RULE again ON odd`)
	awaitValue(t, p, `SELECT count(*) FROM odd`, "0")
}
