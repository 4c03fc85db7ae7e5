package apply

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/pgbridge/pgbridge/origin"
)

// guard is the condition on a row that its last writer is covered by the transaction to be applied
// (PROOF.md R11), as SQL over the row's xmin. Written by the transaction's own origin: covered, seqs are
// in order. By another origin: its stamp is at most the dependencies' stamp for that origin. By a local
// session: never by time, but by transaction id: older than a marker's xmin whose seq lies within the
// dependencies.
//
// Whoever wrote it, the row is covered if it is older than a marker up to which the dependencies cover
// whatever had been announced here. That is asked first: looking up who wrote a row costs the server as much
// as the rest of the guard ten times over. It is also all that can be said of two kinds of rows that hide their
// author, who may have been a third node. One was written by a local session that rewrote the table (F10, R28).
// The other's stamp is forgotten: VACUUM forgets those of frozen rows, and switching track_commit_timestamp
// off all of them (F8). The transaction's own rows have none yet.
type guard struct {
	self   uint32          // roident of the worker's origin
	others []origin.Origin // the other remote origins, in the order of their parameters
	ids    []uint32        // their roidents
}

// untouched is the condition on a row t that its writer did not rewrite the table: that
// would have left its mark in pg_class. Both id and time are looked at, since a transaction that changes
// pg_class later may have an older id, and a clock may step. What updates pg_class for other reasons (GRANT,
// ADD COLUMN) only makes more rows suspect: genuine, which costs more, leaves those of pgbridge.ddl out.
const (
	untouched = `(SELECT age(r.xmin) > age(t.xmin) AND COALESCE(pg_xact_commit_timestamp(r.xmin) < pg_xact_commit_timestamp(t.xmin), true)
	FROM pg_class r WHERE r.oid = t.tableoid)`
	genuine = `(SELECT age(s.x) > age(t.xmin) AND COALESCE(pg_xact_commit_timestamp(s.x) < pg_xact_commit_timestamp(t.xmin), true)
	FROM pg_class r LEFT JOIN pgbridge.unrewritten u ON u.tab = r.oid AND u.file = r.relfilenode AND u.until = r.xmin,
	LATERAL (SELECT CASE WHEN u.tab IS NULL THEN r.xmin ELSE u.since END AS x) s WHERE r.oid = t.tableoid)`
)

const (
	oidXID         = 28
	oidInt8        = 20
	oidInt4        = 23
	oidInt8Array   = 1016
	oidInt4Array   = 1007
	oidBytea       = 17
	oidTimestamptz = 1184
)

// sql returns the condition for a row of table alias t, its parameters beginning at $first. A nil guard,
// for a row that is locked and decided on, lets everything through.
func (g *guard) sql(first int) string {
	if g == nil {
		return "true"
	}
	return g.condition(first, " ELSE "+written+".timestamp IS NULL AND t.xmin = pg_current_xact_id_if_assigned()::xid")
}

// brief is sql for a row that the transaction has not written before. The server builds a statement's expressions anew
// at each execution, so that every term costs.
func (g *guard) brief(first int) string { return g.condition(first, "") }

// written is called twice rather than joined: a function in FROM is materialized for each row. Without a timestamp it
// returns no origin either.
const written = "(pg_xact_commit_timestamp_origin(t.xmin))"

func (g *guard) condition(first int, otherwise string) string {
	if len(g.ids) == 0 { // nobody but t's own origin and local sessions can have written the row
		if otherwise != "" {
			otherwise = fmt.Sprintf("CASE %s.roident WHEN %d THEN true%s END", written, g.self, otherwise)
		} else {
			otherwise = fmt.Sprintf("%s.roident = %d", written, g.self)
		}
		return fmt.Sprintf("(age(t.xmin) > age($%d) OR %s)", first, otherwise)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "(age(t.xmin) > age($%d) OR CASE %s.roident WHEN %d THEN true WHEN 0 THEN age(t.xmin) > age($%d) AND %s",
		first, written, g.self, first+1, untouched)
	for i, id := range g.ids {
		fmt.Fprintf(&b, " WHEN %d THEN %s.timestamp <= $%d", id, written, first+2+i)
	}
	return b.String() + otherwise + " END)"
}

// types returns the parameters' type object ids.
func (g *guard) types() []uint32 {
	if g == nil {
		return nil
	}
	if len(g.others) == 0 {
		return []uint32{oidXID}
	}
	types := []uint32{oidXID, oidXID}
	for range g.others {
		types = append(types, oidTimestamptz)
	}
	return types
}

// params returns the parameters for a transaction with dependencies deps. mark is the newest marker's
// xmin whose seq lies within them, within that of the newest one all of which does; 0 if there is none: its
// age is infinite, so that no local row passes.
func (g *guard) params(deps origin.Vector, mark, within uint32) []param {
	xid := func(x uint32) param { return binaryParam(binary.BigEndian.AppendUint32(nil, x)) }
	if len(g.others) == 0 {
		if within == 0 || mark != 0 && int32(mark-within) > 0 {
			within = mark // there is nobody else to have announced anything
		}
		return []param{xid(within)}
	}
	ps := []param{xid(within), xid(mark)}
	for _, o := range g.others {
		ps = append(ps, stampParam(deps.Get(o)))
	}
	return ps
}

func stampParam(e origin.Entry) param {
	s := e.Stamp
	if e.Seq == 0 {
		s = -1 << 62 // nothing of that origin was seen
	}
	return int64Param(int64(clampStamp(s)))
}

// clampStamp keeps a stamp within what timestamptz can hold.
func clampStamp(s origin.Stamp) origin.Stamp {
	const lowest = -211813488000000000 // MIN_TIMESTAMP, src/include/datatype/timestamp.h
	return max(s, lowest)
}
