package apply

import (
	"bytes"
	"errors"
	"fmt"
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

// TestRunsOfAnOlderWriterComeAgain: a stream that was copied, or is handed on, begins with the fence of who did that. In between the frames
// of a run come again those of one with the same id and length that an earlier bridge of the origin had begun. A run is made of its own
// writer's pieces, wherever others stand.
func TestRunsOfAnOlderWriterComeAgain(t *testing.T) {
	b := testInbox(t)
	push := func(seq, writer uint64, body []byte) { // of writer 0: a fence
		t.Helper()
		h := wire.Header{Fence: writer == 0, Origin: nodeA, WriterEpoch: 5, OriginWriter: writer}
		if err := b.push(t.Context(), seq, &wire.Frame{Header: h, Body: body}); err != nil {
			t.Fatal(err)
		}
	}
	pieces := func(seq uint64, value byte) (first, second, third, end []byte) {
		row := wire.AppendChange(nil, wire.KindInsert, 1, bytes.Repeat([]byte{value}, 900))
		cut := func(from, to int) []byte { return wire.AppendChunk(nil, 1, uint64(from), row[from:to]) }
		return cut(0, 300), cut(300, 600), cut(600, len(row)), wire.AppendLargeCommit(nil, wire.LargeCommit{Begin: wire.Begin{Seq: seq}, Run: 1, Length: uint64(len(row)), Changes: 1})
	}
	old1, old2, old3, oldEnd := pieces(1, 'o')
	new1, new2, new3, newEnd := pieces(2, 'n')
	for i, x := range []struct {
		writer uint64
		body   []byte
	}{{0, nil}, {1, old1}, {0, nil}, {1, old2}, {1, old3}, {1, oldEnd}, {3, nil}, {1, old1}, {3, new1}, {1, old1}, {1, old2}, {3, new2}, {1, wire.AppendNumber(nil, wire.KindRunAbort, 1)}, {1, old3}, {1, oldEnd}, {3, new3}, {3, newEnd}} {
		push(uint64(i+1), x.writer, x.body)
	}
	for i, want := range []byte{'o', 'n'} {
		x, _ := b.peek(func(*txn) {})
		if x == nil || x.Seq != uint64(i+1) {
			t.Fatalf("transaction %d: %+v", i+1, x)
		}
		c, err := newChanges(x)
		if err != nil {
			t.Fatal(err)
		}
		if rec, err := c.record(); err != nil || bytes.Count(rec.Payload, []byte{want}) != 900 {
			t.Errorf("transaction %d holds %d bytes of %q in a row of %d, %v", x.Seq, bytes.Count(rec.Payload, []byte{want}), want, len(rec.Payload), err)
		}
		b.take()
		b.landed(1, func(*txn) {})
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

// TestAheadOfTheStream: transactions that the stream has not stored are taken once, in their order, and reading begins
// again at what is stored.
func TestAheadOfTheStream(t *testing.T) {
	b := testInbox(t)
	body := func(from, to uint64) (b []byte) {
		for seq := from; seq <= to; seq++ {
			b = wire.AppendCommit(wire.AppendBegin(b, wire.Begin{Seq: seq}))
		}
		return b
	}
	ahead := func(epoch, next, from, to uint64) error {
		return b.pushAhead(t.Context(), next, &wire.Frame{Header: wire.Header{Origin: nodeA, WriterEpoch: epoch, FirstSeq: from, LastSeq: to}, Body: body(from, to)})
	}
	first, _ := runOf(1000)
	err := errors.Join(
		pushFrame(t, b, 1, nil, body(1, 1)),
		ahead(1, 2, 3, 3), // a gap
		ahead(2, 2, 2, 2), // another writer's
		ahead(1, 2, 2, 3),
		ahead(1, 2, 2, 4), // more of it
		pushFrame(t, b, 2, nil, body(2, 5)),
		ahead(1, 3, 3, 4), // late
	)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range b.queue {
		if !x.vectorOnly {
			got = append(got, fmt.Sprintf("%d from %d", x.Seq, x.resume))
		}
	}
	if want := "[1 from 1 2 from 2 3 from 2 4 from 2 5 from 2]"; fmt.Sprint(got) != want || b.again.Load() != 0 {
		t.Errorf("the inbox holds %v, want %s; %d have come again", got, want, b.again.Load())
	}
	if err := pushFrame(t, b, 3, nil, body(4, 6)); err != nil || b.again.Load() != 2 {
		t.Errorf("%d transactions have come again, want 2; %v", b.again.Load(), err)
	}
	f := &wire.Frame{Header: wire.Header{Origin: nodeA, WriterEpoch: 1, FirstSeq: 7}, Body: first}
	if err := b.pushAhead(t.Context(), 3, f); !errors.Is(err, wire.ErrCorrupt) {
		t.Errorf("part of a run ahead of the stream: %v", err)
	}

	// A run that is open in the stream begins where reading begins again.
	c := testInbox(t)
	if err := c.push(t.Context(), 7, &wire.Frame{Header: wire.Header{Origin: nodeA, WriterEpoch: 1, Back: 7}, Body: first}); err != nil {
		t.Fatal(err)
	}
	b = c
	if err := ahead(1, 8, 1, 1); err != nil || c.queue[1].resume != 7 {
		t.Errorf("reading begins at %d, %v", c.queue[1].resume, err)
	}
}
