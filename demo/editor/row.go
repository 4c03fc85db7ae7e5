package editor

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"
)

// Schema makes the table, with the one text in it to come, and has each change of it told to who listens: also another node's, which is
// what ENABLE ALWAYS is for.
//
//go:embed schema.sql
var Schema string

// Table is what Schema makes, and Column what pgbridge is to merge character by character.
const Table, Column = "editor.document", "body"

// row is the text of one node. It is safe for concurrent use.
type row struct {
	mu   sync.Mutex
	conn *pgx.Conn // guarded by mu
}

const readRow = `SELECT body FROM editor.document WHERE id = 1`

// look reads the text, and hands it over before anybody writes here again.
func (r *row) look(ctx context.Context, take func(text string)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.read(ctx, take)
}

func (r *row) read(ctx context.Context, take func(text string)) error {
	var text string
	if err := r.conn.QueryRow(ctx, readRow).Scan(&text); err != nil {
		return fmt.Errorf("read the text: %w", err)
	}
	take(text)
	return nil
}

// write commits what change makes of the text, and reports whether there was anything to commit. If it could not, but for errStale, undo is
// handed what stands there then, before anybody else reads or writes.
func (r *row) write(ctx context.Context, change func(text string) (string, error), undo func(text string)) (written bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	err = pgx.BeginFunc(ctx, r.conn, func(tx pgx.Tx) error {
		var text string
		if err := tx.QueryRow(ctx, readRow+` FOR UPDATE`).Scan(&text); err != nil {
			return fmt.Errorf("lock the text: %w", err)
		}
		next, err := change(text)
		if err != nil || next == text {
			return err
		}
		written = true
		if _, err := tx.Exec(ctx, `UPDATE editor.document SET body = $1 WHERE id = 1`, next); err != nil {
			return fmt.Errorf("write the text: %w", err)
		}
		return nil
	})
	if err != nil && !errors.Is(err, errStale) {
		if failed := r.read(ctx, undo); failed != nil {
			err = fmt.Errorf("%w; and then: %w", err, failed)
		}
	}
	return written && err == nil, err
}

// listen calls changed at each change of the row, until ctx ends or the session does.
func listen(ctx context.Context, conn *pgx.Conn, changed func(context.Context) error) error {
	if _, err := conn.Exec(ctx, `LISTEN editor_document`); err != nil {
		return fmt.Errorf("listen to the text: %w", err)
	}
	for {
		if err := changed(ctx); err != nil {
			return err
		}
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return fmt.Errorf("wait for a change of the text: %w", err)
		}
	}
}
