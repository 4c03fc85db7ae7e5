package integration

import (
	"context"
	"testing"

	"github.com/jackc/pglogrepl"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// TestCommitThatWaitsForAStandby: a local transaction that waits for its synchronous standby is on every other
// node already and not visible at home (PROOF.md F2). Another node's delete of its row comes back and finds no
// row here, and no tombstone: nothing may be concluded from that before the row can be seen (R14).
func TestCommitThatWaitsForAStandby(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, Own: true, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`})
	home, other := c.Nodes[0], c.Nodes[1]
	pgtest.HoldCommits(t, home.DSN)
	conn := pgtest.Connect(t, home.DSN)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	inserted := make(chan error, 1)
	go func() {
		_, err := conn.Exec(ctx, `SET synchronous_commit = on; INSERT INTO t VALUES (1, 'of a'), (2, 'of a')`)
		inserted <- err
	}()
	other.Await(`SELECT count(*) FROM t`, "2")
	if n := home.Value(`SELECT count(*) FROM t`); n != "0" {
		t.Fatalf("%s rows are visible at home: the schedule does not lead there", n)
	}
	other.Exec(`DELETE FROM t WHERE id = 1; UPDATE t SET v = 'of b' WHERE id = 2`)
	awaitReceived(t, home, "b", 1)
	home.AwaitStatus(func(r *cluster.Report) bool {
		return r != nil && len(r.Links) == 1 && r.Links[0].Waiting != ""
	})
	pgtest.ReleaseCommits(t, home.DSN)
	if err := <-inserted; err != nil {
		t.Fatal(err)
	}
	c.WaitConverged()
	if rows := home.Query(`SELECT id, v FROM t`); len(rows) != 1 || rows[0] != "2|of b" {
		t.Errorf("rows at home: %q", rows)
	}
}

func parseLSN(t *testing.T, s string) pglogrepl.LSN {
	t.Helper()
	lsn, err := pglogrepl.ParseLSN(s)
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

// TestVersionThatWaitedForAStandby: a row's last writer has its commit record before a marker in the WAL, and so
// its stamp, but ends only behind it. A remote transaction that is later wins over it here as everywhere.
func TestVersionThatWaitedForAStandby(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, Own: true, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, ''), (2, '')`})
	home, other := c.Nodes[0], c.Nodes[1]
	other.Links[home.Name].Cut()
	home.Exec(`UPDATE t SET v = 'of a' WHERE id = 1`)
	other.Exec(`INSERT INTO t VALUES (3, '')`)
	home.Await(`SELECT count(*) FROM t`, "3")
	at := home.Value(`SELECT pg_current_wal_lsn()`) // behind a marker: capture knows who wrote row 1
	home.AwaitStatus(func(r *cluster.Report) bool { return parseLSN(t, r.Slot.CapturedLSN) >= parseLSN(t, at) })
	home.Links[other.Name].Cut()
	pgtest.HoldCommits(t, home.DSN)
	conn := pgtest.Connect(t, home.DSN)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	updated := make(chan error, 1)
	go func() {
		_, err := conn.Exec(ctx, `SET synchronous_commit = on; UPDATE t SET v = 'of a' WHERE id = 2`)
		updated <- err
	}()
	home.Await(`SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`, "1")
	// The first row sends it the careful path, where it meets the second one's lock.
	other.Exec(`BEGIN; UPDATE t SET v = 'of b' WHERE id = 1; UPDATE t SET v = 'of b' WHERE id = 2; COMMIT`)
	home.Links[other.Name].Heal()
	home.Await(`SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgbridge % apply %' AND wait_event_type = 'Lock'`, "1")
	pgtest.ReleaseCommits(t, home.DSN)
	if err := <-updated; err != nil {
		t.Fatal(err)
	}
	other.Links[home.Name].Heal()
	c.WaitConverged()
	if rows := home.Query(`SELECT v FROM t ORDER BY id`); rows[0] != "of b" || rows[1] != "of b" {
		t.Errorf("rows: %q; the later transaction is b's", rows)
	}
}
