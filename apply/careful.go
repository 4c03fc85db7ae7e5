package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/wire"
)

// errUnknown means that a decision needs what capture has not read yet: roll back, wait for it, look
// again (PROOF.md R4, R13).
var errUnknown = errors.New("capture has not read this yet")

// carefulTries bounds how often a transaction is run again before its origin is said to wait. Each time
// something that was unknown has become known, so that the bound is met only by a server error that
// comes back.
const carefulTries = 8

const (
	// giveWaySQL bounds how long apply waits for a row that a user has locked before it gives up what it holds itself: below
	// deadlock_timeout, after which the server might end the user's transaction instead.
	giveWaySQL = `SELECT set_config('lock_timeout', greatest(1, setting::int / 2)::text, false) FROM pg_settings WHERE name = 'deadlock_timeout'`
	// lockTries bounds how often a transaction gives way like that. Then it waits: where users lock one of its rows after
	// the other, it would never get through. A large transaction does not give way, it would have to begin anew.
	lockTries = 100
)

// carefulRun is one transaction on the careful path, or a bundle of them.
type carefulRun struct {
	*worker
	t *txn // the one whose changes are being decided
	// all are those of the bundle, or t alone. What their authors had seen is the same.
	all []*txn
	// waited: capture has passed a point of the WAL that lies behind the first look, and everything
	// that it has read is visible here.
	waited bool
	known  map[uint32]bool // local writers seen before the last wait: capture has read them
	unsure map[uint32]bool // local writers seen since
	// xmax: ids from here on, with their epoch, began behind the transaction's marker. The first attempt
	// reads it, so that local writers who come again and again are known from then on.
	xmax uint64
	// recalls are the tables whose past must be read back before their rows can be told.
	recalls map[*mapping]map[uint64]bool // and the transactions that wrote these
	// doubted holds, by key, the id of which an attempt could not tell whether it is the row's writer.
	doubted map[wire.KeyHash]uint32
	// Of one attempt:
	rows  map[wire.KeyHash]*rowState // of one window of changes
	queue []queued
	// What must be known of earlier windows' rows: which ones the transaction lost, and which it deleted. A
	// row that it wrote bears its id.
	lost, buried keySet
	wiped        []tableName
	losses       []string // the kinds of the conflicts that were recorded
	bereaved     bool     // it has deleted rows to which others may refer
	// blind: something was unknown, and the attempt only looks on, for what else is.
	blind bool
	// beaten: the rows of tables with large values that the transaction wrote and that stay as they were. Others
	// may rely on what this node's users saw, and must hear of it (PROOF.md R8, R16). told are those of the bundle's
	// earlier transactions.
	beaten lostRows
	told   []wire.Loss
	swarm  swarm
	// wrote says which of all wrote a key last. Only kept for several.
	wrote map[wire.KeyHash]*txn
	// Of merged tables (mergerun.go): the window's rows, and how many of the transaction's writes were met.
	merged map[wire.KeyHash]*mergedRow
	part   conflict.Part
	tries  int // attempts so far
	// caughtUp: capture has read whatever can be looked at.
	caughtUp bool
	// delta: rows and deletes are taken in that another node had (resync.go). What it had seen says which rows are later, and
	// nothing of what a delete's author had.
	delta bool
	// comeback: this node's data were set back, and it is given what came of it since (comeback.go); nil else.
	comeback *comeback
	// deaf: what the origin has not told about what its author saw is taken for not seen (heard.go).
	deaf bool
	// owes are the rows that an attempt leaves as they are (owed.go), by key; paid is what it makes up for.
	owes map[wire.KeyHash]*debt
	paid []*owedRow
	// gaveWay counts the attempts that ended since a user had locked a row.
	gaveWay int
	// bare is why conflicts are recorded without the rows' images; empty: with them.
	bare string
	// makes executes the schema changes of the transaction, if it has some; made is the number of the last one.
	makes func(wire.Record) error
	made  int64
	collisions
}

// rowState is what an attempt knows of one key: first what the server shows, then what the attempt has
// decided and queued.
type rowState struct {
	look
	lost bool // the transaction's writes of this key have lost
}

// queued is a statement that an attempt will execute, in order, when its window is full.
type queued struct {
	what string
	s    *statement
	ps   []param
	// history: it records a conflict.
	history bool
	take    func(rows [][][]byte) // gets what it returns; nil if that does not matter
	row     rowKey                // that it writes; zero if it is none, or many
}

// A window of a transaction's changes is looked at and written in one go.
const (
	windowChanges = 500
	windowBytes   = 1 << 20 // of values; one row may have more
	windowUnsure  = 100_000 // local writers that are unknown before an attempt gives up
)

func newCarefulRun(w *worker, all []*txn) *carefulRun {
	return &carefulRun{worker: w, t: all[0], all: all, known: map[uint32]bool{}, recalls: map[*mapping]map[uint64]bool{}, doubted: map[wire.KeyHash]uint32{}}
}

// final is the last of the transactions.
func (c *carefulRun) final() *txn { return c.all[len(c.all)-1] }

// carefully applies t row by row: it locks each row, looks at what is there, decides by the policy and
// records who lost. Only here does a conflict cost anything.
func (w *worker) carefully(ctx context.Context, t *txn) error {
	return w.orPark(ctx, t, newCarefulRun(w, []*txn{t}).try(ctx))
}

// try runs attempts until one succeeds or something is in the way that time alone does not remove.
func (c *carefulRun) try(ctx context.Context) error {
	w, t := c.worker, c.t
	defer c.unguard()
	var err error
	for tries := 0; tries < carefulTries; tries++ {
		if err = c.attempt(ctx); err == nil {
			return nil
		}
		var pg *pgconn.PgError
		var unheard *unheardError
		var history *historyError
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errUnknown):
		case c.t.schema && (isBlocked(err) || hasCode(err, "55P03")):
			return c.lockedOut(err)
		case hasCode(err, "55P03") && c.gaveWay < lockTries:
			c.gaveWay++
			tries-- // nothing is wrong
		case errors.As(err, &unheard):
			if err := c.listen(ctx, unheard.version); err != nil {
				return err
			}
			continue
		case errors.As(err, &history) && c.bare == "" && !lost(err) && !passing(history.Code):
			c.bare = history.Message
			continue
		case errors.As(err, &pg) && !lost(err):
			w.forgetMappings() // the table may have changed under us
			if c.collided(err) {
				continue
			}
			if !passing(pg.Code) {
				return &Blocked{Reason: fmt.Sprintf("transaction %d of %s is refused by the server", t.Seq, w.origin), Err: err}
			}
		default:
			return err
		}
		if err := c.wait(ctx); err != nil {
			return err
		}
	}
	return &Blocked{Reason: fmt.Sprintf("transaction %d of %s is refused again and again", t.Seq, w.origin), Err: err}
}

// passing reports whether an error may go away by trying again: unique or exclusion violation (a concurrent insert),
// division by zero (an assertion), serialization failure, deadlock, lock not available, and the ones
// that tell of a table that has just changed.
func passing(code string) bool {
	switch code {
	case "23505", "23P01", "22012", "40001", "40P01", "55P03", "0A000", "42703", "42P01":
		return true
	}
	return false
}

// wait lets capture read everything that this server has committed so far, and that become visible.
func (c *carefulRun) wait(ctx context.Context) error {
	lsn, err := c.markers.flush(ctx)
	if err != nil {
		return err
	}
	if err := c.wal.WaitPassed(ctx, lsn); err != nil {
		return err
	}
	for x := range c.unsure {
		c.known[x] = true
	}
	c.waited = true
	if err := c.visible(ctx); err != nil {
		return err
	}
	for m, writers := range c.recalls {
		if err := c.recall(ctx, m, writers); err != nil {
			return err
		}
	}
	clear(c.recalls)
	if c.journal != nil {
		return c.journal.wait(ctx, c.wal.Captured())
	}
	return nil
}

// visible waits until every local transaction that capture has read is visible here: one that waits for
// a synchronous standby may be on every other node already (PROOF.md F2, R14).
func (c *carefulRun) visible(ctx context.Context) error {
	ids := c.wal.RecentXIDs()
	if len(ids) == 0 {
		return nil
	}
	for {
		var xmax int64
		var running []int64
		err := c.conn.QueryRow(ctx, `
			SELECT pg_snapshot_xmax(s)::text::int8, ARRAY(SELECT x::text::int8 FROM pg_snapshot_xip(s) x)
			FROM (SELECT pg_current_snapshot() AS s OFFSET 0) s`).Scan(&xmax, &running)
		if err != nil {
			return fmt.Errorf("read snapshot: %w", err)
		}
		hidden := 0
		for _, x := range ids {
			// The list of those that run ends below the first id that nobody has ended behind.
			if int32(x-uint32(xmax)) >= 0 || slices.ContainsFunc(running, func(r int64) bool { return uint32(r) == x }) {
				hidden++
			}
		}
		if hidden == 0 {
			return nil
		}
		c.say(fmt.Sprintf("transaction %d waits for %d local commits that wait for a synchronous standby", c.t.Seq, hidden))
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// attempt runs the whole transaction once. Unless it returns nil, nothing of it is left.
func (c *carefulRun) attempt(ctx context.Context) (err error) {
	if err := c.refresh(ctx); err != nil {
		return err
	}
	h, done, err := c.exclude(ctx)
	if err != nil {
		return err
	}
	defer done()
	if c.t.schema {
		defer c.ownCatalog()()
	}
	if !c.t.schema {
		if err := c.independent(h); err != nil {
			c.locks.release(h)
			return err
		}
		if err := c.markers.announced(ctx, c.last().entry()); err != nil {
			c.locks.release(h)
			return err
		}
	}
	defer func() {
		if err != nil {
			c.locks.release(h)
			if c.retried == 0 { // else ended does, for those that were applied too
				c.absence.withdraw(c.origin, c.all[0].registration().seq)
			}
		}
	}()
	c.t, c.part = c.all[0], 0
	c.tries++
	c.rows, c.unsure, c.queue = map[wire.KeyHash]*rowState{}, map[uint32]bool{}, c.queue[:0]
	c.lost, c.buried, c.wiped, c.losses, c.bereaved = keySet{}, keySet{}, nil, c.losses[:0], false
	c.blind, c.beaten, c.told, c.swarm = false, lostRows{}, nil, swarm{}
	c.owes, c.paid = nil, nil
	c.push("begin", c.beginStatement, nil)
	if len(c.all) > 1 {
		c.wrote = map[wire.KeyHash]*txn{}
	}
	if (c.t.run != nil || c.gaveWay == lockTries) && !c.t.schema {
		c.push("set time-out", c.patientStatement, nil)
	}
	err = c.changes(ctx)
	if told := c.tell(); err == nil && len(told) > 0 {
		if err = c.flush(ctx); err == nil { // others hear that it lost when it is sure that it does
			err = c.markers.lose(ctx, c.final().entry(), told)
		}
	}
	owes := c.debts() // told was flushed with them
	c.owed.add(owes...)
	if err == nil {
		if c.t.parked == 0 {
			c.inbox.takeMany(len(c.all))
		}
		c.push("commit", c.commitStatement, nil)
		if err = c.flush(ctx); err != nil {
			c.inbox.rewind()
		}
	}
	if err != nil {
		c.owed.drop(owes...)
		return errors.Join(err, c.rollBack(ctx, c.conn.PgConn().TxStatus()))
	}
	c.owed.drop(c.paid...)
	if len(owes) > 0 {
		c.owed.wake()
	}
	for _, n := range c.wiped {
		c.absence.truncate(tombstone{c.t.version(), c.t.Seq}, n)
	}
	c.committed()
	if c.bereaved {
		c.mender.wake()
	}
	c.careful.Add(uint64(len(c.all))) // before whoever waits for the transaction hears of it
	c.conflicts.Add(uint64(len(c.losses)))
	c.kinds.add(c.losses)
	if c.t.parked != 0 {
		c.unparked(h)
		return nil
	}
	landed := make([]landing, len(c.all))
	for i, t := range c.all {
		landed[i].t = t
	}
	landed[0].held, landed[0].tomb, landed[0].buried = h, tombstone{c.t.version(), c.t.Seq}, c.buried.all()
	c.land(landed)
	return nil
}

// turn lets t be the transaction whose changes are decided from here on. What the ones before it have lost, it may win.
func (c *carefulRun) turn(t *txn) {
	if t == c.t {
		return
	}
	c.told, c.beaten, c.t, c.part = c.tell(), lostRows{}, t, 0
	for _, r := range c.rows {
		r.lost = false
	}
}

// tell returns the rows on which the transactions so far lose.
func (c *carefulRun) tell() []wire.Loss {
	if len(c.beaten) == 0 {
		return c.told
	}
	return append(c.told, c.beaten.losses(c.t.version())...)
}

// last is the transaction up to which one marker announces: those that are to go the careful path behind t, too.
func (c *carefulRun) last() *txn {
	final := c.final()
	if c.t.parked != 0 {
		return final
	}
	if t := c.inbox.ahead(c.straight+1, func(t *txn) bool { return t.Seq <= final.Seq || t.run == nil && !t.schema && c.announceable(t) }); t != nil && t.Seq > final.Seq {
		return t
	}
	return final
}

// rollBack ends the transaction that is open, if status, as ReadyForQuery tells it, says that one is.
func (w *worker) rollBack(ctx context.Context, status byte) error {
	if status == 'I' || w.conn.IsClosed() {
		return nil
	}
	if _, err := w.conn.PgConn().Exec(ctx, "ROLLBACK").ReadAll(); err != nil {
		return fmt.Errorf("roll back: %w", err)
	}
	return nil
}

// claim lists every key that the transaction touches (PROOF.md R21). A large one takes them all.
func (c *carefulRun) claim() (*held, error) {
	h := &held{origin: c.origin, whole: c.t.run != nil}
	c.exposed, c.guarded = nil, nil
	if c.t.schema { // it touches tables that may not be here yet
		h.whole = true
		return h, nil
	}
	err := c.each(func(_ *txn, m *mapping, ch *wire.Change) error {
		if m == nil {
			h.whole, h.keys = true, nil
			return nil
		}
		c.touchesTable(m)
		for _, tuple := range [][]wire.Value{ch.Old, ch.New} {
			if len(tuple) > 0 && !h.whole {
				k, err := c.planner.hash(m, tuple)
				if err != nil {
					return err
				}
				h.keys = append(h.keys, k)
			}
		}
		return nil
	}, func(ms []*mapping) error {
		h.whole, h.keys = true, nil
		for _, m := range ms {
			c.touchesTable(m)
		}
		return nil
	})
	return h, err
}

// each walks the transactions' changes; the change is valid during the call only.
func (c *carefulRun) each(row func(*txn, *mapping, *wire.Change) error, truncate func([]*mapping) error) error {
	for _, t := range c.all {
		if err := c.eachOf(t, row, truncate); err != nil {
			return err
		}
	}
	return nil
}

func (c *carefulRun) eachOf(t *txn, row func(*txn, *mapping, *wire.Change) error, truncate func([]*mapping) error) error {
	changes, err := newForeseen(c.worker, t)
	if err != nil {
		return err
	}
	changes.schema = t.schema && c.makes != nil
	return eachChange(&changes, func(rec wire.Record, rels []*wire.Relation, ch *wire.Change) error {
		var ms []*mapping
		for _, rel := range rels {
			m, err := c.mapping(rel, rel.ID)
			if err != nil {
				return err
			}
			if t.schema {
				c.touchesTable(m)
			}
			ms = append(ms, m)
		}
		switch rec.Kind {
		case wire.KindSchema:
			return c.makes(rec)
		case wire.KindTruncate:
			return truncate(ms)
		}
		ms[0].readable(ch)
		return row(t, ms[0], ch)
	})
}

// changes does all the transaction's changes within the open transaction, then the position. What it need not wait
// for is only queued.
func (c *carefulRun) changes(ctx context.Context) error {
	c.begun()
	var pending []step
	size := 0
	steps := func() error {
		err := c.steps(ctx, pending)
		clear(pending)
		pending, size = pending[:0], 0
		return err
	}
	c.makes = func(rec wire.Record) error {
		if err := steps(); err != nil {
			return err
		}
		if c.blind {
			return errUnknown
		}
		s, err := wire.ParseSchema(rec.Payload)
		if err != nil {
			return err
		}
		return c.makeChange(ctx, s)
	}
	err := c.each(func(t *txn, m *mapping, ch *wire.Change) error {
		pending = append(pending, copyStep(t, m, ch))
		if size += pending[len(pending)-1].size(); len(pending) < windowChanges && size < windowBytes {
			return nil
		}
		if err := steps(); err != nil {
			return err
		}
		return c.flush(ctx)
	}, func(ms []*mapping) error {
		if err := steps(); err != nil {
			return err
		}
		if c.blind {
			return errUnknown
		}
		if err := c.flush(ctx); err != nil {
			return err
		}
		for _, m := range ms {
			if err := c.truncate(ctx, m); err != nil {
				return err
			}
		}
		c.lost = keySet{}
		return nil
	})
	if err == nil {
		err = steps()
	}
	if err == nil && c.blind {
		err = errUnknown
	}
	if err == nil {
		err = c.settleOwn(ctx)
	}
	if err == nil {
		err = c.recordLasting()
	}
	if err == nil {
		err = c.bury(ctx)
	}
	if err == nil {
		err = c.pushDebts()
	}
	if err != nil {
		return err
	}
	if len(c.all) > 1 {
		return c.moveOver()
	}
	t := c.t
	if t.parked != 0 {
		c.pushUnpark()
		return nil
	}
	position := c.positionStatement
	if t.schema {
		position = c.underNewSchema()
	}
	c.push(moved, position, []param{
		int64Param(int64(t.Seq)), int64Param(int64(t.Stamp)), int64Param(int64(t.resume)), int64Param(int64(t.Stamp))})
	if t.schema {
		return c.announceChange(ctx)
	}
	return nil
}

// begun asks from which id on transactions began behind t's marker, which stands in the WAL.
func (c *carefulRun) begun() {
	if c.xmax != 0 {
		return
	}
	later := uint64(1)
	if c.t.schema || c.made != 0 { // its marker comes last, or behind its id, so that nobody is known to have begun behind it
		later = unannounced
	}
	// An id that is taken now, not a snapshot's xmax: above that one may run what has its commit record
	// in the WAL already.
	c.queue = append(c.queue, queued{what: "take a transaction id", s: c.xidStatement, take: func(rows [][][]byte) {
		own, _ := strconv.ParseUint(string(rows[0][0]), 10, 64) // the server's own number
		c.xmax = own + later
	}})
}
