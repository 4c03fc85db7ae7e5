package integration

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/stream"
)

// keysConfig is the configuration of a node with the servers inside a and b, which have keys, and an edge c.
func keysConfig(c *cluster.Cluster, n *cluster.Node, keys string) string {
	listen := n.Listen // which the certificate of b does not name
	if n.Name == "c" {
		listen = ""
	}
	_, port, _ := net.SplitHostPort(c.Node("b").Listen)
	text := fmt.Sprintf("cluster: %s\nnode: %s\ndata_dir: %s\npostgres: {dsn: %q}\ntopology:\n  failover_after: 2s\n  roles: {c: edge}\n  nodes: {a: 'nats://%s', b: 'nats://localhost:%s'}\n"+
		"nats:\n  keys_dir: %s\n  embedded: {sync: interval, listen: '%s'}\n", c.Name, n.Name, filepath.Join(n.Dir, "data"), n.DSN, c.Node("a").Listen, port, filepath.Join(keys, n.Name), listen)
	return text
}

// TestKeys: nodes with what pgbridge keys has made replicate, hear and ask each other over TLS, an edge too; and nobody does more
// than a node needs.
func TestKeys(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 3, Schema: loadSchema, Idle: true})
	keys := t.TempDir()
	a := c.Node("a")
	for _, n := range c.Nodes {
		if err := os.WriteFile(n.File, []byte(keysConfig(c, n, keys)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var made []string
	tell := func(text string) { made = append(made, strings.ReplaceAll(text, keys+"/", "")) }
	if err := bridge.Run(t.Context(), a.Load(), bridge.Options{Logger: a.Logger()}); err == nil || !strings.Contains(err.Error(), "nats.keys_dir: open") || !strings.Contains(err.Error(), "run pgbridge keys") {
		t.Errorf("without keys it says %v", err)
	}
	if err := bridge.MakeKeys(a.Load(), keys, tell); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(made, ", "); got != "makes ca.pem and ca.key, makes a/node.nk, makes a/frames.nk, makes b/node.nk, makes b/frames.nk, makes c/node.nk, makes c/frames.nk, makes a/node.pem, makes b/node.pem" {
		t.Errorf("it says %q", got)
	}
	made = nil
	if err := bridge.MakeKeys(c.Node("b").Load(), keys, tell); err != nil || made != nil {
		t.Errorf("made again: %q, %v", made, err)
	}
	for _, n := range c.Nodes {
		n.Start()
	}
	requireNothingRefused(t, c)
	x, err := bridge.Doctor(t.Context(), c.Node("b").Load())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range x.Findings {
		if f.Severity == bridge.FindingError {
			t.Errorf("doctor finds %+v", f)
		}
	}

	quiet := nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})
	ca := nats.RootCAs(filepath.Join(keys, "ca.pem"))
	asB, err := nats.NkeyOptionFromSeed(filepath.Join(keys, "b", "node.nk"))
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect("nats://"+a.Listen, asB, ca, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	requireRefused(t, c, nc)
	other := t.TempDir()
	if err := bridge.MakeKeys(a.Load(), other, tell); err != nil {
		t.Fatal(err)
	}
	stranger, err := nats.NkeyOptionFromSeed(filepath.Join(other, "b", "node.nk"))
	if err != nil {
		t.Fatal(err)
	}
	for what, x := range map[string]struct {
		opts []nats.Option
		want string
	}{
		"nobody":                 {[]nats.Option{ca}, "Authorization Violation"},
		"an unknown key":         {[]nats.Option{ca, stranger}, "Authorization Violation"},
		"who knows no authority": {[]nats.Option{nats.Secure(), asB}, "certificate signed by unknown authority"},
		"another one's servers":  {[]nats.Option{nats.RootCAs(filepath.Join(other, "ca.pem")), asB}, "certificate signed by unknown authority"},
	} {
		nc, err := nats.Connect("nats://"+a.Listen, x.opts...)
		if err == nil {
			nc.Close()
			t.Errorf("%s may connect", what)
		} else if !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v, want %s", what, err, x.want)
		}
	}

	a.AwaitStatus(func(r *cluster.Report) bool {
		return *r.BrokerRefused == stream.Refusals{SignIns: 2, Handshakes: 2, Permissions: 11}
	})

	// A node whose key is not known elsewhere is told apart from one that is away.
	b := c.Node("b")
	b.Stop()
	if err := os.WriteFile(b.File, []byte(keysConfig(c, b, other)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := copyInto(filepath.Join(other, "b", "ca.pem"), filepath.Join(keys, "ca.pem")); err != nil {
		t.Fatal(err)
	}
	b.Start()
	b.AwaitStatus(func(r *cluster.Report) bool {
		return slices.ContainsFunc(r.Links, func(l bridge.LinkReport) bool {
			return strings.HasPrefix(l.Waiting, "the NATS server of node a refuses this node's credentials") &&
				strings.HasSuffix(l.Waiting, "bring it the file nodes that pgbridge keys has made, and start it again, or correct nats.keys_dir here")
		})
	})
	if err := copyInto(filepath.Join(other, "b", "node.nk"), filepath.Join(keys, "b", "node.nk")); err != nil {
		t.Fatal(err)
	}
	var exit interface{ ExitCode() int }
	b.Stop()
	if err := bridge.Run(t.Context(), b.Load(), bridge.Options{Logger: b.Logger()}); !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(err.Error(), "is not the key of node b") {
		t.Errorf("with another one's key it says %v", err)
	}
}

// copyInto writes the content of a file into another one.
func copyInto(to, from string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o600)
}
