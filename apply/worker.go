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
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/rowkey"
	"github.com/pgbridge/pgbridge/wire"
)

// inFlight is how many batches may be on their way to the server: one that it executes, one that waits
// for it, one that is being written.
const inFlight = 3

// worker applies the transactions of one origin, in order, through one connection that has the origin's
// replication origin set. The optimistic path is in this file, the careful one in careful.go.
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
	heard    *hearsay
	policy   conflict.Policy
	inbox    *inbox

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
	upcoming []*txn // scratch: those that may become a bundle

	// Between two transactions of a batch stands one COMMIT AND CHAIN, which is cheaper than a COMMIT and a
	// BEGIN.
	beginMessages, chainMessages, commitMessages []byte
	bundleMessages                               []byte // in front of a bundle's rows

	positionStatement, tombstoneStatement         *statement
	bundleStatement, impatientStatement           *statement
	journalStatement, journalBaseStatement        *statement
	beginStatement, commitStatement, xidStatement *statement
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
}

// landing is what must happen when a transaction's COMMIT is acknowledged.
type landing struct {
	t      *txn
	held   *held
	tomb   tombstone
	buried []wire.KeyHash
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
		select {
		case <-time.After(delay):
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
	if ok, err := w.worthwhile(ctx); !ok {
		return err
	}
	t, err := w.nextTxn(ctx)
	if err != nil || t == nil {
		return err
	}
	if err := w.ready(ctx, t); err != nil {
		return err
	}
	for _, p := range w.pasts {
		p.release(t)
	}
	if next, _ := w.inbox.peek(w.passed); next != t {
		return nil // while we waited, one in front of it failed
	}
	if t.run != nil {
		return w.applyRun(ctx, t)
	}
	if w.straight > 0 || w.mayMerge(t) {
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
	switch {
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
	return w.progress.hold(ctx, t.up, w.origin, w.own, func(e origin.Entry) {
		w.say(fmt.Sprintf("transaction %d waits for %s:%d, which its author had seen", t.Seq, e.Origin, e.Seq))
	})
}

// gather plans transactions into a new batch until one is not ready, does not fit, or cannot go the
// optimistic path; the error says why if it is the first.
func (w *worker) gather() error {
	w.current = &batch{done: make(chan struct{})}
	w.planner.out = w.planner.out[:0]
	for len(w.current.txns) < min(w.atOnce, w.opts.BatchTransactions) && len(w.planner.out) < w.opts.BatchBytes {
		t, _ := w.inbox.peek(w.passed)
		if t == nil || t.run != nil {
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
	if w.kept.epoch.Load() != p.epoch { // some of its tables may be guarded by now
		w.locks.release(l.held)
		return errSurprise
	}
	if len(p.print.creates) > 0 && w.absence.create(registration{w.origin, t.Seq}, t.version(), p.print.creates...) {
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

// launch hands the batch to the receiver, which expects the answers in this order.
func (w *worker) launch(b *batch) {
	w.pending = append(w.pending, b)
	w.flight <- b
}

func (w *worker) writeAfter(ctx context.Context, marked <-chan markReply, out []byte) error {
	select {
	case r := <-marked:
		if r.err != nil {
			return r.err
		}
	case <-ctx.Done():
		return context.Cause(ctx)
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
			failure = pgconn.ErrorResponseToPgError(m)
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

func (w *worker) unsettled(m *mapping, k wire.KeyHash, t *txn) bool {
	_, low := w.wal.Vectors()
	w.absence.settle(low)
	return w.absence.unsettled(tableName{m.local.schema, m.local.name}, k, registration{w.origin, t.Seq}, w.wal.Passed())
}

// mapping returns how the origin's relation fits the local table.
func (w *worker) mapping(r *wire.Relation, id uint32) (*mapping, error) {
	if r == nil {
		return nil, fmt.Errorf("%w: relation %d is not described", wire.ErrCorrupt, id)
	}
	m := w.mappings[id]
	if m != nil && (m.remote == r || sameRelation(m.remote, r)) {
		m.remote = r
		return m, nil
	}
	t, err := w.catalog.table(w.ctx, r.Schema, r.Name)
	if err != nil {
		return nil, err
	}
	if m, err = newMapping(r, t); err != nil {
		return nil, err
	}
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
