package pgtest_test

import (
	"context"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgbridge/pgbridge/integration/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestDatabaseGoesWithItsSlotsAndOrigins(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		var db *pgtest.Database
		var session *pgconn.PgConn
		t.Run("use", func(t *testing.T) {
			db = s.NewDatabase(t)
			db.Exec(t, `CREATE TABLE t (a int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t`)
			for _, slot := range []string{"pgb_" + db.Name + "_a", "other_" + db.Name} {
				db.Exec(t, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
			}
			db.Exec(t, `SELECT pg_replication_origin_create('pgb_' || $1 || '_a_b_1')`, db.Name)
			session = stream(t, db.DSN+"&replication=database", "pgb_"+db.Name+"_a")
			holder, err := pgconn.Connect(t.Context(), db.DSN)
			if err != nil {
				t.Fatal(err)
			}
			// left open: the end of the test has to cope with a session that holds an origin
			if _, err := holder.Exec(t.Context(),
				"SELECT pg_replication_origin_session_setup('pgb_"+db.Name+"_a_b_1')").ReadAll(); err != nil {
				t.Fatal(err)
			}
		})
		defer session.Close(context.Background())
		left := s.NewDatabase(t).Query(t, `
			SELECT datname::text FROM pg_database WHERE datname = $1
			UNION ALL SELECT slot_name::text FROM pg_replication_slots WHERE slot_name LIKE '%' || $1 || '%'
			UNION ALL SELECT roname::text FROM pg_replication_origin WHERE roname LIKE '%' || $1 || '%'`, db.Name)
		if len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
}

// stream starts replication from a slot, so that the slot is in use.
func stream(t *testing.T, dsn, slot string) *pgconn.PgConn {
	t.Helper()
	conn, err := pgconn.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	conn.Frontend().Send(&pgproto3.Query{String: "START_REPLICATION SLOT " + slot + " LOGICAL 0/0 (proto_version '1', publication_names 'p')"})
	if err := conn.Frontend().Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.ReceiveMessage(t.Context()); err != nil { // CopyBothResponse: the slot is taken
		t.Fatal(err)
	}
	return conn
}

func TestQueryPrintsAsPostgreSQLDoes(t *testing.T) {
	db := pgtest.New(t)
	got := db.Query(t, `SELECT a, b, c FROM (VALUES (1, 'x', ARRAY[1, NULL]), ($1::int, NULL, '{}')) AS v (a, b, c)`, 2)
	if want := []string{"1|x|{1,NULL}", "2|∅|{}"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := pgtest.Value(t, db.TCP, "SELECT inet_server_addr()"); got != "127.0.0.1/32" && got != "127.0.0.1" {
		t.Errorf("TCP goes to %q", got)
	}
	if got := pgtest.Value(t, db.DSN, "SELECT inet_server_addr()"); got != "∅" {
		t.Errorf("DSN goes to %q, want the socket", got)
	}
}

func TestClusterOfOnesOwnMayBeKilled(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Newest(t), map[string]string{"max_wal_senders": "3"})
	dsn := c.SocketDSN("postgres")
	pgtest.Exec(t, dsn, "CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := pgtest.Query(t, dsn, "SELECT a, current_setting('max_wal_senders') FROM t"); !slices.Equal(got, []string{"1|3"}) {
		t.Errorf("got %q", got)
	}
}

func TestVersionsComeFromTheEnvironment(t *testing.T) {
	t.Setenv(pgtest.VersionsVariable, "")
	if got := pgtest.Versions(t); !slices.Equal(got, []int{15, 18}) {
		t.Errorf("unset: %v", got)
	}
	t.Setenv(pgtest.VersionsVariable, "17, 16")
	if got := pgtest.Versions(t); !slices.Equal(got, []int{17, 16}) {
		t.Errorf("17, 16: %v", got)
	}
	if got := pgtest.Newest(t); got != 17 {
		t.Errorf("the newest of 17, 16: %v", got)
	}
}

// TestQuestionsShareConnections: sessions are used again, and nothing of one statement is there for the next.
func TestQuestionsShareConnections(t *testing.T) {
	db := pgtest.New(t)
	value := func(sql string, args ...any) string {
		t.Helper()
		return pgtest.ValueShared(t, db.DSN, sql, args...)
	}
	const ask = `SELECT $1::int + 1`
	pid := value(`SELECT pg_backend_pid()`)
	for range 3 {
		if got := value(ask, 1); got != "2" {
			t.Errorf("%s gives %s", ask, got)
		}
		pgtest.ExecShared(t, db.DSN, `SET work_mem = '3MB'; CREATE TEMP TABLE x ()`)
		if got := value(`SELECT current_setting('work_mem') = '3MB' OR to_regclass('x') IS NOT NULL`); got != "f" {
			t.Error("a session's settings or tables are there for the next")
		}
	}
	if again := value(`SELECT pg_backend_pid()`); again != pid {
		t.Errorf("process %s has answered, then %s", pid, again)
	}
	pgtest.Connect(t, db.DSN).Exec(t.Context(), `SELECT pg_terminate_backend($1::int, 10000)`, pid)
	if again := value(`SELECT pg_backend_pid()`); again == pid {
		t.Error("a session that was ended answers")
	}
}
