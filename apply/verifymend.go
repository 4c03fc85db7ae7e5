package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/origin"
)

// A row that is right is written again where it stands, in a session that has no replication origin: capture takes that for a
// user's write, with a version that is later than all that this node has seen, and with all values, so that a node which lacks the
// row gets it. Where it is wrong it gives way first: what it was goes into the history, and a row whose writer nobody knows is made
// one that everybody has seen, so that whatever comes takes its place and meets no conflict. A row that should not be there is
// deleted by one of the nodes that have it.

// RepairKind is the kind under which a row stands in the history that was not what it should have been.
const RepairKind = "repair"

// yield lets rows give way to what is to come. It works in the keeper's session: what it does is no user's write.
func (v *Verifier) yield(ctx context.Context, t *verified, q *VerifyQuestion) (*VerifyAnswer, error) {
	if len(q.Writers) != len(q.Keys) || len(q.Right) != len(q.Keys) || len(q.Versions) != len(q.Keys) {
		return nil, errors.New("the question does not say what is there and what is right")
	}
	a := &VerifyAnswer{Looks: make([]VerifyLooked, len(q.Keys))}
	hashes, err := v.keyHashes(ctx, t, q.Keys)
	if err != nil {
		return nil, err
	}
	err = v.a.keeper.do(ctx, func(ctx context.Context) error {
		for i, key := range q.Keys {
			done, err := v.a.kept.take(ctx)
			if err != nil {
				return err
			}
			l := &a.Looks[i]
			err = l.told(v.yieldOne(ctx, t, q, i, l))
			done()
			if err != nil {
				return fmt.Errorf("row %s of %s: %w", bytes.Join(key, []byte(",")), t.quoted, err)
			}
			v.a.kept.touch(hashes[i])
		}
		return nil
	})
	return a, err
}

// do has f run in the keeper's session.
func (k *keeper) do(ctx context.Context, f func(context.Context) error) error {
	j := keeperJob{done: make(chan error, 1), run: f}
	select {
	case k.jobs <- j:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return <-j.done // it works with what its caller owns
}

// told takes the server's refusal of one row as its answer; any other error is returned.
func (l *VerifyLooked) told(err error) error {
	var pg *pgconn.PgError
	if err == nil || !errors.As(err, &pg) || lost(err) {
		return err
	}
	l.Error = explain(err).Error()
	return nil
}

func (v *Verifier) yieldOne(ctx context.Context, t *verified, q *VerifyQuestion, i int, l *VerifyLooked) error {
	conn := v.a.keeper.conn
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT set_config('search_path', $1, true)", t.path); err != nil {
			return err
		}
		was, err := t.lock(ctx, tx, q, i, l)
		if err != nil || l.Changed {
			return err
		}
		right, by := &q.Right[i], q.By
		if *right == "" {
			right = nil
		}
		loser := origin.Version{Origin: v.a.own, Stamp: origin.StampOf(time.Now())} // nobody knows whose
		if w := q.Versions[i]; w.Known == VerifyKnownBy {
			loser = origin.Version{Origin: w.Origin, Stamp: w.Stamp}
		}
		_, err = tx.Exec(ctx, `INSERT INTO pgbridge.conflict (relation, kind, outcome, remote_origin, remote_seq, remote_stamp, local_origin, local_stamp, local_row, remote_row)
			VALUES ($1, $2, $3, $4, 0, (extract(epoch FROM now()) * 1000000)::bigint - 946684800000000, $5, $6, $7::json, $8::json)`,
			t.schema+"."+t.name, RepairKind, remoteWins, by, loser.Origin.String(), int64(loser.Stamp), was, right)
		if err != nil {
			return fmt.Errorf("record the row: %w", err)
		}
		if was == nil {
			return nil
		}
		c := t.settable()
		if c == nil {
			return nil // all of it is its key: it can only be deleted, which needs no version
		}
		where, args := t.isRow(q.Keys[i], 1)
		if err := tx.QueryRow(ctx, fmt.Sprintf("UPDATE %s t SET %s = t.%s WHERE %s RETURNING t.xmin::text", t.rows, c.quoted, c.quoted, where),
			append([]any{asTexts}, args...)...).Scan(&l.Writer); err != nil {
			return fmt.Errorf("let the row give way: %w", err)
		}
		// A row of this session that pgbridge.returned does not name is one that everybody has seen.
		_, err = tx.Exec(ctx, `SELECT pg_replication_origin_xact_setup('0/0', $1)`, time.Now())
		return err
	})
}

// isRow is the condition on alias t that it is the row of a key, and the arguments, of which the first one is $n.
func (t *verified) isRow(key [][]byte, n int) (string, []any) {
	parts := slices.Clone(t.only)
	var args []any
	for i, k := range t.key {
		parts = append(parts, fmt.Sprintf("%s %s $%d::text::%s", t.cols[k].compared(), t.cols[k].equals, n+i, t.keyType(i)))
		args = append(args, string(key[i]))
	}
	return strings.Join(parts, " AND "), args
}

// lock locks the row of a key, if there is one, and returns it as JSON. l.Changed says that it is not the one any more that was
// looked at.
func (t *verified) lock(ctx context.Context, tx pgx.Tx, q *VerifyQuestion, i int, l *VerifyLooked) (was *string, err error) {
	where, args := t.isRow(q.Keys[i], 1)
	var json string
	err = tx.QueryRow(ctx, fmt.Sprintf("SELECT t.xmin::text, row_to_json(t.*)::text FROM %s t WHERE %s FOR UPDATE OF t", t.rows, where),
		append([]any{asTexts}, args...)...).Scan(&l.Writer, &json)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		l.Writer = ""
	case err != nil:
		return nil, fmt.Errorf("lock the row: %w", err)
	default:
		l.Found, was = true, &json
	}
	l.Changed = l.Writer != q.Writers[i]
	return was, nil
}

// settable is a column that an UPDATE can write without changing anything; nil if there is none.
func (t *table) settable() *column {
	var found *column
	for i := range t.cols {
		c := &t.cols[i]
		if !c.generated && !c.always && (found == nil || found.long && !c.long) {
			found = c
		}
	}
	return found
}

// write writes rows again or deletes them, one transaction for each.
func (v *Verifier) write(ctx context.Context, t *verified, q *VerifyQuestion) (*VerifyAnswer, error) {
	if len(q.Writers) != len(q.Keys) {
		return nil, errors.New("the question does not say what is there")
	}
	a := &VerifyAnswer{Looks: make([]VerifyLooked, len(q.Keys))}
	for i, key := range q.Keys {
		l := &a.Looks[i]
		err := l.told(pgx.BeginFunc(ctx, v.conn, func(tx pgx.Tx) error {
			if _, err := t.lock(ctx, tx, q, i, l); err != nil || l.Changed || !l.Found {
				return err
			}
			if q.Kind == VerifyDelete {
				where, args := t.isRow(key, 1)
				_, err := tx.Exec(ctx, fmt.Sprintf("DELETE FROM %s t WHERE %s", t.rows, where), append([]any{asTexts}, args...)...)
				return err
			}
			return t.again(ctx, tx, key)
		}))
		if err != nil {
			return nil, fmt.Errorf("write row %s of %s again: %w", bytes.Join(key, []byte(",")), t.quoted, err)
		}
	}
	return a, nil
}

// again writes a row again that is locked, with new values of all that may be stored out of line, so that the WAL has them.
func (t *verified) again(ctx context.Context, tx pgx.Tx, key [][]byte) error {
	var wide, set []string
	for i := range t.cols {
		if c := &t.cols[i]; c.long && !c.generated && !slices.Contains(t.key, i) {
			wide = append(wide, "t."+c.quoted+"::text")
			set = append(set, fmt.Sprintf("%s = $%d", c.quoted, len(wide)))
		}
	}
	var values [][]byte
	if len(wide) > 0 {
		where, args := t.isRow(key, 1)
		rows, err := tx.Query(ctx, fmt.Sprintf("SELECT %s FROM %s t WHERE %s", strings.Join(wide, ", "), t.rows, where),
			append([]any{asTexts}, args...)...)
		if err != nil {
			return err
		}
		for rows.Next() {
			for _, b := range rows.RawValues() {
				values = append(values, bytes.Clone(b))
			}
		}
		if err := rows.Err(); err != nil {
			return err
		}
	} else if c := t.settable(); c != nil {
		set = append(set, c.quoted+" = t."+c.quoted)
	} else {
		return t.anew(ctx, tx, key)
	}
	where, args := t.isRow(key, len(values)+1)
	for _, a := range args {
		values = append(values, []byte(a.(string)))
	}
	r := tx.Conn().PgConn().ExecParams(ctx, fmt.Sprintf("UPDATE %s t SET %s WHERE %s", t.rows, strings.Join(set, ", "), where), values, nil, nil, nil).Read()
	return r.Err
}

// anew deletes a row and inserts it again: the only way to write one of which all columns are GENERATED ALWAYS AS IDENTITY.
func (t *verified) anew(ctx context.Context, tx pgx.Tx, key [][]byte) error {
	var cols, old []string
	for i := range t.cols {
		if c := &t.cols[i]; !c.generated {
			cols, old = append(cols, c.quoted), append(old, "t."+c.quoted)
		}
	}
	where, args := t.isRow(key, 1)
	_, err := tx.Exec(ctx, fmt.Sprintf("WITH d AS (DELETE FROM %s t WHERE %s RETURNING %s) INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT * FROM d",
		t.rows, where, strings.Join(old, ", "), t.quoted, strings.Join(cols, ", ")), append([]any{asTexts}, args...)...)
	return err
}
