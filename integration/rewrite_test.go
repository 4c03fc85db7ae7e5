package integration

import (
	"context"
	"fmt"
	"math/rand"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
)

// rewrite makes the server give every row of t a new version, and leaves the rows as they are.
const rewrite = `ALTER TABLE t ALTER n TYPE int USING n + 0`

// TestRewriteBetweenConcurrentWrites: three nodes write the same rows without knowing of each other, and
// rewrite the table before and after they hear of the others' writes. Whoever wrote last wins everywhere: the
// rewrite is nobody's write (PROOF.md F10, R28).
func TestRewriteBetweenConcurrentWrites(t *testing.T) {
	t.Parallel()
	eachPair(t, func(t *testing.T, majors []int) {
		c := cluster.New(t, cluster.Options{Majors: majors, Schema: `
			CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL DEFAULT 0, v text NOT NULL DEFAULT 'first', big text);
			CREATE TABLE u (id int PRIMARY KEY, n int, v text);
			CREATE TABLE migration (id int PRIMARY KEY);
			ALTER TABLE t ALTER big SET STORAGE EXTERNAL`})
		a, b, d := c.Nodes[0], c.Nodes[1], c.Nodes[2]
		a.Exec(`INSERT INTO t (id, big) SELECT i, CASE WHEN i <= 5 OR i > 21 AND i <= 28 THEN repeat('large ', 1000) END FROM generate_series(1, 60) i`)
		a.Exec(`INSERT INTO u SELECT i, i, 'first' FROM generate_series(1, 9) i`)
		c.WaitConverged()
		cutAll(c)
		d.Exec(`UPDATE t SET v = 'c early' WHERE id <= 20`)
		d.Exec(`DELETE FROM t WHERE id BETWEEN 31 AND 36; INSERT INTO t (id, v) SELECT i, 'c early' FROM generate_series(101, 104) i`)
		d.Exec(`UPDATE t SET id = id + 160 WHERE id BETWEEN 41 AND 44`)
		d.Exec(`TRUNCATE u`)
		a.Exec(`UPDATE t SET v = 'a' WHERE id BETWEEN 6 AND 15 OR id BETWEEN 33 AND 34; INSERT INTO t (id, v) SELECT i, 'a' FROM generate_series(103, 106) i`)
		a.Exec(`UPDATE t SET v = 'a' WHERE id BETWEEN 43 AND 44`)
		a.Exec(`UPDATE u SET v = 'a' WHERE id = 1; INSERT INTO u VALUES (11, 1, 'a'), (12, 1, 'a')`)
		b.Links[a.Name].Heal()
		b.Await(`SELECT count(*) FROM u WHERE v = 'a'`, "3")

		// b knows of a's writes and not of c's.
		b.Exec(rewrite + `; ALTER TABLE u ALTER n TYPE bigint`)
		b.Exec(`UPDATE t SET v = 'b' WHERE id BETWEEN 11 AND 18`)
		b.Exec(rewrite)
		// A migration often writes what capture reads: the rewritten rows share their commit time with that.
		b.Exec(`BEGIN; UPDATE t SET v = 'b, before' WHERE id = 19; ` + rewrite + `; UPDATE t SET v = 'b, behind' WHERE id = 21;
			INSERT INTO migration VALUES (1); COMMIT`)
		b.Stop()
		b.Start()
		a.Exec(rewrite + `; ALTER TABLE u ALTER n TYPE bigint`)
		d.Exec(`UPDATE t SET v = 'c late' WHERE id BETWEEN 21 AND 25`)
		d.Exec(`BEGIN; ` + rewrite + `; ALTER TABLE u ALTER n TYPE bigint; INSERT INTO migration VALUES (2); COMMIT`)
		d.Exec(`UPDATE t SET v = 'c late' WHERE id BETWEEN 26 AND 28`)
		healAll(c)
		awaitEach(t, c)
		newJudge(t, c).require("^(t|u|migration)$")
		want := map[string]string{
			"1..5": "c early", "6..10": "a", "11..18": "b", "19..19": "b, before", "20..20": "c early", "21..28": "c late", "29..30": "first",
			"33..34": "a", "37..40": "first", "43..44": "a", "45..60": "first", "101..102": "c early", "103..106": "a", "201..204": "first",
		}
		for ids, v := range want {
			var from, to int
			fmt.Sscanf(ids, "%d..%d", &from, &to)
			if got := b.Value(`SELECT count(*) FROM t WHERE v = $1 AND id BETWEEN $2 AND $3`, v, from, to); got != fmt.Sprint(to-from+1) {
				t.Errorf("rows %s: %q", ids, b.Query(`SELECT id, v FROM t WHERE id BETWEEN $1 AND $2 ORDER BY 1`, from, to))
			}
		}
		if got := b.Value(`SELECT count(*) FROM t WHERE id BETWEEN 31 AND 32 OR id BETWEEN 35 AND 36 OR id BETWEEN 41 AND 42`); got != "0" {
			t.Errorf("%s deleted rows are there", got)
		}
		if got := strings.Join(b.Query(`SELECT id FROM u ORDER BY 1`), " "); got != "1 11 12" {
			t.Errorf("rows %s have survived the TRUNCATE", got)
		}
	})
}

// TestRewriteAtANodeThatOnlyReads: what a third node has written covers a transaction that comes later, also
// if this node has not published anything since and has forgotten, by a rewrite, whose row that is.
func TestRewriteAtANodeThatOnlyReads(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Schema: `CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL DEFAULT 0, v text)`})
	a, b, d := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	a.Exec(`INSERT INTO t SELECT i, 0, 'first' FROM generate_series(1, 20) i`)
	c.WaitConverged()
	cutAll(c)
	d.Exec(`UPDATE t SET v = 'c' WHERE id <= 10`)
	a.Exec(`UPDATE t SET v = 'a' WHERE id BETWEEN 6 AND 15`)
	b.Links[a.Name].Heal()
	b.Await(`SELECT count(*) FROM t WHERE v = 'a'`, "10")
	b.Exec(rewrite)
	for i := range 3 { // markers pass
		a.Exec(`UPDATE t SET v = $1 WHERE id = 20`, fmt.Sprint(i))
		b.Await(`SELECT v FROM t WHERE id = 20`, fmt.Sprint(i))
	}
	b.Links[d.Name].Heal()
	b.Await(`SELECT count(*) FROM t WHERE v = 'c'`, "5")
	healAll(c)
	awaitEach(t, c)
	newJudge(t, c).require("^t$")
	if got := b.Value(`SELECT count(*) FROM t WHERE v = 'a'`); got != "10" {
		t.Errorf("of a's writes %s are left", got)
	}
}

// TestRewriteBeforeABurst: of transactions that come at once, the last had seen all that the table's past holds, and one in front of it
// has yet to ask that.
func TestRewriteBeforeABurst(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`, Config: map[string]string{"apply.batch_transactions": "1"}})
	a, b := c.Nodes[0], c.Nodes[1]
	a.Exec(`INSERT INTO t SELECT i, 'first' FROM generate_series(1, 3) i`)
	c.WaitConverged()
	cutAll(c)
	b.Exec(`UPDATE t SET v = 'b' WHERE id = 1`) // has the past read
	b.Exec(`UPDATE t SET v = 'b' WHERE id = 2`)
	a.Exec(`UPDATE t SET v = 'a' WHERE id = 2`) // later, and so the one that stays
	b.Links[a.Name].Heal()
	b.Await(`SELECT v FROM t WHERE id = 2`, "a")
	awaitTold(t, c, b, a)
	b.Exec(`UPDATE t SET v = 'b' WHERE id = 3`)
	a.Exec(`ALTER TABLE t ALTER v TYPE text USING v || ''`)
	healAll(c)
	a.Await(`SELECT v FROM t WHERE id = 3`, "b") // before it writes anything else
	c.WaitConverged()
	if got := strings.Join(a.Query(`SELECT v FROM t ORDER BY id`), ""); got != "bab" {
		t.Errorf("rows of %s", got)
	}
}

// awaitTold waits until n's stream tells that it has seen all that another node has written.
func awaitTold(t *testing.T, c *cluster.Cluster, n, of *cluster.Node) {
	t.Helper()
	r, err := stream.NewReader(n.Connect(), stream.ReaderOptions{Cluster: c.Name, Sender: n.Name, Origin: n.Name})
	if err != nil {
		t.Fatal(err)
	}
	seq := of.Status().Seq
	n.AwaitStatus(func(*cluster.Report) bool {
		_, last, _, err := r.Info(t.Context())
		if err != nil {
			return false
		}
		f, err := r.Get(t.Context(), last)
		return err == nil && f.Low.Seq(origin.Origin{Node: of.Name, Epoch: 1}) >= seq
	})
}

// TestRewriteOfAKey: a key that is widened is the same key.
func TestRewriteOfAKey(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`})
	a, b, d := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	a.Exec(`INSERT INTO t SELECT i, 'first' FROM generate_series(-5, 20) i`)
	c.WaitConverged()
	cutAll(c)
	d.Exec(`ALTER TABLE t ALTER id TYPE bigint`) // its keys travel as bigint, a's as int
	d.Exec(`UPDATE t SET v = 'c' WHERE id <= 10; INSERT INTO t SELECT i, 'c' FROM generate_series(101, 200) i; DELETE FROM t WHERE id = 18`)
	a.Exec(`UPDATE t SET v = 'a' WHERE id NOT BETWEEN 0 AND 5; INSERT INTO t SELECT i, 'a' FROM generate_series(101, 120) i`)
	b.Links[a.Name].Heal()
	b.Await(`SELECT count(*) FROM t WHERE v = 'a'`, "40")
	a.Exec(`ALTER TABLE t ALTER id TYPE bigint`)
	b.Exec(`ALTER TABLE t ALTER id TYPE bigint`)
	for _, n := range c.Nodes { // forget how the tables were
		n.Stop()
		n.Start()
	}
	healAll(c)
	awaitEach(t, c)
	newJudge(t, c).require("^t$")
	if got := strings.Join(b.Query(`SELECT v || ' ' || count(*) FROM t GROUP BY v ORDER BY 1`), ", "); got != "a 40, c 86" {
		t.Errorf("rows of %s", got)
	}
}

// TestRewritesAtRandom lets nodes write, lose and find each other, rewrite and restart in a random order.
func TestRewritesAtRandom(t *testing.T) {
	t.Parallel()
	steps := 40
	if pgtest.Soak() {
		steps = 600
	}
	for _, majors := range oldAndNew() {
		t.Run(fmt.Sprint(majors), func(t *testing.T) {
			c := cluster.New(t, cluster.Options{Majors: majors, Schema: `CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL DEFAULT 0, v text)`})
			s := seedOr(t, 643880) // with which it has failed before, under load
			t.Logf("seed %d", s)
			r := rand.New(rand.NewSource(s))
			c.Nodes[0].Exec(`INSERT INTO t SELECT i, i, 'first' FROM generate_series(1, 40) i`)
			c.WaitConverged()
			for i := range steps {
				randomStep(c, r, i)
			}
			healAll(c)
			c.WaitConverged()
			newJudge(t, c).require("^t$")
		})
	}
}

func randomStep(c *cluster.Cluster, r *rand.Rand, i int) {
	n := c.Nodes[r.Intn(len(c.Nodes))]
	other := c.Nodes[r.Intn(len(c.Nodes))]
	from := 1 + r.Intn(40)
	to := from + r.Intn(6)
	what := fmt.Sprint(n.Name, i)
	switch w := r.Intn(20); {
	case w < 5:
		n.Exec(`UPDATE t SET v = $1 WHERE id BETWEEN $2 AND $3`, what, from, to)
	case w < 7:
		n.Exec(`DELETE FROM t WHERE id BETWEEN $1 AND $2`, from, to)
	case w < 9:
		n.Exec(`INSERT INTO t SELECT i, 0, $1 FROM generate_series($2::int, $3) i ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v`, what, from, to)
	case w < 10:
		n.Exec(`UPDATE t SET id = $1 WHERE id = $2 AND NOT EXISTS (SELECT FROM t WHERE id = $1)`, from, to)
	case w < 12:
		n.Exec(rewrite)
	case w < 13:
		n.Exec(fmt.Sprintf(`BEGIN; UPDATE t SET v = '%s' WHERE id = %d; %s; UPDATE t SET v = '%s' WHERE id = %d; COMMIT`, what, from, rewrite, what, to))
	case w < 14:
		n.Exec(`GRANT SELECT ON t TO PUBLIC`)
	case w < 15:
		n.Stop()
		n.Start()
	case other != n && w < 18:
		n.Links[other.Name].Cut()
	case other != n:
		n.Links[other.Name].Heal()
	}
	moment, cancel := context.WithTimeout(context.Background(), time.Duration(r.Intn(120))*time.Millisecond)
	defer cancel()
	<-moment.Done() // a random moment, for what may arrive
}

// TestRewriteUnderLoad: tables are rewritten on one node after the other while all of them write.
func TestRewriteUnderLoad(t *testing.T) {
	t.Parallel()
	rounds := 2
	if pgtest.Soak() {
		rounds = 4
	}
	for _, majors := range oldAndNew() {
		t.Run(fmt.Sprint(majors), func(t *testing.T) {
			c := cluster.New(t, cluster.Options{Majors: majors, Schema: strings.Replace(loadSchema, "balance bigint", "balance int", 1)})
			s := seed(t)
			r := rand.New(rand.NewSource(s))
			l := startLoad(t, c, 2, s)
			for round := range rounds {
				for _, n := range c.Nodes {
					moment, cancel := context.WithTimeout(context.Background(), time.Duration(r.Intn(1500))*time.Millisecond)
					<-moment.Done() // the random moment
					cancel()
					n.Exec(`ALTER TABLE hot ALTER v TYPE text USING v || ''`)
					if round == 1 {
						n.Exec(`ALTER TABLE account ALTER balance TYPE bigint`)
					}
				}
			}
			l.stop()
			c.WaitConverged()
			requireCounts(t, c, l)
			for i, n := range c.Nodes {
				t.Logf("node %s: %d committed, %s conflicts recorded", n.Name, l.commits[i].Load(), n.Value(`SELECT count(*) FROM pgbridge.conflict`))
			}
		})
	}
}

// oldAndNew are the versions of the nodes of a test that runs on old ones and on new ones: on both at once unless it is long.
func oldAndNew() [][]int {
	if pgtest.Soak() {
		return [][]int{{18}, {15}}
	}
	return [][]int{{15, 18}}
}
