package demo

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/integration/pgcluster"
)

// clusterName is that of the pgbridge cluster.
const clusterName = "demo"

//go:embed schema.sql
var schemaSQL string

// world is what nodes have in their databases.
type world struct {
	name   string   // of the database, and of the schema in it
	nodes  []string // their names; nil: a, b, c
	edges  []string // those that nobody can dial
	schema string
	tables string // as the account tells of them
	try    string // a statement to try
}

var shop = &world{name: "shop", schema: schemaSQL, tables: "the tables accounts, orders, order_lines, notes",
	try: "UPDATE shop.notes SET body = 'mine'"}

// node is one primary with its bridge. Everything of it is in one directory, which goes with the server.
type node struct {
	name   string
	world  *world
	pg     *pgcluster.Cluster
	dir    string
	file   string    // the bridge's configuration
	listen string    // of the NATS server in the bridge; empty: nowhere
	bridge *child    // nil before its first start
	conn   *pgx.Conn // the session of Run's own goroutine
	ledger ledger
	gone   chan struct{} // closed before it is lost for good
}

// newNode starts a PostgreSQL cluster and makes the database in it.
func newNode(ctx context.Context, w *world, i int, install pgcluster.Install) (*node, error) {
	name := string(rune('a' + i))
	if w.nodes != nil {
		name = w.nodes[i]
	}
	pg, err := pgcluster.Start(ctx, pgcluster.Options{Install: install})
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", name, err)
	}
	n := &node{name: name, world: w, gone: make(chan struct{}), pg: pg, dir: pg.Dir(), file: filepath.Join(pg.Dir(), "pgbridge.yaml")}
	if err := n.create(ctx); err != nil {
		return n, fmt.Errorf("node %s: %w", name, err)
	}
	return n, nil
}

func (n *node) create(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, n.pg.SocketDSN("postgres"))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "CREATE DATABASE "+n.world.name)
	if err = errors.Join(err, conn.Close(ctx)); err != nil {
		return fmt.Errorf("create database %s: %w", n.world.name, err)
	}
	if n.conn, err = n.connect(ctx); err != nil {
		return err
	}
	if _, err := n.conn.Exec(ctx, n.world.schema); err != nil {
		return fmt.Errorf("create the tables: %w", err)
	}
	return nil
}

// connect opens a session in which no statement can hang.
func (n *node) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(n.dsn())
	if err != nil {
		return nil, err
	}
	cfg.ConnectTimeout = 10 * time.Second
	cfg.RuntimeParams["application_name"] = "pgbridge demo"
	cfg.RuntimeParams["statement_timeout"] = "30s"
	cfg.RuntimeParams["search_path"] = n.world.name
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to node %s: %w", n.name, err)
	}
	return conn, nil
}

func (n *node) dsn() string { return n.pg.SocketDSN(n.world.name) }

// writeConfig writes what an operator would: nothing that has a default. more goes on below topology.
func (n *node) writeConfig(all []*node, more string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "cluster: %s\nnode: %s\ndata_dir: %s\n", clusterName, n.name, n.bridgeDir())
	fmt.Fprintf(&b, "postgres:\n  dsn: %q\ntopology:\n  nodes:\n", n.dsn())
	for _, m := range all {
		if m.listen == "" {
			continue
		}
		fmt.Fprintf(&b, "    %s: nats://%s\n", m.name, m.listen)
	}
	b.WriteString(more)
	return os.WriteFile(n.file, []byte(b.String()), 0o600)
}

func (n *node) bridgeDir() string { return filepath.Join(n.dir, "bridge") }

func (n *node) logPath() string { return filepath.Join(n.dir, "bridge.log") }

// logTail returns the last lines of the bridge's log, "" if there is none.
func (n *node) logTail() string {
	const most = 20
	text, err := os.ReadFile(n.logPath())
	if err != nil {
		return "" // it never started
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-most):], "\n")
}

// startBridge starts the bridge's program; it does not wait until it runs.
func (n *node) startBridge(executable string) error {
	c, err := startChild(n.logPath(), executable, "run", "--config", n.file)
	if err != nil {
		return fmt.Errorf("start bridge %s: %w", n.name, err)
	}
	n.bridge = c
	return nil
}

// readyTimeout is what a bridge may take to come up on a busy machine.
const readyTimeout = 45 * time.Second

// statusTimeout is what a bridge may take to answer.
const statusTimeout = 5 * time.Second

// status asks the bridge. The configuration is not loaded, since PGBRIDGE_ variables would override it.
func (n *node) status(ctx context.Context) (*bridge.Report, error) {
	cfg := &config.Config{Cluster: clusterName, Node: n.name, DataDir: n.bridgeDir()}
	cfg.Postgres.DSN = n.dsn()
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	return bridge.Status(ctx, cfg)
}

// waits lists what the bridge says it waits for.
func (n *node) waits(ctx context.Context) []string {
	r, err := n.status(ctx)
	if err != nil {
		return []string{err.Error()}
	}
	var reasons []string
	add := func(part, reason string) {
		if reason != "" {
			reasons = append(reasons, part+" waits: "+reason)
		}
	}
	add("the bridge", r.Waiting)
	add("the publisher", r.Publisher.Waiting)
	for _, l := range r.Links {
		add(fmt.Sprintf("the link from %s, applied %d of %d,", l.Link, l.AppliedSeq, l.ReceivedSeq), l.Waiting)
	}
	return reasons
}

// awaitBridge waits until the bridge's parts run.
func (n *node) awaitBridge(ctx context.Context) error {
	return await(ctx, readyTimeout, func(ctx context.Context) (string, error) {
		if err := n.alive(); err != nil {
			return "", err
		}
		r, err := n.status(ctx)
		if err != nil {
			return fmt.Sprintf("bridge %s does not answer: %v", n.name, err), nil
		}
		if r.Waiting != "" {
			return fmt.Sprintf("bridge %s waits: %s", n.name, r.Waiting), nil
		}
		return "", nil
	})
}

// alive says whether the bridge has ended without being asked to.
func (n *node) alive() error {
	if n.bridge == nil || n.bridge.killed || n.bridge.running() {
		return nil
	}
	return fmt.Errorf("bridge %s ended by itself: %w", n.name, n.bridge.why)
}

// bridgeTimeout is what an orderly stop may take before the bridge is killed, which is safe too.
const bridgeTimeout = 5 * time.Second

// close ends bridge and server, and removes the directory.
func (n *node) close() error {
	if n.bridge != nil {
		n.bridge.stop(bridgeTimeout)
	}
	if n.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		n.conn.Close(ctx) // the server ends next, whatever this says
	}
	return n.pg.Close()
}

// freeAddrs finds n loopback addresses that nobody listens on, below the range from which the kernel
// serves outgoing connections (32768 on Linux): one out of that range could be taken while a killed
// bridge is down.
func freeAddrs(n int) ([]string, error) {
	const lowest, highest, attempts = 20000, 32000, 100
	var addrs []string
	var open []net.Listener // all at once, so that no address is found twice
	defer func() {
		for _, l := range open {
			l.Close()
		}
	}()
	var last error
	for range attempts {
		if len(addrs) == n {
			return addrs, nil
		}
		port := lowest + rand.IntN(highest-lowest)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			last = err
			continue
		}
		open = append(open, l)
		addrs = append(addrs, l.Addr().String())
	}
	return nil, fmt.Errorf("find %d free ports in %d to %d: %w", n, lowest, highest, last)
}

// inParallel calls do for 0 to n-1 at once and waits for all.
func inParallel(n int, do func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { do(i) })
	}
	wg.Wait()
}
