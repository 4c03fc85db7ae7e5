package apply

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// stableSQL finds the rows of which all nodes have seen all writes, or that have many.
const stableSQL = `SELECT j.hi, j.lo, bool_and(j.seq <= s.seq), COALESCE(max(b.schema), ''), COALESCE(max(b.name), '')
FROM pgbridge.journal j JOIN unnest($1::int4[], $2::int8[]) s(origin, seq) ON s.origin = j.origin
	LEFT JOIN pgbridge.journal_base b ON b.hi = j.hi AND b.lo = j.lo
WHERE j.lo <> 0 GROUP BY j.hi, j.lo HAVING bool_and(j.seq <= s.seq) OR count(*) >= $3 LIMIT $4`

// forgetSQL takes those of the given rows out of the journal of which all nodes have seen all writes.
const forgetSQL = `WITH k AS (SELECT j.hi, j.lo
	FROM pgbridge.journal j JOIN unnest($1::int4[], $2::int8[]) s(origin, seq) ON s.origin = j.origin
		JOIN unnest($3::int8[], $4::int8[]) k(hi, lo) ON k.hi = j.hi AND k.lo = j.lo
	GROUP BY j.hi, j.lo HAVING bool_and(j.seq <= s.seq)),
b AS (DELETE FROM pgbridge.journal_base b USING k WHERE b.hi = k.hi AND b.lo = k.lo)
DELETE FROM pgbridge.journal j USING k WHERE j.hi = k.hi AND j.lo = k.lo`

// stableSeq returns the highest seq of o that every node has seen, this one too: a local delete that capture has not read, or
// that has yet to take a row back, may have been made beside it.
func (j *journal) stableSeq(o origin.Origin) uint64 {
	seq := j.heard.stableSeq(o)
	if o != j.own {
		seq = min(seq, j.absence.saidSeq(o))
	}
	return seq
}

// purge forgets what every node has seen. As long as the journal holds a TRUNCATE of a table, it keeps the table's rows:
// who inserted a row behind the TRUNCATE must be known, or a later update would be taken for one of a row that is gone.
func (j *journal) purge(ctx context.Context) error {
	var ids []int32
	var seqs []int64
	for id, o := range j.origins {
		ids, seqs = append(ids, id), append(seqs, int64(j.stableSeq(o)))
	}
	wiped, err := j.purgeTruncates(ctx, ids, seqs)
	if err != nil {
		return fmt.Errorf("purge journal: %w", err)
	}
	rows, err := j.conn.Query(ctx, stableSQL, ids, seqs, foldFrom, purgeKeys)
	if err != nil {
		return fmt.Errorf("purge journal: %w", err)
	}
	var gone, long []wire.KeyHash
	var hi, lo int64
	var stable bool
	var schema, name string
	if _, err := pgx.ForEachRow(rows, []any{&hi, &lo, &stable, &schema, &name}, func() error {
		if wiped[wire.TableHash(schema, name)] {
			return nil
		}
		k := wire.KeyHash{Hi: uint64(hi), Lo: uint64(lo)}
		if stable {
			gone = append(gone, k)
		} else {
			long = append(long, k)
		}
		return nil
	}); err != nil {
		return fmt.Errorf("purge journal: %w", err)
	}
	if len(gone) > 0 {
		if err := j.excluding(ctx, gone, func() error {
			his, los := make([]int64, len(gone)), make([]int64, len(gone))
			for i, k := range gone {
				his[i], los[i] = int64(k.Hi), int64(k.Lo)
			}
			_, err := j.conn.Exec(ctx, forgetSQL, ids, seqs, his, los)
			return err
		}); err != nil {
			return fmt.Errorf("purge journal: %w", err)
		}
	}
	for _, k := range long {
		if err := j.excluding(ctx, []wire.KeyHash{k}, func() error { return j.fold(ctx, k) }); err != nil {
			return fmt.Errorf("fold journal: %w", err)
		}
	}
	return nil
}

// excluding calls f while no transaction is applied to rows of these keys.
func (j *journal) excluding(ctx context.Context, keys []wire.KeyHash, f func() error) error {
	h := &held{origin: j.own, keys: keys}
	if err := j.locks.lock(ctx, h); err != nil {
		return err
	}
	defer j.locks.release(h)
	return f()
}

// foldable returns up to which seq of each origin the writes can be folded into the base: every node has seen them, and
// whoever wrote any of the others certainly had.
func foldable(l *lineage, stable func(origin.Origin) uint64) map[origin.Origin]uint64 {
	cut := map[origin.Origin]uint64{}
	for i := range l.writes {
		cut[l.writes[i].Origin] = stable(l.writes[i].Origin)
	}
	for i := range l.truncates {
		cut[l.truncates[i].Origin] = stable(l.truncates[i].Origin)
	}
	for again := true; again; {
		again = false
		for i := range l.writes {
			w := &l.writes[i]
			if w.Seq <= cut[w.Origin] {
				continue
			}
			for o, seq := range cut {
				if had := w.Low.Seq(o); o != w.Origin && had < seq {
					cut[o], again = had, true
				}
			}
		}
	}
	return cut
}

// folding returns what of a row's journal can be folded into its base, and up to where; nil: nothing.
func (l *lineage) folding(stable func(origin.Origin) uint64) (*lineage, map[origin.Origin]uint64) {
	cut := foldable(l, stable)
	old := &lineage{base: l.base, truncates: l.truncates}
	for i := range l.writes {
		if l.writes[i].Seq <= cut[l.writes[i].Origin] {
			old.add(l.writes[i], l.images[i])
		}
	}
	if len(old.writes) == 0 || slices.ContainsFunc(l.truncates, func(w conflict.Logged) bool { return w.Seq > cut[w.Origin] }) {
		return nil, nil
	}
	return old, cut
}

// fold folds what can be of one row's journal into its base.
func (j *journal) fold(ctx context.Context, k wire.KeyHash) error {
	var schema, name string
	err := j.conn.QueryRow(ctx, `SELECT schema, name FROM pgbridge.journal_base WHERE hi = $1 AND lo = $2`, int64(k.Hi), int64(k.Lo)).Scan(&schema, &name)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	t, err := j.catalog.table(ctx, schema, name)
	if isBlocked(err) || err == nil && t.merge == nil {
		return nil
	}
	if err != nil {
		return err
	}
	ls, err := j.lineages(ctx, j.conn.PgConn(), t, []wire.KeyHash{k})
	if err != nil || ls[0].whole {
		return err
	}
	old, cut := ls[0].folding(j.stableSeq)
	if old == nil {
		return nil
	}
	row, err := old.merged(ctx, j.conn.PgConn(), t)
	if err != nil {
		return err
	}
	return j.commit(ctx, func(tx pgx.Tx) error {
		var cells []byte
		if row.Row != nil {
			cells = t.encodeCells(row.Row)
		}
		if _, err := tx.Exec(ctx, `UPDATE pgbridge.journal_base SET cells = $3 WHERE hi = $1 AND lo = $2`, int64(k.Hi), int64(k.Lo), cells); err != nil {
			return err
		}
		for o, seq := range cut {
			if _, err := tx.Exec(ctx, `DELETE FROM pgbridge.journal WHERE hi = $1 AND lo = $2 AND origin = $3 AND seq <= $4`,
				int64(k.Hi), int64(k.Lo), j.id(o), int64(min(seq, math.MaxInt64))); err != nil {
				return err
			}
		}
		return nil
	})
}
