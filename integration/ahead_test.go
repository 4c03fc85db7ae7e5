package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
)

// TestWhatOthersHadAheadIsCapturedAgain: a broker loses frames whose transactions another node has applied already, as
// a power cut takes from its disk what was not synced. The slot brings them again, with the same seqs and stamps:
// node b has them once, node c, which was away, gets the second copies, and all agree on what conflicts with them.
func TestWhatOthersHadAheadIsCapturedAgain(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Processes: true, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`})
	a, b, away := c.Node("a"), c.Node("b"), c.Node("c")
	c.WaitConverged()
	for _, n := range c.Nodes {
		for name, l := range n.Links {
			if n == away || name == away.Name {
				l.Cut()
			}
		}
	}
	store, saved := filepath.Join(a.Dir, "data", "jetstream"), filepath.Join(a.Dir, "saved")
	written := 0
	for try := 1; ; try++ {
		a.Kill()
		if err := os.RemoveAll(saved); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(saved, os.DirFS(store)); err != nil {
			t.Fatal(err)
		}
		a.Start()
		published := a.Value(`SELECT published FROM pgbridge.node`)
		lsn := a.Value(`SELECT pg_current_wal_lsn()`)
		for range 3 {
			written++
			a.Exec(fmt.Sprintf(`INSERT INTO t VALUES (%d, 'of a')`, written))
			a.Exec(fmt.Sprintf(`UPDATE t SET v = v || ' again' WHERE id = %d`, written))
		}
		b.Await(`SELECT count(*) FROM t WHERE v LIKE '% again'`, fmt.Sprint(written))
		a.Kill()
		if a.Value(`SELECT published FROM pgbridge.node`) == published &&
			a.Value(`SELECT confirmed_flush_lsn <= '`+lsn+`' FROM pg_replication_slots WHERE database = current_database()`) == "t" {
			break
		}
		if try == 20 {
			t.Fatal("the slot is always confirmed before the bridge is killed")
		}
		a.Start() // its stream is whole: what it has told the server counts
	}
	if err := os.RemoveAll(store); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(store, os.DirFS(saved)); err != nil {
		t.Fatal(err)
	}
	away.Exec(`INSERT INTO t SELECT i, 'of c' FROM generate_series(1, $1) i`, written)
	a.Start()
	a.Exec(`INSERT INTO t VALUES (0, 'behind it')`)
	healAll(c)
	c.WaitConverged()
	for _, n := range c.Nodes {
		if got, want := n.Value(`SELECT count(*) FROM t`), fmt.Sprint(written+1); got != want {
			t.Errorf("node %s has %s rows, want %s", n.Name, got, want)
		}
	}
}

// TestWhatASurvivorDoesNotHandOn: a node dies, and what it wrote last is applied on one of the others, whose stream does not have it: it
// came ahead of the dead node's broker, and the survivor's bridge was killed before it had handed it on. The third node gets it all
// the same, and the dead one, when it comes back, has lost nothing and sends nothing twice.
func TestWhatASurvivorDoesNotHandOn(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Processes: true, Config: map[string]string{"topology.failover_after": "1s"}, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`})
	a, b, dead := c.Node("a"), c.Node("b"), c.Node("c")
	dead.Exec(`INSERT INTO t VALUES (1, 'there'), (2, 'there')`)
	c.WaitConverged()
	heal := isolate(c, "b")
	a.Kill()
	found, err := filepath.Glob(filepath.Join(a.Dir, "data", "jetstream", "*", "*", "streams", "PGB_*_a-c"))
	if err != nil || len(found) != 1 {
		t.Fatalf("streams in which a hands on what c writes: %q, %v", found, err)
	}
	saved := filepath.Join(a.Dir, "saved")
	if err := os.CopyFS(saved, os.DirFS(found[0])); err != nil {
		t.Fatal(err)
	}
	a.Start()
	dead.Exec(`INSERT INTO t VALUES (3, 'late')`)
	dead.Exec(`UPDATE t SET v = 'late' WHERE id = 1`)
	dead.Exec(`DELETE FROM t WHERE id = 2`)
	const rows, want = `SELECT string_agg(id || v, ' ' ORDER BY id) FROM t WHERE id < 10`, "1late 3late"
	a.Await(rows, want)
	dead.Kill()
	a.Kill()
	if err := os.RemoveAll(found[0]); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(found[0], os.DirFS(saved)); err != nil {
		t.Fatal(err)
	}
	a.Start()
	a.Exec(`INSERT INTO t VALUES (10, 'behind it')`) // whose author has seen what b lacks
	heal()
	b.Await(rows, want)
	b.Await(`SELECT v FROM t WHERE id = 10`, "behind it")
	dead.Start()
	dead.Exec(`UPDATE t SET v = 'back' WHERE id = 1`)
	c.WaitConverged() // and b's bridge has logged what its rows could be seen before
	if got := resyncs(t, b); got != 1 {
		t.Errorf("node b was given what it lacked %d times", got)
	}
}
