package integration

import (
	"errors"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/integration/cluster"
)

// TestToken: with nats.token the embedded brokers let in who knows it, and nobody else.
func TestToken(t *testing.T) {
	keys := map[string]string{"nats.token": "secret"}
	c := cluster.New(t, cluster.Options{Nodes: 2, Schema: `CREATE TABLE t (id text PRIMARY KEY)`, Config: keys})
	a, b := c.Node("a"), c.Node("b")
	for _, opts := range [][]nats.Option{nil, {nats.Token("guess")}} {
		nc, err := nats.Connect("nats://"+a.Listen, opts...)
		if !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("without the token: %v", err)
		}
		if err == nil {
			nc.Close()
		}
	}
	a.Exec(`INSERT INTO t VALUES ('of a')`)
	b.Exec(`INSERT INTO t VALUES ('of b')`)
	c.WaitConverged()
	b.Stop()
	keys["nats.token"] = "wrong"
	b.Start()
	b.AwaitStatus(func(r *cluster.Report) bool { return linkState(r, "a") != "connected" })
}
