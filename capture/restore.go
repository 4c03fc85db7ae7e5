package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// restoreTimeout bounds one question to the server.
const restoreTimeout = 30 * time.Second

// restorer reads own frames back. It is not safe for concurrent use.
type restorer struct {
	opts  *Options
	del   Deletes
	state *state

	conn   *pgx.Conn // nil before it was needed
	hashes *hashes
	keys   map[uint32][]keyColumn // of all tables, by object id; nil before they were read
	tables map[string]*Table      // by the payload of their R record: frames repeat them
	epoch  uint64                 // writer epoch of the last frame
	runs   map[uint64]*restoring  // open ones, by id

	relations map[uint32]*Table // of the present frame
	begin     wire.Begin        // of the transaction between B and C
	open      bool
	schema    bool // it changes the schema
	touched   touched
}

func newRestorer(o *Options, del Deletes, s *state) *restorer {
	r := &restorer{opts: o, del: del, state: s,
		hashes: newHashes(o.Logger),
		tables: map[string]*Table{}, runs: map[uint64]*restoring{}, relations: map[uint32]*Table{}}
	r.hashes.ask = r.ask
	r.touched.graves.dir = o.SpoolDir
	return r
}

func (r *restorer) frame(f *wire.Frame) error {
	if !f.Fence && f.RunWriter() != r.epoch { // voids every open run
		r.epoch = f.RunWriter()
		for _, x := range r.runs {
			x.graves.close()
		}
		clear(r.runs)
	}
	clear(r.relations)
	r.open = false
	body, err := r.opts.Open.Frame(f)
	if err != nil {
		return err
	}
	recs := wire.NewRecords(body)
	for {
		rec, err := recs.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := r.record(rec); err != nil {
			return err
		}
	}
	if f.Mark.XID != 0 {
		r.state.marks.add(f.Mark, f.Up) // up behind the frame, which proves no more than up at the mark
		r.state.recents.ended(f.Mark.XID)
	}
	return nil
}

func (r *restorer) record(rec wire.Record) error {
	switch rec.Kind {
	case wire.KindRelation:
		t, err := r.table(rec.Payload)
		if err == nil {
			r.relations[t.OID] = t
		}
		return err
	case wire.KindBegin:
		b, err := wire.ParseBegin(rec.Payload)
		r.begin, r.open, r.schema = b, true, false
		r.touched.reset()
		r.touched.lifted = b.Stamp > b.CommitTime
		return err
	case wire.KindInsert, wire.KindUpdate, wire.KindDelete, wire.KindTruncate:
		return noteRecord(&r.touched, r.relations, rec, 0)
	case wire.KindSchema:
		r.schema = true
	case wire.KindCommit:
		if !r.open {
			return fmt.Errorf("%w: commit without a begin", wire.ErrCorrupt)
		}
		r.open = false
		if r.schema {
			r.del.LocalSchema(r.begin.Seq, r.begin.XID)
		}
		return r.tell(r.begin, &r.touched, &xidSet{})
	case wire.KindChunk:
		return r.chunk(rec.Payload)
	case wire.KindLargeCommit:
		return r.largeCommit(rec.Payload)
	case wire.KindRunAbort:
		id, err := wire.ParseNumber(rec.Payload)
		if x := r.runs[id]; x != nil {
			x.graves.close()
			delete(r.runs, id)
		}
		return err
	}
	return nil
}

// noteRecord notes a change that stands in a frame or in a run.
func noteRecord(k *touched, tables map[uint32]*Table, rec wire.Record, sub uint32) error {
	if rec.Kind == wire.KindTruncate {
		_, ids, err := wire.ParseTruncate(rec.Payload)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if tables[id] == nil {
				return fmt.Errorf("%w: relation %d was not announced", wire.ErrCorrupt, id)
			}
			if err := k.graves.add(grave{sub: sub, table: tables[id]}); err != nil {
				return err
			}
		}
		return nil
	}
	id, tuples, err := wire.ParseChange(rec.Payload)
	if err != nil {
		return err
	}
	if len(tuples) == 0 || tables[id] == nil {
		return fmt.Errorf("%w: row of relation %d, which was not announced", wire.ErrCorrupt, id)
	}
	if tuples[0] == 'N' && !k.lifted {
		return nil
	}
	return k.row(context.Background(), tables[id], rec.Kind, sub, tuples)
}

// table returns the table of an R record.
func (r *restorer) table(payload []byte) (*Table, error) {
	if t := r.tables[string(payload)]; t != nil {
		return t, nil
	}
	rel, err := wire.ParseRelation(payload)
	if err != nil {
		return nil, err
	}
	if r.keys == nil {
		if err := r.readKeys(); err != nil {
			return nil, err
		}
	}
	t := newTable(rel, r.keys[rel.ID], r.hashes)
	r.tables[string(payload)] = t
	return t, nil
}

// ask implements rowkey.Ask.
func (r *restorer) ask(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, restoreTimeout)
	defer cancel()
	if r.conn == nil {
		conn, err := connectPlain(ctx, r.opts.DSN)
		if err != nil {
			return err
		}
		r.conn = conn
	}
	return f(ctx, r.conn)
}

// close gives the connection up.
func (r *restorer) close() {
	if r.conn != nil {
		closeSoon(r.conn)
	}
}

// readKeys reads the keys of all user tables at once: most of them are published.
func (r *restorer) readKeys() error {
	return r.ask(context.Background(), func(ctx context.Context, conn *pgx.Conn) error {
		var oids []uint32
		err := conn.QueryRow(ctx, `SELECT coalesce(array_agg(oid), '{}') FROM pg_class WHERE relkind IN ('r', 'p') AND oid >= 16384`).Scan(&oids)
		if err != nil {
			return classify(err, "list tables")
		}
		r.keys, err = readKeys(ctx, conn, oids)
		return err
	})
}

// tell reports what a transaction that is in the stream has deleted, and remembers its stamp if that was
// lifted.
func (r *restorer) tell(b wire.Begin, k *touched, void *xidSet) error {
	if err := k.settle(context.Background()); err != nil {
		return err
	}
	v := origin.Version{Stamp: b.Stamp, Origin: r.opts.Origin}
	err := k.graves.each(void, func(g grave) {
		if g.key == nil {
			r.del.LocalTruncate(Truncate{Relation: g.table, Version: v, Seq: b.Seq, CommitLSN: b.CommitLSN})
			return
		}
		r.del.LocalDelete(Delete{Relation: g.table, Key: g.key, Hash: g.hash, Version: v, Seq: b.Seq, CommitLSN: b.CommitLSN})
	})
	if err != nil {
		return err
	}
	r.state.written.add(b.CommitTime, b.Seq, b.XID)
	if b.Stamp > b.CommitTime {
		r.state.lifted.add(b.CommitTime, b.Stamp, b.Seq, k.keys, k.many)
	}
	r.state.recents.add(b.XID)
	return nil
}
