package capture

import (
	"slices"
	"testing"
)

// TestInterruptedAnywhere: wherever the connection is lost, what it had begun is begun anew and comes once.
func TestInterruptedAnywhere(t *testing.T) {
	b := exampleScript(2 * MinFrameBytes).b
	var ends []int // of messages
	for at := 0; at < len(b); {
		n, _, err := messageSize(b[at:])
		if err != nil {
			t.Fatal(err)
		}
		at += n
		ends = append(ends, at)
	}
	for _, cut := range ends {
		w := newWorkbench(t, MinFrameBytes)
		if err := w.play(&script{b: b[:cut]}, 1000); err != nil {
			t.Fatal(err)
		}
		w.tagger.interrupted()
		w.stitch.rest = nil
		before := w.tagger.position
		if err := w.play(behind(t, b, before), 1000); err != nil {
			t.Fatalf("behind %d: %v", before, err)
		}
		var seqs []uint64
		var xids []uint32
		for _, x := range read(t, w.pub.all()).done {
			seqs, xids = append(seqs, x.Seq), append(xids, x.XID)
		}
		if !slices.Equal(seqs, []uint64{1, 2, 3, 4}) || !slices.Equal(xids, []uint32{701, 702, 710, 721}) {
			t.Errorf("cut at byte %d: seqs %v, transactions %v", cut, seqs, xids)
		}
		checkFrames(t, w.pub.all())
	}
}

// behind is what a server sends that is asked to begin at lsn: announcements and streamed transactions from
// their start, commits from lsn on.
func behind(t *testing.T, b []byte, lsn uint64) *script {
	t.Helper()
	s := &script{}
	skip := false
	for at := 0; at < len(b); {
		n, _, err := messageSize(b[at:])
		if err != nil {
			t.Fatal(err)
		}
		m := b[at : at+n]
		at += n
		if m[copyHead] == 'k' {
			continue
		}
		kind, c := m[dataHead], cursor{b: m[dataHead+1:]}
		switch kind {
		case msgBegin:
			skip = c.u64() < lsn
		case msgStreamStart, msgStreamAbort, msgStreamCommit:
			skip = lsn > 300 // the only one commits there
		case msgLogical:
			c.u8()
			skip = c.u64() < lsn
		}
		if !skip {
			s.b = append(s.b, m...)
		}
		switch kind {
		case msgCommit, msgStreamStop, msgStreamAbort, msgStreamCommit, msgLogical:
			skip = false
		}
	}
	return s
}
