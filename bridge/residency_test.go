package bridge

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/config"
)

func reside(lines ...string) residency {
	cfg := &config.Config{}
	cfg.Topology.Residency = lines
	return residencyOf(cfg)
}

// TestWhoHasWhichTables: all lines that are for a table count, and what none is for all have, also somebody whom nobody knows.
func TestWhoHasWhichTables(t *testing.T) {
	r := reside("crm.*=a b", "crm.eu_*=a c", "log.*=c a")
	for _, x := range []struct{ table, has string }{{"crm.p", "ab"}, {"crm.eu_p", "a"}, {"log.x", "ac"}, {"app.x", "abc?"}} {
		schema, name, _ := strings.Cut(x.table, ".")
		got := ""
		for _, node := range []string{"a", "b", "c", "?"} {
			has := r.at(node, schema, name)
			if without := r.without(node); (without == nil || !without(schema, name)) != has || (r.keeps(node, schema, name) == nil) != has {
				t.Errorf("whether node %s has %s is not told alike", node, x.table)
			}
			if has {
				got += node
			}
		}
		if got != x.has {
			t.Errorf("%s is at %s, want %s", x.table, got, x.has)
		}
	}
	if reside("crm.*=a b").without("a") != nil || r.without("") == nil {
		t.Error("who lacks nothing is asked of each table, or a stranger of none")
	}
	for _, x := range []struct{ node, other, want string }{{"a", "b", ""}, {"b", "a", "crm.eu_*"}, {"c", "b", "crm.*"}, {"c", "", ""}} {
		if got := r.lacking(x.node, x.other); got != x.want {
			t.Errorf("%s lacks of what %s has: %q, want %q", x.node, x.other, got, x.want)
		}
	}
}

// TestTablesAreComparedWhereTheyAre: those of the same nodes together; what no other node has of those asked about is said to be left out,
// as far as it is asked for.
func TestTablesAreComparedWhereTheyAre(t *testing.T) {
	var mu sync.Mutex
	var asked []string // the lead once more than for its comparisons
	ask := func(_ context.Context, node string, _ *apply.VerifyQuestion) (*apply.VerifyAnswer, error) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, node)
		a := &apply.VerifyAnswer{}
		for _, name := range []string{"crm.p", "log.x", "app.y"} {
			schema, table, _ := strings.Cut(name, ".")
			a.Tables = append(a.Tables, &apply.VerifyTable{Schema: schema, Name: table, Problem: "no"})
		}
		return a, nil
	}
	const left = "topology.residency has it on other nodes than those that are asked about"
	for _, x := range []struct{ table, from, asked, skipped string }{
		{"", "", "aaabbc", "log.x: " + left + ", crm.p: at node a: no, app.y: at node a: no"},
		{"crm.*", "", "aab", "crm.p: at node a: no"},
		{"log.*", "", "a", "log.x: " + left},
		{"crm.*", "c", "a", "crm.p: " + left},
		{"app.*", "c", "aabc", "app.y: at node a: no"},
	} {
		asked = nil
		r, err := reside("crm.*=a b", "log.*=a d").compare(t.Context(), nil, nil, ask, []string{"a", "b", "c"}, VerifyOptions{Table: x.table, From: x.from}, func(VerifyProgress) {})
		if err != nil {
			t.Errorf("%s: %v", x.table, err)
			continue
		}
		slices.Sort(asked)
		var skipped []string
		for _, s := range r.Skipped {
			skipped = append(skipped, s.Table+": "+s.Reason)
		}
		if got := strings.Join(asked, ""); got != x.asked || strings.Join(skipped, ", ") != x.skipped {
			t.Errorf("%q from %q: asked are %s, want %s; left out is\n%q, want\n%s", x.table, x.from, got, x.asked, skipped, x.skipped)
		}
	}
	if _, err := reside("crm.*=a b").compare(t.Context(), nil, nil, ask, []string{"a", "b"}, VerifyOptions{Table: "no.such"}, nil); err == nil || !strings.Contains(err.Error(), "no replicated table fits") {
		t.Errorf("a table that is not there: %v", err)
	}
}
