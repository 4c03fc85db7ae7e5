package origin

import (
	"cmp"
	"fmt"
	"strings"
	"time"
)

// Origin names one unbroken life of a node's numbering: the node on which a transaction was first
// committed, with its epoch. The zero value is no origin.
type Origin struct {
	Node  string // short node name, as in the configuration
	Epoch uint32 // from 1; raised when a node starts a new numbering
}

// IsZero reports whether o names nobody.
func (o Origin) IsZero() bool { return o == Origin{} }

// Compare orders origins by node name, then epoch. It is the tie-break between equal stamps, so every
// node must use this order and no other.
func (o Origin) Compare(p Origin) int {
	if c := strings.Compare(o.Node, p.Node); c != 0 {
		return c
	}
	return cmp.Compare(o.Epoch, p.Epoch)
}

// String gives "node" for epoch 1 and "node/epoch" otherwise.
func (o Origin) String() string {
	if o.Epoch <= 1 {
		return o.Node
	}
	return fmt.Sprintf("%s/%d", o.Node, o.Epoch)
}

// Stamp is a transaction's hybrid logical time in microseconds since 2000-01-01 00:00 UTC, which is
// PostgreSQL's own epoch for timestamptz, so that a stamp can be handed to the server as it is.
type Stamp int64

// pgEpoch is the Unix time, in microseconds, of PostgreSQL's timestamp epoch.
const pgEpoch = 946684800 * 1_000_000

// StampOf converts a wall-clock time, cut to whole microseconds.
func StampOf(t time.Time) Stamp { return Stamp(t.UnixMicro() - pgEpoch) }

// Time converts s to a wall-clock time in UTC.
func (s Stamp) Time() time.Time { return time.UnixMicro(int64(s) + pgEpoch).UTC() }

// Version identifies one write for last-writer-wins: its transaction's stamp and origin. Two different
// transactions never share a Version, since stamps strictly rise along an origin (PROOF.md R5).
type Version struct {
	Stamp  Stamp
	Origin Origin
}

// Later reports whether v comes after w in the total order that every node uses.
func (v Version) Later(w Version) bool {
	if v.Stamp != w.Stamp {
		return v.Stamp > w.Stamp
	}
	return v.Origin.Compare(w.Origin) > 0
}

// String gives "origin@time" for logs and the conflict history.
func (v Version) String() string {
	return fmt.Sprintf("%s@%s", v.Origin, v.Stamp.Time().Format(time.RFC3339Nano))
}
