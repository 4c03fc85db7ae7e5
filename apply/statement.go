package apply

import (
	"fmt"
	"strings"

	"github.com/pgbridge/pgbridge/wire"
)

// statement is one prepared statement of a connection.
type statement struct {
	name  string
	sql   string
	types []uint32
	// sent: its Parse went out. ready: the server said that it did it. In between, an error in front
	// of it makes the server skip it.
	sent, ready bool
}

// The shapes of statements; each has one SQL text per mapping and set of columns. An assertion makes the
// statement fail if it does not touch the rows that it must: 1/count(*) divides by zero. together.go has
// those of whole transactions.

func (m *mapping) insertSQL() (string, []uint32) { return m.insertText(nil) }

// insertText is an INSERT whose parameters come behind those of types.
func (m *mapping) insertText(types []uint32) (string, []uint32) {
	var cols, vals []string
	for _, li := range m.cols {
		if li >= 0 {
			c := &m.local.cols[li]
			cols, types = append(cols, c.quoted), append(types, c.param())
			vals = append(vals, fmt.Sprintf("$%d", len(types)))
		}
	}
	return fmt.Sprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE VALUES (%s)",
		m.local.quoted, strings.Join(cols, ", "), strings.Join(vals, ", ")), types
}

func (m *mapping) copySQL() string {
	var cols []string
	for _, li := range m.cols {
		if li >= 0 {
			cols = append(cols, m.local.cols[li].quoted)
		}
	}
	return fmt.Sprintf("COPY %s (%s) FROM STDIN (FORMAT binary)", m.local.quoted, strings.Join(cols, ", "))
}

// set lists the remote columns that an update writes: those with a value, without the unchanged ones,
// the generated ones, identity columns that no UPDATE can write and, unless it looks different now, the
// key.
func (m *mapping) set(dst []int, tuple []wire.Value, withKey bool) []int {
	dst = dst[:0]
	for i, li := range m.cols {
		if li < 0 || m.local.cols[li].always || tuple[i].Format == wire.Unchanged || !withKey && m.isKey(i) {
			continue
		}
		dst = append(dst, i)
	}
	return dst
}

// still returns the column that an update which changes nothing sets to itself, nil if there is none that
// an UPDATE can write.
func (m *mapping) still() *column {
	var other *column
	for i, li := range m.cols {
		if li < 0 || m.local.cols[li].always {
			continue
		}
		if m.isKey(i) {
			return &m.local.cols[li]
		}
		other = &m.local.cols[li]
	}
	return other
}

func (m *mapping) isKey(i int) bool {
	for _, k := range m.key {
		if k == i {
			return true
		}
	}
	return false
}

// updateSQL writes the columns of set in the row of one key: parameters are the set's values, the key's,
// those of the identity columns that it cannot write and that must be there already, then the guard's.
func (m *mapping) updateSQL(set []int, g *guard) (string, []uint32) {
	text, types := m.updateText(nil, set)
	return fmt.Sprintf("WITH u AS (%s AND %s RETURNING 1) SELECT 1/count(*) FROM u", text, g.sql(len(types)+1)), append(types, g.types()...)
}

// updateText is an UPDATE up to its guard, whose parameters come behind those of types.
func (m *mapping) updateText(types []uint32, set []int) (string, []uint32) {
	var b strings.Builder
	fmt.Fprintf(&b, "UPDATE %s t SET ", m.local.rows)
	for n, i := range set {
		c := &m.local.cols[m.cols[i]]
		types = append(types, c.param())
		fmt.Fprintf(&b, "%s%s = $%d", comma(n), c.quoted, len(types))
	}
	if len(set) == 0 { // nothing but the key: the row's version must move all the same
		c := m.still()
		fmt.Fprintf(&b, "%s = t.%s", c.quoted, c.quoted)
	}
	b.WriteString(" WHERE ")
	types = m.local.whereKey(&b, types)
	for _, i := range m.always {
		c := &m.local.cols[m.cols[i]]
		types = append(types, c.param())
		fmt.Fprintf(&b, " AND t.%s = $%d", c.quoted, len(types))
	}
	return b.String(), types
}

// replaceSQL writes the columns of set in the row of one key by deleting the row and inserting it again,
// which is the only way to change an identity column. Parameters are the set's values, then the key's.
func (m *mapping) replaceSQL(set []int) (string, []uint32) {
	var types []uint32
	from := map[int]string{} // by local column
	for _, i := range set {
		types = append(types, m.local.cols[m.cols[i]].param())
		from[m.cols[i]] = fmt.Sprintf("$%d", len(types))
	}
	var cols, vals []string
	for li := range m.local.cols {
		c := &m.local.cols[li]
		if c.generated {
			continue
		}
		v := from[li]
		if v == "" {
			v = "d." + c.quoted
		}
		cols, vals = append(cols, c.quoted), append(vals, v)
	}
	var where strings.Builder
	types = m.local.whereKey(&where, types)
	names := strings.Join(cols, ", ")
	return fmt.Sprintf("WITH d AS (DELETE FROM %s t WHERE %s RETURNING %s), "+
		"i AS (INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM d RETURNING 1) SELECT 1/count(*) FROM i",
		m.local.rows, where.String(), names, m.local.quoted, names, strings.Join(vals, ", ")), types
}

// whereKey appends a condition that finds the row of a key among those of alias t; its parameters come behind those of types.
func (t *table) whereKey(b *strings.Builder, types []uint32) []uint32 {
	for n, k := range t.key {
		c := &t.cols[k]
		types = append(types, c.param())
		if n > 0 {
			b.WriteString(" AND ")
		}
		fmt.Fprintf(b, "%s %s $%d", c.compared(), c.equals, len(types))
	}
	return types
}

func (m *mapping) deleteSQL(g *guard) (string, []uint32) {
	text, types := m.deleteText(nil)
	return fmt.Sprintf("WITH u AS (%s AND %s RETURNING 1) SELECT 1/count(*) FROM u", text, g.sql(len(types)+1)), append(types, g.types()...)
}

// deleteText is a DELETE up to its guard, whose parameters come behind those of types.
func (m *mapping) deleteText(types []uint32) (string, []uint32) {
	var b strings.Builder
	fmt.Fprintf(&b, "DELETE FROM %s t WHERE ", m.local.rows)
	types = m.local.whereKey(&b, types)
	return b.String(), types
}

// updateRunSQL is updateSQL for a run of rows: every parameter is an array, and one more says how many
// rows there must be.
func (m *mapping) updateRunSQL(set []int, g *guard) (string, []uint32) {
	var sets, args, names []string
	var types []uint32
	arg := func(c *column) string {
		types = append(types, c.typ.root().array)
		args = append(args, fmt.Sprintf("$%d", len(types)))
		names = append(names, fmt.Sprintf("v%d", len(types)))
		return names[len(names)-1]
	}
	for _, i := range set {
		c := &m.local.cols[m.cols[i]]
		sets = append(sets, fmt.Sprintf("%s = v.%s", c.quoted, arg(c)))
	}
	if len(sets) == 0 {
		c := m.still()
		sets = append(sets, fmt.Sprintf("%s = t.%s", c.quoted, c.quoted))
	}
	var where []string
	for _, k := range m.local.key {
		c := &m.local.cols[k]
		where = append(where, fmt.Sprintf("%s %s v.%s", c.compared(), c.equals, arg(c)))
	}
	for _, i := range m.always {
		c := &m.local.cols[m.cols[i]]
		where = append(where, fmt.Sprintf("t.%s = v.%s", c.quoted, arg(c)))
	}
	sql := fmt.Sprintf("WITH u AS (UPDATE %s t SET %s FROM unnest(%s) v(%s) WHERE %s AND %s RETURNING 1) SELECT 1/(count(*) = $%d)::int FROM u",
		m.local.rows, strings.Join(sets, ", "), strings.Join(args, ", "), strings.Join(names, ", "),
		strings.Join(where, " AND "), g.sql(len(types)+2), len(types)+1)
	return sql, append(append(types, oidInt8), g.types()...)
}

func (m *mapping) deleteRunSQL(g *guard) (string, []uint32) {
	var args, names, where []string
	var types []uint32
	for n, k := range m.local.key {
		c := &m.local.cols[k]
		types = append(types, c.typ.root().array)
		args = append(args, fmt.Sprintf("$%d", n+1))
		names = append(names, fmt.Sprintf("v%d", n+1))
		where = append(where, fmt.Sprintf("%s %s v.v%d", c.compared(), c.equals, n+1))
	}
	sql := fmt.Sprintf("WITH u AS (DELETE FROM %s t USING unnest(%s) v(%s) WHERE %s AND %s RETURNING 1) SELECT 1/(count(*) = $%d)::int FROM u",
		m.local.rows, strings.Join(args, ", "), strings.Join(names, ", "),
		strings.Join(where, " AND "), g.sql(len(types)+2), len(types)+1)
	return sql, append(append(types, oidInt8), g.types()...)
}

func comma(n int) string {
	if n == 0 {
		return ""
	}
	return ", "
}
