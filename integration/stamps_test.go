package integration

import (
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// TestForgottenStamps: the server forgets who wrote its rows, and when, while a node is away whose transaction had
// not seen them. That nobody knows a row's stamp does not make it one that everybody has seen (PROOF.md R11, F8).
func TestForgottenStamps(t *testing.T) {
	for name, forget := range map[string]func(*testing.T, *cluster.Node){"track_commit_timestamp off and on": untrack, "frozen": freeze} {
		t.Run(name, func(t *testing.T) {
			c := cluster.New(t, cluster.Options{Own: true, Settings: map[string]string{"fsync": "off", "autovacuum": "off"},
				Config: map[string]string{"capture.status_interval": "1s"},
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
			forget(t, a)
			a.Await(`SELECT count(*) FROM t WHERE pg_xact_commit_timestamp(xmin) IS NOT NULL`, "0")
			a.Links[d.Name].Cut()
			a.Links[b.Name].Heal()
			a.AwaitStatus(func(r *cluster.Report) bool { // c's transactions say who wrote these rows, and c is away
				waits := false
				for _, l := range r.Links {
					if l.Link == b.Name && l.AppliedSeq == b.Status().Seq {
						t.Fatalf("b's transaction was applied on rows whose version is not known: %q", a.Query(`SELECT v, count(*) FROM t GROUP BY v`))
					}
					waits = waits || l.Link == b.Name && strings.Contains(l.Waiting, "not known here any more")
				}
				return waits
			})
			healAll(c)
			awaitEach(t, c)
			newJudge(t, c).require("^t$")
			got := strings.Join(a.Query(`SELECT v || ' ' || count(*) FROM t GROUP BY v ORDER BY v`), ", ")
			if want := "a 20, b 40, c 10, first 20, old 10"; got != want {
				t.Errorf("rows of %s, want %s", got, want)
			}
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
