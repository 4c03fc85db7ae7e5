package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// devices is a star of a hub, a reader and two edges; the node is named by the test.
const devices = `cluster: shop
postgres:
  dsn: host=/tmp dbname=app
topology:
  kind: star
  center: hub
  nodes:
    hub: nats://127.0.0.1:4222
    report: nats://127.0.0.1:4223
  roles:
    report: reader
    laptop: edge
    kiosk: edge_reader
`

// TestRoles: an edge needs no URL, is a node all the same, and its server listens nowhere.
func TestRoles(t *testing.T) {
	for _, node := range []string{"hub", "report", "laptop", "kiosk"} {
		cfg := load(t, devices, map[string]string{"node": node})
		if got := cfg.Graph().String(); got != "hub kiosk laptop report kiosk:edge_reader laptop:edge report:reader hub-kiosk hub-laptop hub-report" {
			t.Errorf("%s: %s", node, got)
		}
		edge := node == "laptop" || node == "kiosk"
		if cfg.Edge(node) != edge || (cfg.NATS.Embedded.Listen == "") != edge || cfg.Reader(node) != (node == "report" || node == "kiosk") {
			t.Errorf("%s: edge %t, reader %t, listens at %q", node, cfg.Edge(node), cfg.Reader(node), cfg.NATS.Embedded.Listen)
		}
	}
	mesh := load(t, devices, map[string]string{"node": "hub", "topology.kind": "mesh", "topology.center": ""})
	if got := mesh.Graph().String(); !strings.HasSuffix(got, " hub-kiosk hub-laptop hub-report kiosk-report laptop-report") {
		t.Errorf("mesh: %s", got)
	}
}

// TestTopologyIsTheSameForAll: the text by which nodes compare their topologies tells nothing of how each reaches the others.
func TestTopologyIsTheSameForAll(t *testing.T) {
	plain := load(t, devices, map[string]string{"node": "laptop"})
	other := load(t, devices, map[string]string{"node": "report", "topology.nodes": "hub=tls://u:pw@10.0.0.1,report=nats://127.0.0.1:5000",
		"nats.links": "hub.url=nats://10.9.9.9:1,hub.token_file=" + write(t, "token", "s3cret")})
	if a, b := plain.Graph().String(), other.Graph().String(); a != b {
		t.Errorf("%s\n%s", a, b)
	}
}

func TestWrongRoles(t *testing.T) {
	for _, c := range []struct {
		name string
		set  map[string]string
		want string
	}{
		{"unknown role", map[string]string{"topology.roles": "report=writer"},
			`--set: topology.roles.report: "writer" is not a role; use reader, edge or edge_reader`},
		{"role of nobody", map[string]string{"topology.roles": "x=reader"},
			`--set: topology.roles.x: "x" is not in topology.nodes; the names there are hub, report`},
		{"edge with a URL", map[string]string{"topology.roles": "report=edge"},
			`FILE:10: topology.nodes.report: has a URL, and is an edge, which nobody dials; remove it here, or the role from topology.roles`},
		{"edge's name", map[string]string{"topology.roles": "Lap=edge"},
			"FILE:8: topology.nodes.Lap: \"Lap\" is not a name; use 1 to 16 of a-z, 0-9 and _\n" +
				`--set: topology.roles.Lap: "Lap" is not a name; use 1 to 16 of a-z, 0-9 and _`},
		{"nobody writes", map[string]string{"topology.roles": "report=reader,hub=reader"},
			`--set: topology.roles: every node is a reader, so that nobody writes; take the role from one`},
		{"edge beside edge", map[string]string{"topology.kind": "graph", "topology.center": "", "topology.links": "hub-laptop,laptop-kiosk,hub-report"},
			`FILE:11: topology.roles: kiosk and laptop are linked, and both are edges, so that neither can dial the other one; link them through another node`},
		{"ring of edges", map[string]string{"topology.kind": "ring", "topology.center": ""},
			`FILE:11: topology.roles: kiosk and laptop are linked, and both are edges, so that neither can dial the other one; link them through another node`},
		{"nobody to dial", map[string]string{"node": "laptop", "topology.kind": "mesh", "topology.center": "", "topology.nodes": "laptop=nats://127.0.0.1:1", "topology.roles": "kiosk=edge,laptop=edge"},
			"--set: topology.nodes.laptop: has a URL, and is an edge, which nobody dials; remove it here, or the role from topology.roles\n" +
				`--set: topology.roles: no way leads from kiosk to laptop, since all nodes are edges; take the role from one, or let them have another node between them`},
		{"tables of nobody", map[string]string{"topology.writers": "app.price="},
			`--set: topology.writers: "app.price=" is not schema.table=nodes; write it like "shop.price=a b"`},
		{"tables of one node", map[string]string{"topology.residency": "app.price=hub"},
			`--set: topology.residency: "app.price=hub" names one node, and what only one has is not replicated; name two at least, or exclude it under tables there`},
		{"tables at a node twice", map[string]string{"topology.residency": "app.price=hub hub"},
			`--set: topology.residency: "hub" is twice in "app.price=hub hub"; keep one`},
		{"tables that are excluded", map[string]string{"topology.residency": "!app.price=hub report"},
			`--set: topology.residency: "!app.price=hub report" is not schema.table=nodes; write it like "shop.price=a b"`},
		{"tables at a node that is none", map[string]string{"topology.residency": "app.price=hub x"},
			`--set: topology.residency: "x" in "app.price=hub x" is not in topology.nodes; the names there are hub, kiosk, laptop, report`},
		{"rows of no column", map[string]string{"topology.rows": "app.item=eu:hub report"},
			`--set: topology.rows: "app.item=eu:hub report" is not schema.table.column=value:nodes; write it like "shop.orders.region=eu:a b"`},
		{"rows of several tables", map[string]string{"topology.rows": "app.*.region=eu:hub report"},
			`--set: topology.rows: "app.*.region=eu:hub report" is not schema.table.column=value:nodes; write it like "shop.orders.region=eu:a b"`},
		{"rows at one node", map[string]string{"topology.rows": "app.item.region=eu:hub"},
			`--set: topology.rows: "app.item.region=eu:hub" names one node, and what only one has is not replicated; name two at least`},
		{"rows at a node that is none", map[string]string{"topology.rows": "app.item.region=eu:hub x"},
			`--set: topology.rows: "x" in "app.item.region=eu:hub x" is not in topology.nodes; the names there are hub, kiosk, laptop, report`},
		{"rows by two columns", map[string]string{"topology.rows": "app.item.region=eu:hub report,app.item.part=1:hub report"},
			`--set: topology.rows: "app.item.part=1:hub report" goes by column part, and another line for table app.item by region; one column decides where a row is`},
		{"rows of a value twice", map[string]string{"topology.rows": "app.item.region=eu:hub report,app.item.region=eu:hub kiosk"},
			`--set: topology.rows: value "eu" of app.item.region is given twice; keep one`},
		{"rows of a table that not all have", map[string]string{"topology.rows": "app.item.region=eu:hub report", "topology.residency": "app.i?em*=hub kiosk"},
			`--set: topology.rows: table app.item is in topology.residency, too ("app.i?em*=hub kiosk"); leave it out there, and say here which nodes have its rows, with * for other values`},
		{"rows of a table that is merged", map[string]string{"topology.rows": "app.item.region=eu:hub report", "conflict.tables": "*.item: n=delta"},
			`--set: topology.rows: table app.item is merged (conflict.tables, "*.item"), which only nodes can do that have all of its rows; take it out of one of the two`},
		{"rows with a policy for orphans", map[string]string{"topology.rows": "app.item.region=eu:hub report", "conflict.foreign_keys": "app.item.x=keep,app.*.*=restore"},
			`--set: topology.rows: table app.item has a policy for orphans (conflict.foreign_keys, "app.*.*=restore"), which only a node can follow that has all of its rows; take it out of one of the two`},
		{"columns of no table", map[string]string{"topology.columns": "item.n=hub report"},
			`--set: topology.columns: "item.n=hub report" is not schema.table.column=nodes; write it like "shop.customers.email=a b"`},
		{"columns of several tables", map[string]string{"topology.columns": "app.*.n=hub report"},
			`--set: topology.columns: "app.*.n=hub report" is not schema.table.column=nodes; write it like "shop.customers.email=a b"`},
		{"columns at no node", map[string]string{"topology.columns": "app.item.n="},
			`--set: topology.columns: "app.item.n=" is not schema.table.column=nodes; write it like "shop.customers.email=a b"`},
		{"column at one node", map[string]string{"topology.columns": "app.item.n=hub", "conflict.tables": "*.item: n=delta"},
			`--set: topology.columns: "app.item.n=hub" names one node, and what only one has is not replicated; name two at least`},
		{"column at a node that is none", map[string]string{"topology.columns": "app.item.n=hub x", "conflict.tables": "*.item: n=delta"},
			`--set: topology.columns: "x" in "app.item.n=hub x" is not in topology.nodes; the names there are hub, kiosk, laptop, report`},
		{"column twice", map[string]string{"topology.columns": "app.item.n=hub report,app.item.n=hub kiosk", "conflict.tables": "*.item: n=delta"},
			`--set: topology.columns: app.item.n is given twice; keep one`},
		{"column of a table whose rows win whole", map[string]string{"topology.columns": "app.item.n=hub report", "conflict.tables": "*.other: n=delta"},
			`--set: topology.columns: table app.item is not merged, so that the later write of a row wins as a whole, and nodes without column n could not decide alike; ` +
				`give the table an entry in conflict.tables with a rule for the column, such as last_writer_wins`},
		{"column without a rule", map[string]string{"topology.columns": "app.item.n=hub report", "conflict.tables": "app.item: other=delta; *.item: n=delta"},
			`--set: topology.columns: column n of table app.item has no rule of its own in conflict.tables ("app.item"), so that it is decided together with columns that all nodes have; ` +
				`give it one there, such as last_writer_wins`},
		{"column in a group", map[string]string{"topology.columns": "app.item.n=hub report,app.item.v=report hub kiosk", "conflict.tables": `*.item: (n, v)=last_writer_wins`},
			`--set: topology.columns: column n of table app.item is decided together with column v (conflict.tables, "*.item"), which is on other nodes; name the same ones for both, or let each have a rule of its own
--set: topology.columns: column v of table app.item is decided together with column n (conflict.tables, "*.item"), which is on other nodes; name the same ones for both, or let each have a rule of its own`},
		{"column of a table that not all have", map[string]string{"topology.columns": "app.item.n=hub report", "conflict.tables": "*.item: n=delta", "topology.residency": "app.*=hub report"},
			`--set: topology.columns: table app.item is in topology.residency, too ("app.*=hub report"); take it out of one of the two`},
		{"column that names homes", map[string]string{"topology.columns": "app.item.n=hub report", "conflict.tables": `*.item: "*"=last_writer_wins`, "conflict.home": "*.item=n"},
			`--set: topology.columns: column n of table app.item names the home of its rows (conflict.home, "*.item=n"), which all nodes must know; take it out of one of the two`},
		{"writers of no table", map[string]string{"topology.writers": "price=hub"},
			`--set: topology.writers: "price=hub" is not schema.table=nodes; write it like "shop.price=a b"`},
		{"writers of a table twice", map[string]string{"topology.writers": "app.price=hub,app.price=laptop"},
			`--set: topology.writers: "app.price" is given twice; keep one`},
		{"writer that is no node", map[string]string{"topology.writers": "app.price=hub x"},
			`--set: topology.writers: "x" in "app.price=hub x" is not in topology.nodes; the names there are hub, kiosk, laptop, report`},
		{"writer that is a reader", map[string]string{"topology.writers": "app.price=report"},
			`--set: topology.writers: "report" in "app.price=report" is a reader (topology.roles), whose users do not write; leave it out`},
		{"edge's own server", map[string]string{"node": "laptop", "nats.url": "nats://127.0.0.1:1"},
			`--set: nats.url: is not for an edge, whose stream is in the server inside its bridge; remove it`},
		{"edge that listens", map[string]string{"node": "laptop", "nats.embedded.listen": "127.0.0.1:1"},
			`--set: nats.embedded.listen: is not for an edge, whose server listens nowhere; remove it`},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := write(t, "pgbridge.yaml", "node: hub\n"+devices)
			_, err := Load(path, c.set)
			requireProblems(t, err, strings.ReplaceAll(c.want, "FILE", path))
		})
	}
}

// TestLinks: each node has its own way to each other one, from the file as from the environment.
func TestLinks(t *testing.T) {
	pw, token := write(t, "pw", "hunter2\n"), write(t, "token", "hunter2")
	file := load(t, tenLines+"nats:\n  links:\n    b: {url: \"nats://u:hunter2@10.9.0.2:4222\", user: me, password_file: "+pw+"}\n    c:\n      token_file: "+token+"\n", nil)
	want := map[string]Access{"b": {URL: "nats://u:hunter2@10.9.0.2:4222", User: "me", PasswordFile: pw, Password: "hunter2"}, "c": {TokenFile: token, Token: "hunter2"}}
	if !reflect.DeepEqual(file.NATS.Links, want) {
		t.Errorf("%+v", file.NATS.Links)
	}
	if text := file.String(); strings.Contains(text, "hunter2") || !strings.Contains(text, "b.url=nats://u:xxxxx@10.9.0.2:4222") {
		t.Errorf("secrets show:\n%s", text)
	}
	if a := file.Redacted().NATS.Links["b"]; a.Password != hidden || file.NATS.Links["b"].Password != "hunter2" {
		t.Error("a password shows, or the original was changed")
	}
}

// TestWrongLinks: each fault names the link, the file and the mend.
func TestWrongLinks(t *testing.T) {
	secret, empty, absent := write(t, "secret", "s3cret"), write(t, "empty", "\n"), filepath.Join(t.TempDir(), "absent")
	for _, c := range []struct{ name, links, want string }{
		{"nobody's", "x: {token_file: " + secret + "}", `FILE:12: nats.links.x: "x" is not in topology.nodes; the names there are a, b, c`},
		{"own", "a: {token_file: " + secret + "}", `FILE:12: nats.links.a: is this node, whose server is inside its bridge; remove the entry, or set nats.url`},
		{"unknown", "b: {password: x}", `FILE:12: nats.links.b: "password" is unknown here; use url, creds_file, nkey_file, user, password_file, token_file, ca_file, cert_file or key_file`},
		{"no settings", "b: secret", `FILE:12: nats.links.b: wants settings below it, such as creds_file: /etc/pgbridge/b.creds`},
		{"no value", "b: {user: }", `FILE:12: nats.links.b.user: wants one value`},
		{"twice", "b: {user: x, user: y}", `FILE:12: nats.links.b.user: given twice; keep one`},
		{"name", "B: {user: x}", `FILE:12: nats.links: "B" is not a name; use 1 to 16 of a-z, 0-9 and _`},
		{"URL", "b: {url: \"http://h\"}", `FILE:12: nats.links.b.url: "http://h" is not the URL of a NATS server; write nats://host:4222 or tls://host:4222`},
		{"two kinds", "b: {token_file: SECRET, nkey_file: SECRET}", `FILE:12: nats.links.b.nkey_file: given together with token_file; keep one of them`},
		{"no password", "b: {user: me}", `FILE:12: nats.links.b.user: given without password_file; give both`},
		{"no user", "b: {password_file: SECRET}", `FILE:12: nats.links.b.password_file: given without user; give both`},
		{"no key", "b: {cert_file: SECRET}", `FILE:12: nats.links.b.cert_file: given without key_file; give both`},
		{"password absent", "b: {user: me, password_file: ABSENT}", `FILE:12: nats.links.b.password_file: open ABSENT: no such file or directory; name a file that the bridge can read`},
		{"token empty", "b: {token_file: EMPTY}", `FILE:12: nats.links.b.token_file: EMPTY is empty; write the secret into it`},
		{"credentials absent", "b: {creds_file: ABSENT}", `FILE:12: nats.links.b.creds_file: open ABSENT: no such file or directory; name a file that the bridge can read`},
		{"authority absent", "b: {ca_file: ABSENT}", `FILE:12: nats.links.b.ca_file: open ABSENT: no such file or directory; name a file that the bridge can read`},
		{"no authority", "b: {ca_file: SECRET}", `FILE:12: nats.links.b.ca_file: SECRET holds no certificate; write the certificate of the authority into it, as PEM`},
		{"no certificate", "b: {cert_file: SECRET, key_file: SECRET}",
			`FILE:12: nats.links.b.cert_file: tls: failed to find any PEM data in certificate input; name this node's certificate, and its key as key_file, both as PEM`},
		{"not nodes", "[b]", `FILE:11: nats.links: wants nodes with settings below them, such as b: {creds_file: /etc/pgbridge/b.creds}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			names := strings.NewReplacer("SECRET", secret, "EMPTY", empty, "ABSENT", absent)
			text := "nats:\n  links:\n    " + names.Replace(c.links) + "\n"
			if c.name == "not nodes" {
				text = "nats:\n  links: [b]\n"
			}
			path := write(t, "pgbridge.yaml", tenLines+text)
			_, err := Load(path, nil)
			requireProblems(t, err, strings.ReplaceAll(names.Replace(c.want), "FILE", path))
		})
	}
	for set, want := range map[string]string{
		"b.creds=x": `--set: nats.links: "b.creds" is unknown; write a node and one of url, creds_file, nkey_file, user, password_file, token_file, ca_file, cert_file or key_file, such as b.creds_file=/etc/pgbridge/b.creds`,
		"b=x":       `--set: nats.links: "b" is unknown; write a node and one of url, creds_file, nkey_file, user, password_file, token_file, ca_file, cert_file or key_file, such as b.creds_file=/etc/pgbridge/b.creds`,
	} {
		_, err := Load(write(t, "pgbridge.yaml", tenLines), map[string]string{"nats.links": set})
		requireProblems(t, err, want)
	}
	_, err := Load(write(t, "pgbridge.yaml", "node: hub\n"+devices), map[string]string{"nats.links": "laptop.url=nats://h"})
	requireProblems(t, err, `--set: nats.links.laptop: is an edge, which nobody dials; what comes through its own connection needs neither url nor certificates: remove them`)
	if os.Getuid() != 0 { // root reads every file
		locked := write(t, "locked", "x")
		if err := os.Chmod(locked, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(write(t, "pgbridge.yaml", tenLines), map[string]string{"nats.links": "b.token_file=" + locked}); err == nil {
			t.Error("a file that cannot be read is taken")
		}
	}
}
