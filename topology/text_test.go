package topology

import "testing"

func TestDifference(t *testing.T) {
	ring, star := New(names(4), Links(KindRing, names(4), "", nil)), New(names(4), Links(KindStar, names(4), "a", nil))
	if got := ring.String(); got != "a b c d a-b a-d b-c c-d" {
		t.Errorf("ring: %s", got)
	}
	for _, x := range []struct {
		here, there *Graph
		want        string
	}{
		{ring, ring, ""},
		{New(names(3), []Link{{"b", "a"}, {"c", "b"}}), New(names(3), []Link{{"a", "b"}, {"b", "c"}}), ""},
		{ring, star, "only here: b-c, c-d; only there: a-c"},
		{New(names(2), nil), New(names(3), nil), "only there: c"},
	} {
		if got := Difference(x.here.String(), x.there.String()); got != x.want {
			t.Errorf("%s and %s differ in %q, want %q", x.here, x.there, got, x.want)
		}
	}
}
