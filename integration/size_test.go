package integration

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// memoryLimit is what a bridge may take at its peak, in bytes.
const memoryLimit = 256 << 20

// TestSizeIsBoundedByDisk: a transaction of 50,000 rows, in soak of ten million, and one row of 50 MB; the bridges'
// memory stays bounded on both sides, and small transactions of others go on meanwhile.
func TestSizeIsBoundedByDisk(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 3, Processes: true, Own: true, Settings: map[string]string{"fsync": "off"},
		Schema: `CREATE TABLE big (id int PRIMARY KEY, v text); CREATE TABLE wide (id int PRIMARY KEY, v bytea);
			CREATE TABLE beat (node text, n int, PRIMARY KEY (node, n));`})
	a := c.Node("a")
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	beats := 0
	wg.Go(func() { // the heartbeat of another node
		for n := 1; ctx.Err() == nil; n++ {
			c.Node("c").Exec(`INSERT INTO beat VALUES ('c', $1)`, n)
			c.Node("b").Await(fmt.Sprintf(`SELECT count(*) FROM beat WHERE node = 'c' AND n = %d`, n), "1")
			beats = n
		}
	})
	rows := 50_000
	if pgtest.Soak() {
		rows = 10_000_000
	}
	a.Exec(fmt.Sprintf(`INSERT INTO big SELECT i, 'row ' || i FROM generate_series(1, %d) i`, rows))
	c.Node("b").Await(`SELECT count(*) FROM big`, fmt.Sprint(rows))
	a.Exec(`INSERT INTO wide SELECT 1, string_agg(sha256(i::text::bytea), '') FROM generate_series(1, 50 * 1024 * 1024 / 32) i`)
	c.Node("b").Await(`SELECT count(*) FROM wide`, "1")
	cancel()
	wg.Wait()
	c.WaitConverged()
	for _, n := range c.Nodes {
		peak := n.PeakMemory()
		t.Logf("node %s: peak memory of the bridge %d MiB", n.Name, peak>>20)
		if peak > memoryLimit {
			t.Errorf("node %s: peak memory of the bridge %d MiB, the limit is %d", n.Name, peak>>20, memoryLimit>>20)
		}
	}
	t.Logf("%d heartbeats went through meanwhile", beats)
	if beats < 2 {
		t.Error("no heartbeat went through beside the large transactions")
	}
}
