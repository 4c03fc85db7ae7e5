package capture

import (
	"context"
	"fmt"
	"maps"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// connectTimeout bounds one try to connect; a DSN may ask for less.
const connectTimeout = 15 * time.Second

// minVersion is the oldest server that capture reads, as server_version_num: it streams transactions in
// progress and sends binary tuples.
const minVersion = 140000

// plainSettings are those of connections for queries. Nothing that a DBA has set for the role may end them.
func plainSettings() map[string]string {
	return map[string]string{
		"application_name":     "pgbridge capture",
		"client_encoding":      "UTF8",
		"search_path":          "pg_catalog",
		"statement_timeout":    "30s",
		"lock_timeout":         "10s",
		"idle_session_timeout": "0",
		// Setup writes, and needs no more isolation than each statement has.
		"default_transaction_read_only": "off",
		"default_transaction_isolation": "read committed",
		// What it changes of the schema is for this node alone (apply/ddl.sql).
		"pgbridge.ddl": "local",
	}
}

// replicationSettings are those of the walsender: what text values look like must not depend on the role.
// The native apply worker sets the same (libpqwalreceiver.c).
func replicationSettings() map[string]string {
	return map[string]string{
		"application_name":   "pgbridge capture",
		"client_encoding":    "UTF8",
		"search_path":        "pg_catalog",
		"datestyle":          "ISO",
		"intervalstyle":      "postgres",
		"extra_float_digits": "3",
		"bytea_output":       "hex",
		"timezone":           "UTC",
		"statement_timeout":  "0",
		"replication":        "database",
	}
}

// connectPlain opens a connection for queries; errors are classified.
func connectPlain(ctx context.Context, dsn string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, badDSN(err)
	}
	prepare(&cfg.Config, plainSettings())
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, classify(err, "connect to postgresql at "+endpoint(&cfg.Config))
	}
	return conn, nil
}

// connectReplication opens a walsender connection; errors are classified.
func connectReplication(ctx context.Context, dsn string) (*pgconn.PgConn, error) {
	cfg, err := pgconn.ParseConfig(dsn)
	if err != nil {
		return nil, badDSN(err)
	}
	prepare(cfg, replicationSettings())
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, classify(err, "connect for replication to postgresql at "+endpoint(cfg))
	}
	return conn, nil
}

func prepare(cfg *pgconn.Config, settings map[string]string) {
	maps.Copy(cfg.RuntimeParams, settings)
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = connectTimeout
	}
	// A server that is gone without a word is noticed after half a minute, also where
	// wal_sender_timeout is off and no keepalives come.
	d := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}}
	cfg.DialFunc = d.DialContext
}

func badDSN(err error) error {
	return finding(CodeConnect, "postgres.dsn", fmt.Sprintf("cannot be read: %v", withoutPassword(err)),
		"write postgres://user@host:port/database or key=value pairs")
}

// endpoint names a server in errors, without user and password.
func endpoint(cfg *pgconn.Config) string {
	return net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.Port))) + "/" + cfg.Database
}
