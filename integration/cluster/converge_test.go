package cluster

import (
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// TestDifferenceIsSeen: what WaitConverged judges by finds rows that differ, and takes no error for a row.
func TestDifferenceIsSeen(t *testing.T) {
	c := New(t, Options{Nodes: 2, Idle: true, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`})
	c.Exec(`INSERT INTO t VALUES (1, 'x')`)
	require := func(part string) {
		t.Helper()
		if got := c.difference(t.Context()); part == "" && got != "" || !strings.Contains(got, part) {
			t.Errorf("the difference is %q, want %q", got, part)
		}
	}
	require("")
	c.Nodes[1].Exec(`UPDATE t SET v = 'y'`)
	require("table public.t, nodes a and b")
	c.Nodes[0].Exec(`UPDATE t SET v = 'y'`)
	require("")
	a, b := c.Nodes[0].rows(t.Context(), "gone", true), c.Nodes[1].rows(t.Context(), "gone", true)
	if strings.Join(a, "") == strings.Join(b, "") {
		t.Errorf("two nodes that cannot answer are equal: %q", a)
	}
}
