package integration

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// exact compares databases bit by bit: it lets the server turn every column into the bytes of its type's
// binary send function. Arrays, composites, domains and ranges are taken apart down to their scalars,
// since their own bytes hold object ids, which differ between nodes.
type exact struct {
	t     testing.TB
	conn  *pgx.Conn
	types map[uint32]exactType
}

type exactType struct {
	kind, plain     string // typtype; name without a modifier
	send, takes     string // send function and what its argument is to be cast to
	base, elem, sub uint32
	fields          []exactColumn
}

type exactColumn struct {
	name string
	typ  uint32
}

const exactTypesSQL = `
SELECT t.oid, t.typtype::text, CASE WHEN t.typsend = 0 THEN '' ELSE t.typsend::regproc::text END,
       COALESCE((SELECT '::' || format_type(a.oid, -1) FROM pg_proc p JOIN pg_type a ON a.oid = p.proargtypes[0]
                 WHERE p.oid = t.typsend AND a.typtype <> 'p'), ''),
       format_type(t.oid, -1), t.typbasetype,
       CASE WHEN t.typcategory = 'A' AND t.typlen = -1 THEN t.typelem ELSE 0 END,
       COALESCE((SELECT rngsubtype FROM pg_range WHERE rngtypid = t.oid OR rngmultitypid = t.oid), 0),
       ARRAY(SELECT attname::text FROM pg_attribute WHERE t.typtype = 'c' AND attrelid = t.typrelid AND attnum > 0 AND NOT attisdropped ORDER BY attnum),
       ARRAY(SELECT atttypid FROM pg_attribute WHERE t.typtype = 'c' AND attrelid = t.typrelid AND attnum > 0 AND NOT attisdropped ORDER BY attnum)
FROM pg_type t WHERE t.typtype <> 'p'`

func newExact(t testing.TB, dsn string) *exact {
	t.Helper()
	x := &exact{t: t, conn: pgtest.Connect(t, dsn), types: map[uint32]exactType{}}
	rows, err := x.conn.Query(context.Background(), exactTypesSQL)
	if err != nil {
		t.Fatal(err)
	}
	var oid uint32
	var e exactType
	var names []string
	var ids []uint32
	if _, err := pgx.ForEachRow(rows, []any{&oid, &e.kind, &e.send, &e.takes, &e.plain, &e.base, &e.elem, &e.sub, &names, &ids}, func() error {
		e.fields = nil
		for i := range names {
			e.fields = append(e.fields, exactColumn{names[i], ids[i]})
		}
		x.types[oid] = e
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return x
}

// expr returns SQL for the bits of expression e of the type, as text; NULL for NULL.
func (x *exact) expr(typ uint32, e string, depth int) string {
	t := x.types[typ]
	switch {
	case t.base != 0:
		return x.expr(t.base, fmt.Sprintf("(%s)::%s", e, x.types[t.base].plain), depth)
	case t.elem != 0:
		v := fmt.Sprintf("e%d", depth)
		return fmt.Sprintf("CASE WHEN (%[1]s) IS NOT NULL THEN COALESCE(array_dims(%[1]s), '') || '{' || COALESCE((SELECT string_agg(COALESCE(%[2]s, 'N'), ',' ORDER BY n) "+
			"FROM (SELECT row_number() OVER () AS n, v AS %[3]s FROM (SELECT unnest(%[1]s) AS v) u) w), '') || '}' END", e, x.expr(t.elem, v, depth+1), v)
	case t.kind == "c":
		parts := []string{"''"}
		for _, f := range t.fields {
			parts = append(parts, fmt.Sprintf("COALESCE(%s, 'N')", x.expr(f.typ, fmt.Sprintf("(%s).%s", e, pgx.Identifier{f.name}.Sanitize()), depth)))
		}
		return fmt.Sprintf("CASE WHEN num_nulls(%s) = 0 THEN '(' || concat_ws(',', %s) || ')' END", e, strings.Join(parts, ", "))
	case t.kind == "r" && x.types[t.sub].kind != "b":
		return fmt.Sprintf("CASE WHEN (%[1]s) IS NOT NULL THEN '[' || isempty(%[1]s) || lower_inc(%[1]s) || upper_inc(%[1]s) || COALESCE(%[2]s, 'N') || ',' || COALESCE(%[3]s, 'N') || ')' END",
			e, x.expr(t.sub, "lower("+e+")", depth), x.expr(t.sub, "upper("+e+")", depth))
	case t.kind == "m" && x.types[t.sub].kind != "b":
		return fmt.Sprintf("(%s)::text", e)
	case t.send == "":
		return fmt.Sprintf("encode(convert_to((%s)::text, 'UTF8'), 'hex')", e)
	}
	return fmt.Sprintf("encode(%s((%s)%s), 'hex')", t.send, e, t.takes)
}

func (x *exact) tables() []string {
	x.t.Helper()
	return x.lines(`
		SELECT c.oid::regclass::text FROM pg_class c
		WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
		  AND c.relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema', 'pgbridge')
		ORDER BY c.oid::regclass::text COLLATE "C"`)
}

func (x *exact) lines(sql string) []string {
	x.t.Helper()
	rows, err := x.conn.Query(context.Background(), sql)
	if err != nil {
		x.t.Fatalf("%s: %v", sql, err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		x.t.Fatalf("%s: %v", sql, err)
	}
	return out
}

// row returns the SQL expression of a table's row, its columns by name.
func (x *exact) row(table string) string {
	x.t.Helper()
	rows, err := x.conn.Query(context.Background(), `SELECT attname::text, atttypid FROM pg_attribute
		WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attname COLLATE "C"`, table)
	if err != nil {
		x.t.Fatal(err)
	}
	var c exactColumn
	var parts []string
	if _, err := pgx.ForEachRow(rows, []any{&c.name, &c.typ}, func() error {
		e := x.expr(c.typ, "t."+pgx.Identifier{c.name}.Sanitize(), 0)
		parts = append(parts, fmt.Sprintf("%s || '=' || COALESCE(%s, 'N')", quoteLiteral(c.name), e))
		return nil
	}); err != nil {
		x.t.Fatal(err)
	}
	return "concat_ws(' ', " + strings.Join(append(parts, "NULL"), ", ") + ")"
}

func quoteLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

func (x *exact) digest(table string) string {
	x.t.Helper()
	return x.lines(fmt.Sprintf(`SELECT count(*) || ' ' || COALESCE(md5(string_agg(r, ',' ORDER BY r)), '')
		FROM (SELECT md5(%s) AS r FROM %s t) s`, x.row(table), table))[0]
}

// requireExact fails for each table that is not the same, bit by bit, on all nodes; except leaves tables
// out.
func requireExact(t testing.TB, c *cluster.Cluster, except ...string) {
	t.Helper()
	var all []*exact
	for _, n := range c.Nodes {
		x := newExact(t, n.DSN)
		defer x.conn.Close(context.Background())
		all = append(all, x)
	}
	tables := all[0].tables()
	for _, x := range all[1:] {
		if got := x.tables(); !slices.Equal(got, tables) {
			t.Fatalf("tables %q and %q", tables, got)
		}
	}
	for _, table := range tables {
		if slices.Contains(except, table) {
			continue
		}
		want := all[0].digest(table)
		for i, x := range all[1:] {
			if got := x.digest(table); got != want {
				t.Errorf("table %s at nodes 0 and %d: %s and %s\n%s", table, i+1, want, got, rowDifferences(all[0], x, table))
			}
		}
	}
}

func rowDifferences(a, b *exact, table string) string {
	count := map[string]int{}
	for _, r := range a.lines("SELECT " + a.row(table) + " FROM " + table + " t") {
		count[r]++
	}
	for _, r := range b.lines("SELECT " + b.row(table) + " FROM " + table + " t") {
		count[r]--
	}
	var lines []string
	for r, n := range count {
		if n != 0 {
			if len(r) > 600 {
				r = r[:600] + "..."
			}
			lines = append(lines, fmt.Sprintf("%+d %s", n, r))
		}
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[2:], b[2:]) })
	return strings.Join(lines[:min(len(lines), 6)], "\n")
}
