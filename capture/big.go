package capture

import (
	"context"
	"encoding/binary"

	"github.com/pgbridge/pgbridge/wire"
)

// bigMessage is a pgoutput message that arrives in parts. A row goes into its run as it comes; a logical
// message of that length is nobody's marker and is passed over.
type bigMessage struct {
	run    *run // nil: passed over
	rel    *relation
	seal   *wire.Sealer // what it is sealed by, nil if by nothing
	at     int          // of its head in the chunk
	row    *bigRow      // takes the key out, nil if it is not needed
	behind []byte       // what comes behind it
	held   *heldRow     // while it is not known what it is sealed by
	whole  *wholeRow    // of which single values are sealed
}

// bigPart takes the next part of a message of size bytes.
func (t *tagger) bigPart(ctx context.Context, b []byte, size int, first, last bool) error {
	if first {
		var err error
		if b, err = t.bigBegin(ctx, b, size); err != nil {
			return err
		}
	}
	g := t.big
	if g.whole != nil {
		return t.holdWhole(ctx, b, last)
	}
	if g.held != nil {
		var err error
		if b, err = t.release(ctx, b, last); err != nil {
			return err
		}
		first = true
	}
	if g.run == nil {
		return nil
	}
	at, part := len(t.chunk), wire.SealedRest
	if first {
		at, part = g.at, wire.SealedChange
	}
	t.chunk = g.rel.sealedBy(g.seal, append(t.chunk, b...), at, part)
	if g.row != nil {
		if err := g.row.feed(b); err != nil {
			return err
		}
		if last {
			if err := g.row.finish(ctx, &g.run.touched); err != nil {
				return err
			}
		}
	}
	if last {
		t.chunk = append(t.chunk, g.behind...)
	}
	return t.flushFull(ctx, g.run)
}

// bigBegin looks at the fixed part of the message and returns what stands behind it.
func (t *tagger) bigBegin(ctx context.Context, b []byte, size int) ([]byte, error) {
	t.big = &bigMessage{}
	kind := wire.Kind(b[0])
	switch kind {
	case wire.KindInsert, wire.KindUpdate, wire.KindDelete:
	case msgLogical:
		return nil, nil
	default:
		return nil, protocolError("message %q of %d bytes", b[0], size)
	}
	xid, rest, err := t.ownXID(b[1:])
	if err != nil {
		return nil, err
	}
	if len(rest) < 5 {
		return nil, protocolError("row %q of %d bytes", kind, size)
	}
	id, tuples := binary.BigEndian.Uint32(rest), rest[4:]
	r, err := t.announced(id)
	if r == nil || err != nil {
		return nil, err
	}
	size -= len(b) - len(tuples)
	if r.unplaced != nil {
		return nil, r.unplaced
	}
	if r.sealsValues() {
		t.big.whole = &wholeRow{kind: kind, xid: xid, id: id, tuples: make([]byte, 0, size)}
		return tuples, nil
	}
	if r.places != nil && t.opts.SealRow != nil {
		t.hold(r, kind, xid, id, size)
		return tuples, nil
	}
	return tuples, t.bigStart(ctx, kind, xid, id, size, tuples[0] != 'N')
}

// announced returns the relation of a row; nil if the row is to be dropped.
func (t *tagger) announced(id uint32) (*relation, error) {
	r := t.relations[id]
	switch s := t.stream; {
	case s != nil && s.foreign || s == nil && t.txn.foreign:
		return nil, nil
	case s != nil && s.relations[id] != nil:
		r = s.relations[id]
	case s == nil && t.txn.run != nil && t.txn.run.relations[id] != nil:
		r = t.txn.run.relations[id]
	}
	if r == nil {
		return nil, protocolError("row of relation %d, which was not announced", id)
	}
	return r, nil
}

// bigStart begins a row, of whose tuples there will be size bytes.
func (t *tagger) bigStart(ctx context.Context, kind wire.Kind, xid, id uint32, size int, old bool) error {
	r, err := t.bigRun(ctx, id)
	if r == nil || err != nil {
		return err
	}
	rel, err := t.runUse(r, xid, id)
	if err != nil {
		return err
	}
	if old {
		table, err := t.table(ctx, rel)
		if err != nil {
			return err
		}
		t.big.row = &bigRow{}
		t.big.row.start(table, kind, xid)
	}
	t.big.run, t.big.rel, t.big.seal, t.big.at = r, rel, rel.seal, len(t.chunk)
	t.chunk = appendChangeHead(t.chunk, kind, id, size)
	return nil
}

// bigRun returns the run that the row belongs to; nil if the row is to be dropped.
func (t *tagger) bigRun(ctx context.Context, id uint32) (*run, error) {
	x := &t.txn
	switch {
	case t.stream != nil && t.stream.foreign || t.stream == nil && x.foreign:
		return nil, nil
	case t.stream != nil:
		return t.stream, nil
	case !x.open:
		return nil, protocolError("row outside of a transaction")
	case x.run != nil:
		return x.run, nil
	}
	if _, err := t.use(id); err != nil { // which begins the transaction
		return nil, err
	}
	err := t.grow(ctx)
	return x.run, err
}

// appendChangeHead appends what wire.AppendChange would, but for the n bytes of tuples.
func appendChangeHead(dst []byte, k wire.Kind, relation uint32, n int) []byte {
	var id [binary.MaxVarintLen32]byte
	w := binary.PutUvarint(id[:], uint64(relation))
	dst = append(dst, byte(k))
	dst = binary.AppendUvarint(dst, uint64(w+n))
	return append(dst, id[:w]...)
}
