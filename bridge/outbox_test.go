package bridge

import (
	"testing"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// TestPurgeKeepsWhatARestartNeeds: three frames of ten transactions, whose commits lie below LSN 100, 200 and
// 300.
func TestPurgeKeepsWhatARestartNeeds(t *testing.T) {
	for _, x := range []struct {
		name         string
		stable, hold uint64
		want         uint64
	}{
		{"nothing is stable", 9, 0, 0},
		{"the frame of the last stable transaction stays", 10, 0, 0},
		{"two are stable", 20, 0, 2},
		{"all are stable", 30, 0, 3},
		{"a delete in the second frame is held", 30, 150, 0},
		{"a delete in the third frame is held", 30, 200, 2},
		{"a delete behind all frames is held", 30, 300, 3},
	} {
		o := &outbox{}
		for i := uint64(1); i <= 3; i++ {
			o.note(i, &wire.Frame{Header: wire.Header{LastSeq: 10 * i, ResumeLSN: 100 * i}})
		}
		if got := o.below(x.stable, x.hold); got != x.want {
			t.Errorf("%s: everything below frame %d goes; want %d", x.name, got, x.want)
		}
	}
}

// TestLettingGoStopsWhereItMay: ten frames of one transaction each, of which every second one is known.
func TestLettingGoStopsWhereItMay(t *testing.T) {
	for _, x := range []struct {
		name               string
		want, stable, hold uint64
		below              uint64
	}{
		{"the first place that is known behind the one that is wanted", 4, 9, 0, 5},
		{"that one itself", 5, 9, 0, 5},
		{"no further than what others have", 9, 5, 0, 5},
		{"no further than a delete that is held", 9, 9, 350, 3},
		{"nothing is stable", 4, 0, 0, 0},
		{"the frame of the last stable transaction stays", 4, 1, 0, 0},
	} {
		o := &outbox{}
		for i := uint64(1); i <= 10; i += 2 {
			o.note(i, &wire.Frame{Header: wire.Header{LastSeq: i, ResumeLSN: 100 * i}})
		}
		if got := o.toward(x.want, x.stable, x.hold); got != x.below {
			t.Errorf("%s: everything below frame %d goes; want %d", x.name, got, x.below)
		}
	}
}

// TestNewNodeBeginsAnewWithWhatItHadSeen: as long as the database does not know of a published transaction, the stream begins anew with
// the state in front of the first one, from where on the slot still has all.
func TestNewNodeBeginsAnewWithWhatItHadSeen(t *testing.T) {
	seen := func(seq uint64) origin.Vector {
		return origin.Vector{{Origin: origin.Origin{Node: "b", Epoch: 1}, Seq: seq}}
	}
	o := &outbox{}
	var node apply.Node
	note := func(stream, last, lsn uint64, up origin.Vector) {
		t.Helper()
		o.note(stream, &wire.Frame{Header: wire.Header{LastSeq: last, ResumeLSN: lsn, Up: up}})
		if h := o.beginning(node.Beginning); h != nil {
			node.Beginning = h
		}
	}
	holds := func(what string, hold, want uint64) {
		t.Helper()
		if got := holdFirst(node, hold); got != want {
			t.Errorf("%s: WAL is held from %d on, want %d", what, got, want)
		}
	}
	holds("nothing is noted", 0, 1)
	note(1, 0, 100, nil)
	holds("the first frame", 0, 100)
	holds("a delete in front of it", 50, 50)
	holds("a delete behind it", 150, 100)
	note(2, 0, 200, nil)
	holds("nothing was seen", 0, 100)
	note(3, 0, 100+beginningStep, nil)
	holds("much WAL", 0, 100+beginningStep)
	note(4, 0, 300+beginningStep, seen(7))
	holds("others' transactions", 0, 300+beginningStep)
	note(5, 2, 400+2*beginningStep, seen(8))
	note(6, 3, 500+4*beginningStep, seen(9))
	holds("own transactions", 0, 300+beginningStep)
	f := beginning(node)
	if f == nil || f.LastSeq != 0 || f.ResumeLSN != 300+beginningStep || !f.Up.Equal(seen(7)) {
		t.Errorf("the stream begins anew behind %+v", f)
	}
	node.Published = 1
	holds("it is known", 0, 0)
	holds("it is known, and a delete is held", 350, 350)
	if f := beginning(node); f != nil {
		t.Errorf("what was published is known, and the stream begins anew behind %+v", f)
	}
}
