package integration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// phase is a transaction, with the tables that it writes as a regular expression.
type phase struct{ name, tables, sql string }

// eachPair runs a test on two nodes of the oldest and the newest version, and in its long form on two of each, too.
func eachPair(t *testing.T, test func(t *testing.T, majors []int)) {
	versions := pgtest.Versions(t)
	pairs := [][]int{{slices.Min(versions), slices.Max(versions)}}
	for _, v := range versions {
		if len(versions) > 1 && pgtest.Soak() {
			pairs = append(pairs, []int{v, v})
		}
	}
	for _, majors := range pairs {
		t.Run(fmt.Sprint(majors), func(t *testing.T) { test(t, majors) })
	}
}

// TestTypes: values of every type of the server, of the kinds that users define, and of extensions, alone
// and in arrays, domains and composites, as rows of their own, in runs of many rows and as keys, are the
// same on both nodes bit by bit. The nodes write in turn, and have other object ids for the same types.
func TestTypes(t *testing.T) {
	t.Parallel()
	eachPair(t, func(t *testing.T, majors []int) {
		all := append(builtInSamples(slices.Min(majors)), userSamples()...)
		testTypes(t, majors, all, func(i int) string { return userTypesSchema(i, all) })
	})
}

func testTypes(t *testing.T, majors []int, all []samples, schema func(node int) string) {
	c := cluster.New(t, cluster.Options{Nodes: 2, Majors: majors, Idle: true})
	var wg sync.WaitGroup
	for i, n := range c.Nodes {
		if n.Major == slices.Min(majors) {
			requireAllTypes(t, n)
		}
		wg.Go(func() { execLong(t, n.DSN, schema(i)) })
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	requireOtherOIDs(t, c)
	for _, n := range c.Nodes {
		n.Start()
	}
	j := newJudge(t, c)
	for i, p := range typePhases(all) {
		execLong(t, c.Nodes[i%2].DSN, p.sql)
		awaitEach(t, c)
		j.require(p.tables)
		if t.Failed() {
			t.Fatalf("after %s", p.name)
		}
	}
	// Every type is the same text on both versions, also in keys, and finds its row again.
	if r := verify(t, c.Nodes[0], bridge.VerifyOptions{}); r.Differences > 0 || len(r.Unsettled) > 0 {
		t.Errorf("equal rows are said to differ: %+v, %+v", r.Found, r.Unsettled)
	}
	t.Run("conflicts", func(t *testing.T) { conflictingTypes(t, c, j, all) })
}

// conflictingTypes has both nodes update the same rows while neither hears of the other: these go the
// careful path, and both must end with the same bits.
func conflictingTypes(t *testing.T, c *cluster.Cluster, j *judge, all []samples) {
	a, b := c.Nodes[0], c.Nodes[1]
	a.Links[b.Name].Cut()
	b.Links[a.Name].Cut()
	for i, n := range c.Nodes {
		var sql strings.Builder
		for at := range all {
			for range i + 1 { // other values on each node
				sql.WriteString(all[at].rotateEdges())
			}
		}
		execLong(t, n.DSN, sql.String())
	}
	a.Links[b.Name].Heal()
	b.Links[a.Name].Heal()
	awaitEach(t, c)
	j.require("^t_")
	if got := a.Value(`SELECT count(DISTINCT relation) FROM pgbridge.conflict WHERE relation LIKE 'public.t\_%'`); got != fmt.Sprint(len(all)) {
		t.Errorf("%s tables had conflicts, want %d", got, len(all))
	}
}

// awaitEach waits until every node has what the others have committed so far.
func awaitEach(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	for _, n := range c.Nodes {
		n.Exec(`INSERT INTO pgb_sentinel VALUES ($1, 1) ON CONFLICT (node) DO UPDATE SET round = pgb_sentinel.round + 1`, "each "+n.Name)
	}
	for _, n := range c.Nodes {
		for _, m := range c.Nodes {
			if m != n {
				m.Await(`SELECT round FROM pgb_sentinel WHERE node = 'each `+n.Name+`'`,
					n.Value(`SELECT round FROM pgb_sentinel WHERE node = $1`, "each "+n.Name))
			}
		}
	}
}

// requireOtherOIDs fails if a user's type has the same object id on two nodes: the test would show less.
func requireOtherOIDs(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	const sql = `SELECT t.oid || ' ' || t.oid::regtype FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace
		WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'pgbridge') AND t.typname !~ 'pgb_sentinel'`
	seen := map[string]bool{}
	for _, n := range c.Nodes {
		for _, line := range n.Query(sql) {
			if seen[line] {
				t.Fatalf("nodes share an object id: %s", line)
			}
			seen[line] = true
		}
	}
}

// execLong runs many statements and shows, on an error, only the place. The test goes on.
func execLong(t testing.TB, dsn, sql string) {
	t.Helper()
	conn := pgtest.Connect(t, dsn)
	_, err := conn.Exec(context.Background(), sql)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Position > 0 {
		at := []rune(sql)
		t.Errorf("%v at\n%s", err, string(at[max(0, int(pg.Position)-300):min(len(at), int(pg.Position)+100)]))
	} else if err != nil {
		t.Error(err)
	}
	conn.Close(context.Background())
}
