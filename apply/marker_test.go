package apply

import (
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// TestMarkersOfLocalWork: while only local sessions write, a marker follows them all the same, so that what others
// write to their rows later can be proved to have seen them (PROOF.md R11).
func TestMarkersOfLocalWork(t *testing.T) {
	t.Parallel()
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
	p.do(`INSERT INTO t VALUES (1, 'x')`)
	p.to.Exec(t, `SELECT pg_create_logical_replication_slot($1, 'test_decoding')`, p.to.Name)
	conn := p.to.Connect(t)
	markers := func() (n int) {
		if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_logical_slot_peek_changes($1, NULL, NULL) WHERE data LIKE '%pgbridge%'`,
			p.to.Name).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for i := range 3 {
		before := markers()
		p.wal.local.Add(1)
		awaitTrue(t, func() bool { return markers() > before })
		t.Logf("local transaction %d has its marker", i+1)
	}
	conn.Close(t.Context())
	p.to.Exec(t, `SELECT pg_drop_replication_slot($1)`, p.to.Name)
}
