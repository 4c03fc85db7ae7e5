package wire

import (
	"encoding/binary"
	"fmt"
)

// Format says how a Value came: pgoutput's own letters.
type Format byte

// The formats of a column's value. Unchanged is a third state beside a value and NULL: the column holds
// an on-disk TOAST value that the update did not touch, and that was not sent (PROOF.md F15).
const (
	Null      Format = 'n'
	Unchanged Format = 'u'
	Text      Format = 't'
	Binary    Format = 'b'
	Sealed    Format = 's' // a Text or Binary that only some nodes can read (Sealer.Value); the server sends none
)

// Value is one column of a tuple. Data is nil for Null and Unchanged, and shares memory with the tuple
// otherwise.
type Value struct {
	Format Format
	Data   []byte
}

// ParseTuple appends the columns of the tuple at the front of b to dst, and returns them with what
// stands behind the tuple. Errors wrap ErrCorrupt.
func ParseTuple(dst []Value, b []byte) (values []Value, rest []byte, err error) {
	if len(b) < 2 {
		return dst, nil, fmt.Errorf("%w: tuple is cut off", ErrCorrupt)
	}
	n := int(binary.BigEndian.Uint16(b))
	b = b[2:]
	for range n {
		if len(b) == 0 {
			return dst, nil, fmt.Errorf("%w: tuple is cut off", ErrCorrupt)
		}
		f := Format(b[0])
		switch f {
		case Null, Unchanged:
			dst = append(dst, Value{Format: f})
			b = b[1:]
		case Text, Binary, Sealed:
			if len(b) < 5 {
				return dst, nil, fmt.Errorf("%w: value is cut off", ErrCorrupt)
			}
			size := binary.BigEndian.Uint32(b[1:])
			if uint64(size) > uint64(len(b)-5) {
				return dst, nil, fmt.Errorf("%w: value of %d bytes, %d are left", ErrCorrupt, size, len(b)-5)
			}
			dst = append(dst, Value{f, b[5 : 5+size : 5+size]})
			b = b[5+size:]
		default:
			return dst, nil, fmt.Errorf("%w: unknown value format %q", ErrCorrupt, f)
		}
	}
	return dst, b, nil
}

// AppendTuple appends a tuple, as ParseTuple reads it.
func AppendTuple(dst []byte, values []Value) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(values)))
	for _, v := range values {
		dst = append(dst, byte(v.Format))
		if v.Format != Null && v.Format != Unchanged {
			dst = append(binary.BigEndian.AppendUint32(dst, uint32(len(v.Data))), v.Data...)
		}
	}
	return dst
}

// AppendValues appends the tuples of a change, as they stand behind its relation, with what f makes of each value; at is its column's place.
func AppendValues(dst, tuples []byte, f func(at int, v Value) (Value, error)) ([]byte, error) {
	var values []Value
	for len(tuples) > 0 {
		dst = append(dst, tuples[0])
		var err error
		if values, tuples, err = ParseTuple(values[:0], tuples[1:]); err != nil {
			return dst, err
		}
		for i := range values {
			if values[i], err = f(i, values[i]); err != nil {
				return dst, err
			}
		}
		dst = AppendTuple(dst, values)
	}
	return dst, nil
}

// Change is one row change, decoded as far as its columns. For an insert only New is set, for a delete
// only Old, for an update New and, if the key changed or the replica identity is FULL, Old.
type Change struct {
	Kind     Kind
	Relation uint32
	OldFull  bool // Old is the whole row (replica identity FULL), not only its key
	Old, New []Value
}

// Parse decodes the record of an insert, update or delete into c, reusing its slices. The values share
// memory with the record. Errors wrap ErrCorrupt.
func (c *Change) Parse(r Record) error {
	rel, b, err := ParseChange(r.Payload)
	if err != nil {
		return err
	}
	c.Kind, c.Relation, c.OldFull = r.Kind, rel, false
	c.Old, c.New = c.Old[:0], c.New[:0]
	if len(b) == 0 {
		return fmt.Errorf("%w: change without a tuple", ErrCorrupt)
	}
	if tag := b[0]; tag == 'K' || tag == 'O' {
		c.OldFull = tag == 'O'
		if c.Old, b, err = ParseTuple(c.Old, b[1:]); err != nil {
			return err
		}
	}
	if len(b) > 0 && b[0] == 'N' {
		if c.New, b, err = ParseTuple(c.New, b[1:]); err != nil {
			return err
		}
	}
	ok := len(b) == 0
	switch r.Kind {
	case KindInsert:
		ok = ok && len(c.Old) == 0 && len(c.New) > 0
	case KindUpdate:
		ok = ok && len(c.New) > 0
	case KindDelete:
		ok = ok && len(c.Old) > 0 && len(c.New) == 0
	default:
		ok = false
	}
	if !ok {
		return fmt.Errorf("%w: tuples do not fit a change of kind %q", ErrCorrupt, r.Kind)
	}
	return nil
}
