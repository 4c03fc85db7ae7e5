package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/integration/pgcluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/topology"
)

// Options say what New makes.
type Options struct {
	Nodes  int    // 3 if zero
	Majors []int  // PostgreSQL versions, round the nodes; the newest if nil
	Schema string // run on every node before the bridges are set up
	Tables []string
	// Own gives each node a PostgreSQL cluster of its own, which the test may kill; else the nodes are
	// databases of shared servers.
	Own      bool
	Settings map[string]string // of own clusters
	Clocks   bool              // of own clusters can be set, by PG.SetClock
	// Processes runs bridges as processes of their own, which the test may kill, instead of in process.
	Processes bool
	// Config changes a node's configuration file's keys. Nodes that topology.roles makes edges have no address then.
	Config map[string]string
	// Keys gives the nodes what pgbridge keys makes: they speak TLS, sign their frames and require that, and rows of tables that only some have are sealed.
	Keys bool
	// NoHold switches the causal hold off (in process only).
	NoHold bool
	// Idle does not start the bridges.
	Idle bool
}

// Cluster is a mesh of nodes.
type Cluster struct {
	t     testing.TB
	opts  Options
	Name  string
	Nodes []*Node
	round int    // of sentinels
	keys  string // the directory of all nodes' keys
}

// Node is one node: a database and a bridge.
type Node struct {
	c      *Cluster
	t      testing.TB
	Name   string
	DSN    string
	PG     *pgcluster.Cluster // nil on a shared server
	Major  int
	Dir    string
	File   string           // configuration
	Listen string           // of the embedded broker
	Links  map[string]*Link // to the other nodes, by name
	// Program is what its bridge runs as a process; empty: this version of pgbridge.
	Program string

	rounds  int // of sentinels that were written here
	stop    func() error
	ended   chan error // what the bridge in process ended with
	process *process
}

// New makes a mesh and waits until every bridge runs.
func New(t testing.TB, o Options) *Cluster {
	t.Helper()
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Majors == nil {
		o.Majors = []int{pgtest.Newest(t)}
	}
	c := &Cluster{t: t, opts: o}
	if o.Keys {
		c.keys = t.TempDir()
	}
	for i := range o.Nodes {
		c.add(i)
	}
	c.link()
	c.Exec(sentinelTable + o.Schema)
	c.WriteConfig()
	if !o.Idle {
		for _, n := range c.Nodes {
			n.Start()
		}
	}
	return c
}

const sentinelTable = "CREATE TABLE pgb_sentinel (node text PRIMARY KEY, round int NOT NULL);\n"

func (c *Cluster) add(i int) {
	n := &Node{c: c, t: c.t, Name: string(rune('a' + i)), Major: c.opts.Majors[i%len(c.opts.Majors)], Links: map[string]*Link{}}
	if c.opts.Own {
		n.PG = pgtest.NewClusterOf(c.t, n.Major, pgcluster.Options{Settings: c.opts.Settings, Clock: c.opts.Clocks})
		n.DSN = n.PG.SocketDSN("postgres")
		if c.Name == "" {
			c.Name = "test"
		}
	} else {
		db := pgtest.SharedServer(c.t, n.Major).NewDatabase(c.t)
		n.DSN = db.DSN
		if c.Name == "" {
			c.Name = db.Name
		}
	}
	n.Dir = c.t.TempDir()
	n.File = filepath.Join(n.Dir, "pgbridge.yaml")
	n.Listen = FreeAddr(c.t)
	c.Nodes = append(c.Nodes, n)
}

// FreeAddr finds a loopback port that stays free for whoever asked.
func FreeAddr(t testing.TB) string {
	port, err := pgcluster.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

func (c *Cluster) link() {
	for _, n := range c.Nodes {
		for _, m := range c.Nodes {
			if n != m {
				n.Links[m.Name] = newLink(c.t, m.Listen)
			}
		}
	}
}

// WriteConfig writes the configuration files anew, as the options are now.
func (c *Cluster) WriteConfig() {
	for _, n := range c.Nodes {
		n.writeConfig()
	}
	if c.keys == "" {
		return
	}
	if err := bridge.MakeKeys(c.Nodes[0].Load(), c.keys, func(string) {}); err != nil {
		c.t.Fatal(err)
	}
}

// Keys is the directory of what pgbridge keys has made for the node, with Options.Keys.
func (n *Node) Keys() string { return filepath.Join(n.c.keys, n.Name) }

// Edge reports whether nobody can dial the node.
func (n *Node) Edge() bool { return topology.IsEdge(n.role()) }

// Reader reports whether the node's users do not write.
func (n *Node) Reader() bool { return topology.IsReader(n.role()) }

func (n *Node) role() string {
	for role := range strings.SplitSeq(n.c.opts.Config["topology.roles"], ",") {
		if name, role, _ := strings.Cut(role, "="); name == n.Name {
			return role
		}
	}
	return ""
}

func (n *Node) writeConfig() {
	var b strings.Builder
	fmt.Fprintf(&b, "cluster: %s\nnode: %s\ndata_dir: %s\npostgres:\n  dsn: %q\n", n.c.Name, n.Name, filepath.Join(n.Dir, "data"), n.DSN)
	sync := "interval" // the shared servers do without fsync, too
	if n.c.opts.Own {
		sync = "always"
	}
	b.WriteString("nats:\n")
	if n.c.keys != "" {
		fmt.Fprintf(&b, "  keys_dir: %s\n", n.Keys())
	}
	fmt.Fprintf(&b, "  embedded:\n    sync: %s\n", sync)
	if !n.Edge() {
		fmt.Fprintf(&b, "    listen: %s\n", n.Listen)
	}
	if n.c.keys != "" {
		b.WriteString("stream:\n  signatures: require\n")
	}
	fmt.Fprintf(&b, "topology:\n  kind: mesh\n  nodes:\n")
	for _, m := range n.c.Nodes {
		if m.Edge() {
			continue
		}
		addr := m.Listen
		if l := n.Links[m.Name]; l != nil {
			addr = l.addr()
		}
		fmt.Fprintf(&b, "    %s: nats://%s\n", m.Name, addr)
	}
	if n.c.opts.Tables != nil {
		fmt.Fprintf(&b, "tables: [%s]\n", strings.Join(quoteAll(n.c.opts.Tables), ", "))
	}
	if err := os.WriteFile(n.File, []byte(b.String()), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

func quoteAll(s []string) []string {
	q := make([]string, len(s))
	for i := range s {
		q[i] = fmt.Sprintf("%q", s[i])
	}
	return q
}

// Reach lets the node's DSN lead to the first of these servers that is a primary. Its bridge must not run.
func (n *Node) Reach(servers ...*pgcluster.Cluster) {
	n.t.Helper()
	var hosts, ports []string
	for _, s := range servers {
		u, err := url.Parse(s.SocketDSN("postgres"))
		if err != nil {
			n.t.Fatal(err)
		}
		hosts, ports = append(hosts, u.Query().Get("host")), append(ports, u.Query().Get("port"))
	}
	query := url.Values{"host": {strings.Join(hosts, ",")}, "port": {strings.Join(ports, ",")}, "target_session_attrs": {"read-write"}}
	u := url.URL{Scheme: "postgres", User: url.User(pgcluster.Superuser), Path: "/postgres", RawQuery: query.Encode()}
	n.DSN = u.String()
	n.writeConfig()
}

// Load reads the node's configuration.
func (n *Node) Load() *config.Config {
	n.t.Helper()
	cfg, err := config.Load(n.File, n.c.opts.Config)
	if err != nil {
		n.t.Fatal(err)
	}
	return cfg
}

// Start starts the node's bridge and waits until it runs.
func (n *Node) Start() {
	n.t.Helper()
	if n.c.opts.Processes {
		n.startProcess()
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan struct{})
	done := make(chan error, 1)
	file, err := n.openLog()
	if err != nil {
		n.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(file, &slog.HandlerOptions{Level: slog.LevelDebug}))
	cfg := n.Load()
	go func() {
		defer file.Close()
		done <- bridge.Run(ctx, cfg, bridge.Options{Logger: log, NoHold: n.c.opts.NoHold, Ready: func() { close(ready) }})
	}()
	stopped := false
	n.ended = done
	n.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	n.t.Cleanup(func() { n.stop() })
	select {
	case <-ready:
	case err := <-done:
		done <- err
		n.t.Fatalf("bridge of node %s: %v\n%s", n.Name, err, n.LogTail())
	case <-time.After(60 * time.Second):
		n.t.Fatalf("bridge of node %s does not come up\n%s", n.Name, n.LogTail())
	}
}

// Stop stops the node's bridge in an orderly way.
func (n *Node) Stop() {
	n.t.Helper()
	if n.process != nil {
		n.process.terminate(n.t)
		n.process = nil
		return
	}
	if err := n.stop(); err != nil {
		n.t.Errorf("bridge of node %s: %v", n.Name, err)
	}
}

// openLog opens the log of the node's bridges, in the node's directory.
func (n *Node) openLog() (*os.File, error) {
	return os.OpenFile(n.logPath(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
}

// Logger writes to the log of the node's bridges until the test ends.
func (n *Node) Logger() *slog.Logger {
	n.t.Helper()
	file, err := n.openLog()
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { file.Close() })
	return slog.New(slog.NewTextHandler(file, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (n *Node) logPath() string { return filepath.Join(n.Dir, "bridge.log") }

// LogTail returns the end of the bridge's log.
func (n *Node) LogTail() string {
	b, _ := os.ReadFile(n.logPath())
	if len(b) > 6000 {
		b = b[len(b)-6000:]
	}
	return string(b)
}

// Exec runs SQL on the node.
func (n *Node) Exec(sql string, args ...any) {
	n.t.Helper()
	pgtest.ExecShared(n.t, n.DSN, sql, args...)
}

// Value runs SQL on the node and returns its only value.
func (n *Node) Value(sql string, args ...any) string {
	n.t.Helper()
	return pgtest.ValueShared(n.t, n.DSN, sql, args...)
}

// Query runs SQL on the node and returns its rows.
func (n *Node) Query(sql string, args ...any) []string {
	n.t.Helper()
	return pgtest.QueryShared(n.t, n.DSN, sql, args...)
}

// Exec runs SQL on every node.
func (c *Cluster) Exec(sql string) {
	c.t.Helper()
	for _, n := range c.Nodes {
		n.Exec(sql)
	}
}

// Node returns the node of that name.
func (c *Cluster) Node(name string) *Node {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	c.t.Fatalf("no node %s", name)
	return nil
}
