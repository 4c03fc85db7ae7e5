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

// warmCommits are made and awaited before the probe's first sample.
const warmCommits = latencyRate

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
func (b *bench) probe(ctx context.Context, p *pair, r rival, n int) (s sample, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, b.opts.timeout, fmt.Errorf("not all rows visible after %s", b.opts.timeout))
	defer cancel()
	rows := make(chan committed, warmCommits+n) // room for all, so that writing never waits
	var took []time.Duration
	before := p.ticks(r.processes())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(rows)
		return writeRows(ctx, p.source, warmCommits+n, rows)
	})
	g.Go(func() (err error) {
		took, err = awaitRows(ctx, p.receiver.conn, rows, r.failed)
		return err
	})
	if err := g.Wait(); err != nil {
		return s, err
	}
	latency := percentilesOf(took[warmCommits:])
	s.Latency, s.Seconds = &latency, latency.P50/1000
	s.CPU, s.PeakRSS = p.ticks(r.processes()).since(before), peakRSS(r.processes())
	whole := context.WithoutCancel(ctx) // the group's has ended
	if s.Counters, err = r.counters(whole); err != nil {
		return s, err
	}
	return s, p.compare(whole)
}

// writeRows commits one row at each tick.
func writeRows(ctx context.Context, s *server, n int, rows chan<- committed) error {
	tick := time.NewTicker(time.Second / latencyRate)
	defer tick.Stop()
	for id := 1; id <= n; id++ {
		select {
		case <-tick.C:
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
				time.Sleep(lookPause) // the probe's own rate
			}
		}
		took = append(took, time.Since(row.at))
	}
	return took, nil
}
