package wire

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
)

// TestPlaces: what a value is, whatever its type and its format, decides which nodes have a row, and others are where those are that * names, or
// everywhere.
func TestPlaces(t *testing.T) {
	p := &Places{Column: "k", Nodes: map[string][]string{"eu": {"a", "b"}, "-7": {"a", "b"}, "true": {"a", "b"}, "1a3da0b2-9f3e-4a55-8b6f-5a1f0e0c9c11": {"a", "b"}}}
	id := []byte{0x1a, 0x3d, 0xa0, 0xb2, 0x9f, 0x3e, 0x4a, 0x55, 0x8b, 0x6f, 0x5a, 0x1f, 0x0e, 0x0c, 0x9c, 0x11}
	minus := int64(-7)
	for _, x := range []struct {
		typ    uint32
		value  Value
		placed bool
	}{
		{25, Value{Text, []byte("eu")}, true}, {25, Value{Binary, []byte("eu")}, true}, {25, Value{Binary, []byte("eu ")}, false}, {25, Value{Binary, []byte("EU")}, false},
		{1043, Value{Binary, []byte("eu")}, true}, {1042, Value{Binary, []byte("eu   ")}, true}, {1042, Value{Text, []byte("eu   ")}, true}, {70000, Value{Binary, []byte("eu")}, true},
		{21, Value{Binary, binary.BigEndian.AppendUint16(nil, uint16(minus))}, true}, {23, Value{Binary, binary.BigEndian.AppendUint32(nil, uint32(minus))}, true},
		{20, Value{Binary, binary.BigEndian.AppendUint64(nil, uint64(minus))}, true}, {23, Value{Text, []byte("-7")}, true}, {23, Value{Binary, []byte{0, 0, 0, 7}}, false},
		{16, Value{Binary, []byte{1}}, true}, {16, Value{Text, []byte("t")}, true}, {16, Value{Binary, []byte{0}}, false}, {16, Value{Text, []byte("f")}, false},
		{2950, Value{Binary, id}, true}, {2950, Value{Text, []byte("1a3da0b2-9f3e-4a55-8b6f-5a1f0e0c9c11")}, true}, {2950, Value{Binary, bytes.Repeat([]byte{1}, 16)}, false},
	} {
		r, err := p.In(&Relation{Columns: []Column{{Name: "id", TypeOID: 23}, {Name: "k", TypeOID: x.typ}}})
		if err != nil {
			t.Fatal(err)
		}
		tuple := AppendTuple(nil, []Value{{Format: Null}, x.value})
		_, value, err := r.Values(append([]byte{'N'}, tuple...))
		if err != nil || p.At("c", value) == x.placed || !p.At("a", value) || p.At("", value) == x.placed {
			t.Errorf("type %d, %c %q is %q: at c %v, %v", x.typ, x.value.Format, x.value.Data, value, p.At("c", value), err)
		}
		if x.placed && (!Placeable(x.typ, x.typ == 70000) || CheckValue(x.typ, string(value)) != "") {
			t.Errorf("%q is not for type %d: %s", value, x.typ, CheckValue(x.typ, string(value)))
		}
	}
	p.Nodes[OtherValues] = []string{"b", "c"}
	if got := p.Of([]byte("us")); !slices.Equal(got, []string{"b", "c"}) || !slices.Equal(p.Of([]byte("*")), got) || !p.At("b", []byte("eu")) || p.At("c", []byte("eu")) {
		t.Errorf("other values are at %s", got)
	}
	if _, err := p.In(&Relation{Schema: "s", Name: "t"}); err == nil {
		t.Error("a relation without the column has places")
	}
	for key, want := range map[string]string{`{"k":"eu","id":1}`: "eu", `{"k":-7}`: "-7", `{"k":true}`: "true", `{"k":"eu  "}`: "eu", `{"id":1}`: "", `{"k":null}`: "", `[`: ""} {
		if got, ok := p.OfKey([]byte(key)); ok != (want != "") || ok && string(got) != want {
			t.Errorf("of %s it is %q, %v", key, got, ok)
		}
	}
}

// TestMovedRowHasTwoValues: before and behind an update of the column; an update that leaves it alone has one.
func TestMovedRowHasTwoValues(t *testing.T) {
	p, err := (&Places{Column: "k"}).In(&Relation{Columns: []Column{{Name: "k", TypeOID: 25}, {Name: "v", TypeOID: 25}}})
	if err != nil {
		t.Fatal(err)
	}
	text := func(s string) Value { return Value{Text, []byte(s)} }
	tuple := func(tag byte, values ...Value) []byte { return AppendTuple([]byte{tag}, values) }
	for _, x := range []struct {
		tuples        []byte
		before, after string
	}{
		{tuple('N', text("x"), text("1")), "x", "x"},
		{slices.Concat(tuple('K', text("x"), Value{Format: Null}), tuple('N', text("y"), text("1"))), "x", "y"},
		{slices.Concat(tuple('O', text("x"), text("1")), tuple('N', Value{Format: Unchanged}, text("1"))), "x", "x"},
		{tuple('K', text("x"), Value{Format: Null}), "x", "x"},
	} {
		before, after, err := p.Values(x.tuples)
		if err != nil || string(before) != x.before || string(after) != x.after {
			t.Errorf("%q: %q, %q, %v", x.tuples, before, after, err)
		}
		if old := x.tuples[:p.OldBytes]; (len(old) == 0) != (x.tuples[0] == 'N') || len(old) > 0 && (old[0] == 'N' || bytes.Contains(old, []byte("y"))) {
			t.Errorf("%q begins with the old row %q", x.tuples, old)
		}
	}
	if _, _, err := p.Values(tuple('K', Value{Format: Null}, text("1"))); err == nil {
		t.Error("a row without the value is somewhere")
	}
}
