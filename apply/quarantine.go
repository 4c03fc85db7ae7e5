package apply

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// Which version of a row exists is decided by its key alone: the later one. Other unique indexes and exclusion constraints
// decide only which of the existing rows are visible (PROOF.md R30): by falling version, each but those that collide with
// one that is. The others are kept in pgbridge.quarantine.
//
// No node works that out as a whole. What is held everywhere instead is: no two visible rows collide, and every kept row
// names a visible one that is later and in its way, its blocker. There is only one such set (by induction from the latest
// row on), so that whoever keeps to this ends with the same rows, in whatever order they came. An arriving version that
// collides is kept, or takes the place of the older ones that it meets (collide.go); a kept row whose blocker has changed
// is looked at again (keeper.go).

// quarantine is what is kept, as the database has it.
type quarantine struct {
	back uint32 // roident under which kept rows come back
	// turn is held by whoever changes what is kept, or the rows of a table of which something is: by an attempt of the
	// careful path, the keeper or a take-back, from before its first statement until its COMMIT is acknowledged. Nobody
	// waits for capture or for a key while he holds it.
	turn chan struct{}
	// epoch grows when a table gets its first kept row: what was planned before must be planned again.
	epoch atomic.Uint64

	// guarded is how many tables there are in tables: for most databases none, which is asked for each row.
	guarded     atomic.Int64
	looseTables atomic.Bool // loose is not empty

	mu     sync.Mutex
	kept   map[wire.KeyHash]*keptRow
	behind map[wire.KeyHash]map[wire.KeyHash]struct{} // by blocker
	tables map[tableName]*keptTable
	// loose are the tables of which the server does not check all uniques for applied rows.
	loose map[tableName]bool
	due   map[wire.KeyHash]struct{} // kept rows to look at
	dirty map[wire.KeyHash]struct{} // keys whose rows have changed
	wake  chan struct{}             // of capacity 1: due or dirty has grown
}

// keptRow is a row in quarantine.
type keptRow struct {
	table      tableName
	key        wire.KeyHash
	version    origin.Version // of no origin: from before the cluster
	xid        uint64         // of the transaction that put it here; 0: this one
	blocker    wire.KeyHash
	constraint string
}

// keptTable counts what makes a table's rows be looked at with more care.
type keptTable struct {
	rows int // kept
	// intents are attempts that may keep its first row, or take-backs that must hear of local deletes.
	intents int
}

func newQuarantine() *quarantine {
	return &quarantine{turn: make(chan struct{}, 1), kept: map[wire.KeyHash]*keptRow{}, behind: map[wire.KeyHash]map[wire.KeyHash]struct{}{},
		tables: map[tableName]*keptTable{}, loose: map[tableName]bool{}, due: map[wire.KeyHash]struct{}{}, dirty: map[wire.KeyHash]struct{}{}, wake: make(chan struct{}, 1)}
}

// openQuarantine reads what is kept. All of it is looked at again: its blockers may have changed since.
func (a *Applier) openQuarantine(ctx context.Context) error {
	q := a.kept
	conn := a.catalog.conn
	err := conn.QueryRow(ctx, `SELECT roident FROM pg_replication_origin WHERE roname = $1`, keeperOriginName(a.opts.Cluster, a.opts.Node)).Scan(&q.back)
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrNotSetUp
	}
	if err != nil {
		return fmt.Errorf("read replication origins: %w", err)
	}
	rows, err := conn.Query(ctx, `SELECT hi, lo, schema, name, origin, epoch, stamp, xid, blocker_hi, blocker_lo, constraint_name FROM pgbridge.quarantine`)
	var hi, lo, epoch, stamp, xid, bhi, blo int64
	var e keptRow
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&hi, &lo, &e.table.schema, &e.table.name, &e.version.Origin.Node, &epoch, &stamp, &xid, &bhi, &blo, &e.constraint}, func() error {
			one := e
			one.key, one.blocker = wire.KeyHash{Hi: uint64(hi), Lo: uint64(lo)}, wire.KeyHash{Hi: uint64(bhi), Lo: uint64(blo)}
			one.version.Origin.Epoch, one.version.Stamp, one.xid = uint32(epoch), origin.Stamp(stamp), uint64(xid)
			q.put(one.key, &one)
			q.due[one.key] = struct{}{}
			return nil
		})
	}
	if hasCode(err, "42P01") {
		err = ErrNotSetUp
	}
	if err != nil {
		return fmt.Errorf("read quarantine: %w", err)
	}
	q.alert()
	return nil
}

// take waits for the turn, which the function that it returns gives back.
func (q *quarantine) take(ctx context.Context) (release func(), err error) {
	select {
	case q.turn <- struct{}{}:
		return func() { <-q.turn }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// guards reports whether rows of the table are kept, or may come to be.
func (q *quarantine) guards(n tableName) bool {
	if q.guarded.Load() == 0 {
		return false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.tables[n] != nil
}

// concerns reports whether the rows of the table must be looked at for others that they collide with.
func (q *quarantine) concerns(t *table) bool {
	if len(t.uniques) == 0 || t.merge != nil {
		return false
	}
	n := tableName{t.schema, t.name}
	if t.unchecked {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.loose[n] = true
		q.looseTables.Store(true)
		return true
	}
	return q.guards(n)
}

// any reports whether any table is guarded.
func (q *quarantine) any() bool { return q.guarded.Load() > 0 }

// isLoose reports whether rows of a table may collide and the server does not say so.
func (q *quarantine) isLoose(n tableName) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.loose[n]
}

// size is how many rows are kept.
func (q *quarantine) size() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.kept)
}

// intend has a table's rows looked at with care until the function that it returns is called.
func (q *quarantine) intend(n tableName) (done func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.table(n).intents++
	q.epoch.Add(1)
	return sync.OnceFunc(func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.table(n).intents--
		q.idle(n)
	})
}

func (q *quarantine) table(n tableName) *keptTable {
	if q.tables[n] == nil {
		q.tables[n] = &keptTable{}
		q.guarded.Store(int64(len(q.tables)))
	}
	return q.tables[n]
}

func (q *quarantine) idle(n tableName) {
	if *q.tables[n] == (keptTable{}) {
		delete(q.tables, n)
		q.guarded.Store(int64(len(q.tables)))
	}
}

// get returns the kept row of a key, nil if there is none. The caller has the turn, and does not change it.
func (q *quarantine) get(k wire.KeyHash) *keptRow {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.kept[k]
}

// put makes e the kept row of a key, none if it is nil; mu is held, or nobody else knows q.
func (q *quarantine) put(k wire.KeyHash, e *keptRow) {
	if old := q.kept[k]; old != nil {
		delete(q.kept, k)
		delete(q.due, k)
		if delete(q.behind[old.blocker], k); len(q.behind[old.blocker]) == 0 {
			delete(q.behind, old.blocker)
		}
		q.tables[old.table].rows--
		defer q.idle(old.table)
	}
	if e == nil {
		return
	}
	q.kept[k] = e
	if q.behind[e.blocker] == nil {
		q.behind[e.blocker] = map[wire.KeyHash]struct{}{}
	}
	q.behind[e.blocker][k] = struct{}{}
	q.table(e.table).rows++
}

// committed takes in what a transaction has changed: what it kept, by key, nil for what it does not keep any more, and the
// keys whose rows it has changed. The caller has the turn.
func (q *quarantine) committed(changes map[wire.KeyHash]*keptRow, touched map[wire.KeyHash]struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for k, e := range changes {
		q.put(k, e)
	}
	for k := range touched {
		q.touchOne(k)
	}
}

// touch says that the rows of these keys have changed, or may have.
func (q *quarantine) touch(keys ...wire.KeyHash) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, k := range keys {
		q.touchOne(k)
	}
}

func (q *quarantine) touchOne(k wire.KeyHash) {
	q.dirty[k] = struct{}{}
	q.alert()
}

// touchAll is touch for a whole table, or for all tables if it is nil.
func (q *quarantine) touchAll(n *tableName) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for k, e := range q.kept {
		if n == nil || e.table == *n {
			q.due[k] = struct{}{}
			q.alert()
		}
	}
}

func (q *quarantine) alert() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// next returns the kept row to look at next, the latest first; nil if there is none. Who calls it has the turn: so
// whoever kept a row behind one that has changed meanwhile has said so.
func (q *quarantine) next() *keptRow {
	q.mu.Lock()
	defer q.mu.Unlock()
	for k := range q.dirty {
		if q.kept[k] != nil {
			q.due[k] = struct{}{}
		}
		for b := range q.behind[k] {
			q.due[b] = struct{}{}
		}
	}
	clear(q.dirty)
	var latest *keptRow
	for k := range q.due {
		if e := q.kept[k]; latest == nil || e.version.Later(latest.version) {
			latest = e
		}
	}
	return latest
}

// pending reports whether next may have something.
func (q *quarantine) pending() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.due) > 0 || len(q.dirty) > 0
}

// lookAgain makes a kept row due, if there is one of that key.
func (q *quarantine) lookAgain(k wire.KeyHash) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.kept[k] != nil {
		q.due[k] = struct{}{}
	}
}

// looked says that a kept row was looked at.
func (q *quarantine) looked(k wire.KeyHash) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.due, k)
}

// of returns the kept rows of a table, the latest first.
func (q *quarantine) of(n tableName) []*keptRow {
	q.mu.Lock()
	defer q.mu.Unlock()
	var all []*keptRow
	for _, e := range q.kept {
		if e.table == n {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b *keptRow) int {
		switch {
		case a.version.Later(b.version):
			return -1
		case b.version.Later(a.version):
			return 1
		}
		return cmp.Or(cmp.Compare(a.key.Hi, b.key.Hi), cmp.Compare(a.key.Lo, b.key.Lo))
	})
	return all
}

// ancient is the version of rows from before the cluster: below all others.
var ancient = origin.Version{Stamp: math.MinInt64}

// Quarantined returns how many rows are kept out of their tables, since later ones are in their way.
func (a *Applier) Quarantined() int { return a.kept.size() }

// returnedBy finds the origin of a row that has come back; lo is an expression for Lo of its key's hash.
func returnedBy(lo string) string {
	return "(SELECT r.id FROM pgbridge.returned r WHERE r.at = c.timestamp AND r.lo = " + lo + ")"
}

// returnedAs finds that and how far the row's own stamp is below its commit's.
func returnedAs(lo string) string {
	return "(SELECT r.id || ' ' || r.behind FROM pgbridge.returned r WHERE r.at = c.timestamp AND r.lo = " + lo + ")"
}

// returned finds the version of a row that has come back.
func (c *carefulRun) returned(l look, row [][]byte, w writer) (look, error) {
	// That it is there names the row exactly, also in a table that its own transaction has made.
	if row[7] == nil {
		l.local.Ancient = true
		return l, nil
	}
	var id uint32
	var behind origin.Stamp
	if _, err := fmt.Sscan(string(row[7]), &id, (*int64)(&behind)); err != nil {
		return l, fmt.Errorf("read row version: %w", err)
	}
	o := c.own
	if id != 0 {
		var ok bool
		if o, ok = c.originOf(id); !ok {
			return l, fmt.Errorf("pgbridge.returned names origin %d, which is not in pgbridge.position", id)
		}
	}
	return c.versioned(l, origin.Version{Stamp: w.stamp - behind, Origin: o}), nil
}

// versioned makes a look that of a row of a known version.
func (c *carefulRun) versioned(l look, v origin.Version) look {
	l.local = conflict.Local{Version: v}
	l.own = v.Origin == c.origin
	e := c.t.up.Get(v.Origin)
	l.seen = l.own || e.Seq > 0 && v.Stamp <= e.Stamp
	return l
}

// keptLook is the look of a row that is kept.
func (c *carefulRun) keptLook(e *keptRow) look {
	k := e.key
	l := look{kept: &k}
	switch {
	case e.version == c.t.version():
		l.mine = true
	case e.version == ancient:
		l.local.Ancient = true
	default:
		l = c.versioned(l, e.version)
	}
	return l
}

// excluding takes the turn if rows of the takes' tables may be kept; the function that it returns gives it back.
func (q *quarantine) excluding(ctx context.Context, due []take) (done func(), err error) {
	if !q.any() || !slices.ContainsFunc(due, func(t take) bool { return q.guards(t.table) }) {
		return func() {}, nil
	}
	return q.take(ctx)
}

// takeKept forgets the kept rows that local deletes beat, and has those looked at that were behind the rows that are gone.
func (b *takebacks) takeKept(ctx context.Context, due []take) error {
	forgotten, touched := map[wire.KeyHash]*keptRow{}, map[wire.KeyHash]struct{}{}
	for _, t := range due {
		if !b.kept.guards(t.table) {
			continue
		}
		rows := b.kept.of(t.table)
		if t.key != nil {
			touched[t.hash] = struct{}{}
			rows = slices.DeleteFunc(rows, func(e *keptRow) bool { return e.key != t.hash })
		}
		for _, e := range rows {
			if !t.version.Later(e.version) {
				continue
			}
			if _, err := b.conn.Exec(ctx, unkeepSQL, int64(e.key.Hi), int64(e.key.Lo)); err != nil {
				return fmt.Errorf("take back a kept row of %s.%s: %w", t.table.schema, t.table.name, err)
			}
			forgotten[e.key] = nil
		}
		if t.key == nil {
			for _, e := range b.kept.of(t.table) {
				touched[e.blocker] = struct{}{}
			}
		}
	}
	b.kept.committed(forgotten, touched)
	return nil
}
