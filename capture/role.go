package capture

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"
)

// Role is the role of a DSN and what it has to do with. Names are quoted for SQL.
type Role struct {
	Name, Database  string
	Superuser       bool
	Schemas, Tables []string // that the patterns choose and the publication may hold
	Sequences       []string // that columns of these tables own, or take their default from
	RowSecurity     bool     // one of the tables has row security
}

// ReadRole reads it.
func ReadRole(ctx context.Context, o SetupOptions) (Role, error) {
	conn, err := connectPlain(ctx, o.DSN)
	if err != nil {
		return Role{}, unreachable(err)
	}
	defer conn.Close(ctx)
	var r Role
	if err := conn.QueryRow(ctx, `SELECT quote_ident(rolname), quote_ident(current_database()), rolsuper FROM pg_roles WHERE rolname = current_user`).
		Scan(&r.Name, &r.Database, &r.Superuser); err != nil {
		return Role{}, classify(err, "read role")
	}
	chosen, err := listTables(ctx, conn, o.Tables)
	if err != nil {
		return Role{}, err
	}
	var oids []uint32
	for _, c := range chosen {
		if c.persistence != "p" {
			continue
		}
		if schema := ident(c.Schema); !slices.Contains(r.Schemas, schema) {
			r.Schemas = append(r.Schemas, schema)
		}
		r.Tables = append(r.Tables, c.String())
		r.RowSecurity = r.RowSecurity || c.rowSecurity
		oids = append(oids, c.oid)
	}
	rows, err := conn.Query(ctx, sequencesSQL, oids)
	if err == nil {
		r.Sequences, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	return r, classify(err, "list sequences")
}

// sequencesSQL finds sequences that fill columns of tables: those of identity columns, and those that a default names.
const sequencesSQL = `
SELECT DISTINCT quote_ident(n.nspname) || '.' || quote_ident(s.relname)
FROM (SELECT objid AS seq, refobjid AS rel FROM pg_depend
      WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass AND deptype = 'i'
      UNION ALL
      SELECT d.refobjid, f.adrelid FROM pg_depend d JOIN pg_attrdef f ON f.oid = d.objid
      WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass) u
     JOIN pg_class s ON s.oid = u.seq AND s.relkind = 'S' JOIN pg_namespace n ON n.oid = s.relnamespace
WHERE u.rel = ANY ($1::oid[]) ORDER BY 1`
