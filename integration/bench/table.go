package main

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"unicode/utf8"
)

// printTo writes the tables to a file.
func (r *report) printTo(path string) error {
	var text bytes.Buffer
	r.print(&text)
	return os.WriteFile(path, text.Bytes(), 0o644)
}

// print writes the tables, in Markdown.
func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "%s; scale %g, median of %d\n", r.Machine, r.Scale, r.Repeat)
	for _, name := range slices.Sorted(maps.Keys(r.Versions)) {
		fmt.Fprintf(w, "%s: %s\n", name, r.Versions[name])
	}
	printTable(w, "Catch-up: median, and the fastest and slowest run.", r.times())
	printTable(w, "Written in: seconds that committing the work took, while replication rested. Triggers make Bucardo's share of that.", r.written())
	printTable(w, "Latency: milliseconds, of the run nearest to the median.", r.latencies())
	printTable(w, "CPU: seconds, and microseconds for one unit of the work.", r.cpu())
	printTable(w, "Idle bridges.", r.idle())
	printTable(w, "Memory: the highest peak of bridges and of Bucardo's daemon; and what was counted in the last run.", r.memory())
}

// rivalsOf are those that ran a line of that kind, in the order of the report.
func (r *report) rivalsOf(kind string) []string {
	return slices.DeleteFunc(rivalNames(), func(name string) bool {
		return !slices.ContainsFunc(r.Lines, func(l *result) bool { return l.Kind == kind && l.of(name) != nil })
	})
}

func (r *report) times() [][]string {
	rivals := r.rivalsOf(kindCatchUp)
	head := append([]string{"line", "work"}, rivals...)
	head = append(head, "ratio", "of floor")
	for _, name := range rivals {
		head = append(head, name+"/s")
	}
	t := [][]string{append(head, "bridge start")}
	for _, l := range r.Lines {
		if l.Kind != kindCatchUp {
			continue
		}
		row := []string{l.Title, fmt.Sprintf("%d %s", l.Amount, l.Unit)}
		for _, name := range rivals {
			row = append(row, l.of(name).time())
		}
		row = append(row, number(l.Ratio), number(l.OfFloor))
		for _, name := range rivals {
			row = append(row, l.rate(l.seconds(name)))
		}
		start := "-"
		if o := l.of(pgbridgeName); o != nil && o.StartSeconds != nil {
			start = fmt.Sprintf("%.2f s", *o.StartSeconds)
		}
		t = append(t, append(row, start))
	}
	return t
}

// time gives "3.12 s (3.05 to 3.30)".
func (o *outcome) time() string {
	switch {
	case o == nil || o.Seconds == nil:
		return "-"
	case len(o.Runs) == 1:
		return fmt.Sprintf("%.2f s", *o.Seconds)
	}
	return fmt.Sprintf("%.2f s (%.2f to %.2f)", *o.Seconds, *o.Fastest, *o.Slowest)
}

// written is empty where all that ran is standard: none of these has a share in it.
func (r *report) written() [][]string {
	rivals := slices.DeleteFunc(r.rivalsOf(kindCatchUp), func(name string) bool { return name == floorName })
	if !slices.ContainsFunc(rivals, func(name string) bool { return !slices.Contains(standard(), name) }) {
		return nil
	}
	t := [][]string{append([]string{"line"}, rivals...)}
	for _, l := range r.Lines {
		if l.Kind != kindCatchUp {
			continue
		}
		row := []string{l.Title}
		for _, name := range rivals {
			cell := "-"
			if o := l.of(name); o != nil && o.WriteSeconds != nil {
				cell = fmt.Sprintf("%.2f s", *o.WriteSeconds)
			}
			row = append(row, cell)
		}
		t = append(t, row)
	}
	return t
}

func (r *report) latencies() [][]string {
	t := [][]string{{"line", "rival", "load/s", "p50", "spread of p50", "p90", "p99", "max", "rows"}}
	r.each(func(l *result, o *outcome) {
		p := o.Latency
		if p == nil {
			return
		}
		t = append(t, []string{l.Title, o.Rival, fmt.Sprintf("%.0f", o.Rate), number(&p.P50), fmt.Sprintf("%.2f to %.2f", *o.Fastest*1000, *o.Slowest*1000),
			number(&p.P90), number(&p.P99), number(&p.Max), fmt.Sprint(p.Count)})
	})
	return t
}

// each calls do for all rivals of all lines.
func (r *report) each(do func(l *result, o *outcome)) {
	for _, l := range r.Lines {
		for _, o := range l.Rivals {
			do(l, o)
		}
	}
}

func (r *report) cpu() [][]string {
	t := [][]string{append([]string{"line", "rival"}, cpuParts()...)}
	r.each(func(l *result, o *outcome) {
		if len(o.CPU) == 0 {
			return
		}
		row := []string{l.Title, o.Rival}
		for _, part := range cpuParts() {
			cell := ""
			if s, ok := o.CPU[part]; ok {
				cell = fmt.Sprintf("%.2f s", s)
			}
			if us, ok := o.CPUMicros[part]; ok {
				cell += fmt.Sprintf(", %.1f µs", us)
			}
			row = append(row, cell)
		}
		t = append(t, row)
	})
	return t
}

func (r *report) idle() [][]string {
	t := [][]string{{"process", "resident", "share of a core"}}
	r.each(func(l *result, o *outcome) {
		for _, name := range slices.Sorted(maps.Keys(o.RSS)) {
			t = append(t, []string{name, fmt.Sprintf("%d MiB", o.RSS[name]>>20), fmt.Sprintf("%.2f %%", o.CPU[name]*100 / *o.Seconds)})
		}
	})
	return t
}

func (r *report) memory() [][]string {
	t := [][]string{{"line", "processes", "counted"}}
	r.each(func(l *result, o *outcome) {
		if len(o.PeakRSS) == 0 {
			return
		}
		var peaks, counts []string
		for _, name := range slices.Sorted(maps.Keys(o.PeakRSS)) {
			peaks = append(peaks, fmt.Sprintf("%s %d MiB", name, o.PeakRSS[name]>>20))
		}
		counters := o.Runs[len(o.Runs)-1].Counters
		for _, name := range slices.Sorted(maps.Keys(counters)) {
			counts = append(counts, fmt.Sprintf("%d %s", counters[name], name))
		}
		t = append(t, []string{l.Title, strings.Join(peaks, ", "), strings.Join(counts, ", ")})
	})
	return t
}

func (r *result) rate(s *float64) string {
	if s == nil || *s == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f", float64(r.Amount) / *s)
}

func number(f *float64) string {
	if f == nil {
		return "-"
	}
	return fmt.Sprintf("%.2f", *f)
}

// printTable writes a title and rows with their columns aligned; the first row is the heading. A table of nothing but
// a heading is left out.
func printTable(w io.Writer, title string, rows [][]string) {
	if len(rows) < 2 {
		return
	}
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	fmt.Fprintf(w, "\n%s\n\n", title)
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
