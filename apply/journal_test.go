package apply

import (
	"context"
	"testing"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// lastFrame is a stream of which only the last frame is left, without transactions.
type lastFrame struct{ origin.Entry }

// Reread implements Streams.
func (s lastFrame) Reread(_ context.Context, _ origin.Origin, _, _ uint64, fn func(*wire.Frame) error) error {
	return fn(&wire.Frame{Header: wire.Header{Origin: s.Origin, LastSeq: s.Seq, LastStamp: s.Stamp}})
}

// TestJournalDoesWithoutWhatIsGone: own frames go when every node has them, and a quiet node publishes none after a start; nobody may
// wait for the journal to have what stood there.
func TestJournalDoesWithoutWhatIsGone(t *testing.T) {
	last := origin.Entry{Origin: nodeA, Seq: 9, Stamp: 90}
	j := &journal{own: nodeA, opts: &Options{SpoolDir: t.TempDir()}, changed: make(chan struct{}), streams: lastFrame{last},
		done: origin.Entry{Origin: nodeA, Seq: 7, Stamp: 70}}
	if err := j.catchUp(t.Context(), 9); err != nil {
		t.Fatal(err)
	}
	if j.done != last || !j.reached(90) {
		t.Errorf("the journal has come to %v, want %v", j.done, last)
	}
}
