package pgcluster_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/integration/pgcluster"
)

var majors = []int{15, 16, 17, 18}

func start(t *testing.T, major int, settings map[string]string) *pgcluster.Cluster {
	t.Helper()
	in, err := pgcluster.Find(major)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c, err := pgcluster.Start(t.Context(), pgcluster.Options{Install: in, Settings: settings})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("PostgreSQL %s is up after %v", in.Version, time.Since(began).Round(time.Millisecond))
	return c
}

// ask returns the only value of a query.
func ask(t *testing.T, dsn, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var answer string
	if err := conn.QueryRow(t.Context(), sql).Scan(&answer); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return answer
}

func TestEachVersionIsReadyForLogicalDecoding(t *testing.T) {
	for _, major := range majors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			c := start(t, major, nil)
			for _, dsn := range []string{c.DSN("postgres"), c.SocketDSN("postgres")} {
				for name, want := range map[string]string{
					"wal_level": "logical", "track_commit_timestamp": "on", "max_prepared_transactions": "10",
					"fsync": "on", "TimeZone": "UTC", "server_encoding": "UTF8",
				} {
					if got := ask(t, dsn, "SELECT current_setting('"+name+"')"); got != want {
						t.Errorf("%s = %q, want %q", name, got, want)
					}
				}
			}
			dsn := c.SocketDSN("postgres")
			if got := ask(t, dsn, "SELECT (current_setting('server_version_num')::int / 10000)::text"); got != fmt.Sprint(major) {
				t.Errorf("the server says it is PostgreSQL %s", got)
			}
			ask(t, dsn, "SELECT lsn::text FROM pg_create_logical_replication_slot('s', 'pgoutput')")
			ask(t, dsn, "SELECT pg_replication_origin_create('o')::text")
		})
	}
}

func TestSettingsOverrideTheDefaults(t *testing.T) {
	c := start(t, 18, map[string]string{"fsync": "off", "wal_level": "replica", "application_name": "it's"})
	for name, want := range map[string]string{"fsync": "off", "wal_level": "replica", "shared_buffers": "64MB"} {
		if got := ask(t, c.SocketDSN("postgres"), "SELECT current_setting('"+name+"')"); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
}

func TestClustersOfOneTemplateHaveTheirOwnIdentity(t *testing.T) {
	const sql = "SELECT system_identifier::text FROM pg_control_system()"
	a, b := start(t, 15, nil), start(t, 15, nil)
	if ask(t, a.DSN("postgres"), sql) == ask(t, b.DSN("postgres"), sql) {
		t.Error("two clusters have one system identifier")
	}
}

func TestCommittedRowsOutliveEveryWayToStop(t *testing.T) {
	for _, major := range majors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			c := start(t, major, nil)
			dsn := c.DSN("postgres")
			run(t, dsn, "CREATE TABLE t (way text)")
			for way, stop := range map[string]func() error{
				"kill":      c.Kill,
				"fast":      func() error { return c.Stop(t.Context(), pgcluster.Fast) },
				"immediate": func() error { return c.Stop(t.Context(), pgcluster.Immediate) },
				"none":      func() error { return nil },
			} {
				run(t, dsn, "INSERT INTO t VALUES ('"+way+"')")
				if err := stop(); err != nil {
					t.Fatalf("%s: %v", way, err)
				}
				if way != "none" && c.Pid() != 0 {
					t.Errorf("after %s the server has pid %d", way, c.Pid())
				}
				if err := c.Restart(t.Context()); err != nil {
					t.Fatalf("after %s: %v", way, err)
				}
				if got := ask(t, dsn, "SELECT count(*)::text FROM t WHERE way = '"+way+"'"); got != "1" {
					t.Errorf("after %s: %s rows", way, got)
				}
			}
		})
	}
}

func TestCloseRemovesWhatStartMade(t *testing.T) {
	in, err := pgcluster.Find(18)
	if err != nil {
		t.Fatal(err)
	}
	c, err := pgcluster.Start(t.Context(), pgcluster.Options{Install: in})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there (%v)", c.Dir(), err)
	}
}

func TestLongDirectoryStillHasASocket(t *testing.T) {
	in, err := pgcluster.Find(15)
	if err != nil {
		t.Fatal(err)
	}
	parent, err := os.MkdirTemp("", "pgbridge-long-") // t.TempDir is closed to the server's user
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(parent)
	if err := os.Chmod(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(parent, strings.Repeat("x", 120))
	c, err := pgcluster.Start(t.Context(), pgcluster.Options{Install: in, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	ask(t, c.SocketDSN("postgres"), "SELECT 'here'")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.DataDir()); err != nil {
		t.Errorf("Close removed a directory that was given to it: %v", err)
	}
}

func TestStartTellsWhyTheServerDoesNotComeUp(t *testing.T) {
	in, err := pgcluster.Find(18)
	if err != nil {
		t.Fatal(err)
	}
	_, err = pgcluster.Start(t.Context(), pgcluster.Options{Install: in, Settings: map[string]string{"wal_level": "nonsense"}})
	if err == nil || !strings.Contains(err.Error(), `invalid value for parameter "wal_level": "nonsense"`) {
		t.Errorf("the error does not name the setting: %v", err)
	}
}

func TestFindNamesTheMend(t *testing.T) {
	_, err := pgcluster.Find(3)
	if !errors.Is(err, pgcluster.ErrNotInstalled) || !strings.Contains(err.Error(), "scripts/postgres.sh 3") {
		t.Errorf("got %v", err)
	}
}

func TestFindWithLooksForTheLibraries(t *testing.T) {
	in, err := pgcluster.FindWith(18, "plpgsql")
	if err != nil || in.Major != 18 {
		t.Errorf("%+v, %v", in, err)
	}
	_, err = pgcluster.FindWith(18, "plpgsql", "no_such_thing")
	if !errors.Is(err, pgcluster.ErrNotInstalled) || !strings.Contains(err.Error(), "no_such_thing") {
		t.Errorf("got %v", err)
	}
}

func TestInstalledIsSortedAndHasEachMajorOnce(t *testing.T) {
	last := 1000
	for _, in := range pgcluster.Installed() {
		if in.Major >= last {
			t.Errorf("PostgreSQL %d comes after %d", in.Major, last)
		}
		last = in.Major
	}
	if last == 1000 {
		t.Error("none found")
	}
}

func run(t *testing.T, dsn, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func TestIDsMayComeRound(t *testing.T) {
	for _, major := range majors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			c := start(t, major, map[string]string{"fsync": "off", "autovacuum": "off"})
			dsn := c.SocketDSN("postgres")
			var id uint64
			if _, err := fmt.Sscan(ask(t, dsn, "SELECT pg_current_xact_id()::text"), &id); err != nil {
				t.Fatal(err)
			}
			run(t, dsn, "CREATE TABLE t (a int)")
			run(t, dsn, "VACUUM FREEZE") // the table is of the ids that come again
			if err := c.SetNextID(1 << 32); err == nil {
				t.Error("set while the server runs")
			}
			if err := c.Stop(t.Context(), pgcluster.Fast); err != nil {
				t.Fatal(err)
			}
			if err := c.SetNextID(1<<32 + id); err != nil {
				t.Fatal(err)
			}
			if err := c.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := ask(t, dsn, "SELECT pg_current_xact_id()::text"); got != fmt.Sprint(1<<32+id) {
				t.Errorf("id %s, want %d", got, 1<<32+id)
			}
			run(t, dsn, "INSERT INTO t VALUES (1)")
		})
	}
}
