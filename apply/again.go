package apply

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/wire"
)

// What users wrote and nobody has got is written again in the very transaction in which the node is given what it lacked: in one of
// its own, later, it would come behind what users write meanwhile, who have seen it. Capture takes what stands there behind a message
// (wire.AgainPrefix). Users' tables are locked, so that nothing of theirs comes before.

// againRow is a row that users had written, or deleted.
type againRow struct {
	id         int64
	table      tableName
	key, image *string // as JSON; image: the row is to be inserted
	gone       bool
}

// writeAgain writes the rows again that are noted in pgbridge.rewrite.
func (b *comeback) writeAgain(ctx context.Context) error {
	if err := b.flush(ctx); err != nil || b.again == 0 {
		return err
	}
	tables := map[tableName]*table{}
	for _, m := range b.tables() {
		tables[m.name()] = m.local
	}
	if _, err := b.conn.Exec(ctx, `SELECT pg_logical_emit_message(true, $1::text, ''::text)`, wire.AgainPrefix); err != nil {
		return fmt.Errorf("begin to write rows again: %w", explain(err))
	}
	for {
		rows, err := readAgain(ctx, b.conn)
		if err != nil || len(rows) == 0 {
			return err
		}
		for _, r := range rows {
			t := tables[r.table]
			err := writeAgain(ctx, b.conn, t, r)
			if err == nil {
				_, err = b.conn.Exec(ctx, `DELETE FROM pgbridge.rewrite WHERE id = $1`, r.id)
			}
			if err != nil {
				return fmt.Errorf("write a row of %s again: %w", t.quoted, err)
			}
		}
	}
}

// writtenAgain is the transaction in which others get these rows. Which seq it has, capture finds out (numberAgain).
func (b *comeback) writtenAgain() *txn {
	return &txn{Begin: wire.Begin{Seq: notNumbered, Stamp: b.stamp}, origin: b.own, up: b.seen, low: b.seen}
}

// notNumbered stands in pgbridge.returned for the seq of a transaction that capture has not read yet.
const notNumbered = math.MaxInt64

// numberAgain notes by which own seq the rows have been captured that were written again.
func (a *Applier) numberAgain(ctx context.Context, wal WAL) error {
	lsn := a.Node().AgainLSN
	if lsn == 0 || a.numbered || wal.Passed() < lsn {
		return nil
	}
	_, err := a.catalog.conn.Exec(ctx, `UPDATE pgbridge.returned SET seq = $1 WHERE id = 0 AND seq = $2`, int64(wal.Captured()), int64(notNumbered))
	if err != nil {
		return fmt.Errorf("number rows that were written again: %w", err)
	}
	a.numbered = true
	return nil
}

// isAgain reports whether a row of a merged table, as lookSQL shows it, was written again: it must be in the journal like a user's.
func (c *carefulRun) isAgain(row [][]byte) bool {
	return string(row[3]) == fmt.Sprint(c.kept.back) && strings.HasPrefix(string(row[7]), "0 ")
}

// readAgain reads the first rows that are to be written again: deletes before all else, which may make room for others.
func readAgain(ctx context.Context, conn *pgx.Conn) ([]againRow, error) {
	rows, err := conn.Query(ctx, `SELECT id, schema, name, key::text, image::text, gone FROM pgbridge.rewrite ORDER BY gone DESC, id LIMIT 500`)
	if err != nil {
		return nil, fmt.Errorf("read pgbridge.rewrite: %w", err)
	}
	var all []againRow
	var r againRow
	_, err = pgx.ForEachRow(rows, []any{&r.id, &r.table.schema, &r.table.name, &r.key, &r.image, &r.gone}, func() error {
		all = append(all, r)
		return nil
	})
	return all, err
}

// writeAgain writes one row: with new values of all that may be stored out of line, so that the WAL has them.
func writeAgain(ctx context.Context, conn *pgx.Conn, t *table, r againRow) error {
	var set, cols []string
	var wide []string
	still := "" // a column that an UPDATE may write
	for i := range t.cols {
		c := &t.cols[i]
		if c.generated {
			continue
		}
		cols = append(cols, c.quoted)
		if !c.always {
			still = c.quoted
		}
		if c.long && !t.isKey(i) {
			wide = append(wide, c.quoted)
		}
	}
	key := fmt.Sprintf("pg_catalog.json_populate_record(NULL::%s, $1::json) k", t.quoted)
	where := t.sameKey("t", "k")
	switch {
	case r.image != nil:
		_, err := conn.Exec(ctx, fmt.Sprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM %s ON CONFLICT DO NOTHING", t.quoted,
			strings.Join(cols, ", "), "k."+strings.Join(cols, ", k."), key), *r.image)
		return err
	case r.gone:
		_, err := conn.Exec(ctx, fmt.Sprintf("DELETE FROM %s t USING %s WHERE %s", t.rows, key, where), *r.key)
		return err
	case len(wide) == 0 && still != "":
		_, err := conn.Exec(ctx, fmt.Sprintf("UPDATE %s t SET %s = t.%s FROM %s WHERE %s", t.rows, still, still, key, where), *r.key)
		return err
	case len(wide) == 0: // no UPDATE may write any of its columns
		_, err := conn.Exec(ctx, fmt.Sprintf("WITH d AS (DELETE FROM %s t USING %s WHERE %s RETURNING t.*) INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM d",
			t.rows, key, where, t.quoted, strings.Join(cols, ", "), strings.Join(cols, ", ")), *r.key)
		return err
	}
	rows, err := conn.Query(ctx, fmt.Sprintf("SELECT %s FROM %s t, %s WHERE %s FOR UPDATE OF t", "t."+strings.Join(wide, "::text, t.")+"::text", t.rows, key, where), *r.key)
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
	return conn.PgConn().ExecParams(ctx, sql, values, nil, nil, nil).Read().Err
}

// Restored says that the own stream has begun anew.
func (a *Applier) Restored(ctx context.Context) error {
	a.nodeMu.Lock()
	defer a.nodeMu.Unlock()
	a.catalog.mu.Lock()
	defer a.catalog.mu.Unlock()
	var again int64
	err := a.catalog.conn.QueryRow(ctx, `UPDATE pgbridge.node SET restored_lsn = 0, again_lsn = CASE WHEN again_lsn = 0 THEN 0 ELSE (pg_current_wal_insert_lsn() - '0/0')::int8 END
		FROM set_config('synchronous_commit', 'local', true) RETURNING again_lsn`).Scan(&again)
	if err != nil {
		return fmt.Errorf("note that the own stream has begun anew: %w", explain(err))
	}
	a.node.RestoredLSN, a.node.AgainLSN = 0, uint64(again)
	return nil
}
