package apply

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

func text(s string) *string { return &s }

func newChange(node string, seq uint64, tables ...tableChange) *schemaChange {
	c := &schemaChange{origin: origin.Origin{Node: node, Epoch: 1}, tables: tables}
	c.seq.Store(seq)
	return c
}

// TestRelationsOfOlderSchemas: what an author wrote without some schema changes is as it would be with them.
func TestRelationsOfOlderSchemas(t *testing.T) {
	change := func(renamed, added map[string]*string) lacked {
		return lacked{newChange("a", 1, tableChange{Schema: "s", Name: "t", Renamed: renamed, Added: added}), false}
	}
	maybe := func(renamed, added map[string]*string) lacked {
		return lacked{change(renamed, added).schemaChange, true}
	}
	type names = map[string]*string
	other := lacked{newChange("a", 1, tableChange{Schema: "s", Name: "u", Renamed: names{"x": nil}}), false}
	for _, x := range []struct {
		name, remote, local string
		lag                 lag
		want                string
	}{
		{"added", "id x", "id x n m", lag{change(nil, names{"n": text("7"), "m": nil})}, "id x m=NULL n=7"},
		{"added here by hand, too", "id x", "id x n hand", lag{change(nil, names{"n": text("7")})}, "id x n=7"},
		{"added on both nodes", "id x n", "id x n", lag{change(nil, names{"n": text("7")})}, "id x n"},
		{"dropped", "id x y", "id y", lag{change(names{"x": nil}, nil)}, "id - y"},
		{"renamed", "id x y", "id z y", lag{change(names{"x": text("z")}, nil)}, "id z y"},
		{"swapped", "id x y", "id x y", lag{change(names{"x": text("y"), "y": text("x")}, nil)}, "id y x"},
		{"dropped and added again", "id x", "id x", lag{change(names{"x": nil}, nil), change(nil, names{"x": text("new")})}, "id - x=new"},
		{"in one change", "id x", "id x", lag{change(names{"x": nil}, names{"x": text("new")})}, "id - x=new"},
		{"added, renamed, dropped", "id", "id", lag{change(nil, names{"n": text("1")}), change(names{"n": text("m")}, nil), change(names{"m": nil}, nil)}, "id"},
		{"added and renamed", "id", "id m", lag{change(nil, names{"n": text("1")}), change(names{"n": text("m")}, nil)}, "id m=1"},
		{"of another table", "id x", "id x", lag{other}, "id x"},
		{"declared, and had", "id n", "id n", lag{maybe(nil, names{"n": text("7")})}, "id n"},
		{"declared, and not had", "id", "id n", lag{maybe(nil, names{"n": text("7")})}, "id n=7"},
		{"declared, dropped, and had", "id", "id", lag{maybe(names{"x": nil}, nil)}, "id"},
		{"declared, dropped, and not had", "id x", "id", lag{maybe(names{"x": nil}, nil)}, "id -"},
		{"declared, renamed, and not had", "id x", "id y", lag{maybe(names{"x": text("y")}, nil)}, "id y"},
		{"declared, dropped and added again", "id x", "id x", lag{maybe(names{"x": nil}, nil), maybe(nil, names{"x": nil})}, "id x"},
	} {
		r := &wire.Relation{Schema: "s", Name: "t"}
		for _, name := range strings.Fields(x.remote) {
			r.Columns = append(r.Columns, wire.Column{Name: name})
		}
		before := fmt.Sprint(r.Columns)
		local := &table{schema: "s", name: "t"}
		for _, name := range strings.Fields(x.local) {
			local.cols = append(local.cols, column{name: name, typ: &pgType{oid: 25}})
		}
		a, fills := x.lag.adapted(r, local)
		var got []string
		for i, c := range a.Columns {
			s := c.Name
			if s == "" {
				s = "-"
			}
			if i >= len(r.Columns) {
				v := fills[i-len(r.Columns)]
				if s += "="; v.Format == wire.Null {
					s += "NULL"
				}
				s += string(v.Data)
			}
			got = append(got, s)
		}
		if strings.Join(got, " ") != x.want || len(fills) != len(a.Columns)-len(r.Columns) || fmt.Sprint(r.Columns) != before {
			t.Errorf("%s: %v, want %s", x.name, got, x.want)
		}
	}
}

// TestWhoLacksASchemaChange: who does not declare it, and its own origin before it.
func TestWhoLacksASchemaChange(t *testing.T) {
	o := func(node string) origin.Origin { return origin.Origin{Node: node, Epoch: 1} }
	up := func(node string, seq uint64) origin.Vector {
		return origin.Vector{{Origin: o(node), Seq: seq}}
	}
	own := newChange("me", 0) // not published yet
	w := &worker{schema: &schemaChanges{own: o("me")}}
	w.lacking = []*schemaChange{newChange("b", 5), newChange("c", 7), own}
	w.schema.all = slices.Clone(w.lacking)
	b := func(seq uint64, up, low origin.Vector) *txn {
		return &txn{Begin: wire.Begin{Seq: seq}, origin: o("b"), up: up, low: low}
	}
	for _, x := range []struct {
		name string
		t    *txn
		want []bool // of each, whether it is declared
		left int
	}{
		{"before all", b(4, up("c", 6), nil), []bool{false, false, false}, 3},
		{"behind its own", b(6, up("c", 6), nil), []bool{false, false}, 2},
		{"that declares c's", b(7, up("c", 7), up("c", 6)), []bool{true, false}, 2},
		{"that certainly has c's", b(8, up("c", 9), up("c", 7)), []bool{false}, 1},
	} {
		var got []bool
		for _, c := range w.lagOf(x.t) {
			got = append(got, c.maybe)
		}
		if w.lagOf(x.t); !slices.Equal(got, x.want) || len(w.lacking) < x.left {
			t.Errorf("%s: %v, and a look ahead has forgotten some", x.name, got)
		}
		if w.outgrow(x.t); len(w.lacking) != x.left {
			t.Errorf("%s: %v, %d may be lacked later", x.name, got, len(w.lacking))
		}
	}
	old := b(4, up("c", 6), nil)
	old.parked = 1
	if got := w.lagOf(old); len(got) != 3 {
		t.Errorf("one that was parked lacks %d", len(got))
	}
	w.schema.told = map[uint32]uint64{}
	w.schema.meet(9, own.xid)
	if got := w.lagOf(b(9, nil, up("me", 9))); len(got) != 0 {
		t.Errorf("the own one is known, and %d are lacked", len(got))
	}
	if got := w.schema.bound(100); got != 8 {
		t.Errorf("frames may go up to %d", got)
	}
}

// TestChangesOfDroppedTables are left out, also of a TRUNCATE of several.
func TestChangesOfDroppedTables(t *testing.T) {
	l := lag{{newChange("a", 1, tableChange{Schema: "s", Name: "gone", Dropped: true}), false}}
	relations := map[uint32]*wire.Relation{1: {ID: 1, Schema: "s", Name: "gone"}, 2: {ID: 2, Schema: "s", Name: "t"}}
	var got []string
	body := wire.AppendChange(nil, wire.KindInsert, 1, []byte{'N', 0, 0})
	body = wire.AppendChange(body, wire.KindInsert, 2, []byte{'N', 0, 0})
	body = wire.AppendTruncate(body, 0, []uint32{1})
	body = wire.AppendTruncate(body, 0, []uint32{1, 2})
	recs := wire.NewRecords(body)
	for {
		rec, err := recs.Next()
		if err != nil {
			break
		}
		rec, left, err := l.withoutDropped(rec, relations)
		if err != nil {
			t.Fatal(err)
		}
		if left {
			got = append(got, fmt.Sprintf("%c %x", rec.Kind, rec.Payload))
		}
	}
	if want := "I 024e0000, T 000102"; strings.Join(got, ", ") != want {
		t.Errorf("%s, want %s", strings.Join(got, ", "), want)
	}
}
