// Command debtest tries the Debian package in this system, as root: it installs it, runs two nodes as its unit would, upgrades it while
// they run, and purges it. What it leaves is what it found.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/integration/pgcluster"
)

const (
	unitFile = "/lib/systemd/system/pgbridge.service"
	dataDir  = "/var/lib/pgbridge"
	confDir  = "/etc/pgbridge"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: debtest OLDER.deb NEWER.deb")
		os.Exit(2)
	}
	if err := try(ctx, os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "debtest:", err)
		os.Exit(1)
	}
}

// node is one of the two.
type node struct {
	name, config string
	pg           *pgcluster.Cluster
	bridge       *exec.Cmd
}

func try(ctx context.Context, older, newer string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("only root may install packages")
	}
	if out, err := exec.Command("dpkg", "-s", "pgbridge").Output(); err == nil && strings.Contains(string(out), "Status: install") {
		return errors.New("pgbridge is installed here; remove it first")
	}
	for _, path := range []string{dataDir, confDir} {
		if _, err := os.Stat(path); err == nil {
			return fmt.Errorf("%s is there; this would remove it", path)
		}
	}
	defer func() { err = errors.Join(err, purge(ctx)) }()
	if err := command(ctx, "dpkg", "-i", older); err != nil {
		return err
	}
	if err := installed(ctx); err != nil {
		return err
	}
	nodes, err := start(ctx)
	defer func() {
		for _, n := range nodes {
			err = errors.Join(err, n.stop())
			if n.pg != nil {
				err = errors.Join(err, n.pg.Close())
			}
		}
	}()
	if err != nil {
		return err
	}
	if err := replicates(ctx, nodes, 1); err != nil {
		return err
	}
	if err := command(ctx, "dpkg", "-i", newer); err != nil {
		return err
	}
	for _, n := range nodes { // as systemctl try-restart would, one after the other
		if err := errors.Join(n.stop(), n.run()); err != nil {
			return err
		}
	}
	if err := replicates(ctx, nodes, 2); err != nil {
		return err
	}
	fmt.Println("installed, replicates both ways, upgraded, replicates both ways")
	return nil
}

func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// installed looks at what the package has brought.
func installed(ctx context.Context) error {
	if _, err := exec.LookPath("systemd-analyze"); err == nil {
		if err := command(ctx, "systemd-analyze", "verify", unitFile); err != nil {
			return err
		}
	}
	info, err := os.Stat(dataDir)
	if err != nil || info.Mode().Perm() != 0o700 {
		return fmt.Errorf("%s: %v, %v", dataDir, info, err)
	}
	if err := command(ctx, "bash", "-n", "/usr/share/bash-completion/completions/pgbridge"); err != nil {
		return err
	}
	if _, err := os.Stat("/usr/share/man/man1/pgbridge-status.1.gz"); err != nil {
		return err
	}
	return command(ctx, "pgbridge", "version")
}

// start brings two primaries and their bridges up.
func start(ctx context.Context) (nodes []*node, err error) {
	install, err := pgcluster.Find(18)
	if err != nil {
		return nil, err
	}
	ports := map[string]string{"a": "127.0.0.1:42221", "b": "127.0.0.1:42222"}
	for _, name := range []string{"a", "b"} {
		n := &node{name: name, config: filepath.Join(confDir, name+".yaml")}
		nodes = append(nodes, n)
		if n.pg, err = pgcluster.Start(ctx, pgcluster.Options{Install: install}); err != nil {
			return nodes, err
		}
		if err := n.exec(ctx, `CREATE TABLE t (id int PRIMARY KEY, v text)`); err != nil {
			return nodes, err
		}
		text := fmt.Sprintf("cluster: deb\nnode: %s\ndata_dir: %s/%[1]s\npostgres:\n  dsn: %[3]s\ntopology:\n  nodes:\n    a: nats://%[4]s\n    b: nats://%[5]s\nnats:\n  embedded:\n    max_store: 1GiB\nstream:\n  max_bytes: 64MiB\n",
			name, dataDir, n.pg.DSN("postgres"), ports["a"], ports["b"])
		if err := os.WriteFile(n.config, []byte(text), 0o644); err != nil {
			return nodes, err
		}
		if err := n.run(); err != nil {
			return nodes, err
		}
	}
	return nodes, nil
}

// run starts the bridge by the command of the unit, with this node's configuration in the place of its own.
func (n *node) run() error {
	unit, err := os.ReadFile(unitFile)
	if err != nil {
		return err
	}
	m := regexp.MustCompile(`(?m)^ExecStart=(.*)$`).FindSubmatch(unit)
	name := regexp.MustCompile(`(?m)^User=(.*)$`).FindSubmatch(unit)
	if m == nil || name == nil {
		return fmt.Errorf("%s has no ExecStart or no User", unitFile)
	}
	u, err := user.Lookup(string(name[1]))
	if err != nil {
		return err
	}
	var uid, gid uint32
	if _, err := fmt.Sscan(u.Uid+" "+u.Gid, &uid, &gid); err != nil {
		return fmt.Errorf("user %s: %w", u.Username, err)
	}
	line := strings.Fields(strings.Replace(string(m[1]), confDir+"/pgbridge.yaml", n.config, 1))
	n.bridge = exec.Command(line[0], line[1:]...)
	n.bridge.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	n.bridge.Stdout, n.bridge.Stderr = os.Stdout, os.Stderr
	return n.bridge.Start()
}

func (n *node) stop() error {
	if n.bridge == nil || n.bridge.Process == nil {
		return nil
	}
	if err := n.bridge.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop node %s: %w", n.name, err)
	}
	err := n.bridge.Wait()
	n.bridge = nil
	return err
}

func (n *node) exec(ctx context.Context, sql string, args ...any) error {
	conn, err := pgx.Connect(ctx, n.pg.DSN("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql, args...)
	return err
}

// replicates writes a row on each node and waits until it is on the other one.
func replicates(ctx context.Context, nodes []*node, round int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for i, n := range nodes {
		id := 10*round + i
		if err := n.exec(ctx, `INSERT INTO t VALUES ($1, $2)`, id, n.name); err != nil {
			return err
		}
		other := nodes[1-i]
		for {
			err := other.exec(ctx, `SELECT 1/count(*) FROM t WHERE id = $1`, id)
			if err == nil {
				break
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				return fmt.Errorf("a row of node %s has not reached node %s: %w", n.name, other.name, err)
			}
		}
	}
	return nil
}

// purge removes the package and looks for what is left of it.
func purge(ctx context.Context) error {
	listed, err := exec.Command("dpkg", "-L", "pgbridge").Output()
	if err != nil {
		return nil // it was never installed
	}
	if err := command(ctx, "dpkg", "--purge", "pgbridge"); err != nil {
		return err
	}
	var left []string
	for path := range strings.FieldsSeq(string(listed)) {
		if info, err := os.Stat(path); strings.Contains(path, "pgbridge") && err == nil && !info.IsDir() {
			left = append(left, path)
		}
	}
	if _, err := os.Stat(confDir); err == nil {
		left = append(left, confDir)
	}
	if exec.Command("getent", "passwd", "pgbridge").Run() == nil {
		left = append(left, "user pgbridge")
	}
	if len(left) > 0 {
		return fmt.Errorf("the package leaves %s", strings.Join(left, ", "))
	}
	if _, err := os.Stat(dataDir); err != nil {
		return fmt.Errorf("the package has removed the data directory: %w", err)
	}
	fmt.Println("purged: nothing is left but", dataDir, "which is removed now")
	return os.RemoveAll(dataDir)
}
