package conflict

import (
	"math"
	"slices"
)

// sequence is the tree of one unit's elements: Fugue, of Weidner and Kleppmann, "The Art of the Fugue"
// (2023). Each element is a left or a right child of another one, put there by what its author saw beside it,
// and never moves. So concurrent runs do not mix, and no element's place depends on what its author had not.
//
// The value before the log is a chain of right children under the root. It takes the place of elements that
// all authors have seen, which all see in this order; deleted ones among them are where nobody can look
// for a place any more. So folding changes no order.
type sequence struct {
	m        *merger
	abc      alphabet
	base     Cell
	lanes    [][]int32 // the unit's ops by origin
	elements []element // 0 is the root
	deletes  []deletion
	views    []view  // by origin: what its author had after his last op that is in the tree
	seen     []int32 // by op and origin: how many ops of that origin the author has seen
	index    []int32 // by op: how many ops of its origin stand before it
	inorder  []int32 // traversal of the tree; empty: to be made again
	stack    []int32
	room     []int32
	text     []byte
}

// element is one node of the tree. Links are indexes into elements, 0 for none.
type element struct {
	value       int32 // see alphabet
	op          int32 // index into ops of who inserted it; -1 for base
	left, right int32 // first child on each side; children of one side stand in canonical order of their ops
	next        int32 // next child of the same parent and side
	deleted     int32 // first of its deletions, index into deletes from 1
}

type deletion struct{ op, next int32 }

// view is a version of the unit, as an author saw it.
type view struct {
	counts []int32 // by origin, how many ops are in it
	shown  []int32 // elements in order
	// hidden has, for a set, elements that are there but not shown, by the equal one that is shown.
	hidden map[int32][]int32
	hash   state // 0: not made yet
	inUse  bool
}

// mergeSequence replays the ops in the tree, or one after the other where each has seen all before it.
func (m *merger) mergeSequence(base Cell) (Cell, error) {
	s := sequence{m: m, abc: alphabet{typ: m.unit.Type}, base: base}
	var elements []int32
	if !base.Null {
		var err error
		if elements, err = s.abc.split(nil, base.Data); err != nil {
			return Cell{}, err
		}
	}
	if c, ok, err := s.replay(elements); ok || err != nil {
		return c, err
	}
	s.grow(elements)
	for i := range m.ops {
		if err := s.insert(int32(i)); err != nil {
			return Cell{}, err
		}
	}
	all := make([]int32, len(s.lanes))
	for o, lane := range s.lanes {
		all[o] = int32(len(lane))
	}
	v := s.view(all)
	return s.value(&v, true), nil
}

// replay is the way of a log without concurrency in this unit: the ops are run on the value itself. It gives
// up as soon as an op has not seen exactly what is before it.
func (s *sequence) replay(base []int32) (Cell, bool, error) {
	m, elements := s.m, base // which is not written to: the tree may need it
	null, own := s.base.Null, false
	at := s.abc.state(s.base, elements)
	var few [8]int32 // by origin: how many of its writes must have been seen
	before := few[:]
	if len(m.h.origins) > len(few) {
		before = make([]int32, len(m.h.origins))
	}
	for i, p := range m.ops {
		for o, n := range m.h.seen(int(p)) {
			if n < before[o] {
				return Cell{}, false, nil
			}
		}
		before[m.h.org[p]] = m.h.rank[p] + 1
		r := m.read(p)
		if r.kind == opAssign {
			was := r.state()
			c := r.cell()
			if r.err != nil {
				return Cell{}, false, r.err
			}
			if was == stateAbsent {
				if i > 0 || m.base {
					return Cell{}, false, nil
				}
			} else if was != at {
				return Cell{}, false, nil
			}
			null, elements = c.Null, nil
			if !null {
				var err error
				if elements, err = s.abc.split(nil, c.Data); err != nil {
					return Cell{}, false, corrupt(err)
				}
			}
			at = s.abc.state(c, elements)
			continue
		}
		was, after := s.script(&r)
		if r.err == nil && (was != at || null) {
			return Cell{}, false, nil
		}
		for pos := 0; len(r.rest) > 0; {
			var h hunk
			h, s.room = r.hunk(&s.abc, s.room)
			pos = min(pos+h.keep, len(elements))
			end := min(pos+len(h.remove), len(elements))
			if !own {
				elements, own = append(make([]int32, 0, len(elements)+len(h.insert)+16), elements...), true
			}
			elements = slices.Replace(elements, pos, end, h.insert...)
			pos += len(h.insert)
		}
		if r.err != nil {
			return Cell{}, false, r.err
		}
		at = after
	}
	switch {
	case null:
		return Cell{Null: true}, true, nil
	case isBlock(elements):
		return Cell{Data: s.abc.values[^elements[0]]}, true, nil
	case slices.ContainsFunc(elements, func(e int32) bool { return e < 0 }):
		return Cell{}, false, nil
	}
	return Cell{Data: s.abc.join(make([]byte, 0, len(s.base.Data)+64), elements)}, true, nil
}

// script reads the head of an opScript.
func (s *sequence) script(r *opReader) (before, after state) {
	r.want(opScript)
	before, after = r.state(), r.state()
	if s.abc.typ == Array {
		if element := r.uint32(); !s.abc.typed {
			s.abc.element, s.abc.typed = element, true
		}
	}
	return before, after
}

// grow makes the tree of the value before the log, and the tables of ops.
func (s *sequence) grow(base []int32) {
	h, ops := s.m.h, s.m.ops
	k := len(h.origins)
	s.elements = make([]element, 1, 1+len(base)+2*len(ops))
	s.elements[0].op = math.MinInt32
	last := int32(0)
	for _, v := range base {
		last = s.add(last, false, v, -1)
	}
	s.lanes = h.split(ops, make([]int32, 0, len(ops)))
	buf := make([]int32, len(ops)*(k+1))
	s.seen, s.index = buf[:len(ops)*k], buf[len(ops)*k:]
	counts := make([]int32, k)
	for i, p := range ops {
		s.index[i] = counts[h.org[p]]
		counts[h.org[p]]++
	}
	s.views = make([]view, k)
}

// add puts an element at the end of its siblings, which is canonical order since ops come in that order.
func (s *sequence) add(parent int32, left bool, value, op int32) int32 {
	e := int32(len(s.elements))
	s.elements = append(s.elements, element{value: value, op: op})
	link := &s.elements[parent].right
	if left {
		link = &s.elements[parent].left
	}
	for *link != 0 {
		link = &s.elements[*link].next
	}
	*link = e
	s.inorder = s.inorder[:0]
	return e
}

// origin gives the origin of an op.
func (s *sequence) origin(op int32) int32 { return s.m.h.org[s.m.ops[op]] }

// in reports whether an op is in a version, or is the one that is being put in.
func (s *sequence) in(op, self int32, counts []int32) bool {
	return op < 0 || op == self || s.index[op] < counts[s.origin(op)]
}

// child gives the first of siblings that is in the version, or 0.
func (s *sequence) child(e, self int32, counts []int32) int32 {
	for e != 0 && !s.in(s.elements[e].op, self, counts) {
		e = s.elements[e].next
	}
	return e
}

// place inserts one element right behind another one, 0 for the beginning, as it is in that version: on the
// right of it if that is free, else on the left of whatever follows, visible or not.
func (s *sequence) place(behind, value, op int32, counts []int32) int32 {
	follows := int32(0)
	if behind == 0 {
		follows = s.child(s.elements[0].left, op, counts)
	}
	if follows == 0 {
		follows = s.child(s.elements[behind].right, op, counts)
	}
	if follows == 0 {
		return s.add(behind, false, value, op)
	}
	for {
		left := s.child(s.elements[follows].left, op, counts)
		if left == 0 {
			return s.add(follows, true, value, op)
		}
		follows = left
	}
}

// insert replays one op in the version that its author saw.
func (s *sequence) insert(op int32) error {
	r := s.m.read(s.m.ops[op])
	var was, after state
	if r.kind == opAssign {
		was = r.state()
	} else {
		was, after = s.script(&r)
	}
	if r.err != nil {
		return r.err
	}
	v, exact := s.seenBy(op, was)
	copy(s.seen[int(op)*len(s.lanes):], v.counts)
	if r.kind == opAssign {
		c := r.cell()
		s.room = s.room[:0]
		if !c.Null {
			var err error
			if s.room, err = s.abc.split(s.room, c.Data); err != nil {
				return corrupt(err)
			}
		}
		after = s.abc.state(c, s.room)
		s.deleteAll(v.shown, v, op)
		v.shown = s.assign(v.shown[:0], s.room, op)
		v.hidden = nil
		exact = true
	} else {
		run := s.edit
		if !exact {
			run = s.approximate
		}
		if err := run(&r, v, op); err != nil {
			return err
		}
	}
	v.counts[s.origin(op)] = s.index[op] + 1
	v.hash = after
	if !exact {
		*v = s.view(v.counts)
		v.inUse = true
	}
	return nil
}

// run inserts elements in a row and appends them to shown.
func (s *sequence) run(shown []int32, behind int32, values []int32, op int32, counts []int32) []int32 {
	for i, value := range values {
		if i == 0 {
			behind = s.place(behind, value, op, counts)
		} else {
			behind = s.add(behind, false, value, op)
		}
		shown = append(shown, behind)
	}
	return shown
}

// assign inserts elements in a row before all others: on the left of the root, the later op before the earlier.
// This place depends on nothing that the author saw, which may be known badly: that there was no row, or NULL,
// tells little of what had been in it. Later first is what folding makes of it, as base is on the right.
func (s *sequence) assign(shown []int32, values []int32, op int32) []int32 {
	for i, value := range values {
		if i > 0 {
			shown = append(shown, s.add(shown[i-1], false, value, op))
			continue
		}
		e := int32(len(s.elements))
		s.elements = append(s.elements, element{value: value, op: op, next: s.elements[0].left})
		s.elements[0].left = e
		s.inorder = s.inorder[:0]
		shown = append(shown, e)
	}
	return shown
}

// edit runs a script on the version that it was made of.
func (s *sequence) edit(r *opReader, v *view, op int32) error {
	pos, first := 0, true
	var out, added []int32
	for len(r.rest) > 0 {
		var h hunk
		if h, s.room = r.hunk(&s.abc, s.room); r.err != nil {
			return r.err
		}
		from := min(pos+h.keep, len(v.shown))
		to := min(from+len(h.remove), len(v.shown))
		behind := int32(0)
		if from > 0 {
			behind = v.shown[from-1]
		}
		added = s.run(added[:0], behind, h.insert, op, v.counts)
		s.deleteAll(v.shown[from:to], v, op)
		if first && len(r.rest) == 0 {
			v.shown = slices.Replace(v.shown, from, to, added...)
			return nil
		}
		out = append(append(out, v.shown[pos:from]...), added...)
		pos, first = to, false
	}
	v.shown = append(out, v.shown[pos:]...)
	return r.err
}

// reach is how far from its place an element is looked for, when the place is not known exactly.
const reach = 1000

// approximate runs a script on another version than that which it was made of, because that was not found:
// it deletes the nearest elements of the values that the script names, and inserts beside them.
func (s *sequence) approximate(r *opReader, v *view, op int32) error {
	gone := make(map[int]bool)
	nearest := func(value int32, at int) int {
		for d := range reach {
			for _, j := range [2]int{at - d, at + d} {
				if j >= 0 && j < len(v.shown) && s.elements[v.shown[j]].value == value && !gone[j] {
					return j
				}
			}
		}
		return -1
	}
	for at := 0; len(r.rest) > 0; {
		var h hunk
		if h, s.room = r.hunk(&s.abc, s.room); r.err != nil {
			return r.err
		}
		at = min(at+h.keep, len(v.shown))
		where := -1
		for i, value := range h.remove {
			if j := nearest(value, at+i); j >= 0 {
				gone[j] = true
				s.deleteAll(v.shown[j:j+1], v, op)
				if where < 0 {
					where = j
				}
			}
		}
		if where < 0 {
			where = at
		}
		behind := int32(0)
		if where > 0 {
			behind = v.shown[where-1]
		}
		s.run(nil, behind, h.insert, op, v.counts)
		at += len(h.remove)
	}
	return r.err
}

func (s *sequence) deleteAll(shown []int32, v *view, op int32) {
	for _, e := range shown {
		s.delete(e, op)
		for _, twin := range v.hidden[e] {
			s.delete(twin, op)
		}
		if v.hidden != nil {
			delete(v.hidden, e)
		}
	}
}

func (s *sequence) delete(e, op int32) {
	s.deletes = append(s.deletes, deletion{op, s.elements[e].deleted})
	s.elements[e].deleted = int32(len(s.deletes))
}

// seenBy gives the version that the op's author saw, for the caller to go on from, and whether it is known
// to be the one: its value's hash is the op's own.
func (s *sequence) seenBy(op int32, was state) (*view, bool) {
	h, p, own := s.m.h, s.m.ops[op], s.origin(op)
	counts := make([]int32, len(s.lanes))
	var v *view
	exact := false
	if was == stateAbsent {
		all := make([]int32, len(s.lanes))
		exact = h.guess(p, h.lanes, all, func(c []int32) bool {
			exists, _ := h.exists(s.m.rules.Deletes, s.m.base, c)
			return !exists || s.m.rules.trusting
		})
		for o, lane := range s.lanes {
			counts[o] = h.within(lane, all[o])
		}
	} else {
		var made view
		exact = h.guess(p, s.lanes, counts, func(c []int32) bool {
			if v = s.known(c); v == nil {
				made = s.view(c)
				v = &made
			}
			if v.hash == 0 {
				c := s.value(v, false)
				v.hash = stateOf(c, s.abc.typ)
			}
			return v.hash == was || s.m.rules.trusting
		})
	}
	if !exact || v == nil {
		if v = s.known(counts); v == nil {
			made := s.view(counts)
			v = &made
		}
	}
	mine := &s.views[own]
	if v != mine {
		hidden := v.hidden
		if v.inUse { // another origin goes on from it too
			hidden = make(map[int32][]int32, len(v.hidden))
			for e, twins := range v.hidden {
				hidden[e] = twins
			}
		}
		*mine = view{
			counts: append(mine.counts[:0], v.counts...),
			shown:  append(mine.shown[:0], v.shown...),
			hidden: hidden, hash: v.hash, inUse: true,
		}
	}
	return mine, exact
}

// known gives an author's version of exactly these ops, if there is one.
func (s *sequence) known(counts []int32) *view {
	for o := range s.views {
		if v := &s.views[o]; v.inUse && slices.Equal(v.counts, counts) {
			return v
		}
	}
	return nil
}

// view makes the version that consists of so many ops of each origin.
func (s *sequence) view(counts []int32) view {
	v := view{counts: slices.Clone(counts)}
	var first map[int32][]int32 // by value: the elements that can hide equal ones, one of each op
	for _, e := range s.traverse() {
		el := &s.elements[e]
		if !s.in(el.op, -1, counts) || s.gone(el.deleted, counts) {
			continue
		}
		if s.m.unit.Rule == Set && el.op >= 0 && el.value >= 0 {
			if first == nil {
				first = make(map[int32][]int32)
			}
			twin, mine := int32(0), false
			for _, f := range first[el.value] {
				if s.concurrent(s.elements[f].op, el.op) {
					twin = f
					break
				}
				mine = mine || s.elements[f].op == el.op
			}
			if twin != 0 {
				if v.hidden == nil {
					v.hidden = make(map[int32][]int32)
				}
				v.hidden[twin] = append(v.hidden[twin], e)
				continue
			}
			if !mine {
				first[el.value] = append(first[el.value], e)
			}
		}
		v.shown = append(v.shown, e)
	}
	return v
}

func (s *sequence) gone(deletion int32, counts []int32) bool {
	for ; deletion != 0; deletion = s.deletes[deletion-1].next {
		if s.in(s.deletes[deletion-1].op, -1, counts) {
			return true
		}
	}
	return false
}

// concurrent reports whether neither op's author had really seen the other op.
func (s *sequence) concurrent(a, b int32) bool {
	k := len(s.lanes)
	return a != b && s.seen[int(a)*k+int(s.origin(b))] <= s.index[b] && s.seen[int(b)*k+int(s.origin(a))] <= s.index[a]
}

// traverse gives all elements in order. It is made anew only after something was inserted.
func (s *sequence) traverse() []int32 {
	if len(s.inorder) > 0 || len(s.elements) == 1 {
		return s.inorder
	}
	s.stack = append(s.stack[:0], 0)
	for len(s.stack) > 0 {
		top := s.stack[len(s.stack)-1]
		s.stack = s.stack[:len(s.stack)-1]
		e := top >> 1
		if top&1 == 1 {
			if e != 0 {
				s.inorder = append(s.inorder, e)
			}
			continue
		}
		from := len(s.stack)
		for c := s.elements[e].left; c != 0; c = s.elements[c].next {
			s.stack = append(s.stack, c<<1)
		}
		s.stack = append(s.stack, e<<1|1)
		for c := s.elements[e].right; c != 0; c = s.elements[c].next {
			s.stack = append(s.stack, c<<1)
		}
		slices.Reverse(s.stack[from:])
	}
	return s.inorder
}

// value gives a version's value; unless it is to be kept it shares memory with the next one. Where nothing is
// shown it is NULL if the last op of the version, or base if there is none, says so. Of blocks the last
// stands alone.
func (s *sequence) value(v *view, keep bool) Cell {
	block := int32(0)
	s.room = s.room[:0]
	for _, e := range v.shown {
		el := &s.elements[e]
		s.room = append(s.room, el.value)
		if el.value < 0 && (block == 0 || el.op >= s.elements[block].op) {
			block = e
		}
	}
	if block != 0 {
		return Cell{Data: s.abc.values[^s.elements[block].value]}
	}
	if len(v.shown) == 0 {
		last := int32(-1)
		for o, n := range v.counts {
			if n > 0 {
				last = max(last, s.lanes[o][n-1])
			}
		}
		null := s.base.Null
		if last >= 0 {
			r := s.m.read(last)
			null = r.kind == opAssign && r.assigned().Null
		}
		if null {
			return Cell{Null: true}
		}
	}
	to := s.text[:0]
	if keep {
		to = make([]byte, 0, len(v.shown)+16)
	}
	to = s.abc.join(to, s.room)
	if !keep {
		s.text = to
	}
	return Cell{Data: to}
}
