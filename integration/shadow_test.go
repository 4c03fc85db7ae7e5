package integration

import (
	"errors"
	"fmt"
	"math/rand"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
)

// TestShadow: a pair in shadow mode leaves no transaction in the WAL of its servers, and says which conflicts a live run then records for
// the same writes.
func TestShadow(t *testing.T) {
	t.Parallel()
	config := map[string]string{"mode": "shadow"}
	c := cluster.New(t, cluster.Options{Nodes: 2, Own: true, Idle: true, Config: config,
		Settings: map[string]string{"autovacuum": "off", "checkpoint_timeout": "1h"},
		Schema: `CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int, k text, PRIMARY KEY (k, id)); CREATE TABLE tr (id int PRIMARY KEY);
			INSERT INTO tr VALUES (1), (2);
			CREATE TABLE f (id int PRIMARY KEY, v text); ALTER TABLE f REPLICA IDENTITY FULL;
			INSERT INTO t SELECT n, 'both' FROM generate_series(1, 40) n; INSERT INTO f SELECT n, 'both' FROM generate_series(1, 9) n; CREATE EXTENSION pg_walinspect`})
	a, b := c.Node("a"), c.Node("b")
	for _, n := range c.Nodes {
		demote(t, n) // it runs as the role that the documentation asks for
		sql, err := bridge.SetupSQL(t.Context(), n.Load())
		if err != nil {
			t.Fatal(err)
		}
		for _, statement := range sql {
			n.Exec(statement)
		}
	}
	// What each kind of conflict comes of, early and late writes on either side, and rows that only one has written.
	for i, n := range []*cluster.Node{a, b, a} {
		by := fmt.Sprintf("'%s%d'", n.Name, i)
		n.Exec(`UPDATE t SET v = ` + by + ` WHERE id IN (1, 2)`)
		n.Exec(`INSERT INTO t VALUES (50, ` + by + `) ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v`)
		n.Exec(`INSERT INTO u VALUES (1, 'key "of" two') ON CONFLICT DO NOTHING`)
	}
	a.Exec(`DELETE FROM t WHERE id IN (3, 4, 5); UPDATE t SET v = 'a' WHERE id = 6; DELETE FROM f WHERE id = 1; UPDATE f SET id = 20 WHERE id = 2`)
	b.Exec(`UPDATE t SET v = 'b' WHERE id = 3; DELETE FROM t WHERE id IN (4, 6, 7); UPDATE f SET v = 'b' WHERE id IN (1, 2); INSERT INTO f VALUES (20, 'b'), (90, 'of b alone')`)
	b.Exec(`INSERT INTO t VALUES (5, 'again') ON CONFLICT (id) DO UPDATE SET v = 'again'`)
	a.Exec(`BEGIN; INSERT INTO t VALUES (7, 'x') ON CONFLICT (id) DO UPDATE SET v = 'x'; UPDATE t SET v = 'y' WHERE id = 7; UPDATE t SET id = 8 + 100 WHERE id = 8; COMMIT`)
	a.Exec(`BEGIN; UPDATE t SET v = 'undone' WHERE id = 9; ROLLBACK; INSERT INTO t SELECT n, 'a' FROM generate_series(200, 3000) n`)
	b.Exec(`UPDATE t SET v = 'b' WHERE id IN (8, 9); INSERT INTO t SELECT n, 'b' FROM generate_series(2500, 2600) n; UPDATE t SET v = 'b' WHERE id > 2550 AND id < 2560`)
	a.Exec(`UPDATE t SET v = 'late' WHERE id IN (3, 30, 2500)`)
	b.Exec(`INSERT INTO tr VALUES (10), (11)`)
	a.Exec(`TRUNCATE tr; INSERT INTO tr VALUES (1), (12)`)
	b.Exec(`INSERT INTO tr VALUES (12); DELETE FROM tr WHERE id = 11`)
	a.Exec(`TRUNCATE tr; INSERT INTO tr VALUES (11), (2)`)
	b.Exec(`INSERT INTO tr VALUES (13); DELETE FROM tr WHERE id = 2`)
	a.Exec(`INSERT INTO tr VALUES (13)`)
	s := seedOr(t, 1795963666510680078, 1795963686537823043, 1795968975030366769, 1795969126782575700, 817785)
	t.Logf("seed %d", s)
	random := rand.New(rand.NewSource(s))
	for range 300 {
		c.Nodes[random.Intn(2)].Exec(shadowWrites(random))
	}

	before, last := map[string]string{}, make([]time.Time, len(c.Nodes)) // last: when a node's last transaction committed
	for i, n := range c.Nodes {
		last[i] = writeLast(t, n, 6000+i)
		before[n.Name] = n.Value(`SELECT pg_current_wal_insert_lsn()`)
		before["xid"+n.Name] = n.Value(`SELECT pg_snapshot_xmax(pg_current_snapshot())`)
		before["slot"+n.Name] = n.Value(`SELECT confirmed_flush_lsn FROM pg_replication_slots`)
		n.Start()
	}
	foreseen := map[string][]string{}
	for _, n := range c.Nodes {
		n.AwaitStatus(func(r *cluster.Report) bool {
			all := r.Shadow != nil && len(r.Shadow.Read) == len(c.Nodes)
			for i := range c.Nodes {
				all = all && !r.Shadow.Read[i].Stamp.Before(last[i])
			}
			return all
		})
		r := n.Status()
		foreseen[n.Name] = conflictsOf(r)
		if r.Slot.ConfirmedLSN != before["slot"+n.Name] {
			t.Errorf("node %s lets the server forget its WAL from %s to %s, which the first live run needs", n.Name, before["slot"+n.Name], r.Slot.ConfirmedLSN)
		}
		if !hasAlarm(r, "shadow") || r.Waiting != "" {
			t.Errorf("node %s reports %s %+v", n.Name, r.Waiting, r.Alarms)
		}
		shown := false
		for _, x := range r.Shadow.Rows {
			shown = shown || x.Table == "public.u" && x.Kind == "insert_insert" && x.Key == `{"id":1,"k":"key \"of\" two"}`
		}
		if !shown {
			t.Errorf("node %s does not show the row of u: %+v", n.Name, r.Shadow.Rows)
		}
	}
	unwritten := func(n *cluster.Node) {
		t.Helper()
		n.Stop()
		if got := n.Value(`SELECT pg_snapshot_xmax(pg_current_snapshot())`); got != before["xid"+n.Name] {
			t.Errorf("node %s: the next transaction id was %s and is %s", n.Name, before["xid"+n.Name], got)
		}
		if n.Value(`SELECT pg_current_wal_insert_lsn()`) == before[n.Name] {
			t.Logf("node %s: the WAL ends where it did", n.Name)
		} else if got := n.Query(`SELECT resource_manager, record_type, description FROM pg_get_wal_records_info($1::text::pg_lsn, pg_current_wal_insert_lsn())
			WHERE resource_manager NOT IN ('Standby', 'XLOG')`, before[n.Name]); len(got) > 0 {
			t.Errorf("node %s: the WAL of shadow mode holds\n%s", n.Name, strings.Join(got, "\n"))
		}
		if got := n.Value(`SELECT count(*) FROM pgbridge.conflict`); got != "0" {
			t.Errorf("node %s has recorded %s conflicts in shadow mode", n.Name, got)
		}
		config["mode"] = "live"
		n.Start()
	}
	unwritten(a) // b goes on as a shadow beside it
	last[0] = writeLast(t, a, 5000)
	b.AwaitStatus(func(r *cluster.Report) bool { return !r.Shadow.Read[0].Stamp.Before(last[0]) })
	if got := conflictsOf(b.Status()); !slices.Equal(got, foreseen["b"]) {
		t.Errorf("node b foresaw\n%s\nand beside a live node\n%s", strings.Join(foreseen["b"], "\n"), strings.Join(got, "\n"))
	}
	if got := a.Value(`SELECT count(*) FROM f WHERE id = 90`); got != "0" {
		t.Error("a live node has got what a shadow wrote")
	}
	unwritten(b)
	c.WaitConverged()
	for _, n := range c.Nodes {
		met := n.Query(`SELECT kind, outcome, count(*) FROM pgbridge.conflict GROUP BY 1, 2 ORDER BY 1, 2`)
		if !slices.Equal(met, foreseen[n.Name]) || len(met) < 6 {
			t.Errorf("node %s foresaw\n%s\nand met\n%s", n.Name, strings.Join(foreseen[n.Name], "\n"), strings.Join(met, "\n"))
		}
		lost := n.Query(`SELECT relation, remote_origin, remote_seq, remote_stamp, local_origin, local_stamp FROM pgbridge.conflict WHERE kind = 'insert_delete' AND outcome = 'remote wins'
			AND (remote_stamp <= local_stamp OR local_origin <> $1 OR remote_origin = $1 OR remote_row IS NULL)`, n.Name)
		if len(lost) > 0 {
			t.Errorf("node %s has met deletes of its own that lost, and should not have\n%s", n.Name, strings.Join(lost, "\n"))
		}
	}
	b.Stop()
	config["mode"] = "shadow"
	if err := bridge.Run(t.Context(), b.Load(), bridge.Options{Logger: b.Logger()}); !errors.Is(err, apply.ErrHasRun) {
		t.Errorf("a node that has run, as a shadow: %v", err)
	}
}

// writeLast writes a row that no other node writes, and returns when that committed.
func writeLast(t *testing.T, n *cluster.Node, id int) time.Time {
	t.Helper()
	n.Exec(`INSERT INTO t VALUES ($1, 'the last')`, id)
	at, err := strconv.ParseInt(n.Value(`SELECT (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::int8 FROM t WHERE id = $1`, id), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.UnixMicro(at)
}

// conflictsOf are those that a node in shadow mode foresees.
func conflictsOf(r *cluster.Report) (all []string) {
	for _, k := range r.Shadow.Conflicts {
		all = append(all, fmt.Sprintf("%s|%s|%d", k.Kind, k.Outcome, k.Count))
	}
	return all
}

// shadowWrites are the statements of one transaction that writes a few rows of a few tables.
func shadowWrites(random *rand.Rand) string {
	var all []string
	for range 1 + random.Intn(3) {
		table, id := []string{"t", "f"}[random.Intn(2)], 1+random.Intn(30)
		switch random.Intn(12) {
		case 0, 1, 2:
			all = append(all, fmt.Sprintf(`INSERT INTO %s VALUES (%d, 'i%d') ON CONFLICT DO NOTHING`, table, id, random.Int31()))
		case 3, 4, 5, 6:
			all = append(all, fmt.Sprintf(`UPDATE %s SET v = 'u%d' WHERE id = %d`, table, random.Int31(), id))
		case 7, 8:
			all = append(all, fmt.Sprintf(`DELETE FROM %s WHERE id = %d`, table, id))
		case 9:
			to := 1 + random.Intn(30)
			all = append(all, fmt.Sprintf(`UPDATE %[1]s SET id = %[2]d WHERE id = %[3]d AND NOT EXISTS (SELECT FROM %[1]s WHERE id = %[2]d)`, table, to, id))
		case 10:
			all = append(all, fmt.Sprintf(`INSERT INTO tr VALUES (%d) ON CONFLICT DO NOTHING`, id), fmt.Sprintf(`DELETE FROM tr WHERE id = %d`, 1+random.Intn(30)))
		case 11:
			if random.Intn(8) == 0 {
				all = append(all, `TRUNCATE tr`)
			}
			all = append(all, fmt.Sprintf(`INSERT INTO tr VALUES (%d) ON CONFLICT DO NOTHING`, id))
		}
	}
	return strings.Join(all, "; ")
}
