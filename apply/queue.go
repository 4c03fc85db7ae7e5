package apply

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/wire"
)

// change queues a statement for one row: the columns of set from tuple, then the key from old.
func (c *carefulRun) change(m *mapping, s *statement, tuple []wire.Value, set []int, old []wire.Value) error {
	ps, err := m.params(nil, tuple, set)
	if err == nil && old != nil {
		ps, err = m.params(ps, old, m.key)
	}
	if err != nil {
		return err
	}
	c.push("table "+m.local.quoted, s, ps)
	if old == nil {
		old = tuple
	}
	c.queue[len(c.queue)-1].row = rowKey{m, old}
	return nil
}

func (c *carefulRun) push(what string, s *statement, ps []param) {
	c.queue = append(c.queue, queued{what: what, s: s, ps: ps})
}

// ready prepares a statement of the careful path, if it is not yet.
func (w *worker) prepared(ctx context.Context, s *statement) error {
	if s.ready {
		return nil
	}
	w.named++
	s.name = fmt.Sprintf("k%d", w.named)
	if _, err := w.conn.PgConn().Prepare(ctx, s.name, s.sql, s.types); err != nil {
		return err
	}
	s.sent, s.ready = true, true
	return nil
}

// flush executes what is queued, in one round trip.
func (c *carefulRun) flush(ctx context.Context) error {
	if len(c.queue) == 0 {
		return nil
	}
	batch := &pgconn.Batch{}
	for _, q := range c.queue {
		if err := c.prepared(ctx, q.s); err != nil {
			return fmt.Errorf("%s: %w", q.what, err)
		}
		values, formats := raw(q.ps)
		batch.ExecPrepared(q.s.name, values, formats, nil)
	}
	r := c.conn.PgConn().ExecBatch(ctx, batch)
	n := 0
	for r.NextResult() {
		result := r.ResultReader().Read()
		if result.Err != nil {
			break
		}
		if take := c.queue[n].take; take != nil {
			take(result.Rows)
		}
		n++
	}
	if err := r.Close(); err != nil {
		q := &c.queue[min(n, len(c.queue)-1)]
		var pg *pgconn.PgError
		if q.history && errors.As(err, &pg) {
			err = &historyError{pg}
		}
		return &refusedError{q.what, q.row, err}
	}
	clear(c.queue)
	c.queue = c.queue[:0]
	return nil
}

func raw(ps []param) (values [][]byte, formats []int16) {
	values, formats = make([][]byte, len(ps)), make([]int16, len(ps))
	for i, p := range ps {
		formats[i] = int16(p.format)
		if !p.null {
			if values[i] = p.value; values[i] == nil {
				values[i] = []byte{}
			}
		}
	}
	return values, formats
}

// exec runs one statement with parameters as they are and returns its rows as text.
func (w *worker) exec(ctx context.Context, sql string, types []uint32, ps []param) ([][][]byte, error) {
	values, formats := raw(ps)
	r := w.conn.PgConn().ExecParams(ctx, sql, values, types, formats, nil).Read()
	return r.Rows, r.Err
}
