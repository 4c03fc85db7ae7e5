package conflict

import (
	"bytes"
	"fmt"
	"iter"
	"slices"

	"github.com/pgbridge/pgbridge/origin"
)

// Cell is one value in PostgreSQL's binary send format.
type Cell struct {
	Null bool
	Data []byte
}

// Equal reports whether two cells are the same byte for byte.
func (c Cell) Equal(d Cell) bool { return c.Null == d.Null && (c.Null || bytes.Equal(c.Data, d.Data)) }

// Unit is a column, or a group of columns that belong together, with the rule that it follows. The rules that
// merge (from Delta on) take exactly one column, of a Type that they understand.
type Unit struct {
	Columns []int
	Rule    Rule
	Type    Type
	// Call, for the rule Function, makes one value of two that were written concurrently: the earlier one, or what was made
	// of those before it, and a later one. The cells are those of Columns. It must give the same on every node.
	Call func(earlier, later Candidate) ([]Cell, error)
}

// Candidate is one of the values that a Unit's Call chooses from or makes one value of.
type Candidate struct {
	Version origin.Version // of the write, or of the latest of those that it was made of
	Cells   []Cell
}

// Rules says how the concurrent writes of a table's rows become one row. Its Units share the columns out
// among them. It is not changed once in use, and then safe for concurrent use.
type Rules struct {
	Width    int // number of columns
	Units    []Unit
	Deletes  Deletes
	Priority []string // node names, for the rule of that name: the first one prevails, unnamed ones come last
	// Home, for the rule of that name, reports whether a node is the one at which a row should be written that has such a value
	// in HomeColumn. A unit with that rule has this column.
	Home       func(node string, value Cell) bool
	HomeColumn int

	trusting bool // for tests: takes what may have been seen for seen, which must be found out
}

// Validate checks each setting, and that the units share out the columns.
func (r *Rules) Validate() error {
	taken := make([]bool, max(r.Width, 0))
	for i, u := range r.Units {
		if err := u.Rule.Supports(u.Type); err != nil {
			return fmt.Errorf("unit %d: %w", i, err)
		}
		if len(u.Columns) == 0 || len(u.Columns) > 1 && !u.Rule.picks() {
			return fmt.Errorf("unit %d: rule %s takes one column, not %d", i, u.Rule, len(u.Columns))
		}
		if u.Rule == Home && (r.Home == nil || !slices.Contains(u.Columns, r.HomeColumn)) {
			return fmt.Errorf("unit %d: rule %s needs the column that names a row's home among its columns", i, u.Rule)
		}
		for _, col := range u.Columns {
			if col < 0 || col >= r.Width {
				return fmt.Errorf("unit %d: column %d is not one of %d", i, col, r.Width)
			}
			if taken[col] {
				return fmt.Errorf("unit %d: column %d belongs to another unit too", i, col)
			}
			taken[col] = true
		}
	}
	if col := slices.Index(taken, false); col >= 0 {
		return fmt.Errorf("column %d belongs to no unit", col)
	}
	if int(r.Deletes) >= len(deletesNames) {
		return fmt.Errorf("there is no conflict rule %d for deletes", byte(r.Deletes))
	}
	return nil
}

// Part is the place of a change within its transaction.
type Part uint32

// Logged is one write of one key that is not known to have been seen by all nodes.
type Logged struct {
	Origin origin.Origin
	Seq    uint64
	Part   Part
	Stamp  origin.Stamp
	// Up is what the author may have seen of other origins: a transaction that was announced to him counts,
	// though it may not have been in the row yet.
	Up origin.Vector
	// Low is what he surely had seen, as far as is known.
	Low  origin.Vector
	Kind Write
	// Ops are by unit; nil or empty where the write did not change the unit. A delete has none.
	Ops []Op
}

// Merged is the row that a set of writes leaves.
type Merged struct {
	// Row is nil if there is no row. Its cells may share memory with the base and with the ops.
	Row []Cell
	// Winner has, for each unit, the index of the write whose value stands; -1 if it is that of the base,
	// or was merged from several.
	Winner []int
	// Deleted is the index of the delete that rules if Row is nil; -1 if there was no row in the first place.
	Deleted int
}

// Diff makes the ops of a write from the row's images at its author; before is nil for an insert. The ops
// share no memory with the rows.
func (r *Rules) Diff(before, after []Cell) ([]Op, error) {
	if len(after) != r.Width || before != nil && len(before) != r.Width {
		return nil, fmt.Errorf("rows of %d and %d columns, want %d", len(before), len(after), r.Width)
	}
	ops := make([]Op, len(r.Units))
	for i := range r.Units {
		u := &r.Units[i]
		if before != nil && !slices.ContainsFunc(u.Columns, func(col int) bool { return !before[col].Equal(after[col]) }) {
			continue
		}
		var err error
		if ops[i], err = u.diff(before, after); err != nil {
			return nil, fmt.Errorf("column %d: %w", u.Columns[0], err)
		}
	}
	return ops, nil
}

func (u *Unit) diff(before, after []Cell) (Op, error) {
	if u.Rule.picks() {
		return pickOp(u, after), nil
	}
	to, from := after[u.Columns[0]], Cell{Null: true}
	if before != nil {
		from = before[u.Columns[0]]
	}
	switch u.Rule {
	case Delta:
		return deltaOp(u.Type, from, to)
	case Max, Min:
		return extremeOp(u.Rule, u.Type, from, to)
	case JSONMerge:
		return patchOp(u.Type, from, to)
	}
	return scriptOp(u.Type, before == nil, from, to)
}

// Merge gives the row that the writes leave on base, which is nil if there was no row. It is a pure function
// of the set of writes: their order in the slice does not matter. And it is blind to folding: if all other
// writes cover and have really seen a set S, Merge(Merge(base, S).Row, others) is Merge(base, S and others).
//
// A delete that loses is as if it had not been. It changes neither base nor writes.
func (r *Rules) Merge(base []Cell, writes []Logged) (Merged, error) {
	if base != nil && len(base) != r.Width {
		return Merged{}, fmt.Errorf("base of %d columns, want %d", len(base), r.Width)
	}
	merged := Merged{Winner: make([]int, len(r.Units)), Deleted: -1}
	for i := range merged.Winner {
		merged.Winner[i] = -1
	}
	if len(writes) == 0 {
		merged.Row = slices.Clone(base)
		return merged, nil
	}
	for i := range writes {
		if n := len(writes[i].Ops); n != 0 && n != len(r.Units) {
			return Merged{}, fmt.Errorf("%w: write %s:%d has ops for %d units, want %d", ErrCorrupt, writes[i].Origin, writes[i].Seq, n, len(r.Units))
		}
	}
	h, err := newHistory(writes)
	if err != nil {
		return Merged{}, err
	}
	exists, deleter := h.exists(r.Deletes, base != nil, nil)
	if !exists {
		merged.Deleted = deleter
		return merged, nil
	}
	row := make([]Cell, r.Width)
	if copy(row, base) == 0 {
		for i := range row {
			row[i].Null = true
		}
	}
	m := merger{rules: r, h: h, base: base != nil}
	for i := range r.Units {
		m.unit, m.index, m.ops = &r.Units[i], i, m.ops[:0]
		for p := range h.order {
			if w := h.at(p); len(w.Ops) > 0 && len(w.Ops[i]) > 0 && w.Kind < Delete {
				m.ops = append(m.ops, int32(p))
			}
		}
		if len(m.ops) == 0 {
			continue
		}
		winner, err := m.merge(row)
		if err != nil {
			return Merged{}, fmt.Errorf("column %d: %w", m.unit.Columns[0], err)
		}
		if winner >= 0 {
			merged.Winner[i] = int(h.order[winner])
		}
	}
	merged.Row = row
	return merged, nil
}

// merger merges one unit after the other.
type merger struct {
	rules *Rules
	h     *history
	base  bool // there was a row before the log
	unit  *Unit
	index int
	ops   []int32 // places of the writes that changed the unit
	few   []int32
}

func (m *merger) op(p int32) Op         { return m.h.at(int(p)).Ops[m.index] }
func (m *merger) read(p int32) opReader { return readOp(m.op(p)) }

// merge puts the unit's value into row and gives the place of the write that it is of, or -1.
func (m *merger) merge(row []Cell) (int32, error) {
	if m.unit.Rule == Function {
		return m.call(row)
	}
	if m.unit.Rule.picks() {
		p, err := m.choose()
		if err != nil {
			return -1, err
		}
		return p, pick(m.op(p), m.unit, row)
	}
	cell := &row[m.unit.Columns[0]]
	winner := int32(-1)
	var err error
	switch m.unit.Rule {
	case Delta:
		*cell, err = m.mergeDelta(*cell)
	case Max, Min:
		*cell, winner, err = m.mergeExtreme(*cell)
		return winner, err
	case JSONMerge:
		*cell, err = m.mergeJSON(*cell)
	default:
		*cell, err = m.mergeSequence(*cell)
	}
	if err != nil {
		return -1, err
	}
	last := m.ops[len(m.ops)-1]
	if r := m.read(last); stateOf(*cell, m.unit.Type) == r.after(m.unit.Type) {
		winner = last
	}
	return winner, nil
}

// choose gives the head of the unit that the rule prefers.
func (m *merger) choose() (int32, error) {
	m.few = m.h.heads(m.ops, m.few)
	best := m.few[len(m.few)-1]
	switch m.unit.Rule {
	case First:
		best = m.few[0]
	case Priority, Home:
		least := -1
		for _, p := range slices.Backward(m.few) {
			rank, err := m.rank(p)
			if err != nil {
				return -1, err
			}
			if least < 0 || rank < least {
				best, least = p, rank
			}
		}
	}
	return best, nil
}

// rank is the place of a write in the rule's order: the least prevails, and the latest of several.
func (m *merger) rank(p int32) (int, error) {
	node := m.h.at(int(p)).Origin.Node
	if m.unit.Rule == Priority {
		if i := slices.Index(m.rules.Priority, node); i >= 0 {
			return i, nil
		}
		return len(m.rules.Priority), nil
	}
	row := make([]Cell, m.rules.Width)
	if err := pick(m.op(p), m.unit, row); err != nil {
		return 0, err
	}
	if m.rules.Home(node, row[m.rules.HomeColumn]) {
		return 0, nil
	}
	return 1, nil
}

// call lets the unit's function make one value of the heads', one after the other in canonical order.
func (m *merger) call(row []Cell) (int32, error) {
	m.few = m.h.heads(m.ops, m.few)
	if len(m.few) == 1 {
		return m.few[0], pick(m.op(m.few[0]), m.unit, row)
	}
	if m.unit.Call == nil {
		return -1, fmt.Errorf("there is no function to call")
	}
	candidate := func(p int32) (Candidate, error) {
		if err := pick(m.op(p), m.unit, row); err != nil {
			return Candidate{}, err
		}
		c := Candidate{Version: origin.Version{Stamp: m.h.at(int(p)).Stamp, Origin: m.h.at(int(p)).Origin}}
		for _, col := range m.unit.Columns {
			c.Cells = append(c.Cells, row[col])
		}
		return c, nil
	}
	one, err := candidate(m.few[0])
	for _, p := range m.few[1:] {
		var next Candidate
		if err == nil {
			next, err = candidate(p)
		}
		if err == nil {
			one.Cells, err = m.unit.Call(one, next)
			one.Version = next.Version
		}
		if err == nil && len(one.Cells) != len(m.unit.Columns) {
			err = fmt.Errorf("the function gives %d values for %d columns", len(one.Cells), len(m.unit.Columns))
		}
	}
	if err != nil {
		return -1, err
	}
	for i, col := range m.unit.Columns {
		row[col] = one.Cells[i]
	}
	return -1, nil
}

// parts cuts the unit's ops where what is before may be taken as one value.
func (m *merger) parts() iter.Seq[[]int32] {
	return func(yield func([]int32) bool) {
		if len(m.ops) == 1 {
			yield(m.ops)
			return
		}
		marks, from := m.h.cuts(m.ops), 0
		for i := 1; i <= len(m.ops); i++ {
			if i == len(m.ops) || marks[i] == 1 {
				if !yield(m.ops[from:i]) {
					return
				}
				from = i
			}
		}
	}
}

// lastAssign gives the index of the last op that sets the value without regard to what it was, or -1.
func (m *merger) lastAssign(ops []int32) int {
	for i, p := range slices.Backward(ops) {
		if o := m.op(p); len(o) > 1 && o[1] == opAssign {
			return i
		}
	}
	return -1
}
