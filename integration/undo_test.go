package integration

import (
	"context"
	"fmt"
	"math/rand"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// undoKeys is how many rows the nodes fight for; the first half is there before.
const undoKeys = 120

// fight makes each node write to all rows at random, while none hears of another.
func fight(t *testing.T, c *cluster.Cluster, r *rand.Rand) {
	t.Helper()
	cutAll(c)
	for _, i := range r.Perm(len(c.Nodes)) {
		n := c.Nodes[i]
		conn := pgtest.Connect(t, n.DSN)
		for _, id := range r.Perm(undoKeys) {
			v, number := fmt.Sprintf("%s %d", n.Name, r.Intn(1_000_000)), fmt.Sprintf("%d.%d0", r.Intn(1_000_000), r.Intn(100))
			var err error
			switch r.Intn(4) {
			case 0:
				_, err = conn.Exec(t.Context(), `DELETE FROM fought WHERE id = $1`, id)
			case 1:
				_, err = conn.Exec(t.Context(), `INSERT INTO fought VALUES ($1, $2, $3::text::numeric, now(), ARRAY[1, NULL]) ON CONFLICT DO NOTHING`, id, v, number)
			default:
				_, err = conn.Exec(t.Context(), `UPDATE fought SET v = $2, n = $3::text::numeric, at = clock_timestamp(), a = a || length($2) WHERE id = $1`, id, v, number)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	healAll(c)
	c.WaitConverged()
}

// TestUndoBringsLosersBack: conflicts of all kinds between three nodes, then a hundred losers are undone, each on the node in
// whose history it was found. All nodes are equal, and each row is what the last undo of it wrote.
func TestUndoBringsLosersBack(t *testing.T) {
	t.Parallel()
	versions := pgtest.Versions(t)
	c := cluster.New(t, cluster.Options{Nodes: 3, Majors: versions,
		Schema: `CREATE TABLE fought (id int PRIMARY KEY, v text NOT NULL, n numeric, at timestamptz, a int[], g text GENERATED ALWAYS AS ('<' || v || '>') STORED)`})
	s := seed(t)
	r := rand.New(rand.NewSource(s))
	t.Logf("seed %d", s)
	c.Nodes[0].Exec(`INSERT INTO fought SELECT i, 'before', i, now(), '{}' FROM generate_series(0, $1::int / 2 - 1) i`, undoKeys)
	c.WaitConverged()
	for rounds := 0; len(kindsOf(c)) < len(undoKinds()); rounds++ {
		if rounds == 8 {
			t.Fatalf("the nodes only have conflicts of the kinds %q", kindsOf(c))
		}
		fight(t, c, r)
	}
	u := newUndoer(t, c, r)
	const wanted = 100
	for u.done < wanted {
		u.one()
	}
	c.WaitConverged()
	for id, want := range u.last {
		for _, n := range c.Nodes {
			got := strings.Join(n.Query(`SELECT to_jsonb(f) - 'g' FROM fought f WHERE id = $1`, id), ",")
			if got != want {
				t.Errorf("node %s: row %d is %s, the last undo of it wrote %s", n.Name, id, got, want)
			}
			if bad := n.Value(`SELECT count(*) FROM fought WHERE g IS DISTINCT FROM '<' || v || '>'`); bad != "0" {
				t.Errorf("node %s: %s generated values do not follow", n.Name, bad)
			}
		}
	}
	noted := 0
	for _, n := range c.Nodes {
		noted += len(n.Query(`SELECT id FROM pgbridge.conflict WHERE undone_at IS NOT NULL AND undone_by LIKE 'the test as %'`))
	}
	if noted != wanted {
		t.Errorf("%d conflicts are noted as undone, want %d", noted, wanted)
	}
	t.Logf("undone by kind and outcome: %v; %d only by force, %d rows", u.kinds, u.forced, len(u.last))
	for _, kind := range undoKinds() {
		if u.kinds[kind] == 0 {
			t.Errorf("no %q was undone: not everything was shown", kind)
		}
	}
	if u.forced == wanted {
		t.Error("all were undone by force: that the winner's version is recognised was not shown")
	}
}

// undoKinds are the kinds of conflicts, with their outcomes, that must be undone.
func undoKinds() []string {
	var all []string
	for _, kind := range []string{"insert_insert", "update_update", "update_delete", "delete_update"} {
		all = append(all, kind+" local wins", kind+" remote wins")
	}
	return all
}

// kindsOf lists those of them that any node has.
func kindsOf(c *cluster.Cluster) []string {
	var have []string
	for _, n := range c.Nodes {
		have = append(have, n.Query(`SELECT DISTINCT kind || ' ' || outcome FROM pgbridge.conflict`)...)
	}
	return slices.DeleteFunc(undoKinds(), func(kind string) bool { return !slices.Contains(have, kind) })
}

// undoer undoes conflicts that it takes at random out of the nodes' histories.
type undoer struct {
	t         *testing.T
	r         *rand.Rand
	nodes     []*cluster.Node
	histories []*bridge.History
	ids       [][]string     // per node: "id|row|kind outcome|what the loser was", mixed; one of each kind comes first
	last      map[int]string // row by key as the last undo left it, empty if deleted
	kinds     map[string]int
	done      int
	forced    int
}

func newUndoer(t *testing.T, c *cluster.Cluster, r *rand.Rand) *undoer {
	t.Helper()
	u := &undoer{t: t, r: r, nodes: c.Nodes, last: map[int]string{}, kinds: map[string]int{}}
	for _, n := range c.Nodes {
		h, err := bridge.OpenHistory(t.Context(), n.Load(), 10*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close(context.Background()) })
		ids := n.Query(`SELECT id, COALESCE(local_row, remote_row)->>'id', kind || ' ' || outcome,
			CASE outcome WHEN 'remote wins' THEN local_row ELSE remote_row END::jsonb - 'g' FROM pgbridge.conflict
			WHERE relation = 'public.fought' AND kind <> 'delete_delete' ORDER BY id`)
		if len(ids) < 60 {
			t.Fatalf("node %s has only %d conflicts", n.Name, len(ids))
		}
		r.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
		rarest(ids)
		u.histories, u.ids = append(u.histories, h), append(u.ids, ids)
	}
	return u
}

// rarest puts the first conflict of each kind to the front: at random some kind could be left out.
func rarest(ids []string) {
	seen := map[string]bool{}
	front := 0
	for i, line := range ids {
		if kind := strings.SplitN(line, "|", 4)[2]; !seen[kind] {
			seen[kind] = true
			ids[front], ids[i] = ids[i], ids[front]
			front++
		}
	}
}

// one undoes the next conflict of a random node: by force if the row is not the winner's version any more.
func (u *undoer) one() {
	u.t.Helper()
	i := u.r.Intn(len(u.nodes))
	if len(u.ids[i]) == 0 {
		u.t.Fatalf("node %s has no more conflicts", u.nodes[i].Name)
	}
	part := strings.SplitN(u.ids[i][0], "|", 4)
	u.ids[i] = u.ids[i][1:]
	var id int64
	var row int
	if _, err := fmt.Sscan(part[0], &id); err != nil {
		u.t.Fatal(err)
	}
	if _, err := fmt.Sscan(part[1], &row); err != nil {
		u.t.Fatal(err)
	}
	o := bridge.UndoOptions{By: "the test"}
	got, err := u.histories[i].Undo(u.t.Context(), id, o)
	if err != nil && strings.Contains(err.Error(), "--force") {
		u.forced++
		o.Force = true
		got, err = u.histories[i].Undo(u.t.Context(), id, o)
	}
	if err != nil && strings.Contains(err.Error(), "there is nothing to delete") {
		return
	}
	if err != nil {
		u.t.Fatalf("node %s, conflict %v: %v", u.nodes[i].Name, part, err)
	}
	want := part[3]
	if want == "∅" {
		want = ""
	}
	if got.Deleted != (want == "") {
		u.t.Errorf("node %s, conflict %v: %+v", u.nodes[i].Name, part, got)
	}
	u.last[row] = want
	u.kinds[part[2]]++
	u.done++
}

// TestUndoWithoutABridge: the history is read and undone while no bridge runs; the write leaves when one starts again.
func TestUndoWithoutABridge(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`})
	a, b := c.Nodes[0], c.Nodes[1]
	cutAll(c)
	a.Exec(`INSERT INTO t VALUES (1, 'lost')`)
	b.Exec(`INSERT INTO t VALUES (1, 'won')`)
	healAll(c)
	c.WaitConverged()
	a.Stop()
	h, err := bridge.OpenHistory(t.Context(), a.Load(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close(context.Background())
	p, err := h.List(t.Context(), bridge.ConflictFilter{})
	if err != nil || len(p.Conflicts) != 1 || p.Conflicts[0].Winner != "b" || p.Conflicts[0].Loser != "a" || !p.Conflicts[0].Close {
		t.Fatalf("%+v, %v", p, err)
	}
	if _, err := h.Undo(t.Context(), p.Conflicts[0].ID, bridge.UndoOptions{}); err != nil {
		t.Fatal(err)
	}
	a.Start()
	b.Await(`SELECT v FROM t`, "lost")
	c.WaitConverged()
	if n := b.Value(`SELECT count(*) FROM pgbridge.conflict`); n != "1" {
		t.Errorf("the undo met a conflict: node b has %s", n)
	}
	wrong := a.Load()
	wrong.Node = "b"
	if _, err := bridge.OpenHistory(t.Context(), wrong, 0); err == nil || !strings.Contains(err.Error(), "belongs to node") {
		t.Errorf("the history of another node was opened: %v", err)
	}
}
