package integration

import (
	"context"
	"fmt"
	"math/rand"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// seed is random, or what PGBRIDGE_TEST_SEED says, to repeat a run.
func seed(t testing.TB) int64 {
	if s := os.Getenv("PGBRIDGE_TEST_SEED"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return rand.Int63n(1_000_000)
}

// seedAmong is seed, but one of those with which the test has failed before.
func seedAmong(t testing.TB, failed ...int64) int64 {
	if os.Getenv("PGBRIDGE_TEST_SEED") != "" {
		return seed(t)
	}
	return failed[rand.Intn(len(failed))]
}

// seedOr returns the seed that the environment gives, once in three times one of those that have failed, or else a new one.
func seedOr(t testing.TB, failed ...int64) int64 {
	if rand.Intn(3) == 0 {
		return seedAmong(t, failed...)
	}
	return seed(t)
}

// run lets the load run for d. The time is the load's size, not something that is waited for.
func (l *load) run(d time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	<-ctx.Done()
	l.stop()
}

func loadTime() time.Duration {
	if pgtest.Soak() {
		return time.Minute
	}
	return 4 * time.Second
}

// TestMeshConverges: three nodes, all writing the same rows at once; then all tables are equal, nothing is
// lost, nothing is there twice, and every transaction that was committed elsewhere was applied once.
func TestMeshConverges(t *testing.T) {
	t.Parallel()
	all := [][]int{{15, 16, 17, 18}}
	if pgtest.Soak() {
		all = append(all, []int{18}, []int{15})
	}
	for _, majors := range all {
		t.Run(fmt.Sprint(majors), func(t *testing.T) {
			t.Parallel()
			c := cluster.New(t, cluster.Options{Nodes: max(3, len(majors)), Majors: majors, Schema: loadSchema})
			taps := c.Tap()
			l := startLoad(t, c, 6/len(c.Nodes), seed(t))
			l.run(loadTime())
			c.WaitConverged()
			requireCounts(t, c, l)
			for i, n := range c.Nodes {
				crossed := taps[i].Crossed()
				for seq, times := range crossed {
					if times != 1 {
						t.Errorf("transaction %s:%d crossed the link %d times", n.Name, seq, times)
					}
				}
				t.Logf("node %s: %d committed, %d crossed its links once, %s conflicts recorded",
					n.Name, l.commits[i].Load(), len(crossed), n.Value(`SELECT count(*) FROM pgbridge.conflict`))
			}
		})
	}
}

// requireCounts checks on every node how many transactions of every other one were applied. Each
// committed one wrote exactly one entry.
func requireCounts(t *testing.T, c *cluster.Cluster, l *load) {
	t.Helper()
	for i, o := range c.Nodes {
		least, most := l.commits[i].Load(), l.commits[i].Load()+l.unsure[i].Load()
		for _, n := range c.Nodes {
			entries, err := strconv.ParseUint(n.Value(`SELECT count(*) FROM entry WHERE node = $1`, o.Name), 10, 64)
			if err != nil || entries < least || entries > most {
				t.Errorf("node %s has %d entries of %s, committed were %d to %d (%v)", n.Name, entries, o.Name, least, most, err)
			}
			if n == o {
				continue
			}
			seq, err := strconv.ParseUint(n.Value(`SELECT seq FROM pgbridge.position WHERE origin = $1`, o.Name), 10, 64)
			if want := entries + uint64(o.Rounds()+l.others[o.Name]); err != nil || seq != want {
				t.Errorf("node %s has applied %d transactions of %s, committed were %d (%v)", n.Name, seq, o.Name, want, err)
			}
		}
	}
}
