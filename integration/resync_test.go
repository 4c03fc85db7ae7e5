package integration

import (
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/natstest"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// isolate cuts a node's links, both ways; heal ends that.
func isolate(c *cluster.Cluster, name string) (heal func()) {
	links := func(do func(*cluster.Link)) {
		for _, n := range c.Nodes {
			for to, l := range n.Links {
				if n.Name == name || to == name {
					do(l)
				}
			}
		}
	}
	links((*cluster.Link).Cut)
	return func() { links((*cluster.Link).Heal) }
}

// awaitSame waits until both nodes show the same for each query.
func awaitSame(a, b *cluster.Node, queries ...string) {
	for _, q := range queries {
		a.AwaitLike(b, q)
	}
}

func resyncs(t *testing.T, n *cluster.Node) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(n.Dir, "bridge.log"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), "has taken in what came meanwhile")
}

// TestResync: a node that was away while the others let go of what it lacks gets what came of that, and its own writes meet it
// like those of any transactions.
func TestResync(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		c := cluster.New(t, cluster.Options{Majors: []int{s.Major}, Config: map[string]string{"conflict.tables": "*.counted: n=delta"}, Schema: `
			CREATE TABLE counted (id int PRIMARY KEY, n int NOT NULL, v text);
			ALTER TABLE counted REPLICA IDENTITY FULL;
			CREATE TABLE item (id int PRIMARY KEY, v text, u int UNIQUE);
			CREATE TABLE log (node text, n int, PRIMARY KEY (node, n));
			CREATE TABLE emptied (id int PRIMARY KEY, v text)`})
		a, b, other := c.Node("a"), c.Node("b"), c.Node("c")
		a.Exec(`INSERT INTO item SELECT i, 'first', i FROM generate_series(1, 1000) i`)
		a.Exec(`INSERT INTO emptied SELECT i, 'first' FROM generate_series(1, 100) i`)
		a.Exec(`INSERT INTO counted SELECT i, 100, 'first' FROM generate_series(1, 9) i`)
		c.WaitConverged()
		heal := isolate(c, "b")

		a.Exec(`UPDATE counted SET n = n + 1 WHERE id < 5`) // 4 is deleted by b, and 5 by a; 6 by c, which updates it before
		a.Exec(`DELETE FROM counted WHERE id = 5`)
		b.Exec(`UPDATE counted SET n = n + 10 WHERE id IN (1, 2, 8)`)
		b.Exec(`DELETE FROM counted WHERE id = 4`)
		b.Exec(`INSERT INTO counted VALUES (10, 7, 'b')`)
		other.Await(`SELECT n FROM counted WHERE id = 3`, "101") // so that c has seen what a did
		other.Exec(`UPDATE counted SET n = n + 100, v = 'c' WHERE id IN (2, 3, 6)`)
		other.Exec(`DELETE FROM counted WHERE id = 6`)
		other.Exec(`INSERT INTO counted VALUES (11, 8, 'c')`)
		other.Exec(`INSERT INTO counted VALUES (12, 8, 'c')`)
		other.Exec(`DELETE FROM counted WHERE id = 12`)

		b.Exec(`UPDATE item SET v = 'b early' WHERE id BETWEEN 1 AND 20 OR id = 205`)
		b.Exec(`INSERT INTO emptied VALUES (101, 'b early')`)
		b.Exec(`DELETE FROM item WHERE id BETWEEN 401 AND 410`)
		a.Exec(`UPDATE item SET v = 'a' WHERE id <= 200 OR id BETWEEN 401 AND 410`)
		a.Exec(`DELETE FROM item WHERE id BETWEEN 201 AND 260`)
		a.Exec(`UPDATE item SET id = 3000 WHERE id = 300`)
		a.Exec(`UPDATE item SET u = -u WHERE id BETWEEN 500 AND 501`)
		a.Exec(`UPDATE item SET u = 1001 - id WHERE id BETWEEN 500 AND 501`)
		a.Exec(`TRUNCATE emptied`)
		other.Exec(`INSERT INTO item SELECT i, 'c', i FROM generate_series(2000, 2100) i`)
		other.Exec(`INSERT INTO log SELECT 'c', i FROM generate_series(1, 500) i`)
		other.Exec(`INSERT INTO emptied VALUES (102, 'c late')`)
		b.Exec(`UPDATE item SET v = 'b late' WHERE id BETWEEN 21 AND 40 OR id = 206`)
		b.Exec(`INSERT INTO log SELECT 'b', i FROM generate_series(1, 500) i`)
		b.Exec(`INSERT INTO item VALUES (2050, 'b late', 2050)`)
		b.Exec(`DELETE FROM item WHERE id BETWEEN 411 AND 420`)
		awaitSame(a, other, `SELECT count(*), sum(n) FROM counted`, `SELECT count(*) FROM log`, `SELECT count(*) FROM emptied`, `SELECT count(*), sum(hashtext(item::text)) FROM item`)
		a.Purge()
		other.Purge()
		for _, l := range b.Links { // what b has written reaches nobody yet
			l.Heal()
		}
		b.Await(`SELECT count(*) FROM log`, "1000")
		conflicts := b.Query(`SELECT relation, kind, outcome, count(*) FROM pgbridge.conflict WHERE remote_seq = 0 GROUP BY 1, 2, 3 ORDER BY 1, 2, 3`)
		heal()
		c.WaitConverged()
		if got := resyncs(t, b); got != 1 {
			t.Errorf("node b has been given what it lacked %d times", got)
		}
		for sql, want := range map[string]string{
			`SELECT string_agg(DISTINCT v, ',') FROM item WHERE id BETWEEN 1 AND 20`:                    "a",
			`SELECT string_agg(DISTINCT v, ',') FROM item WHERE id BETWEEN 21 AND 40`:                   "b late",
			`SELECT count(*) FROM item WHERE id BETWEEN 201 AND 260`:                                    "1", // 206
			`SELECT count(*) FROM item WHERE id BETWEEN 401 AND 420`:                                    "10",
			`SELECT string_agg(id || '=' || u, ',' ORDER BY id) FROM item WHERE id BETWEEN 499 AND 502`: "499=499,500=501,501=500,502=502",
			`SELECT string_agg(v, ',' ORDER BY id) FROM item WHERE id IN (300, 3000, 2050)`:             "b late,first",
			`SELECT string_agg(id || '=' || n || v, ',' ORDER BY id) FROM counted`:                      "1=111first,2=211c,3=201c,7=100first,8=110first,9=100first,10=7b,11=8c",
			`SELECT count(*) FROM log`:                      "1000",
			`SELECT string_agg(id::text, ',') FROM emptied`: "102",
		} {
			if got := b.Value(sql); got != want {
				t.Errorf("%s: node b shows %s, want %s", sql, got, want)
			}
		}
		want := []string{"public.counted|update_delete|local wins|1", "public.emptied|delete_update|remote wins|1", "public.item|delete_update|local wins|1", "public.item|delete_update|remote wins|1",
			"public.item|insert_delete|remote wins|10", "public.item|insert_insert|local wins|21", "public.item|insert_insert|remote wins|20"}
		if !slices.Equal(conflicts, want) {
			t.Errorf("node b has recorded the conflicts %q, want %q", conflicts, want)
		}
		// What was given has versions like any other row, also for a bridge that starts.
		b.Stop()
		b.Start()
		a.Exec(`UPDATE item SET v = 'a again' WHERE id BETWEEN 10 AND 30`)
		other.Exec(`DELETE FROM item WHERE id BETWEEN 2000 AND 2010`)
		b.Exec(`UPDATE item SET v = 'b again' WHERE id BETWEEN 2011 AND 2020`)
		b.Exec(`DELETE FROM item WHERE id BETWEEN 2021 AND 2030`)
		for _, n := range c.Nodes {
			n.Exec(`UPDATE counted SET n = n + 1000`)
		}
		c.WaitConverged()
	})
}

// TestQuietNodeIsHeardAgain: a node that finds its place in a stream by transaction, as behind a resync, hears what its author has seen,
// though the author tells nothing any more.
func TestQuietNodeIsHeardAgain(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2, Schema: `CREATE TABLE t (id int PRIMARY KEY)`, Idle: true})
	onBroker(t, c, natstest.New(t).URL(), "")
	a := c.Node("a")
	c.Exec(`INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING`)
	c.WaitConverged()
	heard := func(r *cluster.Report) bool {
		return len(r.Nodes) == 1 && !slices.ContainsFunc(r.Nodes, func(n bridge.NodeReport) bool { return n.Unknown || n.SeenSeq < r.Seq })
	}
	a.AwaitStatus(heard)
	c.Node("b").Stop()
	a.Stop()
	a.Exec(`UPDATE pgbridge.position SET stream_seq = 0`)
	a.Start()
	a.AwaitStatus(heard)
}

// TestResyncsAtRandom: nodes are cut off under load, one after the other, and the others let go of what they lack; or they are
// not, and then nobody is given anything.
func TestResyncsAtRandom(t *testing.T) {
	t.Parallel()
	s := seed(t)
	r := rand.New(rand.NewSource(s))
	rounds := 3
	if pgtest.Soak() {
		rounds = 30
	}
	c := cluster.New(t, cluster.Options{Nodes: 3, Majors: pgtest.Versions(t), Config: map[string]string{"conflict.tables": "*.counter: n=delta; " + columnedRules, "topology.residency": "public.part=a b",
		"topology.rows": "public.placed.part=0:a b,public.placed.part=1:c a b", "topology.columns": columnsAt([]string{"a", "b"})}, Keys: s%2 == 0, Schema: loadSchema + placedTable + columnedTable + countedSchema + `CREATE TABLE uniq (id int PRIMARY KEY, u int UNIQUE, w int); CREATE TABLE part (id int PRIMARY KEY, v int)`})
	var increments [3]int
	for _, n := range c.Nodes {
		if got, want := n.Value(`SELECT count(*) FROM pg_publication_tables WHERE tablename = 'part'`) == "1", n.Name != "c"; got != want {
			t.Errorf("node %s publishes what only a and b have: %v", n.Name, got)
		}
	}
	l := newLoad(t, c, 1, s)
	l.placed, l.columns = true, []string{"a", "b"}
	given, columns := 0, 0
	for range rounds {
		for _, n := range c.Nodes { // what purge takes must be known everywhere if its node starts anew
			n.Await(`SELECT count(*) FROM pgbridge.tombstone`, "0")
		}
		victim := c.Nodes[r.Intn(len(c.Nodes))]
		before := resyncs(t, victim)
		l.start()
		heal := isolate(c, victim.Name)
		during(loadTime() / 10)
		if r.Intn(2) == 0 {
			l.stop()
		}
		for range 40 {
			at := r.Intn(len(c.Nodes))
			n := c.Nodes[at]
			n.Exec(`WITH d AS (INSERT INTO did VALUES ($1, $2, $3)) UPDATE counter SET n = n + 1 WHERE id = $3`, n.Name, increments[at], 1+r.Intn(10))
			increments[at]++
			n.Exec(`INSERT INTO part VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET v = excluded.v`, r.Intn(30), r.Intn(1000)) // at c it stays
			n.Exec(`DELETE FROM part WHERE id = $1`, r.Intn(30))
			n.Exec(`INSERT INTO uniq VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, r.Intn(30), r.Intn(30), r.Intn(100))
			n.Exec(`UPDATE uniq SET w = w + 1 WHERE id = $1`, r.Intn(30))
			n.Exec(`DELETE FROM uniq WHERE id = $1 AND w % 3 = 0`, r.Intn(30))
			columns++
			changeUniq(t, c, n, r, columns)
		}
		awaitAllBut(t, c, victim)
		let := r.Intn(3) > 0
		if let {
			for _, n := range c.Nodes {
				if n != victim {
					n.Purge()
				}
			}
		}
		heal()
		l.stop()
		c.WaitConverged()
		requireColumned(t, c, l.columns)
		after := resyncs(t, victim) - before
		if let && after == 0 || !let && after > 0 {
			t.Errorf("frames were let go of: %v, and node %s was given what it lacked %d times", let, victim.Name, after)
		}
		given += after
		if t.Failed() {
			return
		}
	}
	requireApplied(t, c, l)
	requireSchemas(t, c)
	for _, n := range c.Nodes {
		if got := n.Query(`SELECT id, n FROM counter WHERE n <> (SELECT count(*) FROM did WHERE did.id = counter.id)`); len(got) > 0 {
			t.Errorf("node %s has lost increments, or counted some twice: %q", n.Name, got)
		}
	}
	t.Logf("%d rounds, %d times a node was given what it lacked", rounds, given)
}

// changeUniq writes a column of table uniq that has been added, or now and then adds, renames or drops one. What breaks is changed by
// the first node, so that two such changes do not meet.
func changeUniq(t *testing.T, c *cluster.Cluster, n *cluster.Node, r *rand.Rand, i int) {
	one := c.Nodes[0]
	added := func(n *cluster.Node) string {
		all := n.Query(`SELECT attname FROM pg_attribute WHERE attrelid = 'uniq'::regclass AND attnum > 3 AND NOT attisdropped ORDER BY 1`)
		if len(all) == 0 {
			return ""
		}
		return all[r.Intn(len(all))]
	}
	switch w := r.Intn(20); {
	case w < 1:
		ddl(n, fmt.Sprintf(`ALTER TABLE uniq ADD COLUMN %s%d int DEFAULT %[2]d`, n.Name, i))
	case w < 2 && added(one) != "":
		breaking(one, fmt.Sprintf(`ALTER TABLE uniq DROP COLUMN %s`, added(one)))
	case w < 3 && added(one) != "":
		breaking(one, fmt.Sprintf(`ALTER TABLE uniq RENAME COLUMN %s TO r%d`, added(one), i))
	default:
		if column := added(n); column != "" {
			unlessChanged(t, n, noColumn, fmt.Sprintf(`UPDATE uniq SET %s = %d WHERE id = %d`, column, i, r.Intn(30)))
		}
	}
}

// awaitAllBut waits until all nodes but one have what any of them has written so far.
func awaitAllBut(t *testing.T, c *cluster.Cluster, away *cluster.Node) {
	t.Helper()
	for _, n := range c.Nodes {
		if n == away {
			continue
		}
		n.AwaitStatus(func(r *cluster.Report) bool { return r.Capture.State == capture.StateStreaming }) // one that was given something starts anew
		token, err := bridge.Token(t.Context(), n.Load())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range c.Nodes {
			if m == away || m == n {
				continue
			}
			if got := m.Value(`SELECT pgbridge.wait($1, '2 min')`, token); got != "t" {
				t.Fatalf("node %s has not got %s", m.Name, token)
			}
		}
	}
}
