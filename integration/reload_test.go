package integration

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
)

// TestReload: a bridge that runs takes over what the file says now, by the command or a signal, all of it or nothing; what it refuses
// it says there, in its log and in status, and goes on as before.
func TestReload(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2, Processes: true, Idle: true, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`})
	a, b := c.Node("a"), c.Node("b")
	first, err := os.ReadFile(a.File)
	if err != nil {
		t.Fatal(err)
	}
	cfg := a.Load() // for when the file cannot be read
	write := func(more string) {
		t.Helper()
		if err := os.WriteFile(a.File, append(first[:len(first):len(first)], more...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	reload := func(file string, code int, want string) {
		t.Helper()
		cmd := exec.Command(cluster.Binary(t), "reload", "--config", file)
		out, _ := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != code || !strings.Contains(string(out), want) {
			t.Fatalf("reload ended with %d and said\n%s\nwant %d and %q", cmd.ProcessState.ExitCode(), out, code, want)
		}
	}
	hangUp := func() {
		t.Helper()
		if err := syscall.Kill(a.Pid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(why string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), refusalTime)
		defer cancel()
		for {
			r, err := bridge.Status(ctx, cfg)
			if err == nil && slices.ContainsFunc(r.Alarms, func(x cluster.Alarm) bool { return x.Code == "reload-refused" && strings.Contains(x.Text, why) }) {
				return
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
				t.Fatalf("the bridge does not say that it refuses %q\n%s", why, a.LogTail())
			}
		}
	}
	write("apply: {rate: 1B}\n")
	reload(a.File, 1, "no bridge runs for this node")
	a.Start()
	b.Start()
	b.Exec(`INSERT INTO t VALUES (1, repeat('x', 10000))`) // paid for with hours
	a.Await(`SELECT count(*) FROM t`, "1")
	b.Exec(`INSERT INTO t VALUES (2, '')`)

	write("apply: {rate: 0}\ntables: [\"public.*\"]\n")
	reload(a.File, 1, "tables: read when the bridge starts; restart it to have what the file says now. Nothing was changed, apply.rate neither")
	refused("tables: read when the bridge starts")
	if got := a.Value(`SELECT count(*) FROM t`); got != "1" {
		t.Errorf("node a has %s rows, though its rate could not be changed", got)
	}
	if log := a.LogTail(); !strings.Contains(log, "configuration is not reloaded") || strings.Contains(log, "level=DEBUG") {
		t.Errorf("the log is\n%s", log)
	}

	write("apply: {rate: 0}\nlog: {level: debug}\n")
	reload(a.File, 0, "apply.rate: 1B -> 0\nlog.level: info -> debug\n")
	a.Await(`SELECT count(*) FROM t`, "2")
	reload(a.File, 0, "nothing has changed")

	write("apply: {rte: 1GiB}\n")
	reload(a.File, 2, "apply.rte: unknown key; the nearest one is apply.rate")
	hangUp()
	refused("apply.rte: unknown key")
	write("apply: {rate: 1GiB}\n")
	hangUp()
	a.AwaitStatus(func(r *cluster.Report) bool { return !hasAlarm(r, "reload-refused") })
	reload(a.File, 0, "nothing has changed")
	reload(b.File, 0, "nothing has changed")
	other := filepath.Join(t.TempDir(), "other.yaml")
	if err := os.WriteFile(other, first, 0o600); err != nil {
		t.Fatal(err)
	}
	reload(other, 1, "was started with --config "+a.File)
	c.WaitConverged()
}
