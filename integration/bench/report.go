package main

import (
	"cmp"
	"encoding/json"
	"errors"
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

// result is one line.
type result struct {
	Name   string `json:"name"`
	Title  string `json:"title"`
	Kind   string `json:"kind"`
	Amount int    `json:"amount"`
	Unit   string `json:"unit"`
	// Ratio is native's time divided by ours: above 1 is faster than native. For latency it is that of the medians.
	Ratio *float64 `json:"ratio"`
	// OfFloor is the decode floor's time divided by ours: 1 is as fast as the server hands the work out.
	OfFloor *float64   `json:"of_floor,omitempty"`
	Rivals  []*outcome `json:"rivals"` // those that ran, in the order of rivalNames
}

// outcome is what one rival did on a line. What a failed run would make wrong is missing.
type outcome struct {
	Rival string `json:"rival"`
	// Seconds is the median catch-up, for latency the median of the runs' medians; Fastest and Slowest are the
	// spread of the runs.
	Seconds *float64 `json:"seconds"`
	Fastest *float64 `json:"fastest_seconds"`
	Slowest *float64 `json:"slowest_seconds"`
	// StartSeconds is what the start of the bridge, or of Bucardo's sync, took, which is not in Seconds.
	StartSeconds *float64 `json:"start_seconds,omitempty"`
	// WriteSeconds is what committing the work took before.
	WriteSeconds *float64     `json:"write_seconds,omitempty"`
	Latency      *percentiles `json:"latency_ms,omitempty"`      // of the run nearest to the median
	Rate         float64      `json:"rate_per_second,omitempty"` // of the same run
	// CPU are medians, by the parts of cpuParts.
	CPU map[string]float64 `json:"cpu_seconds,omitempty"`
	// CPUMicros is CPU for one unit of a catch-up's work, in microseconds.
	CPUMicros map[string]float64 `json:"cpu_us_per_unit,omitempty"`
	PeakRSS   map[string]int64   `json:"peak_rss_bytes,omitempty"` // the highest of all runs
	RSS       map[string]int64   `json:"rss_bytes,omitempty"`      // of idle bridges, the highest of all runs
	Runs      []sample           `json:"runs"`
}

func newResult(l line, scale float64) *result {
	return &result{Name: l.name, Title: l.title, Kind: l.kind, Unit: l.unit, Amount: l.at(scale)}
}

// of returns the rival's outcome, nil if it did not run.
func (r *result) of(rival string) *outcome {
	for _, o := range r.Rivals {
		if o.Rival == rival {
			return o
		}
	}
	return nil
}

// add takes a run in.
func (r *result) add(rival string, s sample) {
	o := r.of(rival)
	if o == nil {
		o = &outcome{Rival: rival}
		r.Rivals = append(r.Rivals, o)
		slices.SortFunc(r.Rivals, func(a, b *outcome) int {
			return cmp.Compare(slices.Index(rivalNames(), a.Rival), slices.Index(rivalNames(), b.Rival))
		})
	}
	o.Runs = append(o.Runs, s)
	o.summarize()
	if r.Kind == kindCatchUp && o.CPU != nil {
		o.CPUMicros = map[string]float64{}
		for part, s := range o.CPU {
			o.CPUMicros[part] = math.Round(s*1e7/float64(r.Amount)) / 10
		}
	}
	r.Ratio = quotient(r.seconds(nativeName), r.seconds(pgbridgeName))
	r.OfFloor = quotient(r.seconds(floorName), r.seconds(pgbridgeName))
}

// seconds returns the rival's median, nil if there is none.
func (r *result) seconds(rival string) *float64 {
	if o := r.of(rival); o != nil {
		return o.Seconds
	}
	return nil
}

// quotient rounds to a thousandth; it is nil if a number is missing.
func quotient(a, b *float64) *float64 {
	if a == nil || b == nil || *b <= 0 {
		return nil
	}
	q := math.Round(*a / *b * 1000) / 1000
	return &q
}

// summarize makes the figures of the runs, none if one of them failed.
func (o *outcome) summarize() {
	*o = outcome{Rival: o.Rival, Runs: o.Runs}
	var times, starts, writes []float64
	cpu := map[string][]float64{}
	for _, s := range o.Runs {
		if s.Error != "" {
			o.PeakRSS, o.RSS = nil, nil
			return
		}
		times, starts, writes = append(times, s.Seconds), append(starts, s.StartSeconds), append(writes, s.WriteSeconds)
		parts := byPart(s.CPU)
		for _, part := range cpuParts() {
			cpu[part] = append(cpu[part], parts[part])
		}
		o.PeakRSS, o.RSS = highest(o.PeakRSS, s.PeakRSS), highest(o.RSS, s.RSS)
	}
	m, fastest, slowest := median(times), slices.Min(times), slices.Max(times)
	o.Seconds, o.Fastest, o.Slowest = &m, &fastest, &slowest
	if start := median(starts); start > 0 {
		o.StartSeconds = &start
	}
	if written := median(writes); written > 0 {
		o.WriteSeconds = &written
	}
	nearest := slices.MinFunc(o.Runs, func(a, b sample) int {
		return cmp.Compare(math.Abs(a.Seconds-m), math.Abs(b.Seconds-m))
	})
	o.Latency, o.Rate = nearest.Latency, nearest.Rate
	o.CPU = map[string]float64{}
	for part, all := range cpu {
		if s := median(all); s > 0 {
			o.CPU[part] = s
		}
	}
}

// highest returns the higher values of both, which may be nil.
func highest(a, b map[string]int64) map[string]int64 {
	if a == nil {
		return b
	}
	both := maps.Clone(a)
	for name, n := range b {
		both[name] = max(both[name], n)
	}
	return both
}

// median of at least one number, rounded to a hundredth of a millisecond.
func median(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	m := (all[(len(all)-1)/2] + all[len(all)/2]) / 2
	return math.Round(m*1e5) / 1e5
}

// The parts that CPU time is told by. Apply is native's or pglogical's workers, or the sessions of the receiver's bridge
// or of Bucardo's daemon; rest is all else of both servers: the way back, WAL writers, and the load where it runs
// meanwhile; and that daemon, whose sessions at the source are in it too.
const (
	partWalsender = "walsender"
	partApply     = "apply"
	partSource    = "at the source" // walsender and source bridge: the cost of having peers
	partRest      = "rest"
	partAll       = "all"
)

// cpuParts are in the order of the report.
func cpuParts() []string {
	return []string{partWalsender, sourceNode + " bridge", partSource, partApply, receiverNode + " bridge", partRest, partAll}
}

// byPart sums the kinds of processes up.
func byPart(kinds map[string]float64) map[string]float64 {
	sum := map[string]float64{partAll: total(kinds)}
	for kind, seconds := range kinds {
		switch kind {
		case sourceNode + " walsender":
			sum[partWalsender] += seconds
			sum[partSource] += seconds
		case receiverNode + " apply workers", receiverNode + " backends":
			sum[partApply] += seconds
		case sourceNode + " bridge":
			sum[kind] += seconds
			sum[partSource] += seconds
		case receiverNode + " bridge":
			sum[kind] += seconds
		default:
			sum[partRest] += seconds
		}
	}
	return sum
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
	failed := map[string]bool{}
	for _, l := range r.Lines {
		for _, o := range l.Rivals {
			if o.Seconds == nil {
				failed[l.Name] = true
			}
		}
	}
	if len(failed) > 0 {
		return errors.New("no time for " + strings.Join(slices.Sorted(maps.Keys(failed)), ", "))
	}
	return nil
}
