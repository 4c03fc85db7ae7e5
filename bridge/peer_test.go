package bridge

import (
	"testing"

	"github.com/pgbridge/pgbridge/wire"
)

// TestAheadsAreRemembered: of what came ahead of its stream the whole is remembered, each frame once, until the stream brings it.
func TestAheadsAreRemembered(t *testing.T) {
	u := &upstream{}
	frame := func(first, last uint64) *wire.Frame {
		return &wire.Frame{Header: wire.Header{FirstSeq: first, LastSeq: last}}
	}
	for _, f := range []*wire.Frame{frame(1, 1), frame(1, 2), frame(3, 3), frame(3, 5)} {
		u.tookAhead(f)
	}
	first := u.aheads[0].at
	if len(u.aheads) != 2 || u.aheads[0].LastSeq != 2 || u.aheads[1].LastSeq != 5 {
		t.Fatalf("%d frames are remembered", len(u.aheads))
	}
	u.tookAhead(frame(3, 6))
	u.took(frame(1, 2))
	if len(u.aheads) != 1 || u.aheads[0].LastSeq != 6 || u.aheads[0].at.Before(first) {
		t.Errorf("%d frames are remembered when one has come", len(u.aheads))
	}
	u.took(frame(0, 4)) // of a stream that has not all of it yet
	if len(u.aheads) != 1 {
		t.Error("a frame is forgotten that has not come whole")
	}
	for i := range uint64(2 * aheadsLimit) {
		u.tookAhead(frame(10+i, 10+i))
	}
	if len(u.aheads) != aheadsLimit {
		t.Errorf("%d frames are remembered, want %d", len(u.aheads), aheadsLimit)
	}
}
