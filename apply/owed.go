package apply

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// An update that leaves a large value unchanged may win over a row that is not the one its author changed (PROOF.md R16):
// the value that it left is not here. Then the row stays as it is, and is owed: pgbridge.owed says so in the transaction's
// own commit, and the author's node is asked to write the row again in full, by an ordinary write behind whatever it has
// written before (resend.go). What else the transaction did is applied.
//
// Until then the row here is not the latest version that this node has applied, and so
//
//   - no update that leaves a value unchanged may take it from there, unless the row is later than what is owed
//     (carefulRun.trueBase),
//   - others hear that the transaction lost here (heard.go), and are not told that it has been seen (unseen.go): users here
//     go on from a row that it did not make,
//   - this node does not write the row again for others who ask it for that (resend.go).
//
// It is over when a later version of the row has been applied, or the author's node has answered and what stood in its
// stream before the answer is applied.
//
// The author's node may keep the row out of its table meanwhile, since a later row has a value that must be unique (quarantine.go). It
// cannot write it again then, and says so: the older version goes out of the table here, too, and does not come back before the row
// is owed no more (keeper.setAside).

// owedRow is a row that a transaction should have written.
type owedRow struct {
	id     int64
	of     origin.Entry // the transaction
	before origin.Entry // what was applied of its origin in front of it
	table  tableName
	key    []byte // as JSON
	hash   wire.KeyHash
	since  time.Time

	asked  bool
	frames uint64        // of the origin that had arrived by then
	need   origin.Vector // once that is applied, the row is here; nil: there is no answer yet
	kept   origin.Vector // once that is applied, the row is kept out of the table, as its author does; nil: nothing says so
	aside  bool          // its author keeps it out of its table, and so does this node
	gone   bool          // it is not owed any more
}

func (e *owedRow) version() origin.Version {
	return origin.Version{Stamp: e.of.Stamp, Origin: e.of.Origin}
}

// owed are the rows that are owed to this node. It is safe for concurrent use; a nil one is empty.
type owed struct {
	progress *progress
	count    atomic.Int64
	woke     chan struct{} // of capacity 1: there are new ones, or answers

	mu       sync.Mutex
	rows     map[wire.KeyHash][]*owedRow
	ids      map[int64]*owedRow
	order    map[origin.Origin][]*owedRow // by before; those that are gone stay until they come to the front
	fresh    []*owedRow                   // that were not asked for yet
	answered []*owedRow
	aside    []*owedRow // whose authors keep them out of their tables, and that are not kept out here yet
}

func newOwed(p *progress) *owed {
	return &owed{progress: p, woke: make(chan struct{}, 1), rows: map[wire.KeyHash][]*owedRow{}, ids: map[int64]*owedRow{},
		order: map[origin.Origin][]*owedRow{}}
}

// add takes rows in. It must come before the commit that says so: from here on markers do not tell that the transactions
// have been seen.
func (o *owed) add(rows ...*owedRow) {
	if len(rows) == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range rows {
		o.rows[e.hash] = append(o.rows[e.hash], e)
		o.ids[e.id] = e
		o.fresh = append(o.fresh, e)
		order := o.order[e.of.Origin]
		at := len(order)
		for at > 0 && order[at-1].before.Seq > e.before.Seq {
			at--
		}
		o.order[e.of.Origin] = slices.Insert(order, at, e)
		o.limit(e.of.Origin)
	}
	o.count.Add(int64(len(rows)))
}

// drop takes rows out, if they are there.
func (o *owed) drop(rows ...*owedRow) {
	if len(rows) == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range rows {
		if e.gone {
			continue
		}
		e.gone = true
		left := slices.DeleteFunc(o.rows[e.hash], func(x *owedRow) bool { return x == e })
		if o.rows[e.hash] = left; len(left) == 0 {
			delete(o.rows, e.hash)
		}
		delete(o.ids, e.id)
		o.count.Add(-1)
		o.limit(e.of.Origin)
	}
}

// limit tells where what is told of an origin ends now; mu is held.
func (o *owed) limit(of origin.Origin) {
	order := o.order[of]
	for len(order) > 0 && order[0].gone {
		order = order[1:]
	}
	if o.order[of] = order; len(order) == 0 {
		delete(o.order, of)
		o.progress.tellUpTo(nil, of, isOwed)
		return
	}
	o.progress.tellUpTo(&order[0].before, of, isOwed)
}

// any reports whether any of the keys is owed.
func (o *owed) any(keys ...wire.KeyHash) bool {
	if o == nil || o.count.Load() == 0 {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.ContainsFunc(keys, func(k wire.KeyHash) bool { return len(o.rows[k]) > 0 })
}

// of returns what is owed of a key.
func (o *owed) of(k wire.KeyHash) []*owedRow {
	if o == nil || o.count.Load() == 0 {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.rows[k])
}

// unasked returns what has not been asked for yet; again: everything that has no answer. The oldest come first.
func (o *owed) unasked(again bool) []*owedRow {
	o.mu.Lock()
	defer o.mu.Unlock()
	rows := o.fresh
	if o.fresh = nil; again {
		rows = slices.Collect(maps.Values(o.ids))
	}
	rows = slices.DeleteFunc(rows, func(e *owedRow) bool { return e.gone || e.need != nil })
	slices.SortFunc(rows, func(a, b *owedRow) int { return cmp.Compare(a.id, b.id) })
	return rows
}

// answer takes in that a request was answered; need is what stood in front of the answer.
func (o *owed) answer(id int64, need origin.Vector) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e := o.ids[id]; e != nil && e.need == nil {
		e.need = need
		o.answered = append(o.answered, e)
		o.wake()
	}
}

// isKept takes in that the author of a row keeps it out of its table; need is what stood in front of that.
func (o *owed) isKept(id int64, need origin.Vector) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e := o.ids[id]; e != nil && e.need == nil {
		if e.kept == nil {
			o.aside = append(o.aside, e)
		}
		e.kept = need
		o.wake()
	}
}

func (o *owed) wake() {
	select {
	case o.woke <- struct{}{}:
	default:
	}
}

// settled returns the rows whose answers have been reached, until they are dropped; waits: others have answers that have
// not.
func (o *owed) settled(own origin.Origin) (done []*owedRow, waits bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answered = slices.DeleteFunc(o.answered, func(e *owedRow) bool { return e.gone })
	for _, e := range o.answered {
		if _, _, lacks := o.progress.lacks(e.need, origin.Origin{}, own); !lacks {
			done = append(done, e)
		}
	}
	return done, len(done) < len(o.answered)
}

// isAside notes that a row is kept out of its table here, too.
func (o *owed) isAside(e *owedRow) {
	o.mu.Lock()
	defer o.mu.Unlock()
	e.aside = true
}

// toKeep takes out the rows that are to be kept out of their tables now; waits: there are others, which are to be later.
func (o *owed) toKeep(own origin.Origin) (rows []*owedRow, waits bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.aside = slices.DeleteFunc(o.aside, func(e *owedRow) bool {
		_, _, lacks := o.progress.lacks(e.kept, origin.Origin{}, own)
		if lacks && !e.gone && e.need == nil {
			return false
		}
		if e.kept = nil; !lacks && !e.gone && e.need == nil {
			rows = append(rows, e)
		}
		return true
	})
	return rows, len(o.aside) > 0
}

// ---- the careful path ----

// owedLimit bounds the rows that are owed, which are in memory.
const owedLimit = 100_000

// debt is a row that an attempt leaves as it is, since it cannot know what its transaction made of it.
type debt struct {
	t     *txn
	m     *mapping
	tuple []wire.Value
	row   *owedRow // once its statement has been executed
}

// owe leaves the row of key k as it is; tuple is what the transaction makes of it, without the values that it leaves
// unchanged.
func (c *carefulRun) owe(m *mapping, tuple []wire.Value, k wire.KeyHash) error {
	if c.t.parked != 0 {
		return blocked("transaction %d leaves a large value of table %s unchanged that is another one here; "+
			"such values only come along with ALTER TABLE %s REPLICA IDENTITY FULL", c.t.Seq, m.local.quoted, m.local.quoted)
	}
	if c.owed.count.Load()+int64(len(c.owes)) >= owedLimit {
		return blocked("transaction %d leaves a large value of table %s unchanged that is another one here, and no more than %d rows may be asked for "+
			"(pgbridge.owed); let the nodes that owe them run, or run ALTER TABLE %s REPLICA IDENTITY FULL", c.t.Seq, m.local.quoted, owedLimit, m.local.quoted)
	}
	if c.owes == nil {
		c.owes = map[wire.KeyHash]*debt{}
	}
	c.owes[k] = &debt{t: c.t, m: m, tuple: tuple}
	c.beaten.add(m.tableHash(), m.local.hasher.Shared(k))
	return nil
}

// owing reports whether the transaction itself has left the row of key k as it is.
func (c *carefulRun) owing(k wire.KeyHash) bool { return c.owes[k] != nil && c.owes[k].t == c.t }

// stale reports whether a later version of the row of key k than the one that is here is owed.
func (c *carefulRun) stale(k wire.KeyHash, r *rowState) bool {
	if c.owes[k] != nil {
		return true
	}
	for _, e := range c.owed.of(k) {
		if r.local.Ancient || r.local.Absent || e.version().Later(r.local.Version) {
			return true
		}
	}
	return false
}

// pay notes that the transaction makes the row of key k what it is, or deletes it: nothing older is owed any more.
func (c *carefulRun) pay(k wire.KeyHash) {
	delete(c.owes, k)
	for _, e := range c.owed.of(k) {
		if c.t.version().Later(e.version()) && !slices.Contains(c.paid, e) {
			c.paid = append(c.paid, e)
		}
	}
}

// pushDebts queues what the attempt owes, and what it has paid.
func (c *carefulRun) pushDebts() error {
	rows := map[wire.KeyHash]*owedRow{}
	for k, d := range c.owes {
		rows[k] = c.owedRow(k, d)
	}
	if len(c.paid) > 0 {
		c.push("note that rows are not owed any more", c.payStatement, []param{paidParam(c.paid)})
	}
	for k, d := range c.owes {
		if err := c.pushDebt(rows[k], d); err != nil {
			return err
		}
	}
	return nil
}

const paySQL = "DELETE FROM pgbridge.owed WHERE id = ANY ($1)"

func paidParam(paid []*owedRow) param {
	var a array
	a.reset()
	for _, e := range paid {
		a.add(binary.BigEndian.AppendUint64(nil, uint64(e.id)), false)
	}
	return binaryParam(a.value(oidInt8))
}

// owedRow is what is owed of key k. What the same origin owed of it before is part of that.
func (c *carefulRun) owedRow(k wire.KeyHash, d *debt) *owedRow {
	e := &owedRow{of: d.t.entry(), before: c.progress.vector().Get(c.origin), table: d.m.name(), hash: k, since: time.Now()}
	e.before.Origin = c.origin
	for _, older := range c.owed.of(k) {
		if older.of.Origin != c.origin {
			continue
		}
		if older.before.Seq < e.before.Seq {
			e.before = older.before
		}
		if e.since = older.since; !slices.Contains(c.paid, older) {
			c.paid = append(c.paid, older)
		}
	}
	return e
}

func (c *carefulRun) pushDebt(e *owedRow, d *debt) error {
	ps, err := d.m.params(nil, d.tuple, d.m.key)
	if err != nil {
		return err
	}
	ps = append(ps, int64Param(int64(d.t.Seq)), int64Param(int64(d.t.Stamp)), int64Param(int64(e.before.Seq)), int64Param(int64(e.before.Stamp)),
		binaryParam(packKeys([]wire.KeyHash{e.hash})))
	s := d.m.statement("kw", func() (string, []uint32) { return d.m.owedSQL(c.origin) })
	c.queue = append(c.queue, queued{what: "note that a row of " + d.m.local.quoted + " is owed", s: s, ps: ps, take: func(rows [][][]byte) {
		if len(rows) == 1 {
			fmt.Sscan(string(rows[0][0]), &e.id) // the server's own number
			e.key = slices.Clone(rows[0][1])
			d.row = e
		}
	}})
	return nil
}

// owedSQL notes that a row is owed; the parameters are the key, the transaction's seq and stamp, those in front of it, and
// the key's hash.
func (m *mapping) owedSQL(o origin.Origin) (string, []uint32) {
	var where strings.Builder
	types := m.local.whereKey(&where, nil)
	var names []string
	for n, k := range m.local.key {
		names = append(names, fmt.Sprintf("$%d AS %s", n+1, m.local.cols[k].quoted))
	}
	n := len(types)
	sql := fmt.Sprintf("INSERT INTO pgbridge.owed (origin, epoch, schema, name, seq, stamp, before_seq, before_stamp, hash, key, writer) "+
		"SELECT %s, %d, %s, %s, $%d, $%d, $%d, $%d, $%d, row_to_json(k.*), (SELECT t.xmin::text FROM %s t WHERE %s) FROM (SELECT %s) k RETURNING id, key",
		literal(o.Node), o.Epoch, literal(m.local.schema), literal(m.local.name), n+1, n+2, n+3, n+4, n+5, m.local.rows, where.String(), strings.Join(names, ", "))
	return sql, append(types, oidInt8, oidInt8, oidInt8, oidInt8, oidBytea)
}

// debts are the rows that the attempt owes.
func (c *carefulRun) debts() []*owedRow {
	var rows []*owedRow
	for _, d := range c.owes {
		if d.row != nil {
			rows = append(rows, d.row)
		}
	}
	return rows
}

// ---- a start, and status ----

// loadOwed reads back what is owed. All of it is asked for again.
func (a *Applier) loadOwed(ctx context.Context) error {
	rows, err := a.catalog.conn.Query(ctx, `SELECT id, origin, epoch, seq, stamp, before_seq, before_stamp, schema, name, key::text, hash, since
		FROM pgbridge.owed ORDER BY id`)
	if err != nil {
		return fmt.Errorf("read pgbridge.owed: %w", explain(err))
	}
	var node, schema, name, key string
	var id, epoch, seq, stamp, beforeSeq, beforeStamp int64
	var hash []byte
	var since time.Time
	_, err = pgx.ForEachRow(rows, []any{&id, &node, &epoch, &seq, &stamp, &beforeSeq, &beforeStamp, &schema, &name, &key, &hash, &since}, func() error {
		o := origin.Origin{Node: node, Epoch: uint32(epoch)}
		a.owed.add(&owedRow{id: id, of: origin.Entry{Origin: o, Seq: uint64(seq), Stamp: origin.Stamp(stamp)},
			before: origin.Entry{Origin: o, Seq: uint64(beforeSeq), Stamp: origin.Stamp(beforeStamp)},
			table:  tableName{schema, name}, key: []byte(key), hash: unpackKeys(hash)[0], since: since})
		return nil
	})
	if hasCode(err, "42P01") {
		return ErrNotSetUp
	}
	if err != nil {
		return fmt.Errorf("read pgbridge.owed: %w", err)
	}
	return nil
}

// Owed returns how many rows other nodes owe this one: they wait for a node to write them again in full. since is when the
// oldest of them came, and from the node that is named: of those that no node keeps out of its table meanwhile; none if node is "".
func (a *Applier) Owed() (rows int, node string, since time.Time) {
	a.owed.mu.Lock()
	defer a.owed.mu.Unlock()
	for _, e := range a.owed.ids {
		if !e.aside && (node == "" || e.since.Before(since)) {
			node, since = e.of.Origin.Node, e.since
		}
	}
	return len(a.owed.ids), node, since
}
