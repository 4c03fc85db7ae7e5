package bridge

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

func placedConfig(node, dir string, rows ...string) *config.Config {
	c := residentConfig(node, dir)
	c.Topology.Kind, c.Topology.Rows = "mesh", rows
	return c
}

// TestWhoLacksWhichRows: a donor must have all rows that the other node has, of values that are named, of others, and beside tables.
func TestWhoLacksWhichRows(t *testing.T) {
	cfg := placedConfig("a", "", "shop.o.r=eu:a b", "shop.o.r=us: a c", "app.x.k=*:a b", "app.x.k=1:a b c")
	for _, x := range []struct{ node, other, want string }{
		{"a", "b", ""}, {"a", "c", ""}, {"b", "c", "rows of shop.o with r=us topology.rows"}, {"c", "b", "rows of app.x with k=* topology.rows"},
		{"b", "a", "rows of shop.o with r=us topology.rows"}, {"b", "", ""}, {"", "b", "rows of app.x with k=1 topology.rows"},
	} {
		what, setting := lacks(cfg, x.node, x.other)
		if got := what + " " + setting; what != "" && got != x.want || what == "" && x.want != "" {
			t.Errorf("%s lacks of what %s has: %q, want %q", x.node, x.other, got, x.want)
		}
	}
	cfg.Topology.Residency = []string{"crm.*=b c"}
	if what, setting := lacks(cfg, "a", "b"); what != "tables crm.*" || setting != "topology.residency" {
		t.Errorf("a lacks %s (%s)", what, setting)
	}
	if placedOf(placedConfig("a", "")).byTable() != nil {
		t.Error("where no rows have places, each table is asked for")
	}
}

// TestSealKeysOfRows: who may have to open a row has the key: those who are to have it, and with each other node another one, since that may write it.
func TestSealKeysOfRows(t *testing.T) {
	dir := t.TempDir()
	rows := []string{"shop.o.r=eu:b a", "shop.o.r=us:a c"}
	if err := MakeKeys(placedConfig("a", dir, rows...), dir, func(string) {}); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*", sealPattern))
	for i := range files {
		files[i] = strings.TrimPrefix(files[i], dir+"/")
	}
	if got := strings.Join(files, " "); got != "a/rows-a+b+c.key a/rows-a+b.key a/rows-a+c.key b/rows-a+b+c.key b/rows-a+b.key c/rows-a+b+c.key c/rows-a+c.key" {
		t.Errorf("keys are %s", got)
	}
	s, err := readSeals(placedConfig("b", filepath.Join(dir, "b"), rows...), origin.Origin{Node: "b", Epoch: 1})
	if err != nil {
		t.Fatal(err)
	}
	by := s.byRow()
	if by([]string{"a", "b"}) == nil || by([]string{"c", "a"}) == nil || by([]string{"a", "b"}) == by([]string{"a", "c"}) {
		t.Errorf("node b has %+v", s)
	}
	if s, err := readSeals(placedConfig("b", "", rows...), origin.Origin{Node: "b", Epoch: 1}); err != nil || s.byRow() != nil {
		t.Errorf("without keys node b has %+v, %v", s, err)
	}
	if _, err := readSeals(placedConfig("c", filepath.Join(dir, "b"), rows...), origin.Origin{Node: "c", Epoch: 1}); err == nil || !strings.Contains(err.Error(), "run pgbridge keys") {
		t.Errorf("without its key node c says %v", err)
	}
}

// TestRowsAreComparedWhereTheyAre: those of values that the same nodes have together, as far as the lead has them.
func TestRowsAreComparedWhereTheyAre(t *testing.T) {
	p := &wire.Places{Column: "r", Nodes: map[string][]string{"eu": {"a", "b"}, "it": {"b", "a"}, "us": {"a", "c"}, "fr": {"a", "b", "c", "d"}}}
	for _, x := range []struct {
		nodes, others []string
		want          string
	}{
		{[]string{"a", "b", "c"}, nil, "[a b c]: fr and others, [a b]: eu it, [a c]: us"},
		{[]string{"b", "a", "c"}, nil, "[b a c]: fr and others, [b a]: eu it"},
		{[]string{"c", "b"}, []string{"a", "b"}, "[c b]: fr, [c]: us"},
	} {
		if delete(p.Nodes, wire.OtherValues); x.others != nil {
			p.Nodes[wire.OtherValues] = x.others
		}
		var got []string
		for _, c := range comparedRows(p, x.nodes) {
			text := fmt.Sprintf("%s: %s", c.at, strings.Join(c.rows.Values, " "))
			if c.rows.Others {
				text += " and others"
			}
			got = append(got, text)
			if !strings.HasPrefix(c.why, "topology.rows has its rows with ") {
				t.Errorf("%s are left out since %q", text, c.why)
			}
		}
		slices.Sort(got)
		if got := strings.Join(got, ", "); got != x.want {
			t.Errorf("%s compare %s, want %s", x.nodes, got, x.want)
		}
	}
	r := &VerifyReport{Tables: []VerifiedTable{{Table: "s.t", Rows: 1, Segments: 1}}}
	r.add(&VerifyReport{Tables: []VerifiedTable{{Table: "s.t", Rows: 2, Segments: 1, Differences: 1}, {Table: "s.u"}}}, 1)
	if got := fmt.Sprint(r.Tables); got != fmt.Sprint([]VerifiedTable{{Table: "s.t", Rows: 3, Segments: 2, Differences: 1}, {Table: "s.u"}}) {
		t.Errorf("other rows of a table are reported as %s", got)
	}
}
