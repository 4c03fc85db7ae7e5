package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// testReport has a run of every line by each rival that runs it.
func testReport() *report {
	r := &report{Repeat: 2}
	for _, l := range lines() {
		res := newResult(l, 1)
		for i, name := range rivalNames() {
			if !l.runBy(name) {
				continue
			}
			for run := range 2 {
				s := sample{Seconds: 3 + float64(i) + float64(run)/4, PeakRSS: map[string]int64{"source bridge": 50 << 20},
					CPU: map[string]float64{"source walsender": 1.25, "receiver apply workers": 2.5}}
				if l.kind == kindIdle {
					s.RSS = s.PeakRSS
				}
				if l.kind == kindLatency || l.kind == kindSteady {
					s.Latency = &percentiles{P50: 1.5, P90: 2, P99: 3, Max: 4, Count: 500}
				}
				res.add(name, s)
			}
		}
		r.Lines = append(r.Lines, res)
	}
	return r
}

func TestTablesShowTimesSpreadAndUsage(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tables.md")
	if err := testReport().printTo(file); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"3.12 s (3.00 to 3.25)", "1.25 s, 12.5 µs", "2.50 s, 25.0 µs", "source bridge 50 MiB", "| 1.50 | "} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for _, l := range lines() {
		if l.kind != kindIdle && !bytes.Contains(text, []byte(l.title)) {
			t.Errorf("no line %q", l.title)
		}
	}
	for _, row := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(row, "|") && !strings.HasSuffix(row, "|") {
			t.Errorf("no row of a table: %q", row)
		}
	}
}
