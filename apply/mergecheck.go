package apply

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
)

// What is merged out of values that each were right may violate a CHECK constraint. Then the row is as the latest of the
// writes that were merged left it, as a whole: a function of the same writes again, so that all nodes fall back alike.
//
// Whether a row was fallen back to must not depend on how much of its journal is left. So a table with constraints is
// merged stretch by stretch: a stretch ends where all writes behind it certainly had seen all before it, which is where a
// journal may be folded, too.

// loadMerge completes what a merged table's rows are merged by.
func (t *table) loadMerge(ctx context.Context, conn *pgx.Conn) error {
	if err := t.checkCalls(ctx, conn); err != nil {
		return err
	}
	// A constraint that names a generated column cannot be tried here.
	rows, err := conn.Query(ctx, `SELECT pg_get_expr(c.conbin, c.conrelid) FROM pg_constraint c WHERE c.conrelid = $1 AND c.contype = 'c'
		AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey) AND a.attgenerated <> '') ORDER BY c.oid`, t.oid)
	if err != nil {
		return fmt.Errorf("read constraints of %s: %w", t.quoted, err)
	}
	var checks []string
	var check string
	if _, err := pgx.ForEachRow(rows, []any{&check}, func() error {
		checks = append(checks, "("+check+") IS NOT FALSE")
		return nil
	}); err != nil {
		return fmt.Errorf("read constraints of %s: %w", t.quoted, err)
	}
	t.merge.check = strings.Join(checks, " AND ")
	return nil
}

// keeps returns the row that a write left if the journal must keep it.
func (t *table) keeps(row []conflict.Cell) []conflict.Cell {
	if t.merge.check == "" {
		return nil
	}
	return row
}

// fits reports whether a row satisfies the table's CHECK constraints.
func (t *table) fits(ctx context.Context, conn *pgconn.PgConn, row []conflict.Cell) (bool, error) {
	var types []uint32
	var ps []param
	var cols []string
	for i, li := range t.merge.cols {
		col := &t.cols[li]
		types, ps = append(types, col.param()), append(ps, t.cellParam(li, row[i]))
		cols = append(cols, fmt.Sprintf("$%d AS %s", len(types), col.quoted))
	}
	values, in := raw(ps)
	r := conn.ExecParams(ctx, "SELECT "+t.merge.check+" FROM (SELECT "+strings.Join(cols, ", ")+") r", values, types, in, nil).Read()
	if r.Err != nil {
		return false, fmt.Errorf("try constraints of %s: %w", t.quoted, r.Err)
	}
	return string(r.Rows[0][0]) == "t", nil
}

// merged works the row out. What it says of writes are places in l.writes.
func (l *lineage) merged(ctx context.Context, conn *pgconn.PgConn, t *table) (conflict.Merged, error) {
	rules := t.rules(ctx, conn)
	row, places := l.standing()
	out := conflict.Merged{Row: row, Winner: make([]int, len(rules.Units)), Deleted: -1}
	for u := range out.Winner {
		out.Winner[u] = -1
	}
	stretches := [][]int{places}
	if t.merge.check != "" {
		stretches = l.stretches(places)
	}
	for _, s := range stretches {
		writes := make([]conflict.Logged, len(s))
		for n, i := range s {
			writes[n] = l.writes[i]
		}
		part, err := rules.Merge(out.Row, writes)
		if err != nil {
			return out, err
		}
		if err := l.fallBack(ctx, conn, t, s, &part); err != nil {
			return out, err
		}
		for u, n := range part.Winner {
			if n >= 0 {
				out.Winner[u] = s[n]
			} else if slices.ContainsFunc(writes, func(w conflict.Logged) bool { return u < len(w.Ops) && len(w.Ops[u]) > 0 }) {
				out.Winner[u] = -1
			}
		}
		if out.Row, out.Deleted = part.Row, part.Deleted; part.Deleted >= 0 {
			out.Deleted = s[part.Deleted]
		}
	}
	return out, nil
}

// fallBack makes part, which was merged of the writes at places, the row as the latest of them left it, if it violates a
// constraint. One write alone is right, since its author's row was.
func (l *lineage) fallBack(ctx context.Context, conn *pgconn.PgConn, t *table, places []int, part *conflict.Merged) error {
	if t.merge.check == "" || part.Row == nil || len(places) < 2 {
		return nil
	}
	if ok, err := t.fits(ctx, conn, part.Row); ok || err != nil {
		return err
	}
	for n, i := range slices.Backward(places) {
		if image := l.images[i]; image != nil {
			row := slices.Clone(image)
			for u, unit := range t.merge.rules.Units {
				if t.merge.isPlaced(unit.Columns[0]) { // no constraint is over it, and n's author may lack it
					for _, at := range unit.Columns {
						row[at] = part.Row[at]
					}
					continue
				}
				part.Winner[u] = n
			}
			part.Row = row
			return nil
		}
	}
	return nil
}

// standing returns the row that the journal begins with, and the places of the writes that count, in their order: those
// that no TRUNCATE has taken.
func (l *lineage) standing() (row []conflict.Cell, places []int) {
	for i := range l.writes {
		places = append(places, i)
	}
	slices.SortFunc(places, func(a, b int) int { return later(&l.writes[a], &l.writes[b]) })
	if len(l.truncates) == 0 {
		return l.base, places
	}
	last := slices.MaxFunc(l.truncates, func(a, b conflict.Logged) int { return later(&a, &b) })
	// An update of a row that the TRUNCATE has taken lacks the values that it left alone. Deletes stay, so that one which wins
	// over a later write still does: what a TRUNCATE adds is never a row.
	inserted := false
	places = slices.DeleteFunc(places, func(i int) bool {
		w := &l.writes[i]
		inserted = inserted || w.Kind == conflict.Insert && later(w, &last) > 0
		return w.Kind != conflict.Delete && !inserted
	})
	if !inserted {
		return nil, nil
	}
	return nil, places
}

// reworked is what the row that stands here is to be; nil: gone.
func (l *lineage) reworked(ctx context.Context, conn *pgconn.PgConn, t *table, here []conflict.Cell) ([]conflict.Cell, error) {
	if !l.based {
		l.base = here
	}
	out, err := l.merged(ctx, conn, t)
	return out.Row, err
}

// stretches cuts the writes where all behind certainly had seen all before.
func (l *lineage) stretches(places []int) [][]int {
	var origins []origin.Origin
	of := make([]int, len(places))
	for n, i := range places {
		o := l.writes[i].Origin
		if of[n] = slices.Index(origins, o); of[n] < 0 {
			of[n] = len(origins)
			origins = append(origins, o)
		}
	}
	// had is, for each place, what of each origin the authors of all writes from there on certainly had seen.
	had := make([][]uint64, len(places)+1)
	had[len(places)] = slices.Repeat([]uint64{math.MaxUint64}, len(origins))
	for n := len(places) - 1; n >= 0; n-- {
		had[n] = slices.Clone(had[n+1])
		for o := range origins {
			if o != of[n] {
				had[n][o] = min(had[n][o], l.lows[places[n]].Seq(origins[o]))
			}
		}
	}
	var all [][]int
	last := make([]uint64, len(origins)) // of each origin, of the writes so far
	from := 0
	for n, i := range places {
		if n > 0 && !exceeds(last, had[n]) {
			all, from = append(all, places[from:n]), n
		}
		last[of[n]] = l.writes[i].Seq
	}
	return append(all, places[from:])
}

// exceeds reports whether one of a is above its peer in b.
func exceeds(a, b []uint64) bool {
	for i := range a {
		if a[i] > b[i] {
			return true
		}
	}
	return false
}
