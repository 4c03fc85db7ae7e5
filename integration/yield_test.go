package integration

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/integration/cluster"
)

// TestApplyYields: while users' sessions are at work apply gives way, says so, and goes on all the same; when they are through, it says
// nothing any more.
func TestApplyYields(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2, Own: true, Config: map[string]string{"apply.yield_at": "3"}, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`})
	a, b := c.Node("a"), c.Node("b")
	ctx, end := context.WithCancel(t.Context())
	defer end()
	ended := make(chan error)
	for range 3 {
		conn, err := pgx.Connect(ctx, a.DSN)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, err := conn.Exec(ctx, `SELECT pg_sleep(600)`)
			conn.Close(context.Background())
			ended <- err
		}()
	}
	yields := func(text string) {
		t.Helper()
		a.AwaitStatus(func(r *cluster.Report) bool {
			for _, x := range r.Alarms {
				if x.Code == "apply-yields" {
					return text != "" && strings.Contains(x.Text, text)
				}
			}
			return text == ""
		})
	}
	yields("3 sessions of users at work, and apply.yield_at is 3: apply works 12 % of the time")
	for i := range 20 {
		b.Exec(`INSERT INTO t SELECT $1::int * 1000 + n, repeat('x', 100) FROM generate_series(1, 500) n`, i)
	}
	a.AwaitLike(b, `SELECT count(*), max(id) FROM t`)
	a.AwaitStatus(func(r *cluster.Report) bool { // all of that takes longer than apply works at a stretch
		for _, x := range r.Alarms {
			if x.Code == "apply-yields" && !strings.HasSuffix(x.Text, "has waited 0 times") {
				return true
			}
		}
		return false
	})
	end()
	for range 3 {
		if err := <-ended; err == nil {
			t.Error("a user's session was through before the test was")
		}
	}
	yields("")
	c.WaitConverged()
}
