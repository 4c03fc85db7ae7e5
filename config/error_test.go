package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// TestWrongFiles holds the text of each error: place, key, fault, mend. FILE stands for the path.
func TestWrongFiles(t *testing.T) {
	for _, c := range []struct{ name, yaml, want string }{
		{"unknown key", tenLines + "clutser: x\n",
			`FILE:10: clutser: unknown key; the nearest one is cluster`},
		{"unknown nested key", strings.Replace(tenLines, "dsn:", "dns:", 1),
			"FILE:4: postgres.dns: unknown key; the nearest one is postgres.dsn\n" +
				"FILE: postgres.dsn: is required (or PGBRIDGE_POSTGRES_DSN, or postgres.dsn_file): " +
				"the connection string of the local primary, such as postgres://pgbridge@/app?host=/var/run/postgresql"},
		{"unknown group", tenLines + "logging:\n  level: info\n",
			`FILE:10: logging: unknown key; the nearest one is log`},
		{"capitals", tenLines + "Tables: []\n",
			`FILE:10: Tables: unknown key; the nearest one is tables`},
		{"dotted key", tenLines + "log.level: info\n",
			`FILE:10: log.level: keys are nested; write level: below log:`},
		{"twice", tenLines + "node: b\n",
			`FILE:10: node: given twice, first on line 2; keep one`},
		{"node twice", tenLines + "    c: nats://127.0.0.1:4225\n",
			`FILE:10: topology.nodes.c: given twice, first on line 9; keep one`},
		{"value for a group", tenLines + "log: debug\n",
			`FILE:10: log: is a group of keys, not a value; write level: below it`},
		{"group for a value", tenLines + "data_dir:\n  path: /x\n",
			`FILE:11: data_dir: wants one value (text), not a list or a group`},
		{"group for a list", tenLines + "tables:\n  app: x\n",
			`FILE:11: tables: wants a list`},
		{"list for a map", "topology:\n  nodes: [a, b]\ncluster: s\nnode: a\npostgres: {dsn: host=/tmp}\n",
			`FILE:2: topology.nodes: wants names with values below it, such as a: nats://127.0.0.1:4222`},
		{"group in a list", tenLines + "tables:\n- a.b\n- {c: d}\n",
			`FILE:12: tables: wants texts in its list`},
		{"node without value", tenLines + "    d:\n",
			`FILE:10: topology.nodes.d: wants one value`},
		{"exclude without quotes", tenLines + "tables:\n- app.*\n- !app.log\n",
			`FILE:12: tables: write "!app.log" in quotes`},
		{"value with !", strings.Replace(tenLines, "node: a", "node: !a", 1),
			"FILE:2: node: write \"!a\" in quotes"},
		{"node with capitals", tenLines + "    D: nats://127.0.0.1:4225\n",
			`FILE:10: topology.nodes: "D" is not a name; use 1 to 16 of a-z, 0-9 and _`},
		{"star without quotes", tenLines + "tables:\n- *.*\n",
			`FILE:11: not YAML: did not find expected alphabetic or numeric character; a value that begins with * needs quotes, such as "*.*"`},
		{"not YAML", "cluster: shop\nnode: a: b\n",
			`FILE:2: not YAML: mapping values are not allowed in this context`},
		{"not a mapping", "- cluster\n",
			`FILE:1: the file must hold keys, such as cluster: shop`},
		{"two documents", tenLines + "---\nnode: b\n",
			`FILE:10: a second YAML document begins here; keep one`},
		{"enumeration", tenLines + "log:\n  level: loud\n",
			`FILE:11: log.level: "loud" is not allowed; use debug, info, warn or error`},
		{"duration without unit", tenLines + "capture:\n  linger: 5\n",
			`FILE:11: capture.linger: "5" is not a duration; write a number with ms, s, m, h or d, such as 5s`},
		{"duration too long", tenLines + "capture:\n  status_interval: 2m\n",
			`FILE:11: capture.status_interval: 2m is too large; the most is 30s`},
		{"size without unit", tenLines + "stream:\n  max_bytes: 1000000\n",
			`FILE:11: stream.max_bytes: "1000000" is not a size; write a whole number with B, KiB, MiB, GiB or TiB, such as 256KiB`},
		{"size too small", tenLines + "nats:\n  embedded:\n    max_payload: 64KiB\n",
			"FILE:12: nats.embedded.max_payload: 64KiB is too small; the least is 1MiB\n" +
				"FILE: capture.frame_bytes: 256KiB does not fit into nats.embedded.max_payload (64KiB) with 64KiB to spare; lower the first or raise the second"},
		{"number", tenLines + "apply:\n  batch_transactions: many\n",
			`FILE:11: apply.batch_transactions: "many" is not a whole number`},
		{"number too small", tenLines + "apply:\n  batch_transactions: 0\n",
			`FILE:11: apply.batch_transactions: 0 is too small; the least is 1`},
		{"policy", tenLines + "conflict:\n  default: first_writer_wins\n",
			`FILE:11: conflict.default: "first_writer_wins" is not allowed; use last_writer_wins`},
		{"star without center", strings.Replace(tenLines, "topology:\n", "topology:\n  kind: star\n", 1),
			`FILE: topology.center: is missing; name the node in the middle of the star, one of a, b, c`},
		{"center of another kind", strings.Replace(tenLines, "topology:\n", "topology:\n  center: a\n", 1),
			`FILE:6: topology.center: counts for a star only, and topology.kind is mesh; remove it, or write kind: star`},
		{"unknown center", strings.Replace(tenLines, "topology:\n", "topology:\n  kind: star\n  center: x\n", 1),
			`FILE:7: topology.center: "x" is not in topology.nodes; the names there are a, b, c`},
		{"no link", strings.Replace(tenLines, "topology:\n", "topology:\n  kind: graph\n  links: [a]\n", 1),
			`FILE:7: topology.links: "a" is not a link; write the names of two nodes with a hyphen between them, such as a-b`},
		{"link to nobody", strings.Replace(tenLines, "topology:\n", "topology:\n  kind: graph\n  links: [a-b, b-x]\n", 1),
			`FILE:7: topology.links: link b-x names "x", which is not in topology.nodes; the names there are a, b, c`},
		{"links of another kind", strings.Replace(tenLines, "topology:\n", "topology:\n  links: [a-b]\n", 1),
			`FILE:6: topology.links: count for a graph only, and topology.kind is mesh; remove them, or write kind: graph`},
		{"graph in parts", strings.Replace(tenLines, "topology:\n", "topology:\n  kind: graph\n  links: [a-b]\n", 1),
			`FILE:7: topology.links: no way leads from a, b to c; add a link between them`},
		{"topology", strings.Replace(tenLines, "topology:\n", "topology:\n  kind: tree\n", 1),
			`FILE:6: topology.kind: "tree" is not allowed; use mesh, ring, star or graph`},
		{"table without schema", tenLines + "tables: [\"!items\"]\n",
			`FILE:10: tables: "!items" names no schema; write "!public.items" or "!*.items"`},
		{"table pattern", tenLines + "tables: [\"app.\"]\n",
			`FILE:10: tables: "app." is not schema.table; write "app.*" for all tables of a schema`},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := write(t, "pgbridge.yaml", c.yaml)
			_, err := Load(path, nil)
			requireProblems(t, err, strings.ReplaceAll(c.want, "FILE", path))
		})
	}
}

// TestWrongTogether: each value is fine alone; overrides are laid over the ten lines.
func TestWrongTogether(t *testing.T) {
	secret := write(t, "secret", "s3cret")
	empty := write(t, "empty", "\n")
	absent := filepath.Join(t.TempDir(), "absent")
	for _, c := range []struct {
		name string
		set  map[string]string
		want string
	}{
		{"unknown key", map[string]string{"postgres.dns": "x"},
			`--set: postgres.dns: unknown key; the nearest one is postgres.dsn`},
		{"wrong value", map[string]string{"nats.embedded.sync": "never"},
			`--set: nats.embedded.sync: "never" is not allowed; use always or interval`},
		{"truth value", map[string]string{"postgres.auto_setup": "yes"},
			`--set: postgres.auto_setup: "yes" is not allowed; use true or false`},
		{"cluster name", map[string]string{"cluster": "Shop-1"},
			`--set: cluster: "Shop-1" is not a name; use 1 to 16 of a-z, 0-9 and _`},
		{"node name", map[string]string{"node": "a234567890123456x"},
			"--set: node: \"a234567890123456x\" is not a name; use 1 to 16 of a-z, 0-9 and _\n" +
				"FILE:6: topology.nodes: lacks this node, \"a234567890123456x\"; the names there are a, b, c: add it, or correct node"},
		{"node not in topology", map[string]string{"node": "d"},
			`FILE:6: topology.nodes: lacks this node, "d"; the names there are a, b, c: add it, or correct node`},
		{"other node's name", map[string]string{"topology.nodes": "a=nats://127.0.0.1:1,B=nats://127.0.0.1:2"},
			`--set: topology.nodes.B: "B" is not a name; use 1 to 16 of a-z, 0-9 and _`},
		{"too many nodes", map[string]string{"topology.nodes": manyNodes(65)},
			`--set: topology.nodes: names 65 nodes; a cluster has at most 64, since each frame says what its author had seen of each`},
		{"nodes", map[string]string{"topology.nodes": "a:4222"},
			`--set: topology.nodes: "a:4222" is not name=value; write a=nats://host:4222,b=nats://host:4222`},
		{"node twice", map[string]string{"topology.nodes": "a=nats://127.0.0.1:1,a=nats://127.0.0.1:2"},
			`--set: topology.nodes: "a" is given twice`},
		{"node URLs", map[string]string{"topology.nodes": "a=nats://127.0.0.1:1,b=http://u:pw@h,c=nats://h:99999,d=nats://:1"},
			"--set: topology.nodes.b: \"http://u:xxxxx@h\" is not the URL of a NATS server; write nats://host:4222 or tls://host:4222\n" +
				"--set: topology.nodes.c: port 99999 does not exist; use 1 to 65535\n" +
				"--set: topology.nodes.d: \"nats://:1\" is not the URL of a NATS server; write nats://host:4222 or tls://host:4222"},
		{"no nodes", map[string]string{"topology.nodes": ""},
			`--set: topology.nodes: is required (or PGBRIDGE_TOPOLOGY_NODES): Every node's name and the NATS server that holds its stream; the same on every node.`},
		{"two nodes, one embedded server", map[string]string{"topology.nodes": "a=nats://127.0.0.1:4222,b=nats://127.0.0.1"},
			`--set: topology.nodes.b: is the server inside this node's bridge ("a"); give each node its own host:port, or set nats.url to a shared server`},
		{"list of the embedded server", map[string]string{"topology.nodes": "a=nats://127.0.0.1:4222,nats://127.0.0.1:4223"},
			`--set: topology.nodes.a: is the server inside this node's bridge, which is one; give its URL alone, or set nats.url to a shared server`},
		{"lists that name the embedded server", map[string]string{"topology.nodes": "a=nats://127.0.0.1:4222,b=nats://127.0.0.1:4223,nats://127.0.0.1:4222"},
			`--set: topology.nodes.b: is the server inside this node's bridge ("a"); give each node its own host:port, or set nats.url to a shared server`},
		{"port in a list", map[string]string{"nats.url": "nats://127.0.0.1:4222,nats://127.0.0.1:99999"},
			`--set: nats.url: port 99999 does not exist; use 1 to 65535`},
		{"TLS of the embedded server", map[string]string{"topology.nodes": "a=tls://127.0.0.1:4222"},
			`--set: topology.nodes.a: the embedded server has no TLS; write nats://, or set nats.url to a server with TLS`},
		{"both brokers", map[string]string{"nats.url": "nats://127.0.0.1:1", "nats.embedded.listen": "127.0.0.1:4222"},
			`--set: nats.url: given together with nats.embedded.listen; keep nats.url for an external server, or nats.embedded.listen for the one inside`},
		{"replicas", map[string]string{"stream.replicas": "3"},
			`--set: stream.replicas: 3 takes a cluster of NATS servers, and the one inside the bridge is alone; set nats.url, or remove it`},
		{"broker URL", map[string]string{"nats.url": "127.0.0.1:4222"},
			`--set: nats.url: "127.0.0.1:4222" is not the URL of a NATS server; write nats://host:4222 or tls://host:4222`},
		{"plaintext, derived", map[string]string{"topology.nodes": "a=nats://10.0.0.1:4222"},
			`FILE: nats.embedded.listen: other machines can reach 10.0.0.1:4222 and the embedded server has no TLS; ` +
				`run pgbridge keys and set nats.keys_dir, or nats.embedded.allow_plaintext: true in a network you trust, or nats.url to a server with TLS`},
		{"plaintext, every address", map[string]string{"nats.embedded.listen": ":4222"},
			`--set: nats.embedded.listen: other machines can reach :4222 and the embedded server has no TLS; ` +
				`run pgbridge keys and set nats.keys_dir, or nats.embedded.allow_plaintext: true in a network you trust, or nats.url to a server with TLS`},
		{"listen", map[string]string{"nats.embedded.listen": "4222"},
			`--set: nats.embedded.listen: "4222" is not host:port; write an address such as 127.0.0.1:4222`},
		{"listen port", map[string]string{"http.listen": "127.0.0.1:http"},
			`--set: http.listen: "127.0.0.1:http" is not host:port; write an address such as 127.0.0.1:4222`},
		{"token without a listener", map[string]string{"http.operator_token": "sixteen-letters!"},
			`--set: http.operator_token: is for the console, which is served at http.listen, and that is empty; set http.listen: 127.0.0.1:8080, or remove the token`},
		{"collector", map[string]string{"trace.endpoint": "127.0.0.1:4318"},
			`--set: trace.endpoint: "127.0.0.1:4318" is no URL of a collector; write one such as http://127.0.0.1:4318`},
		{"short token", map[string]string{"http.listen": "127.0.0.1:8080", "http.viewer_token_file": secret},
			`--set: http.viewer_token_file: the token has 6 characters; use 16 or more, such as openssl rand -hex 24 prints`},
		{"one token for two roles", map[string]string{"http.listen": "localhost:8080", "http.viewer_token": "sixteen-letters!", "http.operator_token": "sixteen-letters!"},
			`--set: http.viewer_token: is that of operators, too, so that nobody could only look; use another one for one of the roles`},
		{"tokens for all machines", map[string]string{"http.listen": ":8080", "http.viewer_token": "sixteen-letters!"},
			`--set: http.listen: other machines can reach :8080, and tokens would go there without TLS; listen on 127.0.0.1, behind a proxy that has TLS, or set http.allow_plaintext: true in a network you trust`},
		{"two secrets", map[string]string{"postgres.dsn_file": secret},
			`--set: postgres.dsn_file: given together with postgres.dsn; keep one of them`},
		{"secret file absent", map[string]string{"postgres.dsn": "", "postgres.dsn_file": absent},
			`--set: postgres.dsn_file: open ` + absent + `: no such file or directory; name a file that the bridge can read`},
		{"secret file empty", map[string]string{"nats.token_file": empty},
			`--set: nats.token_file: ` + empty + ` is empty; write the secret into it`},
		{"token and credentials", map[string]string{"nats.token_file": secret, "nats.creds_file": "x.creds"},
			`--set: nats.creds_file: given together with a token; keep one of them`},
		{"signatures without keys", map[string]string{"stream.signatures": "require"},
			`--set: stream.signatures: require takes keys; run pgbridge keys and set nats.keys_dir`},
		{"signatures", map[string]string{"stream.signatures": "yes", "nats.keys_dir": "keys"},
			`--set: stream.signatures: "yes" is not allowed; use none, write or require`},
		{"token and keys", map[string]string{"nats.token_file": secret, "nats.keys_dir": "keys"},
			`--set: nats.keys_dir: given together with nats.creds_file or a token; keep one of them`},
		{"connection string", map[string]string{"postgres.dsn": "hunter2"},
			`--set: postgres.dsn: is not a connection string; write postgres://user@host:5432/database or host=... dbname=...`},
		{"connection URL", map[string]string{"postgres.dsn": "postgres://u:hunter%2@h/d"},
			`--set: postgres.dsn: is not a URL that can be read; write special characters of a password as %XX, or use the form host=... dbname=...`},
		{"frame above payload", map[string]string{"capture.frame_bytes": "1MiB"},
			`--set: capture.frame_bytes: 1MiB does not fit into nats.embedded.max_payload (1MiB) with 64KiB to spare; lower the first or raise the second`},
		{"stream above store", map[string]string{"nats.embedded.max_store": "1GiB"},
			`FILE: stream.max_bytes: 8GiB is more than nats.embedded.max_store (1GiB); lower the first or raise the second`},
		{"more for those away than for all", map[string]string{"stream.absent_bytes": "9GiB"},
			`--set: stream.absent_bytes: 9GiB is more than stream.max_bytes (8GiB); lower the first or raise the second`},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := write(t, "pgbridge.yaml", tenLines)
			_, err := Load(path, c.set)
			requireProblems(t, err, strings.ReplaceAll(c.want, "FILE", path))
		})
	}
}

func TestWrongEnvironment(t *testing.T) {
	t.Setenv("PGBRIDGE_POSTGRES_DNS", "x")
	t.Setenv("PGBRIDGE_LOG_LEVEL", "loud")
	_, err := Load(write(t, "pgbridge.yaml", tenLines), nil)
	requireProblems(t, err, "PGBRIDGE_POSTGRES_DNS: unknown variable; the nearest one is PGBRIDGE_POSTGRES_DSN\n"+
		`PGBRIDGE_LOG_LEVEL: log.level: "loud" is not allowed; use debug, info, warn or error`)
}

// TestNothingGiven: every missing key is told at once, with its variable.
func TestNothingGiven(t *testing.T) {
	_, err := Load("", nil)
	requireProblems(t, err, `cluster: is required (or PGBRIDGE_CLUSTER): Name of the cluster, the same on every node: 1 to 16 of a-z 0-9 _.
node: is required (or PGBRIDGE_NODE): Name of this node, another one on every node: 1 to 16 of a-z 0-9 _.
topology.nodes: is required (or PGBRIDGE_TOPOLOGY_NODES): Every node's name and the NATS server that holds its stream; the same on every node.
postgres.dsn: is required (or PGBRIDGE_POSTGRES_DSN, or postgres.dsn_file): the connection string of the local primary, such as postgres://pgbridge@/app?host=/var/run/postgresql`)
}

func TestNoFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "absent.yaml")
	_, err := Load(path, nil)
	requireProblems(t, err, "open "+path+": no such file or directory; name a readable file with --config, "+
		"or set every key by PGBRIDGE_ variables")
}

// requireProblems compares the whole text, and that the error asks for exit code 2.
func requireProblems(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want\n%s", want)
	}
	if err.Error() != want {
		t.Errorf("error is\n%s\nwant\n%s", err, want)
	}
	var coded interface{ ExitCode() int }
	if !errors.As(err, &coded) || coded.ExitCode() != 2 {
		t.Errorf("%T does not ask for exit code 2", err)
	}
}

// FuzzDocument: no text makes the reader panic, and what it keeps has a key.
func FuzzDocument(f *testing.F) {
	f.Add(tenLines)
	f.Add("tables: [\"*.*\", !app.log]\nlog: &l {level: info}\nhttp: *l\n")
	f.Add("? [a]\n: b\n<<: {cluster: x}\nnode: ~\n")
	f.Add("a: &a [*a]\n")
	f.Fuzz(func(t *testing.T, text string) {
		d := &document{path: "f", values: map[string]any{}, lines: map[string]int{}}
		d.parse(strings.NewReader(text))
		for name := range d.values {
			if _, ok := find(name); !ok && !isGroup(name) {
				t.Errorf("%q is kept", name)
			}
		}
	})
}

// manyNodes is a value of topology.nodes with n of them, a among them.
func manyNodes(n int) string {
	all := []string{"a=nats://127.0.0.1:4222"}
	for i := 1; i < n; i++ {
		all = append(all, fmt.Sprintf("n%d=nats://127.0.1.%d:4222", i, i))
	}
	return strings.Join(all, ",")
}
