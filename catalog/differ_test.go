package catalog

import (
	"strings"
	"testing"
)

// TestDifferences: each way in which two nodes' tables can differ is told once, under its kind, and equal ones tell nothing.
func TestDifferences(t *testing.T) {
	base := func() *Summary {
		return &Summary{Encoding: "UTF8", Collation: "c:C", Tables: []Table{{Name: "t", Key: []string{"id"}, Unique: []string{"USING btree (id)"},
			Columns: []Column{{Name: "e", Type: "mood", Detail: "'a', 'b'"}, {Name: "id", Type: "integer", NotNull: true}, {Name: "v", Type: "text"}}}}}
	}
	if d := Differences(base(), base()); len(d) > 0 {
		t.Fatalf("equal ones differ: %+v", d)
	}
	for _, c := range []struct {
		change func(there *Summary)
		kind   Kind
		words  string
	}{
		{func(s *Summary) { s.Encoding = "LATIN1" }, EncodingDiffers, "UTF8 here and LATIN1 there"},
		{func(s *Summary) { s.Collation = "i:de" }, DefaultCollationDiffers, "c:C here and i:de there"},
		{func(s *Summary) { s.Tables = nil }, TableMissingThere, "here and not there"},
		{func(s *Summary) { s.Tables = append(s.Tables, Table{Name: "u"}) }, TableMissingHere, "there and not here"},
		{func(s *Summary) { s.Tables[0].Columns = s.Tables[0].Columns[:2] }, ColumnDiffers, `column "v" here and not there`},
		{func(s *Summary) { s.Tables[0].Columns = append(s.Tables[0].Columns, Column{Name: "w", Type: "text"}) }, ColumnDiffers, `column "w" there and not here`},
		{func(s *Summary) { s.Tables[0].Columns[2].Type = "jsonb" }, ColumnDiffers, `"v" as text here and as jsonb there`},
		{func(s *Summary) { s.Tables[0].Columns[2].Generated = true }, ColumnDiffers, "generated on one of the two"},
		{func(s *Summary) { s.Tables[0].Columns[1].Type = "bigint" }, ColumnWider, `"id" as integer here and as bigint there`},
		{func(s *Summary) { s.Tables[0].Columns[0].Detail = "'a'" }, TypeDiffers, "'a', 'b' here and 'a' there"},
		{func(s *Summary) { s.Tables[0].Columns[2].NotNull = true }, NullDiffers, "NOT NULL there and not here"},
		{func(s *Summary) { s.Tables[0].Key = []string{"id", "v"} }, KeyDiffers, `("id") here and ("id", "v") there`},
		{func(s *Summary) {
			s.Tables[0].Columns[2].Nondeterministic, s.Tables[0].Columns[2].Collation = true, "i:und-ks"
		}, EqualityDiffers, "takes for equal"},
		{func(s *Summary) { s.Tables[0].Columns[2].Collation = "c:de" }, CollationDiffers, "the database's here and c:de there"},
		{func(s *Summary) { s.Tables[0].Unique = append(s.Tables[0].Unique, "USING btree (v)") }, UniqueDiffers, "USING btree (v) there and not here"},
		{func(s *Summary) { s.Tables[0].Checks = []string{"CHECK (id > 0)"} }, CheckDiffers, "CHECK (id > 0) there and not here"},
	} {
		there := base()
		c.change(there)
		d := Differences(base(), there)
		if len(d) != 1 || d[0].Kind != c.kind || !strings.Contains(d[0].Text, c.words) {
			t.Errorf("%s: %+v", c.kind, d)
		}
		if back := Differences(there, base()); len(back) != 1 {
			t.Errorf("%s, the other way: %+v", c.kind, back)
		}
	}
	// A generated column that one node has alone is no difference: it is not replicated.
	there := base()
	there.Tables[0].Columns = append(there.Tables[0].Columns, Column{Name: "g", Type: "text", Generated: true})
	if d := Differences(base(), there); len(d) > 0 {
		t.Errorf("a generated column: %+v", d)
	}
}
