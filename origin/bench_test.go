package origin

import (
	"fmt"
	"testing"
)

// cluster is a vector of so many nodes, each at that seq.
func cluster(nodes int, seq uint64) Vector {
	var v Vector
	for i := range nodes {
		v.Advance(Entry{Origin{fmt.Sprintf("node-%02d", i), 1}, seq, Stamp(seq)})
	}
	return v
}

// TestVectorsOfOneClusterDoNotAllocate: each row's fate is decided by these; only a new origin makes room.
func TestVectorsOfOneClusterDoNotAllocate(t *testing.T) {
	v, later := cluster(5, 1), cluster(5, 2)
	last := v[len(v)-1].Origin
	for name, step := range map[string]func(){
		"Advance":  func() { later[0].Seq++; v.Advance(later[0]) },
		"Merge":    func() { later[0].Seq++; v.Merge(later) },
		"Includes": func() { v.Includes(later) },
		"Covers":   func() { v.Covers(last, 2) },
		"Equal":    func() { v.Equal(later) },
		"MaxStamp": func() { v.MaxStamp() },
	} {
		if n := testing.AllocsPerRun(100, step); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// BenchmarkVector/operation/nodes=n: what is asked of vectors for each transaction or row.
func BenchmarkVector(b *testing.B) {
	for _, nodes := range []int{3, 8} {
		v, later := cluster(nodes, 1), cluster(nodes, 2)
		last := v[nodes-1].Origin
		for _, op := range []struct {
			name string
			step func()
		}{
			{"merge", func() { later[0].Seq++; v.Merge(later) }},
			{"includes", func() { v.Includes(later) }},
			{"covers", func() { v.Covers(last, 1<<40) }},
			{"equal", func() { v.Equal(later) }},
			{"clone", func() { v.Clone() }},
		} {
			b.Run(fmt.Sprintf("%s/nodes=%d", op.name, nodes), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					op.step()
				}
			})
		}
	}
}
