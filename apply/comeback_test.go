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
// deletes that nobody remembers too; and what its users wrote, and deleted, is written again.
func TestComeback(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		const schema = `CREATE TABLE t (id int PRIMARY KEY, v text, u int UNIQUE); CREATE TABLE counter (id int PRIMARY KEY, n int); ALTER TABLE counter REPLICA IDENTITY FULL;
			CREATE TABLE large (id int PRIMARY KEY, v text); ALTER TABLE large ALTER COLUMN v SET STORAGE EXTERNAL`
		merge := []MergePolicy{{Pattern: "*.counter", Match: func(_, table string) bool { return table == "counter" }, Rows: conflict.Latest,
			Columns: []MergeColumns{{Names: []string{"n"}, Rule: conflict.Delta}}}}
		p := newPair(t, s, schema)
		p.merge = merge
		p.restart()
		p.to.Exec(t, `CREATE PUBLICATION q FOR TABLE t, counter, large`)
		restored := s.NewDatabase(t)
		restored.Exec(t, schema)
		if err := Setup(t.Context(), SetupOptions{DSN: restored.DSN, Cluster: p.to.Name, Node: "a", Peers: []string{"b"}}); err != nil {
			t.Fatal(err)
		}

		const first = `INSERT INTO t SELECT i, 'first', i FROM generate_series(1, 10) i; INSERT INTO counter VALUES (1, 10), (2, 10); INSERT INTO large VALUES (1, repeat('a', 9000))`
		p.do(first)
		restored.Exec(t, first)
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
		restored.Exec(t, `INSERT INTO t VALUES (20, 'user', 20)`)
		restored.Exec(t, `DELETE FROM t WHERE id = 6`)
		restored.Exec(t, `UPDATE counter SET n = n + 100 WHERE id = 1`)
		restored.Exec(t, `INSERT INTO counter VALUES (3, 1)`)
		restored.Exec(t, `INSERT INTO large VALUES (2, repeat('u', 9000))`)

		open := func() *Applier {
			t.Helper()
			a, err := Open(t.Context(), Options{DSN: restored.DSN, Cluster: p.to.Name, Node: "a", Peers: []string{"b"}, SpoolDir: t.TempDir(), Merge: merge})
			if err != nil {
				t.Fatal(err)
			}
			return a
		}
		a := open()
		x := Comeback{Seq: p.seq, Since: since, Own: had[0]}
		_, err := a.ComeBack(t.Context(), p.wholeDelta(had, nil), x)
		var lacks *LacksRows
		if !errors.As(err, &lacks) || len(lacks.Keys) != 1 {
			t.Fatalf("error %v; want one row to be asked for", err)
		}
		x.Asked = lacks.Keys
		got, err := a.ComeBack(t.Context(), p.wholeDelta(had, lacks.Keys), x)
		if err != nil {
			t.Fatal(err)
		}
		a.Close()
		if got.Deletes != 1 || got.Conflicts != 2 || got.Again != 7 || got.Counted != 1 {
			t.Errorf("%+v", got)
		}
		a = open()
		defer a.Close()
		if n, err := a.WriteAgain(t.Context()); err != nil || n != got.Again {
			t.Errorf("%d rows written again, %v", n, err)
		}
		for sql, want := range map[string]string{
			`SELECT string_agg(id || v || u, ' ' ORDER BY id) FROM t`:                                                  "1user1 2tail2 4user4 5user5 7first7 8first8 9first10 10first9 11tail11 20user20",
			`SELECT string_agg(id || '=' || n, ' ' ORDER BY id) FROM counter`:                                          "1=15 2=15 3=1",
			`SELECT string_agg(id || left(v, 1) || length(v), ' ' ORDER BY id) FROM large`:                             "1a9000 2u9000",
			`SELECT seq FROM pgbridge.position WHERE origin = 'b'`:                                                     "1",
			`SELECT published, restoring, restored_lsn > 0, local_xid > first_xid FROM pgbridge.node`:                  "7|f|t|t",
			`SELECT string_agg(relation || kind || outcome, ' ' ORDER BY relation) FROM pgbridge.conflict`:             "public.counterupdate_updateremote wins public.tinsert_insertlocal wins",
			`SELECT count(*) FROM pgbridge.rewrite`:                                                                    "0",
			`SELECT count(*) FROM pgbridge.journal WHERE origin = 0 AND seq = 7`:                                       "2",
			`SELECT count(DISTINCT xmin::text) FROM t WHERE id IN (1, 4, 5, 20)`:                                       "1",
			`SELECT bool_and(roident <> 0) FROM t, pg_xact_commit_timestamp_origin(t.xmin) WHERE id IN (2, 9, 10, 11)`: "t",
		} {
			if got := strings.Join(restored.Query(t, sql), "\n"); got != want {
				t.Errorf("%s: %s, want %s", sql, got, want)
			}
		}
	})
}
