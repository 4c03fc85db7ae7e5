package pgtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// queryTimeout bounds each statement of a test, so that one that waits for ever
// fails with its name instead of with the whole test binary.
const queryTimeout = 3 * time.Minute

// Database is a database of one test.
type Database struct {
	// Name is unique on the server and fits pgbridge's rule for cluster and node
	// names ([a-z0-9_]{1,16}). The database's slots are dropped at the end, and the
	// origins that begin with pgb_<Name>_.
	Name string
	// Major is the major version of its server.
	Major int
	// DSN connects as superuser over the Unix socket, as a bridge beside its
	// primary does.
	DSN string
	// TCP is the same over 127.0.0.1.
	TCP string
}

// New makes an empty database on the newest of Versions.
func New(t testing.TB) *Database {
	t.Helper()
	return SharedServer(t, Newest(t)).NewDatabase(t)
}

// NewDatabase makes an empty database, which is dropped at the end of the test
// with its slots and origins, whoever is still connected.
func (s *Server) NewDatabase(t testing.TB) *Database {
	t.Helper()
	name := fmt.Sprintf("t%010x", rand.Uint64N(1<<40))
	db := &Database{Name: name, Major: s.Major, DSN: s.cluster.SocketDSN(name), TCP: s.cluster.DSN(name)}
	admin := s.cluster.SocketDSN("postgres")
	// By way of the WAL, as is the default, costs three times as much.
	ExecShared(t, admin, "CREATE DATABASE "+name+" STRATEGY file_copy")
	t.Cleanup(func() {
		closeIdle(db.DSN)
		closeIdle(db.TCP)
		if err := drop(admin, name); err != nil {
			t.Errorf("drop database %s: %v", name, err)
		}
	})
	return db
}

// drop removes a database with its slots and origins. The server itself drops
// the slots with the database, but only those that no walsender uses; and an
// origin only once the session that held it has ended.
func drop(admin, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	defer cancel()
	conn, giveBack, err := Borrow(ctx, admin)
	if err != nil {
		return err
	}
	defer giveBack()
	for _, step := range []string{
		`SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE active AND database = '` + name + `'`,
		`DROP DATABASE ` + name + ` WITH (FORCE)`,
		`SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE starts_with(roname, 'pgb_` + name + `_')`,
	} {
		if _, err := conn.Exec(ctx, step); err != nil {
			return fmt.Errorf("%s: %w", step, err)
		}
	}
	return nil
}

// Connect opens a connection that is closed at the end of the test. dsn may
// carry further parameters.
func Connect(t testing.TB, dsn string) *pgx.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) }) // one that the test closed or killed is fine
	return conn
}

// Exec runs SQL on a connection of its own: one statement when there are
// arguments, else any number of them. It returns the tag of the last one.
func Exec(t testing.TB, dsn, sql string, args ...any) pgconn.CommandTag {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	defer cancel()
	defer watch(t, dsn, sql)()
	conn, giveBack, err := connectOnce(ctx, dsn)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	defer giveBack()
	tag, err := conn.Exec(ctx, sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return tag
}

// ExecShared is Exec on a connection that may have been used before: the session is
// as a new one.
func ExecShared(t testing.TB, dsn, sql string, args ...any) pgconn.CommandTag {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	defer cancel()
	defer watch(t, dsn, sql)()
	conn, giveBack, err := Borrow(ctx, dsn)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	tag, err := conn.Exec(ctx, sql, args...)
	if err != nil {
		conn.Close(ctx)
		t.Fatalf("%s: %v", sql, err)
	}
	if _, err := conn.Exec(ctx, "DISCARD ALL"); err != nil || strings.Contains(sql, "ALTER ") {
		conn.Close(ctx) // a transaction is open; or new sessions may begin with other settings
	}
	giveBack()
	if strings.Contains(sql, "ALTER ") {
		closeIdle(dsn)
	}
	return tag
}

// watch tells what the server does if a statement takes long, until what it returns is called.
func watch(t testing.TB, dsn, sql string) (stop func()) {
	done := make(chan struct{})
	timer := time.AfterFunc(queryTimeout*3/4, func() {
		defer close(done)
		logSessions(t, dsn, sql)
	})
	return func() {
		if !timer.Stop() {
			<-done
		}
	}
}

// logSessions tells what all sessions of a server do while a statement takes long, and who waits for whom.
func logSessions(t testing.TB, dsn, sql string) {
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout/8)
	defer cancel()
	var lines []string
	conn, err := pgx.Connect(ctx, dsn)
	if err == nil {
		defer conn.Close(ctx)
		rows, _ := conn.Query(ctx, `SELECT concat_ws(' ', pid, datname, application_name, state, wait_event, 'waits for ' || nullif(pg_blocking_pids(pid), '{}')::text, clock_timestamp() - xact_start, left(query, 200))
			FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND (backend_type = 'client backend' AND (state <> 'idle' OR datname = current_database()) OR backend_type = 'walsender') ORDER BY xact_start`)
		lines, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	t.Logf("%.100s takes long; the server's sessions: %v\n%s", sql, err, strings.Join(lines, "\n"))
}

// Query runs one statement on a connection of its own and returns its rows as
// PostgreSQL prints them, the columns joined by "|", NULL as "∅".
func Query(t testing.TB, dsn, sql string, args ...any) []string {
	t.Helper()
	return query(t, connectOnce, dsn, sql, args...)
}

// QueryShared is Query; a SELECT shares its connection with earlier ones.
func QueryShared(t testing.TB, dsn, sql string, args ...any) []string {
	t.Helper()
	if words := strings.Fields(sql); len(words) == 0 || !strings.EqualFold(words[0], "SELECT") {
		return query(t, connectOnce, dsn, sql, args...)
	}
	return query(t, Borrow, dsn, sql, args...)
}

func query(t testing.TB, borrow func(context.Context, string) (*pgx.Conn, func(), error), dsn, sql string, args ...any) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	defer cancel()
	defer watch(t, dsn, sql)()
	conn, giveBack, err := borrow(ctx, dsn)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	defer giveBack()
	rows, err := conn.Query(ctx, sql, append([]any{pgx.QueryResultFormats{pgx.TextFormatCode}}, args...)...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	lines, err := pgx.CollectRows(rows, asLine)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return lines
}

// idle are the connections that Borrow may hand out again, by DSN.
var idle = struct {
	mu    sync.Mutex
	conns map[string][]*pgx.Conn
}{conns: map[string][]*pgx.Conn{}}

// Borrow returns a connection for statements that leave nothing behind in their
// session, and what gives it back: one that was used before if there is one, since
// tests that wait ask often, and a new process for each question costs more than
// the answer.
func Borrow(ctx context.Context, dsn string) (*pgx.Conn, func(), error) {
	for {
		idle.mu.Lock()
		var conn *pgx.Conn
		if n := len(idle.conns[dsn]); n > 0 {
			conn, idle.conns[dsn] = idle.conns[dsn][n-1], idle.conns[dsn][:n-1]
		}
		idle.mu.Unlock()
		if conn == nil {
			break
		}
		if conn.Ping(ctx) == nil {
			return conn, func() { giveBack(conn, dsn) }, nil
		}
		conn.Close(ctx)
	}
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, nil, err
	}
	cfg.DefaultQueryExecMode = pgx.QueryExecModeDescribeExec // what Exec leaves behind is discarded, prepared statements too
	conn, err := pgx.ConnectConfig(ctx, cfg)
	return conn, func() { giveBack(conn, dsn) }, err
}

func giveBack(conn *pgx.Conn, dsn string) {
	if conn.IsClosed() || conn.PgConn().TxStatus() != 'I' {
		conn.Close(context.Background())
		return
	}
	idle.mu.Lock()
	defer idle.mu.Unlock()
	idle.conns[dsn] = append(idle.conns[dsn], conn)
}

// closeIdle closes the connections that are kept for a DSN.
func closeIdle(dsn string) {
	idle.mu.Lock()
	conns := idle.conns[dsn]
	delete(idle.conns, dsn)
	idle.mu.Unlock()
	for _, c := range conns {
		c.Close(context.Background())
	}
}

func connectOnce(ctx context.Context, dsn string) (*pgx.Conn, func(), error) {
	conn, err := pgx.Connect(ctx, dsn)
	return conn, func() { conn.Close(context.Background()) }, err
}

func asLine(row pgx.CollectableRow) (string, error) {
	var columns []string
	for _, value := range row.RawValues() {
		if value == nil {
			columns = append(columns, "∅")
			continue
		}
		columns = append(columns, string(value))
	}
	return strings.Join(columns, "|"), nil
}

// Value runs one statement and returns its only column of its only row, printed
// as Query does.
func Value(t testing.TB, dsn, sql string, args ...any) string {
	t.Helper()
	return only(t, sql, Query(t, dsn, sql, args...))
}

// ValueShared is Value by QueryShared.
func ValueShared(t testing.TB, dsn, sql string, args ...any) string {
	t.Helper()
	return only(t, sql, QueryShared(t, dsn, sql, args...))
}

func only(t testing.TB, sql string, rows []string) string {
	t.Helper()
	if len(rows) != 1 {
		t.Fatalf("%s: %d rows, want 1", sql, len(rows))
	}
	return rows[0]
}

// Exec is ExecShared on this database.
func (db *Database) Exec(t testing.TB, sql string, args ...any) pgconn.CommandTag {
	t.Helper()
	return ExecShared(t, db.DSN, sql, args...)
}

// Query is QueryShared on this database.
func (db *Database) Query(t testing.TB, sql string, args ...any) []string {
	t.Helper()
	return QueryShared(t, db.DSN, sql, args...)
}

// Value is ValueShared on this database.
func (db *Database) Value(t testing.TB, sql string, args ...any) string {
	t.Helper()
	return ValueShared(t, db.DSN, sql, args...)
}

// Connect is the function Connect on this database.
func (db *Database) Connect(t testing.TB) *pgx.Conn {
	t.Helper()
	return Connect(t, db.DSN)
}
