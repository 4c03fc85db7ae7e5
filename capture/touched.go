package capture

import (
	"bytes"
	"fmt"

	"github.com/pgbridge/pgbridge/wire"
)

// liftedKeys is how many keys of a lifted transaction are remembered one by one; a transaction with more
// counts as having written every key.
const liftedKeys = 64

// touched collects what a transaction's rows mean for others: the keys that it deletes and, if its stamp is
// lifted, the keys that it writes.
type touched struct {
	graves graves
	lifted bool           // written keys are wanted
	keys   []wire.KeyHash // of written rows, if lifted
	many   bool           // more than keys holds

	old, new, key, other []wire.Value // scratch
}

func (k *touched) reset() {
	k.graves.reset()
	k.lifted, k.keys, k.many = false, k.keys[:0], false
}

// row notes a change; tuples is what stands behind the relation in pgoutput's message. A table without a
// key has no rows that a remote transaction could meet here, so nothing is noted of it.
func (k *touched) row(t *Table, kind wire.Kind, sub uint32, tuples []byte) error {
	if len(tuples) == 0 {
		return protocolError("row of %s without a tuple", t.Name)
	}
	var err error
	k.old, k.new = k.old[:0], k.new[:0]
	if tag := tuples[0]; tag == 'K' || tag == 'O' {
		if k.old, tuples, err = wire.ParseTuple(k.old, tuples[1:]); err != nil {
			return protocolError("row of %s: %v", t.Name, err)
		}
	}
	if len(tuples) > 0 && tuples[0] == 'N' {
		if k.new, _, err = wire.ParseTuple(k.new, tuples[1:]); err != nil {
			return protocolError("row of %s: %v", t.Name, err)
		}
	}
	return k.images(t, kind, sub, k.old, k.new)
}

// images notes a change whose key columns are known; the other values may be left out.
func (k *touched) images(t *Table, kind wire.Kind, sub uint32, before, after []wire.Value) error {
	if len(t.Key) == 0 {
		k.many = true
		return nil
	}
	var had, has bool
	if kind != wire.KindInsert {
		k.key, had = t.keyOf(k.key, before)
	}
	if kind != wire.KindDelete {
		fill(t, before, after)
		k.other, has = t.keyOf(k.other, after)
	}
	if had && (kind == wire.KindDelete || has && !sameKey(t, k.key, k.other)) {
		if err := k.bury(t, sub); err != nil {
			return err
		}
	}
	if k.lifted && kind != wire.KindDelete {
		k.wrote(t, has)
	}
	return nil
}

// fill completes the new image's key: a key column whose TOAST value did not change is the old one's.
func fill(t *Table, before, after []wire.Value) {
	for _, i := range t.Key {
		if i < len(after) && i < len(before) && after[i].Format == wire.Unchanged {
			after[i] = before[i]
		}
	}
}

// sameKey compares as the index does: 1.0 and 1.00 are one key.
func sameKey(t *Table, a, b []wire.Value) bool {
	for i := range a {
		if a[i].Format != b[i].Format || !bytes.Equal(a[i].Data, b[i].Data) {
			return t.hasher.Hash(a) == t.hasher.Hash(b)
		}
	}
	return true
}

func (k *touched) bury(t *Table, sub uint32) error {
	size := 0
	for _, v := range k.key {
		size += len(v.Data)
	}
	if size > maxKeyBytes {
		return fmt.Errorf("key of a deleted row of %s.%s has %d bytes, the limit is %d", t.Schema, t.Name, size, maxKeyBytes)
	}
	return k.graves.add(grave{sub: sub, table: t, hash: t.hasher.Hash(k.key), key: k.key})
}

func (k *touched) wrote(t *Table, known bool) {
	switch {
	case k.many:
	case !known || len(k.keys) == liftedKeys:
		k.many = true
	default:
		k.keys = append(k.keys, t.hasher.Hash(k.other))
	}
}
