package conflict

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// Op is what a write did to one unit: opaque, and complete in itself, so that it can be stored and sent.
// Its first byte is the version of the encoding.
type Op []byte

// ErrCorrupt is wrapped by errors about an Op that cannot be read, or that belongs to another rule.
var ErrCorrupt = errors.New("corrupt op")

const opVersion = 1

// The kinds of ops, which are their second byte.
const (
	opPick   = 'p' // null byte and value of each column
	opAssign = 'a' // state before, null byte, value
	opAdd    = 'i' // state after, sign, amount
	opSum    = 'n' // state after, display scale after, numeric to add
	opRaise  = 'r' // value
	opPatch  = 'j' // state after, value after (json), changes
	opScript = 's' // state before, state after, element type (arrays), hunks
)

// state is a 64-bit hash of a unit's value, by which a write tells what its author saw.
type state uint64

const (
	stateAbsent state = 1 // there is no row
	stateNull   state = 2
)

// stateOf hashes a value as it is written by the types' own code, so that two spellings never meet here.
// Any good mixing does, as long as all nodes have the same; this is wyhash's step (Wang Yi).
func stateOf(c Cell, t Type) state {
	if c.Null {
		return stateNull
	}
	h := uint64(len(c.Data)) ^ 0x9e3779b97f4a7c15
	b := c.Data
	if t == Array && len(b) >= 12 { // the element type's number can differ between nodes
		h = mix(h, binary.BigEndian.Uint64(b))
		b = b[12:]
	}
	for ; len(b) >= 8; b = b[8:] {
		h = mix(h, binary.LittleEndian.Uint64(b))
	}
	var last [8]byte
	copy(last[:], b)
	h = mix(h, binary.LittleEndian.Uint64(last[:]))
	return state(max(h, 3))
}

func mix(h, v uint64) uint64 {
	hi, lo := bits.Mul64(h^0xa0761d6478bd642f, v^0xe7037ed1a0b428db)
	return hi ^ lo
}

func newOp(kind byte, size int) Op { return append(make(Op, 0, 2+size), opVersion, kind) }

func (o Op) state(s state) Op  { return binary.LittleEndian.AppendUint64(o, uint64(s)) }
func (o Op) number(n int) Op   { return binary.AppendUvarint(o, uint64(n)) }
func (o Op) bytes(b []byte) Op { return append(o.number(len(b)), b...) }

func (o Op) cell(c Cell) Op {
	if c.Null {
		return append(o, 1)
	}
	return append(append(o, 0), c.Data...)
}

// opReader takes an op apart. After the first fault it gives zeros and remembers the fault.
type opReader struct {
	rest []byte
	kind byte
	err  error
}

func readOp(o Op) opReader {
	switch {
	case len(o) < 2:
		return opReader{err: fmt.Errorf("%w: %d bytes", ErrCorrupt, len(o))}
	case o[0] != opVersion:
		return opReader{err: fmt.Errorf("%w: version %d, this program knows %d", ErrCorrupt, o[0], opVersion)}
	}
	return opReader{rest: o[2:], kind: o[1]}
}

func (r *opReader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", ErrCorrupt, what)
	}
	r.rest = nil
}

func (r *opReader) byte() byte {
	if len(r.rest) == 0 {
		r.fail("ends early")
		return 0
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b
}

func (r *opReader) state() state {
	if len(r.rest) < 8 {
		r.fail("ends early")
		return 0
	}
	s := binary.LittleEndian.Uint64(r.rest)
	r.rest = r.rest[8:]
	return state(s)
}

func (r *opReader) uint32() uint32 {
	if len(r.rest) < 4 {
		r.fail("ends early")
		return 0
	}
	n := binary.BigEndian.Uint32(r.rest)
	r.rest = r.rest[4:]
	return n
}

func (r *opReader) uint64() uint64 {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 {
		r.fail("bad number")
		return 0
	}
	r.rest = r.rest[size:]
	return n
}

// number reads a count, cut to what an int32 holds: nothing has that many elements.
func (r *opReader) number() int { return int(min(r.uint64(), 1<<31-1)) }

func (r *opReader) bytes() []byte {
	n := r.number()
	if n > len(r.rest) {
		r.fail("length beyond the end")
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

// cell reads a value that goes to the end of the op.
func (r *opReader) cell() Cell {
	null := r.byte() == 1
	c := Cell{Null: null, Data: r.rest}
	if null {
		c.Data = nil
	}
	return c
}

// want faults an op of another kind than its rule has.
func (r *opReader) want(kind byte) {
	if r.err == nil && r.kind != kind {
		r.fail("op of another rule")
	}
}

// assigned reads the value of an opAssign.
func (r *opReader) assigned() Cell {
	r.want(opAssign)
	r.state()
	return r.cell()
}

// after gives the state of the unit right after the write, at its author.
func (r *opReader) after(t Type) state {
	switch r.kind {
	case opAssign:
		return stateOf(r.assigned(), t)
	case opScript:
		r.state()
	}
	return r.state()
}

func corrupt(err error) error { return fmt.Errorf("%w: %w", ErrCorrupt, err) }

// pickOp carries the new values of all columns of the unit.
func pickOp(u *Unit, row []Cell) Op {
	size := 0
	for _, col := range u.Columns {
		size += 1 + binary.MaxVarintLen32 + len(row[col].Data)
	}
	o := newOp(opPick, size)
	for _, col := range u.Columns {
		if row[col].Null {
			o = append(o, 1)
		} else {
			o = append(o, 0).bytes(row[col].Data)
		}
	}
	return o
}

// pick writes a pickOp's values into row.
func pick(o Op, u *Unit, row []Cell) error {
	r := readOp(o)
	r.want(opPick)
	for _, col := range u.Columns {
		switch r.byte() {
		case 0:
			row[col] = Cell{Data: r.bytes()}
		case 1:
			row[col] = Cell{Null: true}
		default:
			r.fail("bad null flag")
		}
	}
	if len(r.rest) > 0 {
		r.fail("bytes behind the end")
	}
	return r.err
}

func assignOp(before state, c Cell) Op { return newOp(opAssign, 9+len(c.Data)).state(before).cell(c) }
