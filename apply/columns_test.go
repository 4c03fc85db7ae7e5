package apply

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// emailOf says that the values of column email of tables t are on some nodes.
func emailOf(nodes ...string) ColumnPlaces {
	return ColumnPlaces{Setting: "email", Of: func(_, table string) []wire.ColumnNodes {
		if table != "t" {
			return nil
		}
		return []wire.ColumnNodes{{Name: "email", Nodes: nodes}, {Name: "later", Nodes: nodes}}
	}}
}

// TestSiftOfColumns: who may not have a value takes it for NULL, and so does everybody if its author may not; all else stays as it is.
func TestSiftOfColumns(t *testing.T) {
	author := origin.Origin{Node: "a", Epoch: 1}
	key := bytes.Repeat([]byte{1}, wire.SealKeyBytes)
	seal, err := wire.NewSealer(author, "a b", key, make([]byte, wire.SealPrefixBytes))
	if err != nil {
		t.Fatal(err)
	}
	relations := map[uint32]*wire.Relation{}
	for id, name := range map[uint32]string{1: "t", 2: "u"} {
		relations[id] = &wire.Relation{ID: id, Schema: "s", Name: name, Columns: []wire.Column{{Name: "id", TypeOID: 25}, {Name: "email", TypeOID: 25}, {Name: "v", TypeOID: 25}}}
	}
	relations[3] = &wire.Relation{ID: 3, Schema: "s", Name: "t", Columns: []wire.Column{{Name: "id", TypeOID: 25}, {Name: "v", TypeOID: 25}}}
	text := func(s string) wire.Value {
		switch s {
		case "-":
			return wire.Value{Format: wire.Null}
		case "?":
			return wire.Value{Format: wire.Unchanged}
		}
		if plain, ok := strings.CutPrefix(s, "sealed:"); ok {
			return seal.Value(wire.Value{Format: wire.Text, Data: []byte(plain)})
		}
		return wire.Value{Format: wire.Text, Data: []byte(s)}
	}
	change := func(kind wire.Kind, id uint32, rows ...string) []byte {
		var tuples []byte
		for i, row := range rows {
			tag := byte('N')
			if kind == wire.KindDelete || kind == wire.KindUpdate && i == 0 {
				tag = 'O'
			}
			var values []wire.Value
			for _, s := range strings.Fields(row) {
				values = append(values, text(s))
			}
			tuples = wire.AppendTuple(append(tuples, tag), values)
		}
		return wire.AppendChange(nil, kind, id, tuples)
	}
	for _, x := range []struct {
		change  []byte
		a, b, c string
		author  string // empty: a
	}{
		{change(wire.KindInsert, 1, "1 x y"), "I 1 x y", "I 1 x y", "I 1 - y", ""},
		{change(wire.KindInsert, 1, "1 sealed:x y"), "I 1 x y", "I 1 x y", "I 1 - y", ""},
		{change(wire.KindInsert, 1, "1 - y"), "I 1 - y", "I 1 - y", "I 1 - y", ""},
		{change(wire.KindUpdate, 1, "1 sealed:x y", "1 sealed:z y"), "U 1 x y 1 z y", "U 1 x y 1 z y", "U 1 - y 1 - y", ""},
		{change(wire.KindUpdate, 1, "1 sealed:x y", "1 ? ?"), "U 1 x y 1 ? ?", "U 1 x y 1 ? ?", "U 1 - y 1 - ?", ""},
		{change(wire.KindDelete, 1, "1 sealed:x y"), "D 1 x y", "D 1 x y", "D 1 - y", ""},
		{change(wire.KindInsert, 2, "1 x y"), "I 1 x y", "I 1 x y", "I 1 x y", ""},
		{change(wire.KindInsert, 3, "1 y"), "I 1 y", "I 1 y", "I 1 y", ""},
		{wire.AppendTruncate(nil, 0, []uint32{1}), "T 1", "T 1", "T 1", ""},
		{change(wire.KindUpdate, 1, "1 x y", "1 z w"), "U 1 - y 1 - w", "U 1 - y 1 - w", "U 1 - y 1 - w", "c"},
	} {
		for node, want := range map[string]string{"a": x.a, "b": x.b, "c": x.c} {
			by := author
			if x.author != "" {
				by.Node = x.author
			}
			open, err := wire.NewOpener(node, [][]byte{key})
			if err != nil {
				t.Fatal(err)
			}
			o := &Options{Node: node, Columns: emailOf("a", "b"), Open: open}
			c, err := newChanges(&txn{origin: by, body: slices.Clone(x.change), relations: relations, here: o.resident()})
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if err := eachChange(c, func(rec wire.Record, rels []*wire.Relation, ch *wire.Change) error {
				got += told(rec, rels, ch)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if got != want {
				t.Errorf("%q is at %s %q, want %q", x.change, node, got, want)
			}
		}
	}
	// Who is to have it, and has no key, waits.
	open, err := wire.NewOpener("b", nil)
	if err != nil {
		t.Fatal(err)
	}
	o := &Options{Node: "b", Columns: emailOf("a", "b"), Open: open}
	c, err := newChanges(&txn{origin: author, body: change(wire.KindInsert, 1, "1 sealed:x y"), relations: relations, here: o.resident()})
	if err == nil {
		_, _, err = c.next()
	}
	if !isBlocked(err) || !strings.Contains(err.Error(), "values of table s.t cannot be read here (topology.columns); run pgbridge keys") {
		t.Errorf("a node without the key: %v", err)
	}
	// So does who meets one and is not told of the column.
	m := &mapping{remote: relations[1], local: &table{quoted: "t"}}
	if _, err := m.param(1, text("sealed:x")); !isBlocked(err) || !strings.Contains(err.Error(), `column "email" of table t came with values for some nodes alone`) {
		t.Errorf("a node without the setting: %v", err)
	}
}

// TestJournalBelongsToItsColumns: what is in it counts for other nodes' values no more when other nodes have them; but it outlives a version that
// knows of no such columns.
func TestJournalBelongsToItsColumns(t *testing.T) {
	p := []MergePolicy{{Pattern: "*.t"}}
	if fingerprint(p, nil, "") == fingerprint(p, nil, "s.t.email=a b") || fingerprint(p, nil, "s.t.email=a c") == fingerprint(p, nil, "s.t.email=a b") {
		t.Error("other columns, and the journal goes on")
	}
	if got := fingerprint(p, []string{"a"}, ""); got != "8445b9f0cc983671" {
		t.Errorf("without any, the journal begins anew: %s", got)
	}
}

// TestWhatIsWithheldOfAJournal: the writes of a unit, and the values of its columns, and nothing else.
func TestWhatIsWithheldOfAJournal(t *testing.T) {
	m := &merge{units: []string{"email", "street,town", ""}, cols: []int{0, 1, 2, 3}, placed: []placedUnit{{"email", []int{1}, []string{"a", "b"}}, {"street,town", []int{2, 3}, []string{"b", "c"}}}}
	tab := &table{merge: m, cols: []column{{name: "id"}, {name: "email"}, {name: "street"}, {name: "town"}}}
	cell := func(s string) conflict.Cell { return conflict.Cell{Data: []byte(s)} }
	row, ops := tab.encodeCells([]conflict.Cell{cell("1"), cell("x"), {Null: true}, cell("y")}), m.encodeOps([]conflict.Op{conflict.Op("E"), conflict.Op("S"), conflict.Op("R")})
	rel := &wire.Relation{Columns: []wire.Column{{Name: "id"}, {Name: "town"}, {Name: "email"}}}
	for node, want := range map[string]struct{ ops, cells, tuple string }{
		"a": {"E-R", "1x--", "1-e"}, "b": {"ESR", "1x-y", "1te"}, "c": {"-SR", "1--y", "1t-"}, "": {"--R", "1---", "1--"},
	} {
		w := tab.withheldFrom(node)
		leftOps, err := w.ops(ops)
		if err != nil {
			t.Fatal(err)
		}
		leftRow, err := w.cells(row)
		if err != nil {
			t.Fatal(err)
		}
		all, err := m.decodeOps(leftOps)
		if err != nil {
			t.Fatal(err)
		}
		cells, err := tab.decodeCells(leftRow)
		if err != nil {
			t.Fatal(err)
		}
		show := func(s string, there bool) string {
			if !there {
				return "-"
			}
			return s
		}
		var gotOps, gotCells, gotTuple string
		for _, op := range all {
			gotOps += show(string(op), len(op) > 0)
		}
		for _, c := range cells {
			gotCells += show(string(c.Data), !c.Null)
		}
		tuple := []wire.Value{{Format: wire.Text, Data: []byte("1")}, {Format: wire.Text, Data: []byte("t")}, {Format: wire.Text, Data: []byte("e")}}
		w.hide(rel, tuple)
		for _, v := range tuple {
			gotTuple += show(string(v.Data), v.Format != wire.Null)
		}
		if gotOps != want.ops || gotCells != want.cells || gotTuple != want.tuple {
			t.Errorf("node %q is given %s %s %s, want %+v", node, gotOps, gotCells, gotTuple, want)
		}
	}
	if w := tab.withheldFrom("a"); w == nil {
		t.Error("nothing is withheld")
	} else if none, err := w.cells(nil); none != nil || err != nil {
		t.Errorf("no row becomes %q, %v", none, err)
	} else if _, err := w.ops([]byte{9}); err == nil {
		t.Error("what is cut off is read")
	}
}

// TestColumnsMustBeUnits: a column that is merged together with one that is on other nodes is refused, also by who has not checked the configuration.
func TestColumnsMustBeUnits(t *testing.T) {
	t.Parallel()
	s := pgtest.SharedServer(t, pgtest.Newest(t))
	p := newPair(t, s, `CREATE TABLE t (id int PRIMARY KEY, email text, v text, w text); ALTER TABLE t REPLICA IDENTITY FULL`)
	for _, x := range []struct {
		columns []MergeColumns
		want    string
	}{
		{[]MergeColumns{{Names: []string{"email"}}}, ""},
		{[]MergeColumns{{Names: []string{"*"}}}, ""},
		{[]MergeColumns{{Names: []string{"email", "v"}}}, `column "v" of table "public"."t" is merged together with columns that are on other nodes`},
		{[]MergeColumns{{Names: []string{"v", "email"}}}, `column "email" of table "public"."t" is merged together with columns that are on other nodes`},
		{[]MergeColumns{{Names: []string{"w"}}}, `column "email" of table "public"."t" is merged together with columns that are on other nodes`},
	} {
		c := &catalog{conn: p.to.Connect(t), types: map[uint32]*pgType{}, node: "c", columns: &ColumnPlaces{Of: emailOf("a", "b").Of},
			merges: []MergePolicy{{Pattern: "*", Match: func(_, _ string) bool { return true }, Columns: x.columns}}}
		tab, err := c.tableNow(t.Context(), "public", "t")
		switch {
		case x.want == "" && (err != nil || len(tab.merge.placed) != 1 || len(tab.merge.absent) != 1):
			t.Errorf("%v: %v", x.columns, err)
		case x.want != "" && (!isBlocked(err) || !strings.Contains(err.Error(), x.want)):
			t.Errorf("%v: %v", x.columns, err)
		}
	}
}
