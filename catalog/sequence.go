package catalog

import (
	"context"
	"fmt"
	"math"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/capture"
)

// Sequence is one that fills a column of a replicated table: by the column's default, or as an identity column.
type Sequence struct {
	Name       string `json:"name"`  // schema.name, quoted for SQL
	Table      string `json:"table"` // likewise
	Column     string `json:"column"`
	ColumnType string `json:"column_type"`
	Identity   bool   `json:"identity,omitempty"` // the column is an identity column
	Start      int64  `json:"start"`
	Least      int64  `json:"least"` // MINVALUE
	Most       int64  `json:"most"`  // MAXVALUE, or what the column can hold if that is less
	Increment  int64  `json:"increment"`
	Cycle      bool   `json:"cycle,omitempty"`
	// Last is the last value that was taken, or the first one that will be if none was. Nil: this role may not see it.
	Last  *int64 `json:"last,omitempty"`
	Taken bool   `json:"taken,omitempty"` // Last was taken
	// Highest is the highest value in the column; nil if there is none, or no index that tells it.
	Highest *int64 `json:"highest,omitempty"`
	// InUse is a value that the sequence is about to give and that a row has already; nil if none was found among the next
	// rows. Where there is no index nobody looks.
	InUse *int64 `json:"in_use,omitempty"`
	owned bool   // this role is, or may act as, the owner

	schema, table string // of the table, not quoted; only of what was read here
}

// most is the highest value of an integer type, 0 for any other.
func most(typ string) int64 {
	switch typ {
	case "smallint":
		return math.MaxInt16
	case "integer":
		return math.MaxInt32
	case "bigint":
		return math.MaxInt64
	}
	return 0
}

// next is the value that the sequence gives next; false if that is not known, or there is none any more.
func (s *Sequence) next() (int64, bool) {
	switch {
	case s.Last == nil:
		return 0, false
	case !s.Taken:
		return *s.Last, true
	case s.Increment > 0 && *s.Last > s.Most-s.Increment:
		return 0, false
	}
	return *s.Last + s.Increment, true
}

// sequencesSQL finds sequences by the dependencies that ALTER TABLE and CREATE TABLE note, each once.
const sequencesSQL = `
SELECT DISTINCT ON (s.seqrelid) s.seqrelid, sn.nspname::text, sc.relname::text, n.nspname::text, c.relname::text, a.attname::text,
       format_type(a.atttypid, NULL), a.attidentity <> '', s.seqstart, s.seqmin, s.seqmax, s.seqincrement, s.seqcycle,
       has_schema_privilege(sn.oid, 'USAGE') AND has_sequence_privilege(sc.oid, 'SELECT'), pg_has_role(sc.relowner, 'USAGE'),
       has_schema_privilege(n.oid, 'USAGE') AND has_column_privilege(c.oid, a.attnum, 'SELECT')
       AND EXISTS (SELECT FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid JOIN pg_am m ON m.oid = ic.relam
                   WHERE i.indrelid = c.oid AND i.indkey[0] = a.attnum AND i.indisvalid AND i.indpred IS NULL AND m.amname = 'btree')
FROM (SELECT objid AS seq, refobjid AS rel, refobjsubid AS att FROM pg_depend
      WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass AND deptype = 'i'
      UNION ALL
      SELECT d.refobjid, f.adrelid, f.adnum FROM pg_depend d JOIN pg_attrdef f ON f.oid = d.objid
      WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass) u
     JOIN pg_sequence s ON s.seqrelid = u.seq JOIN pg_class sc ON sc.oid = s.seqrelid JOIN pg_namespace sn ON sn.oid = sc.relnamespace
     JOIN pg_attribute a ON a.attrelid = u.rel AND a.attnum = u.att JOIN pg_class c ON c.oid = u.rel JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE u.rel = ANY ($1::oid[])
ORDER BY s.seqrelid, u.rel, u.att`

// readSequences leaves out what stands in the columns, unless that is wanted.
func (s *Summary) readSequences(ctx context.Context, conn *pgx.Conn, chosen []capture.Chosen, columns bool) error {
	var oids []uint32
	for _, c := range chosen {
		oids = append(oids, c.OID)
	}
	rows, err := conn.Query(ctx, sequencesSQL, oids)
	if err != nil {
		return err
	}
	var oid uint32
	var schema, name, tableSchema, table string
	var q Sequence
	var readable, indexed bool
	var ask []func(*Sequence) error // what stands in each
	if _, err := pgx.ForEachRow(rows, []any{&oid, &schema, &name, &tableSchema, &table, &q.Column, &q.ColumnType, &q.Identity, &q.Start, &q.Least, &q.Most,
		&q.Increment, &q.Cycle, &readable, &q.owned, &indexed}, func() error {
		q.Name, q.Table, q.schema, q.table = quote(schema, name), quote(tableSchema, table), tableSchema, table
		if m := most(q.ColumnType); m > 0 {
			q.Most = min(q.Most, m)
		}
		s.Sequences = append(s.Sequences, q)
		readable, indexed := readable, indexed && columns && most(q.ColumnType) > 0
		ask = append(ask, func(q *Sequence) error {
			err := q.readState(ctx, conn, readable)
			if err != nil || !indexed {
				return err
			}
			return q.readColumn(ctx, conn)
		})
		return nil
	}); err != nil {
		return err
	}
	for i := range s.Sequences {
		if err := ask[i](&s.Sequences[i]); err != nil {
			return fmt.Errorf("%s: %w", s.Sequences[i].Name, err)
		}
	}
	return nil
}

// near is how many rows are looked at for values that the sequence is about to give.
const near = 100_000

// readState reads how far the sequence is, if this role may.
func (s *Sequence) readState(ctx context.Context, conn *pgx.Conn, readable bool) error {
	if !readable {
		return nil
	}
	s.Last = new(int64)
	return conn.QueryRow(ctx, `SELECT last_value, is_called FROM `+s.Name).Scan(s.Last, &s.Taken)
}

// readColumn reads what stands in its column, by an index.
func (s *Sequence) readColumn(ctx context.Context, conn *pgx.Conn) error {
	column := quote(s.Column)
	if err := conn.QueryRow(ctx, fmt.Sprintf(`SELECT max(%s)::int8 FROM %s`, column, s.Table)).Scan(&s.Highest); err != nil {
		return err
	}
	next, ok := s.next()
	if !ok || s.Highest == nil || s.Increment < 0 || *s.Highest < next {
		return nil
	}
	return conn.QueryRow(ctx, fmt.Sprintf(`SELECT min(v) FILTER (WHERE (v - $1) %% $2 = 0) FROM (SELECT %s::int8 AS v FROM %s WHERE %s >= $1 ORDER BY %s LIMIT %d) x`,
		column, s.Table, column, column, near), next, s.Increment).Scan(&s.InUse)
}
