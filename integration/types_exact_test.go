package integration

import (
	"context"
	"fmt"
	"maps"
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
FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid AND t.typtype = 'c'
WHERE t.typtype <> 'p' AND COALESCE(c.relkind = 'c' OR c.oid >= 16384, true)`

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

// rows returns, for each of the user's tables whose name matches the regular expression, the SQL
// expression of its row, columns by name. Those that begin with only_here are not compared.
func (x *exact) rows(match string) map[string]string {
	x.t.Helper()
	rows, err := x.conn.Query(context.Background(), `
		SELECT c.oid::regclass::text, a.attname::text, a.atttypid FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
		WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p' AND c.relname ~ $1
		  AND c.relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema', 'pgbridge')
		  AND a.attnum > 0 AND NOT a.attisdropped AND a.attname !~ '^only_here' ORDER BY c.oid, a.attname COLLATE "C"`, match)
	if err != nil {
		x.t.Fatal(err)
	}
	out := map[string]string{}
	var table string
	var c exactColumn
	if _, err := pgx.ForEachRow(rows, []any{&table, &c.name, &c.typ}, func() error {
		e := x.expr(c.typ, "t."+pgx.Identifier{c.name}.Sanitize(), 0)
		out[table] += fmt.Sprintf(" || %s || COALESCE(%s, 'N')", quoteLiteral(" "+c.name+"="), e)
		return nil
	}); err != nil {
		x.t.Fatal(err)
	}
	for table := range out {
		out[table] = "(''" + out[table] + ")"
	}
	return out
}

func quoteLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// digests returns a digest of each table's rows, asking for many at once.
func (x *exact) digests(rows map[string]string) map[string]string {
	x.t.Helper()
	out := map[string]string{}
	for batch := range slices.Chunk(slices.Sorted(maps.Keys(rows)), 40) {
		var parts []string
		for _, table := range batch {
			parts = append(parts, fmt.Sprintf(`SELECT %s || ' ' || count(*) || ' ' || COALESCE(md5(string_agg(r, '' ORDER BY r)), '')
				FROM (SELECT md5(%s) AS r FROM %s t) s`, quoteLiteral(table), rows[table], table))
		}
		for _, line := range x.lines(strings.Join(parts, " UNION ALL ")) {
			for _, table := range batch {
				if strings.HasPrefix(line, table+" ") {
					out[table] = line
				}
			}
		}
	}
	return out
}

// judge compares the nodes of a cluster.
type judge struct {
	t   testing.TB
	all []*exact
}

func newJudge(t testing.TB, c *cluster.Cluster) *judge {
	t.Helper()
	j := &judge{t: t}
	for _, n := range c.Nodes {
		j.all = append(j.all, newExact(t, n.DSN))
	}
	return j
}

// require fails for each table, of those whose name matches the regular expression, that is not the same,
// bit by bit, on all nodes.
func (j *judge) require(match string) {
	j.t.Helper()
	want := j.all[0].rows(match)
	if len(want) == 0 {
		j.t.Fatalf("no table matches %q", match)
	}
	digests := j.all[0].digests(want)
	for i, x := range j.all[1:] {
		rows := x.rows(match)
		got := x.digests(rows)
		for _, table := range slices.Sorted(maps.Keys(want)) {
			if got[table] != digests[table] {
				j.t.Errorf("nodes 0 and %d: %s and %s\n%s", i+1, digests[table], got[table],
					differences(j.all[0].lines("SELECT "+want[table]+" FROM "+table+" t"), x.lines("SELECT "+rows[table]+" FROM "+table+" t")))
			}
		}
		if len(got) != len(digests) {
			j.t.Errorf("nodes 0 and %d have %d and %d tables", i+1, len(digests), len(got))
		}
	}
}

func differences(a, b []string) string {
	count := map[string]int{}
	for _, r := range a {
		count[r]++
	}
	for _, r := range b {
		count[r]--
	}
	var lines []string
	for r, n := range count {
		if n != 0 {
			if len(r) > 600 {
				r = r[:600] + "..."
			}
			lines = append(lines, fmt.Sprintf("%+d%s", n, r))
		}
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[2:], b[2:]) })
	return strings.Join(lines[:min(len(lines), 6)], "\n")
}
