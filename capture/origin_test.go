package capture

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// as opens a session that writes under a replication origin, which it creates.
func (b *bench) as(name string) *pgx.Conn {
	b.t.Helper()
	conn := b.db.Connect(b.t)
	for _, sql := range []string{
		fmt.Sprintf("SELECT pg_replication_origin_create(%s)", literal(name)),
		fmt.Sprintf("SELECT pg_replication_origin_session_setup(%s)", literal(name)),
	} {
		if _, err := conn.Exec(b.t.Context(), sql); err != nil {
			b.t.Fatal(err)
		}
	}
	return conn
}

// TestAppliedTransactionsAreDropped: what a bridge has applied here does not come back (invariant 4), large
// or small, by the server's filter or, on 15, by the Origin message.
func TestAppliedTransactionsAreDropped(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		b := newBench(t, s.NewDatabase(t), `CREATE TABLE t (id int PRIMARY KEY, x text)`)
		smallMemory(b)
		b.start(nil)
		peer := b.as(originPrefix(b.db.Name, "a") + "_b_1")
		cleaner := b.as(originPrefix(b.db.Name, "a"))
		run := func(conn *pgx.Conn, sql string) {
			t.Helper()
			if _, err := conn.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		run(peer, `INSERT INTO t VALUES (1)`)
		b.exec(`INSERT INTO t VALUES (2)`)
		run(peer, `INSERT INTO t SELECT i, repeat('x', 50) FROM generate_series(1000, 5000) i`)
		run(peer, `BEGIN; INSERT INTO t SELECT i, repeat('x', 50) FROM generate_series(6000, 8000) i; SAVEPOINT s;
			INSERT INTO t SELECT i, repeat('x', 50) FROM generate_series(8001, 9000) i; ROLLBACK TO s; COMMIT`)
		run(cleaner, `DELETE FROM t WHERE id = 1`)
		b.exec(`INSERT INTO t VALUES (3)`)
		got := b.transactions(b.sentinel())
		var text strings.Builder
		for _, x := range got {
			text.WriteString(x.String())
		}
		want := "1 up {} low {}\n  insert public.t id=2 x=NULL\n2 up {} low {}\n  insert public.t id=3 x=NULL\n"
		if text.String() != want {
			t.Errorf("got\n%s", text.String())
		}
		if told := b.deletes.told(); len(told) != 0 {
			t.Errorf("told %q", told)
		}
		st := b.capture.Status()
		if want := map[bool]uint64{true: 4, false: 0}[s.Major < 16]; st.Foreign != want || st.Runs != 0 {
			t.Errorf("%d transactions dropped, want %d; %d runs", st.Foreign, want, st.Runs)
		}
	})
}

// TestForeignOriginIsRefused: rows of a native subscription would reach no other node (PROOF.md R26).
func TestForeignOriginIsRefused(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		b := newBench(t, s.NewDatabase(t), `CREATE TABLE t (id int PRIMARY KEY)`)
		name := "other_" + b.db.Name
		conn := b.as(name)
		t.Cleanup(func() {
			pgtest.Exec(t, b.db.DSN, "SELECT pg_terminate_backend($1, 5000)", conn.PgConn().PID())
			pgtest.Exec(t, b.db.DSN, "SELECT pg_replication_origin_drop($1)", name)
		})
		var check *CheckError
		err := Check(t.Context(), b.checkOptions())
		if !errors.As(err, &check) || !check.Has(CodeOriginForeign) || !strings.Contains(err.Error(), name) {
			t.Errorf("check found %v", err)
		}
		if s.Major >= 16 {
			return
		}
		if _, err := conn.Exec(t.Context(), `INSERT INTO t VALUES (1)`); err != nil {
			t.Fatal(err)
		}
		c, err := New(b.opts, b.pub, b.deletes, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.fails(c); !errors.As(err, &check) || !check.Has(CodeOriginForeign) || !strings.Contains(err.Error(), name) {
			t.Errorf("run ended with %v", err)
		}
	})
}

func (b *bench) checkOptions() CheckOptions {
	return CheckOptions{DSN: b.db.DSN, Cluster: b.db.Name, Node: "a"}
}
