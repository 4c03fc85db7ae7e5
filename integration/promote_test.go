package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgcluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// standbySlot is the physical slot of node b's standby.
const standbySlot = "b2"

// withStandby makes nodes, not started yet, of which b has a physical standby that can take over.
func withStandby(t *testing.T, major int, o cluster.Options) (c *cluster.Cluster, b *cluster.Node, standby *pgcluster.Cluster) {
	t.Helper()
	o.Majors, o.Own, o.Processes, o.Idle = []int{major}, true, true, true
	c = cluster.New(t, o)
	b = c.Node("b")
	standby = pgtest.NewStandby(t, b.PG, standbySlot, nil)
	b.Reach(b.PG, standby)
	return c, b, standby
}

// guarded lets nobody have what b's standby lacks.
func guarded(b *cluster.Node) {
	b.Exec(`ALTER SYSTEM SET synchronized_standby_slots = '` + standbySlot + `'`)
	b.Exec(`SELECT pg_reload_conf()`)
}

// awaitStandby waits until the standby has node b's slot for good, which takes commits on b, and that the server logs who runs.
func awaitStandby(t *testing.T, b *cluster.Node, standby *pgcluster.Cluster, busy bool) {
	t.Helper()
	pgtest.Await(t, standby.SocketDSN("postgres"), `SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'pgb_test_b' AND synced AND NOT temporary`, "1", func() {
		if !busy {
			b.Exec(`INSERT INTO pgb_sentinel VALUES ('b', 0) ON CONFLICT (node) DO UPDATE SET round = pgb_sentinel.round`)
		}
		b.Exec(`SELECT pg_log_standby_snapshot()`)
	})
}

// awaitGuard waits until b's frames say that its standby has all that others have.
func awaitGuard(b *cluster.Node) {
	b.AwaitStatus(func(r *cluster.Report) bool { return r.Slot.Standbys == standbySlot })
}

// promote kills b's primary for good, and makes the standby one.
func promote(t *testing.T, b *cluster.Node, standby *pgcluster.Cluster) {
	t.Helper()
	if err := b.PG.Kill(); err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, standby.SocketDSN("postgres"), `SELECT pg_promote()`)
}

// eachFailover runs a test for those of the versions whose standbys have slots, or for those whose standbys have none.
func eachFailover(t *testing.T, have bool, test func(t *testing.T, major int)) {
	majors := slices.DeleteFunc(slices.Clone(pgtest.Versions(t)), func(major int) bool { return major >= 17 != have })
	for _, major := range majors {
		t.Run(fmt.Sprintf("pg%d", major), func(t *testing.T) {
			t.Parallel()
			test(t, major)
		})
	}
}

// TestStandbyTakesOver: under load a node's primary is lost for good, also with the bridge and the broker beside it. The bridge
// goes on with the standby: nothing is lost, nothing is there twice, nothing is seen too early, and all nodes are equal.
func TestStandbyTakesOver(t *testing.T) {
	t.Parallel()
	eachFailover(t, true, func(t *testing.T, major int) {
		for _, lost := range []string{"primary", "machine"} {
			t.Run(lost, func(t *testing.T) {
				c, b, standby := withStandby(t, major, cluster.Options{Schema: loadSchema, Config: map[string]string{"postgres.failover": "true"}})
				// What users were told of is on the standby, too.
				b.Exec(`ALTER SYSTEM SET synchronous_standby_names = 'walreceiver'`)
				guarded(b)
				for _, n := range c.Nodes {
					n.Start()
				}
				c.Node("a").AwaitStatus(func(r *cluster.Report) bool { return alarmed(r, "failover-unguarded") })
				l := startLoad(t, c, 2, seed(t))
				awaitStandby(t, b, standby, true)
				awaitGuard(b)
				if r := b.Status(); alarmed(r, "failover-unguarded") || alarmed(r, "standby-away") {
					t.Errorf("alarms %+v", r.Alarms)
				}
				during(loadTime() / 4)
				if lost == "primary" {
					promote(t, b, standby)
				} else {
					l.stop()
					awaitHandedOn(b, c.Node("a"))
					awaitHandedOn(b, c.Node("c"))
					b.Kill()
					if err := os.RemoveAll(filepath.Join(b.Dir, "data")); err != nil {
						t.Fatal(err)
					}
					promote(t, b, standby)
					b.Start()
					l.start()
				}
				during(loadTime() / 4)
				l.stop()
				c.WaitConverged()
				requireCounts(t, c, l)
				if n := b.Value(`SELECT timeline FROM pgbridge.node`); n != "2" {
					t.Errorf("the bridge works on timeline %s", n)
				}
				b.AwaitStatus(func(r *cluster.Report) bool { return alarmed(r, "failover-unguarded") })
			})
		}
	})
}

func alarmed(r *cluster.Report, code string) bool {
	return slices.ContainsFunc(r.Alarms, func(a cluster.Alarm) bool { return a.Code == code })
}

// TestNobodyGetsWhatTheStandbyLacks: while the standby is away nothing is published, and status says so. The primary is lost with
// what only it had, and the standby takes over.
func TestNobodyGetsWhatTheStandbyLacks(t *testing.T) {
	t.Parallel()
	eachFailover(t, true, func(t *testing.T, major int) {
		c, b, standby := withStandby(t, major, cluster.Options{Nodes: 2, Schema: `CREATE TABLE t (id int PRIMARY KEY)`})
		guarded(b)
		a := c.Node("a")
		a.Start()
		b.Start()
		b.Exec(`INSERT INTO t VALUES (1)`)
		c.WaitConverged()
		awaitStandby(t, b, standby, false)
		awaitGuard(b)
		if err := standby.Stop(t.Context(), pgcluster.Fast); err != nil {
			t.Fatal(err)
		}
		b.Exec(`INSERT INTO t VALUES (2)`)
		a.Exec(`INSERT INTO t VALUES (3)`)
		b.Await(`SELECT count(*) FROM t`, "3") // what others write goes on
		b.AwaitStatus(func(r *cluster.Report) bool { return alarmed(r, "standby-away") })
		if got := a.Value(`SELECT string_agg(id::text, ' ' ORDER BY id) FROM t`); got != "1 3" {
			t.Errorf("node a has %s", got)
		}
		if err := b.PG.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := standby.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		promote(t, b, standby)
		b.Exec(`INSERT INTO t VALUES (4)`)
		c.WaitConverged()
		if got := b.Value(`SELECT string_agg(id::text, ' ' ORDER BY id) FROM t`); got != "1 3 4" {
			t.Errorf("node b has %s", got)
		}
	})
}

// TestStandbyThatMayLackSomethingIsRefused: without synchronized_standby_slots a standby may lack what others have; with it the one
// that was promoted may be another one. Either is refused, and so is the old primary when a standby has taken over.
func TestStandbyThatMayLackSomethingIsRefused(t *testing.T) {
	t.Parallel()
	eachFailover(t, true, func(t *testing.T, major int) {
		for _, x := range []struct {
			name           string
			guarded, lacks bool
			words          []string
		}{
			{"lacks", false, true, []string{"timeline 1", "timeline 2", "of its transactions", "missing here", "pgbridge node restored"}},
			{"may lack", false, false, []string{"timeline 1", "timeline 2", "may be missing here", "synchronized_standby_slots", "pgbridge node restored"}},
			{"another standby", true, false, []string{"may be missing here", "its slot b3 was not in synchronized_standby_slots, which named b2"}},
		} {
			t.Run(x.name, func(t *testing.T) {
				c, b, standby := withStandby(t, major, cluster.Options{Nodes: 2, Schema: `CREATE TABLE t (id int PRIMARY KEY)`})
				if x.guarded {
					guarded(b)
				}
				for _, n := range c.Nodes {
					n.Start()
				}
				c.WaitConverged()
				b.Exec(`INSERT INTO t VALUES (1)`)
				awaitStandby(t, b, standby, false)
				if x.guarded {
					awaitGuard(b)
					standby = pgtest.NewStandby(t, b.PG, "b3", nil)
					awaitStandby(t, b, standby, false)
				}
				if x.lacks {
					if err := standby.Stop(t.Context(), pgcluster.Fast); err != nil {
						t.Fatal(err)
					}
				}
				before := b.Status().Publisher.DurableSeq
				b.Exec(`INSERT INTO t VALUES (2)`)
				c.Node("a").Await(`SELECT count(*) FROM t`, "2")
				b.AwaitStatus(func(r *cluster.Report) bool { return r.Publisher.DurableSeq > before }) // a may have had it ahead of the stream
				b.Stop()
				if x.lacks {
					if err := b.PG.Kill(); err != nil {
						t.Fatal(err)
					}
					if err := standby.Restart(t.Context()); err != nil {
						t.Fatal(err)
					}
				} else {
					pgtest.AwaitReplayed(t, standby.SocketDSN("postgres"), b.Value(`SELECT pg_current_wal_flush_lsn()`))
				}
				promote(t, b, standby)
				b.Reach(standby)
				wantRefusal(t, run(t, b, nil), x.words...)
			})
		}
	})
}

// TestOldPrimaryIsRefused: a primary that comes back after a standby has taken over from it does not go on.
func TestOldPrimaryIsRefused(t *testing.T) {
	t.Parallel()
	eachFailover(t, true, func(t *testing.T, major int) {
		c, b, standby := withStandby(t, major, cluster.Options{Nodes: 2, Schema: `CREATE TABLE t (id int PRIMARY KEY)`})
		guarded(b)
		for _, n := range c.Nodes {
			n.Start()
		}
		c.WaitConverged()
		awaitStandby(t, b, standby, false)
		awaitGuard(b)
		old := b.PG
		promote(t, b, standby)
		b.Exec(`INSERT INTO t VALUES (1)`)
		c.WaitConverged()
		b.Stop()
		if err := old.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.Reach(old)
		wantRefusal(t, run(t, b, nil), "timeline 2", "timeline 1", "does not come from that timeline")
	})
}

// TestStandbyWithoutSlotIsRefused: before PostgreSQL 17 a promoted standby has no slot, and the bridge says what that means.
func TestStandbyWithoutSlotIsRefused(t *testing.T) {
	t.Parallel()
	eachFailover(t, false, func(t *testing.T, major int) {
		c, b, standby := withStandby(t, major, cluster.Options{Nodes: 2, Schema: `CREATE TABLE t (id int PRIMARY KEY)`})
		for _, n := range c.Nodes {
			n.Start()
		}
		c.WaitConverged()
		pgtest.AwaitReplayed(t, standby.SocketDSN("postgres"), b.Value(`SELECT pg_current_wal_flush_lsn()`))
		b.Stop()
		wantRefusal(t, run(t, b, map[string]string{"postgres.failover": "true"}), "postgres.failover", "before 17", "upgrade")
		promote(t, b, standby)
		err := run(t, b, nil)
		wantRefusal(t, err, `slot "pgb_test_b" is not there`, "before PostgreSQL 17 a promoted standby never does", "pgbridge node restored")
		err = run(t, b, map[string]string{"postgres.auto_setup": "false"})
		if err == nil || !strings.Contains(err.Error(), "standby promoted without the slot, run pgbridge node restored") {
			t.Errorf("without auto_setup: %v", err)
		}
	})
}
