package apply

import (
	"math/rand"
	"slices"
	"testing"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
)

func mergedTable(names ...string) *table {
	t := &table{schema: "s", name: "t", quoted: "s.t", merge: &merge{}}
	for i, n := range names {
		t.cols = append(t.cols, column{name: n})
		t.merge.cols = append(t.merge.cols, i)
		t.merge.units = append(t.merge.units, n)
	}
	return t
}

// TestJournalOutlivesColumns: what was written under other columns is read by their names.
func TestJournalOutlivesColumns(t *testing.T) {
	before, after := mergedTable("a", "gone", "b"), mergedTable("b", "new", "a")
	row := []conflict.Cell{{Data: []byte("1")}, {Data: []byte("x")}, {Null: true}}
	got, err := after.decodeCells(before.encodeCells(row))
	want := []conflict.Cell{{Null: true}, {Null: true}, {Data: []byte("1")}}
	if err != nil || !sameCells(got, want) {
		t.Errorf("row is read as %v, %v", got, err)
	}
	ops, err := after.merge.decodeOps(before.merge.encodeOps([]conflict.Op{conflict.Op("A"), conflict.Op("G"), nil}))
	if err != nil || !slices.EqualFunc(ops, []conflict.Op{nil, nil, conflict.Op("A")}, func(a, b conflict.Op) bool { return string(a) == string(b) }) {
		t.Errorf("ops are read as %q, %v", ops, err)
	}
	for _, b := range [][]byte{{200}, {1}, {1, 'a', 1}, {1, 'a', 1, 9, 'x'}} {
		if _, err := after.decodeCells(b); err == nil {
			t.Errorf("%v is read as a row", b)
		}
		if _, err := after.merge.decodeOps(b); err == nil && len(b) != 3 {
			t.Errorf("%v is read as ops", b)
		}
	}
}

// seeded is a source whose seed the log of a failure names.
func seeded(t *testing.T) *rand.Rand {
	seed := rand.Int63()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewSource(seed))
}

var threeNodes = []origin.Origin{{Node: "a", Epoch: 1}, {Node: "b", Epoch: 1}, {Node: "c", Epoch: 1}}

// randomLineage is of writes whose stamps extend what their authors had seen.
func randomLineage(r *rand.Rand) *lineage {
	l := &lineage{}
	seqs := map[origin.Origin]uint64{}
	lows := map[origin.Origin]origin.Vector{}
	for n := range 1 + r.Intn(10) {
		o := threeNodes[r.Intn(3)]
		low := lows[o].Clone()
		for _, p := range threeNodes {
			if p != o && r.Intn(2) == 0 { // it has heard of p since
				low.Advance(origin.Entry{Origin: p, Seq: seqs[p]})
			}
		}
		lows[o] = low
		seqs[o]++
		l.add(conflict.Logged{Origin: o, Seq: seqs[o], Stamp: origin.Stamp(10 * n), Up: low, Low: low, Kind: conflict.Update}, nil)
	}
	return l
}

// saw reports whether the author of write i certainly had write k.
func (l *lineage) saw(i, k int) bool {
	w, v := &l.writes[i], &l.writes[k]
	if w.Origin == v.Origin {
		return v.Seq < w.Seq
	}
	return w.Low.Covers(v.Origin, v.Seq)
}

// TestFoldable: what is folded every node has seen, and so had the authors of all that stays; and it is as much as can be.
func TestFoldable(t *testing.T) {
	r := seeded(t)
	folded := 0
	for range 3000 {
		l := randomLineage(r)
		stable := map[origin.Origin]uint64{}
		for _, o := range threeNodes {
			stable[o] = uint64(r.Intn(6))
		}
		cut := foldable(l, func(o origin.Origin) uint64 { return stable[o] })
		in := func(i int) bool { return l.writes[i].Seq <= cut[l.writes[i].Origin] }
		var out []int
		for i := range l.writes {
			if in(i) {
				folded++
			} else {
				out = append(out, i)
			}
		}
		for i := range l.writes {
			if in(i) && l.writes[i].Seq > stable[l.writes[i].Origin] {
				t.Fatalf("write %d is folded before every node has seen it", i)
			}
			for _, k := range out {
				if in(i) && !l.saw(k, i) {
					t.Fatalf("write %d is folded, the author of %d had not seen it", i, k)
				}
			}
		}
	}
	if folded == 0 {
		t.Error("nothing was ever folded")
	}
}

// TestStretches: writes are cut wherever all behind had seen all before, and nowhere else.
func TestStretches(t *testing.T) {
	r := seeded(t)
	for range 3000 {
		l := randomLineage(r)
		_, places := l.standing()
		cuts := map[int]bool{}
		at := 0
		for _, s := range l.stretches(places) {
			cuts[at] = true
			at += len(s)
		}
		if at != len(places) {
			t.Fatalf("%d of %d writes are in stretches", at, len(places))
		}
		for at := 1; at < len(places); at++ {
			want := true
			for _, i := range places[at:] {
				for _, k := range places[:at] {
					want = want && l.saw(i, k)
				}
			}
			if cuts[at] != want {
				t.Fatalf("cut at %d: %v, want %v: %+v", at, cuts[at], want, l.writes)
			}
		}
	}
}

// TestTruncateTakesOlderWrites: and younger updates, whose row it has taken, but not a row that is inserted later.
func TestTruncateTakesOlderWrites(t *testing.T) {
	write := func(stamp origin.Stamp, kind conflict.Write) conflict.Logged {
		return conflict.Logged{Origin: threeNodes[0], Seq: uint64(stamp), Stamp: stamp, Kind: kind}
	}
	l := &lineage{base: []conflict.Cell{{}}, truncates: []conflict.Logged{write(10, conflict.Truncate), write(30, conflict.Truncate)}}
	for _, w := range []conflict.Logged{write(50, conflict.Update), write(40, conflict.Insert), write(35, conflict.Update), write(20, conflict.Insert)} {
		l.add(w, nil)
	}
	if row, places := l.standing(); row != nil || !slices.Equal(places, []int{1, 0}) {
		t.Errorf("row %v and writes %v stand, want none, and the insert with the update behind it", row, places)
	}
	l.writes = l.writes[2:]
	if row, places := l.standing(); row != nil || places != nil {
		t.Errorf("row %v and writes %v stand, want nothing", row, places)
	}
	l.truncates = nil
	if row, places := l.standing(); row == nil || len(places) != 2 {
		t.Errorf("row %v and writes %v stand without a TRUNCATE, want all", row, places)
	}
}
