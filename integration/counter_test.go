package integration

import (
	"context"
	"fmt"
	"math/rand"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

const countedSchema = `
CREATE TABLE counter (id int PRIMARY KEY, n bigint NOT NULL);
ALTER TABLE counter REPLICA IDENTITY FULL;
CREATE TABLE did (node text, n int, id int NOT NULL, PRIMARY KEY (node, n));
INSERT INTO counter SELECT i, 0 FROM generate_series(1, 10) i;
`

// TestCountersAreExact: three nodes increment the same ten counters thousands of times, while links are cut, bridges are killed and
// servers crash; then each counter is on every node the number of increments that were committed, which each notes.
func TestCountersAreExact(t *testing.T) {
	t.Parallel()
	each := 300
	if pgtest.Soak() {
		each = 10_000
	}
	c := cluster.New(t, cluster.Options{Nodes: 3, Own: true, Processes: true, Schema: countedSchema, Config: map[string]string{"conflict.tables": "*.counter: n=delta"}})
	s := seed(t)
	t.Logf("seed %d", s)
	done, stop := context.WithCancel(context.Background())
	var users sync.WaitGroup
	for i, n := range c.Nodes {
		var next, committed atomic.Int64
		for w := range 2 {
			r := rand.New(rand.NewSource(s + int64(10*i+w)))
			users.Go(func() { increment(n, r, &next, &committed, int64(each)) })
		}
	}
	var chaos sync.WaitGroup
	chaos.Go(func() { disturb(t, done, c, rand.New(rand.NewSource(s-1))) })
	users.Wait()
	stop()
	chaos.Wait()
	for _, n := range c.Nodes {
		n.Supervise()
	}
	c.WaitConverged()
	for _, n := range c.Nodes {
		if got := n.Query(`SELECT id, n, d FROM counter JOIN LATERAL (SELECT count(*) AS d FROM did WHERE did.id = counter.id) d ON true WHERE n <> d ORDER BY id`); len(got) > 0 {
			t.Errorf("node %s: counters, their values and how often they were incremented: %q", n.Name, got)
		}
	}
	var committed int
	if _, err := fmt.Sscan(c.Nodes[0].Value(`SELECT count(*) FROM did`), &committed); err != nil || committed < len(c.Nodes)*each {
		t.Errorf("%d increments were committed, %v", committed, err)
	}
	t.Logf("%d increments, %s conflicts on node a", committed, c.Nodes[0].Value(`SELECT count(*) FROM pgbridge.conflict`))
}

// increment commits increments on a node until there are enough, through whatever happens to its server.
func increment(n *cluster.Node, r *rand.Rand, next, committed *atomic.Int64, enough int64) {
	ctx := context.Background()
	for committed.Load() < enough {
		conn, err := pgx.Connect(ctx, n.DSN)
		if err != nil {
			continue // the server is coming up
		}
		for committed.Load() < enough && !conn.IsClosed() {
			id := 1 + r.Intn(10)
			// One statement, so that the server is asked once: both, or none.
			if _, err := conn.Exec(ctx, `WITH d AS (INSERT INTO did VALUES ($1, $2, $3)) UPDATE counter SET n = n + 1 WHERE id = $3`, n.Name, next.Add(1), id); err == nil {
				committed.Add(1)
			}
		}
		conn.Close(ctx)
	}
}

// disturb cuts links, kills bridges and crashes servers, one after the other, until ctx ends; then all runs and is connected.
func disturb(t *testing.T, ctx context.Context, c *cluster.Cluster, r *rand.Rand) {
	pause := func(most time.Duration) {
		select {
		case <-time.After(time.Duration(r.Int63n(int64(most)))): // until the next random moment
		case <-ctx.Done():
		}
	}
	for ctx.Err() == nil {
		n := c.Nodes[r.Intn(len(c.Nodes))]
		switch r.Intn(4) {
		case 0, 1:
			for _, l := range n.Links {
				l.Cut()
			}
			pause(2 * time.Second)
			for _, l := range n.Links {
				l.Heal()
			}
		case 2:
			n.Kill()
		case 3:
			crash(t, n, r)
		}
		for _, n := range c.Nodes {
			if !n.Running() {
				n.Launch()
			}
		}
		pause(time.Second)
	}
}
