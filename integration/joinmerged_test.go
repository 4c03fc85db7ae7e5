package integration

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// TestJoinWithMergedTables: a fourth node joins three that write merged tables all the time. It is given the rows with all writes that may
// still have to be merged with others, and then merges as the others do: what they write apart comes together, and no increment is lost.
func TestJoinWithMergedTables(t *testing.T) {
	t.Parallel()
	oldest, newest := pgtest.Versions(t)[0], pgtest.Newest(t)
	c := cluster.New(t, cluster.Options{Majors: []int{oldest, newest, oldest, newest}, Schema: mergedSchema, Config: mergedConfig})
	old := *c
	sum := map[int]int64{}
	add := func(more map[int]int64) {
		for id, by := range more {
			sum[id] += by
		}
	}
	add(mergedLoad(t, &old, 2, time.Second))
	d := c.Grow()
	d.Exec(`INSERT INTO counter VALUES (1, 0)`)
	join := func(existing bool) error {
		return bridge.Join(t.Context(), d.Load(), bridge.JoinOptions{From: "b", Jobs: 2, Existing: existing, Logger: d.Logger(), Tell: func(text string) { t.Log(text) }})
	}
	for _, existing := range []bool{false, true} {
		requireSays(t, "join with a merged table that has rows", join(existing), `table "public"."counter" has rows here already, and is given whole`, `run TRUNCATE "public"."counter"`)
	}
	d.Exec(`TRUNCATE counter`)

	// A row outlives a delete while others are copied.
	old.WaitConverged()
	cancelJoin(t, d, bridge.JoinOptions{From: "b", Jobs: 1, PageRows: 1}, 1)
	a, b := c.Node("a"), c.Node("b")
	a.Exec(`INSERT INTO kept VALUES (100, 'first')`)
	old.WaitConverged()
	a.Links["b"].Cut()
	b.Links["a"].Cut()
	a.Exec(`DELETE FROM kept WHERE id = 100`)
	b.Exec(`UPDATE kept SET v = 'wins' WHERE id = 100`)
	healAll(&old)
	old.WaitConverged()
	if got := a.Value(`SELECT v FROM kept WHERE id = 100`); got != "wins" {
		t.Fatalf("a row that was updated and deleted is %q", got)
	}

	var joined atomic.Bool
	var load sync.WaitGroup
	load.Go(func() {
		for range 6 { // on a machine that cannot bear it the backlog would grow for as long as the join takes
			if !joined.Load() {
				add(mergedLoad(t, &old, 1, 500*time.Millisecond))
			}
		}
	})
	err := join(false)
	if err == nil {
		d.Start()
		d.Await(`SELECT state FROM pgbridge.joining`, "joined")
	}
	joined.Store(true)
	load.Wait()
	if err != nil {
		t.Fatalf("%v\n%s", err, d.LogTail())
	}
	c.WaitConverged()
	requireSums(t, c, sum)

	for _, n := range []string{"a", "b"} {
		d.Links[n].Cut()
		c.Node(n).Links["d"].Cut()
	}
	d.Links["c"].Cut()
	add(mergedLoad(t, c, 2, 2*time.Second))
	healAll(c)
	add(mergedLoad(t, c, 2, time.Second))
	c.WaitConverged()
	requireSums(t, c, sum)
}
