package integration

import (
	"context"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
)

// TestPause: what an operator pauses waits at that node alone, with what depends on it, also at a bridge that starts; all else goes
// on, and when the pause ends all nodes are equal.
func TestPause(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 3, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY)`})
	a, b, d := c.Node("a"), c.Node("b"), c.Node("c")
	run := func(want string, args ...string) {
		t.Helper()
		out, err := exec.Command(cluster.Binary(t), append(args, "--config", a.File)...).CombinedOutput()
		if (err == nil) != (want == "" || !strings.HasPrefix(want, "!")) || !strings.Contains(string(out), strings.TrimPrefix(want, "!")) {
			t.Fatalf("%v: %v\n%s\nwant %q", args, err, out, want)
		}
	}
	waits := func(origin, why string) {
		t.Helper()
		a.AwaitStatus(func(r *cluster.Report) bool {
			for _, l := range r.Links {
				if l.Origin == origin {
					return strings.Contains(l.Waiting, why) && hasAlarm(r, "paused")
				}
			}
			return false
		})
	}

	run("!node \"x\" is not another node of this cluster; topology.nodes has b, c", "pause", "--origin", "x")
	run("!topology.nodes has b, c", "pause", "--origin", "a")
	run("!there is no table public.x here", "pause", "--table", "public.x")
	run("!that is not paused", "resume", "--origin", "b")
	run("node b is paused at node a", "pause", "--origin", "b", "--reason", "to be looked at")
	waits("b", "to be looked at")
	b.Exec(`INSERT INTO t VALUES (1, 'b')`)
	d.Await(`SELECT v FROM t`, "b")
	d.Exec(`INSERT INTO u VALUES (1)`) // c had seen b's
	a.Exec(`INSERT INTO t VALUES (2, 'a')`)
	for _, n := range []*cluster.Node{b, d} {
		n.Await(`SELECT count(*) FROM t`, "2")
		n.Await(`SELECT count(*) FROM u`, "1")
	}
	waits("c", "which its author had seen")
	for path, want := range map[string]string{
		"/metrics": `pgbridge_alarm{code="paused",severity="warning"} 1`, "/metrics?": `pgbridge_origin_queued_transactions{origin="b"} 1`, "/healthz": "ok", "/readyz": "ok",
	} {
		if got := get(t, a, path); !strings.Contains(got, want) {
			t.Errorf("%s answers without %s:\n%s", path, want, got)
		}
	}
	a.Stop()
	a.Start()
	waits("b", "to be looked at")
	if got := a.Value(`SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM u)`); got != "1|0" {
		t.Errorf("node a shows %s", got)
	}
	run("", "resume", "--origin", "b")
	a.Await(`SELECT count(*) FROM t`, "2")
	c.WaitConverged()

	run("table public.u is paused", "pause", "--table", "public.u")
	a.AwaitStatus(func(r *cluster.Report) bool { return hasAlarm(r, "paused") })
	b.Exec(`INSERT INTO t VALUES (3, 'b')`)
	b.Exec(`INSERT INTO u VALUES (3)`)
	b.Exec(`INSERT INTO t VALUES (4, 'b')`)
	waits("b", "table public.u is paused here")
	run("public.u", "pause", "--list")
	if got := a.Value(`SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM u)`); got != "3|1" {
		t.Errorf("node a shows %s", got)
	}
	run("", "resume", "--all")
	c.WaitConverged()
	run("nothing is paused", "pause", "--list")
}

// get asks a node's bridge over its status socket.
func get(t *testing.T, n *cluster.Node, path string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(n.Load().DataDir, "status.sock"))
	}}}
	resp, err := client.Get("http://bridge" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
