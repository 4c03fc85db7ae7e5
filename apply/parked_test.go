package apply

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

const parkedSchema = tableT + `; CREATE TABLE other (id int PRIMARY KEY, v text)`

// noNegatives makes table t refuse some rows; calm takes that back, without touching the table: ALTER TABLE would have its
// rows' versions read back from streams, which these tests do not have.
const (
	noNegatives = `CREATE FUNCTION allowed(n numeric) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RETURN n > 0; END $$;
		ALTER TABLE t ADD CONSTRAINT positive CHECK (public.allowed(n))`
	calm = `CREATE OR REPLACE FUNCTION allowed(n numeric) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RETURN true; END $$`
)

// newParkedPair is a node that refuses rows of t with n <= 0.
func newParkedPair(t *testing.T, peers ...string) *pair {
	p := newPairOf(t, pgtest.SharedServer(t, pgtest.Newest(t)), pgtest.SharedServer(t, pgtest.Newest(t)),
		parkedSchema, parkedSchema+`;`+noNegatives, peers...)
	p.do(`INSERT INTO t VALUES (1, 'one', 1), (2, 'two', 2), (3, 'three', 3); INSERT INTO other VALUES (1, 'x')`)
	return p
}

// parkedHere are the transactions that are parked, each with what it depends on.
func (p *pair) parkedHere() []string {
	p.t.Helper()
	return p.to.Query(p.t, `SELECT origin || ':' || seq || COALESCE(' ' || sqlstate, '') || COALESCE(' after ' || NULLIF(array_to_string(depends_on, ','), ''), '')
		FROM pgbridge.parked ORDER BY id`)
}

// name is the transaction behind those that were shipped so far, by n.
func (p *pair) name(n int) string { return fmt.Sprintf("a:%d", int(p.seq)+n) }

// request asks for something to be done about parked transactions and waits until the bridge has seen to it.
func (p *pair) request(name, request string) {
	p.t.Helper()
	if running, err := RequestParked(p.t.Context(), p.to.DSN, name, request); err != nil || !running {
		p.t.Fatalf("%s: %v, a bridge runs: %v", request, err, running)
	}
	awaitValue(p.t, p, `SELECT count(*) FROM pgbridge.parked WHERE request IS NOT NULL`, "0")
}

func (p *pair) restart(peers ...string) {
	p.t.Helper()
	if err := p.stop(); err != nil && !strings.Contains(err.Error(), "canceled") {
		p.t.Fatal(err)
	}
	p.start(peers...)
}

func wantRows(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%s:\ngot  %q\nwant %q", what, got, want)
	}
}

// TestRefusedTransactionsAreParkedWhole: whatever refuses one row, nothing of its transaction is there, what comes behind
// it is, and when the cause is gone all is as at the origin.
func TestRefusedTransactionsAreParkedWhole(t *testing.T) {
	t.Parallel()
	const raise = `CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.v = 'bad' THEN RAISE EXCEPTION 'not here' %s; END IF; RETURN NEW; END $$; `
	const trigger = `CREATE %s TRIGGER no %s INSERT ON r %s FOR EACH ROW EXECUTE FUNCTION no(); ALTER TABLE r ENABLE ALWAYS TRIGGER no`
	const dropped = `DROP TRIGGER no ON r`
	const plain = `CREATE TABLE r (id int PRIMARY KEY, v text)`
	const parts = plain + ` PARTITION BY RANGE (id); CREATE TABLE r1 PARTITION OF r DEFAULT`
	cases := []struct{ name, there, here, code, cure string }{
		{"check", plain, plain + `; ALTER TABLE r ADD CHECK (v <> 'bad')`, "23514", `ALTER TABLE r DROP CONSTRAINT r_v_check`},
		{"unique in one partition", plain, parts + `; CREATE UNIQUE INDEX u ON r1 ((v = 'bad')) WHERE v = 'bad'; INSERT INTO r VALUES (99, 'bad')`, "23505", `DELETE FROM r WHERE id = 99`},
		{"exclusion in one partition", plain, parts + `; ALTER TABLE r1 ADD CONSTRAINT x EXCLUDE USING btree ((v = 'bad') WITH =) WHERE (v = 'bad'); INSERT INTO r VALUES (99, 'bad')`, "23P01", `DELETE FROM r WHERE id = 99`},
		{"not null", plain, plain + `; ALTER TABLE r ADD extra int NOT NULL`, "23502", `ALTER TABLE r DROP COLUMN extra`},
		{"too long", `CREATE TABLE r (id int PRIMARY KEY, v varchar)`, `CREATE TABLE r (id int PRIMARY KEY, v varchar(2))`, "22001", `ALTER TABLE r ALTER v TYPE varchar`},
		{"partition", plain, `CREATE TABLE r (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)`, "23514", `CREATE TABLE r1 PARTITION OF r DEFAULT`},
		{"trigger", plain, plain + `;` + fmt.Sprintf(raise, "") + fmt.Sprintf(trigger, "", "BEFORE", ""), "P0001", dropped},
		{"trigger's own code", plain, plain + `;` + fmt.Sprintf(raise, "USING ERRCODE = 'PT404'") + fmt.Sprintf(trigger, "", "BEFORE", ""), "PT404", dropped},
		{"at commit", plain, plain + `;` + fmt.Sprintf(raise, "") + fmt.Sprintf(trigger, "CONSTRAINT", "AFTER", "DEFERRABLE INITIALLY DEFERRED"), "P0001", dropped},
	}
	schema := func(i int) string { return fmt.Sprintf("case_%d", i) }
	there, here := parkedSchema, parkedSchema
	for i, c := range cases {
		enter := fmt.Sprintf("; CREATE SCHEMA %s; SET search_path = %[1]s; ", schema(i))
		there += enter + c.there
		here += enter + c.here
	}
	s := pgtest.SharedServer(t, pgtest.Newest(t))
	p := newPairOf(t, s, s, there, here)
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			bad, seq := p.name(1), p.seq
			p.do(fmt.Sprintf(`BEGIN; INSERT INTO other VALUES (%d, 'with it'); INSERT INTO %s.r VALUES (1, 'bad'); COMMIT`, 2*i, schema(i)))
			p.do(fmt.Sprintf(`INSERT INTO other VALUES (%d, 'behind it')`, 2*i+1))
			wantRows(t, "other", p.to.Query(t, `SELECT id FROM other WHERE id >= $1`, 2*i), fmt.Sprint(2*i+1))
			wantRows(t, "parked", p.parkedHere(), bad+" "+c.code)
			if st := p.status(); st.Parked != 1 || st.Waiting != "" || st.Seq != seq+2 {
				t.Errorf("status %+v", st)
			}
			p.request(bad, requestRetry)
			wantRows(t, "still parked", p.to.Query(t, `SELECT attempts, sqlstate FROM pgbridge.parked`), "1|"+c.code)
			p.to.Exec(t, fmt.Sprintf("SET search_path = %s; %s", schema(i), c.cure))
			p.request(bad, requestRetry)
			wantRows(t, "parked", p.parkedHere())
			p.same(`SELECT id, v FROM ` + schema(i) + `.r`)
			p.same(`SELECT * FROM other ORDER BY id`)
		})
	}
}

// TestWhatWouldStopAllIsNotParked: without its table an origin waits, and with it goes on.
func TestWhatWouldStopAllIsNotParked(t *testing.T) {
	for code, want := range map[string]bool{
		"23514": true, "22003": true, "P0001": true, "44000": true, "54000": true, "ABCDE": true, "38000": true, "27000": true,
		"42P01": false, "42703": false, "42804": false, "42501": false, "25006": false, "53100": false, "53200": false, "57014": false,
		"57P01": false, "40001": false, "40P01": false, "55P03": false, "XX000": false, "08006": false, "54001": false, "0A000": false,
	} {
		if got := poison(&pgconn.PgError{Code: code}) != nil; got != want {
			t.Errorf("%s is parked: %v", code, got)
		}
	}
	if poison(errUnknown) != nil {
		t.Error("what is not the server's error is parked")
	}
}

// TestDependentsAreParkedOthersFlow: what touches a row of a parked transaction stays behind it, of any origin that had seen
// it; everything else goes on. They are applied in their order.
func TestDependentsAreParkedOthersFlow(t *testing.T) {
	t.Parallel()
	p := newParkedPair(t, "c")
	first := p.seq
	p.do(`BEGIN; UPDATE t SET v = 'bad', n = -1 WHERE id = 1; INSERT INTO t VALUES (4, 'four', 4); COMMIT`)
	bad := p.name(0)
	p.do(`UPDATE t SET v = 'again', n = 1 WHERE id = 1`)
	p.do(`UPDATE t SET id = 5 WHERE id = 4`)
	p.do(`UPDATE t SET v = 'moved' WHERE id = 5`)
	p.do(`UPDATE t SET v = 'free' WHERE id = 2`)
	p.update(nodeC, wire.Begin{Seq: 1, Stamp: p.last + 1}, origin.Vector{{Origin: nodeA, Seq: first + 2, Stamp: p.last}}, 1, "c")
	p.update(nodeC, wire.Begin{Seq: 2, Stamp: p.last + 2}, origin.Vector{{Origin: nodeA, Seq: first, Stamp: p.last}}, 3, "c")
	awaitValue(t, p, `SELECT v FROM t WHERE id = 3`, "c")
	wantRows(t, "rows", p.to.Query(t, `SELECT id, v FROM t ORDER BY id`), "1|one", "2|free", "3|c")
	again := fmt.Sprintf("a:%d", first+2)
	got := p.parkedHere()
	if len(got) != 5 || got[0] != bad+" 23514" || got[1] != again+" after "+bad || got[2] != fmt.Sprintf("a:%d after %s", first+3, bad) ||
		got[3] != fmt.Sprintf("a:%d after a:%d", first+4, first+3) || got[4] != "c:1 after "+bad+","+again {
		t.Fatalf("parked %q", got)
	}
	p.to.Exec(t, calm)
	p.request(bad, requestRetry)
	awaitValue(t, p, `SELECT count(*) FROM pgbridge.parked`, "0")
	wantRows(t, "rows", p.to.Query(t, `SELECT id, v, n FROM t ORDER BY id`), "1|c|∅", "2|free|2", "3|c|∅", "5|moved|4")
	p.same(`SELECT id, v FROM t WHERE id IN (2, 5)`)
}

// TestTruncateDependsOnParkedRows: and whoever comes behind a parked TRUNCATE depends on it by the table.
func TestTruncateDependsOnParkedRows(t *testing.T) {
	t.Parallel()
	p := newParkedPair(t)
	p.do(`UPDATE t SET n = -1 WHERE id = 1`)
	bad := p.name(0)
	p.do(`TRUNCATE t`)
	wiped := p.name(0)
	p.do(`INSERT INTO t VALUES (7, 'seven', 7)`)
	p.do(`INSERT INTO other VALUES (7, 'x')`)
	wantRows(t, "parked", p.parkedHere(), bad+" 23514", wiped+" after "+bad, p.name(-1)+" after "+wiped)
	wantRows(t, "rows", p.to.Query(t, `SELECT id FROM t ORDER BY id`), "1", "2", "3")
	p.same(`SELECT * FROM other ORDER BY id`)
	p.restart()
	p.do(`INSERT INTO t VALUES (8, 'eight', 8)`)
	if got := p.parkedHere(); len(got) != 4 {
		t.Errorf("parked %q", got)
	}
	p.to.Exec(t, calm)
	p.request("", requestRetry)
	awaitValue(t, p, `SELECT count(*) FROM pgbridge.parked`, "0")
	p.same(`SELECT * FROM t ORDER BY id`)
}

// TestParkedIsAtomicWithThePosition: a bridge that loses its connection when the transaction is stored but the position
// has not moved, or at the COMMIT, finds neither when it comes again, and parks the transaction then, once.
func TestParkedIsAtomicWithThePosition(t *testing.T) {
	t.Parallel()
	const dies = `CREATE FUNCTION dies() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		IF EXISTS (SELECT FROM pgbridge.parked) THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN NEW; END $$; `
	for _, c := range []struct{ name, table, trigger string }{
		{"before the position moves", "position", `CREATE TRIGGER dies BEFORE UPDATE ON pgbridge.position FOR EACH ROW EXECUTE FUNCTION dies()`},
		{"at the commit", "parked", `CREATE CONSTRAINT TRIGGER dies AFTER INSERT ON pgbridge.parked DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION dies()`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newParkedPair(t)
			p.to.Exec(t, dies+c.trigger+`; ALTER TABLE pgbridge.`+c.table+` ENABLE ALWAYS TRIGGER dies`)
			before := p.to.Value(t, `SELECT seq FROM pgbridge.position WHERE origin = 'a'`)
			p.from.Exec(t, `UPDATE t SET n = -1 WHERE id = 1`)
			p.ship(nil, false)
			<-p.ended // by itself
			if err := p.stop(); !strings.Contains(fmt.Sprint(err), "57P01") {
				t.Errorf("the applier ended with %v", err)
			}
			wantRows(t, "parked", p.parkedHere())
			wantRows(t, "position", p.to.Query(t, `SELECT seq FROM pgbridge.position WHERE origin = 'a'`), before)
			p.to.Exec(t, `DROP TRIGGER dies ON pgbridge.`+c.table)
			p.start()
			for range 2 { // the second time it is a duplicate
				if err := p.a.Feed(t.Context(), nodeA, p.streamed, p.frame); err != nil {
					t.Fatal(err)
				}
			}
			p.await()
			wantRows(t, "parked", p.parkedHere(), p.name(0)+" 23514")
			p.do(`UPDATE t SET v = 'free' WHERE id = 2`)
			wantRows(t, "rows", p.to.Query(t, `SELECT id, v FROM t ORDER BY id`), "1|one", "2|free", "3|three")
		})
	}
}

// TestRetryConverges: the transaction takes the careful path with its own stamp. What is later stays, and is recorded as
// what won; what is older, and concurrent, goes.
func TestRetryConverges(t *testing.T) {
	t.Parallel()
	p := newParkedPair(t, "c")
	base := origin.Vector{{Origin: nodeA, Seq: p.seq, Stamp: p.last}}
	p.do(`BEGIN; UPDATE t SET v = 'remote', n = -1 WHERE id = 1; UPDATE t SET v = 'remote', n = -2 WHERE id = 2; UPDATE t SET v = 'remote', n = -3 WHERE id = 3; COMMIT`)
	stamp := p.last
	p.do(`UPDATE other SET v = 'y'`) // the session's origin has another stamp since
	p.to.Exec(t, `UPDATE t SET v = 'local, later' WHERE id = 1`)
	p.update(nodeC, wire.Begin{Seq: 1, Stamp: stamp - 1}, base, 2, "c, older")
	p.update(nodeC, wire.Begin{Seq: 2, Stamp: stamp + 1}, base, 3, "c, later")
	awaitValue(t, p, `SELECT v FROM t WHERE id = 3`, "c, later")
	wantRows(t, "before", p.to.Query(t, `SELECT id, v FROM t ORDER BY id`), "1|local, later", "2|c, older", "3|c, later")
	p.to.Exec(t, calm)
	p.request("", requestRetry)
	awaitValue(t, p, `SELECT count(*) FROM pgbridge.parked`, "0")
	wantRows(t, "after", p.to.Query(t, `SELECT id, v FROM t ORDER BY id`), "1|local, later", "2|remote", "3|c, later")
	wantRows(t, "history", p.to.Query(t, `SELECT outcome, remote_origin, local_origin, remote_row->>'v' FROM pgbridge.conflict WHERE remote_origin = 'a' ORDER BY local_row->>'id'`),
		"local wins|a|b|remote", "remote wins|a|c|remote", "local wins|a|c|remote")
	got := p.to.Value(t, `SELECT (extract(epoch FROM pg_xact_commit_timestamp(xmin) - '2000-01-01 UTC') * 1000000)::int8 FROM t WHERE id = 2`)
	if want := fmt.Sprint(int64(stamp)); got != want {
		t.Errorf("the row bears stamp %s, want the transaction's own %s", got, want)
	}
	awaitTrue(t, func() bool { return p.status().Parked == 0 }) // it is counted behind the commit
	if st := p.status(); st.Seq != p.seq {
		t.Errorf("status %+v, want seq %d as before", st, p.seq)
	}
	p.do(`UPDATE t SET v = 'goes on' WHERE id = 2`)
}

// TestParkedDeleteLeavesItsTombstone: an older insert that comes when the delete has been tried again is beaten by it.
func TestParkedDeleteLeavesItsTombstone(t *testing.T) {
	t.Parallel()
	p := newParkedPair(t, "c")
	base := origin.Vector{{Origin: nodeA, Seq: p.seq, Stamp: p.last}}
	p.do(`BEGIN; DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (9, 'bad', -1); COMMIT`)
	p.to.Exec(t, calm)
	p.request("", requestRetry)
	p.update(nodeC, wire.Begin{Seq: 1, Stamp: p.last - 1}, base, 1, "older than the delete")
	p.update(nodeC, wire.Begin{Seq: 2, Stamp: p.last + 1}, base, 2, "c")
	awaitValue(t, p, `SELECT v FROM t WHERE id = 2`, "c")
	wantRows(t, "rows", p.to.Query(t, `SELECT id FROM t ORDER BY id`), "2", "3", "9")
	wantRows(t, "tombstone", p.to.Query(t, `SELECT seq FROM pgbridge.tombstone`), fmt.Sprint(p.seq))
}

// TestDiscardIsRecorded: the changes go into the history, with what stands here, and those that depended on them go on.
func TestDiscardIsRecorded(t *testing.T) {
	t.Parallel()
	p := newParkedPair(t)
	p.do(`BEGIN; UPDATE t SET v = 'bad', n = -1 WHERE id = 1; INSERT INTO t VALUES (4, 'four', -4); DELETE FROM t WHERE id = 3; COMMIT`)
	bad := p.name(0)
	p.do(`UPDATE t SET v = 'five', n = 5 WHERE id = 4`)
	p.request(bad, requestDiscard)
	awaitValue(t, p, `SELECT count(*) FROM pgbridge.parked`, "0")
	wantRows(t, "history", p.to.Query(t, `SELECT relation, kind, outcome, remote_origin || ':' || remote_seq, local_origin, local_stamp > 0,
		local_row->>'v', remote_row->>'id', remote_row->>'v', remote_row->>'n' FROM pgbridge.conflict ORDER BY id`),
		"public.t|discarded|local wins|"+bad+"|a|t|one|1|bad|-1",
		"public.t|discarded|local wins|"+bad+"|b|f|∅|4|four|-4",
		"public.t|discarded|local wins|"+bad+"|a|t|three|∅|∅|∅")
	wantRows(t, "rows", p.to.Query(t, `SELECT id, v FROM t ORDER BY id`), "1|one", "2|two", "3|three", "4|five")
	awaitTrue(t, func() bool { st := p.status(); return st.Parked == 0 && st.Waiting == "" })
}

// TestDiscardWithoutTheTable: nothing is dropped in silence, even what this server cannot read any more.
func TestDiscardWithoutTheTable(t *testing.T) {
	t.Parallel()
	p := newParkedPair(t)
	p.do(`INSERT INTO t VALUES (4, 'bad', -4)`)
	p.to.Exec(t, `ALTER TABLE t RENAME TO gone`)
	p.request("", requestRetry)
	p2, changes, err := ShowParked(t.Context(), p.to.DSN, p.name(0), 10)
	if err != nil || len(changes) != 1 || !strings.Contains(changes[0].Unread, "is not here") || !strings.Contains(string(changes[0].New), `"id":"\\x00000004"`) {
		t.Errorf("shown are %+v of %+v, %v", changes, p2, err)
	}
	if p2 != nil && !strings.Contains(p2.Message, "is not here") {
		t.Errorf("the reason is still %q", p2.Message)
	}
	p.request("", requestDiscard)
	awaitValue(t, p, `SELECT count(*) FROM pgbridge.parked`, "0")
	wantRows(t, "history", p.to.Query(t, `SELECT kind, remote_row->'insert'->>'id' FROM pgbridge.conflict`), `discarded|\x00000004`)
}

// TestParkedIsShown: list and show tell what an operator needs.
func TestParkedIsShown(t *testing.T) {
	t.Parallel()
	p := newParkedPair(t)
	p.do(`BEGIN; UPDATE t SET v = 'fine' WHERE id = 2; UPDATE t SET n = -1 WHERE id = 1; DELETE FROM t WHERE id = 3; COMMIT`)
	list, err := ParkedTransactions(t.Context(), p.to.DSN)
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	l := list[0]
	if l.Name() != p.name(0) || l.SQLState != "23514" || l.Constraint != "positive" || l.Table != "public.t" || string(l.Key) != `{"id":1}` ||
		l.Changes != 3 || !strings.Contains(l.Message, "violates check constraint") || l.At.IsZero() {
		t.Errorf("listed is %+v", l)
	}
	for _, name := range []string{l.Name(), fmt.Sprint(l.ID)} {
		_, changes, err := ShowParked(t.Context(), p.to.DSN, name, 2)
		if err != nil || len(changes) != 2 || changes[0].Kind != "update" || changes[0].Table != "public.t" ||
			string(changes[1].New) != `{"id":1,"v":"one","n":-1}` || changes[1].Unread != "" {
			t.Errorf("shown is %+v, %v", changes, err)
		}
		_, changes, err = ShowParked(t.Context(), p.to.DSN, name, 10)
		if err != nil || len(changes) != 3 || string(changes[2].Old) != `{"id":3}` || changes[2].New != nil {
			t.Errorf("shown is %+v, %v", changes, err)
		}
	}
	for _, name := range []string{"a:999", "77777", "nonsense", "a:x"} {
		if _, _, err := ShowParked(t.Context(), p.to.DSN, name, 1); !errors.Is(err, ErrNotParked) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// told is what the markers of the node have told of origin a: announced, and done.
func (p *pair) told(slot string) (up, done uint64) {
	p.t.Helper()
	if _, err := p.a.markers.flush(p.t.Context()); err != nil { // decoding reads what is flushed
		p.t.Fatal(err)
	}
	rows, err := p.to.Connect(p.t).Query(p.t.Context(), `SELECT data FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL,
		'proto_version', '1', 'publication_names', 'p', 'messages', 'true')`, slot)
	if err != nil {
		p.t.Fatal(err)
	}
	messages, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		p.t.Fatal(err)
	}
	for _, m := range messages {
		if m[0] != 'M' {
			continue
		}
		_, content, _ := bytes.Cut(m[10:], []byte{0})
		marker, err := wire.ParseMarker(content[4:][:binary.BigEndian.Uint32(content)])
		if err != nil {
			p.t.Fatal(err)
		}
		up, done = max(up, marker.Up.Seq(nodeA)), max(done, marker.Done.Seq(nodeA))
	}
	return up, done
}

// TestParkedIsDeclaredButNotSeen: what is told to others ends in front of the oldest parked transaction, also after a
// restart, while `up` goes on; when it is applied all of it is told (R23).
func TestParkedIsDeclaredButNotSeen(t *testing.T) {
	t.Parallel()
	p := newParkedPair(t, "c")
	slot := "pgb_" + p.to.Name + "_told"
	p.to.Exec(t, `CREATE PUBLICATION p`)
	p.to.Exec(t, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
	before := p.seq
	want := func(what string, up, done uint64) {
		t.Helper()
		if gotUp, gotDone := p.told(slot); gotUp != up || gotDone != done {
			t.Errorf("%s: told are %d announced and %d done, want %d and %d", what, gotUp, gotDone, up, done)
		}
	}
	p.do(`UPDATE t SET n = -1 WHERE id = 1`)
	p.do(`UPDATE t SET v = 'free' WHERE id = 2`)
	p.do(`UPDATE t SET n = -3 WHERE id = 3`)
	want("parked", p.seq, before)
	p.restart("c")
	p.do(`UPDATE t SET v = 'freer' WHERE id = 2`)
	want("after a restart", p.seq, before)
	p.to.Exec(t, strings.Replace(calm, "true", "n > -3", 1))
	reached := func(done uint64) { // a little later than the parked transaction is gone from its table
		t.Helper()
		awaitTrue(t, func() bool { _, got := p.told(slot); return got >= done })
	}
	p.request("", requestRetry)
	reached(before + 2)
	want("the first is applied", p.seq, before+2)
	p.request(p.name(-1), requestDiscard)
	reached(p.seq)
	want("the second is discarded", p.seq, p.seq)
	idle := p.to.Value(t, `SELECT pg_current_wal_insert_lsn()`)
	p.do(`UPDATE t SET v = 'on' WHERE id = 2`)
	want("later", p.seq, p.seq)
	if idle == "" {
		t.Error("no WAL position")
	}
}

// TestParkedHoldsStability: what the parked transaction's author had not seen must not be forgotten, since it is still to
// come; own transactions too (R22).
func TestParkedHoldsStability(t *testing.T) {
	t.Parallel()
	p := newParkedPair(t, "c")
	own := origin.Origin{Node: "b", Epoch: 1}
	at := func(seq uint64) origin.Vector {
		return origin.Vector{{Origin: own, Seq: seq, Stamp: origin.Stamp(seq)}, {Origin: nodeC, Seq: seq, Stamp: origin.Stamp(seq)}}
	}
	stable := func(what string, want uint64) {
		t.Helper()
		if o, c := p.a.heard.stableSeq(own), p.a.heard.stableSeq(nodeC); o != want || c != want {
			t.Errorf("%s: stable are %d and %d, want %d", what, o, c, want)
		}
	}
	p.a.progress.advance(origin.Entry{Origin: nodeC, Seq: 100, Stamp: 100})
	p.a.heard.hear(nodeC, 1, at(100))
	p.from.Exec(t, `UPDATE t SET n = -1 WHERE id = 1`)
	p.ship(at(10), false)
	p.await()
	p.from.Exec(t, `UPDATE t SET v = 'free' WHERE id = 2`)
	p.ship(at(20), false)
	p.await()
	stable("parked", 10)
	p.to.Exec(t, calm)
	p.request("", requestRetry)
	awaitTrue(t, func() bool { return p.a.heard.stableSeq(own) == 20 })
	stable("applied", 20)
}

// TestRestartTriesAgain: after a restart the set is there, and without anybody asking, what is refused no more is applied.
func TestRestartTriesAgain(t *testing.T) {
	t.Parallel()
	p := newParkedPair(t)
	p.do(`UPDATE t SET v = 'bad', n = -1 WHERE id = 1`)
	bad := p.name(0)
	p.restart()
	p.do(`UPDATE t SET v = 'behind', n = 1 WHERE id = 1`)
	p.do(`UPDATE t SET v = 'free' WHERE id = 2`)
	wantRows(t, "parked", p.parkedHere(), bad+" 23514", p.name(-1)+" after "+bad)
	p.stop()
	p.to.Exec(t, calm)
	p.start()
	awaitValue(t, p, `SELECT count(*) FROM pgbridge.parked`, "0")
	p.same(`SELECT * FROM t ORDER BY id`)
}

// TestParkedIsTriedNowAndThen: without a request, when its time has come.
func TestParkedIsTriedNowAndThen(t *testing.T) {
	t.Parallel()
	p := newParkedPair(t)
	p.do(`UPDATE t SET n = -1 WHERE id = 1`)
	p.to.Exec(t, calm)
	p.do(`UPDATE t SET v = 'free' WHERE id = 2`)
	if got := p.parkedHere(); len(got) != 1 {
		t.Fatalf("parked %q", got)
	}
	p.ahead.Store(int64(2 * retryPause))
	awaitValue(t, p, `SELECT count(*) FROM pgbridge.parked`, "0")
	p.same(`SELECT * FROM t ORDER BY id`)
}

// TestRequestInterruptsAHold: an origin that waits for another one does what is asked about its parked transactions.
func TestRequestInterruptsAHold(t *testing.T) {
	t.Parallel()
	p := newParkedPair(t, "c")
	p.do(`UPDATE t SET n = -1 WHERE id = 1`)
	p.from.Exec(t, `UPDATE t SET v = 'held' WHERE id = 2`)
	p.ship(origin.Vector{{Origin: nodeC, Seq: 1, Stamp: 1}}, false)
	awaitTrue(t, func() bool { return strings.Contains(p.status().Waiting, "waits for c:1") })
	p.to.Exec(t, calm)
	p.request("", requestRetry)
	wantRows(t, "rows", p.to.Query(t, `SELECT id, v, n FROM t ORDER BY id`), "1|one|-1", "2|two|2", "3|three|3")
}

// TestParkedAreBounded: beyond the limit the origin waits and says why; it goes on when there is room.
func TestParkedAreBounded(t *testing.T) {
	t.Parallel()
	p := newParkedPair(t)
	p.limit = 1
	p.restart()
	p.do(`UPDATE t SET n = -1 WHERE id = 1`)
	p.from.Exec(t, `UPDATE t SET n = -2 WHERE id = 2`)
	p.ship(nil, false)
	awaitTrue(t, func() bool { return strings.Contains(p.status().Waiting, "no more than 1 transactions may be parked") })
	if got := p.parkedHere(); len(got) != 1 {
		t.Errorf("parked %q", got)
	}
	p.to.Exec(t, calm)
	p.await()
	p.request("", requestRetry)
	p.same(`SELECT * FROM t ORDER BY id`)
}

// TestTooLargeToBeParkedWaits: and a large one below the limit is parked like any other.
func TestTooLargeToBeParkedWaits(t *testing.T) {
	t.Parallel()
	p := newParkedPair(t)
	p.from.Exec(t, `INSERT INTO t SELECT i, 'x', -1 FROM generate_series(10, 1000) i`)
	p.ship(nil, true)
	p.await()
	wantRows(t, "parked", p.parkedHere(), p.name(0)+" 23514")
	p.from.Exec(t, `UPDATE t SET v = 'y' WHERE id = 10; INSERT INTO t SELECT i, repeat('x', 5000) FROM generate_series(2000, 3000) i`)
	p.ship(nil, true)
	awaitTrue(t, func() bool {
		w := p.status().Waiting
		return strings.Contains(w, "has more than the 4194304 bytes") && strings.Contains(w, "depends on parked "+p.name(-1))
	})
	p.to.Exec(t, calm)
	p.request("", requestRetry)
	p.await()
	p.same(`SELECT * FROM t ORDER BY id`)
}

// TestBundleParksOnlyTheCulprit: of many transactions that were to be applied as one.
func TestBundleParksOnlyTheCulprit(t *testing.T) {
	t.Parallel()
	p := newParkedPair(t)
	first := p.seq
	for i := range 60 {
		n := 1
		if i == 30 {
			n = -1
		}
		p.commit(fmt.Sprintf(`INSERT INTO t VALUES (%d, 'x', %d)`, 100+i, n))
	}
	p.commit(`UPDATE t SET v = 'y' WHERE id = 130`)
	p.commit(`UPDATE t SET v = 'y' WHERE id = 131`)
	p.ship(nil, false)
	p.await()
	bad := fmt.Sprintf("a:%d", first+31)
	wantRows(t, "parked", p.parkedHere(), bad+" 23514", fmt.Sprintf("a:%d after %s", first+61, bad))
	wantRows(t, "rows", p.to.Query(t, `SELECT count(*) FROM t`), "62")
	wantRows(t, "last row", p.to.Query(t, `SELECT v FROM t WHERE id = 131`), "y")
	if st := p.status(); st.Bundled == 0 {
		t.Errorf("status %+v, want a bundle", st)
	}
	p.to.Exec(t, calm)
	p.request("", requestRetry)
	awaitValue(t, p, `SELECT count(*) FROM pgbridge.parked`, "0")
	p.same(`SELECT * FROM t ORDER BY id`)
}

// TestLocalDeleteTakesARetriedRowBack: a local delete of a row that a transaction is about to create, met by capture while
// that one is tried again, waits until it has ended. By its seq, which the position has long passed, it would not.
func TestLocalDeleteTakesARetriedRowBack(t *testing.T) {
	t.Parallel()
	p := newParkedPair(t)
	p.do(`BEGIN; UPDATE t SET v = 'x', n = 1 WHERE id = 1; INSERT INTO t VALUES (9, 'bad', -1); COMMIT`)
	p.to.Exec(t, `UPDATE t SET v = 'local' WHERE id = 1`)
	p.to.Exec(t, calm)
	tab, err := p.a.catalog.table(t.Context(), "public", "t")
	if err != nil {
		t.Fatal(err)
	}
	told := false
	p.wal.mu.Lock()
	p.wal.judged = func() { // under way, and its keys are registered
		if told {
			return
		}
		told = true
		key := intKey(9)
		d := tombstone{origin.Version{Stamp: p.last + 1000, Origin: origin.Origin{Node: "b", Epoch: 1}}, 1}
		p.a.absence.deleted(tableName{"public", "t"}, key, tab.hasher.Hash(key, nil), d, 1, true)
		if due := p.a.absence.due(p.a.progress.vector(), 10); len(due) > 0 {
			t.Error("the row is taken back before it is there")
		}
	}
	p.wal.mu.Unlock()
	p.request("", requestRetry)
	if !told {
		t.Fatal("no local row was judged")
	}
	awaitValue(t, p, `SELECT count(*) FROM t WHERE id = 9`, "0")
}

// TestSettledBehindAParkedTransaction: that what is told ends in front of a parked transaction must not keep this node from
// knowing that capture has passed what was applied behind it: an update that leaves a large value unchanged would wait for
// ever.
func TestSettledBehindAParkedTransaction(t *testing.T) {
	t.Parallel()
	p := newParkedPair(t)
	p.do(`UPDATE t SET n = -1 WHERE id = 1`)
	big := `(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 400) i)`
	p.do(`INSERT INTO t VALUES (8, ` + big + `, 8)`)
	p.wal.tell(origin.Vector{{Origin: nodeA, Seq: p.seq - 2, Stamp: p.last - 2}}) // as far as the markers tell
	p.do(`UPDATE t SET n = 9 WHERE id = 8`)
	p.same(`SELECT * FROM t WHERE id = 8`)
	awaitTrue(t, func() bool {
		p.a.absence.mu.Lock()
		defer p.a.absence.mu.Unlock()
		return len(p.a.absence.registered)+p.a.absence.freshKeys == 0
	})
}

// TestPastLeavesOutParkedWrites: a parked write is in its stream, but not in the rows here.
func TestPastLeavesOutParkedWrites(t *testing.T) {
	s := newParked(&Options{}, newProgress(), newHearsay(origin.Origin{Node: "b", Epoch: 1}, []origin.Origin{nodeA}), []origin.Origin{nodeA})
	e := &parkedTxn{id: 1, Entry: origin.Entry{Origin: nodeA, Seq: 7, Stamp: 7}, reach: reach{keys: []wire.KeyHash{{Hi: 1}}}}
	s.add(e)
	r := recaller{planner: &planner{w: &worker{parked: s}}, upTo: 10}
	for seq, want := range map[uint64]bool{7: false, 8: true} {
		err := r.txn(&txn{Begin: wire.Begin{Seq: seq}, origin: nodeA, body: []byte{0xff}})
		if read := errors.Is(err, wire.ErrCorrupt); read != want {
			t.Errorf("transaction %d is read: %v", seq, err)
		}
	}
	s.remove(e)
	if s.has(nodeA, 7) || len(s.keys) != 0 || s.bytes != 0 {
		t.Errorf("something is left: %+v", s.keys)
	}
}

// TestConcurrentIsNotKept: only what had, or may have had, seen a parked transaction depends on it.
func TestConcurrentIsNotKept(t *testing.T) {
	s := newParked(&Options{}, newProgress(), newHearsay(origin.Origin{Node: "b", Epoch: 1}, []origin.Origin{nodeA, nodeC}), []origin.Origin{nodeA, nodeC})
	r := &reach{keys: []wire.KeyHash{{Hi: 1}}, tables: []tableName{{"s", "t"}}}
	first := &parkedTxn{id: 1, Entry: origin.Entry{Origin: nodeA, Seq: 7, Stamp: 7}, reach: *r}
	s.add(first)
	for up, want := range map[uint64]int{6: 0, 7: 1, 8: 1} {
		if got := s.before(&txn{origin: nodeC, up: origin.Vector{{Origin: nodeA, Seq: up}}}, r); len(got) != want {
			t.Errorf("up %d: depends on %d transactions, want %d", up, len(got), want)
		}
	}
	if got := s.before(&txn{origin: nodeA}, r); len(got) != 1 {
		t.Error("the same origin's own transaction does not depend")
	}
	if got := s.before(&txn{origin: nodeA}, &reach{wiped: r.tables}); len(got) != 1 {
		t.Error("a truncate of the table does not depend")
	}
	second := &parkedTxn{id: 2, Entry: origin.Entry{Origin: nodeC, Seq: 1, Stamp: 9}, reach: *r, due: time.Now().Add(time.Hour)}
	s.add(second)
	if e, _ := s.next(nodeC, time.Now().Add(2*time.Hour)); e != nil {
		t.Error("the second may go first")
	}
	s.remove(first)
	if e, _ := s.next(nodeC, time.Now()); e != second {
		t.Error("the second is not due though the first is through")
	}
	if now := s.progress.now(); len(now.done) != 0 {
		t.Errorf("done is %v", now.done)
	}
}

// TestRetriesLeaveTurns: while many are tried in vain, what comes in goes on.
func TestRetriesLeaveTurns(t *testing.T) {
	t.Parallel()
	p := newParkedPair(t)
	const many = 100
	for i := range many {
		p.commit(fmt.Sprintf(`INSERT INTO t VALUES (%d, 'bad', -1)`, 100+i))
	}
	p.ship(nil, false)
	p.await()
	attempts := func() int {
		n, err := strconv.Atoi(p.to.Value(t, `SELECT sum(attempts) FROM pgbridge.parked`))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if _, err := RequestParked(t.Context(), p.to.DSN, "", requestRetry); err != nil {
		t.Fatal(err)
	}
	awaitTrue(t, func() bool { return attempts() > 0 })
	p.do(`UPDATE t SET v = 'in between' WHERE id = 1`)
	if n := attempts(); n >= many {
		t.Errorf("%d tries came first", n)
	}
	awaitTrue(t, func() bool { return attempts() >= many })
}
