package integration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// The tests of types share one schema: for every type x
//
//	t_x: x itself, an array of it, domains over x, over the array and over a composite, a composite
//	     with fields of x, of the array and of the domain, an array of composites, one of domains
//	s_x: x alone, for runs of many rows
//	kv_x, ka_x, kd_x, kc_x: x, an array, a domain and a composite as primary key
const bigRun = 1100 // rows; apply sends an UPDATE or DELETE run of 1000 in one statement

// dummyTypes shift the object ids of all that is created behind them.
const dummyTypes = `
CREATE TYPE dummy_enum AS ENUM ('x'); CREATE TYPE dummy_composite AS (a int); CREATE DOMAIN dummy_domain AS int;
CREATE TYPE dummy_range AS RANGE (subtype = int); CREATE TYPE dummy_enum2 AS ENUM ('x');
`

func typesSchema(all []samples) string {
	var b strings.Builder
	for _, s := range all {
		x := s.slug()
		fmt.Fprintf(&b, "CREATE DOMAIN d_%[1]s AS %[2]s;\n", x, s.name)
		if s.textOnly {
			fmt.Fprintf(&b, "CREATE TABLE t_%[1]s (id int PRIMARY KEY, v %[2]s, d d_%[1]s);\n", x, s.name)
			fmt.Fprintf(&b, "CREATE TABLE s_%[1]s (id int PRIMARY KEY, v %[2]s);\n", x, s.name)
			continue
		}
		fmt.Fprintf(&b, `CREATE DOMAIN da_%[1]s AS %[2]s[];
			CREATE TYPE c_%[1]s AS (p %[2]s, q %[2]s[], r d_%[1]s);
			CREATE DOMAIN dc_%[1]s AS c_%[1]s;
			CREATE TABLE t_%[1]s (id int PRIMARY KEY, v %[2]s, a %[2]s[], d d_%[1]s, c c_%[1]s, ca c_%[1]s[], da da_%[1]s, dc dc_%[1]s, ad d_%[1]s[]);
			CREATE TABLE s_%[1]s (id int PRIMARY KEY, v %[2]s);
			`, x, s.name)
		if !s.keyless {
			fmt.Fprintf(&b, `CREATE TABLE kv_%[1]s (k %[2]s PRIMARY KEY, n int NOT NULL, id int NOT NULL);
				CREATE TABLE ka_%[1]s (k %[2]s[] PRIMARY KEY, n int NOT NULL, id int NOT NULL);
				CREATE TABLE kd_%[1]s (k d_%[1]s PRIMARY KEY, n int NOT NULL, id int NOT NULL);
				CREATE TABLE kc_%[1]s (k c_%[1]s PRIMARY KEY, n int NOT NULL, id int NOT NULL);
				`, x, s.name)
		}
	}
	return b.String()
}

// rows gives the samples as a relation (i, v, w): w is the value of the next row, NULL in the last.
func (s *samples) rows() string {
	var v []string
	for i, e := range s.values {
		v = append(v, fmt.Sprintf("SELECT %d AS i, (%s)::%s AS v", i+1, e, s.name))
	}
	return "(SELECT i, v, lead(v) OVER (ORDER BY i) AS w FROM (" + strings.Join(v, " UNION ALL ") + ") s) s"
}

// insertEdges fills t_x: a row for each sample, one of NULLs, one of empty arrays and composites of NULLs.
func (s *samples) insertEdges() string {
	x := s.slug()
	if s.textOnly {
		return fmt.Sprintf("INSERT INTO t_%s SELECT i, v, w FROM %s; INSERT INTO t_%[1]s VALUES (100);", x, s.rows())
	}
	bare := ""
	for i, v := range s.bare {
		bare += fmt.Sprintf("INSERT INTO t_%[1]s (id, v, d) VALUES (%[2]d, %[3]s, %[3]s); INSERT INTO s_%[1]s VALUES (%[2]d, %[3]s);\n", x, -1-i, v)
	}
	return bare + fmt.Sprintf(`INSERT INTO t_%[1]s SELECT i, v, ARRAY[v, NULL, w], w, ROW(v, ARRAY[w, NULL], w)::c_%[1]s,
			ARRAY[ROW(v, NULL, NULL)::c_%[1]s, NULL, ROW(NULL, '{}', w)::c_%[1]s], ('[2:3][-1:0]=' || ARRAY[ARRAY[v, w], ARRAY[w, NULL]]::text)::da_%[1]s,
			ROW(w, ARRAY[ARRAY[v]], NULL)::dc_%[1]s, ARRAY[v, NULL, w]::d_%[1]s[] FROM %[2]s;
		INSERT INTO t_%[1]s VALUES (100);
		INSERT INTO t_%[1]s VALUES (101, NULL, '{}', NULL, ROW(NULL, NULL, NULL), '{}', '{}', ROW(NULL, '{}', NULL), '{}');
		`, x, s.rows())
}

// rotateEdges gives each row of t_x the values of the next one.
func (s *samples) rotateEdges() string {
	cols := "v, a, d, c, ca, da, dc, ad"
	if s.textOnly {
		cols = "v, d"
	}
	return fmt.Sprintf(`WITH n AS (SELECT COALESCE(lead(id) OVER (ORDER BY id), min(id) OVER ()) AS to_id, * FROM t_%[1]s)
		UPDATE t_%[1]s t SET (%[2]s) = (SELECT %[2]s FROM n WHERE n.to_id = t.id);
		`, s.slug(), cols)
}

// The phases of runs of many rows.
func (s *samples) insertMany() string {
	return fmt.Sprintf("INSERT INTO s_%s SELECT g, v FROM %s, generate_series(i, %d, %d) g WHERE pg_column_size(v) < 2000;\n", s.slug(), s.rows(), bigRun, len(s.values))
}

func (s *samples) updateMany() string {
	return fmt.Sprintf(`WITH n AS (SELECT COALESCE(lead(id) OVER (ORDER BY id), min(id) OVER ()) AS to_id, CASE WHEN id %% 7 <> 0 THEN v END AS v FROM s_%[1]s)
		UPDATE s_%[1]s t SET v = n.v FROM n WHERE n.to_id = t.id;
		`, s.slug())
}

func (s *samples) deleteMany() string {
	return fmt.Sprintf("DELETE FROM s_%s WHERE id %% 3 <> 0;\n", s.slug())
}

// keys lists the key tables of the type and the SQL expression that makes a key of the sample v.
func (s *samples) keys() [][2]string {
	if s.keyless {
		return nil
	}
	x := s.slug()
	return [][2]string{
		{"kv_" + x, "v"},
		{"ka_" + x, "('[0:1]=' || ARRAY[v, v]::text)::" + s.name + "[]"},
		{"kd_" + x, "v"},
		{"kc_" + x, fmt.Sprintf("ROW(v, ARRAY[v, NULL], v)::c_%s", x)},
	}
}

func (s *samples) eachKey(f func(table, key string) string) string {
	var b strings.Builder
	for _, k := range s.keys() {
		b.WriteString(f(k[0], k[1]))
	}
	return b.String()
}

func (s *samples) insertKeys() string {
	return s.eachKey(func(table, key string) string {
		return fmt.Sprintf("INSERT INTO %s SELECT %s, 0, i FROM %s WHERE pg_column_size(v) < 500;\n", table, key, s.rows())
	})
}

// updateByKey updates all rows in one statement, then one alone.
func (s *samples) updateByKey() string {
	return s.eachKey(func(table, _ string) string {
		return fmt.Sprintf("UPDATE %[1]s SET n = n + 1; UPDATE %[1]s SET n = n + 10 WHERE id = 2;\n", table)
	})
}

// changeKeys deletes the first row and gives its key to the second; then it deletes the rest but one.
func (s *samples) changeKeys() string {
	return s.eachKey(func(table, key string) string {
		return fmt.Sprintf("DELETE FROM %[1]s WHERE id = 1; UPDATE %[1]s SET k = (SELECT %[2]s FROM %[3]s WHERE i = 1) WHERE id = 2;\n", table, key, s.rows())
	})
}

func (s *samples) deleteByKey() string {
	return s.eachKey(func(table, _ string) string {
		return fmt.Sprintf("DELETE FROM %[1]s WHERE id > 2;\n", table)
	})
}

// typePhases are the transactions of the test in order.
func typePhases(all []samples) []phase {
	join := func(f func(*samples) string) string {
		var b strings.Builder
		b.WriteString("BEGIN;\n")
		for i := range all {
			b.WriteString(f(&all[i]))
		}
		b.WriteString("COMMIT;\n")
		return b.String()
	}
	return []phase{
		{"insert", join((*samples).insertEdges)},
		{"update", join((*samples).rotateEdges)},
		{"insert keys", join((*samples).insertKeys)},
		{"update by key", join((*samples).updateByKey)},
		{"change keys", join((*samples).changeKeys)},
		{"delete by key", join((*samples).deleteByKey)},
		{"insert many", join((*samples).insertMany)},
		{"update many", join((*samples).updateMany)},
		{"delete many", join((*samples).deleteMany)},
	}
}

// phase is one transaction or more, by name.
type phase struct{ name, sql string }

// eachPair runs a test on two nodes of each version, and on two of the oldest and the newest.
func eachPair(t *testing.T, test func(t *testing.T, majors []int)) {
	versions := pgtest.Versions(t)
	pairs := [][]int{{slices.Min(versions), slices.Max(versions)}}
	for _, v := range versions {
		if len(versions) > 1 {
			pairs = append(pairs, []int{v, v})
		}
	}
	for _, majors := range pairs {
		t.Run(fmt.Sprint(majors), func(t *testing.T) { test(t, majors) })
	}
}

// TestBuiltInTypes: values of every type of the server, alone and in arrays, domains and composites, as
// rows of their own, in runs of many rows and as keys, are the same on both nodes bit by bit. The nodes
// write in turn, and have other object ids for the same types.
func TestBuiltInTypes(t *testing.T) {
	eachPair(t, func(t *testing.T, majors []int) {
		c := cluster.New(t, cluster.Options{Nodes: 2, Majors: majors, Idle: true})
		all := builtInSamples(slices.Min(majors))
		for i, n := range c.Nodes {
			if n.Major == slices.Min(majors) {
				requireAllTypes(t, n)
			}
			execLong(t, n.DSN, []string{"", dummyTypes}[i]+typesSchema(all))
		}
		requireOtherOIDs(t, c)
		for _, n := range c.Nodes {
			n.Start()
		}
		for i, p := range typePhases(all) {
			execLong(t, c.Nodes[i%2].DSN, p.sql)
			awaitEach(t, c)
			requireExact(t, c)
			if t.Failed() {
				t.Fatalf("after %s", p.name)
			}
		}
		t.Run("conflicts", func(t *testing.T) { conflictingTypes(t, c, all) })
	})
}

// conflictingTypes has both nodes update the same rows while neither hears of the other: these go the
// careful path, and both must end with the same bits.
func conflictingTypes(t *testing.T, c *cluster.Cluster, all []samples) {
	a, b := c.Nodes[0], c.Nodes[1]
	a.Links[b.Name].Cut()
	b.Links[a.Name].Cut()
	for i, n := range c.Nodes {
		var sql strings.Builder
		for j := range all {
			for range i + 1 {
				sql.WriteString(all[j].rotateEdges())
			}
		}
		execLong(t, n.DSN, sql.String())
	}
	a.Links[b.Name].Heal()
	b.Links[a.Name].Heal()
	awaitEach(t, c)
	requireExact(t, c)
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
		WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'pgbridge')`
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

// execLong runs many statements and shows, on an error, only the place.
func execLong(t testing.TB, dsn, sql string) {
	t.Helper()
	conn := pgtest.Connect(t, dsn)
	_, err := conn.Exec(context.Background(), sql)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Position > 0 {
		at := []rune(sql)
		t.Fatalf("%v at\n%s", err, string(at[max(0, int(pg.Position)-300):min(len(at), int(pg.Position)+100)]))
	}
	if err != nil {
		t.Fatal(err)
	}
	conn.Close(context.Background())
}
