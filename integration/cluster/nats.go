package cluster

import (
	"errors"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgbridge/pgbridge/stream"
)

// Connect returns a connection to the node's broker, as the node itself, that is closed at the end of the test.
func (n *Node) Connect() *nats.Conn {
	n.t.Helper()
	opts := []nats.Option{nats.MaxReconnects(-1), nats.ReconnectWait(20 * time.Millisecond)}
	if n.c.keys != "" {
		as, err := nats.NkeyOptionFromSeed(filepath.Join(n.Keys(), "node.nk"))
		if err != nil {
			n.t.Fatal(err)
		}
		opts = append(opts, as, nats.RootCAs(filepath.Join(n.Keys(), "ca.pem")), nats.CustomInboxPrefix("_INBOX."+n.Name))
	}
	nc, err := nats.Connect("nats://"+n.Listen, opts...)
	if err != nil {
		n.t.Fatalf("connect to the broker of node %s: %v", n.Name, err)
	}
	n.t.Cleanup(nc.Close)
	return nc
}

// Purge takes from a node's broker all frames but the last of each stream, or of those of some origins, as if what it keeps had become
// too much.
func (n *Node) Purge(origins ...string) {
	n.t.Helper()
	if len(origins) == 0 {
		for _, m := range n.c.Nodes {
			origins = append(origins, m.Name)
		}
	}
	nc := n.Connect()
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, origin := range origins {
		name := stream.RelayName(n.c.Name, n.Name, origin)
		if origin == n.Name {
			name = stream.StreamName(n.c.Name, n.Name)
		}
		s, err := js.Stream(n.t.Context(), name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			continue // it hands nothing of that origin on
		}
		if err == nil {
			err = s.Purge(n.t.Context(), jetstream.WithPurgeKeep(1))
		}
		if err != nil {
			n.t.Fatalf("purge %s: %v", name, err)
		}
	}
}
