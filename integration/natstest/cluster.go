package natstest

import (
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Cluster is several servers that replicate their streams.
type Cluster struct {
	Servers []*Server
}

// NewCluster starts a cluster of n servers and waits until it can create streams.
func NewCluster(t testing.TB, n int) *Cluster {
	t.Helper()
	ports, routes := freePorts(t, n)
	c := &Cluster{}
	for i := range n {
		s := &Server{opts: Options{Dir: t.TempDir(), member: fmt.Sprintf("n%d", i), routePort: ports[i], routes: routes}}
		s.Start(t)
		t.Cleanup(s.Stop)
		c.Servers = append(c.Servers, s)
	}
	c.AwaitCurrent(t)
	// The leader may not have heard of every server's room yet: "no suitable peers for placement".
	js, err := jetstream.New(c.Connect(t))
	if err != nil {
		t.Fatal(err)
	}
	const probe = "NATSTEST_PROBE"
	c.wait(t, "created a stream", func() bool {
		_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: probe, Replicas: n})
		return err == nil
	})
	if err := js.DeleteStream(t.Context(), probe); err != nil {
		t.Fatal(err)
	}
	return c
}

// AwaitCurrent waits until all servers have a leader, and what it has.
func (c *Cluster) AwaitCurrent(t testing.TB) {
	t.Helper()
	c.wait(t, "found its leader", c.current)
}

// wait waits until the cluster is ready, of which its servers tell nobody.
func (c *Cluster) wait(t testing.TB, what string, ready func() bool) {
	t.Helper()
	for deadline := time.Now().Add(startTimeout); !ready(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("a cluster of %d NATS servers has not %s after %v", len(c.Servers), what, startTimeout)
		}
	}
}

func (c *Cluster) current() bool {
	for _, s := range c.Servers {
		if !s.srv.JetStreamIsCurrent() {
			return false
		}
	}
	return true
}

// freePorts reserves addresses for routes, all of which each server must know at its start.
func freePorts(t testing.TB, n int) (ports []int, routes []*url.URL) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // only after all are found, so that they differ
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
		routes = append(routes, &url.URL{Scheme: "nats", Host: l.Addr().String()})
	}
	return ports, routes
}

// Connect returns a connection that moves to another server when its own is gone.
func (c *Cluster) Connect(t testing.TB, opts ...nats.Option) *nats.Conn {
	t.Helper()
	var urls []string
	for _, s := range c.Servers {
		urls = append(urls, s.URL())
	}
	return Connect(t, strings.Join(urls, ","), opts...)
}

// Leader returns the server that leads a stream of the default account; nil if none does.
func (c *Cluster) Leader(stream string) *Server {
	for _, s := range c.Servers {
		if s.srv.Running() && s.srv.JetStreamIsStreamLeader("$G", stream) {
			return s
		}
	}
	return nil
}
