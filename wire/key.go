package wire

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"
)

// KeyHash identifies a row of one table at one node: 128 bits of hash over the table's name and the
// canonical bytes of its key. Nodes may differ in how they compute it: see [KeyHasher.Shared].
type KeyHash struct{ Hi, Lo uint64 }

// Digest stands for a value in the canonical bytes of a key: what the server's hash function makes of it.
type Digest [16]byte

// Digester knows digests of values that only the server can hash.
type Digester interface {
	// Digest returns that of a value whose type has the form FormServed, the zero one if it is not
	// known. v is valid during the call only.
	Digest(t *KeyType, v Value) Digest
}

// KeyHasher hashes keys of one table. Not safe for concurrent use.
type KeyHasher struct {
	types  []*KeyType
	served bool
	buf    []byte
	head   int
	value  []byte // scratch: one value's canonical bytes
}

// NewKeyHasher returns a hasher for the table whose key columns, in the order in which Hash gets them, are
// of these types. A type that is nil, or missing at the end, is one of FormBytes.
func NewKeyHasher(schema, table string, types []*KeyType) *KeyHasher {
	buf := appendString(appendString(nil, schema), table)
	h := &KeyHasher{types: types, buf: buf, head: len(buf)}
	for _, t := range types {
		h.served = h.served || t.Served()
	}
	return h
}

// Served reports whether Hash needs a Digester.
func (h *KeyHasher) Served() bool { return h.served }

// Hash returns the hash of a key. Values that PostgreSQL's default operators call equal but that differ in
// their bytes (numeric 1.0 and 1.00, float -0 and 0) get the same hash. Without a Digester, values that
// only the server can hash count by their bytes.
func (h *KeyHasher) Hash(key []Value, d Digester) KeyHash {
	b := h.buf[:h.head]
	for i, v := range key {
		if v.Format == Null || v.Format == Unchanged {
			b = append(b, byte(v.Format))
			continue
		}
		data := v.Data
		if i < len(h.types) && h.types[i] != nil && h.types[i].Form != FormBytes {
			var ok bool
			if h.value, ok = h.types[i].canonical(h.value[:0], v, d); ok {
				data = h.value
			}
		}
		b = append(b, 'v')
		b = binary.AppendUvarint(b, uint64(len(data)))
		b = append(b, data...)
	}
	h.buf = b
	sum := xxh3.Hash128(b)
	return KeyHash{sum.Hi, sum.Lo}
}

// Shared returns what a Loss says of a key whose hash is k: the same on all nodes, or 0 where nodes may hash
// equal keys differently, by what only the server knows or by object ids in them.
func (h *KeyHasher) Shared(k KeyHash) uint64 {
	for _, t := range h.types {
		if t == nil {
			continue
		}
		switch t.Form {
		case FormServed, FormArray, FormRange, FormMultirange, FormRecord:
			return 0
		}
	}
	return k.Lo
}
