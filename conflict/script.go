package conflict

import (
	"encoding/binary"
	"slices"
	"unicode/utf8"
)

// alphabet turns a sequence value into elements and back. An element is a rune of a text; of an array it is
// an index into values, the same one for equal values. A value that is no plain sequence (an array of several
// dimensions, a jsonb object, a text that is no utf-8) is one element that is ^index, the block.
type alphabet struct {
	typ     Type
	values  [][]byte // nil: a NULL in an array
	known   map[string]int32
	null    int32 // index of the NULL, from 1
	element uint32
	typed   bool // element is set
}

func (a *alphabet) intern(b []byte) int32 {
	if b == nil {
		if a.null == 0 {
			a.values = append(a.values, nil)
			a.null = int32(len(a.values))
		}
		return a.null - 1
	}
	if i, ok := a.known[string(b)]; ok {
		return i
	}
	if a.known == nil {
		a.known = make(map[string]int32)
	}
	i := int32(len(a.values))
	a.values = append(a.values, b)
	a.known[string(b)] = i
	return i
}

func (a *alphabet) block(b []byte) int32 {
	a.values = append(a.values, b)
	return ^int32(len(a.values) - 1)
}

// split appends the elements of a value that is not NULL.
func (a *alphabet) split(to []int32, b []byte) ([]int32, error) {
	switch a.typ {
	case TextType:
		if !utf8.Valid(b) {
			return append(to, a.block(b)), nil
		}
		for i := 0; i < len(b); {
			c, size := utf8.DecodeRune(b[i:])
			to = append(to, c)
			i += size
		}
		return to, nil
	case JSONB:
		text, err := jsonText(JSONB, b)
		if err != nil {
			return nil, err
		}
		if text[0] != '[' {
			return append(to, a.block(b)), nil
		}
		err = eachElement(text, func(value []byte) { to = append(to, a.intern(value)) })
		return to, err
	}
	return a.splitArray(to, b)
}

// splitArray reads array_send's format: dimensions, has-null flag, element type; length and lower bound of
// each dimension; the elements, each with its length, -1 for NULL.
func (a *alphabet) splitArray(to []int32, b []byte) ([]int32, error) {
	r := opReader{rest: b}
	dimensions, _, element := r.uint32(), r.uint32(), r.uint32()
	if r.err == nil && !a.typed {
		a.element, a.typed = element, true
	}
	if dimensions == 0 && r.err == nil && len(r.rest) == 0 {
		return to, nil
	}
	if dimensions > 1 && dimensions <= 6 {
		return append(to, a.block(b)), nil
	}
	count, lower := r.uint32(), r.uint32()
	if r.err == nil && lower != 1 {
		return append(to, a.block(b)), nil
	}
	if dimensions != 1 || uint64(count) > uint64(len(r.rest))/4 {
		r.fail("no array")
	}
	for ; count > 0 && r.err == nil; count-- {
		size := r.uint32()
		switch {
		case size == 1<<32-1:
			to = append(to, a.intern(nil))
		case uint64(size) > uint64(len(r.rest)):
			r.fail("element beyond the end")
		default:
			to = append(to, a.intern(r.rest[:size:size]))
			r.rest = r.rest[size:]
		}
	}
	if len(r.rest) > 0 {
		r.fail("bytes behind the array")
	}
	return to, r.err
}

// join appends the value of these elements, in the one spelling that it has. A block cannot stand beside
// other elements: only the last of the blocks is left, of what the caller puts in canonical order.
func (a *alphabet) join(to []byte, elements []int32) []byte {
	if a.typ == TextType {
		for _, e := range elements {
			to = utf8.AppendRune(to, e)
		}
		return to
	}
	if a.typ == JSONB {
		to = append(to, 1, '[')
		for i, e := range elements {
			if i > 0 {
				to = append(to, ", "...)
			}
			to = append(to, a.values[e]...)
		}
		return append(to, ']')
	}
	if len(elements) == 0 {
		to = append(to, 0, 0, 0, 0, 0, 0, 0, 0)
		return binary.BigEndian.AppendUint32(to, a.element)
	}
	nulls := byte(0)
	if slices.Contains(elements, a.null-1) {
		nulls = 1
	}
	to = append(to, 0, 0, 0, 1, 0, 0, 0, nulls)
	to = binary.BigEndian.AppendUint32(to, a.element)
	to = binary.BigEndian.AppendUint32(to, uint32(len(elements)))
	to = append(to, 0, 0, 0, 1)
	for _, e := range elements {
		v := a.values[e]
		if v == nil {
			to = append(to, 0xFF, 0xFF, 0xFF, 0xFF)
			continue
		}
		to = append(binary.BigEndian.AppendUint32(to, uint32(len(v))), v...)
	}
	return to
}

// state hashes a value in the spelling that join gives it.
func (a *alphabet) state(c Cell, elements []int32) state {
	if c.Null || a.typ == TextType || isBlock(elements) {
		return stateOf(c, a.typ)
	}
	return stateOf(Cell{Data: a.join(make([]byte, 0, len(c.Data)), elements)}, a.typ)
}

func isBlock(elements []int32) bool { return len(elements) == 1 && elements[0] < 0 }

// hunk is one step of an edit script: skip some elements, insert some, delete some. What is deleted is named,
// so that nothing else is if its place cannot be told exactly.
type hunk struct {
	keep           int
	remove, insert []int32
}

// scriptOp is the edit script between two values. An insert, a NULL and a block are assignments: they replace
// all that their author saw.
func scriptOp(t Type, inserted bool, before, after Cell) (Op, error) {
	a := alphabet{typ: t}
	var from, to []int32
	var err error
	if !before.Null {
		if from, err = a.split(nil, before.Data); err != nil {
			return nil, err
		}
	}
	if !after.Null {
		if to, err = a.split(nil, after.Data); err != nil {
			return nil, err
		}
	}
	was := stateAbsent
	if !inserted {
		was = a.state(before, from)
	}
	if inserted || before.Null || after.Null || isBlock(from) || isBlock(to) {
		if !after.Null && !isBlock(to) && t != TextType {
			after.Data = a.join(nil, to)
		}
		return assignOp(was, after), nil
	}
	o := newOp(opScript, 48).state(was).state(a.state(after, to))
	if t == Array {
		o = binary.BigEndian.AppendUint32(o, a.element)
	}
	for _, h := range compareSequences(from, to) {
		o = a.write(a.write(o.number(h.keep), h.remove), h.insert)
	}
	return o, nil
}

// write appends elements to an op.
func (a *alphabet) write(o Op, elements []int32) Op {
	if a.typ == TextType {
		size := 0
		for _, e := range elements {
			size += utf8.RuneLen(e)
		}
		return a.join(o.number(size), elements)
	}
	o = o.number(len(elements))
	for _, e := range elements {
		if v := a.values[e]; v == nil {
			o = o.number(0)
		} else {
			o = append(o.number(len(v)+1), v...)
		}
	}
	return o
}

// hunk reads the next hunk. Its elements are put into room, over what is there.
func (r *opReader) hunk(a *alphabet, room []int32) (hunk, []int32) {
	h := hunk{keep: r.number()}
	room = r.elements(a, room[:0])
	removed := len(room)
	room = r.elements(a, room)
	h.remove, h.insert = room[:removed:removed], room[removed:]
	return h, room
}

// elements reads what write has written and appends it to room.
func (r *opReader) elements(a *alphabet, room []int32) []int32 {
	if a.typ == TextType {
		text := r.bytes()
		if !utf8.Valid(text) {
			r.fail("no utf-8")
			return room
		}
		room, _ = a.split(room, text) // no text is in error
		return room
	}
	count := r.number()
	if count > len(r.rest) {
		r.fail("more elements than bytes")
	}
	for ; count > 0 && r.err == nil; count-- {
		size := r.number()
		if size == 0 && a.typ == Array {
			room = append(room, a.intern(nil))
			continue
		}
		if size--; size < 0 || size > len(r.rest) || a.typ == JSONB && !wholeValue(r.rest[:size]) {
			r.fail("bad element")
			break
		}
		room = append(room, a.intern(r.rest[:size:size]))
		r.rest = r.rest[size:]
	}
	return room
}

// maxEdits bounds the effort of comparing: beyond, what differs is replaced whole. Time grows with its
// product with the length, and memory with its square.
const maxEdits = 256

// compareSequences gives the edit script from a to b: what both begin and end with is trimmed, the rest is
// compared by Myers' greedy algorithm ("An O(ND) Difference Algorithm and Its Variations", 1986).
func compareSequences(a, b []int32) []hunk {
	start := 0
	for start < len(a) && start < len(b) && a[start] == b[start] {
		start++
	}
	a, b = a[start:], b[start:]
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	whole := []hunk{{start, a, b}}
	switch {
	case len(a) == 0 && len(b) == 0:
		return nil
	case len(a) == 0 || len(b) == 0:
		return whole
	}
	limit := min(maxEdits, len(a)+len(b))
	// reach[k+limit] is how far in a the diagonal x-y=k has come.
	reach := make([]int32, 2*limit+2)
	var trace [][]int32 // by number of edits: diagonals -d to d as they were before that step
	for d := 0; d <= limit; d++ {
		trace = append(trace, slices.Clone(reach[limit-d:limit+d+2]))
		for k := -d; k <= d; k += 2 {
			var x int32
			if k == -d || k != d && reach[limit+k-1] < reach[limit+k+1] {
				x = reach[limit+k+1]
			} else {
				x = reach[limit+k-1] + 1
			}
			for int(x) < len(a) && int(x)-k < len(b) && a[x] == b[int(x)-k] {
				x++
			}
			reach[limit+k] = x
			if int(x) >= len(a) && int(x)-k >= len(b) {
				return backtrack(trace, a, b, start)
			}
		}
	}
	return whole
}

// backtrack follows the trace from the end and collects the edits as hunks.
func backtrack(trace [][]int32, a, b []int32, start int) []hunk {
	x, y := len(a), len(b)
	type edit struct {
		x, y   int
		insert bool
	}
	var edits []edit
	for d := len(trace) - 1; d > 0; d-- {
		at := func(k int) int { return int(trace[d][k+d]) } // as it was before step d
		k := x - y
		insert := k == -d || k != d && at(k-1) < at(k+1)
		if insert {
			x = at(k + 1)
			y = x - k - 1
		} else {
			x = at(k - 1)
			y = x - k + 1
		}
		edits = append(edits, edit{x, y, insert})
	}
	var hunks []hunk
	at, end := -start, -1 // in a: where the last hunk ends
	for _, e := range slices.Backward(edits) {
		if e.x != end {
			hunks = append(hunks, hunk{keep: e.x - at})
			end, at = e.x, e.x
		}
		h := &hunks[len(hunks)-1]
		if e.insert {
			h.insert = append(h.insert, b[e.y])
		} else {
			h.remove = append(h.remove, a[e.x])
			end++
			at = end
		}
	}
	return hunks
}
