package apply

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// wholeDelta has the pair's node b give node a, whose data were set back, what it lacks.
func (p *pair) wholeDelta(have origin.Vector, keys map[wire.KeyHash]bool) *os.File {
	p.t.Helper()
	conn := p.to.Connect(p.t)
	if _, err := conn.Exec(p.t.Context(), `BEGIN ISOLATION LEVEL REPEATABLE READ`); err != nil {
		p.t.Fatal(err)
	}
	var snapshot string
	if err := conn.QueryRow(p.t.Context(), `SELECT pg_export_snapshot()`).Scan(&snapshot); err != nil {
		p.t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(p.t.TempDir(), "delta"))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { file.Close() })
	b := origin.Origin{Node: "b", Epoch: 1}
	own := origin.Entry{Origin: b, Seq: 1, Stamp: origin.StampOf(time.Now())}
	p.a.journal.advance(own) // as if capture had read it
	err = p.a.Delta(p.t.Context(), Donation{Snapshot: snapshot, Publication: "q", Taken: func() {}, Have: have,
		Own:   func(context.Context) (origin.Entry, error) { return own, nil },
		Whole: &Whole{For: nodeA, Settled: origin.Vector{have.Get(nodeA), own}, Keys: keys}}, file)
	if err != nil {
		p.t.Fatal(err)
	}
	return file
}

// TestComeback: a node's data were set back to its first transaction, and its users have written since. It gets what another node has,
// deletes that nobody remembers too; and what its users wrote, and deleted, is written again: once more if the node is brought back
// again before anybody has got it. That the first transaction is there, what the node had noted tells, or the commit time.
func TestComeback(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		other := pgtest.NewServer(t, s.Major) // whose commit times say nothing of those of s
		for _, noted := range []bool{true, false} {
			t.Run(map[bool]string{true: "noted", false: "not noted"}[noted], func(t *testing.T) { testComeback(t, s, other, noted) })
		}
	})
}

func testComeback(t *testing.T, s, other *pgtest.Server, noted bool) {
	const schema = `CREATE TABLE t (id int PRIMARY KEY, v text, u int UNIQUE); CREATE TABLE counter (id int PRIMARY KEY, n int); ALTER TABLE counter REPLICA IDENTITY FULL;
		CREATE TABLE large (id int PRIMARY KEY, v text); ALTER TABLE large ALTER COLUMN v SET STORAGE EXTERNAL`
	merge := []MergePolicy{{Pattern: "*.counter", Match: func(_, table string) bool { return table == "counter" }, Rows: conflict.Latest,
		Columns: []MergeColumns{{Names: []string{"n"}, Rule: conflict.Delta}}}}
	p := newPair(t, other, schema)
	p.merge = merge
	p.restart()
	p.to.Exec(t, `CREATE PUBLICATION q FOR TABLE t, counter, large`)
	restored := s.NewDatabase(t)
	restored.Exec(t, schema)
	if err := Setup(t.Context(), pgtest.Connect(t, restored.DSN), SetupOptions{Cluster: p.to.Name, Node: "a", Peers: []string{"b"}}); err != nil {
		t.Fatal(err)
	}

	const first = `INSERT INTO t SELECT i, 'first', i FROM generate_series(1, 10) i; INSERT INTO counter VALUES (1, 10), (2, 10); INSERT INTO large VALUES (1, repeat('a', 9000))`
	p.from.Exec(t, first)
	restored.Exec(t, first)
	committed := parseStamp(t, restored.Value(t, `SELECT (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::int8 FROM t WHERE id = 1`))
	p.last = origin.StampOf(time.UnixMicro(int64(committed))) - 1 // so that it is the very transaction
	p.ship(nil, false)
	p.await()
	had := origin.Vector{{Origin: nodeA, Seq: p.seq, Stamp: p.last}}
	since := origin.StampOf(time.Now())
	p.do(`UPDATE t SET v = 'tail' WHERE id IN (1, 2)`)
	p.do(`DELETE FROM t WHERE id = 3`)
	p.do(`UPDATE t SET u = 100 - u WHERE id > 8`)
	p.do(`UPDATE t SET u = 19 - id WHERE id > 8`)
	p.do(`INSERT INTO t VALUES (11, 'tail', 11)`)
	p.do(`UPDATE counter SET n = n + 5`)
	p.to.Exec(t, `DELETE FROM t WHERE id = 4`)
	p.a.absence.purge(func(origin.Origin) uint64 { return 1 << 62 }) // all is forgotten
	restored.Exec(t, `UPDATE t SET v = 'user' WHERE id IN (1, 4, 5)`)
	restored.Exec(t, `INSERT INTO t VALUES (20, 'user', 20), (21, 'user', 21)`)
	restored.Exec(t, `DELETE FROM t WHERE id = 6`)
	restored.Exec(t, `UPDATE counter SET n = n + 100 WHERE id = 1`)
	restored.Exec(t, `INSERT INTO counter VALUES (3, 1)`)
	restored.Exec(t, `INSERT INTO large VALUES (2, repeat('u', 9000))`)
	p.do(`INSERT INTO t VALUES (22, 'tail', 21)`) // later than the user's that it collides with, which is written again still later

	open := func() *Applier {
		t.Helper()
		a, err := Open(t.Context(), Options{DSN: restored.DSN, Cluster: p.to.Name, Node: "a", Peers: []string{"b"}, SpoolDir: t.TempDir(), Merge: merge})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	a := open()
	x := Comeback{Seq: p.seq, Since: since}
	var lacking map[wire.KeyHash]bool
	if noted {
		x.Own = had[0]
		_, err := a.ComeBack(t.Context(), p.wholeDelta(had, nil), x)
		var lacks *LacksRows
		if !errors.As(err, &lacks) || len(lacks.Keys) != 1 {
			t.Fatalf("error %v; want one row to be asked for", err)
		}
		lacking = lacks.Keys
		x.Asked = lacking
	} else {
		had = nil
	}
	for again := range 2 {
		got, err := a.ComeBack(t.Context(), p.wholeDelta(had, lacking), x)
		if err != nil {
			t.Fatal(err)
		}
		a.Close()
		if again == 0 && (got.Deletes != 1 || got.Conflicts != 3 || got.Again != 8 || got.Counted != 1) || again == 1 && got.Again != 8 {
			t.Errorf("%d: %+v", again, got)
		}
		a = open()
		for sql, want := range map[string]string{
			`SELECT string_agg(id || v || u, ' ' ORDER BY id) FROM t`:                                                                         "1user1 2tail2 4user4 5user5 7first7 8first8 9first10 10first9 11tail11 20user20 21user21",
			`SELECT string_agg(id || '=' || n, ' ' ORDER BY id) FROM counter`:                                                                 "1=15 2=15 3=1",
			`SELECT string_agg(id || left(v, 1) || length(v), ' ' ORDER BY id) FROM large`:                                                    "1a9000 2u9000",
			`SELECT image[1] FROM pgbridge.quarantine`:                                                                                        "22",
			`SELECT seq FROM pgbridge.position WHERE origin = 'b'`:                                                                            "1",
			`SELECT published, restored_seq, restoring, restored_lsn > 0, again_lsn = restored_lsn, local_xid > first_xid FROM pgbridge.node`: "8|8|f|t|t|t",
			`SELECT count(*) FROM pgbridge.rewrite`:                                                                                           "0",
			`SELECT count(*) FROM pgbridge.journal WHERE origin = 0 AND seq = 7`:                                                              "2",
			// What is written again bears the stamp of its transaction, which is this one.
			`SELECT count(*) FROM pgbridge.returned WHERE id = 0 AND seq = 9223372036854775807 AND behind = 0 AND at = (SELECT pg_xact_commit_timestamp(xmin) FROM t WHERE id = 20)`: "7",
			`SELECT bool_and(roident <> 0) FROM t, pg_xact_commit_timestamp_origin(t.xmin) WHERE id IN (2, 9, 10, 11)`:                                                               "t",
		} {
			if got := strings.Join(restored.Query(t, sql), "\n"); got != want {
				t.Errorf("%d: %s: %s, want %s", again, sql, got, want)
			}
		}
		if got := restored.Value(t, `SELECT string_agg(relation || kind || outcome, ' ' ORDER BY relation, kind) FROM pgbridge.conflict`); again == 0 &&
			got != "public.counterupdate_updateremote wins public.tinsert_insertlocal wins public.tuniquelocal wins" {
			t.Errorf("conflicts %s", got)
		}
	}
	defer a.Close()

	// Once capture has read them, they go when every node has seen them, but for one behind which another row is kept.
	if err := a.Restored(t.Context()); err != nil {
		t.Fatal(err)
	}
	wal := &fakeWAL{}
	wal.local.Store(9)
	if err := a.numberAgain(t.Context(), wal); err != nil {
		t.Fatal(err)
	}
	for sql, want := range map[string]string{
		`SELECT restored_lsn, again_lsn > 0 FROM pgbridge.node`:   "0|t",
		`SELECT max(seq) FROM pgbridge.returned WHERE id = 0`:     "9",
		`SELECT count(*) > 7 FROM pgbridge.returned WHERE id = 0`: "t",
	} {
		if got := restored.Value(t, sql); got != want {
			t.Errorf("%s: %s, want %s", sql, got, want)
		}
	}
	if _, err := a.catalog.conn.Exec(t.Context(), purgeReturnedSQL, int64(0), int64(9)); err != nil {
		t.Fatal(err)
	}
	if got := restored.Query(t, `SELECT DISTINCT r.lo = q.blocker_lo FROM pgbridge.returned r, pgbridge.quarantine q WHERE r.id = 0`); len(got) != 1 || got[0] != "t" {
		t.Errorf("of the rows' versions remain %q", got)
	}
}
