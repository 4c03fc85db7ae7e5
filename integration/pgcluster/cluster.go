package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Superuser is the role that owns each cluster. It needs no password, on the
// socket or on loopback.
const Superuser = "postgres"

// Options says what Start runs. Only Install is required.
type Options struct {
	// Install is the PostgreSQL to run, from Find or Installed.
	Install Install
	// Dir is where the cluster lives. It must be empty or not exist, and is left
	// in place by Close. "" is a new directory in os.TempDir, which Close removes.
	Dir string
	// TemplateDir is where the template is kept; "" is CacheDir.
	TemplateDir string
	// Settings overrides DefaultSettings, name by name; they go to
	// postgresql.conf, so that ALTER SYSTEM still counts more. fsync=off is for
	// tests that don't measure: kill -9 loses nothing, a power cut does.
	Settings map[string]string
	// Port is the TCP port on 127.0.0.1; 0 is a free one. It stays the same over
	// Restart.
	Port int
	// Clock gives the server a clock that SetClock can set. It takes Linux and gcc.
	Clock bool
}

// DefaultSettings returns what each cluster runs with unless Options.Settings
// says otherwise: ready for pgbridge, small, in UTC, fsync on.
func DefaultSettings(major int) map[string]string {
	s := map[string]string{
		"wal_level":                 "logical",
		"track_commit_timestamp":    "on",
		"max_replication_slots":     "20",
		"max_wal_senders":           "20",
		"max_connections":           "100",
		"deadlock_timeout":          "100ms",
		"max_prepared_transactions": "10",
		"fsync":                     "on",
		"shared_buffers":            "64MB",
		"huge_pages":                "off",
		"jit":                       "off",
		"timezone":                  "UTC",
		"log_timezone":              "UTC",
		"log_line_prefix":           "%m [%p] %q%d %a ",
		"listen_addresses":          "127.0.0.1",
	}
	if major >= 18 {
		s["max_active_replication_origins"] = "200" // before 18 max_replication_slots said it
	}
	return s
}

// Cluster is one PostgreSQL cluster, running or stopped. Its methods may be
// called from several goroutines; Stop, Kill, Restart and Close wait for each
// other.
type Cluster struct {
	install   Install
	acc       account
	dir       string
	socketDir string
	port      int
	clock     bool
	release   func() // gives up the lock on a directory that Start made; nil for another's

	change sync.Mutex // held while the server is started or stopped

	mu   sync.Mutex
	proc *postmaster // guarded by mu; nil when stopped
}

// Start makes a cluster and starts it. When it returns, the server accepts
// connections; on an error nothing is left running. ctx bounds the start only.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	c, err := create(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("create a PostgreSQL %d cluster: %w", o.Install.Major, err)
	}
	if err := c.startOnFreePort(ctx, o); err != nil {
		return nil, errors.Join(fmt.Errorf("start PostgreSQL %d: %w", o.Install.Major, err), c.Close())
	}
	return c, nil
}

// create lays the cluster's directory out.
func create(ctx context.Context, o Options) (*Cluster, error) {
	acc, err := serverAccount()
	if err != nil {
		return nil, err
	}
	if o.TemplateDir == "" {
		if o.TemplateDir, err = CacheDir(); err != nil {
			return nil, err
		}
	}
	from, err := template(ctx, o.Install, o.TemplateDir, acc)
	if err != nil {
		return nil, err
	}
	c := &Cluster{install: o.Install, acc: acc, dir: o.Dir, clock: o.Clock}
	if c.dir == "" {
		if c.dir, c.release, err = makeOwnDir(os.TempDir()); err != nil {
			return nil, err
		}
	}
	if err := c.layOut(from); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Cluster) layOut(from string) (err error) {
	if c.dir, err = filepath.Abs(c.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(c.dir, 0o755); err != nil { // MkdirTemp closes it to the server's user
		return err
	}
	if err := c.acc.checkReach(c.dir); err != nil {
		return err
	}
	if err := copyTree(from, c.DataDir(), c.acc); err != nil {
		return err
	}
	if err := setSystemIdentifier(c.DataDir(), newSystemIdentifier()); err != nil {
		return err
	}
	if err := c.include(); err != nil {
		return err
	}
	if c.clock {
		if err := c.makeClock(); err != nil {
			return err
		}
	}
	return c.makeSocketDir()
}

// makeSocketDir makes the directory of the Unix socket: in the cluster's
// directory, or in /tmp when that makes its path too long for the kernel (107
// bytes on Linux, 103 on macOS).
func (c *Cluster) makeSocketDir() (err error) {
	c.socketDir = filepath.Join(c.dir, "s")
	if len(c.socketDir)+len("/.s.PGSQL.65535") < 100 {
		return c.acc.mkdir(c.socketDir, 0o755)
	}
	if c.socketDir, err = os.MkdirTemp("/tmp", "pgbridge-s-"); err != nil {
		return err
	}
	return errors.Join(os.Chmod(c.socketDir, 0o755), c.acc.own(c.socketDir))
}

// startOnFreePort starts the server for the first time. Between the choice of a
// port and its use another program can take it: then another one is tried.
func (c *Cluster) startOnFreePort(ctx context.Context, o Options) error {
	const attempts = 5
	for attempt := 1; ; attempt++ {
		c.port = o.Port
		if c.port == 0 {
			port, err := FreePort()
			if err != nil {
				return err
			}
			c.port = port
		}
		if err := c.configure(o.Settings); err != nil {
			return err
		}
		err := c.Restart(ctx)
		if err == nil || o.Port != 0 || attempt == attempts || ctx.Err() != nil ||
			!strings.Contains(err.Error(), "Address already in use") {
			return err
		}
	}
}

// configure writes pgcluster.conf, the settings of this cluster.
func (c *Cluster) configure(settings map[string]string) error {
	all := DefaultSettings(c.install.Major)
	all["port"] = strconv.Itoa(c.port)
	all["unix_socket_directories"] = c.socketDir
	maps.Copy(all, settings)
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&text, "%s = '%s'\n", name, strings.ReplaceAll(all[name], "'", "''"))
	}
	path := filepath.Join(c.DataDir(), "pgcluster.conf")
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		return err
	}
	return c.acc.own(path)
}

// include makes postgresql.conf read what configure writes, last of all.
func (c *Cluster) include() error {
	f, err := os.OpenFile(filepath.Join(c.DataDir(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("include 'pgcluster.conf'\n")
	return errors.Join(err, f.Close())
}

// Restart starts the server again, after a fast stop if it runs, on the same
// port and directory. When it returns, the server accepts connections; ctx
// bounds the wait.
func (c *Cluster) Restart(ctx context.Context) error {
	if err := c.Stop(ctx, Fast); err != nil {
		return err
	}
	c.change.Lock()
	defer c.change.Unlock()
	logged := c.logSize()
	proc, err := c.launch()
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.proc = proc
	c.mu.Unlock()
	if err := c.awaitReady(ctx, proc); err != nil {
		return errors.Join(fmt.Errorf("%w; its log ends with\n%s", err, c.logSince(logged)), c.kill(proc))
	}
	return nil
}

// awaitReady connects until the server lets it in.
func (c *Cluster) awaitReady(ctx context.Context, proc *postmaster) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := pgconn.Connect(ctx, c.SocketDSN("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-proc.done:
			return errors.New("the server ended")
		case <-ctx.Done():
			return fmt.Errorf("the server does not accept connections (%w): %w", err, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// Install is the PostgreSQL that the cluster runs.
func (c *Cluster) Install() Install { return c.install }

// Dir is the cluster's directory, absolute: data, socket and log are in it.
func (c *Cluster) Dir() string { return c.dir }

// DataDir is the PostgreSQL data directory.
func (c *Cluster) DataDir() string { return filepath.Join(c.dir, "data") }

// LogPath is the file that the server logs to. It grows over restarts.
func (c *Cluster) LogPath() string { return filepath.Join(c.dir, "postgres.log") }

// Port is the TCP port on 127.0.0.1 and the number in the socket's name.
func (c *Cluster) Port() int { return c.port }

// Pid is the postmaster's process id; 0 when the server does not run.
func (c *Cluster) Pid() int {
	if proc := c.running(); proc != nil {
		return proc.pid
	}
	return 0
}

// DSN is the URL of a database over TCP, for the superuser.
func (c *Cluster) DSN(database string) string {
	u := url.URL{
		Scheme: "postgres", User: url.User(Superuser), Path: "/" + database, RawQuery: "sslmode=disable",
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port)),
	}
	return u.String()
}

// SocketDSN is the URL of a database over the Unix socket, for the superuser.
func (c *Cluster) SocketDSN(database string) string {
	query := url.Values{"host": {c.socketDir}, "port": {strconv.Itoa(c.port)}}
	u := url.URL{Scheme: "postgres", User: url.User(Superuser), Path: "/" + database, RawQuery: query.Encode()}
	return u.String()
}

// LogTail returns the last lines of the server's log, at most 4 KiB.
func (c *Cluster) LogTail() string { return c.logSince(0) }

func (c *Cluster) logSize() int64 {
	st, err := os.Stat(c.LogPath())
	if err != nil {
		return 0
	}
	return st.Size()
}

// logSince returns what the log holds from that offset on, at most its last 4
// KiB. A log that cannot be read is told as such: it is only ever shown.
func (c *Cluster) logSince(offset int64) string {
	const most = 4 << 10
	f, err := os.Open(c.LogPath())
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	text, err := io.ReadAll(io.NewSectionReader(f, offset, 1<<30))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-most):])
}
