package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
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
