package apply

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/rowkey"
	"github.com/pgbridge/pgbridge/wire"
)

// keeper looks at kept rows whose blockers may have gone, the latest first, and brings them back. It works in a session
// with a replication origin of its own, so that capture does not take the rows for users' writes; they bear the stamps
// that they had, and pgbridge.returned has their origins.
//
// A row that comes back is created, and so the rules of PROOF.md R18 hold: its table is guarded, which makes capture's
// local deletes of it take-backs, before the tombstones are asked, until capture has passed the commit.
type keeper struct {
	*worker                         // of no origin's transactions
	ids     map[origin.Origin]int32 // as in pgbridge.position; 0 is this node
	jobs    chan keeperJob
	frames  chan *wire.Frame // published, as long as there is room
	missed  atomic.Bool      // there was none

	asideMu sync.Mutex
	aside   []*owedRow // to be kept out of their tables

	blockerStatement, returnedStatement, stampStatement *statement

	// Of the goroutine that works:
	run       *carefulRun
	examined  wire.KeyHash
	shapes    map[string]*mapping // of one round, by table and columns
	published ownMappings
	again     map[wire.KeyHash]struct{}
	checks    map[wire.KeyHash]check
	holds     []hold
	// resyncNamed is how far the names of statements are taken by a resync that is to be repeated.
	resyncNamed int
	told        string // what was logged last of a row that cannot come back
	change      wire.Change
	key         []wire.Value
}

// keeperJob is done in the keeper's session; done is of capacity 1.
type keeperJob struct {
	run  func(context.Context) error
	done chan error
}

// check is a row that a local session has written and that may collide with an applied one, since the server checks
// neither against the other: a deferrable constraint is checked when a row is written, against what is visible then.
type check struct {
	m     *mapping // that fits tuple
	tuple []wire.Value
}

// hold guards a table until capture has passed an LSN.
type hold struct {
	lsn  uint64
	done func()
}

const (
	keeperFrames = 64
	// keeperDelay is how long the keeper leaves a row alone that somebody else has locked, or that the server refuses.
	keeperDelay = 200 * time.Millisecond
	// keeperLockTimeout is how long it waits for a row that a user has locked.
	keeperLockTimeout = "500ms"
)

func (a *Applier) openKeeper(ctx context.Context, ids *remotes) error {
	conn, err := a.connect(ctx, "keeper", map[string]string{"lock_timeout": keeperLockTimeout})
	if err != nil {
		return err
	}
	if err := setOrigin(ctx, conn, keeperOriginName(a.opts.Cluster, a.opts.Node)); err != nil {
		return err
	}
	fixed := func(sql string, types ...uint32) *statement { return &statement{sql: sql, types: types} }
	w := &worker{
		origin: a.own, own: a.own, id: a.kept.back, opts: &a.opts, log: a.opts.Logger, progress: a.progress, markers: a.markers, absence: a.absence,
		heard: a.heard, kept: a.kept, owed: a.owed, conn: conn, catalog: a.catalog, digests: rowkey.NewDigests(a.catalog.ask), pasts: map[tableName]*past{},
		beginStatement: fixed("BEGIN"), commitStatement: fixed("COMMIT"), xidStatement: fixed("SELECT pg_current_xact_id()"),
		unkeepStatement: fixed(unkeepSQL, oidInt8, oidInt8), mappings: map[uint32]*mapping{},
	}
	w.planner.w = w
	w.guard.self, w.guard.others, w.guard.ids = w.id, ids.origins, ids.ids
	k := &keeper{blockerStatement: fixed(blockerSQL, oidInt8, oidInt8, oidInt8, oidInt8, oidText),
		returnedStatement: fixed(returnedSQL, oidTimestamptz, oidInt8, oidInt4), stampStatement: fixed(stampSQL, oidTimestamptz), worker: w, ids: map[origin.Origin]int32{a.own: 0}, jobs: make(chan keeperJob), frames: make(chan *wire.Frame, keeperFrames), shapes: map[string]*mapping{},
		published: ownMappings{}, again: map[wire.KeyHash]struct{}{}, checks: map[wire.KeyHash]check{}}
	for i, o := range ids.origins {
		k.ids[o] = int32(ids.ids[i])
	}
	k.run = newCarefulRun(w, []*txn{{origin: a.own}})
	k.run.rank = k.rank
	a.keeper, a.absence.watch = k, a.kept.guards
	return nil
}

// offer hands over an own frame: local sessions may have changed rows that others are kept behind. It does not wait.
func (k *keeper) offer(f *wire.Frame) {
	if !k.kept.any() && !k.kept.looseTables.Load() {
		return
	}
	c := *f
	c.Body = slices.Clone(f.Body)
	select {
	case k.frames <- &c:
	default:
		k.missed.Store(true)
	}
}

// work brings rows back until ctx ends or the connection is lost.
func (k *keeper) work(ctx context.Context) error {
	k.ctx = ctx
	tick := time.NewTimer(keeperDelay)
	defer tick.Stop()
	for {
		var err error
		select {
		case <-k.kept.wake:
		case f := <-k.frames:
			err = k.frame(ctx, f)
		case j := <-k.jobs:
			j.done <- j.run(ctx)
		case <-tick.C:
			for key := range k.again {
				k.kept.lookAgain(key)
			}
			clear(k.again)
		case <-ctx.Done():
		}
		if k.missed.Swap(false) {
			k.kept.touchAll(nil)
		}
		if err == nil && ctx.Err() == nil {
			err = k.settle(ctx)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("bring kept rows back: %w", err)
		}
		passed := k.wal.Passed()
		k.holds = slices.DeleteFunc(k.holds, func(h hold) bool {
			if h.lsn <= passed {
				h.done()
			}
			return h.lsn <= passed
		})
		if len(k.again) > 0 || len(k.holds) > 0 || k.missed.Load() {
			tick.Reset(keeperDelay)
		}
	}
}

// settle looks at all kept rows that are due.
func (k *keeper) settle(ctx context.Context) error {
	if err := k.checkAll(ctx); err != nil {
		return err
	}
	if err := k.keepOwed(ctx); err != nil {
		return err
	}
	var held []func()
	for k.kept.pending() {
		if err := k.run.visible(ctx); err != nil {
			return err
		}
		done, err := k.kept.take(ctx)
		if err != nil {
			return err
		}
		e := k.kept.next()
		if e == nil {
			done()
			break
		}
		held = append(held, k.kept.intend(e.table))
		err = k.attempt(ctx, func() error { return k.examine(ctx, e) })
		if err == nil {
			k.kept.looked(e.key)
		}
		done()
		if err := k.delay(ctx, e, err); err != nil {
			return err
		}
	}
	if len(held) > 0 {
		lsn, err := k.markers.flush(ctx)
		if err != nil {
			return err
		}
		for _, done := range held {
			k.holds = append(k.holds, hold{lsn, done})
		}
	}
	clear(k.run.known)
	for _, m := range k.shapes {
		k.retired.mappings = append(k.retired.mappings, m)
	}
	clear(k.shapes)
	return k.tidy(ctx)
}

// attempt rolls back what f leaves behind when it fails.
func (k *keeper) attempt(ctx context.Context, f func() error) error {
	err := f()
	if err != nil {
		err = errors.Join(err, k.rollBack(ctx, k.conn.PgConn().TxStatus()))
	}
	return err
}

// checkAll sees to the rows that local sessions have written into tables whose uniques the server does not check.
func (k *keeper) checkAll(ctx context.Context) error {
	for hash, one := range k.checks {
		if err := k.run.visible(ctx); err != nil {
			return err
		}
		for {
			done, err := k.kept.take(ctx)
			if err != nil {
				return err
			}
			err = k.attempt(ctx, func() error { return k.check(ctx, hash, one) })
			done()
			if err == nil {
				delete(k.checks, hash)
				break
			}
			unknown := errors.Is(err, errUnknown)
			if err := k.delay(ctx, &keptRow{table: one.m.name(), key: hash}, err); err != nil {
				return err
			}
			if !unknown {
				break // it comes again
			}
		}
	}
	return nil
}

// check lets a visible row meet those that it collides with: the older ones are kept, or it is.
func (k *keeper) check(ctx context.Context, hash wire.KeyHash, one check) error {
	c := k.run
	k.begins(hash, one.m.name(), origin.Version{Stamp: math.MaxInt64, Origin: k.own})
	where, types, ps, err := one.m.keyCondition(one.tuple)
	if err != nil {
		return err
	}
	if err := c.flush(ctx); err != nil {
		return err
	}
	rows, err := k.exec(ctx, "SELECT t.tableoid::text, t.ctid::text FROM "+one.m.local.rows+" t WHERE "+where+" FOR UPDATE", types, ps)
	if err != nil {
		return fmt.Errorf("lock row of %s: %w", one.m.local.quoted, err)
	}
	if len(rows) == 0 {
		return k.rollBack(ctx, k.conn.PgConn().TxStatus())
	}
	row := []rival{{tableoid: string(rows[0][0]), ctid: string(rows[0][1])}}
	if there, err := c.lockRivals(ctx, one.m, row); err != nil || !there {
		return errors.Join(err, k.rollBack(ctx, k.conn.PgConn().TxStatus()))
	}
	if err := c.judgeRivals(one.m, row); err != nil {
		return err
	}
	v := c.versionOf(&row[0])
	c.t.Stamp, c.t.origin = v.Stamp, v.Origin
	tuple := slices.Clone(one.tuple)
	if err := k.readRow(ctx, one.m, tuple, &row[0]); err != nil {
		return err
	}
	rivals, err := c.rivals(ctx, one.m, tuple)
	if err != nil {
		return err
	}
	if b := c.blocker(rivals); b != nil {
		row[0].unique = b.unique
		err = c.hideAll(ctx, one.m, row, b.key)
	} else {
		err = c.hideAll(ctx, one.m, rivals, hash)
	}
	if err != nil {
		return err
	}
	return k.commit(ctx)
}

// readRow gives tuple the values of a row as it stands now.
func (k *keeper) readRow(ctx context.Context, m *mapping, tuple []wire.Value, v *rival) error {
	where, types, ps, err := rowAt(v.tableoid, v.ctid)()
	if err != nil {
		return err
	}
	var cols []string
	var places []int
	for i, li := range m.cols {
		if li >= 0 {
			cols, places = append(cols, asText("t."+m.local.cols[li].quoted)), append(places, i)
		}
	}
	rows, err := k.exec(ctx, "SELECT "+strings.Join(cols, ", ")+" FROM "+m.local.rows+" t WHERE "+where, types, ps)
	if err != nil || len(rows) != 1 {
		return fmt.Errorf("read row of %s: %w", m.local.quoted, errors.Join(err, errUnknown))
	}
	for n, i := range places {
		if tuple[i] = (wire.Value{Format: wire.Text, Data: rows[0][n]}); rows[0][n] == nil {
			tuple[i] = wire.Value{Format: wire.Null}
		}
	}
	return nil
}

// begins opens a transaction about the row of a key, which has version v.
func (k *keeper) begins(key wire.KeyHash, n tableName, v origin.Version) {
	c := k.run
	k.examined = key
	c.t = &txn{Begin: wire.Begin{Stamp: v.Stamp}, origin: v.Origin}
	c.all = []*txn{c.t}
	c.keeps, c.touched, c.rows = map[wire.KeyHash]*keptRow{}, map[wire.KeyHash]struct{}{key: {}}, nil
	c.unsure, c.queue, c.xmax = map[uint32]bool{}, c.queue[:0], 0
	c.guarded = map[tableName]bool{n: true}
	c.push("begin", c.beginStatement, nil)
	c.begun()
}

// delay sees to a row that could not be looked at.
func (k *keeper) delay(ctx context.Context, e *keptRow, err error) error {
	var pg *pgconn.PgError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, errUnknown):
		return k.run.wait(ctx)
	case isBlocked(err), errors.As(err, &pg) && !lost(err):
	default:
		return err
	}
	if !isBlocked(err) && passing(pg.Code) {
		k.log.Debug("kept row is looked at again", "table", e.table.schema+"."+e.table.name, "err", err.Error())
	} else if k.told != err.Error() {
		k.told = err.Error()
		k.log.Warn("kept row cannot come back", "table", e.table.schema+"."+e.table.name, "err", k.told)
	}
	k.kept.looked(e.key)
	k.again[e.key] = struct{}{}
	for name, m := range k.published { // the table may have changed
		k.retired.mappings = append(k.retired.mappings, m)
		delete(k.published, name)
	}
	return nil
}

// examine brings a kept row back if nothing later is in its way, with what that hides, or finds out what is.
func (k *keeper) examine(ctx context.Context, e *keptRow) error {
	c := k.run
	k.begins(e.key, e.table, e.version)
	values, err := c.image(ctx, e.key)
	if err != nil {
		return err
	}
	m, err := k.shape(ctx, e.table, values)
	if err != nil {
		return err
	}
	tuple := make([]wire.Value, len(m.cols))
	for i := range tuple {
		tuple[i] = values[m.local.cols[i].name]
	}
	gone, err := k.superseded(ctx, e, m, tuple)
	if err != nil {
		return err
	}
	if gone {
		c.unkeep(e.key)
		return k.commit(ctx)
	}
	if k.owed.any(e.key) { // older than what is owed (setAside), and what is in the way of that only its author knows
		return k.rollBack(ctx, k.conn.PgConn().TxStatus())
	}
	rivals, err := c.rivals(ctx, m, tuple)
	if err != nil {
		return err
	}
	if b := c.blocker(rivals); b != nil {
		if b.key == e.blocker {
			return k.rollBack(ctx, k.conn.PgConn().TxStatus())
		}
		still := *e
		still.blocker, still.constraint = b.key, b.unique.name
		c.keeps[e.key] = &still
		c.push("note what is in the way", k.blockerStatement, append(append(hashParams(e.key), hashParams(b.key)...), textParam(b.unique.name)))
		return k.commit(ctx)
	}
	if err := c.hideAll(ctx, m, rivals, e.key); err != nil {
		return err
	}
	if err := k.comesBack(m, e, tuple); err != nil {
		return err
	}
	if err := k.commit(ctx); err != nil {
		return err
	}
	k.log.Debug("kept row came back", "table", e.table.schema+"."+e.table.name, "origin", e.version.Origin.String(), "hides", len(rivals))
	return nil
}

const (
	blockerSQL  = `UPDATE pgbridge.quarantine SET blocker_hi = $3, blocker_lo = $4, constraint_name = $5 WHERE hi = $1 AND lo = $2`
	returnedSQL = `INSERT INTO pgbridge.returned (at, lo, id) VALUES ($1, $2, $3) ON CONFLICT (at, lo) DO UPDATE SET id = EXCLUDED.id`
	stampSQL    = `SELECT pg_replication_origin_xact_setup('0/0', $1)`
)

// comesBack queues what writes the row with the version that it had.
func (k *keeper) comesBack(m *mapping, e *keptRow, tuple []wire.Value) error {
	c := k.run
	if err := c.change(m, m.statement("ki", m.insertSQL), tuple, m.insertSet(nil), nil); err != nil {
		return err
	}
	at := int64Param(int64(clampStamp(e.version.Stamp)))
	if e.version != ancient {
		id, ok := k.ids[e.version.Origin]
		if !ok {
			return blocked("a kept row was written by %s, which is not in pgbridge.position", e.version.Origin)
		}
		c.push("note who wrote it", k.returnedStatement,
			[]param{at, int64Param(int64(e.key.Lo)), binaryParam(binary.BigEndian.AppendUint32(nil, uint32(id)))})
	}
	c.unkeep(e.key)
	c.push("set stamp", k.stampStatement, []param{at})
	return nil
}

// commit ends the transaction and tells the quarantine what it has changed.
func (k *keeper) commit(ctx context.Context) error {
	k.run.push("commit", k.run.commitStatement, nil)
	if err := k.run.flush(ctx); err != nil {
		return err
	}
	k.run.committed()
	return nil
}

// superseded reports whether something later than e is known of its key: a row that a local session wrote, which does not
// see kept ones, or a delete of such a row.
func (k *keeper) superseded(ctx context.Context, e *keptRow, m *mapping, tuple []wire.Value) (bool, error) {
	if d, ok := k.absence.tombstone(e.table, e.key); ok && d.Later(e.version) {
		return true, nil
	}
	where, types, ps, err := m.keyCondition(tuple)
	if err != nil {
		return false, err
	}
	rows, err := k.exec(ctx, "SELECT 1 FROM "+m.local.rows+" t WHERE "+where+" FOR UPDATE", types, ps)
	if err != nil {
		return false, fmt.Errorf("lock row of %s: %w", m.local.quoted, err)
	}
	return len(rows) > 0, nil
}

// shape returns how kept rows with these columns fit their table. A column that they lack gets its default.
func (k *keeper) shape(ctx context.Context, n tableName, values map[string]wire.Value) (*mapping, error) {
	name := fmt.Sprint(n, slices.Sorted(maps.Keys(values)))
	if m := k.shapes[name]; m != nil {
		return m, nil
	}
	t, err := k.catalog.tableNow(ctx, n.schema, n.name)
	if err != nil {
		return nil, err
	}
	m := &mapping{local: t, key: t.key, statements: map[string]*statement{}, usable: true}
	for i := range t.cols {
		if _, ok := values[t.cols[i].name]; ok && !t.cols[i].generated {
			m.cols = append(m.cols, i)
		} else if t.isKey(i) {
			return nil, blocked("a kept row of table %s was written when it had another key", t.quoted)
		} else {
			m.cols = append(m.cols, -1)
		}
	}
	k.shapes[name] = m
	return m, nil
}

// rank finds out the version of a visible row that is in the way of the kept one. A local session's row that began behind
// the kept one is later; what is not known of a row leaves it where it is.
func (k *keeper) rank(v *rival) (look, error) {
	c := k.run
	l := look{found: true}
	w, id, known, err := c.writerOf(v.row, v.key)
	switch {
	case err != nil:
		return l, err
	case w.id < c.opts.FirstXID:
		l.local = conflict.Local{Ancient: true}
		l.mine = c.t.version() == ancient
		return l, nil
	case !known || !w.genuine:
		l.mine = true
		return l, nil
	case id == k.kept.back:
		return c.returned(l, v.row, w)
	case id != 0:
		if behind := v.row[6]; behind != nil {
			var n int64
			if _, err := fmt.Sscan(string(behind), &n); err != nil {
				return l, fmt.Errorf("read row version: %w", err)
			}
			w.stamp -= origin.Stamp(max(n, 0))
		}
		o, ok := c.originOf(id)
		if !ok {
			l.mine = true
			return l, nil
		}
		return c.versioned(l, origin.Version{Stamp: w.stamp, Origin: o}), nil
	}
	if e := k.kept.get(k.examined); e != nil && w.id >= e.xid {
		return c.versioned(l, origin.Version{Stamp: max(w.stamp, c.t.Stamp+1), Origin: c.own}), nil
	}
	newest, ok := c.wal.MarkFor(math.MaxUint64)
	if !c.known[w.xmin] && !(ok && w.id < newest) {
		c.unsure[w.xmin] = true
		return l, errUnknown
	}
	if c.wal.Wrote(w.stamp) {
		w.stamp = c.wal.LocalStamp(w.stamp, w.key)
	}
	return c.versioned(l, origin.Version{Stamp: w.stamp, Origin: c.own}), nil
}

// frame says which rows an own frame changes.
func (k *keeper) frame(ctx context.Context, f *wire.Frame) error {
	relations := map[uint32]*wire.Relation{}
	body, err := k.opts.Open.Frame(f)
	if err != nil {
		return err
	}
	recs := wire.NewRecords(body)
	for {
		rec, err := recs.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch rec.Kind {
		case wire.KindRelation:
			r, err := wire.ParseRelation(rec.Payload)
			if err != nil {
				return err
			}
			relations[r.ID] = r
		case wire.KindInsert, wire.KindUpdate, wire.KindDelete:
			if err := k.changed(ctx, rec, relations); err != nil {
				return err
			}
		case wire.KindTruncate:
			_, ids, err := wire.ParseTruncate(rec.Payload)
			if err != nil {
				return err
			}
			for _, id := range ids {
				if r := relations[id]; r != nil {
					k.kept.touchAll(&tableName{r.Schema, r.Name})
				}
			}
		case wire.KindChunk, wire.KindLargeCommit:
			k.kept.touchAll(nil)
		}
	}
}

// changed says which row one change of an own frame changes.
func (k *keeper) changed(ctx context.Context, rec wire.Record, relations map[uint32]*wire.Relation) error {
	if err := k.change.Parse(rec); err != nil {
		return err
	}
	r := relations[k.change.Relation]
	if r == nil {
		return fmt.Errorf("%w: relation %d is not described", wire.ErrCorrupt, k.change.Relation)
	}
	n := tableName{r.Schema, r.Name}
	loose := k.kept.isLoose(n)
	if !loose && !k.kept.guards(n) {
		return nil
	}
	m, err := k.published.of(ctx, k.catalog.tableNow, r)
	if isBlocked(err) || isLocked(err) {
		k.kept.touchAll(&n)
		return nil
	}
	if err != nil {
		return err
	}
	for i, tuple := range [][]wire.Value{k.change.Old, k.change.New} {
		if len(tuple) == 0 {
			continue
		}
		key, err := m.keyOf(k.key, tuple)
		if err == nil {
			k.key = key
			var hash wire.KeyHash
			if hash, err = k.digests.Hash(ctx, m.local.hasher, key); err == nil {
				k.kept.touch(hash)
				if loose && i == 1 {
					k.checks[hash] = check{m, copyStep(nil, m, &k.change).ch.New}
				}
				continue
			}
		}
		if lost(err) && !errors.Is(err, wire.ErrCorrupt) {
			return err
		}
		k.kept.touchAll(&n)
	}
	return nil
}
