package capture

import (
	"context"
	"slices"
)

// Role is the role of a DSN and what it has to do with. Names are quoted for SQL.
type Role struct {
	Name, Database  string
	Superuser       bool
	Schemas, Tables []string // that the patterns choose and the publication may hold
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
	for _, c := range chosen {
		if c.persistence != "p" {
			continue
		}
		if schema := ident(c.Schema); !slices.Contains(r.Schemas, schema) {
			r.Schemas = append(r.Schemas, schema)
		}
		r.Tables = append(r.Tables, c.String())
		r.RowSecurity = r.RowSecurity || c.rowSecurity
	}
	return r, nil
}
