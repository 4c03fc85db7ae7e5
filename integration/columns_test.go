package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// columnSchema is a merged table of which the values of email, and of the two columns of a group, are on a and b alone.
const columnSchema = `
	CREATE SCHEMA shop;
	CREATE TABLE shop.customers (id int PRIMARY KEY, name text, email text, street text, town text, visits int);
	ALTER TABLE shop.customers REPLICA IDENTITY FULL;
	CREATE TABLE item (id int PRIMARY KEY, v text)`

const placedColumns = "shop.customers.email=a b,shop.customers.street=b a,shop.customers.town=a b"

func columnCluster(t *testing.T, o cluster.Options, deletes string) (*cluster.Cluster, map[string]string) {
	o.Config = map[string]string{"topology.columns": placedColumns, "capture.frame_bytes": "64KiB",
		"conflict.tables": `shop.customers: email=last_writer_wins, (street, town)=last_writer_wins, visits=delta, .deletes=` + deletes}
	o.Nodes, o.Schema = 3, columnSchema
	return cluster.New(t, o), o.Config
}

// requireNoColumns fails if a node has values that are not for it, in whatever table.
func requireNoColumns(t *testing.T, n *cluster.Node) {
	t.Helper()
	for _, sql := range []string{`SELECT count(*) FROM shop.customers WHERE num_nulls(email, street, town) < 3`,
		`SELECT count(*) FROM pgbridge.conflict c WHERE to_jsonb(c)::text LIKE '%secret%'`,
		`SELECT count(*) FROM pgbridge.journal j WHERE position('secret'::bytea IN ops) > 0 OR position('secret'::bytea IN image) > 0`,
		`SELECT count(*) FROM pgbridge.journal_base j WHERE position('secret'::bytea IN cells) > 0`} {
		if got := n.Value(sql); got != "0" {
			t.Errorf("node %s: "+sql+" gives %s", n.Name, got)
		}
	}
}

// requireCustomers fails unless a node has these rows, of which the columns are told that are not NULL.
func requireCustomers(t *testing.T, n *cluster.Node, columns, want string) {
	t.Helper()
	if got := n.Value(`SELECT COALESCE(string_agg(concat_ws(' ', ` + columns + `), ', ' ORDER BY id), '') FROM shop.customers`); got != want {
		t.Errorf("node %s has %s, want %s", n.Name, got, want)
	}
}

const (
	ofAll  = `id, name, visits`
	ofSome = ofAll + `, email, street, town`
)

// TestColumns: the values of a column are where topology.columns says, and all else is everywhere, however it is written, and whatever
// concurrent writes come to.
func TestColumns(t *testing.T) {
	t.Parallel()
	c, _ := columnCluster(t, cluster.Options{Majors: pgtest.Versions(t)}, "update_wins")
	a, b, x := c.Node("a"), c.Node("b"), c.Node("c")
	together(a, `INSERT INTO shop.customers VALUES (1, 'Ann', 'secret@a', 'secret st', 'secret town', 1), (2, 'Bob', 'secret@b', NULL, NULL, 1), (3, 'Cid', NULL, NULL, NULL, 1)`,
		`INSERT INTO item VALUES (1, 'a')`)
	c.WaitConverged()
	together(b, `INSERT INTO shop.customers SELECT i, 'bulk', 'secret' || i, repeat('secret', 200), 'x', 0 FROM generate_series(1000, 3000) i`, `DELETE FROM shop.customers WHERE id > 1500`)
	x.Exec(`UPDATE shop.customers SET visits = visits + 1`)
	c.WaitConverged()
	requireNoColumns(t, x)
	for _, n := range []*cluster.Node{a, b} {
		if got := n.Value(`SELECT count(DISTINCT email) FROM shop.customers WHERE street = repeat('secret', 200)`); got != "501" {
			t.Errorf("node %s has %s addresses", n.Name, got)
		}
		n.Await(`SELECT count(*) FROM shop.customers WHERE id > 10`, "501")
	}
	b.Exec(`DELETE FROM shop.customers WHERE id > 10`)
	c.WaitConverged()

	// Beside each other: the values at two nodes, other columns at those that lack them, deletes that lose to either, and one that wins.
	a.Exec(`INSERT INTO shop.customers VALUES (4, 'Dan', 'secret@d', NULL, NULL, 1), (5, 'Eve', 'secret@e', NULL, NULL, 1)`)
	c.WaitConverged()
	apart := func(do func()) {
		t.Helper()
		var heal []func()
		for _, n := range c.Nodes {
			heal = append(heal, isolate(c, n.Name))
		}
		do()
		for _, h := range heal {
			h()
		}
		c.WaitConverged()
	}
	apart(func() {
		a.Exec(`UPDATE shop.customers SET email = 'secret of a' WHERE id IN (1, 3, 4)`)
		a.Exec(`UPDATE shop.customers SET visits = visits + 10 WHERE id = 1`)
		x.Exec(`UPDATE shop.customers SET name = name || ' of c', visits = visits + 100 WHERE id IN (1, 2)`)
		x.Exec(`DELETE FROM shop.customers WHERE id IN (4, 5)`)
		b.Exec(`UPDATE shop.customers SET email = 'secret of b', street = 'secret of b' WHERE id IN (1, 2)`)
		b.Exec(`DELETE FROM shop.customers WHERE id = 2`)
	})
	for _, n := range []*cluster.Node{a, b} {
		requireCustomers(t, n, ofSome, `1 Ann of c 112 secret of b secret of b secret town, 2 Bob of c 102 secret of b secret of b, 3 Cid 2 secret of a, 4 Dan 1 secret of a`)
	}
	requireCustomers(t, x, ofAll, `1 Ann of c 112, 2 Bob of c 102, 3 Cid 2, 4 Dan 1`)
	requireNoColumns(t, x)

	// What users write at a node that is not to have a value stays there, what they leave alone stays elsewhere, and their rows have none.
	x.Exec(`UPDATE shop.customers SET email = 'of c', visits = visits + 1 WHERE id = 1`)
	x.Exec(`UPDATE shop.customers SET email = 'of c' WHERE id = 3`)
	x.Exec(`INSERT INTO shop.customers VALUES (6, 'Fay', 'of c', 'of c', 'of c', 1)`)
	x.Exec(`UPDATE shop.customers SET id = 7 WHERE id = 4`)
	c.WaitConverged()
	b.Exec(`UPDATE shop.customers SET email = email || ', b' WHERE id < 6`)
	a.Exec(`UPDATE shop.customers SET name = 'a' WHERE id IN (1, 3, 6)`)
	c.WaitConverged()
	for _, n := range []*cluster.Node{a, b} {
		requireCustomers(t, n, ofSome, `1 a 113 secret of b, b secret of b secret town, 2 Bob of c 102 secret of b, b secret of b, 3 a 2 secret of a, b, 6 a 1, 7 Dan 1`)
	}
	requireCustomers(t, x, ofSome, `1 a 113 of c, 2 Bob of c 102, 3 a 2 of c, 6 a 1 of c of c of c, 7 Dan 1`)
	if n := strings.Count(x.LogTail(), "a value is written here into a column whose values are for other nodes"); n < 1 {
		t.Errorf("node c does not say that its users have written others' values\n%s", x.LogTail())
	}
	// And takes no part in what others write of it at the same time.
	apart(func() {
		a.Exec(`UPDATE shop.customers SET email = 'secret of a' WHERE id = 1`)
		x.Exec(`UPDATE shop.customers SET email = 'later, of c' WHERE id = 1`)
		x.Exec(`UPDATE shop.customers SET email = 'later, of c', visits = 5 WHERE id = 2`)
		b.Exec(`DELETE FROM shop.customers WHERE id = 2`)
	})
	for _, n := range []*cluster.Node{a, b} {
		requireCustomers(t, n, ofSome, `1 a 113 secret of a secret of b secret town, 2 Bob of c 5 secret of b, b secret of b, 3 a 2 secret of a, b, 6 a 1, 7 Dan 1`)
	}
	requireCustomers(t, x, ofAll, `1 a 113, 2 Bob of c 5, 3 a 2, 6 a 1, 7 Dan 1`)
	b.Exec(`TRUNCATE shop.customers`)
	c.WaitConverged()
	x.Exec(`INSERT INTO shop.customers (id, name) VALUES (1, 'behind')`)
	c.WaitConverged()
	for _, n := range c.Nodes {
		requireCustomers(t, n, ofSome, "1 behind")
	}
}

// TestColumnsWithConstraints: where what is merged violates a constraint, the latest row stands as a whole, but for values of which its author knows
// nothing.
func TestColumnsWithConstraints(t *testing.T) {
	t.Parallel()
	c, _ := columnCluster(t, cluster.Options{}, "last_writer_wins")
	a, b, x := c.Node("a"), c.Node("b"), c.Node("c")
	for _, n := range c.Nodes {
		n.Exec(`ALTER TABLE shop.customers ADD CHECK (visits <= 10)`)
	}
	a.Exec(`INSERT INTO shop.customers SELECT i, 'old', 'secret', 'secret', 'secret', 0 FROM generate_series(1, 2) i`)
	c.WaitConverged()
	for i, later := range []*cluster.Node{x, b} {
		var heal []func()
		for _, n := range c.Nodes {
			heal = append(heal, isolate(c, n.Name))
		}
		a.Exec(fmt.Sprintf(`UPDATE shop.customers SET email = 'secret of a', visits = visits + 6 WHERE id = %d`, i+1))
		later.Exec(fmt.Sprintf(`UPDATE shop.customers SET name = 'later', visits = visits + 7 WHERE id = %d`, i+1))
		for _, h := range heal {
			h()
		}
		c.WaitConverged()
	}
	for _, n := range []*cluster.Node{a, b} {
		requireCustomers(t, n, ofSome, "1 later 7 secret of a secret secret, 2 later 7 secret of a secret secret")
	}
	requireCustomers(t, x, ofSome, "1 later 7, 2 later 7")
}

// TestSealedColumns: the values go through a node that is not to have them, and nobody can read them there, in large transactions and rows neither; and
// all nodes decide alike what they cannot all read.
func TestSealedColumns(t *testing.T) {
	t.Parallel()
	config := map[string]string{"topology.columns": placedColumns, "topology.kind": "star", "topology.center": "c", "stream.compression": "none", "capture.frame_bytes": "64KiB",
		"conflict.tables": `shop.customers: email=text_merge, (street, town)=last_writer_wins, visits=delta`}
	c := cluster.New(t, cluster.Options{Nodes: 3, Keys: true, Schema: columnSchema, Config: config, Own: true, Settings: map[string]string{"logical_decoding_work_mem": "64kB"}})
	a, b, x := c.Node("a"), c.Node("b"), c.Node("c")
	if _, err := os.Stat(filepath.Join(x.Keys(), "rows-a+b.key")); err == nil {
		t.Fatal("node c has the key")
	}
	const wide = `'secret of ' || repeat('large ', 600000)`
	together(a, `INSERT INTO shop.customers VALUES (1, 'public of one', 'secret of one', NULL, 'secret', 1)`, `INSERT INTO item VALUES (1, 'public of one')`)
	together(b, `INSERT INTO item SELECT i, 'public of many ' || i FROM generate_series(100, 3000) i`,
		`INSERT INTO shop.customers SELECT i, 'public among them', 'secret among them' FROM generate_series(5000, 6000) i`)
	a.Exec(`INSERT INTO shop.customers SELECT i, 'public', 'secret of many ' || i, repeat('secret ', 500), NULL, 1 FROM generate_series(10, 200) i`)
	a.Exec(`INSERT INTO shop.customers VALUES (2, 'large', 'secret', ` + wide + `, 'secret', 1)`)
	c.WaitConverged()
	a.Exec(`UPDATE shop.customers SET name = 'still large', visits = 5 WHERE id = 2`) // leaves the large one where it is
	x.Exec(`UPDATE shop.customers SET visits = visits + 1 WHERE id < 200`)
	c.WaitConverged()
	b.Exec(`UPDATE shop.customers SET street = street || ' secret, still', email = 'secret of two' WHERE id = 2`)
	c.WaitConverged()
	a.Exec(`DELETE FROM shop.customers WHERE id > 10`)
	c.WaitConverged()
	for _, n := range []*cluster.Node{a, b} {
		n.Await(`SELECT name || visits || email FROM shop.customers WHERE street = `+wide+` || ' secret, still'`, "still large6secret of two")
	}
	requireNoColumns(t, x)

	// What users of c write is theirs to read, and nobody's.
	x.Exec(`UPDATE shop.customers SET email = 'of c alone', name = 'public of c' WHERE id = 1`)
	x.Exec(`INSERT INTO shop.customers VALUES (3, 'public of c', 'of c alone')`)
	c.WaitConverged()
	for _, n := range []*cluster.Node{a, b} {
		requireCustomers(t, n, ofAll+", email, town", `1 public of c 2 secret of one secret, 2 still large 6 secret of two secret, 3 public of c, 10 public 2 secret of many 10`)
		if stored(t, n, "of c alone") {
			t.Errorf("what users of c have written stands in the files of node %s", n.Name)
		}
	}
	requireCustomers(t, x, ofSome, `1 public of c 2 of c alone, 2 still large 6, 3 public of c of c alone, 10 public 2`)

	// What the one in the middle keeps for one that is away, and what is written beside each other meanwhile.
	b.Stop()
	together(a, `INSERT INTO item VALUES (7, 'public of seven')`, `UPDATE shop.customers SET email = 'very secret of one' WHERE id = 1`)
	x.AwaitStatus(func(*cluster.Report) bool { return stored(t, x, "public of seven") })
	x.Exec(`UPDATE shop.customers SET visits = visits + 10 WHERE id = 1`)
	b.Exec(`UPDATE shop.customers SET email = 'secret of one, only', visits = visits + 100 WHERE id = 1`)
	b.Start()
	c.WaitConverged()
	for _, n := range []*cluster.Node{a, b} { // which read their own frames back
		n.Stop()
		n.Start()
	}
	b.Exec(`DELETE FROM shop.customers WHERE id IN (2, 3, 10)`)
	c.WaitConverged()
	for _, n := range []*cluster.Node{a, b} {
		requireCustomers(t, n, ofSome, `1 public of c 112 very secret of one, only secret`)
	}
	for _, n := range c.Nodes {
		if stored(t, n, "secret") {
			t.Errorf("what is sealed stands in the files of node %s", n.Name)
		}
	}
}
