package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// pglogicalName is the rival that is an extension of the server, with workers and an output plugin of its own.
const pglogicalName = "pglogical"

// pglogical has one subscription, or one in each direction. Neither end hands on what it received, and the later of two
// writes to a row wins (rivalSettings).
type pglogical struct {
	*pair
	both bool
}

// oneWay is a direction: what from commits, to receives.
type oneWay struct{ from, to *server }

func (r *pglogical) ways() []oneWay {
	ways := []oneWay{{r.source, r.receiver}}
	if r.both {
		ways = append(ways, oneWay{r.receiver, r.source})
	}
	return ways
}

func (r *pglogical) connect(ctx context.Context) error {
	err := r.onAll(func(s *server) error {
		return errors.Join(
			s.exec(ctx, "CREATE EXTENSION pglogical"),
			s.exec(ctx, "SELECT pglogical.create_node(node_name := $1::text, dsn := $2::text)", s.name, s.dsn),
			s.exec(ctx, "SELECT pglogical.replication_set_add_all_tables('default', ARRAY['public'])"))
	})
	if err != nil {
		return err
	}
	for _, w := range r.ways() { // the rows are there already
		err := w.to.exec(ctx, `SELECT pglogical.create_subscription(subscription_name := $1::text, provider_dsn := $2::text,
			synchronize_structure := false, synchronize_data := false, forward_origins := '{}')`, w.subscription(), w.from.dsn)
		if err != nil {
			return err
		}
		if err := w.awaitStart(ctx); err != nil {
			return err
		}
	}
	return nil
}

// awaitStart waits until the subscription's worker has made the slot: what was committed before does not come.
func (w oneWay) awaitStart(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("waited for %s", startTimeout))
	defer cancel()
	return w.await(ctx, w.to, "SELECT status = 'replicating' FROM pglogical.show_subscription_status($1::text)", w.subscription())
}

// await asks one of the servers until it says yes.
func (w oneWay) await(ctx context.Context, s *server, sql string, args ...any) error {
	for {
		var there bool
		if err := s.conn.QueryRow(ctx, sql, args...).Scan(&there); err != nil {
			return fmt.Errorf("subscription %s does not start or stop: %w", w.subscription(), err)
		}
		if there {
			return nil
		}
		select {
		case <-time.After(pollPause):
		case <-ctx.Done():
			return fmt.Errorf("subscription %s does not start or stop: %w", w.subscription(), context.Cause(ctx))
		}
	}
}

func (w oneWay) subscription() string { return "bench_" + w.to.name }

func (r *pglogical) pause(ctx context.Context) error {
	for _, w := range r.ways() {
		if err := w.to.exec(ctx, "SELECT pglogical.alter_subscription_disable($1::text, immediate := true)", w.subscription()); err != nil {
			return err
		}
		if err := w.awaitRest(ctx); err != nil {
			return err
		}
	}
	return nil
}

// awaitRest waits until nobody reads the direction's slot, which is the only one that pglogical made there.
func (w oneWay) awaitRest(ctx context.Context) error {
	return w.await(ctx, w.from, "SELECT NOT EXISTS (SELECT FROM pg_replication_slots WHERE plugin = 'pglogical_output' AND active)")
}

// resume counts from the statement's start, as native's does.
func (r *pglogical) resume(ctx context.Context) (time.Time, time.Duration, error) {
	begun := time.Now()
	for _, w := range r.ways() {
		if err := w.to.exec(ctx, "SELECT pglogical.alter_subscription_enable($1::text, immediate := true)", w.subscription()); err != nil {
			return begun, 0, err
		}
	}
	return begun, 0, nil
}

func (r *pglogical) await(context.Context) error { return nil }

func (r *pglogical) failed() error             { return nil }
func (r *pglogical) processes() map[string]int { return nil }

// warnings are what the servers' logs end with: the workers complain nowhere else.
func (r *pglogical) warnings() []string {
	var bad []string
	for _, s := range []*server{r.source, r.receiver} {
		for line := range strings.Lines(s.cluster.LogTail()) {
			if strings.Contains(line, "ERROR:") || strings.Contains(line, "WARNING:") {
				bad = append(bad, s.name+": "+strings.TrimSpace(line))
			}
		}
	}
	return bad
}

func (r *pglogical) counters(context.Context) (map[string]uint64, error) { return nil, nil }

func (r *pglogical) close() error { return nil }
