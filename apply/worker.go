package apply

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/rowkey"
	"github.com/pgbridge/pgbridge/wire"
)

// inFlight is how many batches may be on their way to the server: one that it executes, one that waits
// for it, one that is being written.
const inFlight = 3

// worker applies the transactions of one origin, in order, through one connection that has the origin's
// replication origin set. The optimistic path is in batch.go, the careful one in careful.go.
type worker struct {
	origin, own origin.Origin
	id          uint32 // roident of the origin's replication origin
	opts        *Options
	log         *slog.Logger

	wal      WAL
	streams  Streams
	progress *progress
	markers  *markers
	absence  *absence
	locks    *keyLocks
	journal  *journal // nil if no table is merged
	kept     *quarantine
	mender   *mender // nil if no foreign key has a policy
	heard    *hearsay
	parked   *parked
	pauses   *pauses
	kinds    *tally
	pace     *pace
	yields   *yields
	owed     *owed
	policy   conflict.Policy
	inbox    *inbox
	// saidAgain is when the log said last that transactions come again; of the goroutine that feeds.
	saidAgain time.Time

	ctx      context.Context // run's; the planner's catalog look-ups end with it
	conn     *pgx.Conn
	socket   net.Conn
	catalog  *catalog
	mappings map[uint32]*mapping
	digests  *rowkey.Digests
	served   bool                // a mapping's keys are hashed by the server
	pasts    map[tableName]*past // of tables that were rewritten here
	guard    guard
	planner  planner
	named    int // statements named so far
	mapped   uint64
	combined map[string]*combination // by the shapes of their changes
	retired  retired
	schema   *schemaChanges
	// lacking are the schema changes that transactions of the origin may lack, of the first known ones; lag are those that the one
	// lacks which is being taken apart.
	lacking    []*schemaChange
	known      int
	lag        lag
	generation int64  // of the schema under which is planned
	stale      bool   // there may be a later one
	sending    []byte // scratch of sendMarked
	upcoming   []*txn // scratch: those that may become a bundle

	// Between two transactions of a batch stands one COMMIT AND CHAIN, which is cheaper than a COMMIT and a
	// BEGIN.
	beginMessages, chainMessages, commitMessages []byte
	patientMessages                              []byte // in front of a large transaction's rows

	positionStatement, tombstoneStatement         *statement
	bundleStatement, patientStatement             *statement
	journalStatement, journalBaseStatement        *statement
	beginStatement, commitStatement, xidStatement *statement
	parking                                       parkingStatements
	pausesSeen                                    <-chan struct{}
	working                                       time.Time // since when, without a rest for users
	parkedDue, parkedTried                        bool      // a parked transaction of the origin may be due, was tried just now
	retried                                       int       // whose registrations have not ended
	payStatement                                  *statement
	markStatement                                 *statement // nil: the role may not lay down an origin
	unkeepStatement                               *statement

	atOnce int // transactions in the next batch: few after a failure, then more again
	// straight is how many of the next transactions take the careful path without trying the other first, wary how
	// many it will be after the next failure: conflicts come in swarms, and what fails costs a round trip and a line in
	// the server's log.
	straight, wary int
	// bundled is how many transactions the next bundle may hold, apart how many of the next go by themselves: those of a
	// bundle that failed, so that the one that is to blame is found.
	bundled, apart int

	current *batch      // being planned
	flight  chan *batch // to the receiver
	pending []*batch    // in flight, oldest first; only the worker touches it

	waiting   atomic.Pointer[string] // why nothing moves; nil if it does
	applied   atomic.Uint64          // transactions, since the start
	careful   atomic.Uint64          // of them, by the careful path
	bundles   atomic.Uint64          // of them, together with others
	conflicts atomic.Uint64
}

// maxWary bounds worker.wary.
const maxWary = 1023

// run applies until ctx ends or the connection is lost.
func (w *worker) run(ctx context.Context) error {
	w.ctx, w.atOnce, w.bundled = ctx, w.opts.BatchTransactions, w.opts.BatchTransactions
	var receiver sync.WaitGroup
	w.flight = make(chan *batch, inFlight)
	receiver.Go(w.receive)
	stop := context.AfterFunc(ctx, func() { w.socket.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		stop()
		close(w.flight)
		w.socket.SetDeadline(time.Unix(1, 0))
		receiver.Wait()
		w.inbox.close()
	}()
	delay, applied, told := time.Duration(0), uint64(0), ""
	for {
		err := w.step(ctx)
		if n := w.applied.Load(); n != applied { // trying again is no progress
			delay, applied, told = 0, n, ""
		}
		var b *Blocked
		switch {
		case err == nil:
			continue
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case isLocked(err): // for a moment, or for as long as a schema change takes: nobody need do anything
			select {
			case <-time.After(lockedPause):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			continue
		case errors.Is(err, wire.ErrCorrupt):
			b = &Blocked{Reason: "a transaction cannot be read; upgrade pgbridge or make the table equal on both nodes", Err: err}
		case !errors.As(err, &b):
			return fmt.Errorf("apply %s: %w", w.origin, err)
		}
		w.say(b.Error())
		if told != b.Error() {
			told = b.Error()
			w.log.Warn("origin waits", "origin", w.origin.String(), "err", told)
		}
		w.forgetMappings()
		delay = min(max(2*delay, 200*time.Millisecond), 5*time.Second)
		_, resumed := w.pauses.of(w.origin)
		select {
		case <-time.After(delay):
		case <-resumed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// say sets the reason why nothing moves and reports whether it is new.
func (w *worker) say(reason string) bool {
	if reason == "" {
		w.waiting.Store(nil)
		return false
	}
	old := w.waiting.Swap(&reason)
	return old == nil || *old != reason
}

// step applies one more batch, or finds out why not.
func (w *worker) step(ctx context.Context) error {
	if err := w.reap(ctx, inFlight-1); err != nil {
		return err
	}
	if err := w.tidy(ctx); err != nil {
		return err
	}
	if err := w.refresh(ctx); err != nil {
		return err
	}
	if again, err := w.tryParked(ctx); again || err != nil {
		return err
	}
	begun := time.Now()
	if waited, err := w.paused(ctx); waited || err != nil {
		w.idled(begun)
		return err
	}
	if waited, err := w.paced(ctx); waited || err != nil {
		w.idled(begun)
		return err
	}
	if waited, err := w.rested(ctx); waited || err != nil {
		return err
	}
	if ok, err := w.worthwhile(ctx); !ok {
		return err
	}
	begun = time.Now()
	t, err := w.nextTxn(ctx)
	if err != nil || t == nil {
		return err
	}
	err = w.ready(ctx, t)
	if len(w.pending) == 0 {
		w.idled(begun)
	}
	if errors.Is(err, errParkedDue) {
		w.parkedDue = true
		return nil
	}
	if err != nil {
		return err
	}
	if next, _ := w.inbox.peek(w.passed); next != t {
		return nil // while we waited, one in front of it failed
	}
	if len(w.pending) == 0 { // else one in front of it may fail yet, and ask
		for _, p := range w.pasts {
			p.release(t)
		}
	}
	if len(w.pending) == 0 && len(w.lacking) > 0 {
		w.outgrow(t)
	}
	if t.schema {
		return w.changeSchema(ctx, t)
	}
	if t.run != nil {
		return w.applyRun(ctx, t)
	}
	if w.straight > 0 || w.opts.mayMerge(t) {
		if ok, err := w.alone(ctx, t); !ok {
			return err
		}
		all := w.carefulBundle(t)
		w.straight = max(w.straight-len(all), 0)
		if len(all) > 1 {
			return w.carefullyTogether(ctx, all)
		}
		w.apart = max(w.apart-1, 0)
		return w.carefully(ctx, t)
	}
	err = w.gather()
	if len(w.current.txns) > 0 {
		return w.send(ctx)
	}
	var busy *busyError
	var depends *dependsError
	switch {
	case errors.As(err, &depends), isBarred(err):
		if ok, err := w.alone(ctx, t); !ok {
			return err
		}
		return w.orPark(ctx, t, err)
	case errors.Is(err, errSurprise):
		if ok, err := w.alone(ctx, t); !ok {
			return err
		}
		return w.carefully(ctx, t)
	case errors.As(err, &busy):
		return w.yield(ctx, busy)
	case err != nil: // what is in front of t may have failed, and then it comes first
		if ok, err := w.alone(ctx, t); !ok {
			return err
		}
	}
	return err
}

// worthwhile waits until enough transactions are there for the next batch, or those in flight have landed: while the
// server is busy, more in a batch cost it less (bundle.go), and nobody waits for longer. It reports false if what was in
// flight must be seen to first.
func (w *worker) worthwhile(ctx context.Context) (bool, error) {
	for len(w.pending) > 0 {
		enough, changed := w.inbox.enough(min(w.atOnce, bundleFrom<<(2*len(w.pending)), w.opts.BatchTransactions), min(bundleBytes, w.opts.BatchBytes))
		if enough {
			return true, nil
		}
		select {
		case <-w.pending[0].done:
			return false, w.reap(ctx, len(w.pending)-1)
		case <-changed:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
	return true, nil
}

// yield waits until another origin's transaction has released keys. Whoever waits holds nothing: what
// was in flight may have failed, and gives its own keys back only when it is reaped.
func (w *worker) yield(ctx context.Context, busy *busyError) error {
	if err := w.reap(ctx, 0); err != nil {
		return err
	}
	select {
	case <-busy.freed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// alone waits until nothing is in flight and reports whether t is still the next transaction: if one in
// front of it failed, what was behind that one comes first again.
func (w *worker) alone(ctx context.Context, t *txn) (bool, error) {
	if err := w.reap(ctx, 0); err != nil {
		return false, err
	}
	next, _ := w.inbox.peek(w.passed)
	return next == t, nil
}

// nextTxn waits for the next transaction. While batches are in flight it looks after them instead of
// waiting, and returns nil.
func (w *worker) nextTxn(ctx context.Context) (*txn, error) {
	t, changed := w.inbox.peek(w.passed)
	_, paused := w.pauses.of(w.origin)
	for t == nil {
		var landed <-chan struct{}
		if len(w.pending) > 0 {
			landed = w.pending[0].done
		}
		select {
		case <-landed:
			return nil, w.reap(ctx, len(w.pending)-1)
		case <-changed:
			t, changed = w.inbox.peek(w.passed)
		case <-w.parked.wake(w.origin):
			w.parkedDue = true
			return nil, nil
		case <-paused:
			return nil, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return t, nil
}

// passed takes in what the origin had seen when it had published everything before (PROOF.md R22).
func (w *worker) passed(t *txn) { w.heard.hear(w.origin, t.Seq, t.low) }

// ready waits until t may be announced: its dependencies are applied (invariant 3), and its stamp is not
// so far in the future that declaring it would lift everybody's clock (PROOF.md R33).
func (w *worker) ready(ctx context.Context, t *txn) error {
	if err := w.deps(ctx, t); err != nil {
		return err
	}
	for {
		ahead := t.Stamp.Time().Sub(w.opts.Now())
		if ahead <= w.opts.MaxClockSkew {
			return nil
		}
		if err := w.reap(ctx, 0); err != nil {
			return err
		}
		if w.say(fmt.Sprintf("transaction %d is stamped in the future, beyond apply.max_clock_skew of %s; set the clocks of %s and of this node",
			t.Seq, w.opts.MaxClockSkew, w.origin.Node)) {
			w.log.Error("clock skew", "origin", w.origin.String(), "seq", t.Seq, "ahead", ahead)
		}
		select {
		case <-time.After(min(ahead-w.opts.MaxClockSkew, time.Second)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (w *worker) deps(ctx context.Context, t *txn) error {
	if w.opts.NoHold {
		return nil
	}
	if _, _, lacks := w.progress.lacks(t.up, w.origin, w.own); !lacks {
		return nil
	}
	// What is in flight must not wait for our own reaping; and if it has failed, its turn comes first.
	if ok, err := w.alone(ctx, t); !ok {
		return err
	}
	if w.parkedDue {
		return errParkedDue
	}
	ctx, end := w.parked.interruptible(ctx, w.origin)
	defer end()
	return w.progress.hold(ctx, t.up, w.origin, w.own, func(e origin.Entry) {
		w.say(fmt.Sprintf("transaction %d waits for %s:%d, which its author had seen", t.Seq, e.Origin, e.Seq))
	})
}

func (w *worker) unsettled(m *mapping, k wire.KeyHash, t *txn) bool {
	w.absence.settle(w.progress.readBack(w.wal))
	return w.absence.unsettled(tableName{m.local.schema, m.local.name}, k, t.registration(), w.wal.Passed())
}

// mapping returns how the origin's relation fits the local table.
func (w *worker) mapping(r *wire.Relation, id uint32) (*mapping, error) {
	m, err := w.mappingOf(r, id)
	if err == nil && m.barred {
		return nil, barred(w.origin.Node, r.Schema, r.Name)
	}
	return m, err
}

// mappingOf is mapping, also of a table that the origin may not write.
func (w *worker) mappingOf(r *wire.Relation, id uint32) (*mapping, error) {
	if r == nil {
		return nil, fmt.Errorf("%w: relation %d is not described", wire.ErrCorrupt, id)
	}
	m := w.mappings[id]
	var l lag
	if len(w.lag) > 0 {
		l = w.lag.about(r.Schema, r.Name)
	}
	if m != nil && (m.given == r || sameRelation(m.given, r)) && slices.Equal(m.lag, l) {
		m.given = r
		return m, nil
	}
	if err := w.pauses.table(r.Schema, r.Name); err != nil {
		return nil, err
	}
	t, err := w.catalog.tableNow(w.ctx, r.Schema, r.Name)
	if err != nil {
		return nil, err
	}
	fitted, fills := r, []wire.Value(nil)
	if len(l) > 0 {
		fitted, fills = l.adapted(r, t)
	}
	if m, err = newMapping(fitted, t); err != nil {
		return nil, err
	}
	m.given, m.lag, m.fills = r, l, fills
	m.barred = !w.opts.Writers.MayWrite(w.origin.Node, r.Schema, r.Name)
	w.retire(id)
	w.mapped++
	m.id = w.mapped
	w.mappings[id] = m
	w.served = w.served || t.hasher.Served()
	return m, nil
}

func sameRelation(a, b *wire.Relation) bool {
	return a.Schema == b.Schema && a.Name == b.Name && a.ReplicaIdentity == b.ReplicaIdentity &&
		slices.Equal(a.Columns, b.Columns)
}
