package apply

import (
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"
)

// Tables that only some nodes write: what another one writes there is parked, as if this server had refused it. What it changes of the
// schema could write any table, and waits.

// TableWriters are the nodes that write the tables that Match is for.
type TableWriters struct {
	Match func(schema, table string) bool
	Nodes []string
}

// Writers says who writes which tables: the first that is for a table counts, and what none is for all nodes write.
type Writers []TableWriters

// MayWrite reports whether a node writes a table.
func (w Writers) MayWrite(node, schema, table string) bool {
	i := slices.IndexFunc(w, func(x TableWriters) bool { return x.Match(schema, table) })
	return i < 0 || slices.Contains(w[i].Nodes, node)
}

// Bar reports whether there may be tables that a node does not write.
func (w Writers) Bar(node string) bool {
	return slices.ContainsFunc(w, func(x TableWriters) bool { return !slices.Contains(x.Nodes, node) })
}

// barredCode is the SQLSTATE of such a refusal.
const barredCode = "PGB02"

func barred(node, schema, table string) error {
	return &pgconn.PgError{Severity: "ERROR", Code: barredCode, SchemaName: schema, TableName: table,
		Message: fmt.Sprintf("node %s does not write table %s.%s: topology.writers names others", node, schema, table)}
}

func isBarred(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == barredCode
}
