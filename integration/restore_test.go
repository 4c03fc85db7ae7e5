package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgcluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// TestRestoredPrimary: a primary that came from a backup, or from a standby, lacks what its stream has told the
// others. Its bridge refuses to go on, even though the server has written more WAL than before.
func TestRestoredPrimary(t *testing.T) {
	t.Parallel()
	for name, promote := range map[string]bool{"cold copy": false, "new timeline": true} {
		t.Run(name, func(t *testing.T) {
			c := cluster.New(t, cluster.Options{Nodes: 1, Own: true, Schema: `CREATE TABLE t (id int PRIMARY KEY)`})
			a := c.Node("a")
			insert := func(id int) {
				t.Helper()
				a.Exec(`INSERT INTO t VALUES ($1)`, id)
				a.AwaitStatus(func(r *cluster.Report) bool { return r.Publisher.DurableSeq == uint64(id) })
			}
			insert(1)
			a.Stop()
			backup := filepath.Join(t.TempDir(), "backup")
			ends := func() {
				t.Helper()
				if err := a.PG.Stop(t.Context(), pgcluster.Fast); err != nil {
					t.Fatal(err)
				}
			}
			begins := func() {
				t.Helper()
				if err := a.PG.Restart(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			ends()
			copyDir(t, a.PG.DataDir(), backup)
			begins()
			a.Start()
			insert(2)
			a.Stop()
			if promote {
				ends()
				conf := filepath.Join(a.PG.DataDir(), "postgresql.auto.conf")
				if err := os.WriteFile(conf, []byte("restore_command = 'false'\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(a.PG.DataDir(), "recovery.signal"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
				begins()
				a.Await(`SELECT pg_is_in_recovery()`, "f")
				wantRefusal(t, run(t, a, nil), "timeline 1", "timeline 2", "pgbridge node restored")
				return
			}
			ends()
			if err := os.RemoveAll(a.PG.DataDir()); err != nil {
				t.Fatal(err)
			}
			copyDir(t, backup, a.PG.DataDir())
			begins()
			for i := range 200 {
				pgtest.Exec(t, a.DSN, fmt.Sprintf(`INSERT INTO t VALUES (%d); SELECT pg_logical_emit_message(false, 'other', repeat('x', 100000))`, 100+i))
			}
			wantRefusal(t, run(t, a, nil), "does not know transaction 2", "pgbridge node restored")
		})
	}
}

// copyDir keeps owners and modes: the server may run as another user.
func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy: %v: %s", err, out)
	}
}
