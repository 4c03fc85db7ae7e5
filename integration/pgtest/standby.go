package pgtest

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// HoldCommits names a synchronous standby that does not exist, and returns when commits on the server wait for
// it. ReleaseCommits lets them go.
//
// A new setting reaches sessions and the checkpointer, which decides whether anybody waits at all, at different
// times (syncrep.c, SyncRepUpdateSyncStandbysDefined), so commits are tried until one waits. That one is
// cancelled, which ends its wait and nothing else.
func HoldCommits(t testing.TB, dsn string) {
	t.Helper()
	setStandbys(t, dsn, "nobody")
	probe := Connect(t, dsn)
	var pid int
	if err := probe.QueryRow(t.Context(), `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	try := func() {
		_, err := probe.Exec(context.WithoutCancel(t.Context()), `SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'held', '')`)
		ended <- err
	}
	watch := Connect(t, dsn)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); ; {
		go try()
		for waiting := true; waiting; {
			select {
			case err := <-ended:
				if err != nil {
					t.Fatal(err)
				}
				waiting = false
			case <-tick.C:
				if held(t, watch, pid) {
					if _, err := watch.Exec(t.Context(), `SELECT pg_cancel_backend($1)`, pid); err != nil {
						t.Fatal(err)
					}
					<-ended // a warning, or that it was cancelled: it is committed
					return
				}
			}
		}
		if time.Now().After(end) {
			t.Fatal("no commit waits for a standby")
		}
	}
}

func held(t testing.TB, conn *pgx.Conn, pid int) bool {
	t.Helper()
	var yes bool
	err := conn.QueryRow(t.Context(), `SELECT count(*) > 0 FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep'`, pid).Scan(&yes)
	if err != nil {
		t.Fatal(err)
	}
	return yes
}

// ReleaseCommits lets commits end that HoldCommits has held.
func ReleaseCommits(t testing.TB, dsn string) {
	t.Helper()
	setStandbys(t, dsn, "")
}

func setStandbys(t testing.TB, dsn, names string) {
	t.Helper()
	Exec(t, dsn, `ALTER SYSTEM SET synchronous_standby_names = '`+names+`'`)
	Exec(t, dsn, `SELECT pg_reload_conf()`)
}

// Await waits until a query gives a value on a server that is no node's, such as a standby, and does something meanwhile.
func Await(t testing.TB, dsn, sql, want string, meanwhile ...func()) {
	t.Helper()
	got := ""
	for end := time.Now().Add(queryTimeout); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		for _, do := range meanwhile {
			do()
		}
		if got = ValueShared(t, dsn, sql); got == want {
			return
		}
	}
	t.Fatalf("%s gives %s, not %s", sql, got, want)
}

// AwaitReplayed waits until a standby has replayed the WAL up to an LSN.
func AwaitReplayed(t testing.TB, dsn, lsn string) {
	t.Helper()
	Await(t, dsn, `SELECT pg_last_wal_replay_lsn() >= '`+lsn+`'`, "t")
}
