package apply

import (
	"errors"
	"io"
	"os"
	"testing"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

func testInbox(t *testing.T) *inbox {
	b := newInbox(nodeA, &Options{SpoolDir: t.TempDir(), InboxBytes: 1 << 20}, 0)
	t.Cleanup(func() {
		b.restart()
		b.close()
	})
	return b
}

// pushFrame pushes a frame with stream sequence and writer epoch 1.
func pushFrame(t *testing.T, b *inbox, seq uint64, low origin.Vector, body []byte) error {
	t.Helper()
	return b.push(t.Context(), seq, &wire.Frame{Header: wire.Header{Origin: nodeA, WriterEpoch: 1, Low: low}, Body: body})
}

// runOf is a run with one row of length bytes, cut into two chunks, and its commit.
func runOf(length int) (first, second []byte) {
	row := wire.AppendChange(nil, wire.KindInsert, 1, make([]byte, length))
	half := len(row) / 2
	first = wire.AppendChunk(nil, 7, 0, row[:half])
	second = wire.AppendChunk(nil, 7, uint64(half), row[half:])
	return first, wire.AppendLargeCommit(second, wire.LargeCommit{Begin: wire.Begin{Seq: 1}, Run: 7, Length: uint64(len(row)), Changes: 1})
}

// TestRunIsReadAgainBesideItself: a peer's stream is read anew while a run of it waits for its turn.
func TestRunIsReadAgainBesideItself(t *testing.T) {
	b := testInbox(t)
	first, second := runOf(1000)
	for i, body := range [][]byte{first, second} {
		if err := pushFrame(t, b, uint64(i+1), nil, body); err != nil {
			t.Fatal(err)
		}
	}
	waiting, _ := b.peek(func(*txn) {})
	b.restart()
	if err := pushFrame(t, b, 1, nil, first); err != nil {
		t.Fatal(err)
	}
	c, err := newChanges(waiting)
	if err != nil {
		t.Fatal(err)
	}
	if rec, err := c.record(); err != nil || len(rec.Payload) < 1000 {
		t.Errorf("the run that waits holds %d bytes of its row, %v", len(rec.Payload), err)
	}
	if _, err := c.record(); err != io.EOF {
		t.Errorf("behind the row: %v", err)
	}
}

func TestRunThatIsCutOffIsNotApplied(t *testing.T) {
	b := testInbox(t)
	first, second := runOf(1000)
	if err := errors.Join(pushFrame(t, b, 1, nil, first), pushFrame(t, b, 2, nil, second)); err != nil {
		t.Fatal(err)
	}
	waiting, _ := b.peek(func(*txn) {})
	if err := os.Truncate(waiting.run.file.Name(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := newChanges(waiting); !errors.Is(err, wire.ErrCorrupt) {
		t.Errorf("a run without its bytes: %v", err)
	}
}

// TestVectorsDoNotPileUp: a peer that only applies others' work sends nothing but vectors, also while its
// own last transaction waits here.
func TestVectorsDoNotPileUp(t *testing.T) {
	b := testInbox(t)
	body := wire.AppendCommit(wire.AppendBegin(nil, wire.Begin{Seq: 1}))
	if err := pushFrame(t, b, 1, nil, body); err != nil {
		t.Fatal(err)
	}
	other := origin.Origin{Node: "c", Epoch: 1}
	for i := uint64(1); i <= 1000; i++ {
		if err := pushFrame(t, b, 1+i, origin.Vector{{Origin: other, Seq: i}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(b.queue); n > 2 {
		t.Errorf("%d entries wait", n)
	}
	b.take()
	var low origin.Vector
	b.landed(1, func(x *txn) { low = x.low })
	b.peek(func(x *txn) { low = x.low })
	if low.Seq(other) != 1000 {
		t.Errorf("the last vector that was passed on is %v", low)
	}
}
