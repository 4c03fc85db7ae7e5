package apply

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// A transaction that the server refuses for what is in it would make its whole origin wait until a person acts. It is put
// aside instead, whole (park.go), and so are later ones that touch its rows; all others go on. This file is what the
// workers know of those that are parked; pgbridge.parked has them.

const (
	parkedBytes    = 64 << 20 // of changes, of all that are parked
	parkedKeys     = 500_000  // of rows, in memory
	parkedTxnBytes = 4 << 20  // bytes of changes of one
	// Between two tries of one that nobody asked for; each is twice as long as the one before.
	retryPause, retryPauseMax = time.Minute, time.Hour
	// parkedPoll is how often the table is asked for what an operator wants, while something is parked.
	parkedPoll = 500 * time.Millisecond
)

// reach is what a transaction touches.
type reach struct {
	keys   []wire.KeyHash
	tables []tableName // of keys, and wiped
	wiped  []tableName
}

// parkedTxn is one parked transaction, without its changes.
type parkedTxn struct {
	reach
	origin.Entry
	id     int64 // in the order of parking
	before origin.Entry
	low    origin.Vector
	bytes  int64
	// Guarded by the set's mutex:
	due     time.Time // when it is tried again
	pause   time.Duration
	request string // of an operator
}

// label names a transaction for a person.
func label(e origin.Entry) string { return fmt.Sprintf("%s:%d", e.Origin, e.Seq) }

// parked is the set of parked transactions. A nil one is empty.
type parked struct {
	opts     *Options
	progress *progress
	heard    *hearsay
	count    atomic.Int64 // of entries: most of the time none is there, and nobody needs mu

	mu      sync.Mutex
	entries []*parkedTxn // by id
	keys    map[wire.KeyHash][]*parkedTxn
	wiped   int // how many truncate tables
	bytes   int64
	wakes   map[origin.Origin]chan struct{} // of capacity 1: something of the origin is due; never changed
}

func newParked(opts *Options, p *progress, h *hearsay, origins []origin.Origin) *parked {
	s := &parked{opts: opts, progress: p, heard: h, keys: map[wire.KeyHash][]*parkedTxn{}, wakes: map[origin.Origin]chan struct{}{}}
	for _, o := range origins {
		s.wakes[o] = make(chan struct{}, 1)
	}
	return s
}

func (s *parked) empty() bool { return s == nil || s.count.Load() == 0 }

// has reports whether a transaction is parked.
func (s *parked) has(o origin.Origin, seq uint64) bool {
	if s.empty() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.entries, func(e *parkedTxn) bool { return e.Origin == o && e.Seq == seq })
}

// byID returns a transaction; nil if it is not parked any more.
func (s *parked) byID(id int64) *parkedTxn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.IndexFunc(s.entries, func(e *parkedTxn) bool { return e.id == id }); i >= 0 {
		return s.entries[i]
	}
	return nil
}

// of returns how many transactions of an origin are parked.
func (s *parked) of(o origin.Origin) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := uint64(0)
	for _, e := range s.entries {
		if e.Origin == o {
			n++
		}
	}
	return n
}

// add takes in a transaction; from here on those behind it that touch its rows are parked too. It must come before the
// transaction is said to be applied.
func (s *parked) add(e *parkedTxn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries = append(s.entries, e)
	slices.SortFunc(s.entries, func(a, b *parkedTxn) int { return cmp.Compare(a.id, b.id) })
	for _, k := range e.reach.keys {
		s.keys[k] = append(s.keys[k], e)
	}
	if len(e.wiped) > 0 {
		s.wiped++
	}
	s.bytes += e.bytes
	s.count.Add(1)
	s.limit(e.Origin)
}

// remove forgets a transaction that is applied or discarded. Those that it kept parked are due.
func (s *parked) remove(e *parkedTxn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.entries)
	if s.entries = slices.DeleteFunc(s.entries, func(x *parkedTxn) bool { return x == e }); len(s.entries) == n {
		return
	}
	due := func(x *parkedTxn) {
		x.due = time.Time{}
		s.alert(x.Origin)
	}
	for _, k := range e.reach.keys {
		left := slices.DeleteFunc(s.keys[k], func(x *parkedTxn) bool { return x == e })
		if s.keys[k] = left; len(left) == 0 {
			delete(s.keys, k)
			continue
		}
		due(left[0]) // the others of the row come when that one is through
	}
	if s.wiped > 0 {
		for _, x := range s.entries {
			if x.meets(&e.reach) {
				due(x)
			}
		}
	}
	if len(e.wiped) > 0 {
		s.wiped--
	}
	s.bytes -= e.bytes
	s.count.Add(-1)
	s.limit(e.Origin)
}

// limit tells where what is told of an origin ends now; mu is held.
func (s *parked) limit(o origin.Origin) {
	var oldest *parkedTxn
	for _, e := range s.entries {
		if e.Origin == o && (oldest == nil || e.Seq < oldest.Seq) {
			oldest = e
		}
	}
	if oldest == nil {
		s.heard.park(o, nil)
		s.progress.tellUpTo(nil, o, isParked)
		return
	}
	s.heard.park(o, &oldest.low)
	s.progress.tellUpTo(&oldest.before, o, isParked)
}

// meets reports whether one of two transactions truncates a table that the other touches.
func (r *reach) meets(other *reach) bool {
	in := func(tables []tableName) func(tableName) bool {
		return func(n tableName) bool { return slices.Contains(tables, n) }
	}
	return slices.ContainsFunc(r.wiped, in(other.tables)) || slices.ContainsFunc(other.wiped, in(r.tables))
}

// dependsTold bounds the transactions that before returns.
const dependsTold = 8

// before returns the parked transactions, or some of them, behind which t, which reaches r, must stay: those that touch
// its rows and that its author had, or may have had, seen. What is concurrent is decided by stamps, in any order.
func (s *parked) before(t *txn, r *reach) []*parkedTxn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*parkedTxn
	add := func(e *parkedTxn) {
		if len(found) < dependsTold && (e.Origin == t.origin || t.up.Covers(e.Origin, e.Seq)) && !slices.Contains(found, e) {
			found = append(found, e)
		}
	}
	for _, k := range r.keys {
		for _, e := range s.keys[k] {
			add(e)
		}
	}
	if s.wiped > 0 || len(r.wiped) > 0 {
		for _, e := range s.entries {
			if e.meets(r) {
				add(e)
			}
		}
	}
	return found
}

// touching names a parked transaction that touches a row of a table.
func (s *parked) touching(n tableName, k wire.KeyHash) (name string, ok bool) {
	if s.empty() {
		return "", false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if of := s.keys[k]; len(of) > 0 {
		return label(of[0].Entry), true
	}
	for _, e := range s.entries {
		if slices.Contains(e.wiped, n) {
			return label(e.Entry), true
		}
	}
	return "", false
}

// wide reports whether a whole table is parked, so that keys alone do not tell who depends on it.
func (s *parked) wide() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wiped > 0
}

// room is a Blocked error if no more transactions may be parked.
func (s *parked) room(t *txn, keys int, size int64, why error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	limit := ""
	switch {
	case len(s.entries) >= s.opts.ParkedLimit:
		limit = fmt.Sprintf("%d transactions", s.opts.ParkedLimit)
	case s.bytes+size > parkedBytes:
		limit = fmt.Sprintf("%d bytes", parkedBytes)
	case len(s.keys)+keys > parkedKeys:
		limit = fmt.Sprintf("%d rows", parkedKeys)
	default:
		return nil
	}
	return &Blocked{Reason: fmt.Sprintf("transaction %d of %s cannot be applied here, and no more than %s may be parked; "+
		"see pgbridge parked list, mend the causes and run pgbridge parked retry --all", t.Seq, t.origin, limit), Err: why}
}

// next returns what is to be done next about an origin's parked transactions: the oldest that is due and that no older one
// keeps parked, or that is to be discarded; nil: nothing.
func (s *parked) next(o origin.Origin, now time.Time) (e *parkedTxn, discard bool) {
	if s.empty() {
		return nil, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.entries {
		if e.Origin != o {
			continue
		}
		if e.request == requestDiscard {
			return e, true
		}
		if !e.due.After(now) && !s.kept(e) {
			return e, false
		}
	}
	return nil, false
}

// kept reports whether an older one must be applied before e; mu is held.
func (s *parked) kept(e *parkedTxn) bool {
	for _, k := range e.reach.keys {
		if s.keys[k][0].id < e.id {
			return true
		}
	}
	if s.wiped == 0 {
		return false
	}
	return slices.ContainsFunc(s.entries, func(x *parkedTxn) bool { return x.id < e.id && x.meets(&e.reach) })
}

// failed says that e was tried in vain.
func (s *parked) failed(e *parkedTxn, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.pause = min(max(2*e.pause, retryPause), retryPauseMax)
	e.due, e.request = now.Add(e.pause), ""
}

// wake returns a channel from which one may read when something of o is due.
func (s *parked) wake(o origin.Origin) <-chan struct{} {
	if s == nil {
		return nil
	}
	return s.wakes[o]
}

func (s *parked) alert(o origin.Origin) {
	select {
	case s.wakes[o] <- struct{}{}:
	default:
	}
}

// errParkedDue ends a wait because a parked transaction is due.
var errParkedDue = errors.New("a parked transaction is due")

// interruptible returns a context that ends when something of o is due, and what ends it before.
func (s *parked) interruptible(ctx context.Context, o origin.Origin) (context.Context, func()) {
	if s.empty() || s.of(o) == 0 { // only o's own worker parks its transactions, and that is who waits
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-s.wake(o):
			cancel(errParkedDue)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// The requests of an operator, as pgbridge.parked has them.
const (
	requestRetry   = "retry"
	requestDiscard = "discard"
)

// watch hands operators' requests, and what is due by itself, to the workers until ctx ends.
func (a *Applier) watchParked(ctx context.Context) error {
	tick := time.NewTicker(parkedPoll)
	defer tick.Stop()
	for {
		if !a.parked.empty() {
			if err := a.readRequests(ctx); err != nil {
				return err
			}
			for _, w := range a.workers {
				if e, _ := a.parked.next(w.origin, a.opts.Now()); e != nil {
					a.parked.alert(w.origin)
				}
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (a *Applier) readRequests(ctx context.Context) error {
	a.catalog.mu.Lock()
	defer a.catalog.mu.Unlock()
	rows, err := a.catalog.conn.Query(ctx, `SELECT id, request FROM pgbridge.parked WHERE request IS NOT NULL`)
	if err != nil {
		return fmt.Errorf("read pgbridge.parked: %w", err)
	}
	requests := map[int64]string{}
	var id int64
	var request string
	if _, err := pgx.ForEachRow(rows, []any{&id, &request}, func() error { requests[id] = request; return nil }); err != nil {
		return fmt.Errorf("read pgbridge.parked: %w", err)
	}
	a.parked.mu.Lock()
	defer a.parked.mu.Unlock()
	for _, e := range a.parked.entries {
		if r := requests[e.id]; r != "" && r != e.request {
			e.request, e.due = r, time.Time{}
		}
	}
	return nil
}

// loadParked reads the set back. All of it is due: the reason may have gone meanwhile.
func (a *Applier) loadParked(ctx context.Context) error {
	rows, err := a.catalog.conn.Query(ctx, `SELECT id, origin, epoch, seq, stamp, before_stamp, deps, keys, tables, wiped, length(body)
		FROM pgbridge.parked ORDER BY id`)
	if hasCode(err, "42P01") { // a version before this one has set it up
		return ErrNotSetUp
	}
	if err != nil {
		return fmt.Errorf("read pgbridge.parked: %w", explain(err))
	}
	var node string
	var id, epoch, seq, stamp, before, size int64
	var deps, keys []byte
	var tables, wiped []string
	_, err = pgx.ForEachRow(rows, []any{&id, &node, &epoch, &seq, &stamp, &before, &deps, &keys, &tables, &wiped, &size}, func() error {
		o := origin.Origin{Node: node, Epoch: uint32(epoch)}
		if a.parked.wakes[o] == nil {
			return nil // of a node that is not there any more
		}
		v, err := wire.ParseVectors(deps, 2)
		if err != nil {
			return err
		}
		a.parked.add(&parkedTxn{id: id, Entry: origin.Entry{Origin: o, Seq: uint64(seq), Stamp: origin.Stamp(stamp)},
			before: origin.Entry{Origin: o, Seq: uint64(seq) - 1, Stamp: origin.Stamp(before)}, low: v[1], bytes: size,
			reach: reach{keys: unpackKeys(keys), tables: unpackTables(tables), wiped: unpackTables(wiped)}})
		return nil
	})
	if hasCode(err, "42P01") {
		return ErrNotSetUp
	}
	if err != nil {
		return fmt.Errorf("read pgbridge.parked: %w", err)
	}
	return nil
}

func unpackTables(names []string) []tableName {
	var tables []tableName
	for ; len(names) > 1; names = names[2:] {
		tables = append(tables, tableName{names[0], names[1]})
	}
	return tables
}

func packTables(tables []tableName) []string {
	names := []string{}
	for _, n := range tables {
		names = append(names, n.schema, n.name)
	}
	return names
}

// serverClasses are the classes of SQLSTATE that PostgreSQL itself uses (Appendix A of its documentation) and that do not
// speak of a transaction's data. What is in none of these classes was raised by somebody's trigger.
var serverClasses = map[string]bool{
	"00": true, "01": true, "02": true, "03": true, "08": true, "09": true, "0A": true, "0B": true, "0F": true, "0L": true,
	"0P": true, "0Z": true, "20": true, "21": true, "24": true, "25": true, "26": true, "28": true, "2B": true,
	"2D": true, "2F": true, "34": true, "3B": true, "3D": true, "3F": true, "40": true, "42": true, "53": true, "54": true,
	"55": true, "57": true, "58": true, "72": true, "F0": true, "HV": true, "XX": true,
}

// poison reports whether the server refuses a transaction for what is in it, so that others can go on: a constraint, a
// value that does not fit, a trigger that raises. A missing table, a lock or a full disk would stop all of them.
func poison(err error) *pgconn.PgError {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || lost(err) || len(pg.Code) != 5 {
		return nil
	}
	// A row that is too large for its index is one row's fault.
	if serverClasses[pg.Code[:2]] && pg.Code != "54000" {
		return nil
	}
	return pg
}
