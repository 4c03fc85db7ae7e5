package integration

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// joinSchema has keys of several kinds, rows of all sizes and what replication treats apart.
const joinSchema = loadSchema + `
CREATE TABLE bulk (id bigint PRIMARY KEY, v text, t timestamptz NOT NULL DEFAULT now());
CREATE TABLE keyed (b text COLLATE "C", a numeric, v bytea, g int GENERATED ALWAYS AS (length(b)) STORED, i int GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (b, a));
CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (500);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (500) TO (10000);
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE DOMAIN moods AS mood;
CREATE TABLE felt (m moods, at date, PRIMARY KEY (at, m));
CREATE TABLE uniq (id int PRIMARY KEY, u int UNIQUE);
CREATE TABLE emptied (id int PRIMARY KEY)`

// newJoined makes the three nodes that a fourth one of a newer version joins, with so many rows, of which so many make a page.
func newJoined(t *testing.T, more string) (c *cluster.Cluster, rows, page int) {
	rows, page = 8_000, 200
	if pgtest.Soak() {
		rows, page = 1_000_000, 0
	}
	oldest := pgtest.Versions(t)[0]
	c = cluster.New(t, cluster.Options{Majors: []int{oldest, oldest, oldest, pgtest.Newest(t)}, Schema: joinSchema + more})
	fillJoined(c, rows)
	return c, rows, page
}

// fillJoined writes what is to be copied: some on each node, some of it changed again by another one.
func fillJoined(c *cluster.Cluster, rows int) {
	a, b, d := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	a.Exec(`INSERT INTO bulk SELECT i, 'row ' || i FROM generate_series(1, $1::int) i`, rows)
	b.Exec(`INSERT INTO keyed (b, a, v) SELECT chr(65 + i % 57) || i, i / 7.0, decode(md5(i::text), 'hex') FROM generate_series(1, 1000) i`)
	a.Exec(`INSERT INTO keyed (b, a, v) SELECT E'\\back\tslash\n' || i, -i, NULL FROM generate_series(1, 10) i`)
	d.Exec(`INSERT INTO parted SELECT i, repeat('x', i) FROM generate_series(0, 999) i`)
	b.Exec(`INSERT INTO felt SELECT m, current_date - i FROM unnest(enum_range(NULL::mood)) m, generate_series(1, 50) i`)
	a.Exec(`INSERT INTO uniq SELECT i, i FROM generate_series(1, 100) i`)
	d.Exec(`INSERT INTO emptied SELECT generate_series(1, 100)`)
	a.Exec(`ANALYZE`)
	c.WaitConverged()
	ddl(b, alteredParted)
	c.WaitConverged()
	b.Exec(`UPDATE bulk SET v = 'of b' WHERE id % 10 = 1`)
	d.Exec(`DELETE FROM bulk WHERE id % 10 = 2`)
	c.WaitConverged()
}

// alteredParted is a schema change that is made before a node joins.
const alteredParted = `ALTER TABLE parted ADD COLUMN n int DEFAULT 2`

// changeWhileCopied changes rows that are copied already, and others that are yet to be.
func changeWhileCopied(c *cluster.Cluster) {
	a, b, d := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	a.Exec(`UPDATE bulk SET v = 'meanwhile' WHERE id % 1000 = 5`)
	b.Exec(`DELETE FROM bulk WHERE id % 1000 = 6`)
	d.Exec(`UPDATE bulk SET id = -id WHERE id % 1000 = 7`)
	b.Exec(`UPDATE uniq SET u = -u WHERE id IN (1, 2)`)
	b.Exec(`UPDATE uniq SET u = 3 - id WHERE id IN (1, 2)`)
	a.Exec(`TRUNCATE emptied`)
	d.Exec(`INSERT INTO emptied SELECT generate_series(1000, 1010)`)
	a.Exec(`UPDATE keyed SET v = 'meanwhile' WHERE a < 0`)
	b.Exec(`UPDATE parted SET id = id + 5000 WHERE id < 100`)
	ddl(a, `ALTER TABLE bulk ADD COLUMN added int DEFAULT 5; CREATE TABLE fresh (id int PRIMARY KEY)`)
	a.Exec(`UPDATE bulk SET added = 6 WHERE id % 1000 = 8`)
	a.Exec(`INSERT INTO fresh VALUES (1)`)
}

// TestJoin: a fourth node, of a newer version, joins three that are written to: it is given all rows, also when it is killed meanwhile
// and goes on with another donor; and then it is one of them.
func TestJoin(t *testing.T) {
	t.Parallel()
	c, rows, page := newJoined(t, "")
	old := *c
	l := newLoad(t, &old, 1, seed(t))
	l.lacks = 500 // on a machine that cannot bear the load its backlog would grow for as long as the join takes
	l.start()
	d := c.Grow()
	d.Exec(alteredParted)
	if pgtest.Soak() {
		killJoin(t, d, "a", rows/3)
	} else {
		cancelJoin(t, d, bridge.JoinOptions{From: "a", Jobs: 2, PageRows: page}, rows/3)
	}
	changeWhileCopied(&old)
	if err := bridge.Run(t.Context(), d.Load(), bridge.Options{Logger: d.Logger()}); err == nil || !strings.Contains(err.Error(), "is being joined") {
		t.Errorf("a bridge that starts while rows are copied says %v", err)
	}
	before := 0
	o := bridge.JoinOptions{From: "b", Jobs: 4, PageRows: page, Logger: d.Logger(), Tell: func(text string) { t.Log(text) },
		Progress: func(p bridge.JoinProgress) { before = int(p.Before) }}
	if err := bridge.Join(t.Context(), d.Load(), o); err != nil {
		t.Fatalf("%v\n%s", err, d.LogTail())
	}
	if before < rows/3 {
		t.Errorf("it began anew: %d rows were copied before", before)
	}
	d.Start()
	l.stop()
	for _, n := range c.Nodes { // what a long load leaves may take its time
		n.AwaitStatus(func(r *cluster.Report) bool {
			return !slices.ContainsFunc(r.Links, func(l bridge.LinkReport) bool { return l.AppliedSeq < l.ReceivedSeq })
		})
	}
	c.WaitConverged()
	requireSchemas(t, c)
	requireApplied(t, &old, l)

	// It writes, and meets what others do.
	d.Exec(`UPDATE bulk SET v = 'of d' WHERE id % 100 = 1`)
	d.Exec(`INSERT INTO keyed (b, a) VALUES ('of d', 1)`)
	d.Exec(`DELETE FROM parted WHERE id BETWEEN 100 AND 200`)
	c.Node("a").Exec(`UPDATE bulk SET v = 'of a, late' WHERE id % 200 = 1`)
	c.Node("b").Exec(`DELETE FROM bulk WHERE id % 10 = 3`)
	c.WaitConverged()
	for _, n := range c.Nodes {
		n.Await(`SELECT count(*) FROM pgbridge.tombstone`, "0") // nobody waits for anybody
	}
	if err := bridge.Join(t.Context(), d.Load(), bridge.JoinOptions{From: "b", Jobs: 4}); err == nil {
		t.Error("it joins while its bridge runs")
	}
	d.Stop()
	if err := bridge.Join(t.Context(), d.Load(), bridge.JoinOptions{From: "b", Jobs: 4}); err == nil || !strings.Contains(err.Error(), "has joined already") {
		t.Errorf("it joins twice: %v", err)
	}
}

// errEnough ends a join.
var errEnough = errors.New("enough rows are copied")

// cancelJoin lets a node begin to join and ends that when so many rows are copied.
func cancelJoin(t *testing.T, d *cluster.Node, o bridge.JoinOptions, rows int) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	o.Logger, o.Progress = d.Logger(), func(p bridge.JoinProgress) {
		if p.Rows >= int64(rows) {
			cancel(errEnough)
		}
	}
	if err := bridge.Join(ctx, d.Load(), o); !errors.Is(err, errEnough) {
		t.Fatalf("join ended with %v\n%s", err, d.LogTail())
	}
}

// killJoin is cancelJoin with a process that is killed.
func killJoin(t *testing.T, d *cluster.Node, from string, rows int) {
	t.Helper()
	cmd := exec.Command(cluster.Binary(t), "node", "join", "--config", d.File, "--from", from)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.Await(`SELECT to_regclass('pgbridge.joining_part') IS NOT NULL`, "t")
	d.Await(fmt.Sprintf(`SELECT sum(rows) >= %d FROM pgbridge.joining_part`, rows), "t")
	cmd.Process.Kill()
	err := cmd.Wait()
	t.Logf("killed: %v\n%s", err, out.String())
	if d.Value(`SELECT state FROM pgbridge.joining`) != "copying" {
		t.Fatal("it was too late")
	}
}

// TestJoinIsRefused: each fault has its one error, and nothing is there afterwards.
func TestJoinIsRefused(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2, Schema: `CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE u (id int PRIMARY KEY)`})
	c.Node("a").Exec(`INSERT INTO t VALUES (1, 1)`)
	c.WaitConverged()
	a, d := c.Node("a"), c.Grow()
	join := func(change func(*config.Config, *bridge.JoinOptions)) error {
		cfg, o := *d.Load(), bridge.JoinOptions{From: "a", Jobs: 1, Logger: d.Logger()}
		change(&cfg, &o)
		return bridge.Join(t.Context(), &cfg, o)
	}
	require := func(what string, err error, code int, parts ...string) {
		t.Helper()
		var coded interface{ ExitCode() int }
		got := 1
		if errors.As(err, &coded) {
			got = coded.ExitCode()
		}
		if err == nil || got != code {
			t.Errorf("%s: %v, code %d, want %d", what, err, got, code)
			return
		}
		for _, part := range parts {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: the error is %q, it lacks %q", what, err, part)
			}
		}
		if there := d.Value(`SELECT to_regnamespace('pgbridge') IS NULL AND NOT EXISTS (SELECT FROM pg_publication)`); there != "t" {
			t.Errorf("%s: something is there afterwards", what)
		}
	}
	none := func(*config.Config, *bridge.JoinOptions) {}
	require("unknown node", join(func(_ *config.Config, o *bridge.JoinOptions) { o.From = "x" }), 2, `no node "x"`, "a, b")
	require("itself", join(func(_ *config.Config, o *bridge.JoinOptions) { o.From = "c" }), 2, "from itself")
	require("jobs", join(func(_ *config.Config, o *bridge.JoinOptions) { o.Jobs = 100 }), 2, "1 to 32")
	d.Exec(`INSERT INTO t VALUES (7, 7)`)
	require("rows", join(none), 2, `"public"."t" has rows here already`, "TRUNCATE")
	d.Exec(`ALTER TABLE t DROP COLUMN v; TRUNCATE t`)
	require("column", join(none), 2, `no column "v" here`, "ADD COLUMN")
	d.Exec(`ALTER TABLE t ADD COLUMN v date`)
	require("type", join(none), 2, `"v"`)
	d.Exec(`DROP TABLE t`)
	require("table", join(none), 2, `"public"."t"`, "--schema-dsn")
	d.Exec(`CREATE TABLE t (id int PRIMARY KEY, v int)`)
	require("left out", join(func(cfg *config.Config, _ *bridge.JoinOptions) { cfg.Tables = []string{"*.*", "!public.u"} }), 2, "public.u", "leaves it out")
	require("policy", join(func(cfg *config.Config, _ *bridge.JoinOptions) { cfg.Conflict.Priority = []string{"a"} }), 2, "priority")
	require("topology", join(func(cfg *config.Config, _ *bridge.JoinOptions) {
		nodes := map[string]string{"e": "nats://127.0.0.1:1"}
		for name, url := range cfg.Topology.Nodes {
			nodes[name] = url
		}
		cfg.Topology.Nodes = nodes
	}), 2, "node a was not given the topology", "e")
	require("schema", join(func(_ *config.Config, o *bridge.JoinOptions) {
		d.Exec(`DROP TABLE u`)
		o.SchemaDSN = "postgres://127.0.0.1:1/none"
	}), 1, "pg_dump")
	d.Exec(`CREATE TABLE u (id int PRIMARY KEY)`)
	d.Links["a"].Cut()
	require("unreachable", join(none), 1, "node a is not reached")
	d.Links["a"].Heal()

	// Somebody writes to the tables before all rows are there; what the error then says helps.
	a.Exec(`INSERT INTO t SELECT i, i FROM generate_series(2, 100) i`)
	c.Nodes = c.Nodes[:2]
	c.WaitConverged()
	cancelJoin(t, d, bridge.JoinOptions{From: "a", Jobs: 2, PageRows: 10}, 50)
	d.Exec(`UPDATE t SET v = 0 WHERE id = 7`)
	requireSays(t, "join with rows of somebody else", join(none), `table "public"."t" has 100 rows, of which 99 were copied or found the same, and there were 100`, "DROP SCHEMA pgbridge CASCADE")
	d.Exec(`DROP SCHEMA pgbridge CASCADE`)
	cancelJoin(t, d, bridge.JoinOptions{From: "a", Jobs: 1, PageRows: 10, Existing: true}, 50)
	d.Exec(`UPDATE t SET v = 0 WHERE id = 8`)
	requireSays(t, "join with rows that somebody has changed since", join(none), `of which 99 were copied or found the same`)
	d.Exec(`DROP SCHEMA pgbridge CASCADE; TRUNCATE t, u, pgb_sentinel`)
	a.Exec(`ALTER TABLE t ADD CHECK (v < 1000)`) // which is no reason
	c.Nodes = append(c.Nodes, d)
	if err := join(none); err != nil {
		t.Errorf("%v\n%s", err, d.LogTail())
	}
	d.Start()
	c.WaitConverged()
}

// TestJoinTakesTheSchema: an empty database gets the tables of another node with its rows, and not what is pgbridge's own there.
func TestJoinTakesTheSchema(t *testing.T) {
	t.Parallel()
	majors := []int{pgtest.Versions(t)[0]} // which the installed pg_dump knows
	c := cluster.New(t, cluster.Options{Nodes: 2, Majors: majors, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text); CREATE VIEW w AS SELECT id FROM t`})
	a := c.Node("a")
	if err := bridge.AutomaticSchema(t.Context(), a.Load(), true); err != nil {
		t.Fatal(err)
	}
	a.Exec(`INSERT INTO t SELECT i, i FROM generate_series(1, 100) i`)
	a.Exec(`ALTER TABLE t ADD COLUMN n int DEFAULT 7`)
	c.WaitConverged()
	d := c.Grow()
	d.Exec(`DROP TABLE t, pgb_sentinel CASCADE`)
	if err := bridge.Join(t.Context(), d.Load(), bridge.JoinOptions{From: "a", Jobs: 1, SchemaDSN: a.DSN, Logger: d.Logger()}); err != nil {
		t.Fatalf("%v\n%s", err, d.LogTail())
	}
	d.Start()
	d.Exec(`UPDATE t SET v = 'there' WHERE id = 1`)
	a.Exec(`ALTER TABLE t ADD COLUMN m int`)
	c.WaitConverged()
	requireSchemas(t, c)
	if got := d.Value(`SELECT count(*) FROM w`); got != "100" {
		t.Errorf("node c has %s rows", got)
	}
}
