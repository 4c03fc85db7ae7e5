package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// bucardoName is the rival whose triggers note the key of each changed row, and whose daemon then copies these rows.
const (
	bucardoName    = "bucardo"
	bucardoCommand = "bucardo"
)

// bucardo has one sync of all tables, both of whose ends are sources, as it is made for. Its database is on the source's
// server. Settings are its defaults but for the places of its files, and the daemon ends when a server goes away instead
// of being started anew for ever.
//
// The daemon puts itself into the background with four processes: the master, one that tidies the triggers' tables up,
// and for the sync a controller, and a kid that does the work.
type bucardo struct {
	*pair
	keepLog string // where the daemon's log is left behind

	control *pgx.Conn // to its own database
	started bool
}

const bucardoSync = "bench"

// dir is where the daemon's files are.
func (r *bucardo) dir() string { return filepath.Join(r.pair.dir, bucardoName) }

// logFile is the daemon's name for it.
func (r *bucardo) logFile() string { return filepath.Join(r.dir(), "log.bucardo") }

func (r *bucardo) connect(ctx context.Context) error {
	if err := os.Mkdir(r.dir(), 0o755); err != nil {
		return err
	}
	// It would make the role with a password, and write that into a file.
	if err := r.source.exec(ctx, "CREATE ROLE bucardo SUPERUSER LOGIN"); err != nil {
		return err
	}
	if err := r.run(ctx, "postgres", "install", "--batch"); err != nil {
		return err
	}
	address := r.source.conn.Config()
	address.Database = "bucardo"
	var err error
	if r.control, err = pgx.ConnectConfig(ctx, address); err != nil {
		return fmt.Errorf("connect to Bucardo's database: %w", err)
	}
	for name, value := range map[string]string{
		"log_conflict_file": filepath.Join(r.dir(), "conflict.log"), "warning_file": filepath.Join(r.dir(), "warning.log"),
		"reason_file": filepath.Join(r.dir(), "reason"), "mcp_dbproblem_sleep": "0"} {
		if _, err := r.control.Exec(ctx, "UPDATE bucardo.bucardo_config SET setting = $1 WHERE name = $2", value, name); err != nil {
			return fmt.Errorf("set Bucardo's %s: %w", name, err)
		}
	}
	for _, s := range []*server{r.source, r.receiver} {
		at := s.conn.Config()
		err := r.run(ctx, "bucardo", "add", "db", s.name, "dbname="+at.Database, "host="+at.Host,
			"port="+strconv.Itoa(int(at.Port)), "user="+at.User)
		if err != nil {
			return err
		}
	}
	err = errors.Join(
		r.run(ctx, "bucardo", "add", "all", "tables", "--db=source", "--relgroup=bench"),
		r.run(ctx, "bucardo", "add", "sync", bucardoSync, "relgroup=bench", "dbs=source:source,receiver:source"))
	if err != nil {
		return err
	}
	r.started = true
	if err := r.run(ctx, "bucardo", "start"); err != nil {
		return err
	}
	return r.awaitProcesses(ctx, hasKid)
}

// hasKid reports whether the process that does the work is there.
func hasKid(p map[string]int) bool { return p[bucardoKid] > 0 }

// run runs Bucardo's command on one of the databases of the source's server.
func (r *bucardo) run(ctx context.Context, database string, args ...string) error {
	at := r.source.conn.Config()
	user := "bucardo"
	if database != user {
		user = at.User
	}
	cmd := exec.CommandContext(ctx, bucardoCommand, append([]string{"--no-bucardorc", "--dbname=" + database, "--dbuser=" + user,
		"--dbhost=" + at.Host, "--dbport=" + strconv.Itoa(int(at.Port)), "--piddir=" + r.dir(), "--log-destination=" + r.dir(),
		"--sendmail=0"}, args...)...)
	cmd.Dir = r.dir()
	cmd.Env = append(os.Environ(), "HOME="+r.dir())
	// The daemon inherits what it finds open: pipes would be waited for until it ends.
	out, err := os.CreateTemp(r.dir(), "out-")
	if err != nil {
		return err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(out.Name()) // it is only shown
		return fmt.Errorf("bucardo %s: %w\n%s", strings.Join(args, " "), err, text)
	}
	return nil
}

// pause stops the controller and the kid; triggers go on noting what changes. The controller must have ended, not only
// have said so: the master would hand the work on to it, and forget that there is any.
func (r *bucardo) pause(ctx context.Context) error {
	controller := r.processes()[bucardoController]
	if err := r.notify(ctx, "pause_sync_"+bucardoSync); err != nil {
		return err
	}
	return r.awaitProcesses(ctx, func(p map[string]int) bool {
		return !hasKid(p) && p[bucardoController] == 0 && syscall.Kill(controller, 0) != nil
	})
}

// resume counts from the moment at which the process that does the work is there; connecting to both ends is in its time.
func (r *bucardo) resume(ctx context.Context) (time.Time, time.Duration, error) {
	asked := time.Now()
	if err := r.notify(ctx, "resume_sync_"+bucardoSync); err != nil {
		return asked, 0, err
	}
	err := r.awaitProcesses(ctx, hasKid)
	begun := time.Now()
	return begun, begun.Sub(asked), err
}

// notify tells the daemon, as its command does.
func (r *bucardo) notify(ctx context.Context, what string) error {
	if _, err := r.control.Exec(ctx, "SELECT pg_notify('bucardo', $1)", what); err != nil {
		return fmt.Errorf("tell Bucardo to %s: %w", what, err)
	}
	return nil
}

func (r *bucardo) await(context.Context) error { return nil }

// awaitProcesses waits until the daemon's processes are as they should be.
func (r *bucardo) awaitProcesses(ctx context.Context, there func(map[string]int) bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("waited for %s", startTimeout))
	defer cancel()
	for {
		p := r.processes()
		if there(p) {
			return nil
		}
		if p[bucardoMaster] > 0 { // it has begun
			if err := r.failed(); err != nil {
				return err
			}
		}
		select {
		case <-time.After(pollPause):
		case <-ctx.Done():
			return fmt.Errorf("the sync of Bucardo does not start or stop: %w; its log ends with\n%s", context.Cause(ctx), r.logTail())
		}
	}
}

const (
	bucardoMaster     = "bucardo master"
	bucardoController = "bucardo controller"
	bucardoKid        = "bucardo kid"
)

// processes reads the files in which the daemon's processes write who they are.
func (r *bucardo) processes() map[string]int {
	found := map[string]int{}
	for name, file := range map[string]string{
		bucardoMaster: "bucardo.mcp.pid", "bucardo vacuum": "bucardo.vac.pid",
		bucardoController: "bucardo.ctl.sync." + bucardoSync + ".pid", bucardoKid: "bucardo.kid.sync." + bucardoSync + ".pid"} {
		text, err := os.ReadFile(filepath.Join(r.dir(), file))
		if err != nil {
			continue
		}
		first, _, _ := strings.Cut(string(text), "\n")
		if pid, err := strconv.Atoi(strings.TrimSpace(first)); err == nil {
			found[name] = pid
		}
	}
	return found
}

// failed looks whether the daemon is there.
func (r *bucardo) failed() error {
	pid := r.processes()[bucardoMaster]
	if pid > 0 && syscall.Kill(pid, 0) == nil {
		return nil
	}
	return fmt.Errorf("the daemon of Bucardo has ended; its log ends with\n%s", r.logTail())
}

func (r *bucardo) counters(context.Context) (map[string]uint64, error) { return nil, nil }

// warnings are lines of the daemon's log.
func (r *bucardo) warnings() []string {
	var bad []string
	text, _ := os.ReadFile(r.logFile()) // no log, no warnings
	for line := range strings.Lines(string(text)) {
		bad = bad[max(0, len(bad)-keptLines):]
		if strings.Contains(line, "Stop sync request") { // pause's
			continue
		}
		if strings.Contains(line, "Warning") || strings.Contains(line, "ERROR") {
			bad = append(bad, strings.TrimSpace(line))
		}
	}
	return bad
}

func (r *bucardo) logTail() []byte {
	text, _ := os.ReadFile(r.logFile()) // it is only shown
	lines := bytes.SplitAfter(text, []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-keptLines):], nil)
}

// close stops the daemon and waits until its processes have gone; those that stay are killed.
func (r *bucardo) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if r.control != nil {
		r.control.Close(ctx) // the server goes anyway
	}
	if !r.started {
		return nil
	}
	r.started = false
	err := errors.Join(r.run(ctx, "bucardo", "stop"), r.awaitGone(ctx))
	text, errRead := os.ReadFile(r.logFile())
	return errors.Join(err, errRead, os.WriteFile(r.keepLog, text, 0o644))
}

// awaitGone waits until the daemon's processes have removed their files, the last thing that each does. Whether they
// are there cannot be asked of the kernel: they are not this program's children, and stay zombies where nobody reaps.
func (r *bucardo) awaitGone(ctx context.Context) error {
	for {
		left := r.processes()
		if len(left) == 0 {
			return nil
		}
		select {
		case <-time.After(pollPause):
		case <-ctx.Done():
			for _, pid := range left {
				syscall.Kill(pid, syscall.SIGKILL) // fails only when it has ended
			}
			return fmt.Errorf("processes of Bucardo did not stop and were killed: %v", left)
		}
	}
}
