package apply

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/conflict"
)

// A user's function makes one value of two that were written concurrently. It takes two jsonb objects, {"origin": …,
// "stamp": …, "row": {…}}, of which the first is the earlier one, and returns the columns that it wants, the others being
// those of the later one. All nodes call it with the same arguments in the same order, so that it has to be IMMUTABLE; that
// it gives the same with its arguments swapped shows that nobody relies on who came first.

// checkCalls refuses functions that are not there, or cannot be trusted to give the same on every node.
func (t *table) checkCalls(ctx context.Context, conn *pgx.Conn) error {
	for _, f := range t.merge.calls {
		if f == "" {
			continue
		}
		var there, immutable, json bool
		err := conn.QueryRow(ctx, `SELECT p.oid IS NOT NULL, coalesce(p.provolatile = 'i', false), coalesce(p.prorettype = 'jsonb'::regtype, false)
			FROM (SELECT to_regprocedure($1 || '(jsonb, jsonb)')) r(oid) LEFT JOIN pg_proc p ON p.oid = r.oid`, quoteFunction(f)).Scan(&there, &immutable, &json)
		switch {
		case err != nil:
			return fmt.Errorf("look up function %s: %w", f, err)
		case !there || !json:
			return blocked("table %s is merged by function %s, as conflict.tables says; create it: %s(jsonb, jsonb) RETURNS jsonb", t.quoted, f, f)
		case !immutable:
			return blocked("table %s is merged by function %s, which may give something else on another node; run ALTER FUNCTION %s(jsonb, jsonb) IMMUTABLE "+
				"if it gives the same everywhere", t.quoted, f, f)
		}
	}
	return nil
}

// quoteFunction quotes schema and name for SQL.
func quoteFunction(f string) string {
	schema, name, _ := strings.Cut(f, ".")
	return pgx.Identifier{schema, name}.Sanitize()
}

// rules are the table's, with their functions called through conn, within the transaction that is open there.
func (t *table) rules(ctx context.Context, conn *pgconn.PgConn) *conflict.Rules {
	if !slices.ContainsFunc(t.merge.calls, func(f string) bool { return f != "" }) {
		return &t.merge.rules
	}
	bound := t.merge.rules
	bound.Units = slices.Clone(bound.Units)
	for i, f := range t.merge.calls {
		if f != "" {
			u := &bound.Units[i]
			u.Call = func(earlier, later conflict.Candidate) ([]conflict.Cell, error) {
				return t.call(ctx, conn, f, u.Columns, earlier, later)
			}
		}
	}
	return &bound
}

// call calls a function for the columns of a unit.
func (t *table) call(ctx context.Context, conn *pgconn.PgConn, f string, columns []int, earlier, later conflict.Candidate) ([]conflict.Cell, error) {
	var types []uint32
	var ps []param
	side := func(c conflict.Candidate) (argument, row string) {
		types = append(types, oidText, oidTimestamptz)
		ps = append(ps, textParam(c.Version.Origin.String()), int64Param(int64(c.Version.Stamp)))
		argument = fmt.Sprintf("jsonb_build_object('origin', $%d, 'stamp', $%d, 'row', to_jsonb(", len(types)-1, len(types))
		var cols []string
		for i, at := range columns {
			col := &t.cols[t.merge.cols[at]]
			types, ps = append(types, col.param()), append(ps, t.cellParam(t.merge.cols[at], c.Cells[i]))
			cols = append(cols, fmt.Sprintf("$%d AS %s", len(types), col.quoted))
		}
		return argument, "(SELECT " + strings.Join(cols, ", ") + ")"
	}
	e, eRow := side(earlier)
	l, lRow := side(later)
	var cols []string
	var formats []int16
	for _, at := range columns {
		col := &t.cols[t.merge.cols[at]]
		cols, formats = append(cols, "(x.r)."+col.quoted), append(formats, col.typ.format())
	}
	name := quoteFunction(f)
	sql := fmt.Sprintf(`SELECT %s, x.one = x.other FROM (SELECT jsonb_populate_record(NULL::%s, to_jsonb(y.l) || y.one) AS r, y.one, y.other
		FROM (SELECT l, %s(%se)), %sl))) AS one, %s(%sl)), %se))) AS other FROM %s e, %s l OFFSET 0) y OFFSET 0) x`,
		strings.Join(cols, ", "), t.quoted, name, e, l, name, l, e, eRow, lRow)
	values, in := raw(ps)
	r := conn.ExecParams(ctx, sql, values, types, in, append(formats, 0)).Read()
	if r.Err != nil {
		return nil, fmt.Errorf("call %s: %w", f, r.Err)
	}
	row := r.Rows[0]
	switch last := row[len(row)-1]; {
	case last == nil:
		return nil, blocked("function %s gives NULL for a conflict in table %s; it must return an object of columns", f, t.quoted)
	case string(last) != "t":
		return nil, blocked("function %s gives something else for a conflict in table %s when its arguments are swapped; "+
			"mend it: which row comes first must not matter", f, t.quoted)
	}
	cells := make([]conflict.Cell, len(columns))
	for i, at := range columns {
		cells[i] = conflict.Cell{Null: row[i] == nil, Data: row[i]}
		if t.isKey(t.merge.cols[at]) {
			cells[i] = later.Cells[i]
		}
	}
	return cells, nil
}
