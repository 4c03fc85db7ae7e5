package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// Rows of merged tables that are there already are worked out anew when something has come into the journal behind them: a
// TRUNCATE, or a local delete that capture met only after a remote transaction had made the row.

// truncateMerged takes out of the rows of a merged table what was there before the transaction, whoever wrote it.
func (c *carefulRun) truncateMerged(ctx context.Context, m *mapping) error {
	t := m.local
	c.part++
	c.push("journal", c.journalStatement, journalParams([]journaled{{key: wholeTable(t), origin: int32(c.id), local: t,
		write: c.t.logged(wire.KindTruncate, c.part, nil)}}))
	if err := c.flush(ctx); err != nil {
		return err
	}
	// Locked all at once, as their last writers left them: a row that a local session changed between a look and a lock would
	// be overlooked, and be left on this node alone.
	rows, err := c.exec(ctx, "SELECT t.tableoid::text, t.ctid::text FROM "+t.rows+" t FOR UPDATE", nil, nil)
	if err != nil {
		return fmt.Errorf("truncate %s: lock its rows: %w", t.quoted, err)
	}
	locked, err := c.lockedRows(ctx, m, rows)
	if err != nil {
		return fmt.Errorf("truncate %s: %w", t.quoted, err)
	}
	// What a local session has written since must be in the journal too.
	unknown, err := c.orHoldOn(ctx, func() (bool, error) { return c.judgeTruncated(ctx, m, locked) })
	if err == nil && unknown {
		err = errUnknown
	}
	for i := 0; i < len(locked) && err == nil; i++ {
		r := &locked[i]
		err = c.journal.rework(ctx, c.conn.PgConn(), t, r.key, r.where, r.types, r.ps)
	}
	if err != nil {
		return fmt.Errorf("truncate %s: %w", t.quoted, err)
	}
	return nil
}

// lockedRow is a row that this transaction has locked, so that it stays where the condition finds it.
type lockedRow struct {
	key   wire.KeyHash
	where string
	types []uint32
	ps    []param
}

// lockedRows reads the keys of rows that are locked and stand at these places.
func (c *carefulRun) lockedRows(ctx context.Context, m *mapping, places [][][]byte) ([]lockedRow, error) {
	rows := make([]lockedRow, len(places))
	for i, at := range places {
		r := &rows[i]
		var err error
		if r.where, r.types, r.ps, err = rowAt(string(at[0]), string(at[1]))(); err != nil {
			return nil, err
		}
		found := false
		if r.key, found, err = c.keyHashOf(ctx, m, r.where, r.ps); err != nil {
			return nil, err
		}
		if !found {
			return nil, fmt.Errorf("the row at %s is locked and not there", at[1])
		}
	}
	return rows, nil
}

// judgeTruncated reports whether a local session has written one of the rows, and the journal lacks that.
func (c *carefulRun) judgeTruncated(ctx context.Context, m *mapping, rows []lockedRow) (unknown bool, err error) {
	for i := range rows {
		r := &rows[i]
		look, err := c.exec(ctx, "SELECT "+lookAtSQL(r.key)+" FROM "+m.local.rows+" t, "+lookVersion+" WHERE "+r.where, r.types, r.ps)
		if err == nil && len(look) > 0 {
			_, err = c.judgeMerged(m, r.key, look[0], false)
		}
		if errors.Is(err, errUnknown) {
			unknown, err = true, nil
		}
		if err != nil {
			return false, err
		}
	}
	return unknown, nil
}

// rework makes the row of key k that where finds what the journal makes of it, which may be that there is none. What has
// come into the journal behind the row may count for some of its columns alone.
func (j *journal) rework(ctx context.Context, conn *pgconn.PgConn, t *table, k wire.KeyHash, where string, types []uint32, ps []param) error {
	here, err := cellsAt(ctx, conn, t, where, types, ps)
	if err != nil || here == nil {
		return err
	}
	ls, err := j.lineages(ctx, conn, t, []wire.KeyHash{k})
	if err != nil {
		return err
	}
	row, err := ls[0].reworked(ctx, conn, t, here)
	if err != nil || sameCells(here, row) {
		return err
	}
	sql := "DELETE FROM " + t.rows + " t WHERE " + where
	if row != nil {
		sql, types, ps = t.reworkSQL(here, row, where, types, ps)
	}
	values, in := raw(ps)
	return conn.ExecParams(ctx, sql, values, types, in, nil).Read().Err
}

// reworkSQL changes the row that where finds from here to row. An identity column that no UPDATE can write takes a new row.
func (t *table) reworkSQL(here, row []conflict.Cell, where string, types []uint32, ps []param) (string, []uint32, []param) {
	types, ps = slices.Clone(types), slices.Clone(ps)
	var sets, cols, vals []string
	replace := false
	for n, li := range t.merge.cols {
		col := &t.cols[li]
		value := "d." + col.quoted
		if !here[n].Equal(row[n]) {
			types, ps = append(types, col.param()), append(ps, t.cellParam(li, row[n]))
			value = fmt.Sprintf("$%d", len(types))
			sets, replace = append(sets, col.quoted+" = "+value), replace || col.always
		}
		cols, vals = append(cols, col.quoted), append(vals, value)
	}
	if !replace {
		return "UPDATE " + t.rows + " t SET " + strings.Join(sets, ", ") + " WHERE " + where, types, ps
	}
	names := strings.Join(cols, ", ")
	return "WITH d AS (DELETE FROM " + t.rows + " t WHERE " + where + " RETURNING " + names + ") INSERT INTO " + t.quoted + " (" + names +
		") OVERRIDING SYSTEM VALUE SELECT " + strings.Join(vals, ", ") + " FROM d", types, ps
}

// settle works rows of a merged table out anew which a remote transaction had made before capture met a local delete of
// them (PROOF.md R18). What else the local transaction wrote counts, too.
func (b *takebacks) settle(ctx context.Context, tab *table, t take) error {
	if err := b.journal.wait(ctx, b.journal.wal.Captured()); err != nil {
		return err
	}
	cols, formats := tab.keyColumns()
	where, types, ps := tab.keyed(t.key)
	values, in := raw(ps)
	conn := b.conn.PgConn()
	r := conn.ExecParams(ctx, "SELECT "+cols+" FROM "+tab.rows+" t WHERE "+where, values, types, in, formats).Read()
	if r.Err != nil {
		return fmt.Errorf("take back rows of %s: %w", tab.quoted, r.Err)
	}
	for _, row := range r.Rows {
		key := keyValues(row, formats)
		if err := b.settleRow(ctx, tab, key, tab.hasher.Hash(key, nil)); err != nil {
			return fmt.Errorf("take back a row of %s: %w", tab.quoted, err)
		}
	}
	return nil
}

// settleRow does so for one row, once what a local session has written to it is in the journal, too: an update of what the
// delete has taken may not count.
func (b *takebacks) settleRow(ctx context.Context, tab *table, key []wire.Value, k wire.KeyHash) error {
	err := errUnknown
	for try := 0; errors.Is(err, errUnknown); try++ {
		if try == carefulTries {
			return fmt.Errorf("local sessions write it all the time: %w", err)
		}
		if try > 0 {
			lsn, err := b.markers.flush(ctx)
			if err == nil {
				err = b.journal.wal.WaitPassed(ctx, lsn)
			}
			if err == nil {
				err = b.journal.wait(ctx, b.journal.wal.Captured())
			}
			if err != nil {
				return err
			}
		}
		err = b.journal.excluding(ctx, []wire.KeyHash{k}, func() error {
			return pgx.BeginFunc(ctx, b.conn, func(tx pgx.Tx) error { return b.settleLocked(ctx, tx.Conn().PgConn(), tab, key, k) })
		})
	}
	return err
}

func (b *takebacks) settleLocked(ctx context.Context, conn *pgconn.PgConn, tab *table, key []wire.Value, k wire.KeyHash) error {
	where, types, ps := tab.keyed(key)
	values, in := raw(ps)
	r := conn.ExecParams(ctx, "SELECT 1 FROM "+tab.rows+" t WHERE "+where+" FOR UPDATE", values, types, in, nil).Read()
	if r.Err != nil || len(r.Rows) == 0 {
		return r.Err
	}
	r = conn.ExecParams(ctx, "SELECT t.xmin::text, COALESCE(c.roident, 0)::text, COALESCE((extract(epoch FROM c.timestamp) * 1000000)::int8, 0)::text FROM "+
		tab.rows+" t, "+lookVersion+" WHERE "+where, values, types, in, nil).Read()
	if r.Err != nil || len(r.Rows) == 0 {
		return r.Err
	}
	var xmin, id uint32
	var micros int64
	if _, err := fmt.Sscan(fmt.Sprintf("%s %s %s", r.Rows[0][0], r.Rows[0][1], r.Rows[0][2]), &xmin, &id, &micros); err != nil {
		return fmt.Errorf("read row version: %w", err)
	}
	if id == 0 && !b.journal.holds(xmin, origin.StampOf(time.UnixMicro(micros)), k) {
		return errUnknown
	}
	return b.journal.rework(ctx, conn, tab, k, where, types, ps)
}
