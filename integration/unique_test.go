package integration

import (
	"context"
	"fmt"
	"math/rand"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// uniqueSchema has few values for many rows: w names the write that a row is from, of all rounds.
const uniqueSchema = `
CREATE TABLE plain (id int PRIMARY KEY, a int, b int, c text, w text);
ALTER TABLE plain ADD UNIQUE (a), ADD UNIQUE (b, c);
CREATE UNIQUE INDEX ON plain (lower(c)) WHERE b > 0;
CREATE TABLE late (id int PRIMARY KEY, a int, b int, c text, w text);
ALTER TABLE late ADD UNIQUE (a) DEFERRABLE INITIALLY DEFERRED, ADD EXCLUDE USING gist (int4range(b, b + 2) WITH &&) WHERE (b > 0);
`

// uniqueCollides are the conditions that rows x and y may not both be there, by table.
var uniqueCollides = map[string]string{
	"plain": `(x.a = y.a OR x.b = y.b AND x.c = y.c OR x.b > 0 AND y.b > 0 AND lower(x.c) = lower(y.c))`,
	"late":  `(x.a = y.a OR x.b > 0 AND y.b > 0 AND int4range(x.b, x.b + 2) && int4range(y.b, y.b + 2))`,
}

// cutOff cuts a node from the others for a while.
func cutOff(n *cluster.Node, wait func(most time.Duration)) {
	for _, l := range n.Links {
		l.Cut()
	}
	wait(2 * time.Second)
	for _, l := range n.Links {
		l.Heal()
	}
}

// uniqueWrites has sessions write random rows into the tables on every node until d is over, and disturbs one node after the
// other.
func uniqueWrites(t *testing.T, c *cluster.Cluster, seed int64, d time.Duration, disturb func(n *cluster.Node, wait func(most time.Duration)), tables ...string) {
	var next atomic.Int64
	randomWrites(t, c, seed, d, disturb, func(n *cluster.Node, r *rand.Rand) (string, []any) {
		table := tables[r.Intn(len(tables))]
		args := []any{1 + r.Intn(40), 1 + r.Intn(20), r.Intn(16) - 6, string(rune("aAbBcCdDeEfFgGhH"[r.Intn(16)])), fmt.Sprintf("%s%d of %d", n.Name, next.Add(1), seed)}
		switch r.Intn(6) {
		case 0, 1, 2:
			return `INSERT INTO ` + table + ` VALUES ($1, $2, $3, $4, $5)`, args
		case 3, 4:
			return `UPDATE ` + table + ` SET a = $2, b = $3, c = $4, w = $5 WHERE id = $1`, args
		}
		return `DELETE FROM ` + table + ` WHERE id = $1`, args[:1]
	})
}

// randomWrites has a session execute statements on every node until d is over, and disturbs one node after the other. What a
// node refuses is not written.
func randomWrites(t *testing.T, c *cluster.Cluster, seed int64, d time.Duration, disturb func(n *cluster.Node, wait func(most time.Duration)),
	statement func(*cluster.Node, *rand.Rand) (string, []any)) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	done := make(chan int, len(c.Nodes))
	for i, n := range c.Nodes {
		r := rand.New(rand.NewSource(seed + int64(i)))
		go func() {
			wrote := 0
			defer func() { done <- wrote }()
			conn, err := pgx.Connect(context.Background(), n.DSN)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close(context.Background())
			pace := time.NewTicker(loadPace)
			defer pace.Stop()
			for ctx.Err() == nil {
				sql, args := statement(n, r)
				if _, err := conn.Exec(context.Background(), sql, args...); err == nil {
					wrote++
				}
				select {
				case <-pace.C:
				case <-ctx.Done():
				}
			}
		}()
	}
	r := rand.New(rand.NewSource(seed - 1))
	for ctx.Err() == nil {
		n := c.Nodes[r.Intn(len(c.Nodes))]
		wait := func(most time.Duration) {
			select {
			case <-time.After(time.Duration(r.Int63n(int64(most)))): // how long a node is disturbed, or is not
			case <-ctx.Done():
			}
		}
		wait(time.Second)
		disturb(n, wait)
	}
	total := 0
	for range c.Nodes {
		total += <-done
	}
	t.Logf("%d writes", total)
}

// keptSQL lists what a node keeps out of its tables.
const keptSQL = `SELECT name, origin, epoch, stamp, image FROM pgbridge.quarantine ORDER BY name, hi, lo`

// versionedRow is a row that exists, visible or not.
type versionedRow struct {
	id, stamp int64
	origin    string
	visible   bool
}

// requireVisible waits until the same rows are visible, and the same ones are kept, on all nodes, and requires that they
// are what the rule makes of all versions: from the latest on, each is visible unless a visible one collides with it.
func requireVisible(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	c.WaitConverged()
	for _, n := range c.Nodes[1:] {
		n.AwaitLike(c.Nodes[0], keptSQL)
	}
	c.WaitConverged()
	for table, collides := range uniqueCollides {
		requireRule(t, c, table, collides)
	}
}

func requireRule(t *testing.T, c *cluster.Cluster, table, collides string) {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, c.Nodes[0].DSN)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, `CREATE TEMP TABLE version (id int PRIMARY KEY, a int, b int, c text, stamp int8, origin text, visible bool)`); err != nil {
		t.Fatal(err)
	}
	// What a node wrote itself bears its true stamp on the others.
	written := map[string]int64{}
	for _, n := range c.Nodes {
		for _, r := range n.Query(`SELECT t.w, (extract(epoch FROM c.timestamp - '2000-01-01 UTC') * 1000000)::int8 FROM ` + table +
			` t, pg_xact_commit_timestamp_origin(t.xmin) c WHERE c.roident <> 0`) {
			var stamp int64
			w, rest, _ := strings.Cut(r, "|")
			if _, err := fmt.Sscan(rest, &stamp); err != nil {
				t.Fatal(err)
			}
			if old, ok := written[w]; ok && old != stamp {
				t.Errorf("table %s: the row written as %s has stamps %d and %d", table, w, old, stamp)
			}
			written[w] = stamp
		}
	}
	for w, stamp := range written {
		if _, err := conn.Exec(ctx, `INSERT INTO version SELECT id, a, b, c, $2, $3, true FROM `+table+` WHERE w = $1`, w, stamp, w[:1]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.Exec(ctx, `INSERT INTO version SELECT r.id, r.a, r.b, r.c, q.stamp, q.origin, false
		FROM pgbridge.quarantine q, json_populate_record(NULL::`+table+`, json_object(q.columns, q.image)) r WHERE q.name = '`+table+`'`); err != nil {
		t.Fatalf("a row of %s is visible and kept: %v", table, err)
	}
	rows, err := conn.Query(ctx, `SELECT id, stamp, origin, visible FROM version ORDER BY stamp DESC, origin DESC`)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (v versionedRow, err error) {
		return v, r.Scan(&v.id, &v.stamp, &v.origin, &v.visible)
	})
	if err != nil {
		t.Fatal(err)
	}
	pairs := map[[2]int64]bool{}
	rows, err = conn.Query(ctx, `SELECT x.id, y.id FROM version x, version y WHERE x.id <> y.id AND `+collides)
	if err != nil {
		t.Fatal(err)
	}
	var x, y int64
	if _, err := pgx.ForEachRow(rows, []any{&x, &y}, func() error { pairs[[2]int64{x, y}] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	var visible []int64
	kept := 0
	for _, v := range all {
		free := !slices.ContainsFunc(visible, func(id int64) bool { return pairs[[2]int64{v.id, id}] })
		if free {
			visible = append(visible, v.id)
		} else {
			kept++
		}
		if free != v.visible {
			t.Errorf("table %s: row %d of %s at %d is visible: %v, by the rule: %v", table, v.id, v.origin, v.stamp, v.visible, free)
		}
	}
	t.Logf("table %s: %d rows visible, %d kept", table, len(visible), kept)
}

// TestUniqueValuesConverge: three nodes write rows of few values, while links are cut; then the same rows are visible
// everywhere, and the same ones are kept, as the rule says.
func TestUniqueValuesConverge(t *testing.T) {
	t.Parallel()
	majors := []int{15, 18}
	if !slices.Contains(pgtest.Versions(t), 15) {
		majors = nil
	}
	c := cluster.New(t, cluster.Options{Majors: majors, Schema: uniqueSchema, Config: map[string]string{"apply.batch_transactions": "4"}}) // no bundles: stamps are told by commits
	for round := range 3 {
		s := seed(t)
		t.Logf("round %d, seed %d", round, s)
		uniqueWrites(t, c, s, loadTime()/3, cutOff, "plain", "late")
		requireVisible(t, c)
		if t.Failed() {
			return
		}
	}
	// When all that is visible goes, what is kept comes.
	for range 20 {
		if c.Nodes[0].Value(`SELECT count(*) FROM pgbridge.quarantine`) == "0" {
			return
		}
		c.Nodes[1].Exec(`DELETE FROM plain; DELETE FROM late`)
		requireVisible(t, c)
	}
	t.Error("the quarantine does not become empty")
}

// TestUniqueValuesSurviveKills is TestUniqueValuesConverge with bridges that are killed. Of constraints that the server does not
// check for applied rows a kill may leave two rows that collide (docs/unique.md).
func TestUniqueValuesSurviveKills(t *testing.T) {
	t.Parallel()
	pgtest.Long(t)
	c := cluster.New(t, cluster.Options{Processes: true, Schema: uniqueSchema, Config: map[string]string{"apply.batch_transactions": "4"}})
	s := seed(t)
	t.Logf("seed %d", s)
	uniqueWrites(t, c, s, loadTime()/2, func(n *cluster.Node, wait func(most time.Duration)) {
		n.Kill()
		wait(time.Second)
		n.Start()
	}, "plain")
	requireVisible(t, c)
}
