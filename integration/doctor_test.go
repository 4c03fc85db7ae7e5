package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/natstest"
	"github.com/pgbridge/pgbridge/integration/pgcluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// examine has a doctor look at a node.
func examine(t *testing.T, n *cluster.Node) *bridge.Examination {
	t.Helper()
	x, err := bridge.Doctor(t.Context(), n.Load())
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// findings are the codes of what a doctor finds.
func findings(t *testing.T, n *cluster.Node) (codes []string) {
	t.Helper()
	for _, f := range examine(t, n).Findings {
		codes = append(codes, f.Code)
	}
	return codes
}

// requireFindings requires that each of these was found, given as "severity code" and words of text or mend.
func requireFindings(t *testing.T, x *bridge.Examination, want map[string]string) {
	t.Helper()
	for what, words := range want {
		severity, code, _ := strings.Cut(what, " ")
		found := false
		for _, f := range x.Findings {
			found = found || f.Code == code && string(f.Severity) == severity && strings.Contains(f.Text+"\n"+f.Mend, words)
		}
		if !found {
			t.Errorf("%s with %q was not found", what, words)
		}
	}
	if t.Failed() {
		for _, f := range x.Findings {
			t.Logf("%s %s: %s; %s", f.Severity, f.Code, f.Text, f.Mend)
		}
		t.Logf("skipped: %+v", x.Skipped)
	}
}

// TestDoctorOnABadServer: each setting that is wrong is found, in one look, and a server that cannot be used as it is stops none of
// the checks.
func TestDoctorOnABadServer(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 1, Majors: []int{18}, Own: true, Clocks: true, Idle: true, Settings: map[string]string{
		"wal_level": "replica", "track_commit_timestamp": "off", "wal_sender_timeout": "12s", "max_connections": "12", "max_replication_slots": "1",
		"max_active_replication_origins": "1", "idle_replication_slot_timeout": "1h", "max_prepared_transactions": "5", "fsync": "off"}})
	n := c.Nodes[0]
	n.Exec(`CREATE TABLE t (id int PRIMARY KEY)`)
	n.Exec(`BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'forgotten'`)
	serveTLS(t, n.PG, 10*24*time.Hour)
	if err := n.PG.SetClock(2 * time.Hour); err != nil {
		t.Fatal(err)
	}
	cfg := n.Load()
	cfg.Postgres.DSN = strings.Replace(n.PG.DSN("postgres"), "sslmode=disable", "sslmode=require", 1)
	cfg.NATS.Embedded.MaxStore = 1 << 60
	cfg.DataDir = n.Dir
	cfg.NATS.Embedded.Listen, cfg.NATS.Embedded.AllowPlaintext = "0.0.0.0:4222", true
	x, err := bridge.Doctor(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	requireFindings(t, x, map[string]string{
		"error wal-level":              "ALTER SYSTEM SET wal_level = logical",
		"error track-commit-timestamp": "ALTER SYSTEM SET track_commit_timestamp = on",
		"warning slot-missing":         "pgbridge setup",
		"warning publication-missing":  "pgbridge setup",
		"error replication-origins":    "max_active_replication_origins",
		"warning wal-unbounded":        "max_slot_wal_keep_size",
		"warning slot-timeout":         "1h0m0s",
		"warning sender-timeout":       "12s",
		"warning server-durability":    "fsync",
		"warning connections":          "max_connections",
		"warning old-transaction":      "ROLLBACK PREPARED 'forgotten'",
		"warning database-clock":       "NTP",
		"warning certificate-ends":     "postgresql at 127.0.0.1",
		"warning disk-room":            "nats.embedded.max_store and apply.spool_limit",
		"warning broker-open":          "0.0.0.0:4222",
		"note superuser":               "is a superuser",
	})
	if x.Running || x.Probe != nil || x.Count(bridge.FindingError) != 3 {
		t.Errorf("running %t, probe %v, %d errors", x.Running, x.Probe, x.Count(bridge.FindingError))
	}
	skipped := map[string]bool{}
	for _, s := range x.Skipped {
		skipped[s.Check] = true
	}
	if !skipped["bridge"] || !skipped["broker"] || len(skipped) != 5 {
		t.Errorf("not looked at: %+v", x.Skipped)
	}
	for _, g := range x.Guarantees {
		if g.Name == "each row version keeps its author's stamp, by which conflicts are decided" && (g.Holds || g.Because == "") {
			t.Errorf("%+v", g)
		}
	}
}

// serveTLS gives a running server a certificate that ends then.
func serveTLS(t *testing.T, pg *pgcluster.Cluster, ends time.Duration) {
	t.Helper()
	cert, key := certificate(t, time.Now().Add(ends))
	owner, err := os.Stat(pg.DataDir())
	if err != nil {
		t.Fatal(err)
	}
	id := owner.Sys().(*syscall.Stat_t)
	for name, text := range map[string][]byte{"server.crt": cert, "server.key": key} {
		file := filepath.Join(pg.DataDir(), name)
		if err := errors.Join(os.WriteFile(file, text, 0o600), os.Chown(file, int(id.Uid), int(id.Gid))); err != nil {
			t.Fatal(err)
		}
	}
	pgtest.Exec(t, pg.SocketDSN("postgres"), `ALTER SYSTEM SET ssl = on`)
	pgtest.Exec(t, pg.SocketDSN("postgres"), `SELECT pg_reload_conf()`)
	for pgtest.Value(t, pg.SocketDSN("postgres"), `SELECT current_setting('ssl')`) != "on" { // the postmaster has taken it in
		if t.Context().Err() != nil {
			t.Fatal("ssl is not switched on")
		}
	}
}

// certificate makes one for 127.0.0.1 that vouches for itself.
func certificate(t *testing.T, ends time.Time) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: ends, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, x, x, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
}

// TestDoctorOnHeldWAL: what the slot holds is told before it is lost, when it is about to be, and afterwards.
func TestDoctorOnHeldWAL(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 1, Own: true, Settings: map[string]string{"max_slot_wal_keep_size": "128MB", "fsync": "off",
		"max_wal_size": "4GB", "checkpoint_timeout": "1d"}}) // checkpoints come when the test wants one
	n := c.Nodes[0]
	n.Exec(`CREATE TABLE t (id int PRIMARY KEY)`)
	n.Stop()
	fill := func(segments int) { // of 16 MB each
		for range segments {
			n.Exec(`SELECT pg_logical_emit_message(false, 'x', 'x')`)
			n.Exec(`SELECT pg_switch_wal()`)
		}
	}
	for _, x := range []struct {
		do           func()
		status       string
		code, saying string
	}{
		{func() { fill(6) }, "reserved", "warning wal-held", "until it is lost"},
		{func() { fill(6) }, "unreserved", "error wal-unreserved", "next checkpoint"},
		{func() { n.Exec(`CHECKPOINT`) }, "lost", "error slot-invalidated", "changes are missing from it"},
	} {
		x.do()
		if got := n.Value(`SELECT wal_status FROM pg_replication_slots`); got != x.status {
			t.Fatalf("the slot is %s, want %s", got, x.status)
		}
		requireFindings(t, examine(t, n), map[string]string{x.code: x.saying})
	}
}

// TestDoctorOnTables: what other nodes' rows meet here, and in what two nodes differ, with and without the bridges running.
func TestDoctorOnTables(t *testing.T) {
	t.Parallel()
	keys := map[string]string{"tables": "*.*,!public.log,!public.away"}
	c := cluster.New(t, cluster.Options{Nodes: 3, Idle: true, Config: keys, Schema: `
		CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
		CREATE TYPE mood AS ENUM ('good', 'bad');
		CREATE TABLE parent (id int PRIMARY KEY);
		CREATE TABLE child (id int PRIMARY KEY, parent int CONSTRAINT to_parent REFERENCES parent);
		CREATE TABLE log (id int, parent int CONSTRAINT log_parent REFERENCES parent ON DELETE CASCADE);
		CREATE TABLE away (id int PRIMARY KEY); ALTER TABLE child ADD away int CONSTRAINT to_away REFERENCES away;
		CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
		CREATE TRIGGER audit AFTER INSERT ON parent EXECUTE FUNCTION f();
		CREATE TRIGGER always AFTER INSERT ON parent EXECUTE FUNCTION f(); ALTER TABLE parent ENABLE ALWAYS TRIGGER always;
		CREATE RULE quiet AS ON INSERT TO parent WHERE NEW.id < 0 DO INSTEAD NOTHING;
		CREATE RULE loud AS ON INSERT TO child WHERE NEW.id < 0 DO INSTEAD NOTHING; ALTER TABLE child ENABLE REPLICA RULE loud;
		CREATE TABLE small (id smallserial PRIMARY KEY)`})
	a, b := c.Node("a"), c.Node("b")
	a.Exec(`CREATE TABLE differs (id int PRIMARY KEY, only_a text, kind text, wide bigint, feel mood, must text NOT NULL, name text COLLATE nocase UNIQUE, CHECK (id > 0));
		CREATE TABLE only_here (id int PRIMARY KEY); CREATE TABLE other_key (a int NOT NULL UNIQUE, b int PRIMARY KEY); SELECT setval('small_id_seq', 32000)`)
	b.Exec(`ALTER TYPE mood ADD VALUE 'so so';
		CREATE TABLE differs (id int PRIMARY KEY, kind int, wide int, feel mood, must text, name text, extra text UNIQUE);
		CREATE TABLE only_there (id int PRIMARY KEY); CREATE TABLE other_key (a int PRIMARY KEY, b int NOT NULL UNIQUE)`)
	a.Exec(`CREATE TABLE keyless (id int)`)
	if x := examine(t, a); x.Running {
		t.Error("a bridge runs that was not started")
	} else {
		requireFindings(t, x, map[string]string{"error table-key": `ALTER TABLE "public"."keyless" ADD PRIMARY KEY`, "warning node-unasked": "node b could not be asked"})
	}
	a.Exec(`DROP TABLE keyless`)
	a.Start()
	keys["topology.kind"], keys["topology.links"], keys["conflict.priority"] = "graph", "a-b,b-c", "a,b,c"
	b.Start()
	for _, k := range []string{"topology.kind", "topology.links", "conflict.priority"} {
		delete(keys, k)
	}
	here := map[string]string{
		"note trigger-local": `ENABLE ALWAYS TRIGGER "audit"`, "warning trigger-replica": `ENABLE TRIGGER "always"`,
		"note rule-local": `ENABLE ALWAYS RULE "quiet"`, "warning rule-replica": `ENABLE RULE "loud"`,
		"warning foreign-key-acts": "ON DELETE CASCADE", "warning foreign-key-parent": `replicate "public"."away", too`,
		"note foreign-key-orphans": "public.child.to_parent=restore", "error sequence-exhausts": "767 are left",
		"error table-missing": `"public"."only_here"`, "error column-differs": `"only_a" here and not there`, "warning column-wider": `"wide" as bigint here and as integer there`,
		"error type-differs": "'so so'", "warning null-differs": `"must" NOT NULL here and not there`, "error key-differs": `("b") here and ("a") there`,
		"error equality-differs": `"name" with collation`, "warning unique-differs": "(extra) there and not here", "warning check-differs": "CHECK ((id > 0)) here and not there",
		"error sequence-collides": `"small_id_seq"`, "error topology-differs": "node b", "error policies-differ": "conflict.priority",
		"warning node-unasked": "node c could not be asked",
	}
	requireFindings(t, examine(t, a), here)
	a.AwaitStatus(func(r *cluster.Report) bool {
		return slices.ContainsFunc(r.Alarms, func(x cluster.Alarm) bool { return x.Code == "sequence-exhausts" })
	})
	requireFindings(t, examine(t, b), map[string]string{"error table-missing": `"public"."only_here"`, "error column-differs": `"only_a" there and not here`})
}

// TestDoctorWhereTheBrokerIsAway: a broker that is gone while the bridge runs is found by the look at it, and by the probe.
func TestDoctorWhereTheBrokerIsAway(t *testing.T) {
	t.Parallel()
	s := natstest.New(t)
	keys := map[string]string{"nats.url": s.URL(), "nats.embedded.listen": ""}
	c := cluster.New(t, cluster.Options{Nodes: 1, Config: keys, Schema: `CREATE TABLE t (id int PRIMARY KEY)`})
	n := c.Nodes[0]
	x := examine(t, n)
	requireFindings(t, x, map[string]string{"warning broker-replicas": "sync_interval: always"})
	if x.Probe == nil || x.Probe.WAL <= 0 || x.Probe.Broker <= 0 {
		t.Errorf("probe %+v", x.Probe)
	}
	s.Stop()
	x = examine(t, n)
	found := false
	for _, f := range x.Findings {
		found = found || f.Code == "broker" && f.Severity == bridge.FindingError
		if f.Code == "probe" || f.Code == "bridge-waits" {
			t.Logf("%s: %s", f.Code, f.Text)
		}
	}
	if !found || x.Probe != nil {
		t.Errorf("probe %+v, findings %+v", x.Probe, x.Findings)
	}
}

// TestDoctorOfAServerThatIsAway: that is one finding, and the rest is told to be unknown.
func TestDoctorOfAServerThatIsAway(t *testing.T) {
	t.Parallel()
	n := oneNode(t, "")
	cfg, err := config.Load(n.File, map[string]string{"postgres.dsn": "postgres://u:" + badPassword + "@127.0.0.1:1/db"})
	if err != nil {
		t.Fatal(err)
	}
	x, err := bridge.Doctor(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	requireFindings(t, x, map[string]string{"error postgres-unreachable": "start the server, or correct host and port"})
	if x.Count(bridge.FindingError) != 1 || len(x.Skipped) < 10 {
		t.Errorf("%+v", x)
	}
	for _, words := range x.Findings {
		if strings.Contains(words.Text+words.Mend, badPassword) {
			t.Errorf("tells the password: %+v", words)
		}
	}
	for what, err := range map[string]error{
		"plan":  second(bridge.PlanSequences(t.Context(), cfg, bridge.SequenceOptions{})),
		"apply": second(bridge.ApplySequences(t.Context(), cfg, bridge.SequenceOptions{})),
	} {
		t.Log(what)
		wantRefusal(t, err, "postgres.dsn", "127.0.0.1:1", "start the server, or correct host and port")
	}
}

func second[T any](_ T, err error) error { return err }

// TestCommandsAsTheLeastRole: on every version, a role that has what setup prints and nothing else runs all commands. What takes
// more is refused in one line that names it, before anything is done, and works when it has that.
func TestCommandsAsTheLeastRole(t *testing.T) {
	t.Parallel()
	for _, major := range []int{15, 16, 17, 18} {
		t.Run(fmt.Sprintf("pg%d", major), func(t *testing.T) {
			t.Parallel()
			c := cluster.New(t, cluster.Options{Nodes: 2, Majors: []int{major}, Idle: true, Schema: `
				CREATE SCHEMA app; CREATE TABLE app.t (id serial PRIMARY KEY, v text); CREATE TABLE app.u (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY)`})
			a, b := c.Nodes[0], c.Nodes[1]
			var roles []string
			for _, n := range c.Nodes {
				demote(t, n)
				roles = append(roles, "r_"+n.Value(`SELECT current_database()`))
			}
			// Before it has anything, doctor says what it lacks.
			requireFindings(t, examine(t, a), map[string]string{"error privilege": "REPLICATION", "error replica-role": "GRANT SET ON PARAMETER session_replication_role TO " + roles[0],
				"error origin-functions": "GRANT EXECUTE ON FUNCTION pg_catalog.pg_replication_origin_create(text)", "error database-create": "GRANT CREATE ON DATABASE",
				"error table-privileges": "GRANT USAGE ON SCHEMA app", "warning sequence-privilege": "GRANT SELECT ON SEQUENCE"})
			for _, n := range c.Nodes {
				sql, err := bridge.SetupSQL(t.Context(), n.Load())
				if err != nil {
					t.Fatal(err)
				}
				for _, statement := range sql {
					n.Exec(statement)
				}
				n.Start()
			}
			a.Exec(`INSERT INTO app.t (v) VALUES ('x')`)
			c.WaitConverged()
			for _, f := range examine(t, a).Findings {
				// The servers of tests do without fsync and without a limit of the slot, and the sequences are not planned yet.
				if f.Severity != bridge.FindingNote && !slices.Contains([]string{"server-durability", "wal-unbounded", "broker-sync", "sequence-collides", "sequence-in-use"}, f.Code) {
					t.Errorf("%s %s: %s; %s", f.Severity, f.Code, f.Text, f.Mend)
				}
			}
			for _, x := range []struct {
				args string
				code int
				want string
			}{
				{"doctor", 3, "sequence-collides"},
				{"doctor --json", 3, `"holds": true`},
				{"status", 0, "all is well"},
				{"status --json --check --strict", 0, `"well": true`},
				{"top --once --interval 100ms", 0, "APPLIED/S"},
				{"top", 2, "use --once"},
				{"sequences plan", 0, `ALTER SEQUENCE "app"."t_id_seq" INCREMENT BY 16`},
				{"sequences plan --ids time", 0, "pgbridge.time_id()"},
				{"sequences plan --table app.nowhere", 2, "no replicated table fits"},
				{"sequences apply", 1, "only its owner may change sequence"},
				{"parked list", 0, "nothing is parked"},
				{"conflicts list", 0, ""},
				{"orphans", 0, "no orphans"},
				{"token", 0, ":"},
			} {
				code, out := command(t, a, x.args)
				if code != x.code || !strings.Contains(out, x.want) {
					t.Errorf("%s: exit code %d, not %d, with %q:\n%s", x.args, code, x.code, x.want, out)
				}
			}
			if got := a.Value(`SELECT seqincrement FROM pg_sequence WHERE seqrelid = 'app.t_id_seq'::regclass`); got != "1" {
				t.Errorf("a refused apply has changed a sequence: %s", got)
			}
			for i, n := range []*cluster.Node{a, b} {
				owner := "o_" + n.Value(`SELECT current_database()`)
				n.Exec(`CREATE ROLE ` + owner)
				t.Cleanup(func() {
					n.Exec(`REASSIGN OWNED BY ` + owner + ` TO CURRENT_USER; DROP OWNED BY ` + owner + `; DROP ROLE ` + owner)
				})
				n.Exec(`ALTER TABLE app.t OWNER TO ` + owner + `; ALTER TABLE app.u OWNER TO ` + owner + `; GRANT CREATE, USAGE ON SCHEMA app TO ` + owner + `; GRANT ` + owner + ` TO ` + roles[i])
				if code, out := command(t, n, "sequences apply"); code != 0 || !strings.Contains(out, `"app"."u_id_seq" goes on with`) {
					t.Errorf("as a member of the owner: exit code %d: %s", code, out)
				}
			}
			if codes := findings(t, a); slices.Contains(codes, "sequence-collides") {
				t.Errorf("planned sequences: %q", codes)
			}
			for _, n := range c.Nodes {
				n.Stop()
			}
			if code, out := command(t, a, "status"); code != 1 || !strings.Contains(out, "no bridge runs") {
				t.Errorf("status of a stopped bridge: exit code %d: %s", code, out)
			}
		})
	}
}

// command runs the program for a node, and returns its exit code and all that it wrote.
func command(t *testing.T, n *cluster.Node, args string) (int, string) {
	t.Helper()
	cmd := exec.Command(cluster.Binary(t), append(strings.Fields(args), "--config", n.File)...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}
