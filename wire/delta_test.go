package wire

import (
	"errors"
	"io"
	"reflect"
	"testing"

	"github.com/pgbridge/pgbridge/origin"
)

func TestDeltaRoundTrip(t *testing.T) {
	v := origin.Version{Origin: origin.Origin{Node: "a", Epoch: 2}, Stamp: -7}
	keys := &Gone{Version: v, Seq: 9, Keys: []KeyHash{{1, 2}, {3, 4}}}
	table := &Gone{Version: v, Seq: 10, Schema: "public", Table: "t"}
	seen := vector("a", 9, "b", 4)
	logged := &Logged{Relation: 5, Key: KeyHash{1, 2}, Version: v, Seq: 11, Part: 3, Kind: KindUpdate, Seen: []byte("s"), Ops: []byte("o"), Image: []byte{}, Row: []byte("r")}
	bare := &Logged{Version: v, Kind: KindDelete, Seen: []byte{}, Ops: []byte{}, Row: []byte{}}
	body := AppendLogged(AppendLogged(AppendGone(AppendGone(AppendWriter(nil, v), keys), table), logged), bare)
	held := []KeyHash{{5, 6}, {7, 8}}
	base, none := &Base{Key: KeyHash{1, 2}, Schema: "public", Table: "t", Cells: []byte("c")}, &Base{Key: KeyHash{3, 4}}
	body = AppendBase(AppendBase(AppendKeys(body, held), base), none)
	made := &Made{Origin: v.Origin, Seq: 12, Schema: Schema{Role: "r", SearchPath: "p", SQL: "ALTER"}}
	body = AppendEnd(AppendMade(body, made), seen, 3)
	recs := NewRecords(body)
	next := func(want Kind) []byte {
		t.Helper()
		rec, err := recs.Next()
		if err != nil || rec.Kind != want {
			t.Fatalf("record %q, %v", rec.Kind, err)
		}
		return rec.Payload
	}
	if got, err := ParseWriter(next(KindWriter)); err != nil || got != v {
		t.Errorf("%+v, %v", got, err)
	}
	for _, want := range []*Gone{keys, table} {
		payload := next(KindGone)
		if got, err := ParseGone(payload); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
		if _, err := ParseGone(append(payload, 0)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("with a byte more: %v", err)
		}
	}
	for _, want := range []*Logged{logged, bare} {
		if got, err := ParseLogged(next(KindLogged)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	}
	payload := next(KindKeys)
	if got, err := ParseKeys(held[:1:1], payload); err != nil || !reflect.DeepEqual(got, append(held[:1:1], held...)) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := ParseKeys(nil, payload[1:]); !errors.Is(err, ErrCorrupt) {
		t.Errorf("with a byte less: %v", err)
	}
	for _, want := range []*Base{base, none} {
		if got, err := ParseBase(next(KindBase)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	}
	payload = next(KindMade)
	if got, err := ParseMade(payload); err != nil || !reflect.DeepEqual(got, made) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := ParseMade(append(payload, 0)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("with a byte more: %v", err)
	}
	if got, rows, err := ParseEnd(next(KindEnd)); err != nil || !got.Equal(seen) || rows != 3 {
		t.Errorf("%v, %d, %v", got, rows, err)
	}
	if _, err := recs.Next(); err != io.EOF {
		t.Error(err)
	}
}

func TestAppendTupleIsWhatParseTupleReads(t *testing.T) {
	want := []Value{{Format: Null}, {Format: Unchanged}, {Format: Text, Data: []byte("x")}, {Format: Binary, Data: []byte{}}}
	got, rest, err := ParseTuple(nil, append(AppendTuple(nil, want), 'N'))
	if err != nil || string(rest) != "N" || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %q, %v", got, rest, err)
	}
}
