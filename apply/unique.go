package apply

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// unique is a unique index of a table besides its key, or an exclusion constraint: what two of its rows may not have in
// common.
type unique struct {
	name  string
	parts []uniquePart
	where string // the predicate of a partial index
	// nullsEqual: NULLS NOT DISTINCT.
	nullsEqual bool
	// unchecked: deferrable. The server does not check it for applied rows (PROOF.md F12).
	unchecked bool
}

// uniquePart is one column or expression of a unique.
type uniquePart struct {
	expr      string // over the table's columns, by their bare names
	operator  string // that says that two values collide
	collation string // under which; empty if the type has none
}

// uniquesSQL lists what a table's rows may collide on. Operators of exclusion constraints stand with the constraint; a
// unique index compares by its operator class.
const uniquesSQL = `
SELECT c.relname::text, NOT i.indimmediate, COALESCE((to_jsonb(i)->>'indnullsnotdistinct')::bool, false),
       COALESCE(pg_get_expr(i.indpred, i.indrelid), ''), i.indisexclusion OR i.indpred IS NOT NULL OR NOT i.indimmediate,
       (i.indkey[0:i.indnkeyatts-1])::int2[],
       ARRAY(SELECT pg_get_indexdef(i.indexrelid, n, false) FROM generate_series(1, i.indnkeyatts::int) n ORDER BY n),
       ARRAY(SELECT format('OPERATOR(%I.%s)', s.nspname, o.oprname)
             FROM generate_series(1, i.indnkeyatts::int) n
             JOIN pg_operator o ON o.oid = COALESCE(x.conexclop[n],
                 (SELECT a.amopopr FROM pg_opclass k JOIN pg_amop a ON a.amopfamily = k.opcfamily
                      AND a.amoplefttype = k.opcintype AND a.amoprighttype = k.opcintype AND a.amopstrategy = 3
                  WHERE k.oid = i.indclass[n-1]))
             JOIN pg_namespace s ON s.oid = o.oprnamespace ORDER BY n),
       ARRAY(SELECT COALESCE((SELECT format('%I.%I', s.nspname, l.collname) FROM pg_collation l JOIN pg_namespace s ON s.oid = l.collnamespace
                              WHERE l.oid = i.indcollation[n-1]), '')
             FROM generate_series(1, i.indnkeyatts::int) n ORDER BY n)
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
     LEFT JOIN pg_constraint x ON x.conindid = i.indexrelid AND x.conrelid = i.indrelid AND x.conexclop IS NOT NULL
WHERE i.indrelid = $1 AND (i.indisunique OR i.indisexclusion) AND i.indislive
ORDER BY c.relname`

// generatedSQL lists what generated columns are made of.
const generatedSQL = `
SELECT a.attname::text, pg_get_expr(d.adbin, d.adrelid) FROM pg_attribute a JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = $1 AND a.attgenerated <> '' AND NOT a.attisdropped`

// loadUniques reads what the table's rows may collide on besides the key.
func (t *table) loadUniques(ctx context.Context, conn *pgx.Conn, byNumber map[int16]int) error {
	rows, err := conn.Query(ctx, uniquesSQL, t.oid)
	if err != nil {
		return fmt.Errorf("read unique indexes of %s: %w", t.quoted, err)
	}
	var u unique
	var special bool
	var nums []int16
	var exprs, operators, collations []string
	if _, err = pgx.ForEachRow(rows, []any{&u.name, &u.unchecked, &u.nullsEqual, &u.where, &special, &nums, &exprs, &operators, &collations}, func() error {
		if !special && t.isKeyOf(nums, byNumber) {
			return nil
		}
		if len(operators) != len(exprs) {
			return fmt.Errorf("index %s of %s has no operator that says which values are equal", u.name, t.quoted)
		}
		u.parts = nil
		for i := range exprs {
			p := uniquePart{exprs[i], operators[i], collations[i]}
			if nums[i] != 0 { // a domain's values are compared as what it is made of
				p.expr = strings.TrimPrefix(t.cols[byNumber[nums[i]]].compared(), "t.")
				p.expr = strings.Replace(p.expr, "(t.", "(", 1)
			}
			u.parts = append(u.parts, p)
		}
		t.uniques = append(t.uniques, u)
		t.unchecked = t.unchecked || u.unchecked
		return nil
	}); err != nil {
		return fmt.Errorf("read unique indexes of %s: %w", t.quoted, err)
	}
	if len(t.uniques) == 0 || !slices.ContainsFunc(t.cols, func(c column) bool { return c.generated }) {
		return nil
	}
	if rows, err = conn.Query(ctx, generatedSQL, t.oid); err != nil {
		return fmt.Errorf("read generated columns of %s: %w", t.quoted, err)
	}
	t.computed = map[string]string{}
	var name, expr string
	if _, err = pgx.ForEachRow(rows, []any{&name, &expr}, func() error { t.computed[name] = expr; return nil }); err != nil {
		return fmt.Errorf("read generated columns of %s: %w", t.quoted, err)
	}
	return nil
}

// isKeyOf reports whether the columns of an index are those of the key: rows of different keys do not collide there.
func (t *table) isKeyOf(nums []int16, byNumber map[int16]int) bool {
	if len(nums) != len(t.key) {
		return false
	}
	for _, n := range nums {
		if i, ok := byNumber[n]; n == 0 || !ok || !t.isKey(i) {
			return false
		}
	}
	return true
}

// rivalsSQL finds the rows of other keys that a row collides with: the place of its unique, and the row's. Parameters are
// the columns of insertSet.
func (m *mapping) rivalsSQL() (string, []uint32) {
	var types []uint32
	at := map[int]int{} // parameter, by local column
	for _, li := range m.cols {
		if li >= 0 {
			types = append(types, m.local.cols[li].param())
			at[li] = len(types)
		}
	}
	var values, same []string
	for li := range m.local.cols {
		c := &m.local.cols[li]
		switch {
		case at[li] != 0:
			values = append(values, fmt.Sprintf("$%d AS %s", at[li], c.quoted))
		case !c.generated:
			r := c.typ.root()
			values = append(values, fmt.Sprintf("NULL::%s AS %s", pgx.Identifier{r.schema, r.name}.Sanitize(), c.quoted))
		}
	}
	for _, k := range m.local.key {
		c := &m.local.cols[k]
		same = append(same, fmt.Sprintf("%s %s $%d", c.compared(), c.equals, at[k]))
	}
	row := "(SELECT " + strings.Join(values, ", ") + ") v"
	if len(m.local.computed) > 0 {
		var more []string
		for name, expr := range m.local.computed {
			more = append(more, fmt.Sprintf("(%s) AS %s", expr, pgx.Identifier{name}.Sanitize()))
		}
		slices.Sort(more)
		row = "(SELECT v.*, " + strings.Join(more, ", ") + " FROM " + row + ") v"
	}
	var outputs, queries []string
	for n := range m.local.uniques {
		u := &m.local.uniques[n]
		where := []string{"NOT (" + strings.Join(same, " AND ") + ")"}
		if u.where != "" {
			name := fmt.Sprintf(`"pgbridge.%d"`, n)
			outputs = append(outputs, fmt.Sprintf("(%s) AS %s", u.where, name))
			where = append(where, "n."+name, "("+u.where+")")
		}
		for i, p := range u.parts {
			name := fmt.Sprintf(`"pgbridge.%d.%d"`, n, i)
			outputs = append(outputs, fmt.Sprintf("(%s) AS %s", p.expr, name))
			where = append(where, u.collides(p, "n."+name))
		}
		queries = append(queries, fmt.Sprintf("SELECT %d, t.tableoid::text, t.ctid::text FROM n, %s t WHERE %s", n, m.local.rows, strings.Join(where, " AND ")))
	}
	return fmt.Sprintf("WITH n AS MATERIALIZED (SELECT %s FROM %s) %s", strings.Join(outputs, ", "), row, strings.Join(queries, " UNION ALL ")), types
}

// collides is the condition that a part of a row is in the way of value.
func (u *unique) collides(p uniquePart, value string) string {
	expr := "(" + p.expr + ")"
	if p.collation != "" {
		expr += " COLLATE " + p.collation
	}
	if u.nullsEqual {
		return fmt.Sprintf("(%s %s %s OR num_nulls(%s, %s) = 2)", expr, p.operator, value, "("+p.expr+")", value)
	}
	return fmt.Sprintf("%s %s %s", expr, p.operator, value)
}

// asText is the expression of a value's text, as its type's output function makes it.
func asText(value string) string {
	return fmt.Sprintf("CASE WHEN num_nulls(%s) = 0 THEN format('%%s', %s) END", value, value)
}
