package apply

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// purgeTruncates forgets TRUNCATEs. Of several of one table the last one says all: the others go at once, and nothing else.
// Once all nodes have seen the last one, whatever comes was written by somebody who had; but what is in the journal by then may
// not have seen it, and is judged by it as long as it is there: it goes together with the TRUNCATE, when that, too, is what
// every node has seen. It returns the tables that have one left.
func (j *journal) purgeTruncates(ctx context.Context, ids []int32, seqs []int64) (left map[uint64]bool, err error) {
	all, err := j.truncates(ctx)
	if err != nil {
		return nil, err
	}
	lasts, others := lastOfEach(all)
	for _, w := range others {
		if _, err := j.conn.Exec(ctx, deleteTruncateSQL, w.origin, int64(w.seq), w.table); err != nil {
			return nil, err
		}
		delete(j.wiped, w)
	}
	stable := map[origin.Origin]uint64{}
	for i, id := range ids {
		stable[j.origins[id]] = uint64(seqs[i])
	}
	left = map[uint64]bool{}
	for _, w := range lasts {
		behind, ok := j.wiped[w]
		if !ok && w.seq <= stable[j.origins[w.origin]] {
			behind, ok = j.progress.vector(), true
			behind.Advance(j.done)
			j.wiped[w] = behind
		}
		if !ok || slices.ContainsFunc(behind, func(e origin.Entry) bool { return e.Seq > stable[e.Origin] }) {
			left[uint64(w.table)] = true
			continue
		}
		if err := j.forgetTruncate(ctx, w, ids, seqs); err != nil {
			return nil, err
		}
		delete(j.wiped, w)
	}
	return left, nil
}

// wiped is a TRUNCATE in the journal.
type wiped struct {
	origin int32
	seq    uint64
	table  int64
}

const deleteTruncateSQL = `DELETE FROM pgbridge.journal WHERE lo = 0 AND origin = $1 AND seq = $2 AND hi = $3`

// truncates returns those in the journal, in the order of the rules (later).
func (j *journal) truncates(ctx context.Context) ([]wiped, error) {
	rows, err := j.conn.Query(ctx, `SELECT origin, seq, hi, stamp FROM pgbridge.journal WHERE lo = 0`)
	if err != nil {
		return nil, err
	}
	type found struct {
		wiped
		write conflict.Logged
	}
	var all []found
	var w wiped
	var seq, stamp int64
	if _, err := pgx.ForEachRow(rows, []any{&w.origin, &seq, &w.table, &stamp}, func() error {
		w.seq = uint64(seq)
		all = append(all, found{w, conflict.Logged{Origin: j.origins[w.origin], Seq: w.seq, Stamp: origin.Stamp(stamp)}})
		return nil
	}); err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b found) int { return later(&a.write, &b.write) })
	out := make([]wiped, len(all))
	for i, f := range all {
		out[i] = f.wiped
	}
	return out, nil
}

// lastOfEach parts TRUNCATEs, which are in order, into the last one of each table and the others.
func lastOfEach(all []wiped) (lasts, others []wiped) {
	met := map[int64]wiped{}
	for _, w := range slices.Backward(all) {
		switch last, ok := met[w.table]; {
		case !ok:
			met[w.table] = w
			lasts = append(lasts, w)
		case w != last: // a transaction may truncate a table again
			others = append(others, w)
		}
	}
	return lasts, others
}

// truncateRowsSQL puts a TRUNCATE of a table among the writes of those of the given rows that the journal has.
const truncateRowsSQL = `INSERT INTO pgbridge.journal (hi, lo, origin, seq, part, stamp, kind, seen, ops, image)
SELECT k.hi, k.lo, t.origin, t.seq, t.part, t.stamp, t.kind, t.seen, t.ops, t.image
FROM pgbridge.journal t, unnest($4::int8[], $5::int8[]) k(hi, lo)
WHERE t.lo = 0 AND t.origin = $1 AND t.seq = $2 AND t.hi = $3 AND EXISTS (SELECT FROM pgbridge.journal j WHERE j.hi = k.hi AND j.lo = k.lo)
ON CONFLICT DO NOTHING`

// forgetTruncate takes a TRUNCATE out of the journal, and with it what it judged: where a row has later writes, too, that not
// every node has seen, it stays among these.
func (j *journal) forgetTruncate(ctx context.Context, w wiped, ids []int32, seqs []int64) error {
	rows, err := j.conn.Query(ctx, `SELECT hi, lo, schema, name FROM pgbridge.journal_base`)
	if err != nil {
		return err
	}
	var keys []wire.KeyHash
	var his, los []int64
	var hi, lo int64
	var schema, name string
	if _, err := pgx.ForEachRow(rows, []any{&hi, &lo, &schema, &name}, func() error {
		if wire.TableHash(schema, name) == uint64(w.table) {
			keys = append(keys, wire.KeyHash{Hi: uint64(hi), Lo: uint64(lo)})
			his, los = append(his, hi), append(los, lo)
		}
		return nil
	}); err != nil {
		return err
	}
	return j.excluding(ctx, keys, func() error {
		return j.commit(ctx, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, forgetSQL, ids, seqs, his, los); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, truncateRowsSQL, w.origin, int64(w.seq), w.table, his, los); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, deleteTruncateSQL, w.origin, int64(w.seq), w.table)
			return err
		})
	})
}
