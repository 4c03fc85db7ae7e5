package console

import "context"

// Node tells how the node is. The answers are told as JSON.
type Node interface {
	Status(ctx context.Context) any
	// Others is what the other nodes say of themselves, or why they do not.
	Others(ctx context.Context) any
	Settings() any
}

// Conflicts are the node's history of conflicts.
type Conflicts interface {
	Conflicts(ctx context.Context, f ConflictFilter) (any, error)
	Conflict(ctx context.Context, id int64) (any, error)
	Undo(ctx context.Context, id int64, o UndoOptions) (any, error)
}

// ConflictFilter says which conflicts are meant, the newest first. Empty fields mean all.
type ConflictFilter struct {
	Table  string // a pattern over schema.table
	Kind   string
	Origin string
	Before int64 // only those with a smaller id; 0: from the newest on
	Limit  int
}

// UndoOptions say how a loser is brought back.
type UndoOptions struct {
	Force bool   // whatever is there now
	By    string // who asks for it
}

// Parked are the transactions that were put aside.
type Parked interface {
	Parked(ctx context.Context) (any, error)
	ParkedChanges(ctx context.Context, name string) (any, error)
	// RequestParked asks for one to be tried again or discarded, and waits until that is seen to.
	RequestParked(ctx context.Context, name string, r ParkedRequest) (any, error)
}

// ParkedRequest is what may be asked for a parked transaction.
type ParkedRequest string

// The requests. An empty name means all for RetryParked.
const (
	RetryParked   ParkedRequest = "retry"
	DiscardParked ParkedRequest = "discard"
)

// Pauses hold back what other nodes write.
type Pauses interface {
	Pause(ctx context.Context, p Pause) error
	Resume(ctx context.Context, p Pause) error
}

// Pause is what waits: what a node writes, or transactions that touch a table.
type Pause struct {
	Origin string `json:"origin"`
	Table  string `json:"table"`
	Reason string `json:"reason"`
}

// Rows compares the rows of nodes.
type Rows interface {
	// Verify calls tell with how far it has come, never twice at a time and not after it has returned.
	Verify(ctx context.Context, o VerifyOptions, tell func(progress any)) (report any, err error)
}

// VerifyOptions say what is compared, and what becomes of what is found.
type VerifyOptions struct {
	Table  string   `json:"table"` // a pattern over schema.table; empty: all
	Nodes  []string `json:"nodes"` // with which this one is compared; empty: all others
	Repair bool     `json:"repair"`
	From   string   `json:"from"` // the node that is right; empty: the later version is
}

// Problem is an error with the HTTP status that says of which kind it is.
type Problem struct {
	Status int
	Err    error
}

// Error is the error's text.
func (p *Problem) Error() string { return p.Err.Error() }

// Unwrap returns the error.
func (p *Problem) Unwrap() error { return p.Err }
