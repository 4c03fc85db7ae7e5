package apply

import (
	"context"
	"fmt"
	"slices"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/wire"
)

// step is one change with its keys, in memory of its own.
type step struct {
	t        *txn
	m        *mapping
	ch       wire.Change
	from, to wire.KeyHash  // the key before and after; equal unless an update moves the row
	logged   []loggedWrite // of a merged table's row: these are to be taken in instead of the change
}

func copyStep(t *txn, m *mapping, ch *wire.Change) step {
	clone := func(tuple []wire.Value) []wire.Value {
		out := make([]wire.Value, len(tuple))
		for i, v := range tuple {
			out[i] = wire.Value{Format: v.Format, Data: append([]byte(nil), v.Data...)}
		}
		return out
	}
	return step{t: t, m: m, ch: wire.Change{Kind: ch.Kind, Relation: ch.Relation, OldFull: ch.OldFull, Old: clone(ch.Old), New: clone(ch.New)}}
}

// before is the tuple that holds the row's key before the change.
func (s *step) before() []wire.Value {
	if len(s.ch.Old) > 0 {
		return s.ch.Old
	}
	return s.ch.New
}

// size is how many bytes of values a step keeps.
func (s *step) size() int {
	n := 0
	for _, v := range s.ch.Old {
		n += len(v.Data)
	}
	for _, v := range s.ch.New {
		n += len(v.Data)
	}
	return n
}

// steps looks at the rows of a window's changes, all at once, then decides one after the other.
func (c *carefulRun) steps(ctx context.Context, pending []step) error {
	for i := range pending {
		s := &pending[i]
		if s.logged != nil {
			continue
		}
		if s.ch.Kind != wire.KindInsert && !s.m.usable {
			return s.m.needsKey()
		}
		if s.ch.Kind == wire.KindUpdate {
			fillUnchanged(&s.ch)
		}
		var err error
		if s.from, err = c.planner.hash(s.m, s.before()); err != nil {
			return err
		}
		s.to = s.from
		if s.ch.Kind == wire.KindUpdate {
			if s.to, err = c.planner.hash(s.m, s.ch.New); err != nil {
				return err
			}
		}
	}
	c.blind = c.blind || c.unsettledBase(pending)
	if !c.blind && !c.delta {
		c.register(pending)
	}
	look := func() (bool, error) {
		clear(c.rows)
		return c.lookAll(ctx, pending)
	}
	var unknown bool
	var err error
	if merges(pending) {
		unknown, err = c.orHoldOn(ctx, look)
	} else {
		unknown, err = look()
	}
	if err != nil {
		return err
	}
	if c.blind = c.blind || unknown; c.blind {
		// The first wait makes nearly everything known. Later ones are for writers that only became
		// visible meanwhile: all of them are looked for at once.
		if !c.waited || len(c.unsure) > windowUnsure {
			return errUnknown
		}
		return nil
	}
	if err := c.loadMerged(ctx, pending); err != nil {
		return err
	}
	at := len(c.queue)
	for i := range pending {
		c.turn(pending[i].t)
		if err := c.step(ctx, &pending[i]); err != nil {
			return err
		}
	}
	if err := c.writeMerged(ctx, c.conn.PgConn()); err != nil {
		return err
	}
	c.sendRecords(at)
	c.sendUpdates()
	for k, r := range c.rows {
		if r.lost {
			c.lost.add(k)
		}
	}
	return nil
}

// unsettledBase reports whether a change leaves a value unchanged in a row that a local delete may still take
// back (R19). It must be asked before the transaction registers the row itself and so hides who did before.
func (c *carefulRun) unsettledBase(pending []step) bool {
	for i := range pending {
		s := &pending[i]
		if s.ch.Kind != wire.KindUpdate || !hasUnchanged(s.ch.New) {
			continue
		}
		for _, k := range []wire.KeyHash{s.from, s.to} {
			if c.unsettled(s.m, k, s.t) {
				return true
			}
		}
	}
	return false
}

// register says which rows the transaction may create, before it looks at anything (R18). Of a merged table that is also
// the row of a delete, which may lose to a write that the journal holds while a local delete is on its way to capture.
func (c *carefulRun) register(pending []step) {
	for i := range pending {
		s := &pending[i]
		if s.ch.Kind != wire.KindDelete {
			c.absence.create(s.t.registration(), s.t.version(), s.t.up, created{s.m.name(), s.to})
		}
		if s.m.local.merge != nil {
			c.absence.create(s.t.registration(), s.t.version(), s.t.up, created{s.m.name(), s.from})
		}
	}
}

func (m *mapping) name() tableName { return tableName{m.local.schema, m.local.name} }

// step does one change. A changed key is a delete of the old one and an insert of the new one (R31).
func (c *carefulRun) step(ctx context.Context, s *step) error {
	switch {
	case s.m.local.merge != nil:
		return c.merge(s)
	case s.ch.Kind == wire.KindInsert:
		return c.write(ctx, s.m, s.ch.New, s.to, conflict.Insert)
	case s.ch.Kind == wire.KindDelete:
		return c.remove(s.m, s.ch.Old, s.from)
	case c.rows[s.from] == c.rows[s.to]:
		return c.write(ctx, s.m, s.ch.New, s.to, conflict.Update)
	}
	if r := c.rows[s.from]; hasUnchanged(s.ch.New) && (r.found || r.kept != nil) {
		if base, err := c.trueBase(s.m, r, s.from); err != nil {
			return err
		} else if base {
			fill := func() error { return c.fill(ctx, s.m, s.ch.New, s.ch.Old) }
			if r.kept != nil {
				fill = func() error { return c.fillKept(ctx, s.m, s.ch.New, s.from) }
			}
			if err := fill(); err != nil {
				return err
			}
		}
	}
	if err := c.remove(s.m, s.ch.Old, s.from); err != nil {
		return err
	}
	return c.write(ctx, s.m, s.ch.New, s.to, conflict.Insert)
}

// write lets the transaction's version of a row meet what is there.
func (c *carefulRun) write(ctx context.Context, m *mapping, tuple []wire.Value, k wire.KeyHash, kind conflict.Write) error {
	r := c.rows[k]
	if r.lost {
		return nil
	}
	d := c.decideOver(kind, r, k)
	if !d.RemoteWins {
		c.lose(m, r, k)
		return c.record(m, tuple, m.rowOf(tuple), r.look, d)
	}
	base := true
	if hasUnchanged(tuple) {
		var err error
		if base, err = c.trueBase(m, r, k); err != nil {
			return err
		}
	}
	if err := c.record(m, tuple, m.rowOf(tuple), r.look, d); err != nil {
		return err
	}
	if !base {
		return c.owe(m, tuple, k)
	}
	c.pay(k)
	if c.guarded[m.name()] {
		return c.place(ctx, m, tuple, k)
	}
	found := r.found
	r.found, r.mine = true, true
	if c.wrote != nil {
		c.wrote[k] = c.t
	}
	if found {
		return c.overwrite(m, tuple, k)
	}
	return c.change(m, m.statement("ki", m.insertSQL), tuple, m.insertSet(nil), nil)
}

// decideOver is the policy's decision on a row that the transaction has not written yet.
func (c *carefulRun) decideOver(w conflict.Write, r *rowState, k wire.KeyHash) conflict.Decision {
	if c.comeback != nil && r.seen && !r.mine { // also if it is the very version that was lost
		return conflict.Decision{RemoteWins: true}
	}
	if r.mine || c.owing(k) {
		return conflict.Decision{RemoteWins: !c.delta || c.wrote[k] == nil || !c.wrote[k].version().Later(c.t.version())}
	}
	if c.delta && w == conflict.Delete && r.seen {
		return conflict.Decision{RemoteWins: c.t.version().Later(r.local.Version)}
	}
	return c.policy(conflict.Case{Write: w, Remote: c.t.version(), Local: r.local, Seen: r.seen})
}

// lose notes that the row stays as it is, whatever the transaction does to it.
func (c *carefulRun) lose(m *mapping, r *rowState, k wire.KeyHash) {
	r.lost = true
	if m.local.large {
		c.beaten.add(m.tableHash(), m.local.hasher.Shared(k))
	}
}

func (m *mapping) tableHash() uint64 { return wire.TableHash(m.local.schema, m.local.name) }

// overwrite queues the statement that makes the row of tuple's key look like tuple; the key too, since a
// key may be equal and look different.
func (c *carefulRun) overwrite(m *mapping, tuple []wire.Value, k wire.KeyHash) error {
	set := m.set(nil, tuple, true)
	if len(m.always) == 0 && m.writable(set, false) {
		if ok, err := c.updateTogether(m, tuple, set, k); ok || err != nil {
			return err
		}
		s := m.statement("ku"+shape(set), func() (string, []uint32) { return m.updateSQL(set, nil) })
		return c.change(m, s, tuple, set, tuple)
	}
	set = slices.DeleteFunc(m.insertSet(nil), func(i int) bool { return tuple[i].Format == wire.Unchanged })
	s := m.statement("kr"+shape(set), func() (string, []uint32) { return m.replaceSQL(set) })
	return c.change(m, s, tuple, set, tuple)
}

func hasUnchanged(tuple []wire.Value) bool {
	for _, v := range tuple {
		if v.Format == wire.Unchanged {
			return true
		}
	}
	return false
}

// trueBase reports whether the row's unchanged TOAST values are those of the transaction's author (R16).
func (c *carefulRun) trueBase(m *mapping, r *rowState, k wire.KeyHash) (bool, error) {
	there := r.found || r.kept != nil
	switch {
	case r.mine && there:
		return true, nil
	case c.unsettled(m, k, c.t):
		return false, errUnknown
	case !there || c.stale(k, r):
		return false, nil
	case r.local.Ancient || r.own || c.t.low.Get(r.local.Version.Origin).Stamp >= r.local.Version.Stamp:
		return true, nil
	case !r.seen || c.t.parked != 0: // what was told meanwhile is forgotten
		return false, nil
	}
	saw, err := c.inbox.saw(r.local.Version, m.tableHash(), m.local.hasher.Shared(k))
	if err != nil && c.deaf {
		return false, nil
	}
	return saw, err
}

// insertSet appends the remote columns that an insert writes.
func (m *mapping) insertSet(set []int) []int {
	for i, li := range m.cols {
		if li >= 0 {
			set = append(set, i)
		}
	}
	return set
}

// remove lets the transaction's delete meet what is there.
func (c *carefulRun) remove(m *mapping, old []wire.Value, k wire.KeyHash) error {
	r := c.rows[k]
	if r.lost {
		return nil
	}
	d := c.decideOver(conflict.Delete, r, k)
	if err := c.record(m, nil, m.rowOf(old), r.look, d); err != nil {
		return err
	}
	if !d.RemoteWins {
		c.lose(m, r, k) // the transaction may write the row again, in vain
		return nil
	}
	c.pay(k)
	c.buried.add(k)
	if c.guarded[m.name()] {
		c.unkeep(k)
		c.touched[k] = struct{}{}
	}
	found := r.found
	r.found, r.mine, r.kept = false, true, nil
	if !found {
		return nil
	}
	if err := c.bereave(m, old); err != nil {
		return err
	}
	s := m.statement("kd", func() (string, []uint32) { return m.deleteSQL(nil) })
	return c.change(m, s, nil, nil, old)
}

// bury queues the transaction's tombstones (they go into the index when it has landed).
func (c *carefulRun) bury(ctx context.Context) error {
	part := 0
	for rest := c.buried.all(); len(rest) > 0; part++ {
		n := min(len(rest), tombstoneRow)
		c.push("write tombstones", c.tombstoneStatement, c.tombstoneParams(c.t, part, rest[:n]))
		rest = rest[n:]
		if len(c.queue)*16*tombstoneRow >= windowBytes {
			if err := c.flush(ctx); err != nil {
				return err
			}
		}
	}
	for i, n := range c.wiped {
		ps := c.tombstoneParams(c.t, -1-i, nil)
		ps[len(ps)-1] = binaryParam([]byte(n.schema + "\x00" + n.name))
		c.push("write tombstones", c.tombstoneStatement, ps)
	}
	return nil
}

// fill takes the values that a tuple leaves unchanged from the row of old's key.
func (c *carefulRun) fill(ctx context.Context, m *mapping, tuple, old []wire.Value) error {
	if err := c.flush(ctx); err != nil {
		return err
	}
	where, types, ps, err := m.keyCondition(old)
	if err != nil {
		return err
	}
	for i := range tuple {
		if tuple[i].Format != wire.Unchanged || m.cols[i] < 0 {
			continue
		}
		sql := "SELECT t." + m.local.cols[m.cols[i]].quoted + " FROM " + m.local.rows + " t WHERE " + where
		rows, err := c.exec(ctx, sql, types, ps)
		if err != nil {
			return fmt.Errorf("read unchanged value of %s: %w", m.local.quoted, err)
		}
		if len(rows) == 1 {
			tuple[i] = wire.Value{Format: wire.Text, Data: rows[0][0]}
			if rows[0][0] == nil {
				tuple[i] = wire.Value{Format: wire.Null}
			}
		}
	}
	return nil
}
