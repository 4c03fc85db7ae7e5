package config

import (
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// tenLines is all that a node with a local primary and an embedded broker needs.
const tenLines = `cluster: shop
node: a
postgres:
  dsn: postgres://pgbridge@/app?host=/var/run/postgresql
topology:
  nodes:
    a: nats://127.0.0.1:4222
    b: nats://127.0.0.1:4223
    c: nats://127.0.0.1:4224
`

// write puts text into a file of its own and returns its path.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// load loads text as a file and requires that nothing is wrong with it.
func load(t *testing.T, text string, overrides map[string]string) *Config {
	t.Helper()
	cfg, err := Load(write(t, "pgbridge.yaml", text), overrides)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestTenLinesAreEnough(t *testing.T) {
	if n := strings.Count(tenLines, "\n"); n > 10 {
		t.Fatalf("%d lines", n)
	}
	got := load(t, tenLines, nil)
	want := &Config{
		Cluster: "shop", Node: "a", Mode: "live", DataDir: "/var/lib/pgbridge/a", Tables: []string{"*.*"}, ShutdownTimeout: 10 * time.Second,
		Postgres: Postgres{DSN: "postgres://pgbridge@/app?host=/var/run/postgresql", AutoSetup: true},
		Topology: Topology{Kind: "mesh", FailoverAfter: 10 * time.Second, Nodes: map[string]string{
			"a": "nats://127.0.0.1:4222", "b": "nats://127.0.0.1:4223", "c": "nats://127.0.0.1:4224"}},
		NATS:    NATS{Embedded: Embedded{Listen: "127.0.0.1:4222", Sync: "always", MaxStore: 10 * GiB, MaxPayload: MiB}},
		Stream:  Stream{MaxBytes: 8 * GiB, AbsentBytes: 4 * GiB, Compression: "none", Signatures: SignaturesNone},
		Capture: Capture{FrameBytes: 256 * KiB, Linger: 5 * time.Millisecond, StatusInterval: 10 * time.Second},
		Apply: Apply{BatchTransactions: 256, BatchBytes: MiB, Ahead: true, ConflictRetention: 30 * 24 * time.Hour, ConflictRows: 1_000_000,
			SpoolLimit: 10 * GiB, MaxClockSkew: time.Minute},
		Conflict: Conflict{Default: "last_writer_wins"},
		Verify:   Verify{RowsPerSecond: 2000},
		Tracing:  Tracing{OneIn: 1000},
		Log:      Log{Level: "info", Format: "text"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	if err := got.Validate(); err != nil {
		t.Errorf("what Load accepts, Validate refuses: %v", err)
	}
}

func TestOverrideBeatsEnvironmentBeatsFile(t *testing.T) {
	text := tenLines + "log:\n  level: debug\n  format: json\nshutdown_timeout: 3s\n"
	t.Setenv("PGBRIDGE_LOG_FORMAT", "text")
	t.Setenv("PGBRIDGE_SHUTDOWN_TIMEOUT", "4s")
	t.Setenv("PGBRIDGE_HTTP_LISTEN", "") // counts as not set
	cfg := load(t, text, map[string]string{"shutdown_timeout": "5s"})
	if cfg.Log.Level != "debug" || cfg.Log.Format != "text" || cfg.ShutdownTimeout != 5*time.Second || cfg.HTTP.Listen != "" {
		t.Errorf("%+v %v %+v", cfg.Log, cfg.ShutdownTimeout, cfg.HTTP)
	}
}

// TestEveryKeyFromEnvironment: a container needs no file, and each key has its variable.
func TestEveryKeyFromEnvironment(t *testing.T) {
	token := write(t, "token", "s3cret\n")
	viewer := write(t, "viewer", "viewers-may-look-on\n")
	values := map[string]string{
		"cluster": "shop", "node": "b", "mode": "shadow", "data_dir": "/data", "tables": "app.*, !app.log", "shutdown_timeout": "7s",
		"postgres.dsn": "host=/tmp dbname=app", "postgres.auto_setup": "false", "postgres.failover": "true",
		"topology.kind": "graph", "topology.links": "a-b", "topology.failover_after": "3s", "topology.nodes": "a=nats://10.0.0.1:4222,b=nats://10.0.0.2:4222", "topology.roles": "a=reader", "topology.writers": "app.price=b, hr.*=b", "topology.residency": "app.case=a b, crm.*=a b", "topology.rows": "app.bill.region=eu: a b, app.bill.region=*:b a", "topology.columns": "app.doc.body=a b",
		"nats.embedded.listen": "0.0.0.0:4222", "nats.embedded.allow_plaintext": "true", "nats.embedded.sync": "interval",
		"nats.embedded.max_store": "1GiB", "nats.embedded.max_payload": "2MiB", "nats.token_file": token,
		"nats.links":       "a.url=nats://10.9.0.1:4222, a.user=me, a.password_file=" + token,
		"stream.max_bytes": "512MiB", "stream.absent_bytes": "0", "stream.replicas": "1", "stream.compression": "zstd",
		"capture.frame_bytes": "1MiB", "capture.linger": "1ms", "capture.status_interval": "2s",
		"apply.batch_transactions": "3", "apply.batch_bytes": "2MiB", "apply.ahead": "false", "apply.rate": "3MiB", "apply.yield_at": "9", "apply.conflict_retention": "1d", "apply.conflict_rows": "4",
		"apply.spool_limit": "5GiB", "apply.max_clock_skew": "6s", "conflict.default": "last_writer_wins",
		"conflict.priority": "b, a", "conflict.tables": "app.stock: n=delta, .deletes=update_wins; app.doc: body=text_merge",
		"conflict.foreign_keys": "app.item.*=restore, app.*.fk=keep",
		"conflict.home":         "app.item=region", "conflict.home_nodes": "eu=a, us=b",
		"verify.every": "6h", "verify.rows_per_second": "70",
		"http.listen": "127.0.0.1:8080", "http.viewer_token_file": viewer, "http.operator_token": "operators-may-act", "http.allow_plaintext": "true", "http.pprof": "true", "trace.endpoint": "http://10.0.0.9:4318", "trace.one_in": "5", "log.level": "warn", "log.format": "json",
	}
	elsewhere := map[string]bool{"postgres.dsn_file": true, "topology.center": true, "nats.token": true, "nats.url": true, "nats.creds_file": true, "nats.keys_dir": true, "stream.signatures": true,
		"http.viewer_token": true, "http.operator_token_file": true}
	for _, k := range keys() {
		if values[k.name] == "" && !elsewhere[k.name] {
			t.Errorf("%s is not tried", k.name)
		}
		t.Setenv(k.env(), values[k.name])
	}
	cfg, err := Load("", nil)
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Cluster: "shop", Node: "b", Mode: "shadow", DataDir: "/data", Tables: []string{"app.*", "!app.log"}, ShutdownTimeout: 7 * time.Second,
		Postgres: Postgres{DSN: "host=/tmp dbname=app", Failover: true},
		Topology: Topology{Kind: "graph", Links: []string{"a-b"}, FailoverAfter: 3 * time.Second, Nodes: map[string]string{"a": "nats://10.0.0.1:4222", "b": "nats://10.0.0.2:4222"},
			Roles: map[string]string{"a": "reader"}, Writers: []string{"app.price=b", "hr.*=b"}, Residency: []string{"app.case=a b", "crm.*=a b"}, Rows: []string{"app.bill.region=eu: a b", "app.bill.region=*:b a"}, Columns: []string{"app.doc.body=a b"}},
		NATS: NATS{Embedded: Embedded{Listen: "0.0.0.0:4222", Sync: "interval", MaxStore: GiB, MaxPayload: 2 * MiB, AllowPlaintext: true},
			Token: "s3cret", TokenFile: token,
			Links: map[string]Access{"a": {URL: "nats://10.9.0.1:4222", User: "me", Password: "s3cret", PasswordFile: token}}},
		Stream:  Stream{MaxBytes: 512 * MiB, Replicas: 1, Compression: "zstd", Signatures: SignaturesNone},
		Capture: Capture{FrameBytes: MiB, Linger: time.Millisecond, StatusInterval: 2 * time.Second},
		Apply: Apply{BatchTransactions: 3, BatchBytes: 2 * MiB, YieldAt: 9, Rate: 3 * MiB, ConflictRetention: 24 * time.Hour, ConflictRows: 4,
			SpoolLimit: 5 * GiB, MaxClockSkew: 6 * time.Second},
		Conflict: Conflict{Default: "last_writer_wins", Priority: []string{"b", "a"}, Tables: []TablePolicy{
			{Match: "app.stock", Deletes: "update_wins", Columns: []ColumnPolicy{{Names: []string{"n"}, Policy: "delta"}}},
			{Match: "app.doc", Columns: []ColumnPolicy{{Names: []string{"body"}, Policy: "text_merge"}}}}, ForeignKeys: []string{"app.item.*=restore", "app.*.fk=keep"},
			Home: []string{"app.item=region"}, HomeNodes: []string{"eu=a", "us=b"}},
		Verify: Verify{Every: 6 * time.Hour, RowsPerSecond: 70},
		HTTP: HTTP{Listen: "127.0.0.1:8080", ViewerToken: "viewers-may-look-on", ViewerTokenFile: viewer, OperatorToken: "operators-may-act",
			AllowPlaintext: true, Pprof: true},
		Tracing: Tracing{Endpoint: "http://10.0.0.9:4318", OneIn: 5},
		Log:     Log{Level: "warn", Format: "json"},
	}
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("got\n%+v\nwant\n%+v", *cfg, *want)
	}
}

func TestExternalBroker(t *testing.T) {
	cfg := load(t, tenLines+"nats:\n  url: tls://nats.example.com\n  creds_file: /etc/pgbridge/a.creds\n", map[string]string{
		"topology.nodes":      "a=tls://nats.example.com,b=tls://nats.example.com", // one server may hold several streams
		"capture.frame_bytes": "4MiB",                                              // its limits are its own
		"stream.max_bytes":    "1TiB",
	})
	if cfg.Embedded() || cfg.NATS.Embedded.Listen != "" || cfg.NATS.CredsFile != "/etc/pgbridge/a.creds" {
		t.Errorf("%+v", cfg.NATS)
	}
}

// TestLoopbackNeedsNoPermission: only other machines are kept out of a plaintext listener.
func TestLoopbackNeedsNoPermission(t *testing.T) {
	for _, listen := range []string{"localhost:4222", "127.0.0.9:0", "[::1]:4222"} {
		if cfg := load(t, tenLines, map[string]string{"nats.embedded.listen": listen}); cfg.NATS.Embedded.Listen != listen {
			t.Errorf("listens on %q; want %q", cfg.NATS.Embedded.Listen, listen)
		}
	}
}

func TestSecretsFromFiles(t *testing.T) {
	dsn := write(t, "dsn", "postgres://u:pw@127.0.0.1/app\n")
	text := strings.Replace(tenLines, "dsn: postgres://pgbridge@/app?host=/var/run/postgresql", "dsn_file: "+dsn, 1)
	if cfg := load(t, text, nil); cfg.Postgres.DSN != "postgres://u:pw@127.0.0.1/app" || cfg.Postgres.DSNFile != dsn {
		t.Errorf("%+v", cfg.Postgres)
	}
}

// TestTextsStayAsWritten: YAML would make a number or a truth value of these.
func TestTextsStayAsWritten(t *testing.T) {
	text := strings.NewReplacer("cluster: shop", "cluster: 007", "node: a", "node: no", "    a: nats", "    no: nats").Replace(tenLines)
	if cfg := load(t, text, nil); cfg.Cluster != "007" || cfg.Node != "no" {
		t.Errorf("cluster %q, node %q", cfg.Cluster, cfg.Node)
	}
}

func TestExcludesAloneMeanAllOthers(t *testing.T) {
	cfg := load(t, tenLines+"tables: [\"!app.log\"]\n", nil)
	if want := []string{"*.*", "!app.log"}; !reflect.DeepEqual(cfg.Tables, want) {
		t.Errorf("tables %q; want %q", cfg.Tables, want)
	}
}

// TestTablesOfOtherNodesAreExcluded: only where a node is not named.
func TestTablesOfOtherNodesAreExcluded(t *testing.T) {
	for list, want := range map[string][]string{
		"crm.*=b c":                  {"*.*", "!crm.*"},
		"crm.*=b a":                  {"*.*"},
		"crm.*=a b, crm.secret=b c":  {"*.*", "!crm.secret"},
		"x.*=c b, crm.secret = b  c": {"*.*", "!x.*", "!crm.secret"},
	} {
		t.Setenv("PGBRIDGE_TOPOLOGY_RESIDENCY", list)
		if cfg := load(t, tenLines, nil); !reflect.DeepEqual(cfg.Tables, want) {
			t.Errorf("%s: tables %q; want %q", list, cfg.Tables, want)
		}
	}
}

// TestForeignVariables: Kubernetes and Docker set these for a service named pgbridge or pgbridge-nats.
func TestForeignVariables(t *testing.T) {
	for _, name := range []string{"PGBRIDGE_TEST_PG", "PGBRIDGE_SERVICE_HOST", "PGBRIDGE_SERVICE_PORT", "PGBRIDGE_SERVICE_PORT_NATS",
		"PGBRIDGE_PORT", "PGBRIDGE_PORT_4222_TCP", "PGBRIDGE_PORT_4222_TCP_ADDR", "PGBRIDGE_NATS_SERVICE_HOST", "PGBRIDGE_NATS_PORT_4222_TCP_PORT"} {
		t.Setenv(name, "tcp://10.0.0.1:4222")
	}
	load(t, tenLines, nil)
}

// TestListsOfURLs: the servers of one NATS cluster stand with commas between, also where a map of nodes is one text.
func TestListsOfURLs(t *testing.T) {
	const list = "nats://127.0.0.1:1,nats://127.0.0.1:2"
	cfg := load(t, tenLines, map[string]string{"nats.url": list, "topology.nodes": "a=" + list + ",b=" + list + " , tls://127.0.0.1:3,c=nats://127.0.0.1:4"})
	want := map[string]string{"a": list, "b": list + ",tls://127.0.0.1:3", "c": "nats://127.0.0.1:4"}
	if !maps.Equal(cfg.Topology.Nodes, want) || cfg.NATS.URL != list {
		t.Errorf("nodes are %v, nats.url is %s", cfg.Topology.Nodes, cfg.NATS.URL)
	}
}

func TestRedacted(t *testing.T) {
	cfg := load(t, tenLines, map[string]string{
		"topology.nodes": "a=nats://me:hunter2@127.0.0.1:4222,b=nats://hunter2@127.0.0.1:4223",
		"nats.token":     "hunter2",
		"postgres.dsn":   "postgres://u:hunter2@127.0.0.1/app?sslpassword=hunter2",
		"http.listen":    "127.0.0.1:8080", "http.viewer_token": "hunter2 may only look", "http.operator_token": "hunter2 may also act",
	})
	if text := cfg.String(); strings.Contains(text, "hunter2") || strings.Count(text, hidden) != 7 {
		t.Errorf("secrets show, or are not hidden seven times:\n%s", text)
	}
	external := load(t, tenLines, map[string]string{"nats.url": "nats://me:hunter2@127.0.0.1:4222"})
	if got, want := external.Redacted().NATS.URL, "nats://me:xxxxx@127.0.0.1:4222"; got != want {
		t.Errorf("nats.url shows as %q; want %q", got, want)
	}
	if cfg.NATS.Token != "hunter2" || cfg.Topology.Nodes["a"] != "nats://me:hunter2@127.0.0.1:4222" {
		t.Error("the original was changed")
	}
}

func TestRedactDSN(t *testing.T) {
	for dsn, want := range map[string]string{
		"":                             "",
		"host=h password=pw dbname=d":  "host=h password=xxxxx dbname=d",
		"password = 'p w\\' x' host=h": "password = xxxxx host=h",
		"password=p\\ w host=h":        "password=xxxxx host=h",
		"host=h PASSWORD=pw":           "host=h PASSWORD=xxxxx",
		"password='unfinished host=h":  "password=xxxxx",
		"postgres://u@h/d":             "postgres://u@h/d",
		"postgresql://u:p%40w@h:1/d?password=pw&a=b": "postgresql://u:xxxxx@h:1/d?a=b&password=xxxxx",
		"postgres://u:p%w@h/d":                       "xxxxx",
		"pw":                                         "xxxxx",
	} {
		if got := redactDSN(dsn); got != want {
			t.Errorf("redactDSN(%q) = %q; want %q", dsn, got, want)
		}
	}
	for text, want := range map[string]string{
		"nats://h:1":       "nats://h:1",
		"nats://tok@h:1":   "nats://xxxxx@h:1",
		"nats://u:p@h:1":   "nats://u:xxxxx@h:1",
		"nats://u:p%w@h:1": "nats://xxxxx@h:1",
		"a=nats://u:p@h:1": "a=nats://xxxxx@h:1",
		"nats://u:p@h:1, tls://u:q,r@i:2,nats://tok@j": "nats://u:xxxxx@h:1,tls://u:xxxxx@i:2,nats://xxxxx@j",
	} {
		if got := redactURL(text); got != want {
			t.Errorf("redactURL(%q) = %q; want %q", text, got, want)
		}
	}
}

// TestSettings: those that are not as by default are told apart, and no secret is among them.
func TestSettings(t *testing.T) {
	cfg := load(t, tenLines, map[string]string{"apply.rate": "3MiB", "log.level": "info", "http.listen": "127.0.0.1:8080", "http.operator_token": "hunter2 may also act"})
	var set []string
	for _, s := range cfg.Settings() {
		if s.Set {
			set = append(set, s.Key+"="+s.Value)
		}
		if s.Why == "" || strings.Contains(s.Value, "hunter2") {
			t.Errorf("%+v", s)
		}
		if s.Key == "apply.rate" && !s.Live {
			t.Errorf("%s is not said to be taken over by a reload", s.Key)
		}
	}
	want := "cluster=shop node=a postgres.dsn=" + cfg.Postgres.DSN + " topology.nodes=a=nats://127.0.0.1:4222,b=nats://127.0.0.1:4223,c=nats://127.0.0.1:4224 " +
		"apply.rate=3MiB http.listen=127.0.0.1:8080 http.operator_token=xxxxx"
	if got := strings.Join(set, " "); got != want {
		t.Errorf("set are %s\nwant %s", got, want)
	}
}
