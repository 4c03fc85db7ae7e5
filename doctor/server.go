package doctor

import "time"

// Server is what the primary says of itself and of the role in postgres.dsn. Names are quoted for SQL.
type Server struct {
	Version     int // server_version_num
	VersionText string
	Encoding    string
	Settings    map[string]string // of named ones, as current_setting writes them; one that the version lacks is absent
	Role        Role
	// Slots and so on count what is taken of what the server has.
	Connections, MaxConnections int
	Origins, MaxOrigins         int
	Slot                        *Slot // nil: it is not there
	Tables                      []Table
	Old                         []Transaction
	Collations                  []string      // whose version is not the one that indexes were built with
	Clock                       time.Duration // how far its clock is ahead of this machine's
	ClockWithin                 time.Duration
	// NodeClocks are how far other nodes' clocks are ahead, as the bridge has measured within a day.
	NodeClocks []NodeClock
}

// Role is the role in postgres.dsn.
type Role struct {
	Name, Database string
	Superuser      bool
	Replication    bool
	BypassRLS      bool
	Create         bool // in the database
	Replica        bool // may set session_replication_role
	// Functions are those of replication origins that it may not call.
	Functions []string
	Monitor   bool // sees other roles' sessions
	Owner     bool // of schema pgbridge, if that is there
}

// Slot is the node's slot.
type Slot struct {
	Status string // wal_status
	Held   int64  // bytes
	Safe   int64  // bytes until it is lost; -1: no limit
}

// Table is a replicated table.
type Table struct {
	Name, Schema  string // quoted, with its schema; the schema alone
	Lacks         []string
	Usage         bool // of its schema
	RowSecurity   bool // applies to the role
	Owned         bool
	Triggers      []Trigger
	Rules         []Trigger
	ForeignKeys   []ForeignKey
	patternSchema string
	patternTable  string
}

// Trigger is one of a table's, or a rule.
type Trigger struct {
	Name    string
	Enabled string // as pg_trigger.tgenabled: O, A or R
}

// ForeignKey is one of a table's.
type ForeignKey struct {
	Name     string // not quoted
	Parent   string
	Action   string // ON DELETE, as SQL says it
	ToOthers bool   // the parent is replicated
	From     string // set where the table itself is not replicated and the parent is: the table
}

// Transaction is an old one.
type Transaction struct {
	Who  string // "process 4711" or "prepared transaction 'x'"
	Age  time.Duration
	Mend string
}

// NodeClock is how far another node's clock is ahead.
type NodeClock struct {
	Node          string
	Ahead, Within time.Duration
}
