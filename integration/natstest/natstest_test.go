package natstest

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func TestMain(m *testing.M) { Main(m) }

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// put publishes one message to the stream s, which it creates if it is absent,
// and returns its sequence.
func put(t *testing.T, nc *nats.Conn) uint64 {
	t.Helper()
	ctx := testContext(t)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: "s", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	ack, err := js.Publish(ctx, "s", nil)
	if err != nil {
		t.Fatal(err)
	}
	return ack.Sequence
}

func TestServerKeepsItsStoreOverARestart(t *testing.T) {
	s := New(t)
	if seq := put(t, s.Connect(t)); seq != 1 {
		t.Fatalf("first message has sequence %d", seq)
	}
	s.Stop()
	s.Start(t)
	if seq := put(t, s.Connect(t)); seq != 2 {
		t.Fatalf("first message after the restart has sequence %d", seq)
	}
}

func TestProcessKeepsItsStoreOverAKill(t *testing.T) {
	p := StartProcess(t, Options{})
	if seq := put(t, Connect(t, p.URL())); seq != 1 {
		t.Fatalf("first message has sequence %d", seq)
	}
	p.Kill()
	p.Start(t)
	if seq := put(t, Connect(t, p.URL())); seq != 2 {
		t.Fatalf("first message after the kill has sequence %d", seq)
	}
}

func TestProxyCutsAndHolds(t *testing.T) {
	s := New(t)
	p := NewProxy(t, s.Addr())
	cut, back := make(chan struct{}, 1), make(chan struct{}, 1)
	nc := Connect(t, p.URL(),
		nats.DisconnectErrHandler(func(*nats.Conn, error) { cut <- struct{}{} }),
		nats.ReconnectHandler(func(*nats.Conn) { back <- struct{}{} }))
	put(t, nc)
	p.Cut()
	<-cut
	<-back

	other := s.Connect(t)
	sub, err := other.SubscribeSync("x")
	if err != nil || other.Flush() != nil {
		t.Fatal(err, other.LastError())
	}
	p.Hold(true)
	if err := nc.Publish("x", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := sub.NextMsg(50 * time.Millisecond); err == nil {
		t.Error("a held message came through")
	}
	p.Hold(false)
	if _, err := sub.NextMsgWithContext(testContext(t)); err != nil {
		t.Errorf("a released message: %v", err)
	}
}

func TestProxyRefuses(t *testing.T) {
	s := New(t)
	p := NewProxy(t, s.Addr())
	p.Refuse(true)
	if nc, err := nats.Connect(p.URL()); err == nil {
		nc.Close()
		t.Fatal("connected through a proxy that refuses")
	}
	p.Refuse(false)
	nc, err := nats.Connect(p.URL())
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
}

func TestClusterMovesItsLeader(t *testing.T) {
	c := NewCluster(t, 3)
	js, err := jetstream.New(c.Connect(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(testContext(t), jetstream.StreamConfig{Name: "s", Replicas: 3}); err != nil {
		t.Fatal(err)
	}
	first := c.Leader("s")
	if first == nil {
		t.Fatal("a new stream has no leader")
	}
	first.Stop()
	ctx := testContext(t)
	for next := c.Leader("s"); next == nil; next = c.Leader("s") {
		select {
		case <-time.After(20 * time.Millisecond): // nobody is told of an election
		case <-ctx.Done():
			t.Fatal("no new leader")
		}
	}
}
