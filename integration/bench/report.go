package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"time"
)

// report is build/bench.json.
type report struct {
	At             time.Time         `json:"at"`
	Scale          float64           `json:"scale"`
	Repeat         int               `json:"repeat"`
	NativeBothWays bool              `json:"native_both_ways"`
	Machine        machine           `json:"machine"`
	Versions       map[string]string `json:"versions"`
	Settings       map[string]string `json:"settings"`
	Lines          []*result         `json:"lines"`
}

// result is one line. Times are medians of the runs; they are missing where a run failed.
type result struct {
	Name   string `json:"name"`
	Title  string `json:"title"`
	Amount int    `json:"amount"`
	Unit   string `json:"unit"`
	// NativeSeconds and PgbridgeSeconds are the catch-up; for latency the median latency.
	NativeSeconds   *float64 `json:"native_seconds"`
	PgbridgeSeconds *float64 `json:"pgbridge_seconds"`
	// Ratio is native's time divided by ours: above 1 is faster than native.
	Ratio *float64 `json:"ratio"`
	// PgbridgeStartSeconds is what the bridge's start took, which is not in PgbridgeSeconds.
	PgbridgeStartSeconds *float64     `json:"pgbridge_start_seconds,omitempty"`
	NativeLatency        *percentiles `json:"native_latency_ms,omitempty"`
	PgbridgeLatency      *percentiles `json:"pgbridge_latency_ms,omitempty"`
	NativeRuns           []sample     `json:"native_runs"`
	PgbridgeRuns         []sample     `json:"pgbridge_runs"`
	// OtherRuns are those of the rivals beside native, by name.
	OtherRuns map[string][]sample `json:"other_runs,omitempty"`
}

func newResult(l line, scale float64) *result {
	return &result{Name: l.name, Title: l.title, Unit: l.unit, Amount: l.at(scale)}
}

// add takes a run in.
func (r *result) add(rival string, s sample) {
	switch rival {
	case nativeName:
		r.NativeRuns = append(r.NativeRuns, s)
	case pgbridgeName:
		r.PgbridgeRuns = append(r.PgbridgeRuns, s)
	default:
		if r.OtherRuns == nil {
			r.OtherRuns = map[string][]sample{}
		}
		r.OtherRuns[rival] = append(r.OtherRuns[rival], s)
	}
	r.NativeSeconds, r.NativeLatency = medianRun(r.NativeRuns)
	r.PgbridgeSeconds, r.PgbridgeLatency = medianRun(r.PgbridgeRuns)
	r.Ratio, r.PgbridgeStartSeconds = nil, nil
	if r.PgbridgeSeconds == nil {
		return
	}
	if r.NativeSeconds != nil && *r.PgbridgeSeconds > 0 {
		ratio := math.Round(*r.NativeSeconds / *r.PgbridgeSeconds * 1000) / 1000
		r.Ratio = &ratio
	}
	var starts []float64
	for _, s := range r.PgbridgeRuns {
		starts = append(starts, s.StartSeconds)
	}
	if m := median(starts); m > 0 {
		r.PgbridgeStartSeconds = &m
	}
}

// medianRun returns the median time, and the percentiles of the run that is nearest to it; nil when
// there is no run or one of them failed.
func medianRun(runs []sample) (*float64, *percentiles) {
	var seconds []float64
	for _, s := range runs {
		if s.Error != "" {
			return nil, nil
		}
		seconds = append(seconds, s.Seconds)
	}
	if len(runs) == 0 {
		return nil, nil
	}
	m := median(seconds)
	nearest := slices.MinFunc(runs, func(a, b sample) int {
		return compareFloat(math.Abs(a.Seconds-m), math.Abs(b.Seconds-m))
	})
	return &m, nearest.Latency
}

func compareFloat(a, b float64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// median of at least one number, rounded to a hundredth of a millisecond.
func median(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	m := (all[(len(all)-1)/2] + all[len(all)/2]) / 2
	return math.Round(m*1e5) / 1e5
}

func (r *report) write(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// failure names the lines that have no time.
func (r *report) failure() error {
	var failed []string
	for _, l := range r.Lines {
		for _, s := range l.allRuns() {
			if s.Error != "" {
				failed = append(failed, l.Name)
				break
			}
		}
	}
	if failed != nil {
		return errors.New("no time for " + strings.Join(failed, ", "))
	}
	return nil
}

// print writes the tables, in Markdown.
func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "%s; scale %g, median of %d\n", r.Machine, r.Scale, r.Repeat)
	for _, name := range slices.Sorted(maps.Keys(r.Versions)) {
		fmt.Fprintf(w, "%s: %s\n", name, r.Versions[name])
	}
	r.printTimes(w)
	r.printOthers(w)
	r.printUsage(w)
}

func (r *report) printTimes(w io.Writer) {
	t := [][]string{{"line", "work", "native", "pgbridge", "ratio", "native/s", "pgbridge/s", "bridge start"}}
	var latency *result
	for _, l := range r.Lines {
		if l.Name == "latency" {
			latency = l
			continue
		}
		t = append(t, []string{l.Title, fmt.Sprintf("%d %s", l.Amount, l.Unit), seconds(l.NativeSeconds), seconds(l.PgbridgeSeconds),
			number(l.Ratio), l.rate(l.NativeSeconds), l.rate(l.PgbridgeSeconds), seconds(l.PgbridgeStartSeconds)})
	}
	if len(t) > 1 {
		printTable(w, t)
	}
	if latency == nil {
		return
	}
	t = [][]string{{latency.Title, "p50 ms", "p90 ms", "p99 ms", "max ms", "rows"}}
	for _, rival := range []struct {
		name string
		p    *percentiles
	}{{nativeName, latency.NativeLatency}, {pgbridgeName, latency.PgbridgeLatency}} {
		row := []string{rival.name, "-", "-", "-", "-", "-"}
		if p := rival.p; p != nil {
			row = []string{rival.name, number(&p.P50), number(&p.P90), number(&p.P99), number(&p.Max), fmt.Sprint(p.Count)}
		}
		t = append(t, row)
	}
	printTable(w, t)
}

// printUsage tells of each line's last runs.
func (r *report) printUsage(w io.Writer) {
	t := [][]string{{"line", "rival", "CPU s", "of which", "peak memory of the bridges", "counted"}}
	for _, l := range r.Lines {
		for _, name := range l.rivals() {
			runs := l.runs(name)
			s := runs[len(runs)-1]
			var parts, peaks, counts []string
			for _, kind := range slices.Sorted(maps.Keys(s.CPU)) {
				parts = append(parts, fmt.Sprintf("%s %.2f", kind, s.CPU[kind]))
			}
			for _, process := range slices.Sorted(maps.Keys(s.PeakRSS)) {
				peaks = append(peaks, fmt.Sprintf("%s %d MiB", process, s.PeakRSS[process]>>20))
			}
			for _, counter := range slices.Sorted(maps.Keys(s.Counters)) {
				counts = append(counts, fmt.Sprintf("%d %s", s.Counters[counter], counter))
			}
			t = append(t, []string{l.Title, name, fmt.Sprintf("%.2f", total(s.CPU)), strings.Join(parts, ", "),
				strings.Join(peaks, ", "), strings.Join(counts, ", ")})
		}
	}
	printTable(w, t)
}

func (r *result) rate(s *float64) string {
	if s == nil || *s == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f", float64(r.Amount) / *s)
}

func seconds(s *float64) string {
	if s == nil {
		return "-"
	}
	return fmt.Sprintf("%.2f s", *s)
}

func number(f *float64) string {
	if f == nil {
		return "-"
	}
	return fmt.Sprintf("%.2f", *f)
}

// printTable writes rows with their columns aligned; the first is the heading.
func printTable(w io.Writer, rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], len(cell))
		}
	}
	fmt.Fprintln(w)
	for n, row := range rows {
		for i, cell := range row {
			fmt.Fprintf(w, "| %-*s ", width[i], cell)
		}
		fmt.Fprintln(w, "|")
		for i := range width {
			if n == 0 {
				fmt.Fprintf(w, "|%s", strings.Repeat("-", width[i]+2))
			}
		}
		if n == 0 {
			fmt.Fprintln(w, "|")
		}
	}
}
