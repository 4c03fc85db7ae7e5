package wire

import (
	"encoding/binary"
	"math"

	"github.com/zeebo/xxh3"
)

// KeyHash identifies a row of one table at one node: 128 bits of hash over the table's name and the
// canonical bytes of its key. It never leaves the node, so nodes may differ in how they compute it.
type KeyHash struct{ Hi, Lo uint64 }

// KeyHasher hashes keys of one table. Not safe for concurrent use.
type KeyHasher struct {
	types []uint32
	buf   []byte
	head  int
}

// NewKeyHasher returns a hasher for the table whose key columns, in the order in which Hash gets them,
// have these type object ids.
func NewKeyHasher(schema, table string, types []uint32) *KeyHasher {
	buf := appendString(appendString(nil, schema), table)
	return &KeyHasher{types: types, buf: buf, head: len(buf)}
}

const (
	oidInt8    = 20
	oidInt2    = 21
	oidInt4    = 23
	oidFloat4  = 700
	oidFloat8  = 701
	oidNumeric = 1700
)

// Hash returns the hash of a key. Values that PostgreSQL's default btree operators call equal but that
// differ in their bytes (numeric 1.0 and 1.00, float -0 and 0) get the same hash. So do integers of different
// width: a key that is widened by ALTER TABLE stays the same key.
func (h *KeyHasher) Hash(key []Value) KeyHash {
	b := h.buf[:h.head]
	for i, v := range key {
		if v.Format == Null || v.Format == Unchanged {
			b = append(b, byte(v.Format))
			continue
		}
		data := v.Data
		if v.Format == Binary && i < len(h.types) {
			if n, ok := integer(h.types[i], data); ok {
				b = binary.BigEndian.AppendUint64(append(b, 'v', 8), uint64(n))
				continue
			}
			data = canonical(h.types[i], data)
		}
		b = append(b, 'v')
		b = binary.AppendUvarint(b, uint64(len(data)))
		b = append(b, data...)
	}
	h.buf = b
	sum := xxh3.Hash128(b)
	return KeyHash{sum.Hi, sum.Lo}
}

// canonical gives equal bytes to equal values of the types whose binary form has several for one value.
func canonical(oid uint32, b []byte) []byte {
	switch oid {
	case oidFloat4:
		if len(b) == 4 && binary.BigEndian.Uint32(b) == 1<<31 {
			return make([]byte, 4)
		}
	case oidFloat8:
		if len(b) == 8 && binary.BigEndian.Uint64(b) == math.Float64bits(math.Copysign(0, -1)) {
			return make([]byte, 8)
		}
	case oidNumeric:
		// ndigits, weight, sign, dscale: int16 each, then digits. Only dscale, the number of shown
		// decimals, differs between equal values; the server strips zero digits itself.
		if len(b) >= 8 {
			c := append([]byte(nil), b...)
			c[6], c[7] = 0, 0
			return c
		}
	}
	return b
}

// integer reads an integer. Its bytes tell its width: they may have been written before the column's type was
// changed, or be read by somebody who does not know of that yet.
func integer(oid uint32, b []byte) (int64, bool) {
	if oid != oidInt2 && oid != oidInt4 && oid != oidInt8 {
		return 0, false
	}
	switch len(b) {
	case 2:
		return int64(int16(binary.BigEndian.Uint16(b))), true
	case 4:
		return int64(int32(binary.BigEndian.Uint32(b))), true
	case 8:
		return int64(binary.BigEndian.Uint64(b)), true
	}
	return 0, false
}
