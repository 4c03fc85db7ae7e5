package origin

import (
	"math/rand"
	"testing"
	"time"
)

func TestStampRoundTrip(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 123456000, time.UTC)
	if got := StampOf(at).Time(); !got.Equal(at) {
		t.Fatalf("got %v, want %v", got, at)
	}
	if s := StampOf(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)); s != 0 {
		t.Fatalf("PostgreSQL's epoch has stamp %d", s)
	}
}

func TestVersionOrderIsTotal(t *testing.T) {
	a, b := Origin{"a", 1}, Origin{"b", 1}
	if !(Version{2, a}).Later(Version{1, b}) || (Version{1, b}).Later(Version{2, a}) {
		t.Error("a higher stamp must win")
	}
	if !(Version{1, b}).Later(Version{1, a}) || (Version{1, a}).Later(Version{1, b}) {
		t.Error("the origin must break a tie")
	}
	if !(Version{1, Origin{"a", 2}}).Later(Version{1, a}) {
		t.Error("the epoch must break a tie within a node")
	}
	if (Version{1, a}).Later(Version{1, a}) {
		t.Error("a version is not later than itself")
	}
}

func TestVectorAgainstMap(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	for range 2000 {
		var v Vector
		m := map[Origin]uint64{}
		for range r.Intn(30) {
			e := Entry{Origin{string(rune('a' + r.Intn(6))), uint32(1 + r.Intn(2))}, uint64(r.Intn(9)), Stamp(r.Intn(9))}
			want := e.Seq > m[e.Origin]
			if v.Advance(e) != want {
				t.Fatalf("Advance(%v) on %v", e, v)
			}
			m[e.Origin] = max(m[e.Origin], e.Seq)
		}
		for i := 1; i < len(v); i++ {
			if v[i-1].Origin.Compare(v[i].Origin) >= 0 {
				t.Fatalf("not sorted: %v", v)
			}
		}
		for o, s := range m {
			if v.Seq(o) != s || !v.Covers(o, s) || v.Covers(o, s+1) {
				t.Fatalf("%v has %d for %v, want %d", v, v.Seq(o), o, s)
			}
		}
		w := v.Clone()
		w.Advance(Entry{Origin{"z", 1}, 1, 1})
		if !w.Includes(v) || v.Includes(w) || v.Equal(w) {
			t.Fatalf("%v and %v", v, w)
		}
		v.Merge(w)
		if !v.Equal(w) {
			t.Fatalf("merge gave %v, want %v", v, w)
		}
	}
}

func TestClockExtendsHadSeen(t *testing.T) {
	var c Clock
	c.Last = minStamp
	a, b := Origin{"a", 1}, Origin{"b", 1}
	if s := c.Next(100, nil); s != 100 {
		t.Errorf("unlifted stamp is %d", s)
	}
	if s := c.Next(90, nil); s != 101 {
		t.Errorf("a commit time behind the last gave %d", s)
	}
	if s := c.Next(150, Vector{{a, 1, 500}, {b, 3, 20}}); s != 501 {
		t.Errorf("a dependency at 500 gave %d", s)
	}
	if s := c.Next(900, Vector{{a, 1, 500}}); s != 900 {
		t.Errorf("a later commit time gave %d", s)
	}
}

// TestPitfall11SkewedClocks: two nodes with clocks twenty minutes apart write one row in turn, each having seen the other's
// write. The later write has the higher stamp, whoever's clock is ahead.
func TestPitfall11SkewedClocks(t *testing.T) {
	const minute = Stamp(60_000_000)
	a, b := Origin{"a", 1}, Origin{"b", 1}
	clocks := map[Origin]*Clock{a: {}, b: {}}
	skew := map[Origin]Stamp{a: 10 * minute, b: -10 * minute}
	last, seen := Stamp(0), Vector(nil)
	for i := range Stamp(100) {
		o := []Origin{a, b}[i%2]
		s := clocks[o].Next(100*minute+i*1000+skew[o], seen)
		if s <= last {
			t.Fatalf("write %d, on node %s, is stamped %d, not above %d, which it had seen", i, o.Node, s, last)
		}
		last, seen = s, Vector{{o, uint64(i/2 + 1), s}}
	}
	if ahead := last - 110*minute; ahead > minute {
		t.Errorf("the stamps run away: %d above the clock that is ahead", ahead)
	}
}

func BenchmarkVectorAdvance(b *testing.B) {
	v := Vector{{Origin{"a", 1}, 1, 1}, {Origin{"b", 1}, 1, 1}, {Origin{"c", 1}, 1, 1}}
	b.ReportAllocs()
	for i := range b.N {
		v.Advance(Entry{Origin{"b", 1}, uint64(i), Stamp(i)})
	}
}
