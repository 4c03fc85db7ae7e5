package apply

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/pgbridge/pgbridge/wire"
)

// setAside has rows kept out of their tables that are owed to this node (owed.go), and that their authors keep out of theirs: what is
// here is older, and does not come back before they are owed no more. Who says so a second time changes nothing. It is safe for
// concurrent use.
func (k *keeper) setAside(rows []*owedRow) {
	if len(rows) == 0 {
		return
	}
	k.asideMu.Lock()
	k.aside = append(k.aside, rows...)
	k.asideMu.Unlock()
	k.kept.alert()
}

// keepOwed keeps the rows of setAside.
func (k *keeper) keepOwed(ctx context.Context) error {
	k.asideMu.Lock()
	rows := k.aside
	k.aside = nil
	k.asideMu.Unlock()
	for len(rows) > 0 {
		e := rows[0]
		err := k.keepOne(ctx, e)
		if !errors.Is(err, errUnknown) {
			rows = rows[1:]
		}
		if err != nil && !errors.Is(err, errUnknown) { // it comes again, with a tick of work
			k.asideMu.Lock()
			k.aside = append(k.aside, e)
			k.asideMu.Unlock()
		}
		if err := k.delay(ctx, &keptRow{table: e.table, key: e.hash}, err); err != nil {
			return err
		}
	}
	return nil
}

// keepOne makes one attempt.
func (k *keeper) keepOne(ctx context.Context, e *owedRow) error {
	if err := k.run.visible(ctx); err != nil {
		return err
	}
	defer k.kept.intend(e.table)() // nothing may be under way that was planned without care
	done, err := k.kept.take(ctx)
	if err != nil {
		return err
	}
	defer done()
	return k.attempt(ctx, func() error { return k.keepOlder(ctx, e) })
}

// keepOlder moves what is in the table of a row that is owed into the quarantine, if it is older.
func (k *keeper) keepOlder(ctx context.Context, e *owedRow) error {
	if !slices.Contains(k.owed.of(e.hash), e) {
		return nil
	}
	t, err := k.catalog.tableNow(ctx, e.table.schema, e.table.name)
	if err != nil {
		return err
	}
	columns := map[string]wire.Value{}
	for i := range t.cols {
		c := &t.cols[i]
		if !c.generated {
			columns[c.name] = wire.Value{}
		}
	}
	m, err := k.shape(ctx, e.table, columns)
	if err != nil {
		return err
	}
	c := k.run
	k.begins(e.hash, e.table, e.version())
	if err := c.flush(ctx); err != nil {
		return err
	}
	rows, err := k.exec(ctx, fmt.Sprintf("SELECT t.tableoid::text, t.ctid::text FROM %s t, pg_catalog.json_populate_record(NULL::%s, $1::json) k WHERE %s FOR UPDATE OF t",
		t.rows, t.quoted, t.sameKey("t", "k")), []uint32{oidText}, []param{textParam(string(e.key))})
	if err != nil {
		return fmt.Errorf("lock row of %s: %w", t.quoted, err)
	}
	if len(rows) == 0 {
		k.owed.isAside(e)
		return k.rollBack(ctx, k.conn.PgConn().TxStatus())
	}
	row := []rival{{tableoid: string(rows[0][0]), ctid: string(rows[0][1]), unique: &unique{name: "owed by " + e.of.Origin.Node}}}
	if there, err := c.lockRivals(ctx, m, row); err != nil || !there {
		return cmp.Or(err, errUnknown)
	}
	if err := c.judgeRivals(m, row); err != nil {
		return err
	}
	if v := row[0].look; v.mine || !v.local.Ancient && !e.version().Later(v.local.Version) {
		return k.rollBack(ctx, k.conn.PgConn().TxStatus())
	}
	if err := c.hideAll(ctx, m, row, e.hash); err != nil {
		return err
	}
	if err := k.commit(ctx); err != nil {
		return err
	}
	k.owed.isAside(e)
	return nil
}
