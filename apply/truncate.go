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
	if m.local.merge != nil {
		return c.truncateMerged(ctx, m)
	}
	sql := "DELETE FROM " + m.local.rows + " t WHERE " + c.guard.sql(1)
	if _, err := c.exec(ctx, sql, c.guard.types(), c.guardParams(c.t.up)); err != nil {
		return fmt.Errorf("truncate %s: %w", m.local.quoted, err)
	}
	c.wiped = append(c.wiped, m.name())
	c.truncateKept(m)
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
	k, found, err := c.keyHashOf(ctx, m, where, ps)
	if err != nil || !found {
		return err
	}
	rows, err := c.exec(ctx, "SELECT "+lookAtSQL(k)+" FROM "+m.local.rows+" t, "+lookVersion+" WHERE "+where, nil, ps)
	if err != nil || len(rows) == 0 {
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

// keyHashOf hashes the key of the row that where finds, as capture hashes it; false if there is no row.
func (c *carefulRun) keyHashOf(ctx context.Context, m *mapping, where string, ps []param) (wire.KeyHash, bool, error) {
	cols, formats := m.local.keyColumns()
	values, paramFormats := raw(ps)
	r := c.conn.PgConn().ExecParams(ctx, "SELECT "+cols+" FROM "+m.local.rows+" t WHERE "+where, values, nil, paramFormats, formats).Read()
	if r.Err != nil || len(r.Rows) == 0 {
		return wire.KeyHash{}, false, r.Err
	}
	tuple := make([]wire.Value, len(m.cols))
	for n, v := range keyValues(r.Rows[0], formats) {
		tuple[m.key[n]] = v
	}
	k, err := c.planner.hash(m, tuple)
	return k, true, err
}

// keyColumns lists the columns of the key of alias t for a SELECT, and the format codes in which capture gets them.
func (t *table) keyColumns() (cols string, formats []int16) {
	var names []string
	for _, i := range t.key {
		names, formats = append(names, "t."+t.cols[i].quoted), append(formats, t.cols[i].typ.format())
	}
	return strings.Join(names, ", "), formats
}

// keyValues are the values of a key's columns that came in those formats.
func keyValues(row [][]byte, formats []int16) []wire.Value {
	key := make([]wire.Value, len(formats))
	for i := range key {
		key[i] = wire.Value{Format: wire.Text, Data: row[i]}
		if formats[i] != 0 {
			key[i].Format = wire.Binary
		}
	}
	return key
}
