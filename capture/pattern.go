package capture

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
)

// TableName names a table.
type TableName struct{ Schema, Name string }

// String quotes the name for SQL.
func (n TableName) String() string { return ident(n.Schema) + "." + ident(n.Name) }

// patterns choose tables: "schema.table" with * for any characters and ? for one; "!" in front excludes,
// and wins. Without an including pattern all tables are chosen.
type patterns struct{ include, exclude []pattern }

type pattern struct{ schema, table string }

func parsePatterns(list []string) (patterns, error) {
	var p patterns
	for _, s := range list {
		body, excluded := strings.CutPrefix(s, "!")
		schema, table, ok := strings.Cut(body, ".")
		if !ok || schema == "" || table == "" {
			return p, finding(CodeTables, fmt.Sprintf("tables pattern %q", s), "is not schema.table",
				"write public.items, app.* or !app.log")
		}
		if excluded {
			p.exclude = append(p.exclude, pattern{schema, table})
		} else {
			p.include = append(p.include, pattern{schema, table})
		}
	}
	if p.include == nil {
		p.include = []pattern{{"*", "*"}}
	}
	return p, nil
}

func (p patterns) match(n TableName) bool {
	fits := func(x pattern) bool { return glob(x.schema, n.Schema) && glob(x.table, n.Name) }
	return slices.ContainsFunc(p.include, fits) && !slices.ContainsFunc(p.exclude, fits)
}

// Regexps turns patterns of tables into two regular expressions of PostgreSQL's, over a table's schema and name as two lines: one
// for those that are chosen, one for those that are excluded nevertheless; empty if there is no pattern of that kind.
func Regexps(list []string) (chosen, excluded string, err error) {
	p, err := parsePatterns(list)
	if err != nil {
		return "", "", err
	}
	return regexps(p.include), regexps(p.exclude), nil
}

func regexps(list []pattern) string {
	var all []string
	for _, p := range list {
		all = append(all, globRegexp(p.schema)+`\n`+globRegexp(p.table))
	}
	return strings.Join(all, "|")
}

func globRegexp(glob string) string {
	var b strings.Builder
	for _, r := range glob {
		switch {
		case r == '*':
			b.WriteString(".*")
		case r == '?':
			b.WriteString(".")
		case r < utf8.RuneSelf && !unicode.IsLetter(r) && !unicode.IsDigit(r):
			b.WriteString(`\`)
			fallthrough
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// Matches reports whether a pattern such as app.* is for the table; one that is not schema.table is for none.
func Matches(pattern, schema, table string) bool {
	s, t, ok := strings.Cut(pattern, ".")
	return ok && glob(s, schema) && glob(t, table)
}

// glob matches by runes. On a mismatch it goes back to the last star, which takes one more.
func glob(pattern, s string) bool {
	p, r := []rune(pattern), []rune(s)
	i, j, star, from := 0, 0, -1, 0
	for j < len(r) {
		switch {
		case i < len(p) && p[i] == '*':
			star, from = i, j
			i++
		case i < len(p) && (p[i] == '?' || p[i] == r[j]):
			i++
			j++
		case star >= 0:
			from++
			i, j = star+1, from
		default:
			return false
		}
	}
	for i < len(p) && p[i] == '*' {
		i++
	}
	return i == len(p)
}

// candidate is a table that could be published.
type candidate struct {
	TableName
	oid         uint32
	persistence string // p permanent, u unlogged
	identity    string // as pg_class.relreplident
	hasKey      bool   // a usable key, by the rule of keySQL
	rowSecurity bool
	identifies  bool // old rows are identified: updates and deletes are possible at all
}

// usable says that the table can be published: that neither its updates are refused then, nor its rows
// unknown to the others.
func (c *candidate) usable() bool { return c.persistence == "p" && c.hasKey && c.identifies }

// exclude is how an operator leaves the table out.
func (c *candidate) exclude() string {
	return fmt.Sprintf("exclude it under tables (\"!%s.%s\")", c.Schema, c.Name)
}

// unusable says why it cannot be published, and what to do about it.
func (c *candidate) unusable() (fault, mend string) {
	exclude := c.exclude()
	switch {
	case c.persistence != "p":
		return "is unlogged, so nothing of it is in the WAL", fmt.Sprintf("run ALTER TABLE %s SET LOGGED, or %s", c, exclude)
	case !c.hasKey:
		return "has no usable key, so no node can tell its rows apart", fmt.Sprintf("run ALTER TABLE %s ADD PRIMARY KEY (...), or %s", c, exclude)
	}
	return "has no replica identity, so its updates and deletes are refused",
		fmt.Sprintf("run ALTER TABLE %s ADD PRIMARY KEY (...) or ALTER TABLE %s REPLICA IDENTITY USING INDEX ..., or %s", c, c, exclude)
}

// candidatesSQL leaves partitions out, which are published through their root, temporary tables, and what
// is not a user's.
const candidatesSQL = `
SELECT n.nspname::text, c.relname::text, c.oid, c.relpersistence::text, c.relreplident::text, c.relrowsecurity,
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
               AND i.indpred IS NULL AND i.indexprs IS NULL
               AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = i.indrelid
                               AND a.attnum = ANY (i.indkey[0:i.indnkeyatts-1]) AND NOT a.attnotnull)),
       CASE c.relreplident
            WHEN 'f' THEN true
            WHEN 'd' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate)
            WHEN 'i' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident)
            ELSE false END
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgbridge')
  AND n.nspname NOT LIKE 'pg\_toast%' AND n.nspname NOT LIKE 'pg\_temp%'`

const candidatesOrder = ` ORDER BY n.nspname, c.relname`

// listTables returns the tables that the patterns choose, unlogged ones included.
func listTables(ctx context.Context, conn *pgx.Conn, list []string) ([]candidate, error) {
	return chooseTables(ctx, conn, list, candidatesSQL+candidatesOrder)
}

// listUnpublished returns those of them that the publication leaves out. It costs little where few do.
func listUnpublished(ctx context.Context, conn *pgx.Conn, list []string, publication string) ([]candidate, error) {
	return chooseTables(ctx, conn, list, candidatesSQL+
		` AND (n.nspname, c.relname) NOT IN (SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = $1)`+
		candidatesOrder, publication)
}

func chooseTables(ctx context.Context, conn *pgx.Conn, list []string, sql string, args ...any) ([]candidate, error) {
	p, err := parsePatterns(list)
	if err != nil {
		return nil, err
	}
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, classify(err, "list tables")
	}
	var chosen []candidate
	var c candidate
	if _, err = pgx.ForEachRow(rows, []any{&c.Schema, &c.Name, &c.oid, &c.persistence, &c.identity, &c.rowSecurity, &c.hasKey, &c.identifies}, func() error {
		if p.match(c.TableName) {
			chosen = append(chosen, c)
		}
		return nil
	}); err != nil {
		return nil, classify(err, "list tables")
	}
	return chosen, nil
}
