package apply

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// sessionSettings are asserted on every connection that writes rows (PROOF.md R3). A row must mean the
// same whatever the role's, the database's or the server's defaults are.
var sessionSettings = map[string]string{
	"session_replication_role":            "replica",
	"synchronous_commit":                  "off",
	"default_transaction_isolation":       "read committed",
	"default_transaction_read_only":       "off",
	"row_security":                        "off",
	"statement_timeout":                   "0",
	"lock_timeout":                        "0",
	"idle_in_transaction_session_timeout": "0",
	"idle_session_timeout":                "0",
	"search_path":                         "pg_catalog",
	"TimeZone":                            "UTC",
	"DateStyle":                           "ISO, MDY",
	"IntervalStyle":                       "postgres",
	"extra_float_digits":                  "3",
	"bytea_output":                        "hex",
	"client_encoding":                     "UTF8",
	"xmloption":                           "content",
	// Every statement is a look-up by key; a plan made once is the plan for all.
	"plan_cache_mode":  "force_generic_plan",
	"enable_hashjoin":  "off",
	"enable_mergejoin": "off",
	"enable_seqscan":   "off",
	"jit":              "off",
	// What pgbridge itself changes of the schema is for this node alone (ddl.sql).
	"pgbridge.ddl": "local",
}

// connect opens a connection with settings on top of sessionSettings and asserts every one of them.
func connect(ctx context.Context, dsn, name string, settings map[string]string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("postgres.dsn: %w", withoutPassword(err))
	}
	want := maps.Clone(sessionSettings)
	maps.Copy(want, settings)
	cfg.RuntimeParams = maps.Clone(want)
	cfg.RuntimeParams["application_name"] = name
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect %s to %s: %w", name, endpoint(cfg), explain(err))
	}
	if err := assertSettings(ctx, conn, want); err != nil {
		conn.Close(ctx)
		return nil, fmt.Errorf("connect %s to %s: %w", name, endpoint(cfg), err)
	}
	return conn, nil
}

func endpoint(cfg *pgx.ConnConfig) string {
	return fmt.Sprintf("%s:%d/%s", cfg.Host, cfg.Port, cfg.Database)
}

func assertSettings(ctx context.Context, conn *pgx.Conn, want map[string]string) error {
	if conn.PgConn().ParameterStatus("server_version") >= "17" {
		if _, err := conn.Exec(ctx, "SET transaction_timeout = 0"); err != nil {
			return fmt.Errorf("set transaction_timeout: %w", err)
		}
	}
	// Not from pg_settings, which makes a row of each of some four hundred.
	rows, err := conn.Query(ctx, "SELECT name, current_setting(name) FROM unnest($1::text[]) name", slices.Sorted(maps.Keys(want)))
	if err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	var k, got string
	if _, err := pgx.ForEachRow(rows, []any{&k, &got}, func() error {
		if got != want[k] {
			return fmt.Errorf("setting %s is %q, pgbridge needs %q and could not set it", k, got, want[k])
		}
		return nil
	}); err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	return nil
}

// explain adds the mend to the errors that an operator meets first.
func explain(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return withoutPassword(err)
	}
	if pg.Code != "42501" {
		return err
	}
	switch {
	case strings.Contains(pg.Message, "session_replication_role"):
		return &refusal{err, "run GRANT SET ON PARAMETER session_replication_role TO the role in postgres.dsn"}
	case strings.Contains(pg.Message, "pg_replication_origin"):
		return &refusal{err, "run GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text), " +
			"pg_replication_origin_session_setup(text), pg_replication_origin_session_reset(), pg_replication_origin_xact_setup(pg_lsn, timestamptz), " +
			"pg_replication_origin_drop(text) TO the role in postgres.dsn"}
	}
	return &refusal{err, "grant that to the role in postgres.dsn"}
}

// refusal is an error that stays until a person acts.
type refusal struct {
	err  error
	mend string
}

// Error gives the fault and the mend.
func (r *refusal) Error() string { return r.err.Error() + "; " + r.mend }

// Unwrap returns the fault.
func (r *refusal) Unwrap() error { return r.err }

// ExitCode is that of a wrong configuration.
func (r *refusal) ExitCode() int { return 2 }

// withoutPassword keeps a connection string's password out of an error's text.
func withoutPassword(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return fmt.Errorf("%s: %w", u.Op, u.Err)
	}
	return err
}

// lost reports whether err means that the connection is gone, rather than that a statement failed.
func lost(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return strings.HasPrefix(pg.Code, "57P") || strings.HasPrefix(pg.Code, "08")
	}
	return err != nil
}

// hasCode reports whether err is the server's error with one of these SQLSTATEs.
func hasCode(err error, codes ...string) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && slices.Contains(codes, pg.Code)
}
