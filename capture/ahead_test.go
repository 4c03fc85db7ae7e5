package capture

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// TestDraftsGoAhead: what is committed just now is shown before its frame is, whole or as far as it has come.
func TestDraftsGoAhead(t *testing.T) {
	w := newWorkbench(t, 64<<10)
	w.pub.lazy = true // the broker's disk is slow
	now := time.Now()
	requireFrames := func(n int) {
		t.Helper()
		if got := len(w.pub.all()); got != n {
			t.Fatalf("%d frames, want %d", got, n)
		}
	}
	commit := func(id int, at time.Time, text string) {
		t.Helper()
		s := &script{}
		if id == 1 {
			s.table(5, nil)
		}
		lsn, stamp := uint64(100*id), uint64(origin.StampOf(at))
		s.begin(lsn, stamp, uint32(700+id)).add('I', uint32(5), 'N', tuple(uint32(id), text)).commit(lsn, stamp)
		if err := w.stitch.feed(context.Background(), s.b, w.session); err != nil {
			t.Fatal(err)
		}
	}
	tend := func(after time.Duration) {
		t.Helper()
		if _, err := w.tagger.tend(context.Background(), now.Add(after), true); err != nil {
			t.Fatal(err)
		}
	}
	shown := 0
	// requireShown requires what was shown since: for each, its frame's place, its seqs, and whether it is whole.
	requireShown := func(want ...string) {
		t.Helper()
		var got []string
		for ; shown < len(w.pub.aheads); shown++ {
			a := w.pub.aheads[shown]
			var seqs []string
			for _, x := range read(t, []*wire.Frame{a.frame}).done {
				seqs = append(seqs, fmt.Sprint(x.Seq))
			}
			got = append(got, fmt.Sprintf("%d:%s %t", a.next, strings.Join(seqs, ","), a.whole))
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("shown %q, want %q", got, want)
		}
	}
	linger := w.opts.Linger
	commit(1, now, "")
	tend(0)
	requireShown("1:1 false") // at once, though more may come
	tend(aheadLate)
	requireShown() // it has not grown
	commit(2, now, "")
	tend(aheadGap / 2)
	requireShown()
	tend(aheadGap)
	requireShown("1:1,2 false")
	tend(linger)
	requireFrames(0) // readers have it: it may fill
	tend(shownLingers * linger)
	requireShown("1:1,2 true")
	requireFrames(1)
	commit(3, now, "") // also while a frame is in flight, of which readers have all
	tend(0)
	requireShown("2:3 false")
	tend(shownLingers * linger)
	requireShown("2:3 true")
	requireFrames(2)

	// What is no transaction goes with the stream alone, and so does all behind it, until it is stored.
	lost := wire.Loss{Version: origin.Version{Stamp: 1, Origin: origin.Origin{Node: "b", Epoch: 1}}}
	body := wire.AppendMarker(nil, nil, nil, []wire.Loss{lost})
	s := (&script{}).add('M', byte(0), uint64(350), wire.MarkerPrefix, uint32(len(body)+8), append(body, make([]byte, 8)...))
	if err := w.stitch.feed(context.Background(), s.b, w.session); err != nil {
		t.Fatal(err)
	}
	commit(4, now, "")
	tend(0)
	tend(linger)
	requireFrames(3)
	commit(5, now.Add(time.Hour), "") // just now, however long this has taken
	tend(0)
	tend(linger)
	requireFrames(4)
	requireShown("4:5 true")
	w.pub.settle(3)
	commit(6, now.Add(time.Hour), "")
	tend(0)
	requireShown("5:6 false")
	tend(shownLingers * linger)
	requireShown("5:6 true")

	commit(7, now.Add(-time.Hour), "") // we are behind
	tend(0)
	tend(time.Hour)
	requireFrames(6)
	w.pub.settle(6)
	commit(8, now, strings.Repeat("x", aheadBytes)) // large
	tend(0)
	tend(linger)
	requireFrames(7)
	requireShown()
}
