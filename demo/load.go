package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"
)

const (
	// writersPerNode is more than one, so that commits of one node overtake each other.
	writersPerNode = 2
	// writerPause lets a writer begin a transaction at most this often where there are three nodes: fast enough to be a load,
	// slow enough that three servers and three bridges on two cores keep up and lag means something. More nodes write less
	// often each.
	writerPause = 10 * time.Millisecond
)

// load is the writers of all nodes.
type load struct {
	begun   time.Time
	enough  chan struct{} // closed by rest: no writer begins another transaction
	rest    func()        // may be called again
	end     *time.Timer   // calls rest; nil before endAt
	writers *errgroup.Group
}

// startLoad starts the writers. The context that it returns ends when one of them fails.
func (d *demo) startLoad(ctx context.Context) (*load, context.Context, error) {
	var all []*writer
	for _, n := range d.nodes {
		for range writersPerNode {
			conn, err := n.connect(ctx)
			if err != nil {
				return nil, ctx, errors.Join(err, closeAll(all))
			}
			all = append(all, &writer{node: n, conn: conn, rnd: rand.New(rand.NewPCG(uint64(len(all)), 0))})
		}
	}
	l := &load{begun: time.Now(), enough: make(chan struct{})}
	l.rest = sync.OnceFunc(func() { close(l.enough) })
	l.writers, ctx = errgroup.WithContext(ctx)
	for _, w := range all {
		l.writers.Go(func() error { return w.run(ctx, writerPause*time.Duration(max(3, len(d.nodes)))/3, l.enough) })
	}
	return l, ctx, nil
}

func closeAll(writers []*writer) error {
	var errs []error
	for _, w := range writers {
		errs = append(errs, w.conn.Close(context.Background()))
	}
	return errors.Join(errs...)
}

// endAt lets the writers rest from then on, whatever is still going on: a bridge that is slow to catch up
// on a busy machine must not be given ever more to do.
func (l *load) endAt(then time.Time) { l.end = time.AfterFunc(time.Until(then), l.rest) }

// stop lets every writer finish its transaction and joins it. The error is the one that a writer ended
// with, nil if it is just that ctx has ended.
func (l *load) stop() error {
	if l.end != nil {
		l.end.Stop()
	}
	l.rest()
	err := l.writers.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// writer is one session that writes.
type writer struct {
	node *node
	conn *pgx.Conn
	rnd  *rand.Rand
}

func (w *writer) run(ctx context.Context, pause time.Duration, enough <-chan struct{}) (err error) {
	defer func() {
		if closed := w.conn.Close(context.WithoutCancel(ctx)); err != nil || w.node.pg.Pid() != 0 {
			err = errors.Join(err, closed)
		}
	}()
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-enough:
			return nil
		case <-w.node.gone:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		done, err := w.write(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !transient(err) {
			select {
			case <-w.node.gone: // in the middle of it
				return nil
			default:
			}
			return fmt.Errorf("write on node %s: %w", w.node.name, err)
		}
		if err == nil {
			w.node.ledger.note(done)
		}
	}
}

// transient reports whether an application would just try again: class 40 is a rollback for the sake of
// another transaction, such as a deadlock's victim.
func transient(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code[:2] == "40"
}

// write runs one transaction, picked at random: forty of a hundred are orders, fifteen change a shared row.
func (w *writer) write(ctx context.Context) (tally, error) {
	switch n := w.rnd.IntN(100); {
	case n < 15:
		return w.openAccount(ctx)
	case n < 55:
		return w.order(ctx)
	case n < 70:
		return w.move(ctx)
	case n < 80:
		return w.addNote(ctx)
	case n < 88:
		return w.editNote(ctx)
	case n < 97:
		return w.cancelOrder(ctx)
	default:
		return w.removeNote(ctx)
	}
}

var (
	cities   = []string{"Athens", "Berlin", "Cairo", "Delhi", "Lima", "Oslo", "Paris", "Quito", "Tokyo", "Zagreb"}
	articles = []string{"apples", "books", "candles", "drums", "envelopes", "forks", "gloves", "hammers"}
)

func pick(rnd *rand.Rand, from []string) string { return from[rnd.IntN(len(from))] }

func (w *writer) openAccount(ctx context.Context) (tally, error) {
	tag, err := w.conn.Exec(ctx, `INSERT INTO accounts (id, owner, city, changed_on)
		VALUES (gen_random_uuid(), $1, $2, $3)`, fmt.Sprintf("owner %d", w.rnd.IntN(10_000)), pick(w.rnd, cities), w.node.name)
	return tally{inserts: int(tag.RowsAffected())}, err
}

// order writes an order with its lines in one transaction, for the account that was opened last as far as
// this node knows: on another node, mostly, a moment ago. No node may show the order without that
// account, nor without all of its lines.
func (w *writer) order(ctx context.Context) (tally, error) {
	lines := 1 + w.rnd.IntN(4)
	err := pgx.BeginFunc(ctx, w.conn, func(tx pgx.Tx) error {
		var id string
		err := tx.QueryRow(ctx, `INSERT INTO orders (id, account, placed_on, lines)
			SELECT gen_random_uuid(), id, $1, $2 FROM accounts ORDER BY opened_at DESC LIMIT 1
			RETURNING id`, w.node.name, lines).Scan(&id)
		if err != nil {
			return err
		}
		for line := 1; line <= lines; line++ {
			if _, err := tx.Exec(ctx, `INSERT INTO order_lines VALUES ($1, $2, $3, $4::int / 100.0)`,
				id, line, pick(w.rnd, articles), 100+w.rnd.IntN(9900)); err != nil {
				return err
			}
		}
		return nil
	})
	return tally{inserts: 1 + lines}, err
}

// move changes one of the rows that everybody changes.
func (w *writer) move(ctx context.Context) (tally, error) {
	tag, err := w.conn.Exec(ctx, `UPDATE accounts SET city = $1, changed_on = $2
		WHERE id = lpad($3::int::text, 32, '0')::uuid`, pick(w.rnd, cities), w.node.name, 1+w.rnd.IntN(sharedAccounts))
	return tally{updates: int(tag.RowsAffected())}, err
}

func (w *writer) addNote(ctx context.Context) (tally, error) {
	tag, err := w.conn.Exec(ctx, `INSERT INTO notes (id, author, body) VALUES (gen_random_uuid(), $1, $2)`,
		w.node.name, "remember the "+pick(w.rnd, articles))
	return tally{inserts: int(tag.RowsAffected())}, err
}

func (w *writer) editNote(ctx context.Context) (tally, error) {
	tag, err := w.conn.Exec(ctx, `UPDATE notes SET body = $1, edits = edits + 1
		WHERE id = (SELECT id FROM notes WHERE id >= (SELECT gen_random_uuid()) ORDER BY id LIMIT 1)`,
		fmt.Sprintf("forget the %s, says %s", pick(w.rnd, articles), w.node.name))
	return tally{updates: int(tag.RowsAffected())}, err
}

// cancelOrder deletes an order; the foreign key deletes its lines.
func (w *writer) cancelOrder(ctx context.Context) (tally, error) {
	var lines int
	err := w.conn.QueryRow(ctx, `DELETE FROM orders
		WHERE id = (SELECT id FROM orders WHERE id >= (SELECT gen_random_uuid()) ORDER BY id LIMIT 1)
		RETURNING lines`).Scan(&lines)
	if errors.Is(err, pgx.ErrNoRows) {
		return tally{}, nil // none there, or another session was faster
	}
	return tally{deletes: 1 + lines}, err
}

func (w *writer) removeNote(ctx context.Context) (tally, error) {
	tag, err := w.conn.Exec(ctx, `DELETE FROM notes
		WHERE id = (SELECT id FROM notes WHERE id >= (SELECT gen_random_uuid()) ORDER BY id LIMIT 1)`)
	return tally{deletes: int(tag.RowsAffected())}, err
}
