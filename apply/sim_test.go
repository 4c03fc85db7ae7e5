package apply

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/integration/sim"
)

// The simulation: nodes whose absence, progress, hearsay, key locks, inbox, planner, careful path and merges are the real
// code, over a model of PostgreSQL, of capture and of links (integration/sim). make sim runs more of it.
var (
	simSchedules = flag.Int("sim.schedules", 20_000, "number of simulated schedules")
	simSeed      = flag.Uint64("sim.seed", 1, "seed of the first simulated schedule")
)

// simRun simulates schedules on all processors.
type simRun struct {
	first  uint64
	count  int
	broken simBroken
	enough int // faults to find

	mu     sync.Mutex
	faults map[uint64]string
	stats  simStats
	ran    int
}

func (r *simRun) run(ctx context.Context) {
	r.faults = map[uint64]string{}
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // most of what is allocated is gone with its schedule
	var next atomic.Int64
	var all sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			p := newSimPlayer()
			for i := int(next.Add(1)) - 1; i < r.count && !r.done(); i = int(next.Add(1)) - 1 {
				r.add(p.play(ctx, sim.Generate(r.first+uint64(i)), r.broken))
			}
		})
	}
	all.Wait()
}

func (r *simRun) done() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.faults) >= r.enough
}

func (r *simRun) add(w *simWorld) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ran++
	r.stats.add(w.stats)
	if w.fault != "" {
		r.faults[w.s.Seed] = w.fault
	}
}

// simPlayer plays one schedule after the other. Not safe for concurrent use.
type simPlayer struct {
	catalog  *simCatalog
	policies []MergePolicy
}

func newSimPlayer() *simPlayer { return &simPlayer{newSimCatalog(), simPolicies()} }

func (p *simPlayer) play(ctx context.Context, s *sim.Schedule, broken simBroken) *simWorld {
	return simulate(ctx, p, s, broken, false)
}

// explain returns the smallest schedule that still fails, and what happens in it.
func (p *simPlayer) explain(ctx context.Context, s *sim.Schedule, broken simBroken) string {
	small := sim.Shrink(s, func(s *sim.Schedule) bool { return p.play(ctx, s, broken).fault != "" })
	w := simulate(ctx, p, small, broken, true)
	text := fmt.Sprintf("seed %d, shrunk from %d events to %d:\n%s", s.Seed, len(s.Events), len(small.Events), small)
	for _, line := range w.trace {
		text += "  " + line + "\n"
	}
	return text
}

// TestSimulation plays schedules: all nodes end equal, and equal to what was written.
func TestSimulation(t *testing.T) {
	r := &simRun{first: *simSeed, count: *simSchedules, enough: *simSchedules}
	began := time.Now()
	r.run(t.Context())
	took := time.Since(began)
	p := newSimPlayer()
	for i, seed := range slices.Sorted(maps.Keys(r.faults)) {
		t.Errorf("seed %d: %s", seed, r.faults[seed])
		if i == 0 {
			t.Log(p.explain(t.Context(), sim.Generate(seed), simBroken{}))
		}
	}
	t.Logf("%d schedules from seed %d, %d divergences, %.1f s, %.0f a second; %s",
		r.ran, r.first, len(r.faults), took.Seconds(), float64(r.ran)/took.Seconds(), r.stats)
}

// foundSchedules reads schedules in which the simulation once found a fault, by file; each is as small as it could be made.
func foundSchedules(t *testing.T, pattern string) map[string]*sim.Schedule {
	t.Helper()
	files, err := filepath.Glob("testdata/sim/" + pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%d schedules: %v", len(files), err)
	}
	all := map[string]*sim.Schedule{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if all[file], err = sim.Parse(string(text)); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
	}
	return all
}

// TestFoundSchedules plays the schedules that were found.
func TestFoundSchedules(t *testing.T) {
	p := newSimPlayer()
	for file, s := range foundSchedules(t, "*.txt") {
		if fault := p.play(t.Context(), s, simBroken{}).fault; fault != "" {
			t.Errorf("%s: %s\n%s", file, fault, p.explain(t.Context(), s, simBroken{}))
		}
	}
}

// TestFoundRulesAreNeeded: the schedules by which a rule was found fail without it.
func TestFoundRulesAreNeeded(t *testing.T) {
	p := newSimPlayer()
	for pattern, broken := range map[string]simBroken{
		"update-of-an-unsettled-row-*.txt": {tellsUnsettled: true},
		"write-behind-a-truncate-*.txt":    {truncateGoes: true},
		"purge-while-a-write-lands.txt":    {forgetsUnlocked: true},
		"one-of-several-truncates.txt":     {forgetsForAll: true},
		"unsettled-row-is-sent-*.txt":      {sendsUnsettled: true},
		"owed-to-each-other.txt":           {keepsGone: true},
		"delete-behind-a-delete-*.txt":     {keepsNoRow: true},
		"gone-before-a-start-*.txt":        {goneHides: true},
	} {
		for file, s := range foundSchedules(t, pattern) {
			if p.play(t.Context(), s, broken).fault == "" {
				t.Errorf("%s does not fail without the rule", file)
			}
		}
	}
}

// TestSimulationOfPingPong: two nodes whose clocks are ten minutes apart update the same rows in turn, each having seen the other's
// write. That is no conflict, 2 000 times, in its long form 10 000 times, and the last value is right.
func TestSimulationOfPingPong(t *testing.T) {
	const minutes = 60 * 1_000_000
	turns := 2_000
	if pgtest.Soak() {
		turns = 10_000
	}
	s := &sim.Schedule{Nodes: 2, Keys: 2, Grain: 1, Filled: true, InTurn: true, Skew: []int64{0, 10 * minutes}}
	for i := range turns {
		e := sim.Event{Kind: sim.Begin, Node: i % 2}
		for key := 1; key <= s.Keys; key++ {
			e.Ops = append(e.Ops, sim.Op{Kind: sim.Put, Key: key, Arg: uint64(i)}, sim.Op{Kind: sim.Put, Merged: true, Key: key, Arg: uint64(i)})
		}
		s.Events = append(s.Events, e)
	}
	w := newSimPlayer().play(t.Context(), s, simBroken{})
	if w.fault != "" {
		t.Fatal(w.fault)
	}
	if w.stats.conflicts != 0 || w.stats.published != turns || w.stats.applied != turns {
		t.Errorf("%s, want %d transactions and no conflict", w.stats, turns)
	}
	s.Events = s.Events[:100]
	if w := newSimPlayer().play(t.Context(), s, simBroken{unlifted: true}); w.fault == "" && w.stats.conflicts == 0 {
		t.Error("stamps that are not lifted make no difference")
	}
}

// TestSimulationIsDeterministic: a seed has one outcome, and a schedule is what its text says.
func TestSimulationIsDeterministic(t *testing.T) {
	for seed := range uint64(50) {
		s := sim.Generate(seed)
		again, err := sim.Parse(s.String())
		if err != nil {
			t.Fatal(err)
		}
		first, second := simulate(t.Context(), newSimPlayer(), s, simBroken{}, true), simulate(t.Context(), newSimPlayer(), again, simBroken{}, true)
		if !slices.Equal(first.trace, second.trace) {
			t.Fatalf("seed %d is played in two ways:\n%s\n%s", seed, strings.Join(first.trace, "\n"), strings.Join(second.trace, "\n"))
		}
	}
}

// TestSimulationFindsBrokenRules: what the simulation cannot find it does not hold.
func TestSimulationFindsBrokenRules(t *testing.T) {
	const within = 10_000
	for name, broken := range map[string]simBroken{
		"arrival wins": {arrivalWins: true}, "arrival loses": {skips: true}, "unlifted stamps": {unlifted: true}, "raw local stamps": {rawStamps: true},
		"first of a commit time": {firstByTime: true}, "guard by time": {guardByTime: true}, "no tombstones": {noTombstones: true},
		"no take-backs": {noTakeBacks: true}, "no check of deletes after a start": {noRescan: true}, "take-backs not flushed": {unflushedTakes: true},
		"no key locks": {noKeyLocks: true}, "no hold": {noHold: true}, "captured is visible": {noVisible: true}, "marker behind the commit": {markAfter: true},
		"vectors not saved": {noSavedVectors: true}, "announced is seen": {lowIsUp: true}, "purge by a side vector": {purgeBySide: true},
		"owed is seen": {owedIsSeen: true}, "what is owed is written again": {ownsOwed: true}, "what is owed is not known": {ignoresOwed: true},
		"fold by what is declared": {foldByUp: true}, "merge by arrival": {mergeByArrival: true},
		"what is handed on is forgotten": {forgetsHandedOn: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := &simRun{first: 1, count: within, enough: 1, broken: broken}
			r.run(t.Context())
			if len(r.faults) == 0 {
				t.Errorf("not found in %d schedules", r.ran)
			}
			for seed, fault := range r.faults {
				t.Logf("found after %d schedules, seed %d: %.200s", r.ran, seed, fault)
			}
		})
	}
}
