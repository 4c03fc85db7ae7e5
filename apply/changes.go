package apply

import (
	"bufio"
	"fmt"
	"io"
	"slices"

	"github.com/pgbridge/pgbridge/wire"
)

// maxRow bounds one row change in bytes. PostgreSQL itself allows no field above 1 GiB.
const maxRow = 1 << 30

// changes walks the row changes and truncates of a transaction, small or large, leaving out those of
// subtransactions that were rolled back, and what is not for this node. A record is valid until the next call.
type changes struct {
	recs      wire.Records // of a small transaction
	relations map[uint32]*wire.Relation

	run     *run
	r       *bufio.Reader // of the run
	buf     []byte
	sub     uint64
	aborted map[uint64]bool

	schema bool // schema changes are returned, too, else left out

	sifter *sifter // leaves out what is not for this node; nil: all is
}

func newChanges(t *txn) (*changes, error) {
	if t.run == nil {
		return &changes{recs: wire.NewRecords(t.body), relations: t.relations, sifter: t.sifter()}, nil
	}
	if st, err := t.run.file.Stat(); err != nil || uint64(st.Size()) != t.run.length {
		return nil, fmt.Errorf("%w: run %d has %d bytes, its file in data_dir has not", wire.ErrCorrupt, t.run.commit.Run, t.run.length)
	}
	c := &changes{relations: map[uint32]*wire.Relation{}, sifter: t.sifter()}
	if t.run.commit.Aborts > 0 {
		aborted, err := t.run.abortedSubs()
		if err != nil {
			return nil, err
		}
		c.aborted = aborted
	}
	c.run, c.r = t.run, t.run.reader()
	c.buf, t.run.buf = t.run.buf, nil
	return c, nil
}

// reader reads the run's records, without what is sealed for others.
func (r *run) reader() *bufio.Reader {
	in := bufio.NewReaderSize(io.NewSectionReader(r.file, 0, int64(r.length)), 256<<10)
	if r.open == nil {
		return in
	}
	return bufio.NewReaderSize(r.open.NewOpenedRun(r.origin, in), 64<<10)
}

// abortedSubs reads the run once for the subtransactions whose rows are void.
func (r *run) abortedSubs() (map[uint64]bool, error) {
	aborted := map[uint64]bool{}
	var buf []byte
	for in := r.reader(); ; {
		rec, err := wire.ReadRecord(in, buf, maxRow)
		if err == io.EOF {
			return aborted, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read run %d: %w", r.commit.Run, err)
		}
		buf = rec.Payload[:0]
		if rec.Kind == wire.KindSubAbort {
			id, err := wire.ParseNumber(rec.Payload)
			if err != nil {
				return nil, err
			}
			aborted[id] = true
		}
	}
}

// next returns the next change with the relations it refers to, io.EOF behind the last.
func (c *changes) next() (wire.Record, map[uint32]*wire.Relation, error) {
	for {
		rec, err := c.record()
		if err != nil {
			return rec, nil, err
		}
		switch rec.Kind {
		case wire.KindRelation:
			rel, err := wire.ParseRelation(rec.Payload)
			if err != nil {
				return rec, nil, err
			}
			c.relations = withRelation(c.relations, rel)
		case wire.KindSub:
			if c.sub, err = wire.ParseNumber(rec.Payload); err != nil {
				return rec, nil, err
			}
		case wire.KindSubAbort:
		default:
			if c.aborted[c.sub] || rec.Kind == wire.KindSchema && !c.schema {
				continue
			}
			if c.sifter != nil {
				var left bool
				if rec, left, err = c.sifter.sift(rec, c.relations); err == nil && !left {
					continue
				}
			}
			return rec, c.relations, err
		}
	}
}

// without leaves out of a change what is of such tables; false if nothing is left.
func without(rec wire.Record, relations map[uint32]*wire.Relation, such func(*wire.Relation) bool) (wire.Record, bool, error) {
	if rec.Kind == wire.KindSchema {
		return rec, true, nil
	}
	if rec.Kind != wire.KindTruncate {
		id, _, err := wire.ParseChange(rec.Payload)
		r := relations[id]
		return rec, err != nil || r == nil || !such(r), err
	}
	options, ids, err := wire.ParseTruncate(rec.Payload)
	if err != nil {
		return rec, false, err
	}
	left := slices.DeleteFunc(slices.Clone(ids), func(id uint32) bool { return relations[id] != nil && such(relations[id]) })
	if len(left) == len(ids) || len(left) == 0 {
		return rec, len(left) > 0, nil
	}
	recs := wire.NewRecords(wire.AppendTruncate(nil, options, left))
	rec, err = recs.Next()
	return rec, true, err
}

func (c *changes) record() (wire.Record, error) {
	if c.r == nil {
		return c.recs.Next()
	}
	rec, err := wire.ReadRecord(c.r, c.buf, maxRow)
	switch err {
	case nil:
		c.buf = rec.Payload[:0]
	case io.EOF: // for the next walk: another buffer of a giant row's size would be there beside it
		c.run.buf, c.buf = c.buf, nil
	}
	return rec, err
}

// changeSource gives a transaction's changes one after the other, with the relations that they refer to, io.EOF behind the
// last.
type changeSource interface {
	next() (wire.Record, map[uint32]*wire.Relation, error)
}

// eachChange calls f for each change with its relation, for each TRUNCATE with those of its tables, where ch means nothing, and
// for each schema change, if src has them. Record and change are valid during the call.
func eachChange(src changeSource, f func(rec wire.Record, rels []*wire.Relation, ch *wire.Change) error) error {
	var ch wire.Change
	var rels []*wire.Relation
	for {
		rec, relations, err := src.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var ids []uint32
		switch rec.Kind {
		case wire.KindSchema:
		case wire.KindTruncate:
			if _, ids, err = wire.ParseTruncate(rec.Payload); err != nil {
				return err
			}
		default:
			if err := ch.Parse(rec); err != nil {
				return err
			}
			ids = append(ids, ch.Relation)
		}
		rels = rels[:0]
		for _, id := range ids {
			if relations[id] == nil {
				return fmt.Errorf("%w: relation %d is not described", wire.ErrCorrupt, id)
			}
			rels = append(rels, relations[id])
		}
		if err := f(rec, rels, &ch); err != nil {
			return err
		}
	}
}
