package main

import (
	"path/filepath"
	"testing"
)

// TestBridgesRunEachShape: the catch-up lines about the shape of rows and transactions, and the mesh, at their smallest;
// each ends with the comparison of all ends.
func TestBridgesRunEachShape(t *testing.T) {
	longTest(t)
	b := testBench(t)
	b.opts.out = filepath.Join(t.TempDir(), "bench.json")
	b.opts.binary = buildBridge(t, false)
	for _, name := range []string{"wide", "toast", "jsonb", "ten-tables", "mesh"} {
		t.Run(name, func(t *testing.T) {
			s := b.measure(t.Context(), lineNamed(t, name), pgbridgeName)
			if s.Error != "" || s.Seconds <= 0 || s.WriteSeconds <= 0 {
				t.Fatalf("%+v", s)
			}
			if s.Counters["frames"] == 0 || s.Counters["conflicts"] != 0 {
				t.Errorf("counted %v", s.Counters)
			}
		})
	}
}
