package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/pgbridge/pgbridge/integration/pgcluster"
)

// defaultMajor is the PostgreSQL that all rivals run on where the command line does not say another one.
const defaultMajor = 18

// bench is what all runs share.
type bench struct {
	opts    options
	install pgcluster.Install
	pgbench string // path
	self    string // path of this program, for -profile
	// settings are the servers', on top of serverSettings: none but in tests, whose servers are small.
	settings map[string]string
}

func newBench(ctx context.Context, o options) (*bench, error) {
	in, err := findInstall(o)
	if err != nil {
		return nil, err
	}
	b := &bench{opts: o, install: in}
	if b.pgbench, err = findPgbench(in); err != nil {
		return nil, err
	}
	if b.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if o.runs(pgbridgeName) {
		if err := exec.CommandContext(ctx, o.binary, "version").Run(); err != nil {
			return nil, fmt.Errorf("run %s: %w; run make build", o.binary, err)
		}
	}
	return b, os.MkdirAll(filepath.Dir(o.out), 0o755)
}

// findPgbench looks on PATH, then in the places of the system's packages.
func findPgbench(in pgcluster.Install) (string, error) {
	if path, err := exec.LookPath("pgbench"); err == nil {
		return path, nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/pgbench") // fails for a bad pattern only
	found = append(found, filepath.Join(in.BinDir, "pgbench"))
	for _, path := range found {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", errors.New("pgbench is not on this machine; install PostgreSQL's client package (Debian: postgresql-contrib)")
}

// sample is one run of one line by one rival.
type sample struct {
	// Seconds is the catch-up; for latency the median. 0 if the run failed.
	Seconds float64 `json:"seconds"`
	// StartSeconds is how long the bridge, or Bucardo's sync, took before its catch-up began to count.
	StartSeconds float64 `json:"start_seconds,omitempty"`
	// WriteSeconds is how long committing the work took, while replication rested.
	WriteSeconds float64      `json:"write_seconds,omitempty"`
	Latency      *percentiles `json:"latency_ms,omitempty"`
	// Rate is what was committed in a second while latency was measured.
	Rate     float64            `json:"rate_per_second,omitempty"`
	CPU      map[string]float64 `json:"cpu_seconds,omitempty"`
	PeakRSS  map[string]int64   `json:"peak_rss_bytes,omitempty"`
	RSS      map[string]int64   `json:"rss_bytes,omitempty"` // at the end of an idle time
	Counters map[string]uint64  `json:"counters,omitempty"`
	Warnings []string           `json:"warnings,omitempty"`
	Error    string             `json:"error,omitempty"`
}

// text tells of a run that went well.
func (s sample) text() string {
	if s.Latency != nil {
		return s.Latency.String()
	}
	return fmt.Sprintf("%.2f s", s.Seconds)
}

// measure runs one line once with one rival, on servers of its own. What goes wrong is in the sample.
func (b *bench) measure(ctx context.Context, l line, name string) sample {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var more []*server
	switch {
	case l.third:
		more = append(more, &server{name: thirdNode, place: 2})
	case name == nativeName:
		more = peerDatabases(l.peers)
	}
	settings := rivalSettings(name, b.opts.major)
	maps.Copy(settings, b.settings)
	p, err := newPair(ctx, b.install, b.pgbench, settings, more...)
	if err != nil {
		return sample{Error: err.Error()}
	}
	s, err := b.measureOn(ctx, l, name, p)
	if err = errors.Join(err, p.close()); err != nil {
		s.Seconds, s.Latency, s.Error = 0, nil, err.Error()
	}
	return s
}

// measureOn runs a line on new servers.
func (b *bench) measureOn(ctx context.Context, l line, name string, p *pair) (sample, error) {
	if err := p.prepare(ctx, l, l.at(b.opts.scale)); err != nil {
		return sample{}, err
	}
	if name == floorName {
		return b.floor(ctx, l, p, l.at(b.opts.scale))
	}
	r := b.newRival(name, l, p)
	s, err := b.run(ctx, l, p, r)
	s.Warnings = r.warnings()
	return s, errors.Join(err, r.close())
}

// bridgeCommand returns what runs a bridge.
func (b *bench) bridgeCommand(l line) func(node, config string) []string {
	return func(node, config string) []string {
		if !b.opts.profile {
			return []string{b.opts.binary, "run", "--config", config}
		}
		prefix := filepath.Join(filepath.Dir(b.opts.out), fmt.Sprintf("bench-%s-%s", l.name, node))
		return []string{b.self, profiledBridge, config, prefix}
	}
}

// Rounds of the sentinel.
const (
	roundWarm = 1
	roundEnd  = 2 // of the source; those of the others follow
)

// run sets replication up and measures.
func (b *bench) run(ctx context.Context, l line, p *pair, r rival) (sample, error) {
	n := l.at(b.opts.scale)
	if err := r.connect(ctx); err != nil {
		return sample{}, err
	}
	warm, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("replication does not begin within %s", startTimeout))
	defer cancel()
	err := errors.Join(p.source.markEnd(warm, roundWarm), p.receiver.awaitEnd(warm, roundWarm, r.failed))
	if err != nil {
		return sample{}, err
	}
	var s sample
	switch l.kind {
	case kindLatency:
		s, err = b.probe(ctx, l, p, r, n)
	case kindSteady:
		s, err = b.steady(ctx, p, r, n)
	case kindIdle:
		s, err = b.idle(ctx, p, r, n)
	default:
		s, err = b.catchUp(ctx, l, p, r, n)
	}
	if err != nil {
		s.Seconds, s.Latency = 0, nil
	}
	return s, err
}

// catchUp commits the work while replication rests, and measures how long it then takes. Whoever shows
// the last row must hold all the others too.
func (b *bench) catchUp(ctx context.Context, l line, p *pair, r rival, n int) (s sample, err error) {
	if err := r.pause(ctx); err != nil {
		return s, err
	}
	written := time.Now()
	if err := p.commit(ctx, l, n); err != nil {
		return s, err
	}
	s.WriteSeconds = round(time.Since(written).Seconds())
	ctx, cancel := context.WithTimeoutCause(ctx, b.opts.timeout, fmt.Errorf("not caught up after %s", b.opts.timeout))
	defer cancel()
	begun, startup, err := r.resume(ctx)
	if err != nil {
		return s, err
	}
	before := p.ticks(r.processes()) // as the time, without the bridges' start
	if err := errors.Join(p.awaitAll(ctx, l, r.failed), r.await(ctx)); err != nil {
		return s, err
	}
	s.Seconds = round(time.Since(begun).Seconds())
	s.StartSeconds = round(startup.Seconds())
	s.CPU, s.PeakRSS = p.ticks(r.processes()).since(before), peakRSS(r.processes())
	if s.Counters, err = r.counters(ctx); err != nil {
		return s, err
	}
	return s, p.compare(ctx)
}

// round keeps milliseconds.
func round(seconds float64) float64 { return math.Round(seconds*1000) / 1000 }
