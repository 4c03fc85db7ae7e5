package apply

import "testing"

// TestWriters: the first that is for a table counts, and what none is for all write.
func TestWriters(t *testing.T) {
	is := func(want string) func(schema, table string) bool {
		return func(schema, table string) bool { return want == "*" || want == schema+"."+table }
	}
	for _, x := range []struct {
		writers     Writers
		node, table string
		may, bar    bool
	}{
		{nil, "a", "t", true, false},
		{Writers{{is("s.t"), []string{"a", "b"}}}, "a", "t", true, false},
		{Writers{{is("s.t"), []string{"a", "b"}}}, "c", "t", false, true},
		{Writers{{is("s.t"), []string{"a", "b"}}}, "c", "u", true, true},
		{Writers{{is("s.t"), []string{"c"}}, {is("*"), []string{"a"}}}, "c", "t", true, true},
		{Writers{{is("s.t"), []string{"c"}}, {is("*"), []string{"a"}}}, "c", "u", false, true},
		{Writers{{is("*"), []string{"a"}}, {is("s.t"), []string{"c"}}}, "c", "t", false, true},
	} {
		if may, bar := x.writers.MayWrite(x.node, "s", x.table), x.writers.Bar(x.node); may != x.may || bar != x.bar {
			t.Errorf("%+v: node %s writes %s: %t, want %t; something is kept from it: %t, want %t", x.writers, x.node, x.table, may, x.may, bar, x.bar)
		}
	}
}
