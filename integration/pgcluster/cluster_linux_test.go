package pgcluster_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"github.com/pgbridge/pgbridge/integration/pgcluster"
)

func TestKillLeavesNoChild(t *testing.T) {
	c := start(t, 18, nil)
	conn, err := pgx.Connect(t.Context(), c.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	// A backend inside of a statement would not notice the postmaster's death.
	busy := make(chan error, 1)
	go func() {
		_, err := conn.Exec(context.Background(), "SELECT count(*) FROM generate_series(1, 1000000000000)")
		busy <- err
	}()
	const active = "SELECT count(*)::text FROM pg_stat_activity WHERE query LIKE 'SELECT count(*) FROM gen%'"
	for ask(t, c.DSN("postgres"), active) == "0" {
	}
	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-busy; err == nil {
		t.Error("the statement came to its end")
	}
	if running(conn.PgConn().PID()) {
		t.Error("the backend is still there")
	}
	if err := c.Kill(); err != nil {
		t.Errorf("killed twice: %v", err)
	}
}

// running says whether a process is there and is not one that only waits to be
// reaped by init.
func running(pid uint32) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// TestServerDiesWithItsProgram runs this test binary as the program that is
// killed.
func TestServerDiesWithItsProgram(t *testing.T) {
	const role = "PGCLUSTER_TEST_VICTIM"
	if os.Getenv(role) != "" {
		c := start(t, 18, nil)
		fmt.Println(c.Pid(), c.Dir())
		select {}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestServerDiesWithItsProgram$")
	cmd.Env = append(os.Environ(), role+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	var dir string
	if _, err := fmt.Fscan(out, &pid, &dir); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()              // "signal: killed"
	const patience = 30_000 // milliseconds; the server needs a few
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, patience); n != 1 {
		t.Fatalf("the server outlives its program (%v)", err)
	}
	start(t, 18, nil)
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the next start leaves the killed program's directory %s there (%v)", dir, err)
	}
}

func TestClockIsSet(t *testing.T) {
	for _, major := range majors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			in, err := pgcluster.Find(major)
			if err != nil {
				t.Fatal(err)
			}
			c, err := pgcluster.Start(t.Context(), pgcluster.Options{Install: in, Clock: true})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			conn, err := pgx.Connect(t.Context(), c.SocketDSN("postgres"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(context.Background())
			if _, err := conn.Exec(t.Context(), "CREATE TABLE t ()"); err != nil {
				t.Fatal(err)
			}
			for _, ahead := range []time.Duration{0, 10 * time.Minute, -10 * time.Minute} {
				if err := c.SetClock(ahead); err != nil {
					t.Fatal(err)
				}
				before := time.Now().Add(ahead)
				var stamp time.Time
				if _, err := conn.Exec(t.Context(), "INSERT INTO t DEFAULT VALUES"); err != nil {
					t.Fatal(err)
				}
				if err := conn.QueryRow(t.Context(), "SELECT max(pg_xact_commit_timestamp(xmin)) FROM t WHERE xmin::text = (SELECT max(xmin::text::bigint)::text FROM t)").Scan(&stamp); err != nil {
					t.Fatal(err)
				}
				if after := time.Now().Add(ahead); stamp.Before(before.Truncate(time.Microsecond)) || stamp.After(after) {
					t.Errorf("%v ahead the commit's timestamp is %v, between %v and %v it should be", ahead, stamp, before, after)
				}
			}
		})
	}
}
