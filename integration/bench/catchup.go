package main

import (
	"context"
	"errors"
	"fmt"
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
	WriteSeconds float64            `json:"write_seconds,omitempty"`
	Latency      *percentiles       `json:"latency_ms,omitempty"`
	CPU          map[string]float64 `json:"cpu_seconds,omitempty"`
	PeakRSS      map[string]int64   `json:"peak_rss_bytes,omitempty"`
	Counters     map[string]uint64  `json:"counters,omitempty"`
	Warnings     []string           `json:"warnings,omitempty"`
	Error        string             `json:"error,omitempty"`
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
	p, err := newPairWith(ctx, b.install, rivalSettings(name, b.opts.major), b.pgbench)
	if err != nil {
		return sample{Error: err.Error()}
	}
	r := b.newRival(name, l, p)
	s, err := b.run(ctx, l, p, r)
	s.Warnings = r.warnings()
	if err = errors.Join(err, r.close(), p.close()); err != nil {
		s.Seconds, s.Latency, s.Error = 0, nil, err.Error()
	}
	return s
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
	roundEnd  = 2
	roundBack = 3 // from the receiver
)

// run prepares both ends, sets replication up and measures.
func (b *bench) run(ctx context.Context, l line, p *pair, r rival) (sample, error) {
	n := l.at(b.opts.scale)
	if err := p.prepare(ctx, l, n); err != nil {
		return sample{}, err
	}
	if err := r.connect(ctx); err != nil {
		return sample{}, err
	}
	warm, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("replication does not begin within %s", startTimeout))
	defer cancel()
	err := errors.Join(p.source.markEnd(warm, roundWarm), p.receiver.awaitEnd(warm, roundWarm, r.failed))
	if err != nil {
		return sample{}, err
	}
	if l.write == nil {
		return b.probe(ctx, p, r, n)
	}
	return b.catchUp(ctx, l, p, r, n)
}

// catchUp commits the work while replication rests, and measures how long it then takes. Whoever shows
// the last row must hold all the others too.
func (b *bench) catchUp(ctx context.Context, l line, p *pair, r rival, n int) (s sample, err error) {
	if err := r.pause(ctx); err != nil {
		return s, err
	}
	written := time.Now()
	if err := errors.Join(l.write(ctx, p.source, n), p.source.markEnd(ctx, roundEnd)); err != nil {
		return s, err
	}
	s.WriteSeconds = round(time.Since(written).Seconds())
	if l.back != nil {
		if err := errors.Join(l.back(ctx, p.receiver, n), p.receiver.markEnd(ctx, roundBack)); err != nil {
			return s, err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, b.opts.timeout, fmt.Errorf("not caught up after %s", b.opts.timeout))
	defer cancel()
	before := p.ticks(r.processes()) // none of the bridges' yet
	begun, startup, err := r.resume(ctx)
	if err != nil {
		return s, err
	}
	if err := p.receiver.awaitEnd(ctx, roundEnd, r.failed); err != nil {
		return s, err
	}
	if l.back != nil {
		if err := p.source.awaitEnd(ctx, roundBack, r.failed); err != nil {
			return s, err
		}
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
