package origin

import (
	"fmt"
	"slices"
	"strings"
)

// Entry says that everything of one origin up to and including Seq has been seen.
type Entry struct {
	Origin Origin
	Seq    uint64 // dense, from 1; 0 means nothing
	Stamp  Stamp  // the stamp of the transaction with that seq
}

// Vector is a version vector: at most one Entry per origin, sorted by [Origin.Compare]. A missing origin
// means that nothing of it was seen. The nil Vector is empty and ready to use.
//
// A Vector that has crossed a package border is never changed; take a [Vector.Clone] first. It is safe
// for concurrent reading.
type Vector []Entry

// find gives the index at which o stands or would stand.
func (v Vector) find(o Origin) (int, bool) {
	// Vectors have as many entries as the cluster has nodes; a scan beats a binary search up to a dozen.
	for i := range v {
		if c := v[i].Origin.Compare(o); c >= 0 {
			return i, c == 0
		}
	}
	return len(v), false
}

// Get returns what v has seen of o; the zero seq and stamp if nothing.
func (v Vector) Get(o Origin) Entry {
	if i, ok := v.find(o); ok {
		return v[i]
	}
	return Entry{Origin: o}
}

// Seq returns the last seq of o that v has seen.
func (v Vector) Seq(o Origin) uint64 { return v.Get(o).Seq }

// Covers reports whether v has seen the transaction seq of o.
func (v Vector) Covers(o Origin, seq uint64) bool { return v.Seq(o) >= seq }

// Includes reports whether v has seen everything that w has seen.
func (v Vector) Includes(w Vector) bool {
	_, ok := v.Lacks(w)
	return !ok
}

// Lacks returns the first entry of w that v has not seen, if there is one.
func (v Vector) Lacks(w Vector) (Entry, bool) {
	for _, e := range w {
		if !v.Covers(e.Origin, e.Seq) {
			return e, true
		}
	}
	return Entry{}, false
}

// Advance raises v to include e and reports whether that changed anything. It never lowers an entry.
func (v *Vector) Advance(e Entry) bool {
	i, ok := v.find(e.Origin)
	if !ok {
		if e.Seq == 0 {
			return false
		}
		*v = slices.Insert(*v, i, e)
		return true
	}
	if e.Seq <= (*v)[i].Seq {
		return false
	}
	(*v)[i] = e
	return true
}

// Merge raises v to include all of w and reports whether that changed anything.
func (v *Vector) Merge(w Vector) bool {
	changed := false
	for _, e := range w {
		changed = v.Advance(e) || changed
	}
	return changed
}

// Clone returns a copy that shares nothing with v.
func (v Vector) Clone() Vector { return slices.Clone(v) }

// Equal reports whether v and w have seen the same.
func (v Vector) Equal(w Vector) bool { return slices.Equal(v, w) }

// MaxStamp returns the highest stamp in v, or the lowest possible stamp for an empty one.
func (v Vector) MaxStamp() Stamp {
	m := minStamp
	for _, e := range v {
		m = max(m, e.Stamp)
	}
	return m
}

// String gives "a:7 b/2:12", sorted by origin.
func (v Vector) String() string {
	var b strings.Builder
	for i, e := range v {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%s:%d", e.Origin, e.Seq)
	}
	return b.String()
}
