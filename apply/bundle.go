package apply

import (
	"encoding/binary"
	"errors"
	"io"
	"math"
	"slices"

	"github.com/pgbridge/pgbridge/wire"
)

// What a commit costs, and a position that moves, is most of what a small transaction costs the server. Under a
// backlog, neighbouring transactions of one origin are therefore applied as one local transaction, a bundle: readers
// see them at once, and so still no part of any and none before its predecessors. A row that several of them change is
// written once, as the last leaves it, and rows of one kind go out as a run.
//
// PostgreSQL keeps one stamp for all rows of a bundle: that of its last transaction, which is never below a row's own.
// The guard may then take a covered row for one that is not, never the other way round. Who must know a row's own stamp,
// to decide a conflict or to take it back, finds it in pgbridge.bundle, which is written with the rows and stays until
// nobody can ask any more (sweep.go).

const (
	// bundleFrom is how many transactions must wait for a bundle to be made: fewer are as fast by themselves, and keep
	// their commits.
	bundleFrom = 8
	// bundleRows and bundleBytes bound a bundle: its rows are locked while it is applied.
	bundleRows  = 1000
	bundleBytes = 256 << 10
	// smallRows and smallBytes bound a transaction that is part of one: keeping the stamps of more rows costs more than a
	// commit.
	smallRows  = 64
	smallBytes = 16 << 10
)

// bundle is the net effect of transactions, while it is put together.
type bundle struct {
	txns   []*txn
	rows   []bundled
	values []wire.Value      // of rows; their bytes are those of the transactions
	at     map[uint64]int32  // place of a key's row, by the key's Lo
	undo   []bundledBefore   // rows that the last transaction changed further
	begun  int               // how many rows there were before it
	tombs  []tombstoneParams // what the transactions have deleted
	bucket []bucket          // scratch
	stamps rowStamps         // scratch
}

// bundled is the net effect on one row.
type bundled struct {
	kind       wire.Kind
	m          *mapping
	k          wire.KeyHash
	image, key []wire.Value // the new row, none of a deleted one; what holds the key of one that is there
	low        bool         // it leaves TOAST values unchanged (R16)
	last       int          // place of the transaction that changed it last
}

type bundledBefore struct {
	place int32
	row   bundled
}

type tombstoneParams struct {
	t    *txn
	keys []wire.KeyHash
}

// bucket is a set of rows that go out as a run.
type bucket struct {
	m    *mapping
	low  bool
	set  []int
	rows []int32
}

func (b *bundle) reset() {
	clear(b.txns)
	clear(b.rows)
	clear(b.values)
	clear(b.tombs)
	clear(b.undo)
	b.txns, b.rows, b.values, b.tombs, b.undo = b.txns[:0], b.rows[:0], b.values[:0], b.tombs[:0], b.undo[:0]
	if b.at == nil {
		b.at = map[uint64]int32{}
	}
	clear(b.at)
}

// fits reports whether t may follow on the bundle's transactions.
func (b *bundle) fits(t *txn) bool {
	if len(b.txns) == 0 {
		return true
	}
	return len(b.rows) < bundleRows && t.joins(b.txns[0])
}

// joins reports whether t can be part of the bundle that first begins: what its author had seen, and so its guard, is the
// same, and the stamps are near enough to be told apart by 32 bits.
func (t *txn) joins(first *txn) bool {
	return t.Stamp-first.Stamp < math.MaxInt32 && t.up.Equal(first.up) && t.low.Equal(first.low)
}

// bundle adds t to the bundle; its footprint is in p.print. It reports false, and changes nothing, if t cannot be part
// of one: whoever plans it by itself finds out the reason.
func (p *planner) bundle(t *txn) bool {
	b := &p.b
	p.t, p.large = t, false
	p.epoch = p.w.kept.epoch.Load()
	p.resetPrint()
	b.undo, b.begun = b.undo[:0], len(b.rows)
	b.txns = append(b.txns, t)
	changes, err := newForeseen(p.w, t)
	if err == nil {
		for {
			rec, relations, more := changes.next()
			if more != nil {
				if errors.Is(more, io.EOF) {
					return true
				}
				break
			}
			if len(b.rows) == b.begun+smallRows || !p.bundleChange(rec, relations) {
				break
			}
		}
	}
	p.unbundle()
	return false
}

// unbundle takes the last transaction out again.
func (p *planner) unbundle() {
	b := &p.b
	for i := len(b.undo) - 1; i >= 0; i-- { // a row may have been changed twice
		b.rows[b.undo[i].place] = b.undo[i].row
	}
	for i := b.begun; i < len(b.rows); i++ {
		delete(b.at, b.rows[i].k.Lo)
	}
	b.rows, b.txns, b.undo = b.rows[:b.begun], b.txns[:len(b.txns)-1], b.undo[:0]
}

// bundleChange takes one change in; it reports false if the transaction must go by itself.
func (p *planner) bundleChange(rec wire.Record, relations map[uint32]*wire.Relation) bool {
	if rec.Kind == wire.KindTruncate || p.change.Parse(rec) != nil {
		return false
	}
	c := &p.change
	m, err := p.w.mapping(relations[c.Relation], c.Relation)
	if err != nil || m.local.ordered || m.local.merge != nil || p.w.kept.concerns(m.local) || !m.usable && rec.Kind != wire.KindInsert {
		return false
	}
	m.readable(c)
	if m.bereaves(rec.Kind, c) {
		return false
	}
	r := bundled{kind: rec.Kind, m: m, last: len(p.b.txns) - 1}
	switch rec.Kind {
	case wire.KindInsert:
		if p.w.opts.Rows != nil && hasUnchanged(c.New) {
			return false
		}
		r.image = c.New
	case wire.KindUpdate:
		if len(c.New) != len(m.cols) || m.rekeyed(c) {
			return false
		}
		r.image, r.key = c.New, c.New
		if len(c.Old) > 0 {
			r.key = c.Old
		}
	case wire.KindDelete:
		r.key = c.Old
	}
	keyed := r.key
	if keyed == nil {
		keyed = r.image
	}
	if r.k, err = p.hash(m, keyed); err != nil {
		return false
	}
	place, again := p.b.at[r.k.Lo]
	if again {
		return p.rebundle(place, r)
	}
	if rec.Kind == wire.KindUpdate {
		if m.local.respells {
			return false
		}
		if r.low = fillUnchanged(c); r.low && p.w.unsettled(m, r.k, p.t) {
			return false
		}
		if p.set = m.set(p.set, c.New, false); !m.writable(p.set, false) {
			return false
		}
	}
	r.image, r.key = p.b.keep(r.image), p.b.keep(r.key)
	p.b.at[r.k.Lo] = int32(len(p.b.rows))
	p.b.rows = append(p.b.rows, r)
	p.footprint(&r)
	return true
}

// rebundle lets the row at a place be changed once more, by r. What several changes make of it is one change, but for a
// row that is deleted before or after others: it keeps its order.
func (p *planner) rebundle(place int32, r bundled) bool {
	b := &p.b
	before := b.rows[place]
	if before.k != r.k || before.m != r.m || before.kind == wire.KindDelete || r.kind == wire.KindInsert ||
		r.kind == wire.KindDelete && before.kind == wire.KindInsert {
		return false
	}
	after := before
	after.last = r.last
	if r.kind == wire.KindDelete {
		after.kind, after.image, after.low = wire.KindDelete, nil, false
	} else {
		fillUnchanged(&p.change)
		after.image, after.low = b.keep(p.change.New), false
		for i := range after.image {
			if after.image[i].Format == wire.Unchanged {
				after.image[i] = before.image[i]
				after.low = after.low || before.image[i].Format == wire.Unchanged
			}
		}
		if after.low && p.w.unsettled(r.m, r.k, p.t) {
			return false
		}
	}
	b.undo = append(b.undo, bundledBefore{place, before})
	b.rows[place] = after
	p.footprint(&r)
	return true
}

// footprint adds a change to the transaction's.
func (p *planner) footprint(r *bundled) {
	p.print.locks = append(p.print.locks, r.k)
	switch r.kind {
	case wire.KindInsert:
		p.print.creates = append(p.print.creates, created{r.m.name(), r.k})
	case wire.KindDelete:
		p.print.deletes = append(p.print.deletes, r.k)
	}
}

// keep copies a tuple, not its bytes.
func (b *bundle) keep(tuple []wire.Value) []wire.Value {
	if tuple == nil {
		return nil
	}
	from := len(b.values)
	b.values = append(b.values, tuple...)
	return b.values[from:len(b.values):len(b.values)]
}

// buries notes the deletes of the transaction that was added last.
func (b *bundle) buries(keys []wire.KeyHash) {
	if len(keys) > 0 {
		b.tombs = append(b.tombs, tombstoneParams{b.txns[len(b.txns)-1], keys})
	}
}

// planBundle appends the bundle, without its BEGIN and COMMIT: deletes first, which make room for unique values, then
// updates, then inserts.
func (p *planner) planBundle() error {
	b := &p.b
	first := b.txns[0]
	p.t, p.large = first, false
	p.upGuard, p.lowGuard = p.w.guardParams(first.up), nil
	p.run = pending{rows: p.run.rows[:0]}
	p.waiting, p.scattered = p.waiting[:0], true
	for _, kind := range []wire.Kind{wire.KindDelete, wire.KindUpdate, wire.KindInsert} {
		if err := p.planBundled(kind); err != nil {
			return err
		}
	}
	for _, d := range b.tombs {
		p.exec(p.w.tombstoneStatement, p.w.tombstoneParams(d.t, 0, d.keys))
	}
	p.move()
	return nil
}

// planBundled appends the rows of one kind, one bucket after the other.
func (p *planner) planBundled(kind wire.Kind) error {
	b := &p.b
	buckets := b.bucket[:0]
	for i := range b.rows {
		r := &b.rows[i]
		if r.kind != kind {
			continue
		}
		p.set = p.set[:0]
		switch kind {
		case wire.KindInsert:
			p.set = r.m.insertSet(p.set)
		case wire.KindUpdate:
			p.set = r.m.set(p.set, r.image, false)
		}
		at := slices.IndexFunc(buckets, func(c bucket) bool { return c.m == r.m && c.low == r.low && slices.Equal(c.set, p.set) })
		if at < 0 {
			at = len(buckets)
			if at == cap(buckets) {
				buckets = append(buckets, bucket{})
			} else {
				buckets = buckets[:at+1] // with the slices of an earlier one
			}
			c := &buckets[at]
			c.m, c.low, c.set, c.rows = r.m, r.low, append(c.set[:0], p.set...), c.rows[:0]
		}
		buckets[at].rows = append(buckets[at].rows, int32(i))
	}
	b.bucket = buckets
	for i := range buckets {
		c := &buckets[i]
		for _, at := range c.rows {
			if err := p.bundledRow(&b.rows[at], c.set); err != nil {
				return err
			}
		}
		if err := p.flushRun(); err != nil {
			return err
		}
	}
	return nil
}

// bundledRow appends one row to its run, or by itself.
func (p *planner) bundledRow(r *bundled, set []int) error {
	m := r.m
	run := allBinary(r.image, set) && (r.kind == wire.KindInsert || allBinary(r.key, m.key) && m.runs(set))
	if !run || r.kind == wire.KindUpdate && m.local.unique {
		parsed := p.change.New // memory that the next change is parsed into
		p.change.New = r.image
		err := p.single(r.kind, m, set, r.key, r.low)
		p.change.New = parsed
		return err
	}
	if err := p.join(r.kind, m, set, r.low); err != nil {
		return err
	}
	return p.row(m, r.image, set, r.key)
}

// move appends the statement that moves the position over all of the bundle, asserted, sets the commit's stamp, and keeps
// the rows' own ones.
func (p *planner) move() {
	b := &p.b
	last := b.txns[len(b.txns)-1]
	b.stamps.reset()
	for i := range b.rows {
		if r := &b.rows[i]; r.kind != wire.KindDelete { // else no row is left to ask about
			b.stamps.add(r.k, b.txns[r.last], last)
		}
	}
	p.params = b.stamps.move(p.params[:0], b.txns[0], last)
	p.exec(p.w.bundleStatement, p.params)
}

// rowStamps are the rows' own stamps of a bundle, as pgbridge.bundle has them.
type rowStamps struct {
	keys, behind array
	scratch      [8]byte
}

func (s *rowStamps) reset() {
	s.keys.reset()
	s.behind.reset()
}

// add says that t wrote the row of key k, in a bundle that ends with last.
func (s *rowStamps) add(k wire.KeyHash, t, last *txn) {
	s.keys.add(binary.BigEndian.AppendUint64(s.scratch[:0], k.Lo), false)
	s.behind.add(binary.BigEndian.AppendUint32(s.scratch[:0], uint32(last.Stamp-t.Stamp)), false)
}

// move appends the parameters of bundleStatement.
func (s *rowStamps) move(ps []param, first, last *txn) []param {
	return append(ps, int64Param(int64(last.Seq)), int64Param(int64(last.Stamp)), int64Param(int64(last.resume)), int64Param(int64(last.Stamp)),
		int64Param(int64(first.Seq-1)), binaryParam(s.keys.value(oidInt8)), binaryParam(s.behind.value(oidInt4)))
}

// addBundle plans waiting transactions as one into the current batch and returns how many; 0 if they must go by
// themselves.
func (w *worker) addBundle() (int, error) {
	p, b := &w.planner, w.current
	limit := min(w.bundled, w.atOnce, w.opts.BatchTransactions-len(b.txns))
	if w.apart > 0 || limit < bundleFrom {
		return 0, nil
	}
	w.upcoming = w.inbox.upcoming(w.upcoming[:0], limit)
	if len(w.upcoming) < bundleFrom {
		return 0, nil
	}
	p.spill = nil
	p.b.reset()
	landed, size := len(b.txns), 0
	for i, t := range w.upcoming {
		if t.run != nil || t.schema || len(t.body) > smallBytes || size > bundleBytes || i > 0 && !w.announceable(t) || !p.b.fits(t) || !p.bundle(t) {
			break
		}
		if w.claim(t) != nil {
			p.unbundle()
			break
		}
		p.b.buries(b.txns[len(b.txns)-1].buried)
		size += len(t.body)
	}
	n := len(b.txns) - landed
	if n < 2 {
		w.unclaim(landed)
		return 0, nil
	}
	out, parses := len(p.out), len(b.parses)
	w.begins(landed)
	if err := p.planBundle(); err != nil {
		w.unplan(out, parses)
		w.unclaim(landed)
		return 0, err
	}
	w.commits(landed)
	w.inbox.takeMany(n)
	return n, nil
}
