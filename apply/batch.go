package apply

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgbridge/pgbridge/wire"
)

// batch is a group of transactions between two Syncs of the protocol.
type batch struct {
	txns        []landing
	commits     []int // how many of txns each commit holds, a bundle more than one
	parses      []*statement
	firstCommit int        // where the first COMMIT, or COMMIT AND CHAIN, stands in the messages
	mu          sync.Mutex // guards txns[0] and parses of a large transaction while it is under way
	// The receiver writes these, the worker reads them after done is closed; failed at any time.
	acked  int // of txns
	ended  int // of commits
	parsed int
	status byte
	err    error
	failed atomic.Bool
	done   chan struct{}
	// marks: behind its first BEGIN the worker's own session writes the marker. completed counts statements up to it.
	marks     bool
	completed int
}

// landing is what must happen when a transaction's COMMIT is acknowledged.
type landing struct {
	t      *txn
	held   *held
	tomb   tombstone
	buried []wire.KeyHash
}

// gather plans transactions into a new batch until one is not ready, does not fit, or cannot go the
// optimistic path; the error says why if it is the first.
func (w *worker) gather() error {
	w.current = &batch{done: make(chan struct{})}
	w.planner.out = w.planner.out[:0]
	for len(w.current.txns) < min(w.atOnce, w.opts.BatchTransactions) && len(w.planner.out) < w.opts.BatchBytes {
		t, _ := w.inbox.peek(w.passed)
		if t == nil || t.run != nil || t.schema {
			return nil
		}
		if len(w.current.txns) > 0 && !w.announceable(t) {
			return nil
		}
		if n, err := w.addBundle(); n > 0 || err != nil {
			if err != nil {
				w.apart = bundleFrom // it is met again by itself
			}
			continue
		}
		if err := w.add(t); err != nil {
			return err
		}
		w.apart = max(w.apart-1, 0)
		w.inbox.take()
	}
	return nil
}

// announceable reports whether t may be announced now (see ready).
func (w *worker) announceable(t *txn) bool {
	_, _, lacks := w.progress.lacks(t.up, w.origin, w.own)
	return (!lacks || w.opts.NoHold) && t.Stamp.Time().Sub(w.opts.Now()) <= w.opts.MaxClockSkew
}

// add plans t into the current batch, or leaves the batch as it was.
func (w *worker) add(t *txn) error {
	p, b := &w.planner, w.current
	out, parses, landed := len(p.out), len(b.parses), len(b.txns)
	w.begins(landed)
	p.spill = nil
	err := p.plan(t)
	if err == nil {
		err = w.claim(t)
	}
	if err != nil {
		w.unplan(out, parses)
		return err
	}
	w.commits(landed)
	return nil
}

// begins appends what opens a transaction, behind so many others of the batch.
func (w *worker) begins(landed int) {
	p := &w.planner
	if landed > 0 {
		p.out = append(p.out, w.chainMessages...)
	} else {
		p.out = append(p.out, w.beginMessages...)
	}
}

// unplan takes out of the batch's messages what stands behind out, and the statements that it prepares.
func (w *worker) unplan(out, parses int) {
	b := w.current
	w.planner.out = w.planner.out[:out]
	for _, s := range b.parses[parses:] {
		s.sent = false
	}
	b.parses = b.parses[:parses]
}

// busyError means that another origin's transaction holds a key of this one.
type busyError struct{ freed <-chan struct{} }

func (*busyError) Error() string { return "key is locked" }

// claim takes the locks of the transaction whose footprint the planner has, registers what it creates, and puts it into
// the current batch, which commits or unclaim ends. On an error it holds nothing.
func (w *worker) claim(t *txn) error {
	p := &w.planner
	l := landing{t: t, held: &held{origin: w.origin, keys: append([]wire.KeyHash(nil), p.print.locks...)}}
	if ok, freed := w.locks.try(l.held); !ok {
		return &busyError{freed}
	}
	if err := w.free(t, p.print.locks); err != nil {
		w.locks.release(l.held)
		return err
	}
	if w.kept.epoch.Load() != p.epoch || w.owed.any(p.print.locks...) { // some of its tables may be guarded by now
		w.locks.release(l.held)
		return errSurprise
	}
	if len(p.print.creates) > 0 && w.absence.create(registration{w.origin, t.Seq}, t.version(), t.up, p.print.creates...) {
		w.locks.release(l.held)
		w.absence.withdraw(w.origin, t.Seq)
		return errSurprise
	}
	l.tomb, l.buried = p.deleted()
	w.current.txns = append(w.current.txns, l)
	return nil
}

// commits makes the current batch's transactions behind the first so many one commit: they go on.
func (w *worker) commits(landed int) {
	b := w.current
	for i := landed; i < len(b.txns); i++ {
		b.txns[i].held.keep()
	}
	b.commits = append(b.commits, len(b.txns)-landed)
	if landed == 0 {
		b.firstCommit = len(w.planner.out)
	}
}

// unclaim takes the current batch's transactions behind the first so many out of it, the last one first: each gives its
// keys back to whom it has taken them over from.
func (w *worker) unclaim(landed int) {
	b := w.current
	if len(b.txns) == landed {
		return
	}
	for i := len(b.txns) - 1; i >= landed; i-- {
		w.locks.release(b.txns[i].held)
	}
	w.absence.withdraw(w.origin, b.txns[landed].t.Seq)
	b.txns = b.txns[:landed]
}

// send writes the current batch. The marker goes into the WAL while the server executes the first
// transaction; its COMMIT waits for it (PROOF.md R7).
func (w *worker) send(ctx context.Context) error {
	b := w.current
	if w.markStatement != nil && len(w.pending) == 0 && len(w.planner.out) < ownMarkBytes {
		return w.sendMarked()
	}
	marked, err := w.markers.announce(ctx, b.txns[len(b.txns)-1].t.entry())
	if err != nil {
		return err
	}
	out := appendSync(append(w.planner.out, w.commitMessages...))
	w.planner.out = out
	w.launch(b)
	if _, err := w.socket.Write(out[:b.firstCommit]); err != nil {
		return err
	}
	return w.writeAfter(ctx, marked, out[b.firstCommit:])
}

// ownMarkBytes is up to where a batch that goes to an idle server carries its marker with it. Beyond, the marker stands in
// the WAL before the server has come to the COMMIT.
const ownMarkBytes = 64 << 10

// sendMarked is send that waits for nobody: the transaction's own session writes the marker, for which it lays down its
// replication origin (markStatement).
func (w *worker) sendMarked() error {
	b, out := w.current, w.planner.out
	up, now := w.progress.announcing(b.txns[len(b.txns)-1].t.entry())
	w.sending = append(w.sending[:0], w.beginMessages...)
	w.sending = appendRun(w.sending, w.markStatement.name, []param{binaryParam(wire.AppendMarker(nil, up, now.done, nil))})
	w.sending = append(w.sending, out[len(w.beginMessages):]...)
	w.sending = appendSync(append(w.sending, w.commitMessages...))
	b.marks = true
	w.launch(b)
	_, err := w.socket.Write(w.sending)
	return err
}

// markComplete is how many statements have ended when a batch's own marker is written: BEGIN and the marker.
const markComplete = 2

// launch hands the batch to the receiver, which expects the answers in this order.
func (w *worker) launch(b *batch) {
	w.pending = append(w.pending, b)
	w.flight <- b
}

func (w *worker) writeAfter(ctx context.Context, marked <-chan markReply, out []byte) error {
	if _, err := awaitMarker(ctx, marked); err != nil {
		return err
	}
	_, err := w.socket.Write(out)
	return err
}

// reap waits until at most n batches are in flight, and sees to what failed.
func (w *worker) reap(ctx context.Context, n int) error {
	for len(w.pending) > n {
		b := w.pending[0]
		select {
		case <-b.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if b.err != nil {
			return w.recover(ctx)
		}
		w.pending = w.pending[1:]
		w.atOnce = min(2*w.atOnce, w.opts.BatchTransactions)
		w.bundled = min(2*w.bundled, w.opts.BatchTransactions)
		w.wary /= 2
	}
	return nil
}

// recover deals with the failure of the oldest batch in flight: those behind it fail too, since no
// transaction commits unless its predecessor has (PROOF.md R2). All that has not landed is given back,
// and the culprit goes the careful path.
func (w *worker) recover(ctx context.Context) error {
	first := w.pending[0]
	if lost(first.err) {
		return first.err
	}
	status := first.status
	for _, b := range w.pending {
		select {
		case <-b.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if lost(b.err) {
			return b.err
		}
		status = b.status
		w.giveBack(b)
	}
	w.pending = w.pending[:0]
	w.inbox.rewind()
	culprit := first.txns[first.acked].t
	w.absence.withdraw(w.origin, culprit.Seq)
	if err := w.rollBack(ctx, status); err != nil {
		return err
	}
	w.log.Debug("optimistic path failed", "origin", w.origin.String(), "seq", culprit.Seq, "err", first.err)
	if changed, err := w.schemaChanged(ctx); changed || err != nil {
		return err
	}
	if n := first.commits[first.ended]; n > 1 {
		w.apart, w.bundled = n, max(w.bundled/4, bundleFrom)
		return nil
	}
	w.atOnce = 1 // where one failed, the next may: what fails behind it is planned in vain
	w.straight, w.wary = w.wary, min(2*w.wary+1, maxWary)
	return w.carefully(ctx, culprit)
}

// giveBack undoes what planning the batch took, for the transactions that have not landed.
func (w *worker) giveBack(b *batch) {
	for _, l := range b.txns[b.acked:] {
		w.locks.release(l.held)
	}
	for _, s := range b.parses[b.parsed:] {
		s.sent = false
	}
}

// land does what follows an acknowledged COMMIT of one transaction or a bundle, in this order: tombstones into the index,
// then the key locks free (R21), then the news to those who wait.
func (w *worker) land(landed []landing) {
	for i := range landed {
		l := &landed[i]
		if len(l.buried) > 0 {
			w.absence.bury(l.tomb, l.buried)
		}
		w.locks.release(l.held)
	}
	var bytes int64
	for i := range landed {
		bytes += landed[i].t.bytes()
	}
	w.pace.used(bytes, time.Now())
	last := landed[len(landed)-1].t
	w.heard.hear(w.origin, last.Seq, last.low)
	w.applied.Add(uint64(len(landed)))
	if len(landed) > 1 {
		w.bundles.Add(uint64(len(landed)))
	}
	w.say("")
	w.progress.advance(last.entry())
	w.inbox.landed(len(landed), w.passed)
}

// receive reads the server's answers to the batches, in order, until the flight channel is closed.
func (w *worker) receive() {
	for b := range w.flight {
		if err := w.collect(b); err != nil {
			b.err = err
			b.failed.Store(true)
		}
		close(b.done)
	}
}

func (w *worker) collect(b *batch) error {
	frontend := w.conn.PgConn().Frontend()
	var failure error
	for {
		msg, err := frontend.Receive()
		if err != nil {
			return fmt.Errorf("read from PostgreSQL: %w", err)
		}
		switch m := msg.(type) {
		case *pgproto3.ParseComplete:
			b.mu.Lock()
			b.parses[b.parsed].ready = true
			b.mu.Unlock()
			b.parsed++
		case *pgproto3.CommandComplete:
			b.completed++
			switch string(m.CommandTag) {
			case "COMMIT":
				b.mu.Lock()
				n := b.commits[b.ended]
				w.land(b.txns[b.acked : b.acked+n])
				b.mu.Unlock()
				b.acked, b.ended = b.acked+n, b.ended+1
			case "ROLLBACK":
				failure = errors.Join(failure, errSurprise)
			case "UPDATE 0": // only a combination ends in a bare UPDATE, that of the position
				return fmt.Errorf("position row of %s is gone: %w", w.origin, ErrNotSetUp)
			}
		case *pgproto3.ErrorResponse:
			pg := pgconn.ErrorResponseToPgError(m)
			if b.marks && b.completed < markComplete {
				return fmt.Errorf("write marker: %v; the session has no replication origin any more", pg) // lost, not to be used again
			}
			failure = pg
			b.failed.Store(true)
		case *pgproto3.ReadyForQuery:
			b.status = m.TxStatus
			return failure
		}
	}
}

// prepare appends the preparation of s on this connection.
func (w *worker) prepare(dst []byte, s *statement) []byte {
	w.named++
	s.name, s.sent, s.ready = fmt.Sprintf("s%d", w.named), true, false
	b := w.current
	b.mu.Lock()
	b.parses = append(b.parses, s)
	b.mu.Unlock()
	return appendParse(dst, s.name, s.sql, s.types)
}
