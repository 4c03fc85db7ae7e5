package integration

import (
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// lastOfFormat1 is the last commit whose pgbridge reads no other version of the frame's format than the first.
const lastOfFormat1 = "b23266de2349df3cf124abd2464db4832fa885b1"

// programOf builds pgbridge as it was at a commit. It skips the test where the history is not there: in a tarball, or a shallow clone.
func programOf(t *testing.T, commit string) string {
	t.Helper()
	dir := t.TempDir()
	archive := filepath.Join(dir, "tree.tar")
	if out, err := exec.Command("git", "-C", "..", "archive", "-o", archive, commit).CombinedOutput(); err != nil {
		t.Skipf("commit %s is not in this copy of the repository: %s", commit, out)
	}
	if out, err := exec.Command("tar", "-C", dir, "-xf", archive).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	program := filepath.Join(dir, "old-pgbridge")
	build := exec.Command("go", "build", "-o", program, "./cmd/pgbridge")
	build.Dir, build.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build pgbridge of %s: %v: %s", commit, err, out)
	}
	return program
}

// TestUpgrade: nodes of a pgbridge that knows but the last version of the frame's format are upgraded one after the other, under load:
// old ones and new ones replicate both ways all the time, give each other rows, too, and compare each other. In the end nothing is lost.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	old, _ := programOf(t, lastOfFormat1), cluster.Binary(t) // which is not to be built while they wait for it
	c := cluster.New(t, cluster.Options{Nodes: 3, Majors: pgtest.Versions(t), Processes: true, Idle: true, Schema: loadSchema + countedSchema,
		Config: map[string]string{"conflict.tables": "*.counter: n=delta", "topology.failover_after": "2s"}})
	for _, n := range c.Nodes {
		n.Program = old
	}
	for _, n := range c.Nodes {
		n.Start()
	}
	s := seed(t)
	r := rand.New(rand.NewSource(s))
	l := newLoad(t, c, 1, s)
	increments := 0
	write := func(nodes ...*cluster.Node) {
		for _, n := range nodes {
			increments++
			n.Exec(`WITH d AS (INSERT INTO did VALUES ($1, $2, 1)) UPDATE counter SET n = n + 1 WHERE id = 1`, n.Name, increments)
		}
	}
	order, away := r.Perm(3), c.Nodes[r.Intn(3)]
	for i, at := range order {
		n := c.Nodes[at]
		l.start()
		n.Stop()
		n.Program = ""
		n.Start()
		write(c.Nodes...)
		l.stop()
		c.WaitConverged()
		if int64(i) != s%2 {
			continue
		}
		t.Logf("upgraded in the order %v; node %s was away when %d were new", order, away.Name, i+1)
		heal := isolate(c, away.Name)
		write(c.Nodes...)
		awaitAllBut(t, c, away)
		for _, m := range c.Nodes { // so that it is given rows instead of transactions, by whatever runs there
			if m != away {
				m.Purge()
			}
		}
		heal()
		c.WaitConverged()
		if got := resyncs(t, away); got == 0 {
			t.Errorf("node %s was not given what it lacked", away.Name)
		}
		for _, m := range c.Nodes {
			program := m.Program
			if program == "" {
				program = cluster.Binary(t)
			}
			var out []byte
			var err error
			m.AwaitStatus(func(*cluster.Report) bool { // away has started anew, and the others may not hear it yet
				out, err = exec.Command(program, "verify", "--config", m.File).CombinedOutput()
				return err == nil || !strings.Contains(string(out), "is starting") && !strings.Contains(string(out), "nobody answers")
			})
			if err != nil {
				t.Errorf("verify of node %s by %s: %v: %s", m.Name, program, err, out)
			}
		}
	}
	requireApplied(t, c, l)
	for _, n := range c.Nodes {
		if got := n.Query(`SELECT id, n FROM counter WHERE n <> (SELECT count(*) FROM did WHERE did.id = counter.id)`); len(got) > 0 {
			t.Errorf("node %s has lost increments, or counted some twice: %q", n.Name, got)
		}
	}
}
