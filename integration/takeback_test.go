package integration

import (
	"strconv"
	"syscall"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
)

// TestDeleteIsReadAfterACrash: a remote insert is applied before capture has read the local delete that beats it, and
// then bridge and server crash. The bridge that reads the delete knows nothing of the insert any more, and takes the
// row back all the same (PROOF.md R20).
func TestDeleteIsReadAfterACrash(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, Own: true, Processes: true, Settings: map[string]string{"fsync": "off", "wal_sender_timeout": "0"},
		Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`})
	a, b := c.Nodes[0], c.Nodes[1]
	c.WaitConverged()
	cutAll(c)
	b.Exec(`INSERT INTO t VALUES (1, 'of b')`)
	walsender, err := strconv.Atoi(a.Value(`SELECT active_pid FROM pg_replication_slots`))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(walsender, syscall.SIGSTOP); err != nil { // capture reads no more
		t.Fatal(err)
	}
	a.Exec(`INSERT INTO t VALUES (1, 'of a')`)
	a.Exec(`DELETE FROM t`)
	a.Links[b.Name].Heal()
	a.Await(`SELECT v FROM t`, "of b")
	a.Exec(`SELECT pg_logical_emit_message(true, 'any', '')`) // what was applied is flushed with it
	a.Kill()
	if err := a.PG.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := a.PG.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := a.Value(`SELECT v FROM t`); got != "of b" {
		t.Fatalf("after the crash there is %q: the schedule does not lead there", got)
	}
	a.Launch()
	healAll(c)
	a.Await(`SELECT count(*) FROM t`, "0")
	c.WaitConverged()
}
