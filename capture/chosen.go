package capture

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Chosen is a table that the patterns choose and that can be replicated, with its key.
type Chosen struct {
	TableName
	OID uint32
	Key []string // names of columns, sorted
}

// Connect opens a connection for questions to the catalog, with settings of its own. A server that does not answer is a
// CheckError, as one that refuses is.
func Connect(ctx context.Context, dsn string) (*pgx.Conn, error) {
	conn, err := connectPlain(ctx, dsn)
	if err != nil {
		return nil, unreachable(err)
	}
	return conn, nil
}

// ListChosen returns those tables, by name.
func ListChosen(ctx context.Context, conn *pgx.Conn, patterns []string) ([]Chosen, error) {
	candidates, err := listTables(ctx, conn, patterns)
	if err != nil {
		return nil, err
	}
	var oids []uint32
	var chosen []Chosen
	for _, c := range candidates {
		if c.usable() {
			oids, chosen = append(oids, c.oid), append(chosen, Chosen{TableName: c.TableName, OID: c.oid})
		}
	}
	rows, err := conn.Query(ctx, keySQL, oids)
	if err != nil {
		return nil, classify(err, "read keys")
	}
	keys := map[uint32][]string{}
	var oid, typ, collation uint32
	var name string
	if _, err = pgx.ForEachRow(rows, []any{&oid, &name, &typ, &collation}, func() error {
		keys[oid] = append(keys[oid], name)
		return nil
	}); err != nil {
		return nil, classify(err, "read keys")
	}
	for i := range chosen {
		chosen[i].Key = keys[chosen[i].OID]
	}
	return chosen, nil
}
