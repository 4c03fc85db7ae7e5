package apply

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// A row that this node once wrote, and that others have and it has not, was either deleted by its users or written after the state that
// its data were set back to. Which it is, a stamp tells up to which its own transactions stand in its data. Stamps rise along its WAL,
// and its data hold a beginning of that. What was published, and what frames tell, is behind: frames are purged, and notes are written now
// and then. But the data themselves tell, too: a transaction of the stamp that a row bears at the donor has that very commit time here,
// unless its stamp was lifted; and each one behind the last foreign transaction that is here has a later stamp than that (PROOF.md R5).
// What users have committed since (Comeback.Since) says nothing.

const (
	provedIDs   = 100_000                                      // transactions that are looked at in one statement
	provedSlack = origin.Stamp(time.Minute / time.Microsecond) // by how much commit times may be out of order
)

// prove finds out up to which stamp this node's own transactions stand in its data.
func (b *comeback) prove(ctx context.Context) error {
	b.until = b.progress.vector().MaxStamp()
	if b.Own.Seq > 0 {
		b.until = max(b.until, b.Own.Stamp)
	}
	var given []int64
	seen := map[origin.Stamp]bool{}
	err := b.records(func(rec wire.Record) error {
		if rec.Kind != wire.KindWriter {
			return nil
		}
		v, err := wire.ParseWriter(rec.Payload)
		if err == nil && v.Origin == b.own && v.Stamp > b.until && v.Stamp <= b.Since && !seen[v.Stamp] {
			seen[v.Stamp] = true
			given = append(given, v.Stamp.Time().UnixMicro())
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read delta: %w", err)
	}
	if len(given) == 0 {
		return nil
	}
	return b.proveBy(ctx, given)
}

// proveBy looks for commits of these times, from the newest transaction on, until all are older than the first of them.
func (b *comeback) proveBy(ctx context.Context, given []int64) error {
	first := int64(math.MaxInt64)
	for _, t := range given {
		first = min(first, t)
	}
	var end int64
	if err := b.conn.QueryRow(ctx, `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8`).Scan(&end); err != nil {
		return fmt.Errorf("read transaction ids: %w", err)
	}
	for end > int64(b.opts.FirstXID) {
		from := max(int64(b.opts.FirstXID), end-provedIDs)
		var last, proved *int64
		err := b.conn.QueryRow(ctx, provedSQL, from, end, given).Scan(&last, &proved)
		if err != nil {
			return fmt.Errorf("read commit times: %w", err)
		}
		if proved != nil {
			b.until = max(b.until, origin.StampOf(time.UnixMicro(*proved)))
		}
		if last == nil || *last < first-int64(provedSlack) {
			return nil
		}
		end = from
	}
	return nil
}

// provedSQL returns the last commit time of the transactions from $1 to $2, and the last of those in $3 at which a local one committed.
const provedSQL = `SELECT max(at), max(at) FILTER (WHERE roident = 0 AND at = ANY ($3))
	FROM generate_series($1::int8, $2::int8 - 1) x, pg_xact_commit_timestamp_origin((x & 4294967295)::text::xid) c, LATERAL (SELECT (extract(epoch FROM c.timestamp) * 1000000)::int8 AS at) s
	WHERE x & 4294967295 >= 3`
