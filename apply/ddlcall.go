package apply

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// SchemaChange is a change of the schema that was made through pgbridge.ddl, here or on another node, and is made here.
type SchemaChange struct {
	ID      int64     `json:"id"` // in the order in which they were made here
	Origin  string    `json:"origin"`
	Seq     uint64    `json:"seq,omitempty"` // 0: made here and not captured yet
	At      time.Time `json:"at"`            // when it was made here
	Role    string    `json:"role"`
	SQL     string    `json:"sql"`
	Changes []string  `json:"changes"` // what it did to tables here
}

// ChangeSchema makes a schema change in the local database, from where it goes to all nodes; confirmed allows a breaking one. The
// error of one that is refused asks for the exit code of wrong usage.
func ChangeSchema(ctx context.Context, dsn, sql string, confirmed bool) (id int64, err error) {
	conn, err := connectWith(ctx, dsn, "pgbridge ddl", map[string]string{"default_transaction_read_only": "off", "statement_timeout": "0"})
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = conn.QueryRow(ctx, `SELECT pgbridge.ddl($1, $2)`, sql, confirmed).Scan(&id)
	var pg *pgconn.PgError
	switch {
	case err == nil:
		return id, nil
	case hasCode(err, "42883", "3F000"):
		return 0, ErrNotSetUp
	case !errors.As(err, &pg):
		return 0, fmt.Errorf("change the schema: %w", err)
	}
	mend := pg.Hint
	switch pg.Code {
	case "25001":
		mend = "leave CONCURRENTLY out; or build the index on each node by hand, since plain indexes need not be the same everywhere"
	case "22023", "0A000", "42601", "54000", "55000":
	default:
		return 0, fmt.Errorf("change the schema: %w", err)
	}
	if mend == "" {
		return 0, &refusal{errors.New(pg.Message), "nothing was changed"}
	}
	return 0, &refusal{errors.New(pg.Message), mend}
}

// SchemaChanges returns the changes that are made in the local database, the oldest first.
func SchemaChanges(ctx context.Context, dsn string) ([]SchemaChange, error) {
	conn, err := connectPlain(ctx, dsn, "pgbridge ddl")
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, `SELECT id, origin || CASE epoch WHEN 1 THEN '' ELSE '/' || epoch END, coalesce(seq, 0), at, role, sql, summary
		FROM pgbridge.ddl ORDER BY id`)
	if err == nil {
		var all []SchemaChange
		if all, err = pgx.CollectRows(rows, pgx.RowToStructByPos[SchemaChange]); err == nil {
			return all, nil
		}
	}
	if hasCode(err, "42P01", "3F000") {
		return nil, ErrNotSetUp
	}
	return nil, fmt.Errorf("read schema changes: %w", explain(err))
}

// SeenBy returns up to which own transaction another node has told of having applied them.
func (a *Applier) SeenBy(node string) uint64 { return a.heard.seen(node) }
