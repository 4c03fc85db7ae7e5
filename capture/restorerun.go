package capture

import (
	"context"
	"encoding/binary"

	"github.com/pgbridge/pgbridge/wire"
)

// restoring is a run that is read back. Its records are looked at as they come, and only deleted keys are
// kept, on disk if they are many.
type restoring struct {
	restorer *restorer
	length   uint64
	stitch   stitcher
	opened   stitcher // what was sealed of it
	tables   map[uint32]*Table
	sub      uint32 // of the rows that follow; 0 is the top-level transaction
	void     xidSet
	big      *bigRow // a row that arrives in parts, nil if its key is not needed
	touched
}

func (r *restorer) chunk(payload []byte) error {
	id, offset, b, err := wire.ParseChunk(payload)
	if err != nil {
		return err
	}
	x := r.runs[id]
	switch {
	case x == nil && offset == 0:
		x = &restoring{restorer: r, tables: map[uint32]*Table{}, stitch: stitcher{size: recordSize, limit: wholeLimit},
			opened: stitcher{size: recordSize, limit: wholeLimit}}
		x.graves.dir = r.opts.SpoolDir
		r.runs[id] = x
	case x == nil || offset != x.length:
		// The beginning is not retained: the transaction is stable, or will never be committed.
		return nil
	}
	x.length += uint64(len(b))
	return x.stitch.feed(context.Background(), b, x)
}

func (r *restorer) largeCommit(payload []byte) error {
	l, err := wire.ParseLargeCommit(payload)
	if err != nil {
		return err
	}
	x := r.runs[l.Run]
	if x == nil || x.length != l.Length {
		x = &restoring{}
	}
	delete(r.runs, l.Run)
	defer x.graves.close()
	x.many = true
	if l.Schemas > 0 {
		r.del.LocalSchema(l.Seq, l.XID)
	}
	return r.tell(l.Begin, &x.touched, &x.void)
}

// whole implements sink.
func (x *restoring) whole(ctx context.Context, m []byte) error {
	recs := wire.NewRecords(m)
	rec, err := recs.Next()
	if err != nil {
		return err
	}
	switch rec.Kind {
	case wire.KindRelation:
		t, err := x.restorer.table(rec.Payload)
		if err == nil {
			x.tables[t.OID] = t
		}
		return err
	case wire.KindSub, wire.KindSubAbort:
		n, err := wire.ParseNumber(rec.Payload)
		if rec.Kind == wire.KindSub {
			x.sub = uint32(n)
		} else {
			x.void.add(uint32(n))
		}
		return err
	case wire.KindSchema:
		return nil
	case wire.KindSealed:
		plain, err := x.restorer.opts.Open.Open(nil, x.restorer.opts.Origin, rec.Payload)
		if err != nil {
			return err
		}
		return x.opened.feed(ctx, plain, x)
	}
	return noteRecord(&x.touched, x.tables, rec, x.sub)
}

// part implements sink.
func (x *restoring) part(_ context.Context, b []byte, first, last bool) error {
	if first {
		kind := wire.Kind(b[0])
		_, n := binary.Uvarint(b[1:])
		b = b[1+n:]
		id, n := binary.Uvarint(b)
		t := x.tables[uint32(id)]
		if n <= 0 || t == nil || len(b) == n {
			return wire.ErrCorrupt
		}
		b = b[n:]
		x.big = nil
		if b[0] != 'N' {
			x.big = &bigRow{}
			x.big.start(t, kind, x.sub)
		}
	}
	if x.big == nil {
		return nil
	}
	if err := x.big.feed(b); err != nil || !last {
		return err
	}
	return x.big.finish(context.Background(), &x.touched)
}
