package apply

import (
	"fmt"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
)

// TestUnchangedValueWaitsUntilTheRowIsSettled: capture has not read yet that a local delete beats the insert of
// the row whose large value an update leaves as it is (R19; the model's TrustNew).
func TestUnchangedValueWaitsUntilTheRowIsSettled(t *testing.T) {
	t.Run("one update", func(t *testing.T) { unchangedValueWaits(t, 1) })
	t.Run("a bundle", func(t *testing.T) { unchangedValueWaits(t, 2*bundleFrom) })
}

func unchangedValueWaits(t *testing.T, updates int) {
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), `CREATE TABLE t (id int PRIMARY KEY, v text, big text);
		ALTER TABLE t ALTER big SET STORAGE EXTERNAL`)
	p.do(`INSERT INTO t VALUES (1, 'x', repeat('b', 10000))`)
	tab, err := p.a.catalog.table(t.Context(), "public", "t")
	if err != nil {
		t.Fatal(err)
	}
	inserted := origin.Entry{Origin: nodeA, Seq: p.seq, Stamp: p.last}
	p.wal.onPassed(func() {
		p.wal.onPassed(nil)
		key := intKey(1)
		v := origin.Version{Stamp: inserted.Stamp + 1, Origin: origin.Origin{Node: "b", Epoch: 1}}
		p.a.LocalDelete("public", "t", key, tab.hasher.Hash(key, nil), v, 1, 500)
		p.wal.tell(origin.Vector{inserted})
	})
	for range updates {
		p.commit(`UPDATE t SET v = 'y' WHERE id = 1`)
	}
	p.ship(nil, false)
	awaitTrue(t, func() bool { return p.status().Seq == p.seq })
	if rows := p.to.Query(t, `SELECT id, v, length(big) FROM t`); len(rows) > 0 {
		t.Fatalf("applied over a row that had to go: %q", rows)
	}
	if owed := p.to.Query(t, `SELECT origin, seq, key, writer FROM pgbridge.owed`); len(owed) != 1 || owed[0] != fmt.Sprintf(`a|%d|{"id":1}|∅`, p.seq) {
		t.Errorf("owed are %q", owed)
	}
}
