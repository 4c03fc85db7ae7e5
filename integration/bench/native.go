package main

import (
	"context"
	"fmt"
	"time"
)

// rival is one way to replicate from the source to the receiver.
type rival interface {
	// connect sets replication up; it runs afterwards.
	connect(ctx context.Context) error
	// pause stops it and waits until it has stopped.
	pause(ctx context.Context) error
	// resume starts it again. It returns the moment from which catching up counts, and how long it took
	// to get there.
	resume(ctx context.Context) (begun time.Time, startup time.Duration, err error)
	// await waits for receivers that are no servers.
	await(ctx context.Context) error
	// failed says why replication cannot go on, nil if it can.
	failed() error
	// processes names the processes that are not PostgreSQL's.
	processes() map[string]int
	// counters tells what the rival counted since resume.
	counters(ctx context.Context) (map[string]uint64, error)
	// warnings are what the rival complained about since resume.
	warnings() []string
	// close ends what connect started; the servers go after it.
	close() error
}

const (
	nativeName   = "native"
	pgbridgeName = "pgbridge"
	floorName    = "floor" // floor.go
)

// native is PostgreSQL's own logical replication.
type native struct {
	*pair
	both bool // from the receiver to the source too
}

// subscriptionOptions are all that differs from the defaults; the rows are there already. Before 16 a change could not
// be told from one that was received, and nothing was applied in parallel.
func subscriptionOptions(major int) string {
	if major < 16 {
		return "WITH (binary = true, streaming = on, copy_data = false)"
	}
	return "WITH (origin = none, binary = true, streaming = parallel, copy_data = false)"
}

func (r *native) connect(ctx context.Context) error {
	if err := subscribe(ctx, r.source, r.receivers()...); err != nil {
		return err
	}
	if r.both {
		return subscribe(ctx, r.receiver, r.source)
	}
	return nil
}

func (r *native) receivers() []*server { return r.all()[1:] }

// subscribe makes all receive what from commits.
func subscribe(ctx context.Context, from *server, all ...*server) error {
	if err := from.exec(ctx, "CREATE PUBLICATION bench_"+from.name+" FOR ALL TABLES"); err != nil {
		return err
	}
	for _, to := range all {
		if err := subscribeOne(ctx, to, from); err != nil {
			return err
		}
	}
	return nil
}

func subscribeOne(ctx context.Context, to, from *server) error {
	return to.exec(ctx, fmt.Sprintf("CREATE SUBSCRIPTION bench_%s CONNECTION '%s' PUBLICATION bench_%s %s",
		to.name, from.dsn, from.name, subscriptionOptions(to.major())))
}

// pause leaves the other direction alone: nothing comes from there.
func (r *native) pause(ctx context.Context) error {
	for _, to := range r.receivers() {
		if err := to.exec(ctx, "ALTER SUBSCRIPTION bench_"+to.name+" DISABLE"); err != nil {
			return err
		}
	}
	for _, to := range r.receivers() {
		if err := r.awaitDisabled(ctx, to); err != nil {
			return err
		}
	}
	return nil
}

func (r *native) awaitDisabled(ctx context.Context, to *server) error {
	for {
		var busy bool
		const sql = "SELECT EXISTS (SELECT FROM pg_stat_subscription WHERE subname = $1 AND pid IS NOT NULL)"
		if err := to.conn.QueryRow(ctx, sql, "bench_"+to.name).Scan(&busy); err != nil {
			return err
		}
		if !busy {
			const sql = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active)"
			if err := r.source.conn.QueryRow(ctx, sql, "bench_"+to.name).Scan(&busy); err != nil {
				return err
			}
		}
		if !busy {
			return nil
		}
		select {
		case <-time.After(pollPause):
		case <-ctx.Done():
			return fmt.Errorf("the subscription does not stop: %w", context.Cause(ctx))
		}
	}
}

// resume counts from the statement's start: the launcher is woken when it commits.
func (r *native) resume(ctx context.Context) (time.Time, time.Duration, error) {
	begun := time.Now()
	for _, to := range r.receivers() {
		if err := to.exec(ctx, "ALTER SUBSCRIPTION bench_"+to.name+" ENABLE"); err != nil {
			return begun, 0, err
		}
	}
	return begun, 0, nil
}

func (r *native) await(context.Context) error { return nil }

func (r *native) failed() error             { return nil }
func (r *native) processes() map[string]int { return nil }
func (r *native) warnings() []string        { return nil }

func (r *native) counters(context.Context) (map[string]uint64, error) { return nil, nil }

func (r *native) close() error { return nil }
