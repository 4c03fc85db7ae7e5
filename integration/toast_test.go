package integration

import (
	"fmt"
	"math/rand"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// toastSchema has tables whose values are stored out of line and not sent when an update leaves them alone.
const toastSchema = `
CREATE TABLE plain (id int PRIMARY KEY, n int, note text, big text, more bytea);
ALTER TABLE plain ALTER big SET STORAGE EXTERNAL, ALTER more SET STORAGE EXTERNAL;
CREATE TABLE keyed (k numeric, w text, n int, doc jsonb, dup text GENERATED ALWAYS AS (w || n) STORED, PRIMARY KEY (k, w));
ALTER TABLE keyed ALTER doc SET STORAGE EXTERNAL;
CREATE TABLE parted (id int PRIMARY KEY, n int, big text[]) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (4);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (4) TO (100);
ALTER TABLE parted_1 ALTER big SET STORAGE EXTERNAL; ALTER TABLE parted_2 ALTER big SET STORAGE EXTERNAL;
CREATE TABLE uniq (id int PRIMARY KEY, n int UNIQUE, big text);
ALTER TABLE uniq ALTER big SET STORAGE EXTERNAL;
`

// toastWrite is a random write of one of toastSchema's tables. Most updates leave the large value alone.
func toastWrite(n *cluster.Node, r *rand.Rand) (string, []any) {
	id, v := 1+r.Intn(8), r.Intn(40)
	value := large(fmt.Sprintf("'%s%d'", n.Name, r.Int63()))
	pick := func(of ...string) (string, []any) { return of[min(r.Intn(8), len(of)-1)], nil }
	switch r.Intn(4) {
	case 0:
		return pick(
			fmt.Sprintf(`INSERT INTO plain VALUES (%d, %d, 'new', %s, decode(md5('%d'), 'hex'))`, id, v, value, v),
			fmt.Sprintf(`DELETE FROM plain WHERE id = %d`, id),
			fmt.Sprintf(`UPDATE plain SET big = %s WHERE id = %d`, value, id),
			fmt.Sprintf(`UPDATE plain SET more = convert_to(%s, 'UTF8'), note = 'more' WHERE id = %d`, value, id),
			fmt.Sprintf(`UPDATE plain SET id = %d WHERE id = %d`, 1+r.Intn(8), id),
			fmt.Sprintf(`BEGIN; UPDATE plain SET n = %d WHERE id = %d; UPDATE plain SET note = 'twice' WHERE id = %d; COMMIT`, v, id, id),
			fmt.Sprintf(`UPDATE plain SET n = %d WHERE id IN (%d, %d)`, v, id, 1+r.Intn(8)))
	case 1:
		return pick(
			fmt.Sprintf(`INSERT INTO keyed VALUES (%d.%s, 'w', %d, jsonb_build_object('a', %s))`, id, []string{"0", "00"}[r.Intn(2)], v, value),
			fmt.Sprintf(`DELETE FROM keyed WHERE k = %d`, id),
			fmt.Sprintf(`UPDATE keyed SET doc = jsonb_build_object('b', %s) WHERE k = %d`, value, id),
			fmt.Sprintf(`UPDATE keyed SET n = %d WHERE k = %d`, v, id))
	case 2:
		return pick(
			fmt.Sprintf(`INSERT INTO parted VALUES (%d, %d, ARRAY[%s, NULL])`, id, v, value),
			fmt.Sprintf(`UPDATE parted SET big = ARRAY[%s] WHERE id = %d`, value, id),
			fmt.Sprintf(`DELETE FROM parted WHERE id = %d`, id),
			fmt.Sprintf(`UPDATE parted SET n = %d WHERE id = %d`, v, id))
	}
	return pick(
		fmt.Sprintf(`INSERT INTO uniq VALUES (%d, %d, %s)`, id, v, value),
		fmt.Sprintf(`UPDATE uniq SET big = %s WHERE id = %d`, value, id),
		fmt.Sprintf(`DELETE FROM uniq WHERE id = %d`, id),
		fmt.Sprintf(`UPDATE uniq SET n = %d WHERE id = %d`, v, id))
}

// versionsSQL tells of the rows of toastSchema which transaction wrote them.
const versionsSQL = `SELECT 'plain ' || id || ' ' || coalesce(n, 0), md5(t::text), t.xmin, c FROM plain t, pg_xact_commit_timestamp_origin(t.xmin) c
	UNION ALL SELECT 'keyed ' || k || ' ' || n, md5(t::text), t.xmin, c FROM keyed t, pg_xact_commit_timestamp_origin(t.xmin) c
	UNION ALL SELECT 'parted ' || id || ' ' || n, md5(t::text), t.xmin, c FROM parted t, pg_xact_commit_timestamp_origin(t.xmin) c
	UNION ALL SELECT 'uniq ' || id || ' ' || n, md5(t::text), t.xmin, c FROM uniq t, pg_xact_commit_timestamp_origin(t.xmin) c ORDER BY 1`

// requireNothingOwed waits until no node owes another a row, and returns how often that was so before.
func requireNothingOwed(t *testing.T, c *cluster.Cluster) (owed int) {
	t.Helper()
	t.Cleanup(func() { // who waits for whom
		if t.Failed() {
			for _, n := range c.Nodes {
				t.Logf("node %s is owed\n%s\nkeeps\n%s\nhas\n%s\n%s", n.Name, strings.Join(n.Query(`SELECT o::text, o.xmin FROM pgbridge.owed o`), "\n"),
					strings.Join(n.Query(`SELECT left(q::text, 300) FROM pgbridge.quarantine q`), "\n"), strings.Join(n.Query(versionsSQL), "\n"), n.LogTail())
			}
		}
	})
	c.WaitConverged()
	for c.Nodes[0].Value(`SELECT count(*) FROM pgbridge.quarantine`) != "0" { // what is owed and kept out of its table waits for that
		c.Nodes[0].Exec(`UPDATE uniq SET n = NULL WHERE n IS NOT NULL`)
		c.WaitConverged()
	}
	for _, n := range c.Nodes {
		n.Await(`SELECT count(*) FROM pgbridge.owed`, "0")
		var last int
		fmt.Sscan(n.Value(`SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM pgbridge.owed_id_seq`), &last)
		owed += last
	}
	c.WaitConverged()
	return owed
}

// requireOwed has nodes write, at least so many rounds, and on until some row was owed: how much is written in a round is the
// machine's.
func requireOwed(t *testing.T, c *cluster.Cluster, rounds int, d time.Duration, disturb func(n *cluster.Node, wait func(most time.Duration))) {
	t.Helper()
	const most = 10
	owed := 0
	for round := 0; round < rounds || owed == 0 && round < most; round++ {
		s := seed(t)
		if round == 0 {
			s = seedAmong(t, 862221, 271794)
		}
		t.Logf("seed %d", s)
		randomWrites(t, c, s, d, disturb, toastWrite)
		owed = requireNothingOwed(t, c) // since the beginning
	}
	if t.Logf("%d rows were owed", owed); owed == 0 {
		t.Error("no row was owed: nothing was shown")
	}
}

// TestLargeValuesConverge: nodes update rows beside each other and leave large values alone, which then do not come along.
func TestLargeValuesConverge(t *testing.T) {
	t.Parallel()
	requireOwed(t, cluster.New(t, cluster.Options{Schema: toastSchema}), 2, loadTime()/3, cutOff)
}

// TestLargeValuesSurviveKills is TestLargeValuesConverge with bridges that are killed.
func TestLargeValuesSurviveKills(t *testing.T) {
	t.Parallel()
	pgtest.Long(t)
	c := cluster.New(t, cluster.Options{Processes: true, Schema: toastSchema})
	requireOwed(t, c, 1, loadTime()/2, func(n *cluster.Node, wait func(most time.Duration)) {
		n.Kill()
		wait(time.Second)
		n.Start()
	})
}
