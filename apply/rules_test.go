package apply

import (
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/origin"
)

// TestStampOfTheFutureIsNotAnnounced: a transaction beyond max_clock_skew waits, and no marker may declare it
// meanwhile: that would lift every later stamp of this node, for good (PROOF.md R33).
func TestStampOfTheFutureIsNotAnnounced(t *testing.T) {
	t.Parallel()
	p := newest(t, tableT)
	p.do(`INSERT INTO t VALUES (1, 'x')`)
	const skew = 5 * time.Minute
	p.last = origin.StampOf(time.Now().Add(skew))
	p.from.Exec(t, `UPDATE t SET v = 'of the future'`)
	p.ship(nil, false)
	awaitTrue(t, func() bool { return strings.Contains(p.status().Waiting, "max_clock_skew") })
	p.a.progress.mu.Lock()
	announced := p.a.progress.announced.Covers(nodeA, p.seq)
	p.a.progress.mu.Unlock()
	if got := p.to.Value(t, `SELECT v FROM t`); got != "x" || announced {
		t.Errorf("row %q, announced: %t", got, announced)
	}
	p.ahead.Store(int64(skew))
	p.await()
	p.same(`SELECT * FROM t`)
}

// TestUpdateOfARowThatNobodyKnowsOf: the update's author declares a delete without having seen it, and its
// tombstone is purged: the update has won at its author, and brings the row here too (PROOF.md R17).
func TestUpdateOfARowThatNobodyKnowsOf(t *testing.T) {
	t.Parallel()
	p := newest(t, tableT)
	p.do(`INSERT INTO t VALUES (1, 'x'), (2, 'x')`)
	p.to.Exec(t, `DELETE FROM t WHERE id = 1`)
	p.do(`UPDATE t SET v = 'y' WHERE id = 1`)
	p.same(`SELECT * FROM t ORDER BY id`)
	if st := p.status(); st.Careful != 1 || st.Conflicts != 0 {
		t.Errorf("status %+v", st)
	}
}

// TestIDsFromBeforeTheSlot: rows of older ids are covered (R11), as long as 32 bits of an id tell that it is older.
func TestIDsFromBeforeTheSlot(t *testing.T) {
	const round = 1 << 32
	for _, c := range []struct{ first, open, newest, want uint64 }{
		{700, 800, 0, 700},
		{700, 800, 699 + round/2, 700},
		{700, 800, 700 + round/2, 0},
		{700, 700 + round/2, 0, 0},
		{700, 710 + round, 720 + round, 0},
		{700 + round, 710 + round, 720 + round, 700 + round},
	} {
		w := worker{opts: &Options{FirstXID: c.first, openXID: c.open}, wal: &fakeWAL{mark: func(uint64) (uint64, bool) { return c.newest, c.newest != 0 }}}
		if got := w.ancient(); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}
