package doctor

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/catalog"
	"github.com/pgbridge/pgbridge/config"
)

// well are the facts of a node at which nothing is to be found.
func well(t *testing.T) *Facts {
	t.Helper()
	cfg, err := config.Load("", map[string]string{"cluster": "shop", "node": "a", "postgres.dsn": "host=db", "conflict.foreign_keys": "app.item.*=restore",
		"topology.nodes": "a=nats://127.0.0.1:4222,b=nats://127.0.0.1:4223"})
	if err != nil {
		t.Fatal(err)
	}
	last := int64(16)
	tables := func(node string) *catalog.Summary {
		next := last
		if node == "b" {
			next++
		}
		return &catalog.Summary{Node: node, Version: 180000, Encoding: "UTF8", Collation: "c:C", Tables: []catalog.Table{{Name: "t", Key: []string{"id"},
			Columns: []catalog.Column{{Name: "id", Type: "integer", NotNull: true}}}},
			Sequences: []catalog.Sequence{{Name: "s", Table: "t", Column: "id", ColumnType: "integer", Start: 16, Least: 1, Most: 2147483647, Increment: 16, Last: &next, Taken: true}}}
	}
	return &Facts{Config: cfg, Now: time.Date(2026, 11, 29, 6, 0, 0, 0, time.UTC), Slot: "pgb_shop_a", HasRun: true,
		Server: &Server{Version: 180000, VersionText: "18.0", Encoding: "UTF8", MaxConnections: 100, Connections: 10, MaxOrigins: 10, Origins: 3,
			Settings: map[string]string{"fsync": "on", "full_page_writes": "on", "max_slot_wal_keep_size": "1000000000", "wal_sender_timeout": "60000", "idle_replication_slot_timeout": "0"},
			Role:     Role{Name: "bridge", Database: "app", Replication: true, Create: true, Replica: true, Owner: true, Monitor: true},
			Slot:     &Slot{Status: "reserved", Held: 1 << 20, Safe: 1 << 30},
			Tables:   []Table{{Name: "app.item", Schema: "app", Usage: true, Owned: true, patternSchema: "app", patternTable: "item", ForeignKeys: []ForeignKey{{Name: "fk", Parent: "app.p", ToOthers: true}}}}},
		Tables: tables("a"),
		Broker: &Broker{URL: "nats://127.0.0.1:4222", MaxPayload: 1 << 20, StoreLimit: -1, Stream: &Stream{Name: "PGB_shop_a", Bytes: 1, MaxBytes: 100, Replicas: 1}},
		Disks:  []Disk{{What: "data_dir", Path: "/data", Free: 100, Need: 50, Limit: "nats.embedded.max_store"}},
		Certs:  []Certificate{{Of: "the broker", Ends: time.Date(2027, 11, 29, 6, 0, 0, 0, time.UTC)}},
		Nodes:  []Node{{Name: "b", Tables: tables("b"), Graph: cfg.Graph().String(), Policy: cfg.Policies()}},
		Bridge: &Bridge{Probe: &Probe{}}, Unknown: map[Part]string{}}
}

// provocations are what brings each finding about, by its code and severity, with words of its text or mend.
var provocations = []struct {
	code     string
	severity Severity
	provoke  func(*Facts)
	words    string
}{
	{"wal-level", Error, func(f *Facts) {
		f.Capture = []capture.Finding{{Code: "wal-level", Thing: "setting wal_level", Fault: "is replica", Mend: "run it"}}
	}, "setting wal_level is replica"},
	{"slot-missing", Error, func(f *Facts) { f.Capture = []capture.Finding{{Code: "slot-missing"}} }, ""},
	{"slot-missing", Warning, func(f *Facts) { f.Capture, f.HasRun = []capture.Finding{{Code: "slot-missing"}}, false }, ""},
	{"stream-full", Error, func(f *Facts) { f.Bridge.Alarms = []Finding{{Code: "stream-full", Severity: Error, Text: "full"}} }, "full"},
	{"bridge-waits", Error, func(f *Facts) { f.Bridge.Waiting = "starting" }, "starting"},
	{"probe", Error, func(f *Facts) { f.Bridge.Probe, f.Bridge.Failed = nil, "lost" }, "lost"},
	{"replica-role", Error, func(f *Facts) { f.Server.Role.Replica = false }, "GRANT SET ON PARAMETER session_replication_role TO bridge"},
	{"origin-functions", Error, func(f *Facts) { f.Server.Role.Functions = []string{"pg_catalog.f(text)"} }, "GRANT EXECUTE ON FUNCTION pg_catalog.f(text) TO bridge"},
	{"database-create", Error, func(f *Facts) { f.Server.Role.Create = false }, "GRANT CREATE ON DATABASE app TO bridge"},
	{"schema-owner", Error, func(f *Facts) { f.Server.Role.Owner = false }, "ALTER SCHEMA pgbridge OWNER TO bridge"},
	{"superuser", Note, func(f *Facts) { f.Server.Role.Superuser = true }, "--print-sql"},
	{"table-privileges", Error, func(f *Facts) { f.Server.Tables[0].Lacks = []string{"INSERT"} }, "GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE app.item TO bridge"},
	{"table-privileges", Error, func(f *Facts) { f.Server.Tables[0].Usage = false }, "GRANT USAGE ON SCHEMA app TO bridge"},
	{"row-security", Error, func(f *Facts) { f.Server.Tables[0].RowSecurity = true }, "ALTER ROLE bridge BYPASSRLS"},
	{"new-tables", Note, func(f *Facts) { f.Server.Tables[0].Owned = false }, "GRANT owner TO bridge"},
	{"server-durability", Warning, func(f *Facts) { f.Server.Settings["fsync"] = "off" }, "ALTER SYSTEM SET fsync = on"},
	{"wal-unbounded", Warning, func(f *Facts) { f.Server.Settings["max_slot_wal_keep_size"] = "-1" }, "ALTER SYSTEM SET max_slot_wal_keep_size"},
	{"wal-unreserved", Error, func(f *Facts) { f.Server.Slot.Status = "unreserved" }, "pgb_shop_a"},
	{"wal-held", Warning, func(f *Facts) { f.Server.Slot.Held = 2 << 30 }, "holds 2.0 GiB of WAL, and 1.0 GiB more"},
	{"slot-timeout", Warning, func(f *Facts) { f.Server.Settings["idle_replication_slot_timeout"] = "3600000" }, "1h0m0s"},
	{"sender-timeout", Warning, func(f *Facts) { f.Server.Settings["wal_sender_timeout"] = "12000" }, "capture.status_interval: 4s"},
	{"replication-origins", Error, func(f *Facts) { f.HasRun, f.Server.Origins = false, 9 }, "max_active_replication_origins = 16"},
	{"replication-origins", Error, func(f *Facts) { f.HasRun, f.Server.Origins, f.Server.Version = false, 9, 170000 }, "max_replication_slots = 16"},
	{"connections", Warning, func(f *Facts) { f.Bridge, f.Server.Connections, f.Unknown[PartBridge] = nil, 95, "none runs" }, "max_connections = 114"},
	{"old-transaction", Warning, func(f *Facts) { f.Server.Old = []Transaction{{"process 7", time.Hour, "SELECT 1"}} }, "process 7 has a transaction that is open for 1h0m0s"},
	{"collation-version", Warning, func(f *Facts) { f.Server.Collations = []string{"DATABASE app"} }, "ALTER DATABASE app REFRESH VERSION"},
	{"encoding", Warning, func(f *Facts) { f.Server.Encoding = "LATIN1" }, "LATIN1"},
	{"trigger-local", Note, func(f *Facts) { f.Server.Tables[0].Triggers = []Trigger{{"x", "O"}} }, "ENABLE ALWAYS TRIGGER x"},
	{"trigger-replica", Warning, func(f *Facts) { f.Server.Tables[0].Triggers = []Trigger{{"x", "A"}} }, "ENABLE TRIGGER x"},
	{"trigger-replica", Warning, func(f *Facts) { f.Server.Tables[0].Triggers = []Trigger{{"x", "R"}} }, "ENABLE TRIGGER x"},
	{"rule-local", Note, func(f *Facts) { f.Server.Tables[0].Rules = []Trigger{{"x", "O"}} }, "ENABLE ALWAYS RULE x"},
	{"rule-replica", Warning, func(f *Facts) { f.Server.Tables[0].Rules = []Trigger{{"x", "A"}} }, "ENABLE RULE x"},
	{"foreign-key-acts", Warning, func(f *Facts) {
		f.Server.Tables[0].ForeignKeys = []ForeignKey{{Name: "fk", Parent: "app.item", Action: "CASCADE", From: "app.log", ToOthers: true}}
	}, "ON DELETE CASCADE"},
	{"foreign-key-parent", Warning, func(f *Facts) { f.Server.Tables[0].ForeignKeys[0].ToOthers = false }, "replicate app.p, too"},
	{"foreign-key-orphans", Note, func(f *Facts) {
		f.Config.Conflict.ForeignKeys = nil
		f.Nodes[0].Policy = f.Config.Policies()
	}, `foreign_keys: ["app.item.fk=restore"]`},
	{"database-clock", Warning, func(f *Facts) { f.Server.Clock = -3 * time.Second }, "3s from that of the bridge's"},
	{"sequence-exhausts", Warning, func(f *Facts) { *f.Tables.Sequences[0].Last, f.Nodes = 16*120_000_000, nil }, "TYPE bigint"},
	{"sequence-exhausts", Error, func(f *Facts) { *f.Tables.Sequences[0].Last, f.Nodes = 16*134_000_000, nil }, "TYPE bigint"},
	{"sequence-in-use", Error, func(f *Facts) { v := int64(32); f.Tables.Sequences[0].InUse = &v }, "about to give 32"},
	{"sequence-privilege", Warning, func(f *Facts) { f.Tables.Sequences[0].Last, f.Nodes = nil, nil }, "GRANT SELECT ON SEQUENCE s TO bridge"},
	{"sequence-collides", Error, func(f *Facts) { *f.Nodes[0].Tables.Sequences[0].Last = 32 }, "both will give 48"},
	{"id-number", Error, func(f *Facts) { n := 3; f.Tables.IDNumber, f.Nodes[0].Tables.IDNumber = &n, &n }, "3 here and on node b"},
	{"broker", Error, func(f *Facts) { f.Broker.Problem = "it is away" }, "it is away"},
	{"broker-sync", Warning, func(f *Facts) { f.Config.NATS.Embedded.Sync = "interval" }, "sync: always"},
	{"broker-open", Warning, func(f *Facts) { f.Config.NATS.Embedded.Listen = "0.0.0.0:4222" }, "token_file"},
	{"broker-replicas", Warning, func(f *Facts) { f.Config.NATS.URL = "nats://n:4222" }, "sync_interval: always"},
	{"broker-replicas", Warning, func(f *Facts) { f.Config.NATS.URL, f.Broker.Stream.Clustered = "nats://n:4222", true }, "set stream.replicas: 3"},
	{"broker-payload", Error, func(f *Facts) { f.Broker.MaxPayload = 100_000 }, "max_payload: 327680"},
	{"broker-room", Warning, func(f *Facts) {
		f.Config.NATS.URL, f.Broker.Stream.Replicas, f.Broker.StoreLimit = "nats://n:4222", 3, 1<<30
	}, "raise the account's limit to 16.0 GiB"},
	{"stream-fill", Warning, func(f *Facts) { f.Broker.Stream.Bytes = 90 }, "holds 90 B of 100 B"},
	{"disk-room", Warning, func(f *Facts) { f.Disks[0].Free = 40 }, "lower nats.embedded.max_store"},
	{"certificate-expired", Error, func(f *Facts) { f.Certs[0].Ends = f.Now.Add(-time.Hour) }, "has ended at 2026-11-29 05:00:00"},
	{"certificate-ends", Warning, func(f *Facts) { f.Certs[0].Ends = f.Now.Add(49 * time.Hour) }, "in 2 days"},
	{"node-unasked", Warning, func(f *Facts) { f.Nodes[0] = Node{Name: "b", Problem: "nobody answers"} }, "topology.nodes.b"},
	{"topology-differs", Error, func(f *Facts) { f.Nodes[0].Graph = "a b c a-b" }, "only there: c"},
	{"policies-differ", Error, func(f *Facts) {
		f.Nodes[0].Policy = maps.Clone(f.Nodes[0].Policy)
		f.Nodes[0].Policy[slices.Sorted(maps.Keys(f.Nodes[0].Policy))[0]] = "x"
	}, `"x" on node b`},
	{"clock-differs", Warning, func(f *Facts) { f.Nodes[0].Ahead, f.Nodes[0].Within = 5*time.Second, time.Millisecond }, "5s ahead of this one's"},
	{"clock-differs", Error, func(f *Facts) { f.Nodes[0].Ahead = -2 * time.Minute }, "2m0s behind this one's"},
	{"clock-differs", Warning, func(f *Facts) {
		f.Nodes, f.Server.NodeClocks = nil, []NodeClock{{"b", 4 * time.Second, time.Second}}
	}, "4s ahead of"},
	{"delivery", Warning, func(f *Facts) { f.Nodes[0].Behind = 12 }, "lacks 12 transactions"},
	{"encoding-differs", Warning, func(f *Facts) { f.Nodes[0].Tables.Encoding = "LATIN1" }, "LATIN1 there"},
	{"collation-differs", Note, func(f *Facts) { f.Nodes[0].Tables.Collation = "i:de" }, "i:de there"},
	{"collation-differs", Note, func(f *Facts) { f.Nodes[0].Tables.Tables[0].Columns[0].Collation = "i:de" }, "ALTER TABLE t"},
	{"table-missing", Error, func(f *Facts) { f.Nodes[0].Tables.Tables = nil }, "create t on that node"},
	{"table-missing", Error, func(f *Facts) { f.Tables.Tables = nil }, "create t on this node"},
	{"column-differs", Error, func(f *Facts) { f.Tables.Tables[0].Columns[0].Type = "uuid" }, "(there: node b)"},
	{"column-wider", Warning, func(f *Facts) { f.Tables.Tables[0].Columns[0].Type = "bigint" }, "TYPE bigint where it is narrower"},
	{"type-differs", Error, func(f *Facts) { f.Tables.Tables[0].Columns[0].Detail = "'a'" }, "ALTER TYPE"},
	{"null-differs", Warning, func(f *Facts) { f.Tables.Tables[0].Columns[0].NotNull = false }, "SET NOT NULL"},
	{"key-differs", Error, func(f *Facts) { f.Tables.Tables[0].Key = nil }, "primary key"},
	{"equality-differs", Error, func(f *Facts) { f.Tables.Tables[0].Columns[0].Nondeterministic = true }, "COLLATE"},
	{"unique-differs", Warning, func(f *Facts) { f.Tables.Tables[0].Unique = []string{"USING btree (v)"} }, "unique indexes of t"},
	{"check-differs", Warning, func(f *Facts) { f.Tables.Tables[0].Checks = []string{"CHECK (true)"} }, "constraints"},
}

// TestEachFindingIsProvoked: one fact that changes brings its finding about and no other, with why it matters and how to mend it.
func TestEachFindingIsProvoked(t *testing.T) {
	if r := Examine(well(t)); len(r.Findings) > 0 || len(r.Skipped) > 0 {
		t.Fatalf("a node that is well: %+v", r)
	}
	provoked := map[string]bool{}
	for _, p := range provocations {
		f := well(t)
		p.provoke(f)
		r := Examine(f)
		provoked[p.code] = true
		if len(r.Findings) != 1 {
			t.Errorf("%s: %d findings: %+v", p.code, len(r.Findings), r.Findings)
			continue
		}
		x := r.Findings[0]
		if x.Code != p.code || x.Severity != p.severity || !strings.Contains(x.Text+"\n"+x.Mend, p.words) {
			t.Errorf("%s: %+v\nwant %s, with %q", p.code, x, p.severity, p.words)
		}
		if strings.Contains(x.Text+x.Why+x.Mend, "%!") {
			t.Errorf("%s: badly written: %+v", p.code, x)
		}
		if r.Count(p.severity) != 1 {
			t.Errorf("%s is not counted", p.code)
		}
	}
	for _, code := range codes(t) {
		if !provoked[code] {
			t.Errorf("no test provokes the finding %s", code)
		}
	}
}

// TestDocsNameEachFinding: docs/doctor.md lists all codes.
func TestDocsNameEachFinding(t *testing.T) {
	text, err := os.ReadFile("../docs/doctor.md")
	if err != nil {
		t.Fatal(err)
	}
	all := slices.Collect(maps.Keys(reasons))
	for _, p := range provocations {
		all = append(all, p.code)
	}
	for _, code := range append(all, codes(t)...) {
		if code != "stream-full" && !strings.Contains(string(text), "`"+code+"`") { // which is an alarm
			t.Errorf("docs/doctor.md does not name %s", code)
		}
	}
}

// codes are those that stand in the package's source: the first value of each Finding, of each call of one, and the second of
// each judgement. What is put together, such as trigger-local, is not seen.
func codes(t *testing.T) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	text := func(e ast.Expr) {
		if l, ok := e.(*ast.BasicLit); ok && l.Kind == token.STRING {
			if s, _ := strconv.Unquote(l.Value); s != "" {
				all = append(all, s)
			}
		}
	}
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".go") || strings.HasSuffix(entry.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), entry.Name(), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				if f, ok := n.Fun.(*ast.Ident); ok && (f.Name == "one" || f.Name == "lacks") {
					text(n.Args[0])
				}
			case *ast.CompositeLit:
				if f, ok := n.Type.(*ast.Ident); ok && f.Name == "Finding" && len(n.Elts) > 0 {
					text(n.Elts[0])
				}
				if len(n.Elts) == 4 && n.Type == nil {
					text(n.Elts[1]) // a judgement
				}
			}
			return true
		})
	}
	if len(all) < 50 {
		t.Fatalf("only %d codes are in the source: %q", len(all), all)
	}
	return all
}

// startCodes are those that capture finds when it starts to read, or while it reads, and not in its checks.
var startCodes = []string{capture.CodeSlotAhead, capture.CodeServerBehind, capture.CodeServerOther, capture.CodeTableUnpublished, capture.CodeTableUnusable, capture.CodeStreamOther}

// TestReasonsOfCapture: what capture finds says why it matters, whatever it is.
func TestReasonsOfCapture(t *testing.T) {
	source, err := os.ReadFile("../capture/errors.go")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^\tCode\w+ += "([a-z-]+)"`).FindAllStringSubmatch(string(source), -1)
	if len(found) < 20 {
		t.Fatalf("%d codes are in capture/errors.go", len(found))
	}
	for _, m := range found {
		if reasons[m[1]] == "" && !slices.Contains(startCodes, m[1]) {
			t.Errorf("%s has no reason", m[1])
		}
	}
	for code, why := range reasons {
		if code == "" || why == "" {
			t.Errorf("%q: %q", code, why)
		}
	}
	for kind, j := range judgements {
		if j.severity == "" || j.code == "" || j.why == "" || j.mend == "" {
			t.Errorf("%s: %+v", kind, j)
		}
	}
}

// TestUnknownIsSkipped: what could not be learnt is told, and nothing that needs it is taken for good or bad.
func TestUnknownIsSkipped(t *testing.T) {
	f := &Facts{Config: well(t).Config, Unknown: map[Part]string{}}
	for _, p := range []Part{PartServer, PartTables, PartBroker, PartDisks, PartBridge, PartNodes} {
		f.Unknown[p] = "it is away"
	}
	r := Examine(f)
	if len(r.Findings) > 0 || len(r.Guarantees) > 0 || r.Running || r.Probe != nil {
		t.Errorf("%+v", r)
	}
	want := 0
	for _, c := range checks() {
		if c.needs != "" {
			want++
		}
	}
	if len(r.Skipped) != want || r.Skipped[0].Because != "it is away" {
		t.Errorf("%d are skipped, not %d: %+v", len(r.Skipped), want, r.Skipped)
	}
}

// TestGuaranteesSayWhyTheyAreWeaker: each one can fail, and then says of what.
func TestGuaranteesSayWhyTheyAreWeaker(t *testing.T) {
	f := well(t)
	f.Config.Postgres.Failover = true
	for _, g := range guarantees(f) {
		if !g.Holds || g.Because != "" {
			t.Errorf("a node that is well: %+v", g)
		}
	}
	f.Server.Role = Role{Name: "bridge", Functions: []string{"f"}}
	f.Server.Settings = map[string]string{"fsync": "off", "max_slot_wal_keep_size": "-1"}
	f.Server.Version = 160000
	f.Server.Tables[0].Owned = false
	f.Config.NATS.Embedded.Sync = "interval"
	f.Capture = []capture.Finding{{Code: capture.CodeCommitTimestamp}}
	for _, g := range guarantees(f) {
		if g.Holds || g.Because == "" {
			t.Errorf("%+v", g)
		}
	}
}

// TestAlarmsAreNotToldTwice: what a check has found as well stands there once.
func TestAlarmsAreNotToldTwice(t *testing.T) {
	f := well(t)
	f.Nodes[0].Graph = "a b c a-b"
	f.Bridge.Alarms = []Finding{{Code: "topology-differs", Severity: Error, Text: "as the bridge says it"}}
	if r := Examine(f); len(r.Findings) != 1 || !reflect.DeepEqual(r.Findings[0], topologies(f)[0]) {
		t.Errorf("%+v", r.Findings)
	}
}
