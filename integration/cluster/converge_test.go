package cluster

import (
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// TestDifferenceIsSeen: what WaitConverged judges by finds rows that differ, and takes no error for a row.
func TestDifferenceIsSeen(t *testing.T) {
	c := New(t, Options{Nodes: 2, Idle: true, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, "v 'b" bytea, w text)`})
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
	for _, n := range c.Nodes {
		n.Exec(`INSERT INTO u VALUES (1, NULL, 'x'), (2, '\x01', 'x')`)
	}
	require("")
	for column, value := range map[string]string{`"v 'b"`: `'\x02'`, "w": "'y'"} {
		c.Nodes[0].Exec(`UPDATE u SET ` + column + ` = ` + value + ` WHERE id = 2`)
		require("table public.u, nodes a and b")
		c.Nodes[1].Exec(`UPDATE u SET ` + column + ` = ` + value + ` WHERE id = 2`)
		require("")
	}
	gone := comparedTable{name: "gone", text: "t::text"}.digest()
	a, b := c.Nodes[0].rows(t.Context(), gone, "gone t"), c.Nodes[1].rows(t.Context(), gone, "gone t")
	if strings.Join(a, "") == strings.Join(b, "") {
		t.Errorf("two nodes that cannot answer are equal: %q", a)
	}
}
