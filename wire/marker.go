package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/pgbridge/pgbridge/origin"
)

// MarkerPrefix is the prefix of the logical messages by which apply tells capture, through the WAL, what
// it is about to apply. pg_logical_emit_message(false, MarkerPrefix, ...) writes them.
const MarkerPrefix = "pgbridge"

// AgainPrefix is the prefix of the transactional message behind which, in a transaction that a bridge applies, rows stand that it
// writes again for its own node: they are captured like a user's.
const AgainPrefix = "pgbridge.again"

// Marker is the content of such a message (PROOF.md R7): what is about to be applied, what has been, and
// the oldest transaction id that was still running.
type Marker struct {
	Up   origin.Vector // announced: everything in it is applied or about to be
	Done origin.Vector // its COMMIT has been acknowledged
	// Lost are versions that are about to lose here to one that is here already: their transactions are in
	// Up, and the message stands in the WAL before their COMMIT.
	Lost []Loss
	XMin uint64 // pg_snapshot_xmin(pg_current_snapshot()) of the message's own statement
}

// markerTail is the length of what SQL appends to a marker: the snapshot's xmin as int8send gives it.
const markerTail = 8

// AppendMarker appends a marker's content without its XMin: the statement that writes it must append
// int8send(pg_snapshot_xmin(pg_current_snapshot())::text::int8).
func AppendMarker(dst []byte, up, done origin.Vector, lost []Loss) []byte {
	return appendLosses(appendVector(appendVector(append(dst, 1), up), done), lost)
}

// ParseMarker decodes a marker's whole content. Errors wrap ErrCorrupt.
func ParseMarker(b []byte) (Marker, error) {
	if len(b) < 1+markerTail || b[0] != 1 {
		return Marker{}, fmt.Errorf("%w: not a marker", ErrCorrupt)
	}
	n := len(b) - markerTail
	p := parser{b: b[1:n]}
	m := Marker{Up: p.vector(), Done: p.vector(), Lost: p.losses(), XMin: binary.BigEndian.Uint64(b[n:])}
	if p.err == nil && len(p.b) != 0 {
		p.fail("bytes behind the marker")
	}
	if p.err != nil {
		return Marker{}, p.err
	}
	return m, nil
}
