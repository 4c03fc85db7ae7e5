package catalog

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Apply changes the sequences as planned, all of them or none, and returns the steps with the values at which they go on. A
// sequence that has gone on since it was planned goes on behind that.
func Apply(ctx context.Context, conn *pgx.Conn, steps []Step) ([]Step, error) {
	if err := mayChange(steps); err != nil {
		return nil, err
	}
	done := append([]Step{}, steps...)
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, lockSQL); err != nil {
			return err
		}
		for i := range done {
			if s := &done[i]; s.SQL != "" {
				if err := s.apply(ctx, tx); err != nil {
					return fmt.Errorf("change sequence %s: %w", s.Sequence, err)
				}
			}
		}
		return nil
	})
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "55P03" {
		err = fmt.Errorf("%w; nothing was changed: somebody holds it for long, so try again", err)
	}
	if err != nil {
		return nil, err
	}
	return done, nil
}

// lockSQL lets go soon where somebody holds a sequence: whoever wants a value stands behind this in the queue.
const lockSQL = `SET LOCAL lock_timeout = '2s'`

// apply locks the sequence by the first change, so that nobody takes a value until the transaction is committed.
func (s *Step) apply(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Exec(ctx, fmt.Sprintf("ALTER SEQUENCE %s INCREMENT BY %d", s.Sequence, s.Modulus)); err != nil {
		return err
	}
	var last int64
	if err := tx.QueryRow(ctx, "SELECT last_value FROM "+s.Sequence).Scan(&last); err != nil {
		return err
	}
	if last >= s.Next {
		if s.Next = congruent(last, s.Number, s.Modulus); s.Next >= s.most-s.Modulus {
			return fmt.Errorf("it is at %d by now and would have no values left", last)
		}
		s.SQL = s.statement()
	}
	_, err := tx.Exec(ctx, s.SQL)
	return err
}

// mayChange refuses, before anything is done, what the role may not.
func mayChange(steps []Step) error {
	var not []string
	for _, s := range steps {
		if s.SQL != "" && !s.owned {
			not = append(not, s.Sequence)
		}
	}
	if len(not) == 0 {
		return nil
	}
	return fmt.Errorf("only its owner may change sequence %s, and the role in postgres.dsn is not; run GRANT owner TO that role, or have the owner run what pgbridge sequences plan prints", strings.Join(not, ", "))
}
