package conflict

import (
	"fmt"

	"github.com/pgbridge/pgbridge/origin"
)

// Kind names what met: the first word is the remote write, the second what stands here.
type Kind string

// The kinds of conflicts.
const (
	InsertInsert   Kind = "insert_insert"
	InsertDelete   Kind = "insert_delete"
	UpdateUpdate   Kind = "update_update"
	UpdateDelete   Kind = "update_delete"
	DeleteUpdate   Kind = "delete_update"
	DeleteDelete   Kind = "delete_delete"
	TruncateUpdate Kind = "truncate_update"
	// Undecided stands for any of them where the rule Manual leaves it to a person who wins.
	Undecided Kind = "undecided"
	// Unique: rows of different keys collide on another unique index or an exclusion constraint.
	Unique Kind = "unique"
)

// Write is what the remote transaction does to the row.
type Write byte

// The writes that can meet a local version.
const (
	Insert Write = iota
	Update
	Delete
	Truncate
)

// Local is what stands at this node.
type Local struct {
	// Version of the row's last writer, with its lifted stamp, or of its tombstone.
	Version origin.Version
	// Deleted says that Version is a tombstone and there is no row.
	Deleted bool
	// Ancient: written before the cluster kept versions, or so long ago that everybody has seen it. It
	// has no Version.
	Ancient bool
	// Absent: no row and no tombstone (PROOF.md R17).
	Absent bool
}

// Case is one question to a policy.
type Case struct {
	Write  Write
	Remote origin.Version
	Local  Local
	// Seen says that the remote transaction's author had, or may have had, the local version before it:
	// then there is no conflict (invariant 5).
	Seen bool
}

// Decision is a policy's answer.
type Decision struct {
	RemoteWins bool
	// Conflict says that neither had seen the other; the loser belongs in the conflict history.
	Conflict bool
	Kind     Kind
}

// Policy decides one case. It is pure, and safe for concurrent use.
type Policy func(Case) Decision

// ByName returns the policy of that configuration name. The error lists the names that exist.
func ByName(name string) (Policy, error) {
	if name == "last_writer_wins" {
		return LastWriterWins, nil
	}
	return nil, fmt.Errorf("conflict policy %q does not exist; use last_writer_wins", name)
}

// LastWriterWins lets the later of two versions win, by (stamp, origin). Seen versions are older by
// construction of the stamps, so that the order alone decides (PROOF.md section 7).
func LastWriterWins(c Case) Decision {
	if c.Local.Ancient || c.Local.Absent {
		return Decision{RemoteWins: true}
	}
	wins := c.Remote.Later(c.Local.Version)
	if wins && c.Seen {
		return Decision{RemoteWins: true}
	}
	return Decision{RemoteWins: wins, Conflict: true, Kind: KindOf(c)}
}

// KindOf names a conflict by what met.
func KindOf(c Case) Kind {
	switch {
	case c.Write == Truncate:
		return TruncateUpdate
	case c.Write == Delete && c.Local.Deleted:
		return DeleteDelete
	case c.Write == Delete:
		return DeleteUpdate
	case c.Write == Insert && c.Local.Deleted:
		return InsertDelete
	case c.Write == Insert:
		return InsertInsert
	case c.Local.Deleted:
		return UpdateDelete
	}
	return UpdateUpdate
}
