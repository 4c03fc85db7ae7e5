package apply

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
)

// retired are the prepared statements of mappings that are not used any more. The server keeps each, with its
// plan, until it is told to close it.
type retired struct {
	// Of the mappings, not their statements: a run that is being collected may still prepare one.
	mappings []*mapping
	combined []*statement
}

// retireLimit is how many retired mappings or combined statements may pile up behind what is in flight.
const retireLimit = 64

// forgetMappings has tables, and the statements for them, made anew.
func (w *worker) forgetMappings() {
	w.stale = true
	for id := range w.mappings {
		w.retire(id)
	}
}

// retire forgets one mapping, and the combined statements, which may be of it.
func (w *worker) retire(id uint32) {
	if m := w.mappings[id]; m != nil {
		w.retired.mappings = append(w.retired.mappings, m)
		delete(w.mappings, id)
	}
	for _, c := range w.combined {
		if c.s != nil {
			w.retired.combined = append(w.retired.combined, c.s)
		}
	}
	clear(w.combined)
}

// tidy closes the statements that are retired. What is in flight may prepare them only now, or leave it undone
// after an error, and so nothing may be.
func (w *worker) tidy(ctx context.Context) error {
	n := len(w.retired.mappings) + len(w.retired.combined)
	if n > retireLimit {
		if err := w.reap(ctx, 0); err != nil {
			return err
		}
	}
	if n == 0 || len(w.pending) > 0 {
		return nil
	}
	p := w.conn.PgConn().StartPipeline(ctx)
	left := 0
	closed := func(s *statement) {
		if s.ready {
			p.SendDeallocate(s.name)
			left++
		}
		s.sent, s.ready = false, false
	}
	for _, m := range w.retired.mappings {
		for _, s := range m.statements {
			closed(s)
		}
	}
	for _, s := range w.retired.combined {
		closed(s)
	}
	w.retired = retired{}
	err := p.Sync()
	for ; err == nil && left > 0; left-- {
		var r any
		if r, err = p.GetResults(); err == nil {
			if _, ok := r.(*pgconn.CloseComplete); !ok {
				err = fmt.Errorf("unexpected answer %T", r)
			}
		}
	}
	if err = errors.Join(err, p.Close()); err != nil {
		return fmt.Errorf("close statements: %w", err)
	}
	return nil
}
