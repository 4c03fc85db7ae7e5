package apply

import (
	"context"
	"fmt"
	"strings"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/wire"
)

// truncate deletes every version of the table that is older than the transaction, row by row, and
// leaves a tombstone for the whole table (PROOF.md R29). A real TRUNCATE would also take rows whose
// authors had not seen it.
func (c *carefulRun) truncate(ctx context.Context, m *mapping) error {
	if !c.waited { // local versions must be known by their lifted stamps
		return errUnknown
	}
	sql := "DELETE FROM " + m.local.rows + " t WHERE " + c.guard.sql(1)
	if _, err := c.exec(ctx, sql, c.guard.types(), c.guardParams(c.t.up)); err != nil {
		return fmt.Errorf("truncate %s: %w", m.local.quoted, err)
	}
	c.wiped = append(c.wiped, m.name())
	// What is left was written by somebody who had not seen the TRUNCATE, before it or after it.
	rows, err := c.exec(ctx, `SELECT t.tableoid::text, t.ctid::text FROM `+m.local.rows+` t`, nil, nil)
	if err != nil {
		return fmt.Errorf("truncate %s: %w", m.local.quoted, err)
	}
	for _, r := range rows {
		if err := c.truncateRow(ctx, m, string(r[0]), string(r[1])); err != nil {
			return err
		}
	}
	return nil
}

func (c *carefulRun) truncateRow(ctx context.Context, m *mapping, tableoid, ctid string) error {
	where, _, ps, err := rowAt(tableoid, ctid)()
	if err != nil {
		return err
	}
	if _, err := c.exec(ctx, "SELECT 1 FROM "+m.local.rows+" t WHERE "+where+" FOR UPDATE", nil, ps); err != nil {
		return fmt.Errorf("lock row of %s: %w", m.local.quoted, err)
	}
	rows, err := c.exec(ctx, "SELECT "+lookColumns+" FROM "+m.local.rows+" t, "+lookVersion+" WHERE "+where, nil, ps)
	if err != nil || len(rows) == 0 {
		return err
	}
	k, err := c.keyHashOf(ctx, m, where, ps)
	if err != nil {
		return err
	}
	l, err := c.present(m, rows[0], k)
	if err != nil {
		return err
	}
	d := c.policy(conflict.Case{Write: conflict.Truncate, Remote: c.t.version(), Local: l.local, Seen: l.seen})
	if err := c.record(m, nil, rowAt(tableoid, ctid), l, d); err != nil {
		return err
	}
	if !d.RemoteWins {
		return nil
	}
	if err := c.flush(ctx); err != nil { // the record's image is of the row that is still there
		return err
	}
	_, err = c.exec(ctx, "DELETE FROM "+m.local.rows+" t WHERE "+where, nil, ps)
	return err
}

// keyHashOf hashes the key of the row that where finds, as capture hashes it.
func (c *carefulRun) keyHashOf(ctx context.Context, m *mapping, where string, ps []param) (wire.KeyHash, error) {
	var cols []string
	var formats []int16
	for _, i := range m.local.key {
		col := &m.local.cols[i]
		cols, formats = append(cols, "t."+col.quoted), append(formats, col.typ.format())
	}
	values, paramFormats := raw(ps)
	r := c.conn.PgConn().ExecParams(ctx, "SELECT "+strings.Join(cols, ", ")+" FROM "+m.local.rows+" t WHERE "+where,
		values, nil, paramFormats, formats).Read()
	if r.Err != nil || len(r.Rows) == 0 {
		return wire.KeyHash{}, r.Err
	}
	tuple := make([]wire.Value, len(m.cols))
	for n, v := range r.Rows[0] {
		f := wire.Text
		if formats[n] != 0 {
			f = wire.Binary
		}
		tuple[m.key[n]] = wire.Value{Format: f, Data: v}
	}
	return c.planner.hash(m, tuple)
}
