package integration

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgcluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// TestForgottenStamps: the server forgets who wrote its rows, and when, while a node is away whose transaction had
// not seen them. That nobody knows a row's stamp does not make it one that everybody has seen (PROOF.md R11, F8). A node that keeps
// what others wrote, to hand it on, reads it again there; else it waits until they can be asked.
func TestForgottenStamps(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		forget func(*testing.T, *cluster.Node)
		keeps  bool
	}{"track_commit_timestamp off and on": {untrack, false}, "frozen": {freeze, true}} {
		t.Run(name, func(t *testing.T) {
			after := "0s"
			if x.keeps {
				after = "10s"
			}
			c := cluster.New(t, cluster.Options{Own: true, Settings: map[string]string{"fsync": "off", "autovacuum": "off"},
				Config: map[string]string{"capture.status_interval": "1s", "topology.failover_after": after},
				Schema: `CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'old' FROM generate_series(1, 20) i`})
			a, b, d := c.Nodes[0], c.Nodes[1], c.Nodes[2]
			a.Exec(`INSERT INTO t SELECT i, 'first' FROM generate_series(21, 100) i`)
			c.WaitConverged()
			cutAll(c)
			b.Exec(`UPDATE t SET v = 'b' WHERE id BETWEEN 11 AND 80`)
			d.Exec(`UPDATE t SET v = 'c' WHERE id BETWEEN 31 AND 50`)
			a.Links[d.Name].Heal()
			a.Await(`SELECT count(*) FROM t WHERE v = 'c'`, "20")
			a.Exec(`UPDATE t SET v = 'a' WHERE id BETWEEN 41 AND 60`)
			a.AwaitStatus(func(r *cluster.Report) bool { return r.Publisher.DurableSeq == r.Seq && r.Seq > 0 })
			x.forget(t, a)
			a.Await(`SELECT count(*) FROM t WHERE pg_xact_commit_timestamp(xmin) IS NOT NULL`, "0")
			a.Links[d.Name].Cut()
			a.Links[b.Name].Heal()
			a.AwaitStatus(func(r *cluster.Report) bool { // c's transactions say who wrote these rows, and c is away
				waits := false
				for _, l := range r.Links {
					switch applied := l.Link == b.Name && l.AppliedSeq == b.Status().Seq; {
					case applied && x.keeps:
						return true
					case applied:
						t.Fatalf("b's transaction was applied on rows whose version is not known: %q", a.Query(`SELECT v, count(*) FROM t GROUP BY v`))
					}
					waits = waits || l.Link == b.Name && strings.Contains(l.Waiting, "not known here any more")
				}
				return waits && !x.keeps
			})
			counts := func() {
				t.Helper()
				got := strings.Join(a.Query(`SELECT v || ' ' || count(*) FROM t GROUP BY v ORDER BY v`), ", ")
				if want := "a 20, b 40, c 10, first 20, old 10"; got != want {
					t.Errorf("rows of %s, want %s", got, want)
				}
			}
			if x.keeps {
				counts()
			}
			healAll(c)
			awaitEach(t, c)
			newJudge(t, c).require("^t$")
			counts()
			// What everybody has seen is no matter of doubt.
			b.Exec(`UPDATE t SET v = 'late'`)
			c.WaitConverged()
			if got := a.Value(`SELECT count(*) FROM t WHERE v = 'late'`); got != "100" {
				t.Errorf("%s rows of the last update", got)
			}
		})
	}
}

// untrack switches track_commit_timestamp off and on again.
func untrack(t *testing.T, n *cluster.Node) {
	t.Helper()
	n.Stop()
	for _, sql := range []string{`ALTER SYSTEM SET track_commit_timestamp = off`, `ALTER SYSTEM RESET track_commit_timestamp`} {
		n.Exec(sql)
		if err := n.PG.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	n.Start()
}

// freeze vacuums all databases until the server has forgotten what it knows of the present rows. The oldest id that
// it remembers is that of the database that was frozen longest ago, where a slot holds back the catalogs.
func freeze(t *testing.T, n *cluster.Node) {
	t.Helper()
	n.Exec(`UPDATE pg_database SET datallowconn = true`)
	for n.Value(`SELECT count(*) FROM t WHERE pg_xact_commit_timestamp(xmin) IS NOT NULL`) != "0" {
		n.Exec(`SELECT pg_logical_emit_message(true, 'any', '')`)
		n.Exec(`CHECKPOINT`) // tells the slot which transactions run, so that it need not hold the catalogs back
		for _, name := range n.Query(`SELECT datname FROM pg_database`) {
			pgtest.Exec(t, n.PG.SocketDSN(name), `VACUUM (FREEZE)`)
		}
	}
}

// TestIDsThatComeRound: xmin of a frozen row names another transaction once 2^32 ids were given out (PROOF.md F9). A
// remote transaction may not lose to a row which that one never wrote (R12), and must lose to one that it wrote.
func TestIDsThatComeRound(t *testing.T) {
	const rows, half, top = 900, 500, 870
	c := cluster.New(t, cluster.Options{Own: true, Idle: true, Settings: map[string]string{"fsync": "off", "autovacuum": "off"},
		Schema: `CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id bigserial PRIMARY KEY, node text)`})
	a, b, d := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	next := func() int {
		n, err := strconv.Atoi(a.Value(`SELECT pg_current_xact_id()::text::int8 & 4294967295`))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	first := next()
	a.Exec(fmt.Sprintf(`DO $$ BEGIN FOR i IN 1..%d LOOP INSERT INTO t VALUES (i, 'old'); COMMIT; END LOOP; END $$`, rows))
	a.Exec(`VACUUM (FREEZE) t`)
	if err := a.PG.Stop(t.Context(), pgcluster.Fast); err != nil {
		t.Fatal(err)
	}
	if err := a.PG.SetNextID(1<<32 + uint64(first)); err != nil {
		t.Fatal(err)
	}
	if err := a.PG.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*cluster.Node{b, d} {
		n.Exec(`INSERT INTO t SELECT i, 'old' FROM generate_series(1, $1) i`, rows)
	}
	for _, n := range c.Nodes {
		n.Start()
	}
	c.WaitConverged()
	cutAll(c)
	b.Exec(`UPDATE t SET v = 'b' WHERE id <= $1 OR id = $2`, top+20, rows)
	d.Exec(`UPDATE t SET v = 'c' WHERE id BETWEEN $1 AND $2`, top+1, top+20)
	a.Links[d.Name].Heal()
	a.Await(`SELECT count(*) FROM t WHERE v = 'c'`, "20")
	a.Exec(`UPDATE t SET v = 'a' WHERE id > $1`, top+15)
	// Later than b's, and of the ids that the frozen rows bear: transactions of a, then of c.
	for next() < first+half {
		a.Exec(`DO $$ BEGIN FOR i IN 1..20 LOOP INSERT INTO u (node) VALUES ('a'); COMMIT; END LOOP; END $$`)
	}
	d.Exec(fmt.Sprintf(`DO $$ BEGIN FOR i IN 1..%d LOOP INSERT INTO u VALUES (1000000 + i, 'c'); COMMIT; END LOOP; END $$`, rows-half))
	a.Await(`SELECT count(*) FROM u WHERE node = 'c'`, fmt.Sprint(rows-half))
	const alias = `SELECT count(*) FROM t, u WHERE t.id <= $2 AND t.xmin = u.xmin AND u.node = $1`
	if local, remote := a.Value(alias, "a", top), a.Value(alias, "c", top); local == "0" || remote == "0" {
		t.Fatalf("frozen rows bear the ids of %s transactions of a, of %s of c", local, remote)
	} else {
		t.Logf("frozen rows bear the ids of %s transactions of a, of %s of c", local, remote)
	}
	stop := hot(t, a, rows) // it changes whenever the careful path looks at it
	a.Links[b.Name].Heal()
	a.AwaitStatus(func(r *cluster.Report) bool {
		return slices.ContainsFunc(r.Links, func(l bridge.LinkReport) bool { return l.Link == b.Name && l.AppliedSeq == b.Status().Seq })
	})
	stop()
	healAll(c)
	awaitEach(t, c)
	newJudge(t, c).require("^(t|u)$")
	got := strings.Join(a.Query(`SELECT v || ' ' || count(*) FROM t GROUP BY v ORDER BY v`), ", ")
	if want := fmt.Sprintf("a 15, b %d, c 15", top); got != want {
		t.Errorf("rows of %s, want %s", got, want)
	}
}

// hot updates a row all the time, until stop.
func hot(t *testing.T, n *cluster.Node, id int) (stop func()) {
	t.Helper()
	conn := pgtest.Connect(t, n.DSN)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		var err error
		for ctx.Err() == nil && err == nil {
			_, err = conn.Exec(context.WithoutCancel(ctx), `UPDATE t SET v = 'a' WHERE id = $1`, id)
		}
		done <- err
	}()
	return func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
