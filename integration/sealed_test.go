package integration

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
)

// stored reports whether a text stands anywhere in what a node's bridge keeps on its disk.
func stored(t *testing.T, n *cluster.Node, text string) bool {
	t.Helper()
	found := false
	err := filepath.WalkDir(filepath.Join(n.Dir, "data"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // what has gone meanwhile
		}
		content, _ := os.ReadFile(path)
		found = found || bytes.Contains(content, []byte(text))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestSealedRows: what only some nodes have goes through one that has not, and nobody can read it there, however large it is; those who
// have it read it, also their own when they start again.
func TestSealedRows(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 3, Keys: true, Schema: residentSchema, Config: map[string]string{"topology.residency": "crm.*=a b",
		"topology.kind": "star", "topology.center": "c", "stream.compression": "none", "capture.frame_bytes": "64KiB", "conflict.tables": "crm.visits: n=delta"}})
	a, b, x := c.Node("a"), c.Node("b"), c.Node("c")
	if _, err := os.Stat(filepath.Join(x.Keys(), "rows-a+b.key")); err == nil {
		t.Fatal("node c has the key")
	}
	a.Exec(`INSERT INTO crm.person VALUES (1, 'secret of one'); INSERT INTO item VALUES (1, 'public of one')`)
	a.Exec(`INSERT INTO crm.person SELECT i, 'secret of many ' || i FROM generate_series(100, 3000) i`)
	a.Exec(`INSERT INTO crm.person VALUES (2, 'secret of ' || repeat('large ', 600000))`)
	a.Exec(`BEGIN; INSERT INTO item SELECT i, 'public of many ' || i FROM generate_series(100, 3000) i; INSERT INTO crm.person SELECT i, 'secret among them' FROM generate_series(5000, 6000) i; COMMIT`)
	a.Exec(`INSERT INTO crm.visits VALUES (1, 1)`)
	b.Exec(`INSERT INTO crm.person VALUES (3, 'secret of b')`)
	c.WaitConverged()
	for _, n := range []*cluster.Node{a, b} {
		n.Exec(`UPDATE crm.visits SET n = n + 1`)
		n.Exec(`UPDATE crm.person SET v = 'secret of both, ' || id WHERE id IN (1, 2)`)
	}
	a.Exec(`DELETE FROM crm.person WHERE id = 3`)
	b.Exec(`TRUNCATE item, crm.person`)
	a.Exec(`INSERT INTO crm.person VALUES (4, 'secret of four'); INSERT INTO item VALUES (4, 'public of four')`)
	c.WaitConverged()
	requireNone(t, x)

	// What the one in the middle keeps for one that is away can be read there, but for what is sealed.
	b.Stop()
	a.Exec(`INSERT INTO item VALUES (7, 'public of seven'); INSERT INTO crm.person VALUES (7, 'secret of seven')`)
	x.AwaitStatus(func(*cluster.Report) bool { return stored(t, x, "public of seven") })
	if stored(t, x, "secret of") {
		t.Error("what is sealed stands in the files of node c")
	}
	b.Start()
	c.WaitConverged()
	for _, n := range []*cluster.Node{a, b} { // which reads its own frames back
		n.Stop()
		n.Start()
	}
	b.Exec(`DELETE FROM crm.person WHERE id = 4`)
	a.Exec(`UPDATE crm.person SET v = 'secret of five', id = 5 WHERE id = 4; UPDATE crm.visits SET n = n + 1`)
	c.WaitConverged()
	if got := b.Value(`SELECT n FROM crm.visits`); got != "4" {
		t.Errorf("visits are counted as %s", got)
	}
	for _, n := range c.Nodes {
		if stored(t, n, "secret of") {
			t.Errorf("what is sealed stands in the files of node %s", n.Name)
		}
	}
	// Who is to have it and lacks the key says so, and goes on when it is there.
	key := filepath.Join(b.Keys(), "rows-a+b.key")
	text, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	b.Stop()
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if err := bridge.Run(t.Context(), b.Load(), bridge.Options{Logger: b.Logger()}); err == nil || !strings.Contains(err.Error(), "rows-a+b.key") || !strings.Contains(err.Error(), "run pgbridge keys") {
		t.Errorf("without the key it says %v", err)
	}
	if err := os.WriteFile(key, text, 0o600); err != nil {
		t.Fatal(err)
	}
	b.Start()

	// Another key from now on: whoever lacks it waits, and goes on when it is there.
	both := append(append(bytes.Repeat([]byte("A"), 43), '=', '\n'), text...)
	if err := os.WriteFile(filepath.Join(a.Keys(), "rows-a+b.key"), both, 0o600); err != nil {
		t.Fatal(err)
	}
	a.Stop()
	a.Start()
	a.Exec(`INSERT INTO crm.person VALUES (6, 'secret of six')`)
	b.AwaitStatus(func(r *cluster.Report) bool {
		for _, l := range r.Links {
			if l.Origin == "a" && strings.Contains(l.Waiting, "rows are sealed for the nodes a b with a key that is not here") {
				return true
			}
		}
		return false
	})
	if err := os.WriteFile(key, both, 0o600); err != nil {
		t.Fatal(err)
	}
	b.Stop()
	b.Start()
	c.WaitConverged()
}
