package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// wipe takes from a node all that its broker has on disk. Its bridge must not run.
func wipe(t *testing.T, n *cluster.Node) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(n.Dir, "data", "jetstream")); err != nil {
		t.Fatal(err)
	}
}

// TestWipedBrokerIsMadeAgain: a broker loses its disk, again and again, under load and with a transaction that is larger than a
// frame. Its node's stream is made again out of what others hand on, also for one that was away all the time.
func TestWipedBrokerIsMadeAgain(t *testing.T) {
	t.Parallel()
	test := func(t *testing.T, s *pgtest.Server) {
		c := cluster.New(t, cluster.Options{Majors: []int{s.Major}, Processes: true, Schema: loadSchema + `; CREATE TABLE big (id int PRIMARY KEY, v text)`,
			Config: map[string]string{"capture.frame_bytes": "64KiB"}})
		a, b, away := c.Node("a"), c.Node("b"), c.Node("c")
		l := newLoad(t, c, 1, seed(t))
		away.Stop()
		for i := range 2 {
			l.start()
			a.Exec(`INSERT INTO big SELECT $1 * 10000 + i, repeat('x', 100) FROM generate_series(1, 3000) i`, i)
			during(loadTime() / 8)
			l.stop()
			b.Await(`SELECT count(*) FROM big`, fmt.Sprint(3000*(i+1)))
			awaitHandedOn(a, b)
			a.Kill()
			wipe(t, a)
			a.Start()
		}
		away.Start()
		c.WaitConverged()
		for i := range c.Nodes { // requireCounts would count the load's transactions alone
			for _, n := range c.Nodes {
				if got, want := n.Value(`SELECT count(*) FROM entry WHERE node = $1`, c.Nodes[i].Name), fmt.Sprint(l.commits[i].Load()); got != want {
					t.Errorf("node %s has %s entries of %s, want %s", n.Name, got, c.Nodes[i].Name, want)
				}
			}
		}
	}
	if pgtest.Soak() {
		pgtest.Each(t, test)
		return
	}
	test(t, pgtest.SharedServer(t, pgtest.Versions(t)[0]))
}

// TestWipedBrokerOfANewNode: a broker loses its disk before the database knows that anything was ever published. The first
// transactions come out of the WAL again, under their numbers: other nodes, which have them, take no later ones for them.
func TestWipedBrokerOfANewNode(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2, Processes: true, Schema: `CREATE TABLE t (id int PRIMARY KEY)`,
		Config: map[string]string{"capture.status_interval": "1s"}})
	a, b := c.Node("a"), c.Node("b")
	unlock := lockPublished(t, a)
	for i := range 3 {
		a.Exec(`INSERT INTO t VALUES ($1)`, i)
	}
	b.Await(`SELECT count(*) FROM t`, "3")
	const told = `SELECT coalesce(r.reply_time, 'epoch') FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid WHERE s.database = current_database()`
	a.Await(fmt.Sprintf(`SELECT (%s) > timestamptz '%s' + interval '6 s'`, told, a.Value(`SELECT clock_timestamp()`)), "t") // a slot is confirmed sooner
	a.Kill()
	unlock()
	wipe(t, a)
	a.Start()
	a.Exec(`INSERT INTO t VALUES (3)`)
	written := a.Value(`SELECT pg_current_wal_lsn()`)
	c.WaitConverged()
	a.Await(fmt.Sprintf(`SELECT confirmed_flush_lsn >= '%s' FROM pg_replication_slots WHERE database = current_database()`, written), "t")
}

// lockPublished keeps a bridge from noting in its database what is published. unlock ends that, when the bridge has been killed, and
// makes sure that nothing was.
func lockPublished(t *testing.T, n *cluster.Node) (unlock func()) {
	t.Helper()
	lock := pgtest.Connect(t, n.DSN)
	if _, err := lock.Exec(t.Context(), `
		CREATE FUNCTION pgbridge.held() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			PERFORM pg_advisory_xact_lock(1);
			RETURN NEW;
		END $$;
		CREATE TRIGGER held BEFORE UPDATE ON pgbridge.node FOR EACH ROW WHEN (NEW.published <> OLD.published) EXECUTE FUNCTION pgbridge.held();
		ALTER TABLE pgbridge.node ENABLE ALWAYS TRIGGER held;
		SELECT pg_advisory_lock(1)`); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		const noting = `FROM pg_stat_activity WHERE application_name LIKE 'pgbridge % catalog' AND datname = current_database()`
		n.Query(`SELECT pg_terminate_backend(pid) ` + noting)
		n.Await(`SELECT count(*) `+noting, "0")
		if got := n.Value(`SELECT published FROM pgbridge.node`); got != "0" {
			t.Fatalf("it is known that %s transactions were published", got)
		}
		if _, err := lock.Exec(t.Context(), `DROP FUNCTION pgbridge.held CASCADE; SELECT pg_advisory_unlock(1)`); err != nil {
			t.Fatal(err)
		}
	}
}

// awaitHandedOn waits until node b has what a's slot has been confirmed for.
func awaitHandedOn(a, b *cluster.Node) {
	b.AwaitStatus(func(r *cluster.Report) bool {
		for _, l := range r.Links {
			if l.Origin == a.Name {
				return l.AppliedSeq == a.Status().Seq
			}
		}
		return false
	})
}

// TestWhatNobodyHasIsTold: a broker loses its disk with transactions in it that no other node has. The bridge does not go on as if
// nothing had been, and says what is missing; with the broker's data back it does.
func TestWhatNobodyHasIsTold(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 3, Processes: true, Schema: `CREATE TABLE t (id int PRIMARY KEY)`})
	a := c.Node("a")
	a.Exec(`INSERT INTO t VALUES (1)`)
	c.WaitConverged()
	for _, n := range c.Nodes[1:] {
		n.Links["a"].Cut()
	}
	a.Exec(`INSERT INTO t VALUES (2)`)
	a.Await(`SELECT published >= 3 FROM pgbridge.node`, "t") // with WaitConverged's sentinel
	a.Stop()
	store := filepath.Join(a.Dir, "data", "jetstream")
	if err := os.Rename(store, store+".lost"); err != nil {
		t.Fatal(err)
	}
	a.Launch()
	a.AwaitEnd()
	if log := a.LogTail(); !strings.Contains(log, "the stream of node a is gone: transaction 3 was published before") || !strings.Contains(log, "has it up to transaction 2") {
		t.Errorf("it says\n%s", log)
	}
	if err := os.RemoveAll(store); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(store+".lost", store); err != nil {
		t.Fatal(err)
	}
	a.Start()
	healAll(c)
	c.WaitConverged()
}
