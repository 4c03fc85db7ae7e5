package wire

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
)

// KeyForm says how equal values of a type are recognised by their bytes.
type KeyForm byte

// The forms. The containers keep their shape, and what is in them has a form of its own: the server's hash
// functions of containers leave out what the hash of an index may (the dimensions of an array, the end of
// a list in jsonb, the sign of a numeric), so that different keys would be one.
const (
	FormBytes      KeyForm = iota // equal values have equal bytes
	FormFloat4                    // -0 is 0, and every NaN is the same
	FormFloat8                    // the same
	FormNumeric                   // the number of shown decimals does not count
	FormInterval                  // a month is 30 days, a day 24 hours (interval_cmp_value in timestamp.c)
	FormPadded                    // bpchar: trailing blanks do not count
	FormJSON                      // jsonb: in its numbers, trailing zeros do not count
	FormArray                     // of Elem
	FormRange                     // with bounds of Elem
	FormMultirange                // with bounds of Elem
	FormRecord                    // of Fields
	FormInteger                   // the width does not count: ALTER TABLE may change it under way
	FormServed                    // the server says: citext, text under a collation that ignores case
)

// KeyType is a type of key columns as far as hashing must know it. nil is one of FormBytes. It does not
// change once built.
type KeyType struct {
	Form   KeyForm
	Elem   *KeyType
	Fields []*KeyType
	// The rest is for FormServed, and opaque here: how to ask the server for digests, and the object ids
	// of the type and of its array type.
	Query      string
	OID, Array uint32
}

// Served reports whether values of the type, or values in them, are hashed by the server.
func (t *KeyType) Served() bool {
	if t == nil {
		return false
	}
	for _, f := range t.Fields {
		if f.Served() {
			return true
		}
	}
	return t.Form == FormServed || t.Elem.Served()
}

// Respells reports whether a value may have other bytes and yet be equal: the key of a row then can be written in more
// than one way.
func (t *KeyType) Respells() bool {
	if t == nil {
		return false
	}
	switch t.Form {
	case FormBytes, FormInteger:
		return false
	case FormArray, FormRange, FormMultirange, FormRecord:
		return t.Elem.Respells() || slices.ContainsFunc(t.Fields, (*KeyType).Respells)
	}
	return true
}

// canonical appends bytes that are equal for equal values; false if v is not built as the type says, as
// a value from before the type was changed.
func (t *KeyType) canonical(dst []byte, v Value, d Digester) ([]byte, bool) {
	if v.Format == Binary {
		c := canonicalizer{out: dst, digester: d}
		c.value(t, v.Data)
		return c.out, !c.bad
	}
	switch t.Form { // the other forms have no text: their types can all be sent in binary
	case FormPadded:
		return append(dst, bytes.TrimRight(v.Data, " ")...), true
	case FormJSON:
		return appendJSON(dst, v.Data), true
	case FormServed:
		if d == nil {
			return dst, false
		}
		digest := d.Digest(t, v)
		return append(dst, digest[:]...), true
	}
	return dst, false
}

// canonicalizer walks a binary value and appends its canonical bytes to out. It follows array_send,
// range_send, multirange_send, record_send and those of the scalar types.
type canonicalizer struct {
	out      []byte
	digester Digester
	bad      bool
}

func (c *canonicalizer) value(t *KeyType, b []byte) {
	form := FormBytes
	if t != nil {
		form = t.Form
	}
	switch form {
	case FormBytes:
		c.out = append(c.out, b...)
	case FormInteger:
		c.integer(b)
	case FormFloat4:
		c.float4(b)
	case FormFloat8:
		c.float8(b)
	case FormNumeric:
		c.numeric(b)
	case FormInterval:
		c.interval(b)
	case FormPadded:
		c.out = append(c.out, bytes.TrimRight(b, " ")...)
	case FormJSON:
		if len(b) == 0 || b[0] != 1 { // the version of jsonb's binary form
			c.bad = true
			return
		}
		c.out = appendJSON(c.out, b[1:])
	case FormServed:
		if c.digester == nil {
			c.bad = true
			return
		}
		digest := c.digester.Digest(t, Value{Binary, b})
		c.out = append(c.out, digest[:]...)
	default:
		c.container(t, b)
	}
}

func (c *canonicalizer) float4(b []byte) {
	if c.bad = c.bad || len(b) != 4; c.bad {
		return
	}
	n := binary.BigEndian.Uint32(b)
	switch f := math.Float32frombits(n); {
	case f == 0:
		n = 0
	case f != f:
		n = 0x7fc00000
	}
	c.out = binary.BigEndian.AppendUint32(c.out, n)
}

func (c *canonicalizer) float8(b []byte) {
	if c.bad = c.bad || len(b) != 8; c.bad {
		return
	}
	n := binary.BigEndian.Uint64(b)
	switch f := math.Float64frombits(n); {
	case f == 0:
		n = 0
	case f != f:
		n = 0x7ff8 << 48
	}
	c.out = binary.BigEndian.AppendUint64(c.out, n)
}

// numeric: ndigits, weight, sign, dscale: int16 each, then digits. Only dscale, the number of shown
// decimals, differs between equal values; the server strips zero digits itself.
func (c *canonicalizer) numeric(b []byte) {
	if c.bad = c.bad || len(b) < 8; c.bad {
		return
	}
	c.out = append(c.out, b[:6]...)
	c.out = append(c.out, 0, 0)
	c.out = append(c.out, b[8:]...)
}

// interval: microseconds as int64, days and months as int32. The sum takes 128 bits.
func (c *canonicalizer) interval(b []byte) {
	if c.bad = c.bad || len(b) != 16; c.bad {
		return
	}
	micros := int64(binary.BigEndian.Uint64(b))
	days := int64(int32(binary.BigEndian.Uint32(b[8:]))) + 30*int64(int32(binary.BigEndian.Uint32(b[12:])))
	const dayMicros = 86_400_000_000
	// The product of two's complements, of which one is positive: the other's sign stands for -2^64.
	hi, lo := bits.Mul64(uint64(days), dayMicros)
	if days < 0 {
		hi -= dayMicros
	}
	lo, carry := bits.Add64(lo, uint64(micros), 0)
	hi += uint64(micros>>63) + carry
	c.out = binary.BigEndian.AppendUint64(c.out, hi)
	c.out = binary.BigEndian.AppendUint64(c.out, lo)
}

// maxDims is PostgreSQL's MAXDIM (utils/array.h).
const maxDims = 6

// container walks what holds other values. Object ids in it say nothing that the column's type does not.
func (c *canonicalizer) container(t *KeyType, b []byte) {
	in := fields{b: b}
	switch t.Form {
	case FormArray:
		dims := in.int32()
		in.int32() // whether there may be NULLs: that there are some stands with the elements
		in.int32() // object id of the element type
		if c.bad = c.bad || dims > maxDims; c.bad {
			return
		}
		c.out = binary.BigEndian.AppendUint32(c.out, uint32(dims))
		for range dims {
			c.out = append(c.out, in.take(8)...) // length and lower bound
		}
		for len(in.b) > 0 && !in.bad && !c.bad {
			c.sized(t.Elem, &in)
		}
	case FormRange:
		c.boundaries(t, &in)
	case FormMultirange:
		n := in.int32()
		c.out = binary.BigEndian.AppendUint32(c.out, uint32(n))
		for ; n > 0 && !in.bad && !c.bad; n-- {
			inner := fields{b: in.take(in.int32())}
			c.boundaries(t, &inner)
			c.bad = c.bad || inner.bad || len(inner.b) > 0
		}
	case FormRecord:
		c.bad = c.bad || in.int32() != len(t.Fields)
		for _, f := range t.Fields {
			if in.bad || c.bad {
				break
			}
			in.int32() // object id of the field's type
			c.sized(f, &in)
		}
	default:
		c.bad = true
	}
	c.bad = c.bad || in.bad || len(in.b) > 0
}

// sized takes a length and a value of that length; -1 is NULL.
func (c *canonicalizer) sized(t *KeyType, in *fields) {
	n := in.int32()
	if n < 0 {
		c.out = binary.BigEndian.AppendUint32(c.out, math.MaxUint32)
		return
	}
	at := len(c.out)
	c.out = append(c.out, 0, 0, 0, 0)
	b := in.take(n)
	if in.bad {
		return
	}
	c.value(t, b)
	binary.BigEndian.PutUint32(c.out[at:], uint32(len(c.out)-at-4))
}

// boundaries takes one range: flags, then the bounds that they say are there (rangetypes.h).
func (c *canonicalizer) boundaries(t *KeyType, in *fields) {
	const empty, lowerInf, upperInf, sent = 0x01, 0x08, 0x10, 0x1f
	f := in.take(1)
	if in.bad {
		return
	}
	c.out = append(c.out, f[0]&sent)
	if f[0]&empty != 0 {
		return
	}
	if f[0]&lowerInf == 0 {
		c.sized(t.Elem, in)
	}
	if f[0]&upperInf == 0 && !in.bad {
		c.sized(t.Elem, in)
	}
}

// fields takes the parts of a binary value off its front.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) take(n int) []byte {
	if n < 0 || n > len(f.b) {
		f.bad, f.b = true, nil
		return nil
	}
	b := f.b[:n]
	f.b = f.b[n:]
	return b
}

// int32 is negative behind the end.
func (f *fields) int32() int {
	if b := f.take(4); b != nil {
		return int(int32(binary.BigEndian.Uint32(b)))
	}
	return -1
}

// appendJSON appends a jsonb's text, of which the server has settled all but the scale of numbers:
// blanks, the order of keys, how strings are written (jsonb_out, escape_json, numeric_out).
func appendJSON(dst, b []byte) []byte {
	for i := 0; i < len(b); {
		switch ch := b[i]; {
		case ch == '"':
			n := stringEnd(b[i:])
			dst = append(dst, b[i:i+n]...)
			i += n
		case ch == '-' || ch >= '0' && ch <= '9':
			n := 1
			for i+n < len(b) && bytes.IndexByte([]byte("+-.0123456789Ee"), b[i+n]) >= 0 {
				n++
			}
			number := b[i : i+n]
			if bytes.IndexByte(number, '.') >= 0 && !bytes.ContainsAny(number, "eE") {
				number = bytes.TrimRight(bytes.TrimRight(number, "0"), ".")
			}
			dst = append(dst, number...)
			i += n
		default:
			dst = append(dst, ch)
			i++
		}
	}
	return dst
}

// stringEnd returns the length of the JSON string that b begins with.
func stringEnd(b []byte) int {
	for i := 1; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(b)
}

// integer's bytes tell its width: they may have been written before the column's type was changed, or be read
// by somebody who does not know of that yet.
func (c *canonicalizer) integer(b []byte) {
	var n int64
	switch len(b) {
	case 2:
		n = int64(int16(binary.BigEndian.Uint16(b)))
	case 4:
		n = int64(int32(binary.BigEndian.Uint32(b)))
	case 8:
		n = int64(binary.BigEndian.Uint64(b))
	default:
		c.bad = true
		return
	}
	c.out = binary.BigEndian.AppendUint64(c.out, uint64(n))
}
