package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/integration/pgcluster"
)

// wrong is native replication on whose receiver a row is written by hand.
type wrong struct{ *native }

func (r wrong) resume(ctx context.Context) (time.Time, time.Duration, error) {
	if err := r.receiver.exec(ctx, "INSERT INTO bench_rows VALUES (0, 0, 'nowhere else')"); err != nil {
		return time.Time{}, 0, err
	}
	return r.native.resume(ctx)
}

func testBench(t *testing.T) *bench {
	t.Helper()
	in, err := pgcluster.Find(defaultMajor)
	if err != nil {
		t.Fatal(err)
	}
	return &bench{install: in, settings: smallServer(), opts: options{scale: 0.001, repeat: 1, timeout: time.Minute, major: defaultMajor}}
}

// smallServer are settings for a server that comes and goes sooner.
func smallServer() map[string]string {
	return map[string]string{"shared_buffers": "64MB", "wal_buffers": "4MB"}
}

func runOnce(t *testing.T, name string, make func(*pair) rival) (sample, error) {
	t.Helper()
	return runLine(t, lineNamed(t, name), make)
}

func runLine(t *testing.T, l line, make func(*pair) rival, more ...*server) (sample, error) {
	t.Helper()
	b := testBench(t)
	pgbench, err := findPgbench(b.install)
	if err != nil {
		pgbench = "" // few lines need it
	}
	p, err := newPair(t.Context(), b.install, pgbench, b.settings, more...)
	if err != nil {
		t.Fatal(err)
	}
	r := make(p)
	t.Cleanup(func() {
		if err := errors.Join(r.close(), p.close()); err != nil {
			t.Error(err)
		}
	})
	if err := p.prepare(t.Context(), l, l.at(b.opts.scale)); err != nil {
		t.Fatal(err)
	}
	return b.run(t.Context(), l, p, r)
}

func lineNamed(t *testing.T, name string) line {
	t.Helper()
	for _, l := range lines() {
		if l.name == name {
			return l
		}
	}
	t.Fatalf("no line %s", name)
	return line{}
}

func TestEqualRowsHaveATime(t *testing.T) {
	s, err := runOnce(t, "one-update", func(p *pair) rival { return &native{pair: p, both: true} })
	if err != nil {
		t.Fatal(err)
	}
	if s.Seconds <= 0 {
		t.Errorf("catching up took %v s", s.Seconds)
	}
}

func TestFloorReadsAllWork(t *testing.T) {
	for _, name := range []string{"one-insert", "apart"} {
		l := lineNamed(t, name)
		s := testBench(t).measure(t.Context(), l, floorName)
		if s.Error != "" || s.Seconds <= 0 || s.Counters["bytes"] < 50*uint64(l.least) {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

func TestDifferentRowsHaveNoTime(t *testing.T) {
	s, err := runOnce(t, "many-inserts", func(p *pair) rival { return wrong{&native{pair: p}} })
	if !errors.Is(err, errDifferent) || s.Seconds != 0 {
		t.Fatalf("a row too many at the receiver: %+v, %v", s, err)
	}
}

func TestFailureOfARivalEndsTheWait(t *testing.T) {
	s, err := runOnce(t, "one-insert", func(p *pair) rival { return &failing{native: &native{pair: p}} })
	if !errors.Is(err, errAway) {
		t.Errorf("a rival that has ended: %+v, %v", s, err)
	}
}

func TestFailedRunsHaveNoTime(t *testing.T) {
	r := newResult(lines()[0], 1)
	r.add(nativeName, sample{Seconds: 2})
	r.add(pgbridgeName, sample{Seconds: 1})
	if r.Ratio == nil {
		t.Error("two good runs have no ratio")
	}
	r.add(pgbridgeName, sample{Error: "not converged", PeakRSS: map[string]int64{"source bridge": 1}})
	if o := r.of(pgbridgeName); o.Seconds != nil || o.PeakRSS != nil || r.Ratio != nil {
		t.Errorf("a run that did not converge has %+v and ratio %v", o, r.Ratio)
	}
	if (&report{Lines: []*result{r}}).failure() == nil {
		t.Error("a run that did not converge is no failure")
	}
}

// failing ends when it should catch up.
type failing struct {
	*native
	gone bool
}

var errAway = errors.New("gone")

func (r *failing) resume(context.Context) (time.Time, time.Duration, error) {
	r.gone = true
	return time.Now(), 0, nil
}

func (r *failing) failed() error {
	if r.gone {
		return errAway
	}
	return nil
}

func TestResultTakesMedians(t *testing.T) {
	r := newResult(lines()[0], 1)
	for _, s := range []float64{2, 9, 4} {
		r.add(nativeName, sample{Seconds: s, PeakRSS: map[string]int64{"x": int64(s)},
			CPU: map[string]float64{"source walsender": s, "source background": 1}})
		r.add(pgbridgeName, sample{Seconds: s / 2, StartSeconds: s / 10})
	}
	n, p := r.of(nativeName), r.of(pgbridgeName)
	if *n.Seconds != 4 || *n.Fastest != 2 || *n.Slowest != 9 || *p.Seconds != 2 || *r.Ratio != 2 || *p.StartSeconds != 0.4 {
		t.Errorf("native %+v, pgbridge %+v, ratio %v", n, p, *r.Ratio)
	}
	if n.CPU[partWalsender] != 4 || n.CPU[partAll] != 5 || n.CPUMicros[partWalsender] != 40 || n.PeakRSS["x"] != 9 {
		t.Errorf("%d transactions: CPU %v, each %v, memory %v", r.Amount, n.CPU, n.CPUMicros, n.PeakRSS)
	}
	r.add(nativeName, sample{Seconds: 5})
	if *r.of(nativeName).Seconds != 4.5 {
		t.Errorf("median of four: %v", *r.of(nativeName).Seconds)
	}
}

func TestPercentilesAreNearestRank(t *testing.T) {
	var took []time.Duration
	for i := 100; i > 0; i-- {
		took = append(took, time.Duration(i)*time.Millisecond)
	}
	want := percentiles{P50: 50, P90: 90, P99: 99, Max: 100, Count: 100}
	if got := percentilesOf(took); got != want {
		t.Errorf("got %+v", got)
	}
	if got := percentilesOf(took[:1]); got != (percentiles{1, 1, 1, 1, 1}) {
		t.Errorf("of one: %+v", got)
	}
}

func TestAmountsScale(t *testing.T) {
	for _, l := range lines() {
		if got := l.at(1); got != l.amount {
			t.Errorf("%s at full scale: %d", l.name, got)
		}
		if got := l.at(0.000001); got != l.least {
			t.Errorf("%s at the smallest scale: %d", l.name, got)
		}
		if got := l.at(0.1); got%l.least != 0 {
			t.Errorf("%s at 0.1: %d is not a multiple of %d", l.name, got, l.least)
		}
	}
	if runPgbenchUnit := pgbenchClients; lines()[0].least%runPgbenchUnit != 0 {
		t.Error("pgbench's transactions cannot be shared out among its clients")
	}
}

func TestBridgeLogTellsWhenABridgeRuns(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	l := &bridgeLog{file: file, running: make(chan time.Time, 1)}
	for _, piece := range []string{
		"time=2030-01-02T03:04:04.000Z level=WARN msg=\"bridge st", "arts anew\" err=x\n",
		"time=2030-01-02T03:04:05.678Z level=INFO msg=\"bridge runs\" node=a\ntime=2030-01-02T03:04:06.000Z",
		" level=INFO msg=\"bridge runs\" node=a\n", // a second life: only the first counts
	} {
		fmt.Fprint(l, piece)
	}
	if got := <-l.running; !got.Equal(time.Date(2030, 1, 2, 3, 4, 5, 678e6, time.UTC)) {
		t.Errorf("runs since %s", got)
	}
	if len(l.running) != 0 {
		t.Error("told twice")
	}
	if bad := l.complaints(); len(bad) != 1 {
		t.Errorf("complaints %q", bad)
	}
}

func TestParseStat(t *testing.T) {
	got, err := parseStat([]byte("17 (a) (b c) S 4 17 17 0 -1 4194560 100 0 0 0 11 22 33 44 20 0 1 0 99"))
	if want := (stat{parent: 4, own: 33, reaped: 77}); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{"", "17 (a) S 4", "17 (a) S x 17 17 0 -1 4194560 100 0 0 0 11 22 33 44"} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q is read without an error", bad)
		}
	}
}

// TestUsageOfEndedProcesses: what a process that has ended had taken before is not counted again when its
// parent reaps it.
func TestUsageOfEndedProcesses(t *testing.T) {
	before := ticks{live: map[int]spent{
		1: {"source walsender", "source", 100}, 2: {"source backends", "source", 1000}, 3: {"source bridge", "", 7}},
		dead: map[string]uint64{"source": 50}}
	after := ticks{live: map[int]spent{
		1: {"source walsender", "source", 150}, 4: {"source backends", "source", 25}, 3: {"source bridge", "", 17}},
		dead: map[string]uint64{"source": 1075}}
	got := after.since(before)
	want := map[string]float64{"source walsender": 0.5, "source backends": 0.25, "source bridge": 0.1, "source ended": 0.25}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
