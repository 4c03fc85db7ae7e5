package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// percentiles of a latency, in milliseconds.
type percentiles struct {
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	Max   float64 `json:"max"`
	Count int     `json:"count"`
}

// String gives "p50 0.41 ms, p90 0.62 ms, p99 1.10 ms".
func (p percentiles) String() string {
	return fmt.Sprintf("p50 %.2f ms, p90 %.2f ms, p99 %.2f ms", p.P50, p.P90, p.P99)
}

// percentilesOf sorts what it is given.
func percentilesOf(took []time.Duration) percentiles {
	slices.Sort(took)
	at := func(share float64) float64 {
		if len(took) == 0 {
			return 0
		}
		i := int(math.Ceil(share*float64(len(took)))) - 1 // nearest rank
		return math.Round(float64(took[max(i, 0)])/float64(time.Microsecond)) / 1000
	}
	return percentiles{P50: at(0.50), P90: at(0.90), P99: at(0.99), Max: at(1), Count: len(took)}
}

// lookPause is how long the probe rests between two looks at the receiver while a row is on its way. A
// look takes about a tenth of a millisecond; without the pause it would take a core away from what is
// measured.
const lookPause = 100 * time.Microsecond

// committed is a row whose COMMIT has returned at the source.
type committed struct {
	id int
	at time.Time
}

// probe commits single rows at a fixed rate, and measures from each COMMIT's return to the first answer
// of the receiver that shows the row. A slow row does not hold the next one up.
func (b *bench) probe(ctx context.Context, l line, p *pair, r rival, n int) (s sample, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, b.opts.timeout, fmt.Errorf("not all rows visible after %s", b.opts.timeout))
	defer cancel()
	before, begun := p.ticks(r.processes()), time.Now()
	took, err := p.probeRows(ctx, l.rate, n, r.failed)
	if err != nil {
		return s, err
	}
	s.Rate = math.Round(float64(len(took)) / time.Since(begun).Seconds())
	latency := percentilesOf(took[len(took)-n:])
	s.Latency, s.Seconds = &latency, latency.P50/1000
	s.CPU, s.PeakRSS = p.ticks(r.processes()).since(before), peakRSS(r.processes())
	if s.Counters, err = r.counters(ctx); err != nil {
		return s, err
	}
	return s, p.compare(ctx)
}

// probeRows commits rows at the source for one second and then n more, and returns how long each took to be shown by
// the receiver.
func (p *pair) probeRows(ctx context.Context, rate, n int, failed func() error) (took []time.Duration, err error) {
	all := rate + n                     // the first second warms up
	rows := make(chan committed, all)   // room for all, so that writing never waits
	g, ctx := errgroup.WithContext(ctx) // ends with the first error
	g.Go(func() error {
		defer close(rows)
		return writeRows(ctx, p.source, rate, all, rows)
	})
	g.Go(func() (err error) {
		took, err = awaitRows(ctx, p.receiver.conn, rows, failed)
		return err
	})
	err = g.Wait() // sets took
	return took, err
}

// writeRows commits rows at that rate. A commit that takes longer than its share is made up for by those after it.
func writeRows(ctx context.Context, s *server, rate, n int, rows chan<- committed) error {
	begun := time.Now()
	for id := 1; id <= n; id++ {
		due := begun.Add(time.Duration(id) * time.Second / time.Duration(rate))
		select {
		case <-time.After(time.Until(due)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := s.exec(ctx, "INSERT INTO bench_latency VALUES ($1, 'a single row')", id); err != nil {
			return err
		}
		rows <- committed{id, time.Now()}
	}
	return nil
}

// awaitRows looks at the receiver as long as a row is on its way. Rows of one origin appear in order, so
// the highest id says it for all.
func awaitRows(ctx context.Context, conn *pgx.Conn, rows <-chan committed, failed func() error) ([]time.Duration, error) {
	// The table was empty when it was analysed: left alone, each question would read all of it.
	if _, err := conn.Exec(ctx, "SET enable_seqscan = off"); err != nil {
		return nil, err
	}
	var took []time.Duration
	shown := 0
	for row := range rows {
		for shown < row.id {
			err := conn.QueryRow(ctx, "SELECT COALESCE(max(id), 0) FROM bench_latency").Scan(&shown)
			if err == nil {
				err = failed()
			}
			if err != nil {
				return nil, err
			}
			if shown < row.id {
				nap(lookPause) // the probe's own rate
			}
		}
		took = append(took, time.Since(row.at))
	}
	return took, nil
}
