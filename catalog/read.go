package catalog

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/capture"
)

// Read reads the summary of the tables that the patterns choose, over a connection of capture.Connect: names are written as its
// search path has it.
func Read(ctx context.Context, conn *pgx.Conn, node string, patterns []string) (*Summary, error) {
	s := &Summary{Node: node, Tables: []Table{}, Sequences: []Sequence{}}
	chosen, err := capture.ListChosen(ctx, conn, patterns)
	if err != nil {
		return nil, err
	}
	for what, part := range map[string]func() error{
		"the database": func() error { return s.readDatabase(ctx, conn) },
		"tables":       func() error { return s.readTables(ctx, conn, chosen) },
		"sequences":    func() error { return s.readSequences(ctx, conn, chosen, true) },
	} {
		if err := part(); err != nil {
			return nil, fmt.Errorf("read the catalog, %s: %w", what, err)
		}
	}
	return s, nil
}

// ReadSequences reads of such a summary the sequences alone, and not what stands in their columns: it costs little.
func ReadSequences(ctx context.Context, conn *pgx.Conn, node string, patterns []string) (*Summary, error) {
	s := &Summary{Node: node}
	chosen, err := capture.ListChosen(ctx, conn, patterns)
	if err != nil {
		return nil, err
	}
	return s, s.readSequences(ctx, conn, chosen, false)
}

// databaseSQL goes through jsonb for columns that not every version has.
const databaseSQL = `
SELECT current_setting('server_version_num')::int, pg_encoding_to_char(encoding),
       coalesce(j ->> 'datlocprovider', 'c') || ':' || coalesce(j ->> 'datlocale', j ->> 'daticulocale', j ->> 'datcollate'),
       to_regprocedure('pgbridge.id_number()') IS NOT NULL
FROM (SELECT encoding, to_jsonb(d) AS j FROM pg_database d WHERE datname = current_database()) d`

func (s *Summary) readDatabase(ctx context.Context, conn *pgx.Conn) error {
	var numbered bool
	if err := conn.QueryRow(ctx, databaseSQL).Scan(&s.Version, &s.Encoding, &s.Collation, &numbered); err != nil || !numbered {
		return err
	}
	s.IDNumber = new(int)
	return conn.QueryRow(ctx, `SELECT pgbridge.id_number()`).Scan(s.IDNumber)
}

// columnsSQL looks through an array at the type of its elements.
const columnsSQL = `
SELECT a.attrelid, a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated <> '',
       coalesce(CASE e.typtype
           WHEN 'e' THEN (SELECT string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = e.oid)
           WHEN 'c' THEN (SELECT string_agg(quote_ident(f.attname) || ' ' || format_type(f.atttypid, f.atttypmod), ', ' ORDER BY f.attnum)
                          FROM pg_attribute f WHERE f.attrelid = e.typrelid AND f.attnum > 0 AND NOT f.attisdropped)
           WHEN 'd' THEN format_type(e.typbasetype, e.typtypmod) END, ''),
       CASE WHEN co.collprovider <> 'd' THEN co.collprovider::text || ':' ||
           coalesce(to_jsonb(co) ->> 'colllocale', to_jsonb(co) ->> 'colliculocale', co.collcollate, '') ELSE '' END,
       coalesce(NOT co.collisdeterministic, false)
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
     JOIN pg_type e ON e.oid = CASE WHEN t.typcategory = 'A' AND t.typelem <> 0 THEN t.typelem ELSE t.oid END
     LEFT JOIN pg_collation co ON co.oid = a.attcollation
WHERE a.attrelid = ANY ($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attname`

// constraintsSQL finds unique indexes, and constraints that refuse rows.
const constraintsSQL = `
SELECT i.indrelid, true, substring(pg_get_indexdef(i.indexrelid) FROM 'USING .*$')
FROM pg_index i WHERE i.indrelid = ANY ($1::oid[]) AND i.indisunique AND i.indislive
UNION ALL
SELECT c.conrelid, false, pg_get_constraintdef(c.oid)
FROM pg_constraint c WHERE c.conrelid = ANY ($1::oid[]) AND c.contype IN ('c', 'x')
ORDER BY 1, 2, 3`

func (s *Summary) readTables(ctx context.Context, conn *pgx.Conn, chosen []capture.Chosen) error {
	at := map[uint32]int{}
	var oids []uint32
	for i, c := range chosen {
		at[c.OID], oids = i, append(oids, c.OID)
		s.Tables = append(s.Tables, Table{Name: quote(c.Schema, c.Name), Key: c.Key, schema: c.Schema, name: c.Name})
	}
	rows, err := conn.Query(ctx, columnsSQL, oids)
	if err != nil {
		return err
	}
	var oid uint32
	var c Column
	if _, err := pgx.ForEachRow(rows, []any{&oid, &c.Name, &c.Type, &c.NotNull, &c.Generated, &c.Detail, &c.Collation, &c.Nondeterministic}, func() error {
		t := &s.Tables[at[oid]]
		t.Columns = append(t.Columns, c)
		return nil
	}); err != nil {
		return err
	}
	if rows, err = conn.Query(ctx, constraintsSQL, oids); err != nil {
		return err
	}
	var unique bool
	var text string
	_, err = pgx.ForEachRow(rows, []any{&oid, &unique, &text}, func() error {
		if t := &s.Tables[at[oid]]; unique {
			t.Unique = append(t.Unique, text)
		} else {
			t.Checks = append(t.Checks, text)
		}
		return nil
	})
	return err
}

// quote writes a name for SQL.
func quote(names ...string) string { return pgx.Identifier(names).Sanitize() }
