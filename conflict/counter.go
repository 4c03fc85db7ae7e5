package conflict

import (
	"encoding/binary"
	"fmt"
	"iter"
)

// deltaOp is the difference between two values, or the new one where there is no difference to tell.
func deltaOp(t Type, before, after Cell) (Op, error) {
	if before.Null || after.Null {
		if err := checkNumber(t, after); err != nil {
			return nil, err
		}
		return assignOp(0, after), nil
	}
	if t != Numeric {
		from, err := decodeInt(t, before.Data)
		if err != nil {
			return nil, err
		}
		to, err := decodeInt(t, after.Data)
		if err != nil {
			return nil, err
		}
		d, sign := wideOf(to).add(wideOf(from).neg()), byte(0)
		if d.hi < 0 {
			d, sign = d.neg(), 1
		}
		return binary.AppendUvarint(append(newOp(opAdd, 19).state(stateOf(after, t)), sign), d.lo), nil
	}
	from, err := decodeNumeric(before.Data)
	if err != nil {
		return nil, err
	}
	to, err := decodeNumeric(after.Data)
	if err != nil {
		return nil, err
	}
	if from.special != 0 || to.special != 0 {
		return assignOp(0, after), nil
	}
	scale := to.scale
	from.coef.Neg(from.coef)
	d := to.plus(from)
	return append(newOp(opSum, 40).state(stateOf(after, t)).number(scale), d.encode()...), nil
}

func checkNumber(t Type, c Cell) error {
	if c.Null {
		return nil
	}
	if t == Numeric {
		_, err := decodeNumeric(c.Data)
		return err
	}
	_, err := decodeInt(t, c.Data)
	return err
}

// mergeDelta adds up, from cut to cut. In each part the last assignment, or what was before the part, is
// where counting begins; increments that the assignment's author had seen are in it.
//
// An increment that stands alone between two cuts has seen all before it, so that its author's display scale
// is the result's; several give the widest scale of what was added.
func (m *merger) mergeDelta(value Cell) (Cell, error) {
	for part := range m.parts() {
		from := m.lastAssign(part)
		if from >= 0 {
			r := m.read(part[from])
			if value = r.assigned(); r.err != nil {
				return Cell{}, r.err
			}
			if err := checkNumber(m.unit.Type, value); err != nil {
				return Cell{}, corrupt(err)
			}
		}
		if value.Null || from >= 0 && len(part) == 1 {
			continue
		}
		var err error
		if m.unit.Type == Numeric {
			value, err = m.sumNumerics(value, part, from)
		} else {
			value, err = m.sumInts(value, part, from)
		}
		if err != nil {
			return Cell{}, err
		}
	}
	return value, nil
}

// increments gives the ops of a part that count: neither assignments nor seen by the one at from.
func (m *merger) increments(part []int32, from int) iter.Seq[*opReader] {
	return func(yield func(*opReader) bool) {
		for _, p := range part {
			if from >= 0 && (p == part[from] || m.h.covers(part[from], p)) {
				continue
			}
			if r := m.read(p); r.kind != opAssign && !yield(&r) {
				return
			}
		}
	}
}

func (m *merger) sumInts(value Cell, part []int32, from int) (Cell, error) {
	v, err := decodeInt(m.unit.Type, value.Data)
	if err != nil {
		return Cell{}, err
	}
	sum := wideOf(v)
	for r := range m.increments(part, from) {
		r.want(opAdd)
		r.state()
		sign, amount := r.byte(), r.uint64()
		if sign > 1 || len(r.rest) > 0 {
			r.fail("bad amount")
		}
		if r.err != nil {
			return Cell{}, r.err
		}
		d := wide{0, amount}
		if sign == 1 {
			d = d.neg()
		}
		sum = sum.add(d)
	}
	return Cell{Data: encodeInt(m.unit.Type, sum)}, nil
}

func (m *merger) sumNumerics(value Cell, part []int32, from int) (Cell, error) {
	sum, err := decodeNumeric(value.Data)
	if err != nil {
		return Cell{}, err
	}
	if sum.special != 0 {
		return value, nil // not a number stays so, and infinity too
	}
	for r := range m.increments(part, from) {
		r.want(opSum)
		r.state()
		scale := r.number()
		if r.err != nil {
			return Cell{}, r.err
		}
		d, err := decodeNumeric(r.rest)
		if err != nil || d.special != 0 || scale > numericMaxScale {
			return Cell{}, fmt.Errorf("%w: bad amount", ErrCorrupt)
		}
		sum = sum.plus(d)
		if len(part) == 1 {
			sum = sum.rescale(scale)
		}
	}
	return Cell{Data: sum.encode()}, nil
}

// extremeOp is "raise to" (for min: "lower to"), or an assignment if the write goes the other way, which is a
// deliberate reset. A new spelling of an equal value is a reset too, so that it is not lost.
func extremeOp(rule Rule, t Type, before, after Cell) (Op, error) {
	if before.Null || after.Null {
		if !after.Null {
			if _, err := compareValues(t, after.Data, after.Data); err != nil {
				return nil, err
			}
		}
		return assignOp(0, after), nil
	}
	c, err := compareValues(t, after.Data, before.Data)
	if err != nil {
		return nil, err
	}
	if rule == Max && c > 0 || rule == Min && c < 0 {
		return append(newOp(opRaise, len(after.Data)), after.Data...), nil
	}
	return assignOp(0, after), nil
}

// mergeExtreme takes the greatest (for min: the least) of the last assignment's value and of the raises that
// its author had not seen. Of equal ones the later stands; NULL gives way to every value, as in GREATEST.
func (m *merger) mergeExtreme(best Cell) (Cell, int32, error) {
	winner, from := int32(-1), m.lastAssign(m.ops)
	if from >= 0 {
		best = Cell{Null: true}
	}
	for i, p := range m.ops {
		r := m.read(p)
		var c Cell
		switch {
		case from >= 0 && i != from && (r.kind == opAssign || m.h.covers(m.ops[from], p)):
			continue
		case i == from:
			c = r.assigned()
		default:
			r.want(opRaise)
			c.Data = r.rest
		}
		if r.err != nil {
			return Cell{}, 0, r.err
		}
		order := 0
		switch {
		case best.Null:
		case c.Null:
			continue
		default:
			var err error
			if order, err = compareValues(m.unit.Type, c.Data, best.Data); err != nil {
				return Cell{}, 0, corrupt(err)
			}
		}
		if order == 0 || (order > 0) == (m.unit.Rule == Max) {
			best, winner = c, p
		}
	}
	return best, winner, nil
}
