package bridge

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/origin"
)

func columnConfig(node, dir string, columns ...string) *config.Config {
	c := residentConfig(node, dir)
	c.Topology.Kind, c.Topology.Residency, c.Topology.Columns = "mesh", nil, columns
	return c
}

// TestWhoLacksWhichColumns: a donor must have all values that the other node has, beside rows and tables.
func TestWhoLacksWhichColumns(t *testing.T) {
	cfg := columnConfig("a", "", "shop.c.email=a b", "shop.c.phone= b c", "app.x.v=b a")
	for _, x := range []struct{ node, other, want string }{
		{"b", "a", ""}, {"b", "c", ""}, {"a", "b", "column phone of shop.c topology.columns"}, {"c", "b", "column v of app.x topology.columns"}, {"c", "", ""},
		{"", "b", "column v of app.x topology.columns"},
	} {
		what, setting := lacks(cfg, x.node, x.other)
		if got := what + " " + setting; what != "" && got != x.want || what == "" && x.want != "" {
			t.Errorf("%s lacks of what %s has: %q, want %q", x.node, x.other, got, x.want)
		}
	}
	cfg.Topology.Rows = []string{"shop.o.r=eu:b c"}
	if what, setting := lacks(cfg, "a", "b"); what != "rows of shop.o with r=eu" || setting != "topology.rows" {
		t.Errorf("a lacks %s (%s)", what, setting)
	}
	if columnsOf(columnConfig("a", "")).byTable() != nil || columnPlaces(columnConfig("a", "")).Setting != "" {
		t.Error("where no columns have places, each table is asked for")
	}
}

// TestSealKeysOfColumns: as of rows.
func TestSealKeysOfColumns(t *testing.T) {
	dir := t.TempDir()
	columns := []string{"shop.c.email=b a", "shop.c.phone=a b"}
	if err := MakeKeys(columnConfig("a", dir, columns...), dir, func(string) {}); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*", sealPattern))
	for i := range files {
		files[i] = strings.TrimPrefix(files[i], dir+"/")
	}
	if got := strings.Join(files, " "); got != "a/rows-a+b+c.key a/rows-a+b.key b/rows-a+b+c.key b/rows-a+b.key c/rows-a+b+c.key" {
		t.Errorf("keys are %s", got)
	}
	for node, group := range map[string]string{"b": "a b", "c": "a b c"} {
		s, err := readSeals(columnConfig(node, filepath.Join(dir, node), columns...), origin.Origin{Node: node, Epoch: 1})
		if err != nil {
			t.Fatal(err)
		}
		if by := s.byRow(); by([]string{"a", "b"}) == nil || by([]string{"a", "b"}) != s.sealers[group] {
			t.Errorf("node %s has %+v", node, s)
		}
	}
	if _, err := readSeals(columnConfig("a", filepath.Join(dir, "c"), columns...), origin.Origin{Node: "a", Epoch: 1}); err == nil || !strings.Contains(err.Error(), "run pgbridge keys") {
		t.Errorf("without its key node a says %v", err)
	}
}

// TestColumnsAreComparedWhereTheyAre: those that all have at all, and the others at those that have them, as far as the lead does; what cannot be
// compared is said once.
func TestColumnsAreComparedWhereTheyAre(t *testing.T) {
	cols := columnsOf(columnConfig("a", "", "s.t.email=a b", "s.t.phone=b a", "s.t.v=a b c", "s.t.w=a c d", "s.t.all=a b c d"))
	for nodes, want := range map[string]string{
		"a b c d": "a b c d: all id n, a b c: v, a b: email phone, a c d: w",
		"b a c":   "b a c: all id n v, b a: email phone",
		"d c":     "d c: all id n w",
		"a b":     "a b: all email id n phone v, a: w",
	} {
		var got []string
		for k, c := range comparedColumns(cols.of("s", "t"), strings.Fields(nodes)) {
			var names []string
			for _, name := range []string{"all", "email", "id", "n", "phone", "v", "w"} {
				if c.cells(name) {
					names = append(names, name)
				}
			}
			got = append(got, strings.Join(c.at, " ")+": "+strings.Join(names, " "))
			if c.again != (k != "") || c.again && !strings.HasPrefix(c.why, "topology.columns has column ") {
				t.Errorf("%v: %+v", c.at, c)
			}
		}
		slices.Sort(got)
		if want := strings.Split(want, ", "); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			t.Errorf("%s compare %q, want %q", nodes, got, want)
		}
	}
	ask := func(context.Context, string, *apply.VerifyQuestion) (*apply.VerifyAnswer, error) {
		return &apply.VerifyAnswer{Tables: []*apply.VerifyTable{{Schema: "s", Name: "t", Problem: "no"}}}, nil
	}
	r, err := residency{}.compare(t.Context(), nil, cols, ask, strings.Fields("a b c d"), VerifyOptions{}, func(VerifyProgress) {})
	if err != nil || fmt.Sprint(r.Skipped) != "[{s.t at node a: no}]" {
		t.Errorf("%+v, %v", r, err)
	}
	r = &VerifyReport{Rows: 5, Tables: []VerifiedTable{{Table: "s.t", Rows: 5, Differences: 1}}, Differences: 1, Explained: []RowReason{{"s.t", "id=1", "x"}}, Skipped: []VerifySkipped{{"s.u", "no"}}}
	more := &VerifyReport{Rows: 5, Tables: []VerifiedTable{{Table: "s.t", Rows: 5, Differences: 2, Looked: 2}}, Differences: 2,
		Explained: []RowReason{{"s.t", "id=1", "x"}, {"s.t", "id=2", "x"}}, Skipped: []VerifySkipped{{"s.u", "no"}}}
	more.sameRows(r)
	r.add(more, 9)
	if r.Rows != 5 || fmt.Sprint(r.Tables) != fmt.Sprint([]VerifiedTable{{Table: "s.t", Rows: 5, Differences: 3, Looked: 2}}) || r.Differences != 3 || len(r.Explained) != 2 || len(r.Skipped) != 1 {
		t.Errorf("other columns of the same rows are reported as %+v", r)
	}
}
