package apply

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/origin"
)

// takebacks removes remote rows that a local delete beats which capture met only after they had been
// inserted (PROOF.md R19). It works in the session of the bridge's own replication origin, so that
// capture does not take its deletes for users'.
type takebacks struct {
	conn     *pgx.Conn
	own      origin.Origin
	ids      []uint32 // roidents of the remote origins
	origins  []origin.Origin
	catalog  *catalog
	absence  *absence
	progress *progress
	markers  *markers
	failed   func(err error) // told of a take-back that has to wait
}

func (b *takebacks) run(ctx context.Context) error {
	for {
		applied, changed := b.progress.watch()
		due := b.absence.due(applied, 200)
		if len(due) == 0 {
			if !b.absence.takesWait() {
				changed = nil // only a new one can be due
			}
			select {
			case <-b.absence.wake:
			case <-changed:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			continue
		}
		if err := b.takeAll(ctx, due); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if lost(err) {
				return fmt.Errorf("take back: %w", err)
			}
			b.failed(err)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
}

// takeAll takes rows back. Whether it found them or not, what it saw is flushed before the slot may be
// confirmed past the deletes (PROOF.md R20).
func (b *takebacks) takeAll(ctx context.Context, due []take) error {
	tables := map[tableName]*table{}
	for _, t := range due {
		if tables[t.table] == nil {
			tab, err := b.catalog.table(ctx, t.table.schema, t.table.name)
			if isBlocked(err) { // dropped meanwhile: nothing to take back
				continue
			}
			if err != nil {
				return err
			}
			tables[t.table] = tab
		}
		if err := b.take(ctx, tables[t.table], t); err != nil {
			return err
		}
	}
	if _, err := b.markers.flush(ctx); err != nil {
		return err
	}
	b.absence.done(due)
	return nil
}

// take deletes the row if its writer is a remote origin whose version is below the local delete's. Never
// a row of a local session: that is later.
func (b *takebacks) take(ctx context.Context, tab *table, t take) error {
	sql, types := b.sql(tab, t)
	values, formats := [][]byte{}, []int16{}
	add := func(p param) {
		values, formats = append(values, p.value), append(formats, int16(p.format))
	}
	add(int64Param(int64(t.version.Stamp)))
	for _, v := range t.key {
		if v.Format == 'b' {
			add(binaryParam(v.Data))
		} else {
			add(param{value: v.Data})
		}
	}
	if r := b.conn.PgConn().ExecParams(ctx, sql, values, types, formats, nil).Read(); r.Err != nil {
		return fmt.Errorf("take back a row of %s: %w", tab.quoted, r.Err)
	}
	return nil
}

// sql builds the delete: $1 is the local delete's stamp, then the key, if it is one row.
func (b *takebacks) sql(tab *table, t take) (string, []uint32) {
	types := []uint32{oidTimestamptz}
	var older []string
	for i, id := range b.ids {
		// Equal stamps are decided by the origin's name, like everywhere (origin.Version.Later).
		op := "<"
		if b.own.Compare(b.origins[i]) > 0 {
			op = "<="
		}
		older = append(older, fmt.Sprintf("WHEN c.roident = %d THEN c.timestamp %s $1", id, op))
	}
	sql := fmt.Sprintf("DELETE FROM %s t WHERE (SELECT CASE WHEN c.timestamp IS NULL THEN false %s ELSE false END "+
		"FROM pg_xact_commit_timestamp_origin(t.xmin) c)", tab.rows, strings.Join(older, " "))
	for i := range t.key {
		c := &tab.cols[tab.key[i]]
		types = append(types, c.param())
		sql += fmt.Sprintf(" AND %s %s $%d", c.compared(), c.equals, len(types))
	}
	return sql, types
}
