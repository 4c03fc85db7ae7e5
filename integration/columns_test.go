package integration

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/doctor"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/wire"
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

// TestColumnsAreGivenToWhomTheyAreFor: a node that was away is given what came meanwhile, of the values that it has; nodes are compared by those that
// both have; and nobody is told of others.
func TestColumnsAreGivenToWhomTheyAreFor(t *testing.T) {
	t.Parallel()
	c, _ := columnCluster(t, cluster.Options{Majors: pgtest.Versions(t)}, "last_writer_wins")
	a, b, x := c.Node("a"), c.Node("b"), c.Node("c")
	for _, n := range c.Nodes { // so that rows as their authors left them are kept, too
		n.Exec(`ALTER TABLE shop.customers ADD CHECK (visits < 1000000)`)
	}
	a.Exec(`INSERT INTO shop.customers SELECT i, 'first', 'secret first', 'secret', 'secret', 0 FROM generate_series(1, 50) i`)
	x.Exec(`INSERT INTO shop.customers VALUES (100, 'of c', 'of c alone')`)
	c.WaitConverged()
	for _, n := range c.Nodes { // so that what comes now begins with the rows as they are
		n.Await(`SELECT count(*) FROM pgbridge.journal`, "0")
	}
	had := vectorAt(t, x)
	had.Merge(vectorAt(t, a))
	heal := isolate(c, "c")
	together(a, `UPDATE shop.customers SET email = 'secret while away', visits = visits + 1 WHERE id < 9`, `DELETE FROM shop.customers WHERE id = 20`,
		`INSERT INTO shop.customers VALUES (51, 'while away', 'secret while away', 'secret', NULL, 1)`, `UPDATE shop.customers SET name = 'while away' WHERE id = 100`)
	b.Exec(`UPDATE shop.customers SET street = 'secret while away', visits = visits + 10 WHERE id < 5`)
	together(x, `UPDATE shop.customers SET name = 'c meanwhile', visits = visits + 100 WHERE id < 3`, `UPDATE shop.customers SET email = 'of c alone' WHERE id = 4`)
	a.Exec(`INSERT INTO item SELECT i, repeat('x', 100) FROM generate_series(3000, 5000) i`) // several frames, of which the last one stays
	awaitSame(a, b, `SELECT count(*), sum(hashtext(item::text)) FROM item`, `SELECT count(*), sum(hashtext(o::text)) FROM shop.customers o`)
	requireKeptColumns(t, c.Name, a, had)
	a.Purge()
	b.Purge()
	heal()
	c.WaitConverged()
	if got := resyncs(t, x); got != 1 {
		t.Errorf("node c has been given what it lacked %d times", got)
	}
	requireColumnsAlone := func() {
		t.Helper()
		if got := x.Value(`SELECT string_agg(id || email, ', ' ORDER BY id) FROM shop.customers WHERE num_nulls(email, street, town) < 3`); got != "4of c alone, 100of c alone" {
			t.Errorf("node c has %s", got)
		}
	}
	requireColumnsAlone()
	for _, n := range []*cluster.Node{a, b} {
		if got := n.Value(`SELECT string_agg(concat_ws(' ', id, name, visits, email, street), ', ' ORDER BY id) FROM shop.customers WHERE id IN (1, 4, 8, 9, 20, 51, 100)`); got !=
			"1 c meanwhile 111 secret while away secret while away, 4 first 11 secret while away secret while away, 8 first 1 secret while away secret, 9 first 0 secret first secret, 51 while away 1 secret while away secret, 100 while away" {
			t.Errorf("node %s has %s", n.Name, got)
		}
	}
	heal = isolate(c, "a")
	b.Exec(`UPDATE shop.customers SET email = 'secret while a is away', visits = visits + 1`)
	x.Exec(`UPDATE shop.customers SET name = 'while a is away', email = 'of c alone' WHERE id IN (4, 100)`)
	b.Exec(`INSERT INTO item SELECT i, repeat('x', 100) FROM generate_series(6000, 7900) i`)
	x.Exec(`INSERT INTO item SELECT i, repeat('x', 100) FROM generate_series(8000, 9900) i`)
	awaitSame(b, x, `SELECT count(*), sum(hashtext(item::text)) FROM item`)
	b.Purge()
	x.Purge()
	heal()
	c.WaitConverged()
	if got := resyncs(t, a); got != 1 {
		t.Errorf("node a has been given what it lacked %d times", got)
	}
	if got := a.Value(`SELECT count(*) FROM shop.customers WHERE email = 'secret while a is away'`); got != "51" {
		t.Errorf("node a has %s of the values", got)
	}
	requireColumnsAlone()

	// Compared.
	a.AwaitStatus(func(r *cluster.Report) bool { return r.Capture.State == capture.StateStreaming }) // it starts anew
	plant(t, c.Name, b, `UPDATE shop.customers SET email = 'planted' WHERE id = 1`, `UPDATE shop.customers SET name = 'planted', town = 'planted' WHERE id = 2`,
		`DELETE FROM shop.customers WHERE id = 3`)
	plant(t, c.Name, x, `UPDATE shop.customers SET name = 'planted' WHERE id = 4`, `UPDATE shop.customers SET street = 'planted' WHERE id = 5`)
	for _, y := range []struct {
		at   *cluster.Node
		o    bridge.VerifyOptions
		want string
	}{
		{a, bridge.VerifyOptions{}, "id=1, id=2, id=3, id=4"}, {a, bridge.VerifyOptions{Nodes: []string{"b"}}, "id=1, id=2, id=3"}, {b, bridge.VerifyOptions{Nodes: []string{"a"}}, "id=1, id=2, id=3"},
		{x, bridge.VerifyOptions{}, "id=2, id=3, id=4"}, {x, bridge.VerifyOptions{Nodes: []string{"a"}}, "id=4"},
	} {
		y.o.Table = "shop.customers"
		r := verify(t, y.at, y.o)
		if got := strings.ReplaceAll(strings.Join(differing(r), ", "), "shop.customers ", ""); got != y.want || r.Differences != strings.Count(y.want, "id") {
			t.Errorf("compared at %s with %v, there differ %s", y.at.Name, y.o.Nodes, got)
		}
		if rows := y.at.Value(`SELECT count(*) FROM shop.customers`); len(r.Tables) != 1 || fmt.Sprint(r.Rows) != rows || fmt.Sprint(r.Tables[0].Rows) != rows {
			t.Errorf("compared at %s with %v: %+v, of %s rows", y.at.Name, y.o.Nodes, r, rows)
		}
	}
	r, err := bridge.Verify(t.Context(), a.Load(), bridge.VerifyOptions{Table: "shop.*", Nodes: []string{"c"}}, func(bridge.VerifyProgress) {})
	if err != nil || len(r.Skipped) != 1 || !strings.Contains(r.Skipped[0].Reason, "on other nodes than those that are asked about") || r.Differences != 1 {
		t.Errorf("compared with c alone: %+v, %v", r, err)
	}
}

// requireKeptColumns fails if a node tells another one, or somebody whom it does not know, of values that are not for them; b is told.
func requireKeptColumns(t *testing.T, cluster string, n *cluster.Node, had origin.Vector) {
	t.Helper()
	for asker, has := range map[string]bool{"b": true, "c": false, "": false, "nobody": false} {
		ask := asksAs(t, n, asker)
		if got := ask(stream.VerifySubject(cluster, n.Name), `{"kind":"tables"}`); strings.Contains(got, "email") != has || !strings.Contains(got, "visits") {
			t.Errorf("%q is told of the tables %s", asker, got)
		}
		one := base64.StdEncoding.EncodeToString([]byte("1"))
		for _, columns := range []string{`"email","id"`, `"id","name","visits"`} {
			q := `"table":{"schema":"shop","name":"customers","columns":[` + columns + `],"key":["id"]}`
			list := ask(stream.VerifySubject(cluster, n.Name), `{"kind":"list",`+q+`,"limit":10,"parts":1}`)
			look := ask(stream.VerifySubject(cluster, n.Name), `{"kind":"look",`+q+`,"keys":[["`+one+`"]],"cells":true}`)
			withheld := strings.Contains(columns, "email") && !has
			const says = `is not for node`
			if strings.Contains(list, says) != withheld || strings.Contains(look, says) != withheld || strings.Contains(look, "secret") != has {
				t.Errorf("%q, who asks for %s, is told %s, %s", asker, columns, list, look)
			}
		}
		for _, kind := range []byte{'b', 'j'} { // also if it says that it joins
			got := delta(t, ask, stream.DeltaSubject(cluster, n.Name), string(wire.AppendVector([]byte{kind}, had)))
			if strings.Contains(got, "secret") != has || strings.Contains(got, "of c alone") || !strings.Contains(got, "while away") || !strings.Contains(got, strings.Repeat("x", 100)) {
				t.Errorf("%q is given %.3000q", asker, got)
			}
		}
	}
}

// TestJoinWithColumns: a node joins from one that has all values that it is to have, and gets no others.
func TestJoinWithColumns(t *testing.T) {
	t.Parallel()
	for _, has := range []bool{true, false} {
		t.Run(fmt.Sprint(has), func(t *testing.T) {
			t.Parallel()
			c, settings := columnCluster(t, cluster.Options{Majors: pgtest.Versions(t)}, "last_writer_wins")
			a, b, x := c.Node("a"), c.Node("b"), c.Node("c")
			a.Exec(`INSERT INTO shop.customers SELECT i, 'a', 'secret', 'secret', 'secret', 0 FROM generate_series(1, 500) i`)
			c.WaitConverged()
			x.Exec(`UPDATE shop.customers SET email = 'of c alone', visits = visits + 1 WHERE id = 1`)
			if has {
				settings["topology.columns"] = "shop.customers.email=a b d,shop.customers.street=b d a,shop.customers.town=a b d"
			}
			d := c.Grow()
			heal := isolate(c, "b") // so that not all have seen what others write, and the journal has it
			join := func(from string) error {
				return bridge.Join(t.Context(), d.Load(), bridge.JoinOptions{From: from, Jobs: 2, Logger: d.Logger(), Tell: func(text string) { t.Log(text) }})
			}
			a.Exec(`UPDATE shop.customers SET email = 'secret still', name = 'still', visits = visits + 10 WHERE id BETWEEN 2 AND 4`)
			b.Exec(`UPDATE shop.customers SET email = 'secret of b', visits = visits + 100 WHERE id BETWEEN 2 AND 3`)
			awaitSame(a, x, `SELECT name FROM shop.customers WHERE id = 2`)
			heal()
			const refused = "it does not have column email of shop.customers, which node d is to have (topology.columns); join from a node that has them"
			if err := join("c"); has == (err == nil) || has && !strings.Contains(err.Error(), refused) {
				t.Errorf("a donor without the column: %v", err)
			}
			if has {
				if err := join("a"); err != nil {
					t.Fatalf("%v\n%s", err, d.LogTail())
				}
			}
			d.Start()
			d.Exec(`UPDATE shop.customers SET name = 'd', email = 'of d' WHERE id = 5`)
			b.Exec(`UPDATE shop.customers SET email = 'secret of b, too' WHERE id = 6`)
			d.Exec(`INSERT INTO shop.customers VALUES (501, 'd', 'of d')`)
			c.WaitConverged()
			requireNoColumnsBut := func(n *cluster.Node, want string) {
				t.Helper()
				if got := n.Value(`SELECT COALESCE(string_agg(id || email, ', ' ORDER BY id), '') FROM shop.customers WHERE num_nulls(email, street, town) < 3`); got != want {
					t.Errorf("node %s has %s, want %s", n.Name, got, want)
				}
			}
			requireNoColumnsBut(x, "1of c alone")
			if !has {
				requireNoColumnsBut(d, "5of d, 501of d")
			}
			const want = `2 still 110 secret of b, 3 still 110 secret of b, 4 still 10 secret still, 6 a 0 secret of b, too`
			if got := a.Value(`SELECT string_agg(concat_ws(' ', id, name, visits, email), ', ' ORDER BY id) FROM shop.customers WHERE id IN (2, 3, 4, 6)`); got != want {
				t.Errorf("node a has %s", got)
			}
		})
	}
}

// TestColumnsThatAreRefused: when a bridge starts.
func TestColumnsThatAreRefused(t *testing.T) {
	t.Parallel()
	c, _ := columnCluster(t, cluster.Options{}, "last_writer_wins")
	a := c.Node("a")
	a.Exec(`INSERT INTO shop.customers VALUES (1, 'Ann', 'secret')`)
	c.WaitConverged()
	a.Stop()
	a.Exec(`ALTER TABLE shop.customers ALTER email SET NOT NULL`)
	const refused = `"shop"."customers" has column "email", whose values only some nodes have (topology.columns), that is NOT NULL, and to be NULL on others`
	if err := bridge.Run(t.Context(), a.Load(), bridge.Options{Logger: a.Logger()}); err == nil || !strings.Contains(err.Error(), refused) {
		t.Errorf("a bridge starts: %v", err)
	}
	x, err := bridge.Doctor(t.Context(), a.Load())
	if err != nil || !slices.ContainsFunc(x.Findings, func(f doctor.Finding) bool {
		return f.Code == capture.CodeTableColumns && strings.Contains(f.Text, `"email"`)
	}) {
		t.Errorf("doctor finds %+v, %v", x, err)
	}
}
