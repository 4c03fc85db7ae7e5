package integration

import (
	"encoding/base64"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/wire"
)

// placedSchema is a table of whose rows some are on a and b, some on a and c, and the others on all, beside one that all have.
const placedSchema = `
	CREATE SCHEMA shop;
	CREATE TABLE shop.orders (region text, id int, v text, wide text, PRIMARY KEY (region, id));
	ALTER TABLE shop.orders REPLICA IDENTITY FULL;
	CREATE TABLE item (id int PRIMARY KEY, v text)`

const placedRows = "shop.orders.region=eu:a b,shop.orders.region=us:a c"

func placedCluster(t *testing.T, o cluster.Options) (*cluster.Cluster, map[string]string) {
	o.Config = map[string]string{"topology.rows": placedRows, "capture.frame_bytes": "64KiB"}
	o.Nodes, o.Schema = 3, placedSchema
	return cluster.New(t, o), o.Config
}

// requirePlaced fails if a node has rows of orders that are not for it, or has heard of any.
func requirePlaced(t *testing.T, n *cluster.Node, others string) {
	t.Helper()
	for _, sql := range []string{`SELECT count(*) FROM shop.orders WHERE region = '%s'`, `SELECT count(*) FROM pgbridge.owed WHERE key->>'region' = '%s'`,
		`SELECT count(*) FROM pgbridge.conflict c WHERE to_jsonb(c)::text LIKE '%%%s%%'`} {
		if got := n.Value(fmt.Sprintf(sql, others)); got != "0" {
			t.Errorf("node %s: "+sql+" gives %s", n.Name, others, got)
		}
	}
}

// TestRows: each row is where the column of its key says, whether it was written alone, with others or in bulk, and goes to other nodes when an
// update changes that, from whichever of them.
func TestRows(t *testing.T) {
	t.Parallel()
	c, _ := placedCluster(t, cluster.Options{Majors: pgtest.Versions(t)})
	a, b, x := c.Node("a"), c.Node("b"), c.Node("c")
	a.Exec(`INSERT INTO shop.orders VALUES ('eu', 1, 'a'), ('us', 1, 'a'), ('asia', 1, 'a')`)
	together(a, `INSERT INTO shop.orders VALUES ('us', 2, 'a')`, `INSERT INTO item VALUES (2, 'a')`, `INSERT INTO shop.orders VALUES ('eu', 2, 'a')`)
	together(b, `INSERT INTO item SELECT i, 'bulk' FROM generate_series(100, 2000) i`,
		`INSERT INTO shop.orders SELECT CASE i % 2 WHEN 0 THEN 'eu' ELSE 'asia' END, i, repeat('x', 100) FROM generate_series(100, 2000) i`)
	together(x, `INSERT INTO shop.orders SELECT 'us', i, repeat('x', 100) FROM generate_series(100, 2000) i`, `INSERT INTO item VALUES (3, 'c')`)
	c.WaitConverged()
	requirePlaced(t, b, "us")
	requirePlaced(t, x, "eu")
	if got := a.Value(`SELECT string_agg(n || region, ',' ORDER BY region) FROM (SELECT region, count(*) n FROM shop.orders GROUP BY 1) x`); got != "951asia,953eu,1903us" {
		t.Errorf("node a has %s", got)
	}

	// From some nodes to others, with a value that is stored out of line: by one that has both, one that had it, and one that gets it.
	moves := []struct {
		by       *cluster.Node
		from, to string
	}{{a, "eu", "us"}, {a, "us", "eu"}, {a, "asia", "eu"}, {a, "eu", "asia"}, {b, "eu", "asia"}, {b, "asia", "eu"}, {b, "eu", "us"},
		{x, "us", "eu"}, {x, "us", "asia"}, {x, "asia", "us"}}
	for i, move := range moves {
		a.Exec(fmt.Sprintf(`INSERT INTO shop.orders SELECT '%s', -%d, 'large', %s`, move.from, 2*i+1, large(fmt.Sprint(i))))
	}
	c.WaitConverged()
	for i, move := range moves {
		key := fmt.Sprintf(`region = '%s' AND id = -%d`, move.to, 2*i+1)
		together(move.by, fmt.Sprintf(`UPDATE shop.orders SET region = '%s', v = 'moved' WHERE region = '%s' AND id = -%d`, move.to, move.from, 2*i+1),
			fmt.Sprintf(`INSERT INTO item VALUES (-%d, 'with a move by %s')`, i+2, move.by.Name))
		for _, n := range c.Nodes {
			n.Await(fmt.Sprintf(`SELECT count(*) FROM item WHERE id = -%d`, i+2), "1")
			there := move.to == "asia" || n == a || move.to == "eu" && n == b || move.to == "us" && n == x
			want := "0"
			if there {
				want = "1"
			}
			got := n.Value(fmt.Sprintf(`SELECT count(*) FROM shop.orders WHERE %s AND v = 'moved' AND wide = %s`, key, large(fmt.Sprint(i))))
			if n == move.by && !there { // what has become others' where it was written stays there
				n.Exec(`DELETE FROM shop.orders WHERE ` + key)
				want = "1"
			}
			if got != want {
				t.Errorf("moved from %s to %s by node %s, node %s has %s of it, want %s", move.from, move.to, move.by.Name, n.Name, got, want)
			}
		}
	}
	c.WaitConverged()
	if got := a.Value(`SELECT string_agg(region, ' ' ORDER BY id DESC) FROM shop.orders WHERE id < 0`); got != "us eu eu asia asia eu us eu asia us" {
		t.Errorf("moved, the rows are in %s", got)
	}

	// Where old rows are not in the WAL whole any more, a large value is asked for.
	a.Exec(`ALTER TABLE shop.orders REPLICA IDENTITY DEFAULT`)
	a.Exec(`INSERT INTO shop.orders SELECT 'eu', -101, 'large', ` + large("0"))
	b.Await(`SELECT count(*) FROM shop.orders WHERE id = -101`, "1")
	a.Exec(`UPDATE shop.orders SET region = 'us' WHERE id = -101`)
	c.WaitConverged()
	x.Await(`SELECT count(*) FROM shop.orders WHERE id = -101 AND wide = `+large("0"), "1")

	// What users write of others' rows stays with them, and meets nothing.
	x.Exec(`INSERT INTO shop.orders VALUES ('eu', 1, 'of c alone')`)
	together(x, `UPDATE shop.orders SET v = 'of c alone still'  WHERE region = 'eu'`, `UPDATE shop.orders SET v = 'c' WHERE region = 'asia'`)
	b.Exec(`UPDATE shop.orders SET v = 'b' WHERE region = 'eu' AND id = 1`)
	c.WaitConverged()
	if got := x.Value(`SELECT v FROM shop.orders WHERE region = 'eu'`); got != "of c alone still" {
		t.Errorf("what users of c have written is %s", got)
	}
	x.Exec(`DELETE FROM shop.orders WHERE region = 'eu'`)
	a.Exec(`DELETE FROM shop.orders WHERE id % 2 = 0`)
	c.WaitConverged()
	b.Exec(`TRUNCATE shop.orders`)
	x.Exec(`INSERT INTO item VALUES (-1, 'behind')`)
	c.WaitConverged()
	for _, n := range c.Nodes {
		if got := n.Value(`SELECT count(*) FROM shop.orders`); got != "0" {
			t.Errorf("node %s has %s rows behind a TRUNCATE", n.Name, got)
		}
	}
}

// together writes several statements as one transaction.
func together(n *cluster.Node, sql ...string) {
	n.Exec(`DO $$ BEGIN ` + strings.Join(sql, "; ") + `; END $$`)
}

// TestRowsAreGivenToWhomTheyAreFor: a node that was away is given what came meanwhile of the rows that it has; nodes are compared by the rows
// that both have; and nobody is told of others.
func TestRowsAreGivenToWhomTheyAreFor(t *testing.T) {
	t.Parallel()
	c, _ := placedCluster(t, cluster.Options{Majors: pgtest.Versions(t)})
	a, b, x := c.Node("a"), c.Node("b"), c.Node("c")
	a.Exec(`INSERT INTO shop.orders SELECT r, i, 'first' FROM unnest('{eu,us,asia}'::text[]) r, generate_series(1, 50) i`)
	x.Exec(`INSERT INTO shop.orders VALUES ('eu', 1000, 'of c alone')`)
	c.WaitConverged()
	had := vectorAt(t, x)
	had.Merge(vectorAt(t, a))
	heal := isolate(c, "c")
	together(a, `UPDATE shop.orders SET v = 'EU while away' WHERE region = 'eu' AND id < 5`, `UPDATE shop.orders SET v = 'US while away' WHERE region = 'us' AND id < 5`,
		`DELETE FROM shop.orders WHERE id BETWEEN 10 AND 12`, `INSERT INTO shop.orders VALUES ('eu', 1000, 'EU while away')`,
		`UPDATE shop.orders SET region = 'us', id = 100 WHERE region = 'eu' AND id = 20`, `UPDATE shop.orders SET region = 'eu', id = 100 WHERE region = 'us' AND id = 20`,
		`UPDATE shop.orders SET region = 'us', id = 101 WHERE region = 'asia' AND id = 20`, `UPDATE shop.orders SET region = 'asia', id = 101 WHERE region = 'us' AND id = 21`,
		`UPDATE shop.orders SET region = 'eu', id = 102 WHERE region = 'asia' AND id = 21`)
	b.Exec(`UPDATE shop.orders SET v = 'EU while away' WHERE region = 'eu' AND id = 6`)
	x.Exec(`UPDATE shop.orders SET v = 'of c meanwhile' WHERE region = 'us' AND id IN (3, 7)`)
	a.Exec(`INSERT INTO item SELECT i, repeat('x', 100) FROM generate_series(3000, 5000) i`) // several frames, of which the last one stays
	awaitSame(a, b, `SELECT count(*), sum(hashtext(item::text)) FROM item`, `SELECT count(*), sum(hashtext(o::text)) FROM shop.orders o WHERE region <> 'us'`)
	a.Exec(`DELETE FROM shop.orders WHERE region = 'eu' AND id = 1000`)
	b.Await(`SELECT count(*) FROM shop.orders WHERE id = 1000`, "0")
	requireKeptRows(t, c.Name, a, had)
	a.Purge()
	b.Purge()
	heal()
	c.WaitConverged()
	if got := resyncs(t, x); got != 1 {
		t.Errorf("node c has been given what it lacked %d times", got)
	}
	if got := x.Value(`SELECT string_agg(id || v, ',') FROM shop.orders WHERE region = 'eu'`); got != "1000of c alone" {
		t.Errorf("node c has %s", got)
	}
	heal = isolate(c, "b")
	together(a, `UPDATE shop.orders SET v = 'while b is away'`, `DELETE FROM shop.orders WHERE id = 30`)
	x.Exec(`INSERT INTO item SELECT i, repeat('x', 100) FROM generate_series(6000, 7900) i`)
	a.Exec(`INSERT INTO item SELECT i, repeat('x', 100) FROM generate_series(8000, 9900) i`)
	awaitSame(a, x, `SELECT count(*), sum(hashtext(item::text)) FROM item`)
	a.Purge()
	x.Purge()
	heal()
	c.WaitConverged()
	if got := resyncs(t, b); got != 1 {
		t.Errorf("node b has been given what it lacked %d times", got)
	}
	requirePlaced(t, b, "us")

	// Compared, and mended.
	plant(t, c.Name, b, `UPDATE shop.orders SET v = 'planted' WHERE region = 'eu' AND id = 1`, `INSERT INTO shop.orders VALUES ('us', 2000, 'of b alone')`)
	plant(t, c.Name, x, `UPDATE shop.orders SET v = 'planted' WHERE region = 'us' AND id = 2`, `DELETE FROM shop.orders WHERE region = 'asia' AND id = 3`)
	if got := strings.Join(differing(verify(t, a, bridge.VerifyOptions{})), ", "); got != `shop.orders region=asia, id=3, shop.orders region=eu, id=1, shop.orders region=us, id=2` {
		t.Errorf("compared, there differ %s", got)
	}
	if got := strings.Join(differing(verify(t, b, bridge.VerifyOptions{Repair: true})), ", "); got != `shop.orders region=asia, id=3, shop.orders region=eu, id=1` {
		t.Errorf("compared at b, there differ %s", got)
	}
	if r := verify(t, x, bridge.VerifyOptions{Table: "shop.*", Repair: true}); r.Differences != 1 || r.Mended != 1 || len(r.Tables) != 1 {
		t.Errorf("compared at c: %+v", r)
	}
	c.WaitConverged()
	if r := verify(t, a, bridge.VerifyOptions{}); r.Differences != 0 {
		t.Errorf("behind a repair there differ %+v", r.Found)
	}
	if got := b.Value(`SELECT string_agg(id || v, ',') FROM shop.orders WHERE region = 'us'`); got != "2000of b alone" {
		t.Errorf("node b has %s", got)
	}
}

// requireKeptRows fails if a node tells another one, or somebody whom it does not know, of rows that are not for them.
func requireKeptRows(t *testing.T, cluster string, n *cluster.Node, had origin.Vector) {
	t.Helper()
	for asker, has := range map[string]bool{"c": true, "": false, "nobody": false} {
		ask := asksAs(t, n, asker)
		const table = `"table":{"schema":"shop","name":"orders","columns":["id","region","v"],"key":["region","id"]}`
		all := strconv.FormatUint(math.MaxUint64, 10)
		list := ask(stream.VerifySubject(cluster, n.Name), `{"kind":"list",`+table+`,"limit":1000,"parts":`+all+`}`)
		eu, us, asia := base64.StdEncoding.EncodeToString([]byte("eu")), base64.StdEncoding.EncodeToString([]byte("us")), base64.StdEncoding.EncodeToString([]byte("asia"))
		if strings.Contains(list, eu) || strings.Contains(list, us) != has || !strings.Contains(list, asia) {
			t.Errorf("%q is told of the rows %.300s", asker, list)
		}
		one := base64.StdEncoding.EncodeToString([]byte("1"))
		look := ask(stream.VerifySubject(cluster, n.Name), `{"kind":"look",`+table+`,"keys":[["`+eu+`","`+one+`"],["`+us+`","`+one+`"]],"cells":true}`)
		if strings.Contains(look, "EU while away") || strings.Contains(look, "US while away") != has {
			t.Errorf("%q, who looks at rows, is told %s", asker, look)
		}
		for _, kind := range []byte{'b', 'j'} { // also if it says that it joins
			got := delta(t, ask, stream.DeltaSubject(cluster, n.Name), string(wire.AppendVector([]byte{kind}, had)))
			if strings.Contains(got, "EU while away") || strings.Contains(got, "US while away") != has || !strings.Contains(got, strings.Repeat("x", 100)) {
				t.Errorf("%q is given %.1000q", asker, got)
			}
		}
	}
}

// TestJoinWithPlacedRows: a node joins from one that has all rows that it is to have, and gets no others.
func TestJoinWithPlacedRows(t *testing.T) {
	t.Parallel()
	c, settings := placedCluster(t, cluster.Options{Majors: pgtest.Versions(t)})
	a, b, x := c.Node("a"), c.Node("b"), c.Node("c")
	a.Exec(`INSERT INTO shop.orders SELECT r, i, 'a' FROM unnest('{eu,us,asia}'::text[]) r, generate_series(1, 500) i`)
	c.WaitConverged()
	settings["topology.rows"] = "shop.orders.region=eu:a b,shop.orders.region=us:a c d,shop.orders.region=*:a b c d"
	d := c.Grow()
	join := func(from string) error {
		return bridge.Join(t.Context(), d.Load(), bridge.JoinOptions{From: from, Jobs: 2, Logger: d.Logger(), Tell: func(text string) { t.Log(text) }})
	}
	const refused = "it does not have rows of shop.orders with region=us, which node d is to have (topology.rows); join from a node that has them"
	if err := join("b"); err == nil || !strings.Contains(err.Error(), refused) {
		t.Errorf("a donor without the rows: %v", err)
	}
	if err := join("a"); err != nil {
		t.Fatalf("%v\n%s", err, d.LogTail())
	}
	requirePlaced(t, d, "eu")
	d.Start()
	b.Exec(`UPDATE shop.orders SET v = 'b' WHERE id < 10`)
	x.Exec(`UPDATE shop.orders SET v = 'c' WHERE region = 'us' AND id < 10`)
	d.Exec(`UPDATE shop.orders SET v = 'd' WHERE id BETWEEN 10 AND 19`)
	d.Exec(`UPDATE shop.orders SET region = 'eu', id = 1000 WHERE region = 'asia' AND id = 20`)
	d.Exec(`DELETE FROM shop.orders WHERE region = 'eu'`) // which stays there
	c.WaitConverged()
	requirePlaced(t, d, "eu")
	if got := b.Value(`SELECT count(*) FROM shop.orders WHERE region = 'eu'`); got != "501" {
		t.Errorf("node b has %s rows", got)
	}
}

// TestSealedRowsOfATable: rows that only some nodes have go through one that has not, and nobody can read them there; nor what an update
// makes of a row that it takes away from there.
func TestSealedRowsOfATable(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 3, Keys: true, Schema: placedSchema, Config: map[string]string{"topology.rows": placedRows,
		"topology.kind": "star", "topology.center": "c", "stream.compression": "none", "capture.frame_bytes": "64KiB"}})
	a, b, x := c.Node("a"), c.Node("b"), c.Node("c")
	if _, err := os.Stat(filepath.Join(x.Keys(), "rows-a+b.key")); err == nil {
		t.Fatal("node c has the key")
	}
	together(a, `INSERT INTO shop.orders VALUES ('eu', 1, 'secret of one'), ('us', 1, 'told of one'), ('asia', 1, 'public of one')`, `INSERT INTO item VALUES (1, 'public of one')`)
	a.Exec(`INSERT INTO shop.orders SELECT 'eu', i, 'secret of many ' || i FROM generate_series(100, 3000) i`)
	a.Exec(`INSERT INTO shop.orders VALUES ('eu', 2, 'large', 'secret of ' || repeat('large ', 600000)), ('us', 2, 'large', 'told of ' || repeat('large ', 600000))`)
	together(b, `INSERT INTO item SELECT i, 'public of many ' || i FROM generate_series(100, 3000) i`,
		`INSERT INTO shop.orders SELECT 'eu', i, 'secret among them' FROM generate_series(5000, 6000) i`)
	c.WaitConverged()
	for id, by := range map[int]*cluster.Node{10: a, 20: b, 30: x} {
		a.Exec(fmt.Sprintf(`INSERT INTO shop.orders SELECT r, %d + i, 'told', 'told ' || %s FROM unnest('{eu,us,asia}'::text[]) r, generate_series(0, 2) i`, id, large("i")))
		c.WaitConverged()
		for i, move := range []struct{ from, to string }{{"us", "eu"}, {"asia", "eu"}, {"asia", "us"}, {"eu", "us"}, {"eu", "asia"}, {"us", "asia"}} {
			said := map[string]string{"eu": "secret", "us": "told", "asia": "public"}[move.to]
			by.Exec(fmt.Sprintf(`UPDATE shop.orders SET region = '%s', id = -id - %d, v = '%s of ' || id WHERE region = '%s' AND id = (SELECT min(id) FROM shop.orders WHERE region = '%[4]s' AND id BETWEEN %[5]d AND %[5]d + 9)`,
				move.to, id*100+10*i, said, move.from, id))
		}
	}
	b.Exec(`DELETE FROM shop.orders WHERE region = 'us'`) // what stays there
	x.Exec(`DELETE FROM shop.orders WHERE region = 'eu'`)
	c.WaitConverged()
	requirePlaced(t, b, "us")
	requirePlaced(t, x, "eu")

	// What users make of a row that is theirs alone is a new one, and meets none of others.
	x.Exec(`INSERT INTO shop.orders VALUES ('eu', 9000, 'of c alone')`)
	a.Exec(`INSERT INTO shop.orders VALUES ('eu', 9000, 'secret of both')`)
	c.WaitConverged()
	x.Exec(`UPDATE shop.orders SET region = 'us' WHERE region = 'eu' AND id = 9000`)
	c.WaitConverged()
	if got := a.Value(`SELECT string_agg(v, ', ' ORDER BY region) FROM shop.orders WHERE id = 9000`); got != "secret of both, of c alone" {
		t.Errorf("beside a row of c alone there are %s", got)
	}

	// What the one in the middle keeps for one that is away can be read there, but for what is sealed.
	b.Stop()
	together(a, `INSERT INTO item VALUES (7, 'public of seven')`, `INSERT INTO shop.orders VALUES ('eu', 7, 'secret of seven')`,
		`UPDATE shop.orders SET region = 'eu', id = 77, v = 'secret of asia' WHERE region = 'asia' AND id = 1`, `UPDATE shop.orders SET v = 'secret large' WHERE region = 'eu' AND id = 2`)
	x.AwaitStatus(func(*cluster.Report) bool { return stored(t, x, "public of seven") })
	if stored(t, x, "secret") {
		t.Error("what is sealed stands in the files of node c")
	}
	b.Start()
	for _, n := range []*cluster.Node{a, b} { // which read their own frames back
		n.Stop()
		n.Start()
	}
	b.Exec(`DELETE FROM shop.orders WHERE region = 'eu' AND id = 7`)
	a.Exec(`UPDATE shop.orders SET region = 'us', id = 78, v = 'told', wide = 'told' WHERE region = 'eu' AND id = 2`)
	c.WaitConverged()
	for _, n := range c.Nodes {
		if stored(t, n, "secret") {
			t.Errorf("what is sealed stands in the files of node %s", n.Name)
		}
	}
}
