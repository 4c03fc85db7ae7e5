package bridge

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/pgbridge/pgbridge/capture"
)

// grants are the statements, for a superuser to run, that a role which is none needs: those before the objects
// are made, and those that hand the objects over.
type grants struct{ before, after []string }

// made finds the tables that statements make.
var made = regexp.MustCompile(`CREATE TABLE IF NOT EXISTS (pgbridge\.\w+)`)

// functions finds the functions that statements make. Their names are not overloaded.
var functions = regexp.MustCompile(`CREATE OR REPLACE FUNCTION (pgbridge\.\w+)`)

// grantSQL returns them for the role of postgres.dsn, which gets to own the tables that the statements make; none if it is a
// superuser.
func grantSQL(ctx context.Context, o capture.SetupOptions, tables []string) (grants, error) {
	r, err := capture.ReadRole(ctx, o)
	if err != nil || r.Superuser {
		return grants{}, err
	}
	var g grants
	attributes := "REPLICATION" // to read the slot
	if r.RowSecurity {
		attributes += " BYPASSRLS" // a chosen table has row security: all its rows are replicated
	}
	g.before = append(g.before,
		fmt.Sprintf("ALTER ROLE %s %s", r.Name, attributes),
		// CREATE is for run with auto_setup, which makes sure of schema and publication at each start.
		fmt.Sprintf("GRANT CONNECT, CREATE ON DATABASE %s TO %s", r.Database, r.Name),
		// Applied rows carry the origin that wrote them, and fire no trigger.
		fmt.Sprintf("GRANT EXECUTE ON FUNCTION pg_catalog.pg_replication_origin_create(text),\n"+
			"  pg_catalog.pg_replication_origin_session_setup(text), pg_catalog.pg_replication_origin_session_reset(),\n"+
			"  pg_catalog.pg_replication_origin_xact_setup(pg_lsn, timestamptz) TO %s", r.Name),
		"GRANT SET ON PARAMETER session_replication_role TO "+r.Name)
	if len(r.Schemas) > 0 {
		g.before = append(g.before, fmt.Sprintf("GRANT USAGE ON SCHEMA %s TO %s", strings.Join(r.Schemas, ", "), r.Name))
	}
	if len(r.Tables) > 0 {
		g.before = append(g.before, fmt.Sprintf("GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE %s TO %s", strings.Join(r.Tables, ", "), r.Name))
	}
	if len(r.Sequences) > 0 { // so that doctor sees what they will give
		g.before = append(g.before, fmt.Sprintf("GRANT SELECT ON SEQUENCE %s TO %s", strings.Join(r.Sequences, ", "), r.Name))
	}
	g.after = append(g.after, "ALTER SCHEMA pgbridge OWNER TO "+r.Name)
	for _, m := range made.FindAllStringSubmatch(strings.Join(tables, ";"), -1) {
		g.after = append(g.after, fmt.Sprintf("ALTER TABLE %s OWNER TO %s", m[1], r.Name))
	}
	for _, f := range functions.FindAllStringSubmatch(strings.Join(tables, ";"), -1) {
		g.after = append(g.after, fmt.Sprintf("ALTER FUNCTION %s OWNER TO %s", f[1], r.Name))
	}
	g.after = append(g.after, fmt.Sprintf("ALTER PUBLICATION %s OWNER TO %s", o.Publication, r.Name))
	return g, nil
}
