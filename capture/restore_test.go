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
	t.Parallel()
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
}

// TestNewWriterEpochVoidsRuns: run ids count within a writer epoch; a run that an earlier writer left open is
// not the one of the same id that follows. Also in a stream that was made again, whose frames have one writer and say who began their runs,
// and which its writer may have fenced anywhere.
func TestNewWriterEpochVoidsRuns(t *testing.T) {
	var frames []*wire.Frame
	for epoch, keys := range [][]uint32{{1, 400}, {1001, 1300}} {
		w := newWorkbench(t, MinFrameBytes)
		w.opts.WriterEpoch = uint64(epoch + 1)
		s := (&script{}).add('S', uint32(10), byte(1)).table(5, be32(10))
		for id := keys[0]; id <= keys[1]; id++ {
			s.add('D', uint32(10), uint32(5), 'K', keyTuple(id))
		}
		s.add('E')
		if epoch == 1 {
			s.add('c', uint32(10), byte(0), uint64(100), uint64(108), uint64(100))
		}
		if err := w.play(s, 1<<20); err != nil {
			t.Fatal(err)
		}
		frames = append(frames, w.pub.all()...)
	}
	for _, again := range []bool{false, true} {
		w := newWorkbench(t, MinFrameBytes)
		w.restore.keys = map[uint32][]keyColumn{}
		for _, f := range frames {
			if again {
				fence := *f
				fence.Fence, fence.WriterEpoch, fence.Body = true, 9, nil
				if err := w.Restore(&fence); err != nil {
					t.Fatal(err)
				}
				f.OriginWriter, f.WriterEpoch = f.RunWriter(), 9
			}
			if err := w.Restore(f); err != nil {
				t.Fatal(err)
			}
		}
		told := w.deletes.told()
		if len(told) != 300 || told[0] != "1 delete public.t id=1001" || told[299] != "1 delete public.t id=1300" {
			t.Errorf("made again %t: %d deletes: %q", again, len(told), told)
		}
	}
}
