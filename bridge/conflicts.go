package bridge

import (
	"context"
	"encoding/json"
	"time"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/config"
)

// Conflict is one entry of the conflict history.
type Conflict = apply.Conflict

// ConflictEnd is one of a conflict's two writes.
type ConflictEnd = apply.ConflictEnd

// ConflictKey is a row's key, by column name.
type ConflictKey = apply.ConflictKey

// KeyColumn is one column of a key.
type KeyColumn = apply.KeyColumn

// ConflictFilter says which conflicts are meant.
type ConflictFilter = apply.ConflictFilter

// ConflictPage is an answer to a question for conflicts.
type ConflictPage = apply.ConflictPage

// ConflictDetail is a conflict with both versions of the row.
type ConflictDetail = apply.ConflictDetail

// ConflictColumn is one column of both versions.
type ConflictColumn = apply.ConflictColumn

// ConflictCount is how many conflicts of one kind one origin has won in one table.
type ConflictCount = apply.ConflictCount

// UndoOptions say how a loser is brought back.
type UndoOptions = apply.UndoOptions

// Undone is what an undo has done.
type Undone = apply.Undone

// History is a session that reads the conflict history and brings losers back.
type History = apply.History

// OrphanOptions say which orphans are meant, and what becomes of them.
type OrphanOptions = apply.OrphanOptions

// Orphans are the rows that one foreign key does not allow.
type Orphans = apply.Orphans

// OrphanKind is the kind of a conflict that is a mended orphan.
const OrphanKind = apply.OrphanKind

// RepairKind is the kind of a conflict that is a row which pgbridge verify has mended.
const RepairKind = apply.RepairKind

// KeyValue is the value of a column as a ConflictFilter has it.
func KeyValue(v json.RawMessage) string { return apply.KeyValue(v) }

// ClockSource says where a History has its clock error from.
type ClockSource = apply.ClockSource

// ClockMeasured means that the bridge has compared clocks.
const ClockMeasured = apply.ClockMeasured

// OpenHistory opens the conflict history of this node's primary, whether a bridge runs or not. clockError is how far apart
// the nodes' clocks may be; zero: as the bridge has measured.
func OpenHistory(ctx context.Context, cfg *config.Config, clockError time.Duration) (*History, error) {
	return apply.OpenHistory(ctx, apply.HistoryOptions{DSN: cfg.Postgres.DSN, Cluster: cfg.Cluster, Node: cfg.Node, ClockError: clockError,
		Publication: slotName(cfg)})
}
