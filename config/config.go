package config

import "time"

// Config is everything an operator can set, after defaults, environment and overrides. [Load] builds it;
// nobody changes it afterwards, so it is safe for concurrent reading. It holds secrets in the clear:
// print [Config.Redacted] or the Config itself, whose String is redacted, never its parts.
type Config struct {
	// Cluster and Node are names of 1 to 16 characters out of [a-z0-9_].
	Cluster, Node string
	// Mode is ModeLive or ModeShadow.
	Mode string
	// DataDir holds the embedded broker's streams, the spool and the lock file.
	DataDir string
	// Tables are patterns over "schema.table" in which * stands for any characters. A table is
	// replicated if a pattern matches and none that begins with ! does. There is always one without !.
	Tables []string
	// ShutdownTimeout is how long a stop may take before it ends hard.
	ShutdownTimeout time.Duration

	Postgres Postgres
	Topology Topology
	NATS     NATS
	Stream   Stream
	Capture  Capture
	Apply    Apply
	Conflict Conflict
	Verify   Verify
	HTTP     HTTP
	Tracing  Tracing
	Log      Log
}

// The values of Config.Mode.
const (
	ModeLive   = "live"
	ModeShadow = "shadow" // nothing is written to the primary, and nothing of it is told to nodes that are live
)

// Postgres says how the local primary is reached.
type Postgres struct {
	// DSN is a libpq connection string or URL. After Load it is set also when it came from DSNFile.
	DSN     string
	DSNFile string
	// AutoSetup lets run create what setup would create.
	AutoSetup bool
	// Failover says that a standby is to take over, so that it is an alarm if it could not.
	Failover bool
}

// Topology says who is in the cluster.
type Topology struct {
	// Kind is the shape of the links: one of package topology's.
	Kind string
	// Center is the node in the middle of a star.
	Center string
	// Links are those of a graph, each as "a-b".
	Links []string
	// FailoverAfter is for how long a node must be silent to be routed around; 0: none is.
	FailoverAfter time.Duration
	// Nodes maps each node's name, this one's too, to the URL of the NATS server with its stream; empty for an edge.
	Nodes map[string]string
	// Roles are of nodes that have one: one of package topology's.
	Roles map[string]string
	// Writers are "pattern=node node", the pattern over "schema.table": only these nodes write such tables; the first that matches a
	// table counts. SplitTableNodes takes them apart.
	Writers []string
	// Residency are of the same form: only these nodes have such tables. All that match a table count. On a node that is not named, Tables
	// excludes the pattern.
	Residency []string
	// Rows are "schema.table.column=value:node node": only these nodes have the rows of that table with that value in a column of its key;
	// with * for the value, those with any value that no other element names. SplitRows takes them apart.
	Rows []string
	// Columns are "schema.table.column=node node": only these nodes have the values of that column, and on others it is NULL in all rows.
	// SplitColumn takes them apart.
	Columns []string
}

// NATS says where this node's stream lives: in the embedded server, or at URL.
type NATS struct {
	Embedded Embedded
	// URL of an external server; empty means embedded.
	URL string
	// CredsFile is a NATS credentials file for every connection; empty means none.
	CredsFile string
	// KeysDir holds what pgbridge keys has made for this node; empty means nothing.
	KeysDir string
	// Token is for every connection, and what the embedded server asks for; empty means none. After
	// Load it is set also when it came from TokenFile.
	Token     string
	TokenFile string
	// Links says, by node, how its server is reached where that is not as for all.
	Links map[string]Access
}

// Embedded configures the NATS server inside the bridge.
type Embedded struct {
	// Listen is host:port; derived from this node's URL in the topology when not given.
	Listen string
	// Sync is "always" (each frame on disk before its ack) or "interval".
	Sync string
	// MaxStore and MaxPayload are the server's limits, in bytes.
	MaxStore, MaxPayload Size
	// AllowPlaintext permits Listen on an address that other machines can reach.
	AllowPlaintext bool
}

const signaturesKey = "stream.signatures"

// What Stream.Signatures may be.
const (
	SignaturesNone    = "none"    // frames are neither signed nor checked
	SignaturesWrite   = "write"   // own frames are signed, and others' that are
	SignaturesRequire = "require" // frames that are not signed are refused, too
)

// Stream configures this node's own stream.
type Stream struct {
	// MaxBytes is what the stream may hold before capture pauses.
	MaxBytes Size
	// AbsentBytes is what the stream may hold for nodes that are away; 0: as much as for others.
	AbsentBytes Size
	// Replicas of the streams in a cluster of NATS servers; 0: one, or as many as they have.
	Replicas int
	// Compression of frame bodies: "none" or "zstd".
	Compression string
	// Signatures of frames, one of SignaturesNone and the others.
	Signatures string
}

// Capture configures the way from the WAL to frames.
type Capture struct {
	// FrameBytes is the size at which a frame is closed.
	FrameBytes Size
	// Linger is how long a frame waits for more while an earlier one is in flight; four times that if its readers can have
	// it already (Apply.Ahead).
	Linger time.Duration
	// StatusInterval is how often the walsender is told the confirmed LSN.
	StatusInterval time.Duration
}

// Apply configures the way from frames to rows.
type Apply struct {
	// BatchTransactions and BatchBytes bound what is in one pipeline at a time, per origin.
	BatchTransactions int
	BatchBytes        Size
	// Rate bounds the bytes of transactions that are applied in a second, of all nodes together; 0 is no bound.
	Rate Size
	// YieldAt is from how many sessions of users at work on apply gives way to them; 0: it does not.
	YieldAt int
	// Ahead takes transactions before the peer's broker has stored them.
	Ahead bool
	// ConflictRetention and ConflictRows bound the conflict history by age and number; 0 is no bound.
	ConflictRetention time.Duration
	ConflictRows      int
	// SpoolLimit bounds the disk that unfinished large transactions may take; 0 is no bound.
	SpoolLimit Size
	// MaxClockSkew is how far in the future a stamp may be before an alarm is raised.
	MaxClockSkew time.Duration
}

// Conflict names the policies.
type Conflict struct {
	// Default is the policy of every table that Tables does not name; only "last_writer_wins" is accepted.
	Default string
	// Priority lists nodes, the first one first, for the policy origin_priority.
	Priority []string
	// Home are "pattern=column", the pattern over "schema.table": the column names the node at which a row should be written;
	// the first that matches a table counts. SplitHome takes them apart.
	Home []string
	// HomeNodes are "value=node" where values of such columns are not nodes' names.
	HomeNodes []string
	// Tables are the tables with a policy of their own; the first that matches a table counts.
	Tables []TablePolicy
	// ForeignKeys are "pattern=policy", the pattern over "schema.table.constraint" of the table that refers; the first that
	// matches a foreign key counts. SplitForeignKey takes them apart.
	ForeignKeys []string
}

// TablePolicy says how concurrent writes of some tables' rows become one row. The names of policies are those of package
// conflict.
type TablePolicy struct {
	// Match is a pattern over "schema.table", as in Config.Tables.
	Match string
	// Rows is for all columns that are not in Columns, as one unit; Deletes for a delete beside another write. Empty means
	// last_writer_wins.
	Rows, Deletes string
	Columns       []ColumnPolicy
}

// ColumnPolicy is the policy of a column, or of several that are merged as one. The name "*" stands for every column that
// is not named, each by itself.
type ColumnPolicy struct {
	Names  []string
	Policy string
}

// Verify configures the comparison of this node's rows with the others' in the background.
type Verify struct {
	// Every is from the begin of one comparison to that of the next; 0: none is made.
	Every time.Duration
	// RowsPerSecond is how many rows of each node are read in a second.
	RowsPerSecond int
}

// HTTP configures the listener for status, health and the console.
type HTTP struct {
	// Listen is host:port; empty means no listener.
	Listen string
	// ViewerToken and OperatorToken are what people sign in to the console with; empty means that nobody has that role, and
	// both that there is no console. After Load they are set also when they came from the files.
	ViewerToken, OperatorToken         string
	ViewerTokenFile, OperatorTokenFile string
	// AllowPlaintext permits the console on a listener that other machines reach.
	AllowPlaintext bool
	// Pprof serves the profiles of the Go runtime there, too.
	Pprof bool
}

// Tracing configures OpenTelemetry traces of transactions' ways.
type Tracing struct {
	Endpoint string // the URL of a collector that takes OTLP over HTTP; empty: nothing is traced
	OneIn    int    // one of so many transactions is traced, the same ones on all nodes
}

// Log configures the log on standard error.
type Log struct {
	Level  string // debug, info, warn or error
	Format string // text or json
}

// Embedded reports whether this node's stream lives in the server inside the bridge.
func (c *Config) Embedded() bool { return c.NATS.URL == "" }

// Console reports whether the console is served at http.listen.
func (c *Config) Console() bool {
	return c.HTTP.Listen != "" && (c.HTTP.ViewerToken != "" || c.HTTP.OperatorToken != "")
}

// LocalHTTP reports whether only this machine reaches http.listen.
func (c *Config) LocalHTTP() bool { return isLoopback(c.HTTP.Listen) }
