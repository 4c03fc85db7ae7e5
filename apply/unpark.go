package apply

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/wire"
)

// This file is what a worker does about its origin's parked transactions: it tries them again, on the careful path, or
// gives them up (discard.go).

// retriesAtOnce bounds how many transactions are tried again before what they have registered ends.
const retriesAtOnce = 100

// tryParked does what is due about the origin's parked transactions, one of them at a time, when nothing is in flight. It
// reports whether it did something.
func (w *worker) tryParked(ctx context.Context) (bool, error) {
	did, err := w.tryOne(ctx)
	if err == nil && w.retried > 0 && (!did || w.retried >= retriesAtOnce) {
		err = w.ended(ctx)
	}
	return did, err
}

func (w *worker) tryOne(ctx context.Context) (bool, error) {
	if w.parked.empty() {
		w.parkedDue = false
		return false, nil
	}
	select {
	case <-w.parked.wake(w.origin):
		w.parkedDue = true
	default:
	}
	if !w.parkedDue {
		return false, nil
	}
	if w.parkedTried { // then it is the turn of what comes in
		w.parkedTried = false
		if t, _ := w.inbox.peek(w.passed); t != nil {
			return false, nil
		}
	}
	e, discard := w.parked.next(w.origin, w.opts.Now())
	if e == nil {
		w.parkedDue = false
		return false, nil
	}
	if err := w.reap(ctx, 0); err != nil {
		return true, err
	}
	w.parkedTried = true
	t, err := w.loadTxn(ctx, e)
	if t == nil && err == nil { // somebody has deleted it by hand
		w.parked.remove(e)
		return true, nil
	}
	if err := w.prepareParking(ctx); err != nil {
		return true, err
	}
	switch {
	case err != nil:
	case discard:
		err = w.discard(ctx, e, t)
	default:
		err = w.retry(ctx, e, t)
	}
	var pg *pgconn.PgError
	switch {
	case err == nil:
		return true, nil
	case ctx.Err() != nil:
		return true, context.Cause(ctx)
	case errors.As(err, &pg) && lost(pg), !errors.As(err, &pg) && !isBlocked(err) && !errors.Is(err, wire.ErrCorrupt):
		return true, err
	}
	return true, w.stays(ctx, e, err)
}

// loadTxn reads a parked transaction back; nil if it is not there any more.
func (w *worker) loadTxn(ctx context.Context, e *parkedTxn) (*txn, error) {
	p, err := readParked(ctx, w.conn, e.id)
	if p == nil || err != nil {
		return nil, err
	}
	p.txn.parked, p.txn.behind = e.id, w.progress.vector().Seq(w.origin)+1
	return p.txn, nil
}

// retry applies a parked transaction on the careful path, with its own stamp and vectors: what was written meanwhile wins
// where it is later, as it does on nodes where this transaction was never parked. Its position and its marker have long
// been written.
func (w *worker) retry(ctx context.Context, e *parkedTxn, t *txn) error {
	for n, p := range w.pasts {
		if p.rows == nil { // it has forgotten what only later transactions need not know
			delete(w.pasts, n)
		}
	}
	if err := newCarefulRun(w, []*txn{t}).try(ctx); err != nil {
		return err
	}
	w.log.Info("parked transaction applied", "origin", w.origin.String(), "seq", t.Seq, "id", e.id)
	w.retried++
	return nil
}

// ended waits until capture has passed the commits of the transactions that were tried again. Until then a local delete in
// front of them may take their rows back, and must not do so before they are there (PROOF.md R18, R19): what they have
// registered, all under the seq behind the position, is not over.
func (w *worker) ended(ctx context.Context) error {
	lsn, err := w.markers.flush(ctx)
	if err == nil {
		err = w.wal.WaitPassed(ctx, lsn)
	}
	w.absence.withdraw(w.origin, w.progress.vector().Seq(w.origin)+1)
	w.retried = 0
	return err
}

// pushUnpark queues what ends a transaction that is tried again.
func (c *carefulRun) pushUnpark() {
	c.push("unpark", c.parking.remove, []param{int64Param(c.t.parked), int64Param(int64(c.t.Stamp))})
}

// unparked does what follows the COMMIT of a transaction that was tried again, as land does for others: tombstones, the
// news to those who depend on it, then the key locks.
func (c *carefulRun) unparked(h *held) {
	if keys := c.buried.all(); len(keys) > 0 {
		c.absence.bury(tombstone{c.t.version(), c.t.Seq}, keys)
	}
	c.forgetParked(c.t.parked)
	c.locks.release(h)
}

func (w *worker) forgetParked(id int64) {
	if e := w.parked.byID(id); e != nil {
		w.parked.remove(e)
	}
}

// stays notes why a parked transaction stays so.
func (w *worker) stays(ctx context.Context, e *parkedTxn, why error) error {
	w.parked.failed(e, w.opts.Now())
	w.forgetMappings()
	w.log.Debug("parked transaction stays", "origin", w.origin.String(), "seq", e.Seq, "id", e.id, "sqlstate", sqlstate(why))
	c := newCarefulRun(w, []*txn{{}})
	c.push("note why it stays parked", w.parking.note, append([]param{int64Param(e.id)}, w.reason(ctx, why)...))
	if err := c.flush(ctx); err != nil && lost(err) {
		return err
	}
	return nil
}
