package integration

import (
	"context"
	"fmt"
	"math/rand"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// verifySchema is what is compared beside the load's tables: rows of every size, and keys of several columns, of text.
const verifySchema = `
CREATE TABLE item (id int PRIMARY KEY, a text NOT NULL, b numeric, at timestamptz NOT NULL DEFAULT now(), big text);
CREATE TABLE tagged (tag text, n bigint, v jsonb, PRIMARY KEY (tag, n));
`

// plant runs statements on a node in a session that is not replicated: its origin has a name that a bridge takes for one of its own.
func plant(t *testing.T, cluster string, n *cluster.Node, statements ...string) {
	t.Helper()
	conn := pgtest.Connect(t, n.DSN)
	name := fmt.Sprintf("pgb_%s_%s_planted", cluster, n.Name)
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	exec(`SELECT pg_replication_origin_create($1) WHERE NOT EXISTS (SELECT FROM pg_replication_origin WHERE roname = $1)`, name)
	exec(`SELECT pg_replication_origin_session_setup($1)`, name)
	for _, sql := range statements {
		exec(sql)
	}
	exec(`SELECT pg_replication_origin_session_reset()`)
}

// verify compares node a with all others.
func verify(t *testing.T, n *cluster.Node, o bridge.VerifyOptions) *bridge.VerifyReport {
	t.Helper()
	o.Limit = 100
	r, err := bridge.Verify(t.Context(), n.Load(), o, func(bridge.VerifyProgress) {})
	if err != nil {
		t.Fatalf("compare: %v\n%s\n%+v", err, n.LogTail(), n.Status().Links)
	}
	for _, s := range r.Skipped {
		t.Errorf("%s was not compared: %s", s.Table, s.Reason)
	}
	return r
}

// differing lists the rows that were found, as "table key".
func differing(r *bridge.VerifyReport) []string {
	rows := []string{}
	for _, d := range r.Found {
		rows = append(rows, d.Table+" "+d.Key)
	}
	slices.Sort(rows)
	return rows
}

// untouched are the rows of item and tagged that nobody writes to but the test.
const untouched = 97

// startItems has one session on each node write to item and tagged until the load stops.
func startItems(l *load, rows int) {
	ctx, cancel := context.WithCancel(context.Background())
	before := l.cancel
	l.cancel = func() { cancel(); before() }
	for _, n := range l.c.Nodes {
		l.seed++
		r := rand.New(rand.NewSource(l.seed))
		l.wg.Go(func() {
			l.connected(ctx, n, 2*loadPace, func(conn *pgx.Conn) {
				id := 1 + r.Intn(rows)
				if id%untouched == 0 || l.waits() {
					return
				}
				sql := `UPDATE item SET b = b + 1, at = clock_timestamp() WHERE id = $1`
				switch r.Intn(8) {
				case 0:
					sql = `DELETE FROM item WHERE id = $1`
				case 1:
					sql = `INSERT INTO item VALUES ($1, 'again', 1) ON CONFLICT (id) DO UPDATE SET big = repeat('x', 3000)`
				case 2, 3:
					sql = `UPDATE tagged SET v = v || '{"more": 1}' WHERE n = $1`
				}
				_, _ = conn.Exec(context.Background(), sql, id)
			})
		})
	}
}

// TestVerifyFindsWhatWasPlanted: three nodes with conflicts under load are compared while they are written. Nothing is found as long
// as nothing was planted; then each of 20 rows is, nothing else, and the repair makes the nodes equal and raises no conflict.
func TestVerifyFindsWhatWasPlanted(t *testing.T) {
	t.Parallel()
	rows, runs := 20_000, 2
	if pgtest.Soak() {
		rows, runs = 1_000_000, 50
	}
	c := cluster.New(t, cluster.Options{Nodes: 3, Majors: pgtest.Versions(t), Schema: loadSchema + verifySchema})
	a, b, other := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	a.Exec(`INSERT INTO item SELECT i, 'row ' || i, i, now(), CASE WHEN i % 50 = 0 THEN (SELECT string_agg(md5((i * j)::text), '') FROM generate_series(1, 100) j) END
		FROM generate_series(1, $1::int) i`, rows)
	b.Exec(`INSERT INTO tagged SELECT CASE i % 3 WHEN 0 THEN 'Ä' WHEN 1 THEN 'a b' ELSE 'Z' END, i, jsonb_build_object('i', i) FROM generate_series(1, $1::int) i`, rows/10)
	c.WaitConverged()
	s := seed(t)
	l := newLoad(t, c, 1, s)
	if !pgtest.Soak() { // it makes more conflicts than are decided meanwhile, and would wait most of the time
		l.lacks = 20 // looks wait for nodes that are behind
		l.start()
	}
	startItems(l, rows)
	for range runs {
		r := verify(t, c.Nodes[rand.Intn(3)], bridge.VerifyOptions{})
		if r.Differences > 0 {
			t.Fatalf("%d rows are said to differ: %+v", r.Differences, r.Found)
		}
		if r.Rows < int64(rows) {
			t.Errorf("%d rows were compared", r.Rows)
		}
		t.Logf("%d rows of three nodes under load: %.1f s; %d looked at one by one, %d explained, %d unsettled", r.Rows, r.Seconds, looked(r), len(r.Explained), len(r.Unsettled))
	}
	id := func(n int) int { return n * untouched }
	plant(t, c.Name, b,
		fmt.Sprintf(`UPDATE item SET a = 'planted', b = -1, at = '2000-01-01' WHERE id = ANY('{%d,%d,%d}')`, id(1), id(2), id(50)),
		fmt.Sprintf(`UPDATE item SET b = b + 0.0 WHERE id = ANY('{%d,%d}')`, id(3), id(4)), // equal, and not the same
		fmt.Sprintf(`UPDATE item SET big = 'x' || substr(big, 2) WHERE id = %d`, id(100)),
		fmt.Sprintf(`DELETE FROM item WHERE id = ANY('{%d,%d,%d}')`, id(7), id(150), id(8)),
		fmt.Sprintf(`INSERT INTO item VALUES (%d, 'extra'), (%d, 'extra')`, -1, rows+untouched),
		fmt.Sprintf(`UPDATE tagged SET v = 'null' WHERE n = %d`, id(9)))
	plant(t, c.Name, other,
		fmt.Sprintf(`UPDATE item SET at = at + interval '1 microsecond' WHERE id = %d`, id(1)),
		fmt.Sprintf(`DELETE FROM tagged WHERE n = ANY('{%d,%d}')`, id(10), id(11)),
		fmt.Sprintf(`UPDATE item SET b = NULL WHERE id = %d`, id(30)),
		fmt.Sprintf(`DELETE FROM item WHERE id = %d`, id(3)))
	plant(t, c.Name, a,
		fmt.Sprintf(`UPDATE item SET a = a || ' ' WHERE id = ANY('{%d,%d}')`, id(20), id(21)),
		fmt.Sprintf(`DELETE FROM item WHERE id = %d`, id(22)),
		`INSERT INTO tagged VALUES ('', 0, NULL), ('zz', -1, '[]')`)
	want := []string{"public.tagged tag=, n=0", "public.tagged tag=zz, n=-1", "public.item id=-1", fmt.Sprintf("public.item id=%d", rows+untouched)}
	for _, n := range []int{1, 2, 50, 3, 4, 100, 7, 150, 8, 20, 21, 22, 30} {
		want = append(want, fmt.Sprintf("public.item id=%d", id(n)))
	}
	for _, n := range []int{9, 10, 11} {
		tag := other.Value(`SELECT CASE $1::int % 3 WHEN 0 THEN 'Ä' WHEN 1 THEN 'a b' ELSE 'Z' END`, id(n))
		want = append(want, fmt.Sprintf("public.tagged tag=%s, n=%d", tag, id(n)))
	}
	slices.Sort(want)
	r := verify(t, b, bridge.VerifyOptions{})
	if got := differing(r); !slices.Equal(got, want) {
		t.Fatalf("found\n%s\nplanted\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	t.Logf("%d planted rows among %d found in %.1f s", len(want), r.Rows, r.Seconds)
	begun := time.Now()
	r = verify(t, other, bridge.VerifyOptions{Repair: true})
	if got := differing(r); !slices.Equal(got, want) || r.Mended != len(want) {
		t.Errorf("found\n%s\nand mended %d of %d: %+v", strings.Join(got, "\n"), r.Mended, len(want), r.Found)
	}
	t.Logf("found and mended in %s", time.Since(begun).Round(time.Millisecond))
	if r := verify(t, a, bridge.VerifyOptions{}); r.Differences > 0 {
		t.Errorf("after the repair %d rows differ: %+v", r.Differences, r.Found)
	}
	l.stop()
	c.WaitConverged()
	for _, n := range c.Nodes {
		if got := n.Query(`SELECT kind, local_row, remote_row FROM pgbridge.conflict WHERE kind <> 'repair' AND
			(relation = 'public.item' AND COALESCE(local_row, remote_row)->>'id' = ANY($1) OR relation = 'public.tagged' AND COALESCE(local_row, remote_row)->>'n' = ANY($1))`,
			plantedIDs(rows)); len(got) > 0 {
			t.Errorf("node %s: the repair met conflicts: %q", n.Name, got)
		}
	}
	for sql, want := range map[string]string{
		fmt.Sprintf(`SELECT a || ' ' || b FROM item WHERE id = %d`, id(1)):                fmt.Sprintf("row %d %d", id(1), id(1)),
		fmt.Sprintf(`SELECT b FROM item WHERE id = %d`, id(3)):                            fmt.Sprint(id(3)),
		fmt.Sprintf(`SELECT length(big) || left(big, 1) FROM item WHERE id = %d`, id(50)): a.Value(`SELECT length(big) || left(big, 1) FROM item WHERE id = $1`, id(50)),
		fmt.Sprintf(`SELECT a FROM item WHERE id = %d`, id(20)):                           fmt.Sprintf("row %d", id(20)),
		`SELECT count(*) FROM item WHERE a = 'extra'`:                                     "2",
	} {
		if got := b.Value(sql); got != want {
			t.Errorf("%s: %s, want %s", sql, got, want)
		}
	}
	if got := b.Value(`SELECT count(*) FROM pgbridge.conflict WHERE kind = 'repair' AND local_row->>'a' = 'planted'`); got != "3" {
		t.Errorf("%s of 3 rows that were wrong at node b are in its history", got)
	}
}

func looked(r *bridge.VerifyReport) (n int) {
	for _, t := range r.Tables {
		n += t.Looked
	}
	return n
}

// plantedIDs are the ids and numbers that only the test writes: of others, the load makes conflicts of its own.
func plantedIDs(rows int) []string {
	ids := []string{"0", "-1", fmt.Sprint(rows + untouched)}
	for i := 1; i*untouched <= rows; i++ {
		ids = append(ids, fmt.Sprint(i*untouched))
	}
	return ids
}
