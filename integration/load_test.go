package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/integration/cluster"
)

// loadSchema is what the random load writes to: accounts that everybody updates, entries that only grow,
// parents with children, and a small hot table whose rows come and go.
const loadSchema = `
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL DEFAULT 0, note text);
CREATE TABLE entry (node text, n bigint, account int, amount bigint, PRIMARY KEY (node, n));
CREATE TABLE parent (id text PRIMARY KEY, v int);
CREATE TABLE child (id text PRIMARY KEY, parent text REFERENCES parent, v int);
CREATE TABLE hot (id int PRIMARY KEY, v text, big text);
INSERT INTO account SELECT i, 0 FROM generate_series(1, 200) i;
`

// loadPace is the least time from one transaction of a session to its next: a load that takes all of the
// machine leaves nothing for what is to be tested, and shows only how long a backlog lasts.
const loadPace = 10 * time.Millisecond

// load writes on every node at once until it is stopped, and counts what was committed.
type load struct {
	t       testing.TB
	seed    int64
	commits []atomic.Uint64 // by node
	unsure  []atomic.Uint64 // by node: the connection was lost during COMMIT
	cancel  context.CancelFunc
	wg      sync.WaitGroup
}

// startLoad starts writers sessions on every node. patient ones go on when their server goes away.
func startLoad(t testing.TB, c *cluster.Cluster, writers int, seed int64) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{t: t, seed: seed, cancel: cancel,
		commits: make([]atomic.Uint64, len(c.Nodes)), unsure: make([]atomic.Uint64, len(c.Nodes))}
	t.Logf("load seed %d", seed)
	t.Cleanup(l.stop)
	for i, n := range c.Nodes {
		var next atomic.Int64
		for w := range writers {
			r := rand.New(rand.NewSource(seed + int64(1000*i+w)))
			l.wg.Go(func() { l.session(ctx, n, i, r, &next) })
		}
	}
	return l
}

// stop ends the load and waits for its sessions.
func (l *load) stop() {
	l.cancel()
	l.wg.Wait()
}

// session writes on one connection, and opens another one when it is lost.
func (l *load) session(ctx context.Context, n *cluster.Node, i int, r *rand.Rand, next *atomic.Int64) {
	for ctx.Err() == nil {
		conn, err := pgx.Connect(ctx, n.DSN)
		if err != nil {
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		pace := time.NewTicker(loadPace)
		for ctx.Err() == nil && !conn.IsClosed() {
			l.transaction(conn, n.Name, i, r, next)
			select {
			case <-pace.C:
			case <-ctx.Done():
			}
		}
		pace.Stop()
		conn.Close(context.Background())
	}
}

// transaction runs one random transaction to its end, also when the load is being stopped: a commit that
// is cancelled could not be counted.
func (l *load) transaction(conn *pgx.Conn, node string, i int, r *rand.Rand, next *atomic.Int64) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tx, err := conn.Begin(ctx)
	if err != nil {
		return
	}
	defer tx.Rollback(ctx)
	for range 1 + r.Intn(3) {
		sql, args := randomWrite(node, r, next)
		if _, err := tx.Exec(ctx, sql, args...); err != nil {
			return // a deadlock or a unique violation rolls it all back
		}
	}
	n := next.Add(1)
	if _, err := tx.Exec(ctx, `INSERT INTO entry VALUES ($1, $2, $3, $4)`, node, n, 1+r.Intn(200), r.Intn(100)); err != nil {
		return
	}
	err = tx.Commit(ctx)
	var pg *pgconn.PgError
	switch {
	case err == nil:
		l.commits[i].Add(1)
	case !errors.As(err, &pg) && !errors.Is(err, pgx.ErrTxCommitRollback):
		l.unsure[i].Add(1)
	}
}

func randomWrite(node string, r *rand.Rand, next *atomic.Int64) (string, []any) {
	switch c := r.Intn(100); {
	case c < 40:
		return `UPDATE account SET balance = balance + $1, note = $2 WHERE id = $3`, []any{r.Intn(100), node, 1 + r.Intn(200)}
	case c < 55:
		return `INSERT INTO hot VALUES ($1, $2, repeat($2, 10)) ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v`, []any{r.Intn(50), fmt.Sprint(node, r.Intn(1000))}
	case c < 65:
		return `DELETE FROM hot WHERE id = $1`, []any{r.Intn(50)}
	case c < 75:
		return `UPDATE hot SET v = $1 WHERE id % 10 = $2`, []any{node, r.Intn(10)}
	case c < 78:
		return `UPDATE hot SET id = $1 WHERE id = $2 AND NOT EXISTS (SELECT FROM hot WHERE id = $1)`, []any{r.Intn(50), r.Intn(50)}
	case c < 85:
		return `INSERT INTO parent VALUES ($1, 1) ON CONFLICT DO NOTHING`, []any{fmt.Sprint(node, next.Add(1))}
	case c < 95:
		return `INSERT INTO child SELECT $1, id, 1 FROM parent ORDER BY random() LIMIT 1`, []any{fmt.Sprint(node, next.Add(1))}
	default:
		return `INSERT INTO hot SELECT i, $1 FROM generate_series(100, 140) i ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v`, []any{node}
	}
}
