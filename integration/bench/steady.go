package main

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"time"
)

const (
	// steadyShare of the highest rate that the rival has just shown is what it then gets.
	steadyShare = 0.5
	// steadyFirst transactions for each second of the steady state are the catch-up that shows that rate.
	steadyFirst = 1000
	// steadyProbe is how many probe rows a second are committed beside the load.
	steadyProbe = 50
	roundSteady = 9 // of the sentinel: what follows the load
)

func prepareSteady(ctx context.Context, s *server, n int) error {
	if err := preparePgbench(ctx, s, n*steadyFirst); err != nil {
		return err
	}
	return prepareLatency(ctx, s, n)
}

func writeSmall(ctx context.Context, s *server, n int) error { return runPgbench(ctx, s, n, "-N") }

// steady measures the rival's highest rate by a catch-up, then commits the same transactions at half that rate for n
// seconds, and probe rows among them, of which it takes the latency.
func (b *bench) steady(ctx context.Context, p *pair, r rival, n int) (s sample, err error) {
	first := n * steadyFirst
	highest, err := b.catchUp(ctx, line{write: writeSmall}, p, r, first)
	if err != nil {
		return s, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, b.opts.timeout+time.Duration(n)*time.Second,
		fmt.Errorf("not all rows visible after %s", b.opts.timeout))
	defer cancel()
	rate := int(float64(first) / highest.Seconds * steadyShare)
	loaded := make(chan error, 1) // one value, at the load's end
	before, begun := p.ticks(r.processes()), time.Now()
	go func() {
		loaded <- p.source.pgbench(ctx, "-n", "-M", "prepared", "-N", "-c", strconv.Itoa(pgbenchClients), "-j", "2",
			"-R", strconv.Itoa(rate), "-T", strconv.Itoa(n+2), "--random-seed", "2") // the probe warms up for a second
	}()
	took, err := p.probeRows(ctx, steadyProbe, n*steadyProbe, r.failed)
	s.CPU, s.PeakRSS = p.ticks(r.processes()).since(before), peakRSS(r.processes())
	if err != nil {
		cancel()
		<-loaded
		return s, err
	}
	if err := <-loaded; err != nil {
		return s, err
	}
	committed := 0
	if err := p.source.conn.QueryRow(ctx, "SELECT count(*) FROM pgbench_history").Scan(&committed); err != nil {
		return s, err
	}
	s.Rate = math.Round(float64(committed-first) / time.Since(begun).Seconds())
	latency := percentilesOf(took[len(took)-n*steadyProbe:])
	s.Latency, s.Seconds = &latency, latency.P50/1000
	if s.Counters, err = r.counters(ctx); err != nil {
		return s, err
	}
	if err := p.source.markEnd(ctx, roundSteady); err != nil {
		return s, err
	}
	if err := p.receiver.awaitEnd(ctx, roundSteady, r.failed); err != nil {
		return s, err
	}
	return s, p.compare(ctx)
}
