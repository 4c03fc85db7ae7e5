package apply

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// TestSift: each node gets of a change what is for it; a row that goes to other nodes comes to the one as a delete and to the other as an insert,
// with the large values that the old row has; and once, if it came twice.
func TestSift(t *testing.T) {
	places := &wire.Places{Column: "k", Nodes: map[string][]string{"eu": {"a", "b"}, "us": {"a", "c"}}}
	relations := map[uint32]*wire.Relation{}
	for id, name := range map[uint32]string{1: "orders", 2: "item", 3: "secret"} {
		relations[id] = &wire.Relation{ID: id, Schema: "s", Name: name, Columns: []wire.Column{{Name: "k", TypeOID: 25}, {Name: "v", TypeOID: 25}}}
	}
	text := func(s string) wire.Value { return wire.Value{Format: wire.Text, Data: []byte(s)} }
	null, unchanged := wire.Value{Format: wire.Null}, wire.Value{Format: wire.Unchanged}
	tuple := func(tag byte, k, v wire.Value) []byte { return wire.AppendTuple([]byte{tag}, []wire.Value{k, v}) }
	change := func(kind wire.Kind, id uint32, tuples ...[]byte) []byte {
		return wire.AppendChange(nil, kind, id, slices.Concat(tuples...))
	}
	key := func(k string) []byte { return tuple('K', text(k), null) }
	row := func(k, v string) []byte { return tuple('N', text(k), text(v)) }
	moved := change(wire.KindUpdate, 1, key("eu"), row("us", "x"))
	for _, x := range []struct {
		changes [][]byte
		want    string // of a; of b; of c
		author  string // empty: a
	}{
		{[][]byte{change(wire.KindInsert, 1, row("eu", "x"))}, "I eu x; I eu x;", ""},
		{[][]byte{change(wire.KindInsert, 1, row("asia", "x")), change(wire.KindUpdate, 1, row("us", "y"))}, "I asia x, U us y; I asia x; I asia x, U us y", ""},
		{[][]byte{change(wire.KindDelete, 1, key("us"))}, "D us -;; D us -", ""},
		{[][]byte{moved}, "U eu - us x; D eu -; I us x", ""},
		{[][]byte{change(wire.KindUpdate, 1, key("us"), row("asia", "x"))}, "U us - asia x; I asia x; U us - asia x", ""},
		{[][]byte{moved, change(wire.KindDelete, 1, key("eu"))}, "U eu - us x; D eu -, D eu -; I us x", ""}, // who sees both halves has both values
		{[][]byte{moved, change(wire.KindDelete, 1, key("us"))}, "U eu - us x, D us -; D eu -; I us x, D us -", ""},
		{[][]byte{moved, change(wire.KindInsert, 1, row("eu", "y")), change(wire.KindDelete, 1, key("eu"))}, "U eu - us x, I eu y, D eu -; D eu -, I eu y, D eu -; I us x", ""},
		{[][]byte{moved, change(wire.KindInsert, 2, row("eu", "y")), change(wire.KindDelete, 1, key("eu"))}, "U eu - us x, I eu y, D eu -; D eu -, I eu y, D eu -; I us x, I eu y", ""},
		{[][]byte{change(wire.KindUpdate, 1, tuple('O', text("eu"), text("long")), tuple('N', text("us"), unchanged))}, "U eu long us ?; D eu long; I us long", ""},
		{[][]byte{change(wire.KindUpdate, 1, key("eu"), tuple('N', text("us"), unchanged))}, "U eu - us ?; D eu -; I us ?", ""},
		{[][]byte{change(wire.KindInsert, 3, row("eu", "x")), wire.AppendTruncate(nil, 0, []uint32{1, 3})}, "I eu x, T 1 3; T 1; T 1", ""},
		// What users write of others' rows stays with them; not what they make of these for their own node, nor what they make for others of their own.
		{[][]byte{change(wire.KindInsert, 1, row("eu", "x")), change(wire.KindUpdate, 1, row("eu", "x")), change(wire.KindDelete, 1, key("eu"))}, ";;", "c"},
		{[][]byte{change(wire.KindUpdate, 1, key("us"), row("eu", "x"))}, "U us - eu x; I eu x; D us -", "c"},
		{[][]byte{moved}, "I us x;; I us x", "c"},
		{[][]byte{moved, change(wire.KindDelete, 1, key("eu"))}, "I us x;; I us x", "c"},
		{[][]byte{change(wire.KindUpdate, 1, tuple('O', text("eu"), text("long")), tuple('N', text("us"), unchanged))}, "I us long;; I us long", "c"},
		{[][]byte{change(wire.KindInsert, 1, row("eu", "x")), change(wire.KindInsert, 2, row("eu", "y"))}, "I eu y; I eu y; I eu y", "d"},
	} {
		var got []string
		for _, node := range []string{"a", "b", "c"} {
			o := &Options{Node: node, Rows: func(schema, table string) *wire.Places {
				if schema+"."+table == "s.orders" {
					return places
				}
				return nil
			}}
			if node != "a" {
				o.Elsewhere = func(schema, table string) bool { return table == "secret" }
			}
			c, err := newChanges(&txn{origin: origin.Origin{Node: cmp.Or(x.author, "a"), Epoch: 1}, body: slices.Concat(x.changes...), relations: relations, here: o.resident()})
			if err != nil {
				t.Fatal(err)
			}
			var all []string
			err = eachChange(c, func(rec wire.Record, rels []*wire.Relation, ch *wire.Change) error {
				all = append(all, told(rec, rels, ch))
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, strings.Join(all, ", "))
		}
		want := strings.Split(x.want, ";")
		for i := range got {
			if got[i] != strings.TrimSpace(want[i]) {
				t.Errorf("%q are at %c %q, want %q", x.changes, "abc"[i], got[i], want[i])
			}
		}
	}
	dropped := &Options{Node: "a", Rows: func(_, _ string) *wire.Places { return &wire.Places{Column: "gone"} }}
	c, err := newChanges(&txn{body: moved, relations: relations, here: dropped.resident()})
	if err == nil {
		_, _, err = c.next()
	}
	if !isBlocked(err) || !strings.Contains(err.Error(), "has no column gone") {
		t.Errorf("a table without the column: %v", err)
	}
	if (&Options{Node: "a"}).resident() != nil {
		t.Error("where all is for all nodes, changes are looked at")
	}
}

// told writes a change as a text.
func told(rec wire.Record, rels []*wire.Relation, ch *wire.Change) string {
	text := string(rune(rec.Kind))
	if rec.Kind == wire.KindTruncate {
		for _, r := range rels {
			text += fmt.Sprint(" ", r.ID)
		}
		return text
	}
	for _, v := range slices.Concat(ch.Old, ch.New) {
		switch v.Format {
		case wire.Null:
			text += " -"
		case wire.Unchanged:
			text += " ?"
		default:
			text += " " + string(v.Data)
		}
	}
	return text
}
