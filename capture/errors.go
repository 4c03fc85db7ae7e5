package capture

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// ErrProtocol is wrapped by errors that say that the server sent what pgoutput does not allow. Nothing is
// guessed: Run ends.
var ErrProtocol = errors.New("unexpected replication message")

func protocolError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// Finding is something that keeps capture from working and that a person has to mend.
type Finding struct {
	Code  string // kebab-case and stable, one of the Code constants
	Thing string // what it is about: slot "pgb_shop_a"
	Fault string // what is wrong with it
	Mend  string // what to do
}

// The codes of findings.
const (
	CodeUnreachable        = "postgres-unreachable"   // no server answers; it may only be away
	CodeConnect            = "postgres-connect"       // the server refuses this DSN, or it cannot be read
	CodeStandby            = "postgres-standby"       // the server is in recovery
	CodeVersion            = "postgres-version"       // the server is too old
	CodeWALLevel           = "wal-level"              // wal_level is not logical
	CodeCommitTimestamp    = "track-commit-timestamp" // commit timestamps are not kept
	CodeSlots              = "max-replication-slots"  // no slot is free for the bridge's
	CodeWALSenders         = "max-wal-senders"        // no walsender is free
	CodePrivilege          = "privilege"              // the role lacks REPLICATION
	CodePublicationMissing = "publication-missing"    // there is no such publication
	CodePublication        = "publication"            // it leaves out operations, rows, columns or tables
	CodeSlotMissing        = "slot-missing"           // there is no such slot
	CodeSlotKind           = "slot-kind"              // it is physical, another plugin's or another database's
	CodeSlotInvalidated    = "slot-invalidated"       // the server has removed its WAL
	CodeSlotAhead          = "slot-ahead"             // it is confirmed beyond the stream's tail
	CodeServerBehind       = "server-behind"          // the stream's tail is beyond the server's WAL
	CodeServerOther        = "server-other"           // another database cluster answers
	CodeTableColumns       = "table-columns"          // the values of a table's columns cannot be on some nodes alone as topology.columns says
	CodeTableIdentity      = "table-identity"         // a table's old values are not in the WAL, and are needed
	CodeTableKey           = "table-key"              // a table's updates cannot be captured
	CodeTableRows          = "table-rows"             // a table's rows cannot be on some nodes alone as topology.rows says
	CodeTableUnlogged      = "table-unlogged"         // a table's changes are not in the WAL
	CodeTableUnpublished   = "table-unpublished"      // a table came while capture ran, and is not published
	CodeTableUnusable      = "table-unusable"         // a table came while capture ran, and cannot be published
	CodeReaderWritable     = "reader-writable"        // users of a reader can write to a table
	CodeOriginForeign      = "replication-origin"     // somebody else replicates into this database
	CodeTables             = "tables"                 // the patterns match nothing
	CodeFailover           = "failover"               // a standby is to take over, and could not
	CodeStreamOther        = "stream-other"           // the tail is not of this origin
)

// Error gives thing, fault and mend in one sentence.
func (f Finding) Error() string {
	return fmt.Sprintf("%s %s; %s", f.Thing, f.Fault, f.Mend)
}

// CheckError is one or more findings. It ends Run and fails Check: trying again does not help before
// somebody has acted.
type CheckError struct {
	Findings []Finding
}

// Error gives one line per finding.
func (e *CheckError) Error() string {
	lines := make([]string, len(e.Findings))
	for i, f := range e.Findings {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "\n")
}

// Has reports whether one of the findings has this code.
func (e *CheckError) Has(code string) bool {
	for _, f := range e.Findings {
		if f.Code == code {
			return true
		}
	}
	return false
}

func finding(code, thing, fault, mend string) error {
	return &CheckError{Findings: []Finding{{Code: code, Thing: thing, Fault: fault, Mend: mend}}}
}

// lostError says that the connection to PostgreSQL is gone or did not come about, and that a later try may
// succeed: Run connects again.
type lostError struct{ err error }

func (e *lostError) Error() string { return e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

func isLost(err error) bool {
	var lost *lostError
	return errors.As(err, &lost)
}

// classify tells an error of the server or of its connection: one that passes by itself becomes a
// lostError, one that a person must mend a CheckError.
func classify(err error, what string) error {
	if err == nil {
		return nil
	}
	var check *CheckError
	if isLost(err) || errors.As(err, &check) {
		return err
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) { // the network, a cut connection, a time-out
		return &lostError{fmt.Errorf("%s: %w", what, withoutPassword(err))}
	}
	switch {
	case passing(pg.Code):
		return &lostError{fmt.Errorf("%s: %w", what, err)}
	case strings.HasPrefix(pg.Code, "28") || pg.Code == "3D000":
		return finding(CodeConnect, "postgres.dsn", fmt.Sprintf("is refused by the server: %s", pg.Message),
			"correct user, password and database in it, or pg_hba.conf")
	case pg.Code == "42501":
		return finding(CodePrivilege, "role in postgres.dsn", fmt.Sprintf("may not replicate: %s", pg.Message),
			"run ALTER ROLE ... REPLICATION, and GRANT CONNECT ON DATABASE if that is missing")
	}
	return fmt.Errorf("%s: %w", what, err)
}

// passing reports whether a SQLSTATE tells of a state that ends by itself: connection exceptions,
// insufficient resources, operator intervention (a restart), a slot that its last walsender still holds.
func passing(code string) bool {
	switch code[:min(2, len(code))] {
	case "08", "53", "57":
		return true
	}
	return code == "55006"
}

// withoutPassword keeps a connection string's password out of an error's text; pgx does so for its own
// errors.
func withoutPassword(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return fmt.Errorf("%s: %w", u.Op, u.Err)
	}
	return err
}
