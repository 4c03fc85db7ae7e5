package capture

import (
	"bytes"
	"context"
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
	// unhashed come into graves and keys by settle.
	unhashed unhashed
	waiting  int // of unhashed, those for keys

	old, new, key, other []wire.Value // scratch
}

func (k *touched) reset() {
	k.graves.reset()
	k.unhashed.reset()
	k.waiting = 0
	k.lifted, k.keys, k.many = false, k.keys[:0], false
}

// row notes a change; tuples is what stands behind the relation in pgoutput's message. A table without a
// key has no rows that a remote transaction could meet here, so nothing is noted of it.
func (k *touched) row(ctx context.Context, t *Table, kind wire.Kind, sub uint32, tuples []byte) error {
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
	return k.images(ctx, t, kind, sub, k.old, k.new)
}

// images notes a change whose key columns are known; the other values may be left out.
func (k *touched) images(ctx context.Context, t *Table, kind wire.Kind, sub uint32, before, after []wire.Value) error {
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
	moved := had && kind == wire.KindDelete
	if had && has {
		same, err := sameKey(ctx, t, k.key, k.other)
		if err != nil {
			return err
		}
		moved = !same
	}
	if moved {
		if err := k.bury(ctx, t, sub); err != nil {
			return err
		}
	}
	if k.lifted && kind != wire.KindDelete {
		return k.wrote(ctx, t, has)
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
func sameKey(ctx context.Context, t *Table, a, b []wire.Value) (bool, error) {
	for i := range a {
		if a[i].Format != b[i].Format || !bytes.Equal(a[i].Data, b[i].Data) {
			return t.same(ctx, a, b)
		}
	}
	return true, nil
}

func (k *touched) bury(ctx context.Context, t *Table, sub uint32) error {
	size := 0
	for _, v := range k.key {
		size += len(v.Data)
	}
	if size > maxKeyBytes {
		return fmt.Errorf("key of a deleted row of %s.%s has %d bytes, the limit is %d", t.Schema, t.Name, size, maxKeyBytes)
	}
	if t.hasher.Served() {
		return k.wait(ctx, unhashedKey{table: t, sub: sub, key: k.key})
	}
	return k.graves.add(grave{sub: sub, table: t, hash: t.hasher.Hash(k.key, nil), key: k.key})
}

func (k *touched) wrote(ctx context.Context, t *Table, known bool) error {
	switch {
	case k.many:
	case !known || len(k.keys)+k.waiting == liftedKeys:
		k.many = true
	case t.hasher.Served():
		k.waiting++
		return k.wait(ctx, unhashedKey{table: t, wrote: true, key: k.other})
	default:
		k.keys = append(k.keys, t.hasher.Hash(k.other, nil))
	}
	return nil
}

// wait lets a key wait to be hashed with others.
func (k *touched) wait(ctx context.Context, x unhashedKey) error {
	if k.unhashed.add(x) {
		return k.settle(ctx)
	}
	return nil
}
