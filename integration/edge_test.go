package integration

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/stream"
)

// TestEdgesAndReaders: a star of a hub, a reader, and two edges of which one is a reader, under load. An edge is offline
// for a while and writes on, is killed in the middle of catching up, and is back; the reader's bridge is killed; the hub's starts anew.
// All are equal in the end, the readers' users could not write, and nobody could have dialled an edge.
func TestEdgesAndReaders(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 4, Schema: loadSchema, Processes: true, Config: map[string]string{
		"topology.kind": "star", "topology.center": "a", "topology.roles": "b=reader,c=edge,d=edge_reader", "topology.failover_after": failoverAfter.String()}})
	a, reader, edge, kiosk := c.Node("a"), c.Node("b"), c.Node("c"), c.Node("d")
	for _, n := range []*cluster.Node{edge, kiosk} {
		requireNoListener(t, n)
	}
	l := startLoad(t, c, 1, seed(t))
	l.run(loadTime() / 4)
	c.WaitConverged()

	l.start()
	edge.Links["a"].Cut()
	before := edge.Value(`SELECT count(*) FROM entry WHERE node = 'c'`)
	edge.AwaitStatus(func(r *cluster.Report) bool { return linkOf(r, "a").Waiting != "" })
	l.run(loadTime() / 4)
	if now := edge.Value(`SELECT count(*) FROM entry WHERE node = 'c'`); now == before {
		t.Error("the edge has not written while it was offline")
	}
	l.start()
	edge.Links["a"].Heal()
	edge.Kill()
	reader.Kill()
	kiosk.Kill()
	for _, n := range []*cluster.Node{reader, edge, kiosk} {
		n.Launch()
	}
	a.Stop()
	a.Start()
	l.run(loadTime() / 4)
	c.WaitConverged()
	requireCounts(t, c, l)

	for _, n := range []*cluster.Node{reader, kiosk} {
		if r := n.Status(); r.Seq != 0 || hasAlarm(r, "reader-wrote") {
			t.Errorf("node %s has written %d transactions", n.Name, r.Seq)
		}
	}
	// What the hub has written may go once all have it: readers and edges tell of that. And what it hands on of a reader goes, though
	// that one never writes.
	a.AwaitStatus(func(r *cluster.Report) bool { return r.Stream.FirstStreamSeq > 1 && handsOn(t, a, reader) < 50 })
}

// handsOn is how many frames of another node a node keeps for others.
func handsOn(t *testing.T, n, author *cluster.Node) uint64 {
	t.Helper()
	nc := n.Connect()
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), stream.RelayName(n.Load().Cluster, n.Name, author.Name))
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}

func linkOf(r *cluster.Report, origin string) bridge.LinkReport {
	for _, l := range r.Links {
		if strings.HasPrefix(l.Origin, origin) {
			return l
		}
	}
	return bridge.LinkReport{}
}

// requireNoListener requires that the node's bridge, a process of its own, listens on no port.
func requireNoListener(t *testing.T, n *cluster.Node) {
	t.Helper()
	const listening = "0A"
	inodes := map[string]bool{}
	fds := fmt.Sprintf("/proc/%d/fd", n.Pid())
	entries, err := os.ReadDir(fds)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink(fds + "/" + e.Name()); err == nil && strings.HasPrefix(to, "socket:[") {
			inodes[strings.Trim(to, "socket:[]")] = true
		}
	}
	for _, name := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", n.Pid(), name))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.SplitSeq(string(text), "\n") {
			f := strings.Fields(line)
			if len(f) > 9 && f[3] == listening && inodes[f[9]] {
				t.Errorf("the bridge of node %s listens on %s", n.Name, f[1])
			}
		}
	}
}

// TestReaderIsWrittenByForce: where nobody says hello, who gets past the trigger of a reader has written as on any other node, and an alarm tells of it. Whom
// the trigger does not concern is not refused: undo is.
func TestReaderIsWrittenByForce(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 3, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`, Config: map[string]string{
		"topology.kind": "star", "topology.center": "a", "topology.roles": "b=reader,c=edge", "topology.failover_after": "0s"}})
	a, b, other := c.Node("a"), c.Node("b"), c.Node("c")
	// A conflict between two writers, which the reader decides as they do.
	for _, n := range []*cluster.Node{a, other} {
		n.Links[map[string]string{"a": "c", "c": "a"}[n.Name]].Cut()
		n.Exec(`INSERT INTO t VALUES (1, $1)`, n.Name)
	}
	healAll(c)
	c.WaitConverged()
	h, err := bridge.OpenHistory(t.Context(), b.Load(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close(t.Context())
	id, err := strconv.ParseInt(b.Value(`SELECT id FROM pgbridge.conflict`), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Undo(t.Context(), id, bridge.UndoOptions{}); err == nil || !strings.Contains(err.Error(), "which is a reader") {
		t.Errorf("undo on a reader: %v", err)
	}
	conn := pgtest.Connect(t, b.DSN)
	if _, err := conn.Exec(t.Context(), `INSERT INTO t VALUES (2, 'b')`); err == nil || !strings.Contains(err.Error(), "table public.t cannot be written on node b, which is a reader") {
		t.Errorf("a user's write: %v", err)
	}
	if _, err := conn.Exec(t.Context(), `SET session_replication_role = replica; INSERT INTO t VALUES (3, 'by force')`); err != nil {
		t.Fatal(err)
	}
	c.WaitConverged()
	if got := a.Value(`SELECT v FROM t WHERE id = 3`); got != "by force" {
		t.Errorf("a has %q", got)
	}
	b.AwaitStatus(func(r *cluster.Report) bool { return hasAlarm(r, "reader-wrote") })
}

// TestRolesHideNobody: a node that becomes a reader, and is one no more, still knows who wrote its rows: the triggers that come and go
// rewrite no table. A table that was rewritten meanwhile hides it, as without them.
func TestRolesHideNobody(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		c := cluster.New(t, cluster.Options{Nodes: 1, Majors: []int{s.Major}, Idle: true, Schema: `
			CREATE TABLE t (id int PRIMARY KEY, v int);
			CREATE TABLE p (id int PRIMARY KEY, v int) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100)`})
		n := c.Nodes[0]
		setup := func(role string) {
			t.Helper()
			cfg := n.Load()
			if role != "" {
				cfg.Topology.Roles = map[string]string{n.Name: role}
			}
			if err := bridge.Setup(t.Context(), cfg, nil); err != nil {
				t.Fatal(err)
			}
		}
		// As apply asks for it (guard.go).
		told := func(table string) string {
			t.Helper()
			return n.Value(`SELECT coalesce(bool_and((SELECT age(CASE WHEN u.tab IS NULL THEN r.xmin ELSE u.since END) > age(t.xmin)
				FROM pg_class r LEFT JOIN pgbridge.unrewritten u ON u.tab = r.oid AND u.file = r.relfilenode AND u.until = r.xmin WHERE r.oid = t.tableoid)), false)
				FROM ` + table + ` t`)
		}
		setup("")
		n.Exec(`INSERT INTO t VALUES (1, 1)`)
		n.Exec(`INSERT INTO p VALUES (1, 1)`)
		for _, role := range []string{"reader", "", "reader", ""} {
			setup(role)
			if refused := n.Value(`SELECT count(*) FROM pg_trigger WHERE tgname = 'pgbridge_reader'`) != "0"; refused != (role == "reader") {
				t.Fatalf("as %q, that users are refused is %t", role, refused)
			}
			for _, table := range []string{"t", "p"} {
				if told(table) != "t" {
					t.Errorf("as %q, table %s hides who wrote its rows", role, table)
				}
			}
		}
		n.Exec(`CREATE TABLE u (id int PRIMARY KEY, v int)`)
		n.Exec(`INSERT INTO u VALUES (1, 1)`)
		n.Exec(`ALTER TABLE u ALTER v TYPE bigint`)
		setup("reader")
		if told("u") != "f" {
			t.Error("a table that was rewritten does not hide who wrote its rows")
		}
	})
}
