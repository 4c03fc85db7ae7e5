package capture

import (
	"slices"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/wire"
)

// checkRestore reads the stream back into a new Capture: Deletes must hear the same, with the same keys, and
// the marks and recent ids must be those of the Capture that wrote it.
func (b *bench) checkRestore() {
	b.t.Helper()
	frames, again := b.pub.all(), &buried{}
	c, err := New(b.opts, b.pub, again, frames[len(frames)-1])
	b.must(err)
	for _, f := range frames {
		b.must(c.Restore(f))
	}
	if got, want := again.told(), b.deletes.told(); !slices.Equal(got, want) || !slices.Equal(again.hashes, b.deletes.hashes) {
		b.t.Errorf("restored\n%q\nwas told\n%q", got, want)
	}
	last := frames[len(frames)-1]
	if m, ok := c.state.marks.newest(last.LastSeq); m != last.Mark || ok != (m.XID != 0) {
		b.t.Errorf("newest mark %+v, in the last frame it is %+v", m, last.Mark)
	}
	for _, x := range read(b.t, frames).done {
		if recent := slices.Contains(c.RecentXIDs(), x.XID); recent != (uint64(x.XID) >= last.Mark.XID) {
			b.t.Errorf("transaction %d, id %d is recent: %t, newest mark %d", x.Seq, x.XID, recent, last.Mark.XID)
		}
	}
	if len(c.restore.runs) != len(openRuns(b.t, b.pub)) {
		b.t.Errorf("%d runs are open after restore", len(c.restore.runs))
	}
}

// TestRestoreWithoutBeginnings: what was purged from the stream's front is not missed, and a new writer epoch
// voids runs.
func TestRestoreWithoutBeginnings(t *testing.T) {
	b := newBench(t, pgtest.New(t), `CREATE TABLE t (id int PRIMARY KEY, x text)`)
	b.opts.FrameBytes = MinFrameBytes
	b.start(nil)
	b.exec(`INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 200) i;
DELETE FROM t WHERE id = 1;
BEGIN;
DELETE FROM t WHERE id BETWEEN 2 AND 150;
UPDATE t SET x = repeat('y', 1000);
COMMIT;
DELETE FROM t WHERE id = 151`)
	frames := b.sentinel()
	b.end()
	restore := func(frames []*wire.Frame) []string {
		t.Helper()
		again := &buried{}
		c, err := New(b.opts, b.pub, again, frames[len(frames)-1])
		b.must(err)
		for _, f := range frames {
			b.must(c.Restore(f))
		}
		return again.told()
	}
	if got := restore(frames); len(got) != 151 {
		t.Fatalf("%d deletes", len(got))
	}
	for from := range frames {
		// All, those from the run on, those behind the run, those behind all.
		if n := len(restore(frames[from:])); !slices.Contains([]int{151, 150, 1, 0}, n) {
			t.Errorf("from frame %d: %d deletes", from, n)
		}
	}
	// The same chunks under two writer epochs, the first without an end.
	i := slices.IndexFunc(frames, func(f *wire.Frame) bool { return f.Back != 0 && f.FirstSeq == 0 })
	if i < 0 {
		t.Fatal("no frame in the middle of a run")
	}
	twice := slices.Concat(frames[:i+1], nil)
	for _, f := range frames {
		g := *f
		g.WriterEpoch++
		twice = append(twice, &g)
	}
	if got := restore(twice); len(got) != 151 && len(got) != 152 {
		t.Errorf("behind a new epoch: %d deletes", len(got))
	}
}
