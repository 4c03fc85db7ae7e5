package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
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

// sessionPace is the loadPace of the load on loadSchema, of which many tests need no more than that it goes on.
func sessionPace() time.Duration {
	if pgtest.Soak() {
		return loadPace
	}
	return 2 * loadPace
}

// load writes on every node at once while it runs, and counts what was committed. Beside that an observer on each node looks for
// what must never be seen: a child whose parent is not there.
type load struct {
	t       testing.TB
	c       *cluster.Cluster
	writers int
	seed    int64
	next    []atomic.Int64  // by node: numbers its rows
	commits []atomic.Uint64 // by node
	unsure  []atomic.Uint64 // by node: the connection was lost during COMMIT
	others  map[string]int  // by node: transactions of the test itself
	lacks   int64           // the sessions wait while a node lacks more than that of another one's numbers; 0: they never do
	last    []atomic.Int64  // by node: its last number that was committed
	behind  []atomic.Bool   // by node: it lacks more than that
	placed  bool            // placedTable is written, too
	columns []string        // nodes that have the values of columnedTable, which is written, too; nil: it is not
	parks   string          // the node that may show children before their parents: a row refers to a parked one (docs/parked.md)
	cancel  context.CancelFunc
	wg      sync.WaitGroup
}

// startLoad starts writers sessions on every node. They go on when their server goes away and comes back.
func startLoad(t testing.TB, c *cluster.Cluster, writers int, seed int64) *load {
	l := newLoad(t, c, writers, seed)
	l.start()
	return l
}

// newLoad is startLoad for a load that the test starts.
func newLoad(t testing.TB, c *cluster.Cluster, writers int, seed int64) *load {
	l := &load{cancel: func() {}, others: map[string]int{}, t: t, c: c, writers: writers, seed: seed, next: make([]atomic.Int64, len(c.Nodes)),
		commits: make([]atomic.Uint64, len(c.Nodes)), unsure: make([]atomic.Uint64, len(c.Nodes)), last: make([]atomic.Int64, len(c.Nodes)), behind: make([]atomic.Bool, len(c.Nodes))}
	t.Logf("load seed %d", seed)
	t.Cleanup(func() { l.stop() })
	return l
}

// start starts the load, also again after a stop.
func (l *load) start() {
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	for i, n := range l.c.Nodes {
		for range l.writers {
			if n.Reader() {
				break
			}
			l.seed++
			r := rand.New(rand.NewSource(l.seed))
			l.wg.Go(func() { l.session(ctx, n, i, r) })
		}
		if n.Name != l.parks {
			l.wg.Go(func() { l.observe(ctx, n, i) })
		}
	}
}

// stop ends the load and waits for its sessions.
func (l *load) stop() {
	l.cancel()
	l.wg.Wait()
}

// orphansSQL counts the children without parents.
const orphansSQL = `SELECT count(*) FROM child c WHERE NOT EXISTS (SELECT FROM parent p WHERE p.id = c.parent)`

// observed is how often an observer looks.
const observed = 200 * time.Millisecond

// observe looks for children without parents, which nothing ever deletes, and at how far its node is behind, until ctx ends.
func (l *load) observe(ctx context.Context, n *cluster.Node, i int) {
	l.connected(ctx, n, observed, func(conn *pgx.Conn) {
		behind := false
		for j, other := range l.c.Nodes {
			var has int64
			if last := l.last[j].Load(); l.lacks > 0 && conn.QueryRow(ctx, `SELECT COALESCE(max(n), 0) FROM entry WHERE node = $1`, other.Name).Scan(&has) == nil {
				behind = behind || last-has > l.lacks
			}
		}
		l.behind[i].Store(behind)
		var orphans int
		err := conn.QueryRow(ctx, orphansSQL).Scan(&orphans)
		if err == nil && orphans > 0 {
			l.t.Errorf("node %s shows %d children without parents", n.Name, orphans)
		}
	})
}

// session writes.
func (l *load) session(ctx context.Context, n *cluster.Node, i int, r *rand.Rand) {
	l.connected(ctx, n, sessionPace(), func(conn *pgx.Conn) {
		if !l.waits() {
			l.transaction(conn, n.Name, i, r)
		}
	})
}

// waits reports whether a node is behind.
func (l *load) waits() bool {
	for i := range l.behind {
		if l.behind[i].Load() {
			return true
		}
	}
	return false
}

// connected does something in turn on one connection, and on another one when it is lost, until ctx ends.
func (l *load) connected(ctx context.Context, n *cluster.Node, every time.Duration, do func(*pgx.Conn)) {
	for ctx.Err() == nil {
		conn, err := pgx.Connect(ctx, n.DSN)
		if err != nil {
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		pace := time.NewTicker(every)
		for ctx.Err() == nil && !conn.IsClosed() {
			do(conn)
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
func (l *load) transaction(conn *pgx.Conn, node string, i int, r *rand.Rand) {
	next := &l.next[i]
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tx, err := conn.Begin(ctx)
	if err != nil {
		return
	}
	defer tx.Rollback(ctx)
	for range 1 + r.Intn(3) {
		sql, args := randomWrite(node, r, next)
		if l.placed && r.Intn(4) == 0 {
			sql, args = randomPlaced(node, r)
		}
		if l.columns != nil && r.Intn(4) == 0 {
			sql, args = randomColumned(node, slices.Contains(l.columns, node), r)
		}
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
		l.last[i].Store(n)
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

// placedTable is a table of whose rows only some nodes have some, by topology.rows.
const placedTable = `
CREATE TABLE placed (part int, id int, v text, big text, PRIMARY KEY (part, id));
ALTER TABLE placed REPLICA IDENTITY FULL;
`

// placedParts is how many values its first column has.
const placedParts = 4

// randomPlaced writes rows of placedTable, wherever they belong, and takes them from some nodes to others, with large values that this leaves
// unchanged.
func randomPlaced(node string, r *rand.Rand) (string, []any) {
	part, id := r.Intn(placedParts), r.Intn(20)
	switch r.Intn(10) {
	case 0, 1, 2:
		return `INSERT INTO placed VALUES ($1, $2, $3, (SELECT string_agg(md5($3 || g), '') FROM generate_series(1, 100) g)) ON CONFLICT (part, id) DO UPDATE SET v = EXCLUDED.v`,
			[]any{part, id, fmt.Sprint(node, r.Intn(1000))}
	case 3, 4:
		return `UPDATE placed SET v = $1 WHERE id % 10 = $2`, []any{node, r.Intn(10)}
	case 5:
		return `DELETE FROM placed WHERE part = $1 AND id = $2`, []any{part, id}
	case 6:
		return `INSERT INTO placed SELECT p, i, $1 FROM generate_series(0, 3) p, generate_series(100, 120) i ON CONFLICT (part, id) DO UPDATE SET v = EXCLUDED.v`, []any{node}
	}
	return `UPDATE placed SET part = $1 WHERE part = $2 AND id = $3 AND NOT EXISTS (SELECT FROM placed WHERE part = $1 AND id = $3)`, []any{part, r.Intn(placedParts), id}
}

// columnedTable is a merged table of whose columns some have values that only some nodes have, by topology.columns, under columnedRules.
const columnedTable = `
CREATE TABLE columned (id int PRIMARY KEY, name text, n int CHECK (n <= 20), secret text, big text, note text);
ALTER TABLE columned REPLICA IDENTITY FULL;
`

const columnedRules = "*.columned: name=last_writer_wins, n=delta, (secret, big)=last_writer_wins, note=max, .deletes=update_wins"

func columnsAt(nodes []string) string {
	at := strings.Join(nodes, " ")
	return "public.columned.secret=" + at + ",public.columned.big=" + at + ",public.columned.note=" + at
}

// randomColumned writes rows of columnedTable, with large values that many writes leave unchanged; at nodes that are not to have the values, such as begin
// with stray.
func randomColumned(node string, has bool, r *rand.Rand) (string, []any) {
	id, value := r.Intn(20), fmt.Sprint(node, r.Intn(1000))
	if !has {
		value = "stray " + value
	}
	const large = `(SELECT string_agg(md5($2 || g), '') FROM generate_series(1, 100) g)`
	switch r.Intn(10) {
	case 0, 1:
		return `INSERT INTO columned VALUES ($1, $2, 1, $2, CASE WHEN $2 LIKE 'stray%' THEN $2 ELSE ` + large + ` END, NULL) ON CONFLICT (id) DO UPDATE SET n = LEAST(columned.n + 1, 20)`, []any{id, value}
	case 2, 3:
		return `UPDATE columned SET secret = $2 WHERE id % 10 = $1`, []any{id % 10, value}
	case 4:
		return `UPDATE columned SET big = CASE WHEN $2 LIKE 'stray%' THEN $2 ELSE ` + large + ` END WHERE id = $1`, []any{id, value}
	case 5:
		return `UPDATE columned SET note = CASE WHEN $2 LIKE 'stray%' THEN $2 ELSE left(concat(note, ' ', $2), 60) END, n = LEAST(n + 1, 20) WHERE id = $1`, []any{id, value}
	case 6:
		return `DELETE FROM columned WHERE id = $1 AND $2 <> ''`, []any{id, value}
	case 7:
		return `UPDATE columned SET id = $1 WHERE id = (SELECT min(id) FROM columned WHERE name < $2) AND NOT EXISTS (SELECT FROM columned WHERE id = $1)`, []any{id, value}
	case 8:
		return `INSERT INTO columned (id, name) SELECT i, $2 FROM generate_series(100 + $1, 120) i ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name`, []any{id, value}
	}
	return `UPDATE columned SET name = $2, n = LEAST(n + 1, 20) WHERE id % 5 = $1`, []any{id % 5, value}
}

// requireColumned fails if values of columnedTable are where they are not to be.
func requireColumned(t *testing.T, c *cluster.Cluster, nodes []string) {
	t.Helper()
	for _, n := range c.Nodes {
		stray := "secret LIKE 'stray%' OR big LIKE 'stray%' OR note LIKE '%stray%'"
		if !slices.Contains(nodes, n.Name) {
			stray = "secret NOT LIKE 'stray%' OR big NOT LIKE 'stray%' OR note NOT LIKE 'stray%'"
		}
		if got := n.Query(`SELECT id || ' ' || concat_ws(', ', secret, left(big, 20), note) FROM columned WHERE ` + stray); len(got) > 0 {
			t.Errorf("node %s has values of others: %q", n.Name, got)
		}
	}
}

// randomPlaces are places of placedTable's rows: of each part other ones, and two nodes that have all, so that each node finds one that can give
// it what it lacks.
func randomPlaces(nodes int, r *rand.Rand) (places string, whole []string) {
	var lines []string
	names := r.Perm(nodes)
	for part := range placedParts - 1 {
		line := fmt.Sprintf("public.placed.part=%d:", part)
		if part == 0 && r.Intn(2) == 0 {
			line = "public.placed.part=*:"
		}
		for i, n := range names {
			if i < 2 || r.Intn(nodes) == 0 || i == 2+part {
				line += " " + string(rune('a'+n))
			}
		}
		lines = append(lines, line)
	}
	for _, n := range names[:2] {
		whole = append(whole, string(rune('a'+n)))
	}
	return strings.Join(lines, ","), whole
}
