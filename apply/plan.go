package apply

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// errSurprise means that a transaction cannot go the optimistic path; the careful one finds out more.
var errSurprise = errors.New("not for the optimistic path")

const (
	runRows      = 1000      // rows of a run that go into one UPDATE or DELETE
	runBytes     = 256 << 10 // bytes of a run that are collected before they go out
	runMin       = 4         // shorter runs go row by row: a run's statement has a higher start-up cost
	tombstoneRow = 4096      // keys in one row of the tombstone table
)

// footprint is what a transaction does to rows: the keys that it locks, those whose rows it may create
// (R18), and those whose rows it deletes. R21 asks for locks on what is inserted and deleted; updated keys
// are locked too, so that two origins' transactions do not meet in the database, where the server would
// need deadlock_timeout to part them.
type footprint struct {
	locks   []wire.KeyHash
	creates []created
	deletes []wire.KeyHash
}

type created struct {
	table tableName
	key   wire.KeyHash
}

// planner turns one transaction at a time into protocol messages on the worker's connection. It sends
// nothing: the worker does.
type planner struct {
	w     *worker
	out   []byte
	spill func(then []byte) error // large transactions: called to write it out when it has grown, and then more

	t      *txn
	print  footprint
	large  bool           // keys are locked and registered table-wide
	parts  int            // rows written into the tombstone table for this transaction
	buried []wire.KeyHash // large: deletes whose tombstone rows are written

	upGuard, lowGuard []param

	// Of a small transaction, see together.go.
	waiting   []waiting
	held      []param
	heldBytes []byte
	shape     []byte
	sent      []param
	touched   []wire.KeyHash
	twice     bool // a row is changed twice, or there are too many
	scattered bool // changes go out as they come

	b bundle
	// epoch is the quarantine's, from before the plan.
	epoch uint64

	run    pending
	params []param
	key    []wire.Value
	set    []int
	arrays []array
	change wire.Change
}

// plan appends the whole transaction t, without its BEGIN and COMMIT.
func (p *planner) plan(t *txn) error {
	p.t, p.large, p.parts, p.buried = t, t.run != nil, 0, nil
	p.epoch = p.w.kept.epoch.Load()
	p.resetPrint()
	p.upGuard, p.lowGuard = p.w.guardParams(t.up), nil
	p.run = pending{rows: p.run.rows[:0]}
	p.waiting, p.held, p.heldBytes, p.touched, p.twice, p.scattered = p.waiting[:0], p.held[:0], p.heldBytes[:0], p.touched[:0], false, p.large
	changes, err := newForeseen(p.w, t)
	if err != nil {
		return err
	}
	for {
		rec, relations, err := changes.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := p.record(rec, relations); err != nil {
			return err
		}
	}
	if err := p.flushRun(); err != nil {
		return err
	}
	if len(p.print.deletes) > 0 {
		p.scatter() // their tombstones are rows too
	}
	if err := p.tombstones(true); err != nil {
		return err
	}
	if !p.together() {
		p.scatter()
		p.position()
	}
	return nil
}

func (p *planner) resetPrint() {
	p.print = footprint{locks: p.print.locks[:0], creates: p.print.creates[:0], deletes: p.print.deletes[:0]}
}

func (p *planner) record(rec wire.Record, relations map[uint32]*wire.Relation) error {
	if rec.Kind == wire.KindTruncate {
		return errSurprise
	}
	if err := p.change.Parse(rec); err != nil {
		return err
	}
	m, err := p.w.mapping(relations[p.change.Relation], p.change.Relation)
	if err != nil {
		return err
	}
	if m.local.merge != nil || p.w.kept.concerns(m.local) {
		return errSurprise
	}
	m.readable(&p.change)
	if m.bereaves(rec.Kind, &p.change) {
		return errSurprise
	}
	switch rec.Kind {
	case wire.KindInsert:
		err = p.insert(m)
	case wire.KindUpdate:
		err = p.update(m)
	case wire.KindDelete:
		err = p.delete(m)
	}
	if err == nil && p.spill != nil && len(p.out) > runBytes {
		err = p.spill(nil)
	}
	return err
}

func (p *planner) hash(m *mapping, tuple []wire.Value) (wire.KeyHash, error) {
	key, err := m.keyOf(p.key, tuple)
	p.key = key
	if err != nil {
		return wire.KeyHash{}, err
	}
	k, err := p.w.digests.Hash(p.w.ctx, m.local.hasher, key)
	if err != nil && !lost(err) {
		return k, &Blocked{Reason: fmt.Sprintf("a key of table %s cannot be hashed here", m.local.quoted), Err: err}
	}
	return k, err
}

// creates notes that the transaction may create the row of key k. A large one has registered whole
// tables and must ask for tombstones here, before the row goes out.
func (p *planner) creates(m *mapping, k wire.KeyHash) error {
	n := tableName{m.local.schema, m.local.name}
	if !p.large {
		p.print.locks = append(p.print.locks, k)
		p.print.creates = append(p.print.creates, created{n, k})
		return nil
	}
	if d, ok := p.w.absence.tombstone(n, k); ok && d.meets(p.t.version(), p.t.up) {
		return errSurprise
	}
	return nil
}

func (p *planner) deletes(k wire.KeyHash) error {
	p.print.deletes = append(p.print.deletes, k)
	if !p.large {
		p.print.locks = append(p.print.locks, k)
		return nil
	}
	return p.tombstones(false)
}

func (p *planner) insert(m *mapping) error {
	c := &p.change
	if p.w.opts.Rows != nil && hasUnchanged(c.New) { // an update that brings the row here (resident.go)
		return errSurprise
	}
	k, err := p.hash(m, c.New)
	if err != nil {
		return err
	}
	if err := p.touch(k); err != nil {
		return err
	}
	if err := p.creates(m, k); err != nil {
		return err
	}
	p.set = m.insertSet(p.set[:0])
	if !allBinary(c.New, p.set) {
		return p.single(wire.KindInsert, m, p.set, nil, false)
	}
	if err := p.join(wire.KindInsert, m, p.set, false); err != nil {
		return err
	}
	return p.row(m, c.New, p.set, nil)
}

func (p *planner) update(m *mapping) error {
	c := &p.change
	if len(c.New) != len(m.cols) {
		return fmt.Errorf("%w: tuple of %s has %d columns", wire.ErrCorrupt, m.local.quoted, len(c.New))
	}
	old := c.New
	if len(c.Old) > 0 {
		old = c.Old
	}
	low := fillUnchanged(c)
	k, err := p.hash(m, old)
	if err != nil {
		return err
	}
	if !m.usable {
		return m.needsKey()
	}
	if err := p.touch(k); err != nil {
		return err
	}
	moved, rekeyed := false, m.rekeyed(c)
	if rekeyed {
		to, err := p.hash(m, c.New)
		if err != nil {
			return err
		}
		if moved = to != k; moved {
			if err := p.touch(to); err != nil {
				return err
			}
			if err := p.deletes(k); err != nil {
				return err
			}
			if err := p.creates(m, to); err != nil {
				return err
			}
		}
	}
	if !p.large && !moved {
		p.print.locks = append(p.print.locks, k)
	}
	respelled := rekeyed || m.local.respells
	p.set = m.set(p.set, c.New, respelled)
	if low && p.w.unsettled(m, k, p.t) || !m.writable(p.set, rekeyed) {
		return errSurprise
	}
	if respelled || m.local.unique || !m.runs(p.set) || !allBinary(c.New, p.set) || !allBinary(old, m.key) {
		return p.single(wire.KindUpdate, m, p.set, old, low)
	}
	if _, twice := p.run.keys[k]; twice {
		if err := p.flushRun(); err != nil {
			return err
		}
	}
	if err := p.join(wire.KindUpdate, m, p.set, low); err != nil {
		return err
	}
	p.run.keys[k] = struct{}{}
	return p.row(m, c.New, p.set, old)
}

// rekeyed reports whether an update changes the key's bytes. The key may be equal all the same: numeric
// 1.0 and 1.00.
func (m *mapping) rekeyed(c *wire.Change) bool {
	for _, i := range m.key {
		if i < len(c.Old) && (c.Old[i].Format != c.New[i].Format || !bytes.Equal(c.Old[i].Data, c.New[i].Data)) {
			return true
		}
	}
	return false
}

// writable reports whether an UPDATE can write the columns of set, and with them a changed key.
func (m *mapping) writable(set []int, rekeyed bool) bool {
	if rekeyed && slices.ContainsFunc(m.local.key, func(k int) bool { return m.local.cols[k].always }) {
		return false
	}
	return len(set) > 0 || m.still() != nil
}

// fillUnchanged takes unchanged TOAST values from the old image where that has them (PROOF.md R16): that
// of replica identity FULL has all, another one those of the key. It reports whether any is left. What
// is NULL in the old image is not in it: it may be a key alone under the label of a whole row, when a
// partition's replica identity is not its root's.
func fillUnchanged(c *wire.Change) bool {
	left := false
	for i := range c.New {
		if c.New[i].Format != wire.Unchanged {
			continue
		}
		if i < len(c.Old) && (c.Old[i].Format == wire.Binary || c.Old[i].Format == wire.Text) {
			c.New[i] = c.Old[i]
			continue
		}
		left = true
	}
	return left
}

func (p *planner) delete(m *mapping) error {
	c := &p.change
	k, err := p.hash(m, c.Old)
	if err != nil {
		return err
	}
	if !m.usable {
		return m.needsKey()
	}
	if err := p.touch(k); err != nil {
		return err
	}
	if err := p.deletes(k); err != nil {
		return err
	}
	if !m.runs(m.key) || !allBinary(c.Old, m.key) {
		return p.single(wire.KindDelete, m, nil, c.Old, false)
	}
	if err := p.join(wire.KindDelete, m, nil, false); err != nil {
		return err
	}
	return p.row(m, nil, nil, c.Old)
}

// single sends one row as its own statement.
func (p *planner) single(kind wire.Kind, m *mapping, set []int, old []wire.Value, low bool) error {
	if err := p.flushRun(); err != nil {
		return err
	}
	ps, err := m.params(p.params[:0], p.change.New, set)
	if err == nil && old != nil {
		ps, err = m.params(ps, old, m.key)
	}
	if err == nil {
		ps, err = m.params(ps, p.change.New, m.mustHave(kind))
	}
	if err != nil {
		return err
	}
	p.params = ps
	p.one(kind, m, set, low)
	return nil
}

// one sends the statement for the row whose values and key are in p.params.
func (p *planner) one(kind wire.Kind, m *mapping, set []int, low bool) {
	if !p.hold(kind, m, set, low, p.params) {
		p.scatter()
		p.send(kind, m, set, low, p.params)
	}
}

// send sends the statement for the row whose values and key are in params.
func (p *planner) send(kind wire.Kind, m *mapping, set []int, low bool, params []param) {
	all := append(p.sent[:0], params...)
	var s *statement
	switch kind {
	case wire.KindInsert:
		s = m.statement("i", m.insertSQL)
	case wire.KindUpdate:
		s = m.statement("u"+shape(set), func() (string, []uint32) { return m.updateSQL(set, &p.w.guard) })
		all = append(all, p.guardParams(low)...)
	case wire.KindDelete:
		s = m.statement("d", func() (string, []uint32) { return m.deleteSQL(&p.w.guard) })
		all = append(all, p.guardParams(low)...)
	}
	p.sent = all
	p.exec(s, all)
}

func (p *planner) guardParams(low bool) []param {
	if !low {
		return p.upGuard
	}
	if p.lowGuard == nil {
		p.lowGuard = p.w.guardParams(p.t.low)
	}
	return p.lowGuard
}

// shape names a set of columns.
func shape(set []int) string {
	b := make([]byte, 0, 2*len(set))
	for _, i := range set {
		b = binary.BigEndian.AppendUint16(b, uint16(i))
	}
	return string(b)
}

func (m *mapping) statement(key string, build func() (string, []uint32)) *statement {
	s := m.statements[key]
	if s == nil {
		sql, types := build()
		s = &statement{sql: sql, types: types}
		m.statements[key] = s
	}
	return s
}

// exec appends the execution of s, and its preparation if that has not gone out yet.
func (p *planner) exec(s *statement, params []param) {
	if !s.sent {
		p.out = p.w.prepare(p.out, s)
	}
	p.out = appendRun(p.out, s.name, params)
}

// tombstones writes the deletes that have been collected into the tombstone table, packed: when there
// are enough for a row, or all that are left.
func (p *planner) tombstones(all bool) error {
	d := p.print.deletes
	if len(d) == 0 || !all && len(d) < tombstoneRow {
		return nil
	}
	if !all {
		if err := p.flushRun(); err != nil { // a COPY may be open
			return err
		}
	}
	for rest := d; len(rest) > 0; {
		n := min(len(rest), tombstoneRow)
		p.exec(p.w.tombstoneStatement, p.w.tombstoneParams(p.t, p.parts, rest[:n]))
		p.parts++
		rest = rest[n:]
	}
	if p.large {
		p.buried = append(p.buried, d...)
		p.print.deletes = d[:0]
	}
	return nil
}

func packKeys(keys []wire.KeyHash) []byte {
	b := make([]byte, 0, 16*len(keys))
	for _, k := range keys {
		b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, k.Hi), k.Lo)
	}
	return b
}

func unpackKeys(b []byte) []wire.KeyHash {
	keys := make([]wire.KeyHash, 0, len(b)/16)
	for ; len(b) >= 16; b = b[16:] {
		keys = append(keys, wire.KeyHash{Hi: binary.BigEndian.Uint64(b), Lo: binary.BigEndian.Uint64(b[8:])})
	}
	return keys
}

// position appends the statement that moves the position row from seq - 1 to seq, asserted, and sets the
// commit's stamp (PROOF.md R1, R2).
func (p *planner) position() {
	t := p.t
	p.params = append(p.params[:0], int64Param(int64(t.Seq)), int64Param(int64(t.Stamp)),
		int64Param(int64(t.resume)), int64Param(int64(t.Stamp)))
	p.exec(p.w.positionStatement, p.params)
}

// deleted returns the transaction's tombstones for the index.
func (p *planner) deleted() (tombstone, []wire.KeyHash) {
	keys := p.buried
	if !p.large {
		keys = slices.Clone(p.print.deletes)
	}
	return tombstone{p.t.version(), p.t.Seq}, keys
}

// guardParams are the guard's parameters for what the transaction's author may have seen.
func (w *worker) guardParams(deps origin.Vector) []param {
	mark, ok := w.wal.MarkFor(deps.Seq(w.own))
	if !ok {
		mark = w.ancient()
	}
	within, ok := w.wal.MarkWithin(deps, w.origin)
	if !ok {
		within = w.ancient()
	}
	return w.guard.params(deps, uint32(mark), uint32(within))
}

// ancient is the id below which rows were written before there was a slot: everybody has them. It is 0 where
// so many ids were given out since that 32 bits do not tell what is below.
func (w *worker) ancient() uint64 {
	now := w.opts.openXID
	if newest, ok := w.wal.MarkFor(math.MaxUint64); ok {
		now = max(now, newest)
	}
	if now-w.opts.FirstXID >= 1<<31 {
		return 0
	}
	return w.opts.FirstXID
}
