package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgcluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// refusalTime is less than a starting bridge's patience with servers that are away: what a person has to
// mend must be said before that.
const refusalTime = 20 * time.Second

const badPassword = "geheim"

// TestBadInput gives bridges what they cannot work with: each says it in one line, which names the thing
// and the mend.
func TestBadInput(t *testing.T) {
	t.Run("configuration", func(t *testing.T) { t.Parallel(); badConfiguration(t) })
	t.Run("machine", func(t *testing.T) { t.Parallel(); badMachine(t) })
	t.Run("database", func(t *testing.T) { t.Parallel(); badDatabase(t) })
	t.Run("server", func(t *testing.T) { t.Parallel(); badServer(t) })
	t.Run("absent on the receiver", func(t *testing.T) { t.Parallel(); absentOnReceiver(t) })
	t.Run("two bridges with one node name", func(t *testing.T) { t.Parallel(); twoBridges(t) })
}

// wantRefusal requires one line that holds all words and no password.
func wantRefusal(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one with %q", words)
	}
	t.Log(err)
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("more than one line: %v", err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v\ndoes not hold %q", err, w)
		}
	}
	if strings.Contains(err.Error(), badPassword) {
		t.Errorf("tells the password: %v", err)
	}
}

// run runs a node's bridge, with keys changed, until it refuses to go on; nil if it does not.
func run(t *testing.T, n *cluster.Node, keys map[string]string) error {
	t.Helper()
	cfg, err := config.Load(n.File, keys)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), refusalTime)
	defer cancel()
	return bridge.Run(ctx, cfg, bridge.Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Ready: cancel})
}

// oneNode is a node without peers.
func oneNode(t *testing.T, schema string) *cluster.Node {
	t.Helper()
	return cluster.New(t, cluster.Options{Nodes: 1, Idle: true, Schema: schema}).Nodes[0]
}

func badConfiguration(t *testing.T) {
	n := oneNode(t, "")
	good, err := os.ReadFile(n.File)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		yaml  string
		words []string
	}{
		"wrong key":   {"log:\n  levle: info\n", []string{"log.levle", "unknown key", "nearest one is log.level"}},
		"wrong value": {"log:\n  level: loud\n", []string{"log.level", `"loud"`, "use debug, info, warn or error"}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "pgbridge.yaml")
			if err := os.WriteFile(file, append(good[:len(good):len(good)], c.yaml...), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := config.Load(file, nil)
			wantRefusal(t, err, append(c.words, file+":")...)
			wantExit(t, 2, exec.Command(cluster.Binary(t), "run", "--config", file))
		})
	}
	t.Run("unreachable", func(t *testing.T) {
		cfg, err := config.Load(n.File, map[string]string{
			"postgres.dsn": "postgres://u:" + badPassword + "@127.0.0.1:1/db", "postgres.auto_setup": "false"})
		if err != nil {
			t.Fatal(err)
		}
		words := []string{"postgres.dsn", "127.0.0.1:1", "start the server, or correct host and port"}
		wantRefusal(t, bridge.Setup(t.Context(), cfg, nil), words...)
		wantRefusal(t, awaitWaiting(t, cfg), words...) // it may only be away
	})
	t.Run("no such database", func(t *testing.T) {
		dsn := withDatabase(t, n.DSN, "nowhere")
		wantRefusal(t, run(t, n, map[string]string{"postgres.dsn": dsn}), "postgres.dsn", `"nowhere"`, "correct user, password and database")
	})
}

// awaitWaiting runs a bridge until it says in status what it waits for, and returns that.
func awaitWaiting(t *testing.T, cfg *config.Config) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), refusalTime)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- bridge.Run(ctx, cfg, bridge.Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	}()
	waiting := ""
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("the bridge gave up: %v", err)
			}
			return errors.New(waiting)
		case <-time.After(20 * time.Millisecond):
		}
		if r, err := bridge.Status(ctx, cfg); err == nil && strings.Contains(r.Waiting, ";") {
			waiting = r.Waiting
			cancel()
		}
	}
}

func withDatabase(t *testing.T, dsn, name string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

// wantExit runs a command that must end by itself with that exit code, and returns what it wrote.
func wantExit(t *testing.T, code int, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		t.Errorf("%s: %v; want exit code %d\n%s", cmd, err, code, out)
	}
	return string(out)
}

func badMachine(t *testing.T) {
	n := oneNode(t, "")
	t.Run("a port in use", func(t *testing.T) {
		l, err := net.Listen("tcp", n.Listen)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		wantRefusal(t, run(t, n, nil), n.Listen, "another program has this address", "nats.embedded.listen")
	})
	t.Run("data directory that cannot be written", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		wantRefusal(t, run(t, n, map[string]string{"data_dir": filepath.Join(file, "data")}), "data_dir", file, "make it writable or choose another")
	})
	t.Run("full data directory", func(t *testing.T) {
		dir := t.TempDir()
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
			t.Skipf("mount a small file system: %v; it needs root", err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(dir, 0); err != nil {
				t.Errorf("unmount %s: %v", dir, err)
			}
		})
		fill(t, filepath.Join(dir, "ballast"))
		wantRefusal(t, run(t, n, map[string]string{"data_dir": dir}), dir, "no space left", "make room, or choose another")
	})
}

// fill writes until the file system is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

func badDatabase(t *testing.T) {
	t.Run("a table without a usable key", func(t *testing.T) {
		n := oneNode(t, `CREATE TABLE keyless (v text)`)
		wantRefusal(t, run(t, n, nil), "keyless", "no usable key", "ADD PRIMARY KEY", `"!public.keyless"`)
	})
	t.Run("a key that cannot be hashed", func(t *testing.T) {
		n := oneNode(t, `CREATE TABLE searches (q tsquery PRIMARY KEY)`)
		wantRefusal(t, run(t, n, nil), `"public"."searches"`, `column "q"`, "type pg_catalog.tsquery", "give the table a key of another type", `"!public.searches"`)
	})
	t.Run("the slot dropped by hand", func(t *testing.T) {
		n := oneNode(t, "")
		n.Start()
		n.Stop()
		slot := n.Status().Slot.Slot
		n.Exec(`SELECT pg_drop_replication_slot($1)`, slot)
		n.Exec(`INSERT INTO pgb_sentinel VALUES ('lost', 1)`) // no slot holds it
		wantRefusal(t, run(t, n, nil), slot, "is not there", "pgbridge node restored")
		wantRefusal(t, bridge.Setup(t.Context(), n.Load(), nil), slot, "is not there", "pgbridge node restored")
		if got := n.Value(`SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1`, slot); got != "0" {
			t.Errorf("the slot was made anew: what was committed meanwhile would be lost")
		}
	})
	t.Run("another node's database", func(t *testing.T) {
		c := cluster.New(t, cluster.Options{Nodes: 2, Idle: true})
		a, b := c.Node("a"), c.Node("b")
		if err := bridge.Setup(t.Context(), a.Load(), nil); err != nil {
			t.Fatal(err)
		}
		wantRefusal(t, run(t, b, map[string]string{"postgres.dsn": a.DSN}), `node "a"`, `node "b"`, "point postgres.dsn at")
	})
}

// badServer shows what needs a server of its own: settings, roles, another cluster's stream. The steps
// share one, so they are in an order.
func badServer(t *testing.T) {
	pg := pgtest.NewCluster(t, pgtest.Newest(t), map[string]string{"wal_level": "minimal", "max_wal_senders": "0", "fsync": "off"})
	admin := pg.SocketDSN("postgres")
	restart := func(settings ...string) {
		t.Helper()
		for _, s := range settings {
			pgtest.Exec(t, admin, "ALTER SYSTEM SET "+s)
		}
		if err := errors.Join(pg.Stop(t.Context(), pgcluster.Fast), pg.Restart(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	n := oneNode(t, "")
	n.Start() // its stream is of the shared server
	n.Stop()
	here := func(database string, keys map[string]string) map[string]string {
		all := map[string]string{"postgres.dsn": pg.SocketDSN(database), "data_dir": filepath.Join(t.TempDir(), "data")}
		maps.Copy(all, keys)
		return all
	}
	restart("wal_level = replica", "max_wal_senders = 5")
	t.Run("wal_level", func(t *testing.T) {
		wantRefusal(t, run(t, n, here("postgres", nil)), "wal_level", "is replica", "ALTER SYSTEM SET wal_level = logical")
	})
	restart("wal_level = logical", "track_commit_timestamp = off", "max_replication_slots = 1")
	t.Run("pitfall 10 track_commit_timestamp is off", func(t *testing.T) {
		wantRefusal(t, run(t, n, here("postgres", nil)), "track_commit_timestamp", "is off", "ALTER SYSTEM SET track_commit_timestamp = on")
	})
	restart("track_commit_timestamp = on")
	t.Run("no free slot", func(t *testing.T) {
		pgtest.Exec(t, admin, `SELECT pg_create_physical_replication_slot('other')`)
		defer pgtest.Exec(t, admin, `SELECT pg_drop_replication_slot('other')`)
		wantRefusal(t, run(t, n, here("postgres", nil)), "max_replication_slots", "is 1, and all are taken", "raise it and restart")
	})
	t.Run("wrong password", func(t *testing.T) { wrongPassword(t, n, pg, here) })
	t.Run("a stream of another cluster", func(t *testing.T) {
		wantRefusal(t, run(t, n, map[string]string{"postgres.dsn": pg.SocketDSN("postgres")}),
			"stream of node a", "another PostgreSQL cluster", "point postgres.dsn at the right server")
	})
	t.Run("privileges", func(t *testing.T) { missingPrivileges(t, n, pg, here) })
	t.Run("the slot invalidated", func(t *testing.T) {
		slot := n.Status().Slot.Slot
		for _, sql := range []string{`ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'`, `ALTER SYSTEM SET max_wal_size = '32MB'`,
			`SELECT pg_reload_conf()`} {
			pgtest.Exec(t, admin, sql)
		}
		for range 4 {
			pgtest.Exec(t, admin, `SELECT pg_logical_emit_message(false, 'ballast', ''), pg_switch_wal()`)
		}
		pgtest.Exec(t, admin, `CHECKPOINT`)
		wantRefusal(t, run(t, n, here("postgres", nil)), slot, "was invalidated by the server", "pgbridge node restored", "max_slot_wal_keep_size")
	})
}

// lettingIn is a DSN of a role over TCP.
func lettingIn(pg *pgcluster.Cluster, role, password string) string {
	return fmt.Sprintf("postgres://%s:%s@127.0.0.1:%d/postgres?sslmode=disable", role, password, pg.Port())
}

func wrongPassword(t *testing.T, n *cluster.Node, pg *pgcluster.Cluster, here func(string, map[string]string) map[string]string) {
	hba := filepath.Join(pg.DataDir(), "pg_hba.conf")
	old, err := os.ReadFile(hba)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hba, append([]byte("host all guarded 127.0.0.1/32 scram-sha-256\n"), old...), 0o600); err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, pg.SocketDSN("postgres"), `CREATE ROLE guarded LOGIN SUPERUSER PASSWORD 'another'; SELECT pg_reload_conf()`)
	dsn := lettingIn(pg, "guarded", badPassword)
	wantRefusal(t, run(t, n, here("", map[string]string{"postgres.dsn": dsn})), "postgres.dsn", `"guarded"`, "correct user, password and database")
}

// missingPrivileges takes a set-up database, and a role that is given one privilege after the other.
func missingPrivileges(t *testing.T, n *cluster.Node, pg *pgcluster.Cluster, here func(string, map[string]string) map[string]string) {
	admin := pg.SocketDSN("postgres")
	pgtest.Exec(t, admin, `CREATE ROLE poor LOGIN`)
	keys := here("", map[string]string{"postgres.dsn": lettingIn(pg, "poor", badPassword), "postgres.auto_setup": "false"})
	for _, c := range []struct {
		name, before string
		words        []string
	}{
		{"replication", ``, []string{`"poor"`, "lacks the attribute REPLICATION", "run ALTER ROLE", "REPLICATION"}},
		{"session_replication_role", `ALTER ROLE poor REPLICATION`,
			[]string{"session_replication_role", "run GRANT SET ON PARAMETER session_replication_role TO"}},
		{"schema pgbridge", `GRANT SET ON PARAMETER session_replication_role TO poor`,
			[]string{"schema pgbridge", "grant that to the role in postgres.dsn"}},
		{"replication origins", `GRANT USAGE ON SCHEMA pgbridge TO poor; GRANT ALL ON ALL TABLES IN SCHEMA pgbridge TO poor`,
			[]string{"pg_replication_origin_session_setup", "run GRANT EXECUTE ON FUNCTION pg_replication_origin_"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			pgtest.Exec(t, admin, c.before)
			wantRefusal(t, run(t, n, keys), c.words...)
		})
	}
}

// absentOnReceiver: the origin waits, status says why, and it goes on when the table or column is there.
func absentOnReceiver(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, Idle: true})
	a, b := c.Node("a"), c.Node("b")
	a.Exec(`CREATE TABLE late (id int PRIMARY KEY, v text)`)
	a.Start()
	b.Start()
	waits := func(words ...string) {
		t.Helper()
		b.AwaitStatus(func(r *cluster.Report) bool {
			for _, l := range r.Links {
				ok := l.State == "waiting"
				for _, w := range words {
					ok = ok && strings.Contains(l.Waiting, w)
				}
				if ok {
					return true
				}
			}
			return false
		})
	}
	t.Run("table", func(t *testing.T) {
		a.Exec(`INSERT INTO late VALUES (1, 'x')`)
		waits(`"public"."late"`, "is not here", "create it")
		b.Exec(`CREATE TABLE late (id int PRIMARY KEY, v text)`)
		b.Await(`SELECT id, v FROM late`, "1|x")
	})
	t.Run("column", func(t *testing.T) {
		a.Exec(`ALTER TABLE late ADD COLUMN extra int`)
		a.Exec(`INSERT INTO late VALUES (2, 'y', 3)`)
		waits(`"public"."late"`, `"extra"`, "ADD COLUMN")
		b.Exec(`ALTER TABLE late ADD COLUMN extra int`)
		b.Await(`SELECT id, v, extra FROM late ORDER BY id`, "1|x|∅\n2|y|3")
	})
	b.AwaitStatus(func(r *cluster.Report) bool { return len(r.Links) == 1 && r.Links[0].Waiting == "" })
}

// twoBridges: the first goes on, the second ends with exit code 4, so that no supervisor starts it again.
func twoBridges(t *testing.T) {
	n := oneNode(t, "")
	n.Start()
	t.Run("same data_dir", func(t *testing.T) {
		wantRefusal(t, run(t, n, nil), "data_dir", "in use by another pgbridge", "stop it")
		wantExit(t, 4, exec.Command(cluster.Binary(t), "run", "--config", n.File))
	})
	t.Run("same database", func(t *testing.T) {
		out := wantExit(t, 4, exec.Command(cluster.Binary(t), "run", "--config", n.File,
			"--set", "data_dir="+filepath.Join(t.TempDir(), "data"), "--set", "nats.embedded.listen=127.0.0.1:0"))
		lines := strings.Split(strings.TrimSpace(out), "\n")
		wantRefusal(t, errors.New(lines[len(lines)-1]), "another pgbridge already runs for this node", "stop it")
	})
	n.AwaitStatus(func(r *cluster.Report) bool { return r.Waiting == "" && r.Slot.State == "active" })
}
