package apply

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/pgbridge/pgbridge/wire"
)

// Who is given merged tables whole (wholedelta.go) takes their rows as they are, and the donor's journal in place of its own: what the rows
// have come to, and which writes are still to be merged with others, belong together.

// takeMergedRow inserts a row.
func (r *resync) takeMergedRow(ctx context.Context, m *mapping, ch *wire.Change) error {
	s := copyStep(r.t, m, ch)
	if err := r.change(m, m.statement("ki", m.insertSQL), s.ch.New, m.insertSet(nil), nil); err != nil || len(r.queue) < windowChanges {
		return err
	}
	return r.flush(ctx)
}

// noneMerged refuses merged tables that have rows, of which no journal tells.
func (r *resync) noneMerged(ctx context.Context) error {
	return r.eachRelation(func(rel *wire.Relation) error {
		m, err := r.mapping(rel, rel.ID)
		if err != nil || m.local.merge == nil {
			return err
		}
		var some bool
		if err := r.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM "+m.local.rows+")").Scan(&some); err != nil {
			return fmt.Errorf("look into table %s: %w", m.local.quoted, explain(err))
		}
		if some {
			return blocked("table %s is merged (conflict.tables) and is given whole to a node that joins, and somebody has written to it before; keep users away, and run TRUNCATE %[1]s", m.local.quoted)
		}
		return nil
	})
}

const (
	givenWriteSQL = `INSERT INTO pgbridge.journal (hi, lo, origin, seq, part, stamp, kind, seen, ops, image) VALUES ($1, $2, $3, $4, $5, $6, $7::text::"char", $8, $9, $10)`
	givenBaseSQL  = `INSERT INTO pgbridge.journal_base (hi, lo, schema, name, cells) VALUES ($1, $2, $3, $4, $5)`
)

// takeJournal lets the donor's journal take the place of this node's.
func (r *resync) takeJournal(ctx context.Context) error {
	r.push("clear", &statement{sql: "DELETE FROM pgbridge.journal"}, nil)
	r.push("clear", &statement{sql: "DELETE FROM pgbridge.journal_base"}, nil)
	write := &statement{sql: givenWriteSQL, types: []uint32{oidInt8, oidInt8, oidInt4, oidInt8, oidInt4, oidInt8, oidText, oidBytea, oidBytea, oidBytea}}
	base := &statement{sql: givenBaseSQL, types: []uint32{oidInt8, oidInt8, oidText, oidText, oidBytea}}
	return r.records(func(rec wire.Record) error {
		switch rec.Kind {
		case wire.KindLogged:
			l, err := wire.ParseLogged(slices.Clone(rec.Payload))
			if err != nil {
				return err
			}
			id, ok := r.k.ids[l.Version.Origin]
			if !ok {
				return fmt.Errorf("a row was written by %s, which is not in topology.nodes here", l.Version.Origin)
			}
			r.push("journal", write, append(hashParams(l.Key), int32Param(id), int64Param(int64(l.Seq)), int32Param(int32(l.Part)),
				int64Param(int64(l.Version.Stamp)), textParam(string(l.Kind)), binaryParam(l.Seen), binaryParam(l.Ops), bytesParam(l.Image)))
		case wire.KindBase:
			x, err := wire.ParseBase(slices.Clone(rec.Payload))
			if err != nil {
				return err
			}
			r.push("journal", base, append(hashParams(x.Key), textParam(x.Schema), textParam(x.Table), bytesParam(x.Cells)))
		}
		if len(r.queue) < windowChanges {
			return nil
		}
		return r.flush(ctx)
	})
}

func int32Param(v int32) param { return binaryParam(binary.BigEndian.AppendUint32(nil, uint32(v))) }

// bytesParam is NULL for nil.
func bytesParam(b []byte) param {
	if b == nil {
		return param{null: true}
	}
	return binaryParam(b)
}
