package capture

import (
	"context"
	"encoding/binary"

	"github.com/pgbridge/pgbridge/wire"
)

// bigRow takes the key out of a row that arrives in parts, without holding the row: values of other columns
// are passed over. What it takes is a change's tuples, as in pgoutput's message behind the relation.
type bigRow struct {
	table    *Table
	kind     wire.Kind
	sub      uint32
	old, new []wire.Value // key columns only; the others stay Null
	had, has bool         // there was an old image, a new one

	step   rowStep
	head   []byte // of the fixed field that is being read
	tuple  *[]wire.Value
	column int
	left   int  // bytes to come of the present value
	keep   bool // it belongs to the key
	size   int  // of what was kept
}

// rowStep is what a bigRow expects next.
type rowStep byte

const (
	stepTag rowStep = iota
	stepCount
	stepFormat
	stepLength
)

// start makes b ready for a row.
func (b *bigRow) start(t *Table, kind wire.Kind, sub uint32) {
	*b = bigRow{table: t, kind: kind, sub: sub, head: b.head[:0]}
	b.old = make([]wire.Value, len(t.Columns))
	b.new = make([]wire.Value, len(t.Columns))
	for i := range t.Columns {
		b.old[i].Format, b.new[i].Format = wire.Null, wire.Null
	}
}

// feed takes the next bytes.
func (b *bigRow) feed(p []byte) error {
	for len(p) > 0 {
		if b.left > 0 {
			n := min(b.left, len(p))
			if b.keep {
				v := &(*b.tuple)[b.column]
				v.Data = append(v.Data, p[:n]...)
			}
			b.left -= n
			p = p[n:]
			if b.left == 0 {
				b.nextColumn()
			}
			continue
		}
		b.head = append(b.head, p[0])
		p = p[1:]
		if err := b.field(); err != nil {
			return err
		}
	}
	return nil
}

// field looks whether head is complete, and acts on it.
func (b *bigRow) field() error {
	switch b.step {
	case stepTag:
		switch b.head[0] {
		case 'K', 'O':
			b.tuple, b.had = &b.old, true
		case 'N':
			b.tuple, b.has = &b.new, true
		default:
			return protocolError("tuple %q in a row of %s", b.head[0], b.table.Name)
		}
		b.expect(stepCount)
	case stepCount:
		if len(b.head) < 2 {
			return nil
		}
		if n := int(binary.BigEndian.Uint16(b.head)); n != len(b.table.Columns) {
			return protocolError("row of %s with %d columns instead of %d", b.table.Name, n, len(b.table.Columns))
		}
		b.column = -1
		b.nextColumn()
	case stepFormat:
		f := wire.Format(b.head[0])
		if b.isKey() {
			(*b.tuple)[b.column].Format = f
		}
		switch f {
		case wire.Null, wire.Unchanged:
			b.nextColumn()
		case wire.Text, wire.Binary, wire.Sealed:
			b.expect(stepLength)
		default:
			return protocolError("value format %q in a row of %s", byte(f), b.table.Name)
		}
	case stepLength:
		if len(b.head) < 4 {
			return nil
		}
		return b.value(int(binary.BigEndian.Uint32(b.head)))
	}
	return nil
}

func (b *bigRow) value(n int) error {
	b.left, b.keep = n, b.isKey()
	if b.keep {
		if b.size += n; b.size > 2*maxKeyBytes {
			return protocolError("key of %d bytes in a row of %s", b.size, b.table.Name)
		}
	}
	if n == 0 {
		b.nextColumn()
	}
	return nil
}

func (b *bigRow) isKey() bool { return b.table.keyAt[b.column] >= 0 }

func (b *bigRow) expect(s rowStep) { b.step, b.head = s, b.head[:0] }

func (b *bigRow) nextColumn() {
	if b.column++; b.column == len(b.table.Columns) {
		b.expect(stepTag)
		return
	}
	b.expect(stepFormat)
}

// finish notes the row, which has arrived whole.
func (b *bigRow) finish(ctx context.Context, k *touched) error {
	if b.step != stepTag || b.left > 0 || len(b.head) > 0 {
		return protocolError("row of %s is cut off", b.table.Name)
	}
	before, after := b.old, b.new
	if !b.had {
		before = nil
	}
	if !b.has {
		after = nil
	}
	return k.images(ctx, b.table, b.kind, b.sub, before, after)
}
