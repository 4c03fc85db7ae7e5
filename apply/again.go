package apply

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// againRow is a row that users had written, or deleted, before the node was given what it lacked (comeback.go).
type againRow struct {
	id         int64
	table      tableName
	key, image *string // as JSON; image: the row is to be inserted
	gone       bool
}

// WriteAgain writes rows again that nobody has got, as a user would, and returns how many. Capture reads that like any local
// transaction. Call it before other nodes' transactions are applied: until then nothing tells that they have not seen these rows.
func (a *Applier) WriteAgain(ctx context.Context) (n int, err error) {
	conn, err := connect(ctx, a.opts.DSN, fmt.Sprintf("pgbridge %s rows again", a.opts.Node), map[string]string{"synchronous_commit": "local"})
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tables := map[tableName]*table{}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error { // one transaction: others must not see a part
		for {
			rows, err := readAgain(ctx, tx)
			if err != nil || len(rows) == 0 {
				return err
			}
			for _, r := range rows {
				if err := a.writeAgainIn(ctx, tx, r, tables); err != nil {
					return err
				}
			}
			n += len(rows)
		}
	})
	return n, err
}

func (a *Applier) writeAgainIn(ctx context.Context, tx pgx.Tx, r againRow, tables map[tableName]*table) error {
	t, ok := tables[r.table]
	if !ok {
		var err error
		if t, err = a.catalog.table(ctx, r.table.schema, r.table.name); err != nil && !isBlocked(err) {
			return err
		} else if err != nil {
			t = nil // it was dropped since
		}
		tables[r.table] = t
	}
	if t != nil {
		if err := writeAgain(ctx, tx, t, r); err != nil {
			return fmt.Errorf("write a row of %s again: %w", t.quoted, err)
		}
	}
	_, err := tx.Exec(ctx, `DELETE FROM pgbridge.rewrite WHERE id = $1`, r.id)
	return err
}

// readAgain reads the first rows that are to be written again: deletes before all else, which may make room for others.
func readAgain(ctx context.Context, tx pgx.Tx) ([]againRow, error) {
	rows, err := tx.Query(ctx, `SELECT id, schema, name, key::text, image::text, gone FROM pgbridge.rewrite ORDER BY gone DESC, id LIMIT 500`)
	if hasCode(err, "42P01") {
		return nil, ErrNotSetUp
	}
	if err != nil {
		return nil, fmt.Errorf("read pgbridge.rewrite: %w", err)
	}
	var all []againRow
	var r againRow
	_, err = pgx.ForEachRow(rows, []any{&r.id, &r.table.schema, &r.table.name, &r.key, &r.image, &r.gone}, func() error {
		all = append(all, r)
		return nil
	})
	if hasCode(err, "42P01") {
		return nil, ErrNotSetUp
	}
	return all, err
}

// writeAgain writes one row: with new values of all that may be stored out of line, so that the WAL has them.
func writeAgain(ctx context.Context, tx pgx.Tx, t *table, r againRow) error {
	var same, set, cols []string
	var wide []string
	for i := range t.cols {
		c := &t.cols[i]
		isKey := slices.Contains(t.key, i)
		if isKey {
			same = append(same, fmt.Sprintf("%s %s %s", c.compared(), c.equals, c.comparedIn("k")))
		}
		if c.generated {
			continue
		}
		cols = append(cols, c.quoted)
		if c.long && !isKey {
			wide = append(wide, c.quoted)
		}
	}
	key := fmt.Sprintf("pg_catalog.json_populate_record(NULL::%s, $1::json) k", t.quoted)
	where := strings.Join(same, " AND ")
	switch {
	case r.image != nil:
		_, err := tx.Exec(ctx, fmt.Sprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM %s ON CONFLICT DO NOTHING", t.quoted,
			strings.Join(cols, ", "), "k."+strings.Join(cols, ", k."), key), *r.image)
		return err
	case r.gone:
		_, err := tx.Exec(ctx, fmt.Sprintf("DELETE FROM %s t USING %s WHERE %s", t.rows, key, where), *r.key)
		return err
	case len(wide) == 0:
		first := t.cols[t.key[0]].quoted
		_, err := tx.Exec(ctx, fmt.Sprintf("UPDATE %s t SET %s = t.%s FROM %s WHERE %s", t.rows, first, first, key, where), *r.key)
		return err
	}
	rows, err := tx.Query(ctx, fmt.Sprintf("SELECT %s FROM %s t, %s WHERE %s FOR UPDATE OF t", "t."+strings.Join(wide, "::text, t.")+"::text", t.rows, key, where), *r.key)
	if err != nil {
		return err
	}
	values := [][]byte{[]byte(*r.key)} // as text, of the types that the server finds for them
	for rows.Next() {
		for _, v := range rows.RawValues() {
			values = append(values, slices.Clone(v))
		}
	}
	if err := rows.Err(); err != nil || len(values) == 1 {
		return err
	}
	for i, name := range wide {
		set = append(set, fmt.Sprintf("%s = $%d", name, i+2))
	}
	sql := fmt.Sprintf("UPDATE %s t SET %s FROM %s WHERE %s", t.rows, strings.Join(set, ", "), key, where)
	return tx.Conn().PgConn().ExecParams(ctx, sql, values, nil, nil, nil).Read().Err
}

// Restored says that the own stream has begun anew.
func (a *Applier) Restored(ctx context.Context) error {
	a.nodeMu.Lock()
	defer a.nodeMu.Unlock()
	a.catalog.mu.Lock()
	defer a.catalog.mu.Unlock()
	if _, err := a.catalog.conn.Exec(ctx, `UPDATE pgbridge.node SET restored_lsn = 0 FROM set_config('synchronous_commit', 'local', true)`); err != nil {
		return fmt.Errorf("note that the own stream has begun anew: %w", explain(err))
	}
	a.node.RestoredLSN = 0
	return nil
}
