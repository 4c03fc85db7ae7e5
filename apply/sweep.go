package apply

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/pgbridge/pgbridge/origin"
)

const (
	settleEvery = 50 * time.Millisecond
	purgeEvery  = 2 * time.Second
)

// sweep forgets: registrations whose commits capture has passed, tombstones that are stable, conflicts
// beyond their retention.
func (a *Applier) sweep(ctx context.Context, wal WAL) error {
	settle, purge := time.NewTicker(settleEvery), time.NewTicker(purgeEvery)
	defer settle.Stop()
	defer purge.Stop()
	for {
		select {
		case <-settle.C:
			a.absence.settle(a.progress.readBack(wal))
		case <-purge.C:
			if err := a.purge(ctx, wal); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// purge drops what is stable, in memory and in the tombstone table (PROOF.md R22).
func (a *Applier) purge(ctx context.Context, wal WAL) error {
	decided := a.decided(wal)
	a.absence.purge(a.heard.stableSeq)
	a.catalog.mu.Lock()
	defer a.catalog.mu.Unlock()
	if err := a.purgeLetGo(ctx); err != nil {
		return err
	}
	if err := a.schema.note(ctx, a.catalog.conn); err != nil {
		return err
	}
	for _, w := range a.workers {
		_, err := a.catalog.conn.Exec(ctx, `DELETE FROM pgbridge.tombstone WHERE origin = $1 AND epoch = $2 AND seq <= $3`,
			w.origin.Node, int64(w.origin.Epoch), int64(a.heard.stableSeq(w.origin)))
		if err != nil {
			return fmt.Errorf("purge tombstones: %w", err)
		}
		_, err = a.catalog.conn.Exec(ctx, `DELETE FROM pgbridge.bundle WHERE id = $1 AND seq <= $2`,
			int64(w.id), int64(min(a.heard.stableSeq(w.origin), decided.Seq(w.origin))))
		if err != nil {
			return fmt.Errorf("purge bundles: %w", err)
		}
		_, err = a.catalog.conn.Exec(ctx, purgeReturnedSQL,
			int64(w.id), int64(min(a.heard.stableSeq(w.origin), decided.Seq(w.origin))))
		if err != nil {
			return fmt.Errorf("purge versions of rows that have come back: %w", err)
		}
	}
	if err := a.numberAgain(ctx, wal); err != nil {
		return err
	}
	if decided != nil { // no local delete can take own rows back that another node has given
		_, err := a.catalog.conn.Exec(ctx, purgeReturnedSQL, int64(0), int64(a.heard.stableSeq(a.own)))
		if err != nil {
			return fmt.Errorf("purge versions of rows that have come back: %w", err)
		}
	}
	limits := a.limits.Load()
	if d := limits.ConflictRetention; d > 0 {
		_, err := a.catalog.conn.Exec(ctx, `DELETE FROM pgbridge.conflict WHERE at < now() - make_interval(secs => $1)`, d.Seconds())
		if err != nil {
			return fmt.Errorf("purge conflict history: %w", err)
		}
	}
	if n := limits.ConflictRows; n > 0 {
		_, err := a.catalog.conn.Exec(ctx, `DELETE FROM pgbridge.conflict WHERE id <= (SELECT max(id) FROM pgbridge.conflict) - $1`, int64(n))
		if err != nil {
			return fmt.Errorf("purge conflict history: %w", err)
		}
	}
	return nil
}

// purgeReturnedSQL forgets the versions of rows of origin $1 that every node has seen. One behind which a row is kept must go on to be
// known as later than that.
const purgeReturnedSQL = `DELETE FROM pgbridge.returned WHERE id = $1 AND seq <= $2 AND lo NOT IN (SELECT blocker_lo FROM pgbridge.quarantine)`

// decided returns, for each origin, up to where no local delete that stands in the WAL in front of its transactions'
// commits can still take their rows back: capture has read them all, and none of them waits.
func (a *Applier) decided(wal WAL) origin.Vector {
	low := a.progress.readBack(wal)
	if a.absence.mayTakeBack(wal.Passed()) {
		return nil
	}
	return low
}

// cutName splits the name of a table that a TRUNCATE's tombstone holds.
func cutName(b []byte) (schema, table string, ok bool) {
	s, t, ok := bytes.Cut(b, []byte{0})
	return string(s), string(t), ok
}
