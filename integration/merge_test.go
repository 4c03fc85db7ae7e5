package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// mergedSchema has a table for each way of merging, and one that is merged in all ways at once.
const mergedSchema = `
CREATE TABLE counter (id int PRIMARY KEY, n bigint NOT NULL);
CREATE TABLE doc (id int PRIMARY KEY, body text);
CREATE TABLE tagged (id int PRIMARY KEY, tags text[]);
CREATE TABLE setting (id int PRIMARY KEY, j jsonb);
CREATE TABLE person (id int PRIMARY KEY, name text, mail text, street text, town text);
CREATE TABLE price (id int PRIMARY KEY, amount numeric(10,2), note text);
CREATE TABLE bid (id int PRIMARY KEY, who text);
CREATE TABLE mixed (id int PRIMARY KEY, hits int, best int, worst int, tags text[], j jsonb, body text, a text, b text);
CREATE TABLE kept (id int PRIMARY KEY, v text);
CREATE TABLE removed (id int PRIMARY KEY, v text);
CREATE TABLE account (id int PRIMARY KEY, balance int CHECK (balance >= 0), lent int, CHECK (lent <= 10 OR balance > 0));
ALTER TABLE account REPLICA IDENTITY FULL;
INSERT INTO account SELECT i, 10, 0 FROM generate_series(1, 4) i;
CREATE TABLE wiped (id int PRIMARY KEY, n int, v text);
ALTER TABLE wiped REPLICA IDENTITY FULL;
ALTER TABLE counter REPLICA IDENTITY FULL; ALTER TABLE doc REPLICA IDENTITY FULL; ALTER TABLE tagged REPLICA IDENTITY FULL;
ALTER TABLE setting REPLICA IDENTITY FULL; ALTER TABLE person REPLICA IDENTITY FULL; ALTER TABLE price REPLICA IDENTITY FULL;
ALTER TABLE bid REPLICA IDENTITY FULL; ALTER TABLE mixed REPLICA IDENTITY FULL; ALTER TABLE kept REPLICA IDENTITY FULL;
ALTER TABLE removed REPLICA IDENTITY FULL;
INSERT INTO counter SELECT i, 0 FROM generate_series(1, 10) i;
INSERT INTO doc SELECT i, 'the quick brown fox' FROM generate_series(1, 4) i;
INSERT INTO tagged SELECT i, '{red,green}' FROM generate_series(1, 4) i;
INSERT INTO setting SELECT i, '{"a": 1, "deep": {"x": 1}}' FROM generate_series(1, 4) i;
INSERT INTO person SELECT i, 'n', 'm', 's', 't' FROM generate_series(1, 6) i;
INSERT INTO price SELECT i, 1, '' FROM generate_series(1, 6) i;
INSERT INTO bid SELECT i, '' FROM generate_series(1, 6) i;
INSERT INTO mixed SELECT i, 0, 0, 0, '{}', '{}', '', '', '' FROM generate_series(1, 4) i;
INSERT INTO kept SELECT i, '' FROM generate_series(1, 6) i;
INSERT INTO removed SELECT i, '' FROM generate_series(1, 6) i;
`

// mergedConfig is how mergedSchema is merged.
var mergedConfig = map[string]string{
	"conflict.priority": "c,a",
	"conflict.tables": `*.counter: n=delta; *.doc: body=text_merge; *.tagged: tags=set; *.setting: j=json_merge; ` +
		`*.person: "*"=last_writer_wins, (street, town)=last_writer_wins; *.price: .rows=origin_priority; *.bid: .rows=first_writer_wins; ` +
		`*.mixed: hits=delta, best=max, worst=min, tags=set, j=json_merge, body=text_merge; ` +
		`*.kept: .deletes=update_wins; *.removed: .deletes=delete_wins; *.wiped: n=delta; *.account: balance=delta, lent=delta`,
}

// mergedWrite returns a random write of a merged table. Values of one node never repeat.
func mergedWrite(node string, r *rand.Rand, next *atomic.Int64) (string, []any) {
	n := next.Add(1)
	value := fmt.Sprintf("%s%d", node, n)
	at := 1 + r.Intn(4)
	letters := "abcdefghij"[r.Intn(8):]
	switch r.Intn(29) {
	case 0, 1, 2:
		return `UPDATE doc SET body = left(body, $2) || $3 || substr(body, $2 + 1) WHERE id = $1`, []any{at, r.Intn(20), letters[:1+r.Intn(2)]}
	case 3:
		return `UPDATE doc SET body = left(body, $2) || substr(body, $2 + 1 + $3) WHERE id = $1`, []any{at, r.Intn(20), 1 + r.Intn(3)}
	case 4, 5:
		return `UPDATE tagged SET tags = tags || $2 WHERE id = $1`, []any{at, []string{"t" + strconv.Itoa(r.Intn(12))}}
	case 6:
		return `UPDATE tagged SET tags = array_remove(tags, $2) WHERE id = $1`, []any{at, "t" + strconv.Itoa(r.Intn(12))}
	case 7, 8:
		return `UPDATE setting SET j = jsonb_set(j, $2, to_jsonb($3::text)) WHERE id = $1`,
			[]any{at, [][]string{{"a"}, {"b"}, {"deep", "x"}, {"deep", "y"}, {"c"}}[r.Intn(5)], value}
	case 9:
		return `UPDATE setting SET j = j #- $2 WHERE id = $1`, []any{at, [][]string{{"a"}, {"b"}, {"deep", "x"}, {"deep"}, {"c"}}[r.Intn(5)]}
	case 10:
		return `UPDATE person SET ` + []string{"name", "mail", "street", "town"}[r.Intn(4)] + ` = $2 WHERE id = $1`, []any{1 + r.Intn(6), value}
	case 11:
		return `UPDATE price SET amount = $2, note = $3 WHERE id = $1`, []any{1 + r.Intn(6), r.Intn(1000), value}
	case 12:
		return `UPDATE bid SET who = $2 WHERE id = $1`, []any{1 + r.Intn(6), value}
	case 13:
		return `UPDATE mixed SET hits = hits + $2, best = greatest(best, $3), worst = least(worst, $3) WHERE id = $1`, []any{at, r.Intn(5), r.Intn(1000) - 500}
	case 14:
		return `UPDATE mixed SET best = $2, tags = tags || $3, body = body || $4 WHERE id = $1`,
			[]any{at, r.Intn(1000), []string{"t" + strconv.Itoa(r.Intn(12))}, letters[:1]}
	case 15:
		return `UPDATE mixed SET a = $2, j = j || jsonb_build_object($3::text, $2::text) WHERE id = $1`, []any{at, value, letters[:1]}
	case 16:
		return `DELETE FROM mixed WHERE id = $1`, []any{at}
	case 17:
		return `INSERT INTO mixed VALUES ($1, 1, 1, 1, '{new}', '{"new": 1}', $2, $2, $2) ON CONFLICT (id) DO UPDATE SET b = EXCLUDED.b`, []any{at, value}
	case 18:
		return `INSERT INTO ` + []string{"kept", "removed", "person"}[r.Intn(3)] + ` VALUES ($1, $2) ON CONFLICT DO NOTHING`, []any{1 + r.Intn(6), value}
	case 19:
		return `UPDATE ` + []string{"kept", "removed"}[r.Intn(2)] + ` SET v = $2 WHERE id = $1`, []any{1 + r.Intn(6), value}
	case 20:
		return `DELETE FROM ` + []string{"kept", "removed", "person", "bid"}[r.Intn(4)] + ` WHERE id = $1`, []any{1 + r.Intn(6)}
	case 21:
		return `INSERT INTO wiped VALUES ($1, 1, $2) ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v`, []any{1 + r.Intn(8), value}
	case 22:
		return `UPDATE wiped SET n = n + 1, v = $2 WHERE id = $1`, []any{1 + r.Intn(8), value}
	case 23:
		if r.Intn(8) == 0 {
			return `TRUNCATE wiped`, nil
		}
		return `DELETE FROM wiped WHERE id = $1`, []any{1 + r.Intn(8)}
	case 24, 25, 26: // merged, it may violate a CHECK
		return `UPDATE account SET balance = balance - $2, lent = lent + $3 WHERE id = $1 AND balance >= $2 AND (lent + $3 <= 10 OR balance > $2)`,
			[]any{at, r.Intn(12) - 3, r.Intn(9) - 4}
	case 27:
		return `UPDATE ` + []string{"kept", "person", "mixed"}[r.Intn(3)] + ` SET id = $2 WHERE id = $1`, []any{1 + r.Intn(6), 1 + r.Intn(6)}
	}
	return `UPDATE mixed SET hits = NULL, body = NULL WHERE id = $1 AND $2`, []any{at, r.Intn(6) == 0}
}

// mergedLoad writes on every node until d has passed: counters, of which it knows the sum, and everything else at random.
func mergedLoad(t *testing.T, c *cluster.Cluster, writers int, d time.Duration) (sum map[int]int64) {
	s := seed(t)
	t.Logf("load seed %d", s)
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	sum = map[int]int64{}
	for i, n := range c.Nodes {
		var next atomic.Int64
		for w := range writers {
			r := rand.New(rand.NewSource(s + int64(1000*i+w)))
			wg.Go(func() {
				conn, err := pgx.Connect(context.Background(), n.DSN)
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close(context.Background())
				pace := time.NewTicker(loadPace)
				defer pace.Stop()
				for ctx.Err() == nil {
					id, by := 1+r.Intn(10), int64(r.Intn(7)-2)
					err := pgx.BeginFunc(context.Background(), conn, func(tx pgx.Tx) error {
						if _, err := tx.Exec(context.Background(), `UPDATE counter SET n = n + $2 WHERE id = $1`, id, by); err != nil {
							return err
						}
						for range 1 + r.Intn(2) {
							sql, args := mergedWrite(n.Name, r, &next)
							if _, err := tx.Exec(context.Background(), sql, args...); err != nil {
								return err
							}
						}
						return nil
					})
					var pg *pgconn.PgError
					switch {
					case err == nil:
						mu.Lock()
						sum[id] += by
						mu.Unlock()
					case errors.As(err, &pg) && (pg.Code == "40P01" || pg.Code == "23505"): // rolled back
					default:
						t.Errorf("write on node %s: %v", n.Name, err)
						return
					}
					select {
					case <-pace.C:
					case <-ctx.Done():
					}
				}
			})
		}
	}
	wg.Wait()
	return sum
}

// TestMergedTablesConverge: three nodes write the same few rows of merged tables at once, whole and cut off from each other,
// and end equal; no increment is lost.
func TestMergedTablesConverge(t *testing.T) {
	t.Parallel()
	all := [][]int{{15, 18}}
	if pgtest.Soak() {
		all = [][]int{{18}, {15}}
	}
	for _, majors := range all {
		t.Run(fmt.Sprint(majors), func(t *testing.T) {
			t.Parallel()
			c := cluster.New(t, cluster.Options{Nodes: 3, Majors: majors, Schema: mergedSchema, Config: mergedConfig})
			sum := map[int]int64{}
			add := func(more map[int]int64) {
				for id, by := range more {
					sum[id] += by
				}
			}
			d := 4 * time.Second
			if pgtest.Soak() {
				d = time.Minute
			}
			var restarts sync.WaitGroup
			restarts.Go(func() {
				c.Nodes[2].Stop()
				c.Nodes[2].Start()
			})
			add(mergedLoad(t, c, 2, d))
			restarts.Wait()
			c.WaitConverged()
			for _, l := range c.Nodes[0].Links {
				l.Cut()
			}
			c.Node("b").Links["c"].Cut()
			add(mergedLoad(t, c, 2, d/2))
			for _, n := range c.Nodes {
				for _, l := range n.Links {
					l.Heal()
				}
			}
			add(mergedLoad(t, c, 2, d/2))
			c.WaitConverged()
			requireSums(t, c, sum)
			for _, n := range c.Nodes {
				t.Logf("node %s: %s in the journal, %s conflicts", n.Name, n.Value(`SELECT count(*) FROM pgbridge.journal`), n.Value(`SELECT count(*) FROM pgbridge.conflict`))
			}
		})
	}
}

// TestMergedTablesSurviveKills: bridges are killed while all nodes write merged tables. What the journal knows and what the
// rows show stay together.
func TestMergedTablesSurviveKills(t *testing.T) {
	t.Parallel()
	pgtest.Long(t)
	kills := 6
	if pgtest.Soak() {
		kills = 60
	}
	c := cluster.New(t, cluster.Options{Nodes: 3, Schema: mergedSchema, Config: mergedConfig, Processes: true})
	r := rand.New(rand.NewSource(seed(t)))
	var killing sync.WaitGroup
	killing.Go(func() {
		for i := range kills {
			moment, cancel := context.WithTimeout(context.Background(), time.Duration(r.Intn(1200))*time.Millisecond)
			<-moment.Done() // the random moment
			cancel()
			n := c.Nodes[r.Intn(len(c.Nodes))]
			t.Logf("kill %d: bridge of %s", i, n.Name)
			n.Kill()
			n.Launch()
		}
	})
	sum := mergedLoad(t, c, 2, time.Duration(kills)*700*time.Millisecond)
	killing.Wait()
	for _, n := range c.Nodes {
		n.Supervise()
	}
	c.WaitConverged()
	requireSums(t, c, sum)
}

// requireSums checks the counters against what was added to them.
func requireSums(t *testing.T, c *cluster.Cluster, sum map[int]int64) {
	t.Helper()
	for _, n := range c.Nodes {
		for id := range 10 {
			if got := n.Value(`SELECT n FROM counter WHERE id = $1`, id+1); got != strconv.FormatInt(sum[id+1], 10) {
				t.Errorf("counter %d on node %s is %s, the increments sum up to %d", id+1, n.Name, got, sum[id+1])
			}
		}
	}
}

// TestPoliciesThatDoNotFit: what is wrong with a policy is said when the bridge starts, with the mend.
func TestPoliciesThatDoNotFit(t *testing.T) {
	t.Parallel()
	n := oneNode(t, `CREATE TABLE stock (id int PRIMARY KEY, n int, f float8, v text);
		CREATE TABLE bare (id int PRIMARY KEY, n int);
		CREATE FUNCTION volatile_one(jsonb, jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
		ALTER TABLE stock REPLICA IDENTITY FULL;`)
	for policy, words := range map[string][]string{
		"*.bare: n=delta":                               {"bare", "old values", "REPLICA IDENTITY FULL"},
		"*.stock: quantity=delta":                       {"stock", `"quantity"`, "correct the name"},
		"*.stock: f=delta":                              {"stock", `"f"`, "numeric"},
		"*.stock: v=json_merge":                         {"stock", `"v"`, "json"},
		"*.stock: id=delta":                             {"stock", `"id"`, "key"},
		"*.stock: n=delta, n=max":                       {"stock", `"n"`, "twice"},
		`*.stock: .rows="function public.missing"`:      {"stock", "public.missing", "create it"},
		`*.stock: .rows="function public.volatile_one"`: {"stock", "public.volatile_one", "IMMUTABLE"},
	} {
		wantRefusal(t, run(t, n, map[string]string{"conflict.tables": policy}), words...)
	}
	if err := run(t, n, map[string]string{"conflict.tables": "*.stock: n=delta, v=text_merge"}); err != nil {
		t.Errorf("a policy that fits is refused: %v", err)
	}
}

// TestHotMergedRow: a row that local sessions write without a pause takes in what others add.
func TestHotMergedRow(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2, Schema: mergedSchema, Config: map[string]string{"conflict.tables": "*.counter: n=delta"}})
	ctx, cancel := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	var local atomic.Int64
	for range 2 {
		busy.Go(func() {
			conn, err := pgx.Connect(context.Background(), c.Nodes[1].DSN)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close(context.Background())
			for ctx.Err() == nil {
				if _, err := conn.Exec(context.Background(), `UPDATE counter SET n = n + 1 WHERE id = 1`); err != nil {
					t.Error(err)
					return
				}
				local.Add(1)
			}
		})
	}
	for range 20 {
		c.Nodes[0].Exec(`UPDATE counter SET n = n + 1000000 WHERE id = 1`)
	}
	c.Nodes[0].Exec(`INSERT INTO counter VALUES (99, 0)`)
	for c.Nodes[1].Value(`SELECT count(*) FROM counter WHERE id = 99`) != "1" { // in order, so behind the others
		if t.Failed() || ctx.Err() != nil {
			break
		}
	}
	cancel()
	busy.Wait()
	c.WaitConverged()
	if got, want := c.Nodes[0].Value(`SELECT n FROM counter WHERE id = 1`), strconv.FormatInt(20*1000000+local.Load(), 10); got != want {
		t.Errorf("the counter is %s, the increments sum up to %s", got, want)
	}
}

// TestJournalIsCaughtUpAtAStart: what an earlier life of the bridge has published and did not come to put into the journal is
// there before others are merged with it, also if nobody writes here any more.
func TestJournalIsCaughtUpAtAStart(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2, Schema: mergedSchema, Config: map[string]string{"conflict.tables": "*.counter: n=delta"}})
	a, b := c.Nodes[0], c.Nodes[1]
	a.Links["b"].Cut() // what a has not seen stays in b's stream
	seq := b.Status().Seq
	b.Exec(`UPDATE counter SET n = n + 1 WHERE id = 1`)
	b.AwaitStatus(func(r *cluster.Report) bool { return r.Publisher.DurableSeq > seq })
	b.Stop()
	b.Exec(`UPDATE pgbridge.journal_state SET seq = 0, stamp = 0`) // as a kill at the wrong moment leaves it
	b.Start()
	a.Exec(`UPDATE counter SET n = n + 10 WHERE id = 1`)
	b.AwaitStatus(func(*cluster.Report) bool { return b.Value(`SELECT n FROM counter WHERE id = 1`) == "11" })
	a.Links["b"].Heal()
	c.WaitConverged()
}

// TestTruncateMeetsAnOpenWrite: a local session that has changed a row, and not committed yet, when another node's TRUNCATE
// comes, does not save that row on its own node alone, nor those behind it.
func TestTruncateMeetsAnOpenWrite(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2, Schema: mergedSchema, Config: map[string]string{"conflict.tables": "*.wiped: n=delta"}})
	a, b := c.Nodes[0], c.Nodes[1]
	a.Exec(`INSERT INTO wiped SELECT i, 1, 'old' FROM generate_series(1, 20) i`)
	c.WaitConverged()
	user, err := pgtest.Connect(t, b.DSN).Begin(t.Context())
	if err == nil {
		_, err = user.Exec(t.Context(), `UPDATE wiped SET v = 'new' WHERE id = 10`)
	}
	if err != nil {
		t.Fatal(err)
	}
	a.Exec(`TRUNCATE wiped`)
	b.Await(`SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgbridge % apply %' AND wait_event_type = 'Lock'
		AND datname = current_database()`, "1")
	if err := user.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.WaitConverged()
	if rows := a.Query(`SELECT id FROM wiped`); len(rows) > 0 {
		t.Errorf("rows %s are left of what was truncated", rows)
	}
}
