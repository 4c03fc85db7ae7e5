package apply

import (
"testing"
"github.com/pgbridge/pgbridge/integration/pgtest"
"github.com/pgbridge/pgbridge/origin"
"github.com/pgbridge/pgbridge/wire"
)

// newPair2 makes two databases with the same schema and starts applying at the second.
func newPair2(t *testing.T, s *pgtest.Server, schema, schema2 string, peers ...string) *pair {
	t.Helper()
	p := &pair{t: t, from: s.NewDatabase(t), to: s.NewDatabase(t), rels: map[uint32]*wire.Relation{}}
	execLong(t, p.from.DSN, schema)
	execLong(t, p.to.DSN, schema2)
	p.from.Exec(t, `CREATE PUBLICATION p FOR ALL TABLES WITH (publish_via_partition_root = true)`)
	p.from.Exec(t, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, p.slot())
	p.src = p.from.Connect(t)
	p.wal = &fakeWAL{lifted: map[origin.Stamp]origin.Stamp{}}
	if err := Setup(t.Context(), SetupOptions{DSN: p.to.DSN, Cluster: p.to.Name, Node: "b", Peers: append(peers, "a")}); err != nil {
		t.Fatal(err)
	}
	p.start(peers...)
	t.Cleanup(func() { p.stop() })
	return p
}

