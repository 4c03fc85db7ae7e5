package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// columnsSQL lists the columns of what is written under load.
const columnsSQL = `SELECT string_agg(attname, ',' ORDER BY attname) FROM pg_attribute WHERE attrelid = 'item'::regclass AND attnum > 0 AND NOT attisdropped`

// TestSchemaChangeUnderLoad: three nodes write, one of them is away, bridges are killed. A column that is added is there at once on
// the nodes that are there, and written as soon as it is; a column is dropped when all nodes are back, and not before.
func TestSchemaChangeUnderLoad(t *testing.T) {
	t.Parallel()
	pgtest.Long(t)
	c := cluster.New(t, cluster.Options{Processes: true, Config: map[string]string{"topology.failover_after": "1s"}, Schema: `
		CREATE TABLE item (id int PRIMARY KEY, v text, old int);
		INSERT INTO item SELECT i, 'first', 0 FROM generate_series(1, 200) i`})
	a, b, away := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	s := seed(t)
	t.Logf("seed %d", s)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for i, n := range c.Nodes {
		r, conn := rand.New(rand.NewSource(s+int64(i))), pgtest.Connect(t, n.DSN)
		wg.Go(func() { writeItems(ctx, t, n.Name, conn, r) })
	}
	kill := func(n *cluster.Node) {
		n.Kill()
		n.Launch()
	}
	for _, n := range c.Nodes {
		n.Await(`SELECT count(DISTINCT v) > 20 FROM item`, "t")
	}
	away.Kill()
	ddl(a, `ALTER TABLE item ADD COLUMN added int DEFAULT 1`)
	kill(b)
	kill(a)
	b.Await(columnsSQL, "added,id,old,v")
	b.Await(`SELECT count(*) > 20 FROM item WHERE added <> 1`, "t") // a and b write it

	const drop = `ALTER TABLE item DROP COLUMN old; CREATE INDEX ON item (v)`
	a.AwaitStatus(func(r *cluster.Report) bool { return r.Waiting == "" })
	if _, err := bridge.ChangeSchema(t.Context(), a.Load(), drop, bridge.SchemaOptions{Breaking: true}); !errors.Is(err, bridge.ErrNodesBehind) ||
		!strings.Contains(err.Error(), away.Name+" (") {
		t.Errorf("a breaking change while a node is away: %v", err)
	}
	away.Launch()
	if _, err := bridge.ChangeSchema(t.Context(), a.Load(), drop, bridge.SchemaOptions{Breaking: true, Wait: 2 * time.Minute}); err != nil {
		t.Fatal(err)
	}
	kill(away)
	kill(b)
	away.Await(columnsSQL, "added,id,v")
	b.Await(columnsSQL, "added,id,v")
	ddl(b, `ALTER TABLE item ADD COLUMN late text`) // of another name: see the limits in docs/ddl.md
	away.Await(columnsSQL, "added,id,late,v")
	away.Await(`SELECT count(*) > 20 FROM item WHERE late IS NOT NULL`, "t")
	stop()
	wg.Wait()
	c.WaitConverged()
	requireSchemas(t, c)
}

// writeItems writes rows with all the columns that there are, until ctx ends.
func writeItems(ctx context.Context, t *testing.T, node string, conn *pgx.Conn, r *rand.Rand) {
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	for i := 0; ; i++ {
		select {
		case <-pace.C:
		case <-ctx.Done():
			return
		}
		rows, _ := conn.Query(context.Background(), `SELECT quote_ident(column_name) || ' = ' || CASE data_type WHEN 'text' THEN $1 ELSE $2 END
			FROM information_schema.columns WHERE table_schema = 'public' AND table_name = 'item' AND column_name <> 'id'`,
			fmt.Sprintf("'%s %d'", node, i), fmt.Sprint(2+r.Intn(1000)))
		set, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err == nil {
			_, err = conn.Exec(context.Background(), fmt.Sprintf(`UPDATE item SET %s WHERE id = %d`, strings.Join(set, ", "), 1+r.Intn(200)))
		}
		var pg *pgconn.PgError
		if errors.As(err, &pg) && (pg.Code == "42703" || pg.Code == "0A000" || pg.Code == "42804") {
			continue // the schema has changed in between
		}
		if err != nil {
			t.Errorf("node %s: %v", node, err)
			return
		}
	}
}

// TestSchemaChangesAtRandom lets nodes that are cut off from each other write and change the schema, so that rows come under older
// schemas, and meet others.
func TestSchemaChangesAtRandom(t *testing.T) {
	t.Parallel()
	steps := 60
	if pgtest.Soak() {
		steps = 1000
	}
	c := cluster.New(t, cluster.Options{Majors: oldAndNew()[0], Config: map[string]string{"topology.failover_after": "0s"}, Schema: `
		CREATE TABLE t (id int PRIMARY KEY, v text, u int);
		CREATE TABLE gone (id int PRIMARY KEY, v text)`})
	s := seedOr(t, 457072)
	t.Logf("seed %d", s)
	r := rand.New(rand.NewSource(s))
	c.Nodes[0].Exec(`INSERT INTO t SELECT i, 'first' FROM generate_series(1, 30) i`)
	c.WaitConverged()
	for i := range steps {
		randomSchemaStep(t, c, r, i)
	}
	healAll(c)
	c.WaitConverged()
	requireSchemas(t, c)
	t.Logf("%s changes, %s conflicts", c.Nodes[0].Value(`SELECT count(*) FROM pgbridge.ddl`), c.Nodes[0].Value(`SELECT count(*) FROM pgbridge.conflict`))
}

// What another node's change may just have taken away.
const (
	noColumn = "42703"
	noTable  = "42P01" // seed 457072
)

// unlessChanged executes what names something that may just be gone; lacks is the error's code then.
func unlessChanged(t *testing.T, n *cluster.Node, lacks, sql string) {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), n.DSN)
	if err == nil {
		defer conn.Close(context.Background())
		_, err = conn.Exec(context.Background(), sql)
	}
	var pg *pgconn.PgError
	if err != nil && (!errors.As(err, &pg) || pg.Code != lacks) {
		t.Fatalf("%s: %v", sql, err)
	}
}

func randomSchemaStep(t *testing.T, c *cluster.Cluster, r *rand.Rand, i int) {
	n := c.Nodes[r.Intn(len(c.Nodes))]
	other := c.Nodes[r.Intn(len(c.Nodes))]
	one := c.Nodes[0] // makes what breaks, so that two such changes do not meet
	from := 1 + r.Intn(30)
	to := from + r.Intn(6)
	columns := func(n *cluster.Node) []string {
		return n.Query(`SELECT attname FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0 AND NOT attisdropped AND attname <> 'id' ORDER BY 1`)
	}
	pick := func(n *cluster.Node) string { all := columns(n); return all[r.Intn(len(all))] }
	switch w := r.Intn(24); {
	case w < 6:
		unlessChanged(t, n, noColumn, fmt.Sprintf(`UPDATE t SET %s = '%d' WHERE id BETWEEN %d AND %d`, pick(n), i, from, to))
	case w < 8:
		n.Exec(`DELETE FROM t WHERE id BETWEEN $1 AND $2`, from, to)
	case w < 11:
		unlessChanged(t, n, noColumn, fmt.Sprintf(`INSERT INTO t (id, %s) SELECT i, '%d' FROM generate_series(%d, %d) i ON CONFLICT DO NOTHING`, pick(n), i, from, to))
	case w < 12:
		unlessChanged(t, n, noColumn, fmt.Sprintf(`BEGIN; UPDATE t SET %s = '1' WHERE id < 5; SELECT pgbridge.ddl('ALTER TABLE t ADD COLUMN %s%d int DEFAULT %[3]d');
			UPDATE t SET %[2]s%[3]d = 5 WHERE id = %[4]d; COMMIT`, pick(n), n.Name, i, from))
	case w < 14:
		ddl(n, fmt.Sprintf(`ALTER TABLE t ADD COLUMN %s%d text DEFAULT '%[2]d'; ALTER TABLE t ALTER %[1]s%[2]d SET DEFAULT '0'`, n.Name, i))
	case w < 15:
		if all := columns(one); len(all) > 2 {
			name := all[r.Intn(len(all))]
			breaking(one, fmt.Sprintf(`ALTER TABLE t DROP COLUMN %s`, name))
			if r.Intn(2) == 0 {
				ddl(one, fmt.Sprintf(`ALTER TABLE t ADD COLUMN %s int`, name))
			}
		}
	case w < 16:
		breaking(one, fmt.Sprintf(`ALTER TABLE t RENAME COLUMN %s TO r%d`, pick(one), i))
	case w < 17:
		breaking(one, `DROP TABLE gone`)
		ddl(one, fmt.Sprintf(`CREATE TABLE gone (id int PRIMARY KEY, v text, n int DEFAULT %d)`, i))
	case w < 19:
		unlessChanged(t, n, noTable, fmt.Sprintf(`INSERT INTO gone (id, v) SELECT i, '%d' FROM generate_series(%d, %d) i ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v`, i, from, to))
	case w < 20:
		n.Stop()
		n.Start()
	case other != n && w < 22:
		n.Links[other.Name].Cut()
	case other != n:
		n.Links[other.Name].Heal()
	}
	moment, cancel := context.WithTimeout(context.Background(), time.Duration(r.Intn(80))*time.Millisecond)
	defer cancel()
	<-moment.Done() // a random moment, for what may arrive
}
