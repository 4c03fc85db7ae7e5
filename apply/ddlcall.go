package apply

import (
	"context"
	"errors"
	"fmt"
	"strings"
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

// travels is what event triggers are for: commands whose effect the nodes have in common. Roles and their grants, and the values of
// sequences, are each node's own.
var travels = []string{"ALTER DOMAIN", "ALTER FUNCTION", "ALTER INDEX", "ALTER MATERIALIZED VIEW", "ALTER POLICY", "ALTER PROCEDURE", "ALTER SCHEMA", "ALTER TABLE", "ALTER TRIGGER",
	"ALTER TYPE", "ALTER VIEW", "COMMENT", "CREATE DOMAIN", "CREATE FUNCTION", "CREATE INDEX", "CREATE MATERIALIZED VIEW", "CREATE POLICY", "CREATE PROCEDURE", "CREATE RULE",
	"CREATE SCHEMA", "CREATE SEQUENCE", "CREATE STATISTICS", "CREATE TABLE", "CREATE TABLE AS", "CREATE TRIGGER", "CREATE TYPE", "CREATE VIEW", "DROP DOMAIN", "DROP FUNCTION",
	"DROP INDEX", "DROP MATERIALIZED VIEW", "DROP POLICY", "DROP PROCEDURE", "DROP RULE", "DROP SCHEMA", "DROP SEQUENCE", "DROP STATISTICS", "DROP TABLE", "DROP TRIGGER", "DROP TYPE",
	"DROP VIEW", "SELECT INTO"}

// EventTriggerPrefix begins the names of the event triggers that have schema changes travel by themselves.
const EventTriggerPrefix = "pgbridge_ddl_"

// automaticSQL is what makes the event triggers that have schema changes in the database travel by themselves, or what drops them.
func automaticSQL(on bool) (statements []string) {
	for _, x := range []struct{ event, name string }{{"ddl_command_start", "started"}, {"sql_drop", "dropped"}, {"ddl_command_end", "ended"}} {
		statements = append(statements, "DROP EVENT TRIGGER IF EXISTS "+EventTriggerPrefix+x.name)
		if on {
			statements = append(statements, fmt.Sprintf("CREATE EVENT TRIGGER %s%s ON %s WHEN TAG IN ('%s') EXECUTE FUNCTION pgbridge.ddl_%s()",
				EventTriggerPrefix, x.name, x.event, strings.Join(travels, "', '"), x.name))
		}
	}
	return statements
}

// SetAutomatic has schema changes that are made in the local database travel to the other nodes by themselves, or not any more. It takes a
// superuser; the error of another role has the statements for one.
func SetAutomatic(ctx context.Context, dsn string, on bool) error {
	conn, err := connectPlain(ctx, dsn, "pgbridge ddl")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	statements := automaticSQL(on)
	_, err = conn.Exec(ctx, strings.Join(statements, ";"), pgx.QueryExecModeSimpleProtocol)
	switch {
	case err == nil:
		return nil
	case hasCode(err, "42501"):
		return &refusal{fmt.Errorf("event triggers: %w", err), "run as a superuser:\n" + strings.Join(statements, ";\n") + ";"}
	case hasCode(err, "42883", "3F000"):
		return ErrNotSetUp
	}
	return fmt.Errorf("event triggers: %w", err)
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
