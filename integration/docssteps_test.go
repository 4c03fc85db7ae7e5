package integration

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
)

// notRun are the commands that are not run here, and why.
var notRun = map[string]string{
	// To have the program, the package, the image.
	"git clone https://github.com/pgbridge/pgbridge": "this is a copy of it",
	"cd pgbridge":                                                   "as above",
	"go build ./cmd/pgbridge":                                       "cluster.Binary does that",
	"go test ./integration -run TestPitfalls":                       "is a test of this package",
	"sudo dpkg -i build/pgbridge_*.deb":                             "needs root and a machine without pgbridge: make deb-test does it there",
	"sudo install -m 0640 -g pgbridge pgbridge.yaml /etc/pgbridge/": "as above",
	"sudo systemctl enable --now pgbridge":                          "as above",
	"docker compose up --build":                                     "needs docker: TestComposeServicesRunAsProcesses runs what it would start",
	`docker compose exec pg-a psql -U postgres app -c "INSERT INTO notes (text) VALUES ('from a')"`: "as above",
	`docker compose exec pg-b psql -U postgres app -c "SELECT * FROM notes"`:                        "as above",

	// Of other programs.
	"umask 077": "nothing of ours: TestConsole has tokens of its own",
	"openssl rand -hex 24 > /etc/pgbridge/viewer":                        "as above",
	"openssl rand -hex 24 > /etc/pgbridge/operator":                      "as above",
	"go tool pprof http://127.0.0.1:8080/debug/pprof/profile?seconds=30": "wants half a minute: TestHTTP asks for profiles",
	"go tool pprof http://127.0.0.1:8080/debug/pprof/heap":               "as above",

	// With servers of their own.
	"pgbridge demo":        "TestDemo plays it",
	"pgbridge demo --keep": "goes on for ever: TestInterruptLeavesNothing ends it",

	// For other servers than this cluster has.
	"SELECT FROM pg_replication_slots WHERE slot_name = 'pgb_<cluster>_<node>' AND synced AND NOT temporary": "is for a standby: awaitStandby asks it",
	"-- at a": "TestMigrateFromNative runs it", "-- at b": "as above", "pgbridge node join --config b.yaml --from a --existing": "as above",
	"SELECT pg_drop_replication_slot(...)": "is for a base backup that was promoted: TestJoinWithRows",
}

// docsSteps are for what wants more than to be run as it stands, in the order in which a document shows it.
var docsSteps = []docStep{
	{doc: "README.md", text: "pgbridge run --config paris.yaml", instead: func(d *docs) {
		for _, n := range d.Nodes {
			n.Start()
		}
		d.WaitConverged()
	}},
	{doc: "conflicts.md", text: "ALTER TABLE app.stock REPLICA IDENTITY FULL;", on: "all"},
	{doc: "conflicts.md", text: "pgbridge orphans --config pgbridge.yaml", before: writtenApart, exit: 3, says: "id=1"},
	{doc: "conflicts.md", text: "pgbridge orphans --config pgbridge.yaml --table 'shop.*' --fix delete --dry-run", exit: 3, says: "DELETE FROM"},
	{doc: "conflicts.md", text: "pgbridge orphans --config pgbridge.yaml --table 'shop.*' --fix delete", says: "mended: 1"},
	{doc: "consistency.md", text: "token=$(pgbridge token --config paris.yaml)"},
	{doc: "consistency.md", text: `pgbridge wait --config tokyo.yaml --for "$token" && psql -h tokyo ...`, before: func(d *docs) []string {
		return []string{"$token", d.token(), " && psql -h tokyo ...", ""}
	}},
	{doc: "consistency.md", text: "pgbridge wait --for TOKEN [--timeout 30s]", on: "b", before: func(d *docs) []string {
		return []string{"TOKEN", d.token(), "[", "", "]", ""}
	}},
	{doc: "consistency.md", text: "SELECT pgbridge.wait('TOKEN', '5 s')", on: "b", says: "t", before: func(d *docs) []string { return []string{"TOKEN", d.token()} }},
	{doc: "control.md", text: `pgbridge pause --origin b --reason "looks wrong since 10:00" --config a.yaml`, says: "node b is paused at node a"},
	{doc: "control.md", text: "pgbridge pause --list --config a.yaml", says: "looks wrong since 10:00"},
	{doc: "control.md", text: "pgbridge reload --config a.yaml", says: "apply.rate: 0 -> 4MiB\nlog.level: info -> debug",
		before: func(d *docs) []string { d.configure("apply: {rate: 4MiB}\nlog: {level: debug}\n"); return nil }},
	{doc: "control.md", text: "pgbridge reload --config a.yaml", exit: 1,
		says: "tables: read when the bridge starts; restart it to have what the file says now. Nothing was changed, apply.rate neither",
		before: func(d *docs) []string {
			d.configure("apply: {rate: 8MiB}\nlog: {level: debug}\ntables: [\"app.*\"]\n")
			return nil
		},
		after: func(d *docs) { d.configure("") }},
	{doc: "ddl.md", text: `pgbridge ddl "ALTER TABLE app.items ADD COLUMN price numeric" --config b.yaml`, says: "schema changed here",
		after: func(d *docs) { d.schema = append(d.schema, "ALTER TABLE app.items ADD COLUMN price numeric") }},
	{doc: "ddl.md", text: "SELECT pgbridge.ddl('ALTER TABLE …')", before: func(d *docs) []string {
		d.schema = append(d.schema, "ALTER TABLE app.items ADD COLUMN size int")
		return []string{"ALTER TABLE …", "ALTER TABLE app.items ADD COLUMN size int"}
	}},
	{doc: "ddl.md", text: "pgbridge ddl --done a:17", on: "b", after: func(d *docs) { d.WaitConverged() }, before: func(d *docs) []string {
		const change = "ALTER TABLE app.items ADD COLUMN note text"
		d.b.Exec(change)
		ddl(d.a, change)
		d.schema = append(d.schema, change)
		name, _, _ := strings.Cut(waitsFor(d.b, "a", "pgbridge ddl --done "), " ")
		return []string{"a:17", name}
	}},
	{doc: "ddl.md", text: "pgbridge ddl --automatic on --config b.yaml", says: "travel by themselves", after: func(d *docs) {
		if got := d.b.Value(`SELECT count(*) FROM pg_event_trigger`); got != "3" {
			d.t.Errorf("node b has %s event triggers", got)
		}
		if err := bridge.AutomaticSchema(d.t.Context(), d.b.Load(), false); err != nil {
			d.t.Error(err)
		}
	}},
	{doc: "ddl.md", text: "pgbridge ddl --list", says: "ADD COLUMN note text"},
	{doc: "demo.md", text: "pgbridge conflicts undo 1", before: lost("1"), says: "is what it was before it lost"},
	{doc: "doctor.md", text: "pgbridge doctor --config pgbridge.yaml", exit: 3, says: "probe: read from the WAL after\nerror sequence-collides: \non this server:"},
	{doc: "doctor.md", text: "pgbridge top", before: func(*docs) []string { return []string{"top", "top --once"} }},
	{doc: "history.md", text: "pgbridge conflicts list --config pgbridge.yaml", says: "shop.accounts"},
	{doc: "history.md", text: "pgbridge conflicts show --config pgbridge.yaml 99", before: lost("99"), says: "neither had seen the other's write"},
	{doc: "history.md", text: "pgbridge conflicts undo --config pgbridge.yaml 99", before: lost("99"), says: "is what it was before it lost"},
	{doc: "history.md", text: "pgbridge conflicts undo --config pgbridge.yaml 99 --dry-run", before: lost("99"), says: "COMMIT;"},
	{doc: "history.md", text: "GRANT USAGE ON SCHEMA pgbridge TO ann;", before: func(d *docs) []string {
		d.a.Exec("CREATE ROLE ann LOGIN")
		d.t.Cleanup(func() { d.a.Exec("DROP OWNED BY ann; DROP ROLE ann") })
		return nil
	}, after: func(d *docs) {
		id := d.a.Value(notUndone)
		if out := d.ask("conflicts", "undo", id, "--set", "postgres.dsn="+d.a.DSN+"&user=ann"); !strings.Contains(out, "is what it was before it lost") {
			d.t.Errorf("to undo as ann says\n%s", out)
		}
	}},
	{doc: "install.md", text: "pgbridge run --config pgbridge.yaml", instead: func(d *docs) { d.a.Stop(); d.a.Start() }},
	{doc: "join.md", text: "pgbridge node join --config d.yaml --from a", last: true,
		says: "waits until all nodes have what was committed before\nall rows are copied; checks them\ntakes in what came meanwhile\ncatches up\nnode d has joined cluster",
		before: func(d *docs) []string {
			joins := d.Grow()
			for _, change := range d.schema {
				joins.Exec(change)
			}
			return nil
		},
		after: func(d *docs) { d.Node("d").Start(); d.WaitConverged() }},
	{doc: "join.md", text: "pgbridge node leave --config d.yaml", last: true, says: "keeps writers out\nends its bridge\ntells the others\nnode d has left cluster",
		after: func(d *docs) { d.Node("d").AwaitEnd(); d.Nodes = d.Nodes[:3] }},
	{doc: "join.md", text: "pgbridge node remove d --config a.yaml", last: true, says: "node d is removed from cluster",
		before: func(d *docs) []string { // d has left, so c dies
			d.z.Stop()
			d.Nodes = d.Nodes[:2]
			for _, n := range d.Nodes {
				n.AwaitStatus(func(r *cluster.Report) bool { return alarmed(r, "node-unreached") })
			}
			return []string{"remove d", "remove c", "node d", "node c"}
		}},
	{doc: "parked.md", text: "pgbridge parked list --config b.yaml", says: "23514", before: func(d *docs) []string {
		d.b.Exec(`ALTER TABLE item ADD CONSTRAINT small CHECK (v < 100)`)
		d.a.Exec(`INSERT INTO item VALUES (1, 1000)`)
		d.a.Exec(`INSERT INTO item VALUES (2, 2000)`)
		awaitParked(d.b, 2)
		return nil
	}},
	{doc: "parked.md", text: "pgbridge parked show a:17 --config b.yaml", before: parkedFirst, says: "1000"},
	{doc: "parked.md", text: "pgbridge parked retry a:17", on: "b", before: func(d *docs) []string {
		d.b.Exec(`ALTER TABLE item DROP CONSTRAINT small, ADD CONSTRAINT small CHECK (v < 1500)`)
		return parkedFirst(d)
	}},
	{doc: "parked.md", text: "pgbridge parked discard a:17", on: "b", before: parkedFirst, after: func(d *docs) {
		d.b.Await(`SELECT count(*) FROM pgbridge.parked`, "0")
		d.b.Exec(`ALTER TABLE item DROP CONSTRAINT small`)
		d.b.Exec(`INSERT INTO item VALUES (2, 2)`) // which is later, and ends the difference
		d.WaitConverged()
	}},
	{doc: "restore.md", text: "pgbridge node restored --config b.yaml", says: "will be brought back: start its bridge", before: func(d *docs) []string {
		slot := d.b.Status().Slot.Slot
		d.b.Stop()
		d.b.Exec(`SELECT pg_drop_replication_slot($1)`, slot)
		return nil
	}},
	{doc: "restore.md", text: "pgbridge run --config b.yaml", instead: func(d *docs) { d.b.Start(); d.WaitConverged() }},
	{doc: "sequences.md", text: "pgbridge sequences plan --config pgbridge.yaml", says: `ALTER SEQUENCE "app"."item_id_seq" INCREMENT BY 16 START WITH 16 RESTART WITH `},
	{doc: "sequences.md", text: `-- column id of table "app"."item": values of this node leave 1 when divided by 16`, on: "b"},
	{doc: "sequences.md", text: "pgbridge sequences plan --ids time", says: "pgbridge.time_id()"},
	{doc: "sequences.md", text: "pgbridge sequences plan --ids uuid", says: "uuidv7()"},
	{doc: "unique.md", text: "SELECT schema, name, constraint_name, origin, since, json_object(columns, image) AS row", says: "ann@example.com"},
	{doc: "unique.md", text: "SELECT r.* FROM pgbridge.quarantine q,", says: "1|ann@example.com"},
	{doc: "unique.md", text: "pgbridge conflicts list --config pgbridge.yaml --kind unique", says: "app.users", after: func(d *docs) {
		d.a.Exec(`DELETE FROM app.users WHERE id = 2`)
		for _, n := range d.Nodes {
			n.Await(`SELECT count(*) FROM pgbridge.quarantine`, "0")
		}
	}},
	{doc: "verify.md", text: "pgbridge verify --config a.yaml", exit: 3, says: "shop.items, row id=97: differs\nshop.items, row id=98: differs\n(no row)\npgbridge: 2 rows differ", before: func(d *docs) []string {
		d.a.Exec(`INSERT INTO shop.items VALUES (97, 'chair', 10), (98, 'desk', 7.50)`)
		d.WaitConverged()
		plant(d.t, d.Name, d.b, `UPDATE shop.items SET name = NULL WHERE id = 97`, `DELETE FROM shop.items WHERE id = 98`)
		return nil
	}},
	{doc: "verify.md", text: "pgbridge conflicts list --kind repair", on: "b", says: "shop.items"},
}

// docsSchema has the tables of the documents.
const docsSchema = `
CREATE SCHEMA app;
CREATE TABLE app.stock (id int PRIMARY KEY, quantity int);
CREATE TABLE app.items (id int PRIMARY KEY, name text);
CREATE TABLE app.item (id serial PRIMARY KEY, v text);
CREATE TABLE app.log (id bigserial PRIMARY KEY, v text);
CREATE TABLE app.users (id int PRIMARY KEY, email text UNIQUE);
CREATE SCHEMA shop;
CREATE TABLE shop.accounts (id int PRIMARY KEY, owner text, city text);
CREATE TABLE shop.notes (id uuid PRIMARY KEY, v text);
CREATE TABLE shop.items (id int PRIMARY KEY, name text, price numeric);
CREATE TABLE shop.client (id int PRIMARY KEY);
CREATE TABLE shop.bill (id int PRIMARY KEY, client int REFERENCES shop.client);
CREATE TABLE item (id int PRIMARY KEY, v int);
`

// newDocs makes three nodes, whose bridges do not run yet.
func newDocs(t *testing.T) *docs {
	c := cluster.New(t, cluster.Options{Processes: true, Idle: true, Schema: docsSchema, Config: map[string]string{"topology.failover_after": failoverAfter.String()}})
	return &docs{Cluster: c, t: t, a: c.Node("a"), b: c.Node("b"), z: c.Node("c"), dir: t.TempDir()}
}

// writtenApart has nodes a and b write the same without hearing of each other: conflicts, a row without a parent, a value twice.
func writtenApart(d *docs) []string {
	d.a.Exec(`INSERT INTO shop.accounts SELECT i, 'shared ' || i, 'Rome' FROM generate_series(1, 6) i; INSERT INTO shop.client VALUES (1)`)
	d.WaitConverged()
	cutAll(d.Cluster)
	d.a.Exec(`UPDATE shop.accounts SET city = 'Delhi'; DELETE FROM shop.client; INSERT INTO app.users VALUES (1, 'ann@example.com')`)
	d.b.Exec(`UPDATE shop.accounts SET city = 'Oslo'; INSERT INTO shop.bill VALUES (1, 1); INSERT INTO app.users VALUES (2, 'ann@example.com')`)
	healAll(d.Cluster)
	d.WaitConverged()
	return nil
}

// notUndone is a conflict that can be undone.
const notUndone = `SELECT max(id) FROM pgbridge.conflict WHERE relation = 'shop.accounts' AND undone_at IS NULL`

// lost has a number stand for one at node a.
func lost(number string) func(*docs) []string {
	return func(d *docs) []string { return []string{" " + number, " " + d.a.Value(notUndone)} }
}

// parkedFirst has a:17 stand for the first transaction that is parked at node b.
func parkedFirst(d *docs) []string {
	return []string{"a:17", "a:" + d.b.Value(`SELECT min(seq) FROM pgbridge.parked`)}
}

// token is one of node a.
func (d *docs) token() string { return strings.TrimSpace(d.ask("token")) }

// ask runs a command at node a.
func (d *docs) ask(args ...string) string {
	d.t.Helper()
	out, err := exec.Command(cluster.Binary(d.t), append(args, "--config", d.a.File)...).CombinedOutput()
	if err != nil {
		d.t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

// configure lets the file of node a say more than it did at the beginning.
func (d *docs) configure(more string) {
	d.t.Helper()
	d.WriteConfig()
	file, err := os.OpenFile(d.a.File, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	defer file.Close()
	if _, err := fmt.Fprint(file, more); err != nil {
		d.t.Fatal(err)
	}
}
