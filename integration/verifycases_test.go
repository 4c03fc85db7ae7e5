package integration

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
)

// TestVerifyCases goes through what one pair of nodes can differ in, one after the other.
func TestVerifyCases(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2, Idle: true, Config: map[string]string{"conflict.tables": "*.counted: n=delta", "verify.every": "1s"},
		Schema: `CREATE TABLE item (id int PRIMARY KEY, v text, doubled text GENERATED ALWAYS AS (v || v) STORED, big text);
			CREATE TABLE always (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
			CREATE TABLE fussy (id int PRIMARY KEY, v int);
			CREATE TABLE counted (id int PRIMARY KEY, n int); ALTER TABLE counted REPLICA IDENTITY FULL;
			CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE DOMAIN feeling AS mood; CREATE TYPE pair AS (x int, y mood);
			CREATE TABLE odd (f feeling, a mood[], p pair, "Key ""q""" text COLLATE "C", v numeric, PRIMARY KEY (v, f, a, p, "Key ""q"""));
			CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
			CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10); CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20);
			CREATE TABLE empty (id int PRIMARY KEY);
			INSERT INTO item VALUES (1, 'old'), (2, 'old')`})
	a, b := c.Nodes[0], c.Nodes[1]
	b.Exec(`ALTER TABLE fussy ADD CHECK (v > 0)`)
	a.Exec(`UPDATE item SET v = 'of a' WHERE id = 1`) // before there is a cluster
	b.Exec(`DELETE FROM item WHERE id = 2`)
	for _, n := range c.Nodes { // a setup while older transactions are open, be it of other databases, takes these for what came after it
		n.Await(`SELECT count(*) FROM item WHERE age(xmin) <= age(pg_snapshot_xmin(pg_current_snapshot())::xid)`, "0")
	}
	if out := verifyCommand(t, a, 1); !strings.Contains(out, "no bridge runs for this node here") {
		t.Errorf("without a bridge: %s", out)
	}
	a.Start()
	b.Start()
	want := func(what string, r *bridge.VerifyReport, rows ...string) *bridge.VerifyReport {
		t.Helper()
		if rows = append([]string{}, rows...); !slices.Equal(differing(r), rows) {
			t.Errorf("%s: found %q, want %q: %+v", what, differing(r), rows, r)
		}
		return r
	}

	// Nobody knows who wrote these: a person must say who is right. A row that a node lacks, and of which no delete is known, is right.
	alarmed := func(n *cluster.Node, yes bool) {
		t.Helper()
		n.AwaitStatus(func(r *cluster.Report) bool {
			return r.Compared != nil && slices.ContainsFunc(r.Alarms, func(a cluster.Alarm) bool { return a.Code == "rows-differ" }) == yes
		})
	}
	alarmed(a, true)
	r := want("from before the cluster", verify(t, a, bridge.VerifyOptions{Repair: true}), "public.item id=1", "public.item id=2")
	if r.Mended != 1 || !strings.Contains(r.Found[0].Refused, "--from") || !r.Found[1].Mended {
		t.Errorf("old rows: %+v", r.Found)
	}
	if r := want("by name", verify(t, b, bridge.VerifyOptions{Repair: true, From: "a"}), "public.item id=1"); r.Mended != 1 {
		t.Errorf("a row of node a: %+v", r.Found)
	}
	want("mended", verify(t, a, bridge.VerifyOptions{}))
	alarmed(a, false)
	c.WaitConverged()
	if got := b.Value(`SELECT string_agg(v || doubled, ',' ORDER BY id) FROM item`); got != "of aof aof a,oldoldold" {
		t.Errorf("node b has %s", got)
	}
	if got := b.Query(`SELECT kind, outcome, remote_origin, local_row->>'v', remote_row->>'v' FROM pgbridge.conflict ORDER BY remote_row->>'id'`); !slices.Equal(got,
		[]string{"repair|remote wins|a|old|of a", "repair|remote wins|a|∅|old"}) {
		t.Errorf("the history of node b has %q", got)
	}

	// Odd keys, partitions, rows that are gone, and rows that should be.
	a.Exec(`INSERT INTO odd VALUES ('sad', '{sad,NULL}', '(1,glad)', 'é,"''', 1.50), ('glad', '{}', '(,)', '', 'NaN'), ('glad', '{}', '(,sad)', '', -1)`)
	a.Exec(`INSERT INTO parted SELECT i, i FROM generate_series(1, 15) i`)
	a.Exec(`INSERT INTO always DEFAULT VALUES; INSERT INTO always DEFAULT VALUES`)
	a.Exec(`INSERT INTO item (id, v, big) SELECT i, 'many', repeat(md5(i::text), 100) FROM generate_series(10, 3009) i`)
	c.WaitConverged()
	plant(t, c.Name, b, `DELETE FROM odd WHERE f::mood = 'sad'`, `UPDATE odd SET v = 'Infinity' WHERE v = 'NaN'`, `UPDATE parted SET v = v || '!' WHERE id IN (3, 13)`,
		`DELETE FROM always WHERE id = 1`, `UPDATE item SET id = 4000 WHERE id = 3009`, `DELETE FROM item WHERE id BETWEEN 10 AND 260`)
	a.Exec(`DELETE FROM item WHERE id = 2999`) // somebody works meanwhile
	r = verify(t, a, bridge.VerifyOptions{Repair: true})
	if r.Differences != 251+2+1+2+3 || r.Mended != r.Differences || len(r.Found) != 100 {
		t.Errorf("%d rows differ, %d are mended, %d are shown", r.Differences, r.Mended, len(r.Found))
	}
	want("mended", verify(t, b, bridge.VerifyOptions{}))
	c.WaitConverged()
	if got := a.Value(`SELECT count(*) FROM item WHERE id = 4000`) + b.Value(`SELECT count(*) FROM item WHERE id BETWEEN 10 AND 260 AND length(big) = 3200`); got != "1251" {
		t.Errorf("%s rows", got)
	}

	// The named node lacks a row that others have: it is deleted there.
	plant(t, c.Name, b, `INSERT INTO item VALUES (-5, 'extra')`, `INSERT INTO always OVERRIDING SYSTEM VALUE VALUES (77)`)
	if r := want("extra", verify(t, a, bridge.VerifyOptions{Repair: true, From: "a"}), "public.always id=77", "public.item id=-5"); r.Mended != 2 {
		t.Errorf("extra rows: %+v", r.Found)
	}
	c.WaitConverged()
	if got := a.Value(`SELECT count(*) FROM item WHERE id = -5`) + b.Value(`SELECT local_row->>'v' FROM pgbridge.conflict WHERE kind = 'repair' AND local_row->>'id' = '-5'`); got != "0extra" {
		t.Errorf("an extra row: %s", got)
	}

	// A merged row is found, and not mended by a write that would be merged.
	a.Exec(`INSERT INTO counted VALUES (1, 10), (2, 20)`)
	c.WaitConverged()
	plant(t, c.Name, b, `UPDATE counted SET n = 11 WHERE id = 1`)
	if r := want("merged", verify(t, a, bridge.VerifyOptions{Repair: true}), "public.counted id=1"); r.Mended != 0 || !strings.Contains(r.Found[0].Refused, "is merged") {
		t.Errorf("a merged row: %+v", r.Found)
	}
	plant(t, c.Name, b, `UPDATE counted SET n = 10 WHERE id = 1`)

	// What is parked is no alarm.
	a.Exec(`INSERT INTO fussy VALUES (1, 0), (2, 2)`)
	awaitParked(b, 1)
	r = want("parked", verify(t, a, bridge.VerifyOptions{}))
	if len(r.Explained) != 2 || !strings.Contains(r.Explained[0].Reason, "is parked") {
		t.Errorf("a parked row: %+v", r.Explained)
	}
	badVerify(t, c)
}

// verifyCommand runs the command with that exit code.
func verifyCommand(t *testing.T, n *cluster.Node, code int, args ...string) string {
	t.Helper()
	cmd := exec.Command(cluster.Binary(t), append([]string{"verify", "--config", n.File}, args...)...)
	return wantExit(t, code, cmd)
}

// badVerify: what cannot be done ends with one clear error.
func badVerify(t *testing.T, c *cluster.Cluster) {
	a, b := c.Nodes[0], c.Nodes[1]
	for _, tt := range []struct {
		code int
		args string
		want string
	}{
		{2, "--node x", "pgbridge: --node x: topology.nodes has no such node; it has a, b\n"},
		{2, "--node a", "pgbridge: --node a: that is this node, with which the others are compared; name another one\n"},
		{2, "--repair --from x", "pgbridge: --from x: topology.nodes has no such node; it has a, b\n"},
		{2, "--table public.no", "pgbridge: no replicated table fits \"public.no\"; pgbridge verify without --table compares all of them\n"},
	} {
		if out := verifyCommand(t, a, tt.code, strings.Fields(tt.args)...); out != tt.want {
			t.Errorf("%s: %q, want %q", tt.args, out, tt.want)
		}
	}
	b.Exec(`DROP TABLE empty`)
	if out := verifyCommand(t, a, 3, "--table", "public.empty"); !strings.Contains(out, "public.empty was not compared: it is not replicated at node b, or is not there\n") {
		t.Errorf("a table that one node lacks: %s", out)
	}
	a.Links["b"].Cut()
	if out := verifyCommand(t, a, 1); !strings.HasPrefix(out, fmt.Sprintf("pgbridge: node b: it cannot be asked at %s: ", a.Load().Topology.Nodes["b"])) ||
		!strings.HasSuffix(out, "; let its bridge run and be reached from here, or name the others with --node\n") {
		t.Errorf("a node that is not reached: %q", out)
	}
}
