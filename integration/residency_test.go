package integration

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/wire"
)

// residentSchema is what only a and b have, and what all have.
const residentSchema = `
	CREATE SCHEMA crm;
	CREATE TABLE crm.person (id int PRIMARY KEY, v text);
	CREATE TABLE crm.visits (id int PRIMARY KEY, n int NOT NULL);
	ALTER TABLE crm.visits REPLICA IDENTITY FULL;
	CREATE TABLE item (id int PRIMARY KEY, v text)`

func residentCluster(t *testing.T, merged string) (*cluster.Cluster, map[string]string) {
	settings := map[string]string{"topology.residency": "crm.*=a b", "capture.frame_bytes": "64KiB", "conflict.tables": merged}
	return cluster.New(t, cluster.Options{Nodes: 3, Majors: pgtest.Versions(t), Schema: residentSchema, Config: settings}), settings
}

// requireNone fails if a node has rows of crm, or has heard of any.
func requireNone(t *testing.T, n *cluster.Node) {
	t.Helper()
	for _, sql := range []string{`SELECT count(*) FROM crm.person`, `SELECT count(*) FROM crm.visits`, `SELECT count(*) FROM pgbridge.journal`,
		`SELECT count(*) FROM pgbridge.conflict WHERE relation LIKE 'crm.%'`} {
		if got := n.Value(sql); got != "0" {
			t.Errorf("node %s: %s gives %s", n.Name, sql, got)
		}
	}
}

// TestResidency: what only some nodes have stays with them, whether it was written alone, with what all have, in bulk or as a conflict; and
// so it does when a node is given what it lacks, when nodes are compared, and when one joins.
func TestResidency(t *testing.T) {
	t.Parallel()
	c, settings := residentCluster(t, "crm.visits: n=delta")
	a, b, x := c.Node("a"), c.Node("b"), c.Node("c")
	both := func(n *cluster.Node, sql ...string) {
		t.Helper()
		n.Exec(`DO $$ BEGIN ` + strings.Join(sql, "; ") + `; END $$`)
	}
	a.Exec(`INSERT INTO crm.person VALUES (1, 'alone')`)
	both(a, `INSERT INTO crm.person VALUES (2, 'a')`, `INSERT INTO item VALUES (2, 'a')`, `INSERT INTO crm.visits VALUES (1, 10)`)
	both(b, `INSERT INTO item SELECT i, 'bulk' FROM generate_series(100, 2000) i`, `INSERT INTO crm.person SELECT i, repeat('x', 100) FROM generate_series(100, 2000) i`)
	both(b, `TRUNCATE crm.person, item`, `INSERT INTO item VALUES (3, 'b')`, `INSERT INTO crm.person VALUES (3, 'b')`)
	c.WaitConverged()
	requireNone(t, x)
	if got := x.Value(`SELECT string_agg(id || v, ',') FROM item`); got != "3b" {
		t.Errorf("node c has %s of what all have", got)
	}
	x.Exec(`INSERT INTO item VALUES (4, 'c')`) // which a and b take
	c.WaitConverged()
	for _, n := range c.Nodes {
		d, err := bridge.Doctor(t.Context(), n.Load())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range d.Findings {
			if strings.Contains(fmt.Sprint(f), "crm") {
				t.Errorf("node %s: doctor finds %+v", n.Name, f)
			}
		}
	}

	// Cut off, both change one row, and are given what came meanwhile; c is asked, too, for what it has.
	heal := isolate(c, "b")
	both(a, `UPDATE crm.person SET v = 'of a'`, `UPDATE item SET v = 'of a' WHERE id = 3`, `UPDATE crm.visits SET n = n + 1`)
	both(b, `UPDATE crm.person SET v = 'of b'`, `UPDATE crm.visits SET n = n + 100`)
	x.Exec(`INSERT INTO item SELECT i, 'c' FROM generate_series(10, 20) i`)
	x.Exec(`INSERT INTO item SELECT i, repeat('x', 100) FROM generate_series(1000, 2900) i`) // several frames, of which the last one stays
	awaitSame(a, x, `SELECT count(*), sum(hashtext(item::text)) FROM item`)
	x.Purge(x.Name) // only what c has written is gone, which a gives with all that it has
	a.Purge(x.Name)
	heal()
	c.WaitConverged()
	if got := resyncs(t, b); got != 1 {
		t.Errorf("node b has been given what it lacked %d times", got)
	}
	had := vectorAt(t, x)
	had.Merge(vectorAt(t, a)) // c's own, too
	heal = isolate(c, "c")
	both(a, `INSERT INTO crm.person VALUES (5, 'while c is away')`, `DELETE FROM item WHERE id = 4`, `UPDATE crm.visits SET n = n + 1`)
	x.Exec(`INSERT INTO item VALUES (6, 'c alone')`)
	a.Exec(`INSERT INTO item SELECT i, repeat('x', 100) FROM generate_series(3000, 5000) i`) // several frames, of which the last one stays
	awaitSame(a, b, `SELECT count(*), sum(hashtext(item::text)) FROM item`)
	requireKept(t, c.Name, a, had)
	a.Purge()
	b.Purge()
	heal()
	c.WaitConverged()
	if got := resyncs(t, x); got != 1 {
		t.Errorf("node c has been given what it lacked %d times", got)
	}
	requireNone(t, x)
	if got := a.Value(`SELECT n FROM crm.visits`); got != "112" {
		t.Errorf("visits are counted as %s", got)
	}

	// Each table is compared at the nodes that have it.
	plant(t, c.Name, b, `UPDATE crm.person SET v = 'planted' WHERE id = 5`)
	plant(t, c.Name, x, `UPDATE item SET v = 'planted' WHERE id = 10`, `INSERT INTO crm.person VALUES (99, 'of c alone')`)
	if got := strings.Join(differing(verify(t, a, bridge.VerifyOptions{})), ", "); got != `crm.person id=5, public.item id=10` {
		t.Errorf("compared, there differ %s", got)
	}
	if got := strings.Join(differing(verify(t, x, bridge.VerifyOptions{Repair: true})), ", "); got != `public.item id=10` {
		t.Errorf("compared at c, there differ %s", got)
	}
	verify(t, b, bridge.VerifyOptions{Table: "crm.*", Repair: true})
	x.Exec(`DELETE FROM crm.person WHERE id = 99`)
	c.WaitConverged()

	// A node that is to have them, too, gets the rows that are there by a comparison.
	settings["topology.residency"] = "crm.visits=a b"
	c.Reconfigure()
	x.AwaitStatus(func(r *cluster.Report) bool { return len(r.Alarms) == 0 })
	a.Exec(`INSERT INTO crm.person VALUES (7, 'for c, too')`)
	x.Await(`SELECT count(*) FROM crm.person`, "1")
	if r := verify(t, a, bridge.VerifyOptions{Repair: true, From: "a"}); r.Differences != 2 || r.Mended != 2 {
		t.Errorf("compared, %d rows differ and %d are mended: %+v", r.Differences, r.Mended, r.Found)
	}
	c.WaitConverged()
}

// vectorAt is what a node has applied of others.
func vectorAt(t *testing.T, n *cluster.Node) (v origin.Vector) {
	t.Helper()
	for _, line := range n.Query(`SELECT origin || ' ' || epoch || ' ' || seq || ' ' || stamp FROM pgbridge.position`) {
		var e origin.Entry
		if _, err := fmt.Sscan(line, &e.Origin.Node, &e.Origin.Epoch, &e.Seq, (*int64)(&e.Stamp)); err != nil {
			t.Fatal(err)
		}
		v.Advance(e)
	}
	return v
}

// asksAs returns what asks a node questions as another one, or as somebody whom it does not know.
func asksAs(t *testing.T, n *cluster.Node, asker string) func(subject, question string) string {
	t.Helper()
	nc, err := stream.Connect(stream.ConnectOptions{URL: "nats://" + n.Listen, Node: asker, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return func(subject, question string) string {
		t.Helper()
		answer, err := stream.Ask(t.Context(), nc, subject, []byte(question))
		if err != nil {
			t.Fatal(err)
		}
		return string(answer)
	}
}

// requireKept fails if a node tells another one, or somebody whom it does not know, of rows that are not for them.
func requireKept(t *testing.T, cluster string, n *cluster.Node, had origin.Vector) {
	t.Helper()
	for _, asker := range []string{"c", "", "nobody"} {
		ask := asksAs(t, n, asker)
		if got := ask(stream.VerifySubject(cluster, n.Name), `{"kind":"tables"}`); strings.Contains(got, "person") || !strings.Contains(got, "item") {
			t.Errorf("%q is told of the tables %s", asker, got)
		}
		for _, q := range []string{`{"kind":"list","table":{"schema":"crm","name":"person","columns":["id","v"],"key":["id"]},"limit":10,"parts":1}`,
			`{"kind":"look","table":{"schema":"crm","name":"person","columns":["id","v"],"key":["id"]},"keys":[["NQ=="]],"cells":true}`} {
			if got := ask(stream.VerifySubject(cluster, n.Name), q); !strings.Contains(got, "table crm.person is not for node "+asker) {
				t.Errorf("%q, who asks %s, is told %s", asker, q, got)
			}
		}
		if got := ask(stream.NodeSubject(cluster, n.Name), `{"ask":"tables"}`); strings.Contains(got, "person") || !strings.Contains(got, "item") {
			t.Errorf("%q, who joins, is told of the tables %s", asker, got)
		}
		page := `{"ask":"page","page":{"Schema":"crm","Name":"person"}}`
		if got := ask(stream.NodeSubject(cluster, n.Name), page); !strings.Contains(got, "table crm.person is not for node "+asker) {
			t.Errorf("%q, who joins, is told %s", asker, got)
		}
		for _, kind := range []byte{'b', 'j'} { // also if it says that it joins
			got := delta(t, ask, stream.DeltaSubject(cluster, n.Name), string(wire.AppendVector([]byte{kind}, had)))
			if strings.Contains(got, "while c is away") || strings.Contains(got, "visits") || !strings.Contains(got, strings.Repeat("x", 100)) {
				t.Errorf("%q is given %.1000q", asker, got)
			}
		}
	}
}

// delta has a node give a delta.
func delta(t *testing.T, ask func(subject, question string) string, subject, question string) (all string) {
	t.Helper()
	id := ask(subject, question)
	if id[0] != 'i' {
		t.Fatalf("no delta is given: %s", id)
	}
	for {
		q := "r" + id[1:] + string([]byte{0, 0, 0, 0, byte(len(all) >> 24), byte(len(all) >> 16), byte(len(all) >> 8), byte(len(all))})
		switch piece := ask(subject, q); piece[0] {
		case 'd':
			all += piece[1:]
		case 'e':
			return all
		case 'w':
		default:
			t.Fatalf("no delta is given: %s", piece)
		}
	}
}

// TestJoinWithResidency: a node joins from one that has all tables that it is to have, and gets no others.
func TestJoinWithResidency(t *testing.T) {
	t.Parallel()
	for joins, want := range map[string]struct{ residency, from, refused, merged string }{
		"one that has them":     {"crm.*=a b d", "a", "c", ""},
		"one that has not them": {"crm.*=a b", "c", "", ""},
		"without merged tables": {"crm.*=a b", "a", "", "crm.visits: n=delta"},
	} {
		t.Run(joins, func(t *testing.T) {
			t.Parallel()
			c, settings := residentCluster(t, want.merged)
			c.Node("a").Exec(`INSERT INTO crm.person SELECT i, 'a' FROM generate_series(1, 500) i`)
			c.Node("b").Exec(`INSERT INTO crm.visits VALUES (1, 1)`)
			c.Node("c").Exec(`INSERT INTO item SELECT i, 'c' FROM generate_series(1, 500) i`)
			c.WaitConverged()
			settings["topology.residency"] = want.residency
			d := c.Grow()
			if want.refused != "" {
				err := bridge.Join(t.Context(), d.Load(), bridge.JoinOptions{From: want.refused, Jobs: 1, Logger: d.Logger(), Tell: func(string) {}})
				if err == nil || !strings.Contains(err.Error(), "it does not have tables crm.*, which node d is to have (topology.residency); join from a node that has them") {
					t.Errorf("a donor without the tables: %v", err)
				}
			}
			if err := bridge.Join(t.Context(), d.Load(), bridge.JoinOptions{From: want.from, Jobs: 2, Logger: d.Logger(), Tell: func(text string) { t.Log(text) }}); err != nil {
				t.Fatalf("%v\n%s", err, d.LogTail())
			}
			d.Start()
			c.Node("b").Exec(`UPDATE crm.person SET v = 'b' WHERE id < 10`)
			d.Exec(`UPDATE item SET v = 'd' WHERE id < 10`)
			c.WaitConverged()
			if want.refused == "" {
				requireNone(t, d)
			}
		})
	}
}
