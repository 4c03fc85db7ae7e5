package apply

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/pgbridge/pgbridge/wire"
)

// discard gives a parked transaction up for good: its changes go into the conflict history, and it is gone.
func (w *worker) discard(ctx context.Context, e *parkedTxn, t *txn) error {
	c := newCarefulRun(w, []*txn{t})
	var failed error
	for _, record := range []func(context.Context) error{c.recordDiscarded, c.recordBare} {
		c.queue = c.queue[:0]
		c.push("begin", c.beginStatement, nil)
		err := record(ctx)
		if err == nil {
			c.pushUnpark()
			c.push("commit", c.commitStatement, nil)
			err = c.flush(ctx)
		}
		if err == nil {
			w.log.Warn("parked transaction discarded", "origin", w.origin.String(), "seq", t.Seq, "id", e.id)
			w.parked.remove(e)
			return nil
		}
		failed = err
		if err := w.rollBack(ctx, w.conn.PgConn().TxStatus()); err != nil {
			return err
		}
	}
	return failed
}

// discarded is the kind of conflict as which the history has changes that were given up.
const discarded = "discarded"

// discardedInto records a change of a discarded transaction: h is what stands here.
const discardedInto = conflictInto + ` SELECT %s, '` + discarded + `', 'local wins', %s, %s, %s, COALESCE(h.origin, %s), COALESCE(h.stamp, 0), h.image, %s
	FROM (SELECT 1) one LEFT JOIN LATERAL (SELECT row_to_json(t.*) AS image,
		CASE WHEN p.epoch > 1 THEN p.origin || '/' || p.epoch ELSE p.origin END AS origin,
		(extract(epoch FROM c.timestamp - '2000-01-01 UTC') * 1000000)::int8 AS stamp
		FROM %s t CROSS JOIN LATERAL pg_xact_commit_timestamp_origin(t.xmin) c LEFT JOIN pgbridge.position p ON p.id = c.roident::int
		WHERE %s) h ON true`

// recordDiscarded queues what goes into the conflict history in place of the transaction.
func (c *carefulRun) recordDiscarded(ctx context.Context) error {
	c.beaten = lostRows{}
	err := c.each(func(_ *txn, m *mapping, ch *wire.Change) error {
		if !m.usable && ch.Kind != wire.KindInsert {
			return m.needsKey()
		}
		s := copyStep(c.t, m, ch)
		for _, tuple := range [][]wire.Value{s.ch.Old, s.ch.New} {
			if len(tuple) == 0 || !m.local.large {
				continue
			}
			k, err := c.planner.hash(m, tuple)
			if err != nil {
				return err
			}
			c.beaten.add(m.tableHash(), m.local.hasher.Shared(k))
		}
		return c.recordDiscardedRow(m, &s)
	}, func(ms []*mapping) error {
		for _, m := range ms {
			c.beaten.add(m.tableHash(), 0)
			c.pushBare(m.local.schema+"."+m.local.name, []byte(`{"pgbridge": "TRUNCATE"}`))
		}
		return nil
	})
	if told := c.tell(); err == nil && len(told) > 0 { // others may take the transaction's large values for what stands here (R16)
		return c.markers.lose(ctx, c.t.entry(), told)
	}
	return err
}

func (c *carefulRun) recordDiscardedRow(m *mapping, s *step) error {
	i := images{}
	where, types, ps, err := m.keyCondition(s.before())
	if err != nil {
		return err
	}
	i.types, i.ps = types, ps
	if err := i.make(m, s.ch.New, nil, look{}); err != nil {
		return err
	}
	fixed := []param{textParam(m.local.schema + "." + m.local.name), textParam(c.origin.String()), int64Param(int64(c.t.Seq)),
		int64Param(int64(c.t.Stamp)), textParam(c.own.String())}
	var args []any
	for n := range fixed {
		args = append(args, fmt.Sprintf("$%d", len(i.types)+n+1))
	}
	sql := fmt.Sprintf(discardedInto, append(args, i.remote, m.local.rows, where)...)
	statement := m.statement("kx"+i.shape, func() (string, []uint32) {
		return sql, append(i.types, oidText, oidText, oidInt8, oidInt8, oidText)
	})
	c.push("record discarded change of "+m.local.quoted, statement, append(i.ps, fixed...))
	return nil
}

// recordBare is recordDiscarded for changes that this server cannot read, of a table that is not here or looks different:
// they are recorded as they came.
func (c *carefulRun) recordBare(context.Context) error {
	changes, err := newChanges(c.t)
	if err != nil {
		return err
	}
	return eachChange(changes, func(rec wire.Record, rels []*wire.Relation, ch *wire.Change) error {
		for _, rel := range rels {
			b, err := json.Marshal(map[string]json.RawMessage{kindNames[rec.Kind] + " of": rawImage(rel, ch.Old), kindNames[rec.Kind]: rawImage(rel, ch.New)})
			if err != nil {
				return err
			}
			c.pushBare(rel.Schema+"."+rel.Name, b)
		}
		return nil
	})
}

func (c *carefulRun) pushBare(relation string, image []byte) {
	if c.parking.bare == nil {
		c.parking.bare = &statement{sql: conflictInto + " VALUES ($1, '" + discarded + "', 'local wins', $2, $3, $4, $5, 0, NULL, $6)",
			types: []uint32{oidText, oidText, oidInt8, oidInt8, oidText, oidJSON}}
	}
	c.push("record discarded change of "+relation, c.parking.bare, []param{textParam(relation), textParam(c.origin.String()),
		int64Param(int64(c.t.Seq)), int64Param(int64(c.t.Stamp)), textParam(c.own.String()), {value: image}})
}
