package integration

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/stream"
)

// letGoConfig lets nodes go soon.
func letGoConfig() map[string]string {
	return map[string]string{"stream.max_bytes": "64MiB", "stream.absent_bytes": "16MiB", "nats.embedded.max_store": "1GiB", "nats.embedded.sync": "interval",
		"capture.frame_bytes": "64KiB", "capture.status_interval": "1s", "topology.failover_after": failoverAfter.String(), "apply.max_clock_skew": "1d"}
}

const mib = 1 << 20

// letGoSchema has a table whose rows are deleted and changed, one that is truncated, and one that fills streams.
const letGoSchema = `CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, v text); ` + fullSchema

// TestNodeThatIsAwayIsLetGo: what others write while a node is away is more than their streams may hold for it, and more than they may
// hold at all. Its late transactions are decided as if nothing had gone, also by bridges that were killed meanwhile, whose clocks
// step back; and then it is given what it lacks.
func TestNodeThatIsAwayIsLetGo(t *testing.T) {
	t.Parallel()
	majors := []int{pgtest.Versions(t)[0], pgtest.Newest(t)}
	if !pgtest.Soak() {
		majors = majors[1:]
	}
	for _, major := range slices.Compact(majors) {
		t.Run(fmt.Sprint("pg", major), func(t *testing.T) {
			c := cluster.New(t, cluster.Options{Own: true, Clocks: true, Majors: []int{major}, Processes: true, Config: letGoConfig(), Schema: letGoSchema,
				Settings: map[string]string{"fsync": "off"}})
			a, b, d := c.Node("a"), c.Node("b"), c.Node("c")
			a.Exec(`INSERT INTO t SELECT i, 'first' FROM generate_series(1, 100) i`)
			a.Exec(`INSERT INTO u SELECT i, 'first' FROM generate_series(1, 30) i`)
			c.WaitConverged()
			separate(c, b)
			c.Nodes = []*cluster.Node{a, d}

			// From here on the stamps of a and c lie above their commit times.
			setClock(t, a, 2*time.Hour)
			a.Exec(`UPDATE t SET v = 'ahead' WHERE id = 100`)
			setClock(t, a, 0)
			d.Await(`SELECT v FROM t WHERE id = 100`, "ahead")
			a.Exec(`DELETE FROM t WHERE id BETWEEN 1 AND 20`)
			d.Exec(`DELETE FROM t WHERE id BETWEEN 21 AND 40`)
			a.Exec(`UPDATE t SET v = 'a' WHERE id BETWEEN 41 AND 60`)
			d.Exec(`UPDATE t SET v = 'c' WHERE id BETWEEN 61 AND 80`)
			a.Exec(`TRUNCATE u`)
			a.Exec(`INSERT INTO u SELECT i, 'a' FROM generate_series(1, 10) i`)
			// What b's users do meanwhile is older than that, and newer.
			for i, ahead := range []time.Duration{time.Hour, 3 * time.Hour} {
				setClock(t, b, ahead)
				b.Exec(`UPDATE t SET v = 'b' WHERE id <= 80 AND id % 2 = $1`, i)
				b.Exec(`UPDATE u SET v = 'b' WHERE id % 2 = $1`, i)
			}
			b.AwaitStatus(func(r *cluster.Report) bool { return r.Publisher.DurableSeq == r.Seq && r.Seq > 0 })

			written := 0
			for round := range 3 {
				for _, n := range c.Nodes {
					written = fillMore(n, 20*round)
				}
				for i, n := range c.Nodes {
					awaitLetGo(t, n, b)
					awaitHandedOnIsSmall(t, c, n, c.Nodes[1-i])
				}
				if round == 1 {
					a.Kill()
					a.Start()
				}
			}
			t.Logf("%d MiB were written on each node", written)
			for _, n := range c.Nodes {
				if log := n.LogTail(); strings.Contains(log, "stream is full") {
					t.Errorf("stream of node %s became full\n%s", n.Name, log)
				}
				n.Kill()
				n.Start()
			}
			for _, n := range c.Nodes {
				awaitLetGo(t, n, b)
				if got := n.Value(`SELECT count(*) FROM pgbridge.tombstone WHERE origin = $1`, n.Name); got == "0" {
					t.Errorf("node %s has not kept what it had deleted", n.Name)
				}
			}

			// b's users write more, and what it has published is read; it reads nothing itself.
			b.Exec(`INSERT INTO t VALUES (1000, 'the last one of b')`)
			for _, n := range c.Nodes {
				n.Links[b.Name].Heal()
			}
			for _, n := range c.Nodes {
				n.Await(`SELECT count(*) FROM t WHERE id = 1000`, "1")
			}
			c.WaitConverged()
			for _, n := range c.Nodes {
				requireRows(t, n, "t", "1-20 b 10, 21-40 b 10, 41-60 a 10, 41-60 b 10, 61-80 b 10, 61-80 c 10, 81-100 ahead 1, 81-100 first 19, 981-1000 the last one of b 1")
				requireRows(t, n, "u", "1-20 a 5, 1-20 b 10, 21-40 b 5")
			}

			// It gets what came of all that, and is waited for again.
			c.Nodes = []*cluster.Node{a, b, d}
			for _, l := range b.Links {
				l.Heal()
			}
			c.WaitConverged()
			if got := resyncs(t, b); got != 1 {
				t.Errorf("node b was given what it lacked %d times", got)
			}
			for _, n := range []*cluster.Node{a, d} {
				n.AwaitStatus(func(r *cluster.Report) bool { return len(r.LetGo) == 0 })
			}
		})
	}
}

// requireRows compares how many rows have which value, in groups of 20 ids.
func requireRows(t *testing.T, n *cluster.Node, table, want string) {
	t.Helper()
	got := strings.Join(n.Query(fmt.Sprintf(`SELECT min(g * 20 + 1) || '-' || min(g * 20 + 20) || ' ' || v || ' ' || count(*)
		FROM (SELECT (id - 1) / 20 AS g, v FROM %s) x GROUP BY g, v ORDER BY g, v`, table)), ", ")
	if got != want {
		t.Errorf("%s of node %s holds %s, want %s", table, n.Name, got, want)
	}
}

// separate takes a node away from all others.
func separate(c *cluster.Cluster, away *cluster.Node) {
	for _, n := range c.Nodes {
		if n != away {
			n.Links[away.Name].Cut()
			away.Links[n.Name].Cut()
		}
	}
}

func setClock(t *testing.T, n *cluster.Node, ahead time.Duration) {
	t.Helper()
	if err := n.PG.SetClock(ahead); err != nil {
		t.Fatal(err)
	}
}

// fillMore writes 20 MiB on a node, and returns how many there are then.
func fillMore(n *cluster.Node, from int) int {
	for i := range 10 {
		n.Exec(fmt.Sprintf(`INSERT INTO big SELECT '%s', %d + k, decode(repeat(md5(k::text), 4096), 'hex') FROM generate_series(1, 32) k`, n.Name, 16*from+32*i))
	}
	return from + 20
}

// unconfirmed asks whether the slot holds WAL that is not read and safe.
const unconfirmed = `SELECT pg_current_wal_lsn() - confirmed_flush_lsn > 8000000 FROM pg_replication_slots`

// awaitHandedOnIsSmall waits until what a node hands on of another one is within the budget.
func awaitHandedOnIsSmall(t *testing.T, c *cluster.Cluster, n, author *cluster.Node) {
	t.Helper()
	js, err := jetstream.New(n.Connect())
	if err != nil {
		t.Fatal(err)
	}
	n.AwaitStatus(func(*cluster.Report) bool {
		s, err := js.Stream(t.Context(), fmt.Sprintf("PGB_%s_%s-%s", c.Name, n.Name, author.Name))
		return err == nil && s.CachedInfo().State.Bytes <= 16*mib
	})
}

// awaitGone waits until something that a node lacks of an author is in the stream of none of the holders any more: from then on it cannot
// be given frames, and must be given rows.
func awaitGone(t *testing.T, c *cluster.Cluster, author, away *cluster.Node, holders ...*cluster.Node) {
	t.Helper()
	lacks, err := strconv.ParseUint(away.Value(`SELECT seq + 1 FROM pgbridge.position WHERE origin = $1`, author.Name), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range holders {
		reader, err := stream.NewReader(n.Connect(), stream.ReaderOptions{Cluster: c.Name, Sender: n.Name, Origin: author.Name, Logger: n.Logger()})
		if err != nil {
			t.Fatal(err)
		}
		n.AwaitStatus(func(*cluster.Report) bool {
			first, last, _, err := reader.Info(t.Context())
			if err != nil || last < first {
				return err == nil
			}
			f, err := reader.Get(t.Context(), first)
			return err == nil && (f.FirstSeq > lacks || f.FirstSeq == 0 && f.LastSeq >= lacks)
		})
	}
}

// awaitLetGo waits until a node has let another one go, and its stream and its WAL are as small as they may be.
func awaitLetGo(t *testing.T, n, away *cluster.Node) {
	t.Helper()
	n.AwaitStatus(func(r *cluster.Report) bool {
		for _, a := range r.Alarms {
			if a.Code == "stream-full" || a.Code == "frames-given-up" {
				t.Fatalf("node %s: %s", n.Name, a.Text)
			}
		}
		gone := slices.ContainsFunc(r.LetGo, func(x bridge.LetGoReport) bool {
			return x.Node == away.Name && x.Transactions > 0 && x.SeenSeq+x.Transactions == x.GoneSeq && !x.Since.IsZero()
		})
		alarm := slices.ContainsFunc(r.Alarms, func(a bridge.Alarm) bool { return a.Code == "node-let-go" && strings.Contains(a.Text, away.Name) })
		return gone && alarm && len(r.LetGo) == 1 && r.Stream.Bytes <= 16*mib && r.Publisher.DurableSeq == r.Seq && n.Value(unconfirmed) == "f"
	})
}

// TestNobodyIsLetGo: not by a node that is alone, which nobody else has anything of, and not one that is there and slow.
func TestNobodyIsLetGo(t *testing.T) {
	t.Parallel()
	for name, hinder := range map[string]func(t *testing.T, c *cluster.Cluster){
		"alone": func(_ *testing.T, c *cluster.Cluster) {
			cutAll(c)
			c.Node("a").AwaitStatus(func(r *cluster.Report) bool { return unreached(r) == 2 })
		},
		"slow": func(t *testing.T, c *cluster.Cluster) {
			conn := pgtest.Connect(t, c.Node("b").DSN)
			if _, err := conn.Exec(t.Context(), `BEGIN; LOCK TABLE big IN SHARE MODE`); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := cluster.New(t, cluster.Options{Config: letGoConfig(), Schema: letGoSchema})
			a := c.Node("a")
			a.Exec(`INSERT INTO t VALUES (1)`)
			c.WaitConverged()
			hinder(t, c)
			fillStream(a)
			full := time.Now() // and for longer than a node must be silent
			a.AwaitStatus(func(r *cluster.Report) bool { return r.At.Sub(full) > 5*failoverAfter })
			if r := a.Status(); len(r.LetGo) > 0 || r.Stream.Bytes < 48*mib {
				t.Errorf("stream of %d bytes, let go: %+v", r.Stream.Bytes, r.LetGo)
			}
		})
	}
}

func unreached(r *cluster.Report) (n int) {
	for _, a := range r.Alarms {
		if a.Code == "node-unreached" {
			n++
		}
	}
	return n
}

// TestHalvesThatLetEachOtherGo: a cluster falls in two, and each half lets the other one go. When they meet again each is given what
// the other half's writes came to.
func TestHalvesThatLetEachOtherGo(t *testing.T) {
	t.Parallel()
	pgtest.Long(t)
	config := letGoConfig()
	config["stream.absent_bytes"] = "1MiB"
	c := cluster.New(t, cluster.Options{Nodes: 4, Majors: pgtest.Versions(t), Config: config, Schema: letGoSchema})
	c.Node("a").Exec(`INSERT INTO t SELECT i, 'first' FROM generate_series(1, 100) i`)
	c.WaitConverged()
	halves := [][]*cluster.Node{c.Nodes[:2], c.Nodes[2:]}
	across := func(do func(*cluster.Link)) {
		for _, n := range halves[0] {
			for _, m := range halves[1] {
				do(n.Links[m.Name])
				do(m.Links[n.Name])
			}
		}
	}
	across((*cluster.Link).Cut)
	for i, n := range c.Nodes {
		n.Exec(`UPDATE t SET v = $1 WHERE id % 8 IN ($2, ($2 + 1) % 8)`, n.Name, i)
		n.Exec(`DELETE FROM t WHERE id % 8 = $1 AND id > 50`, 4+i)
		n.Exec(`INSERT INTO t VALUES ($1, $2), (1000, $2) ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v`, 100+i+1, n.Name)
	}
	for h, half := range halves {
		for _, n := range half {
			fillMore(n, 0)
			n.AwaitStatus(func(r *cluster.Report) bool { return isLetGo(r, halves[1-h][0]) && isLetGo(r, halves[1-h][1]) })
		}
		for _, away := range halves[1-h] {
			awaitGone(t, c, half[0], away, half...)
			awaitGone(t, c, half[1], away, half...)
		}
	}
	for _, half := range halves {
		half[0].Exec(`DELETE FROM big WHERE id % 2 = 0`)
	}
	across((*cluster.Link).Heal)
	c.WaitConverged()
	for _, n := range c.Nodes {
		if resyncs(t, n) == 0 {
			t.Errorf("node %s was given nothing", n.Name)
		}
		n.AwaitStatus(func(r *cluster.Report) bool { return len(r.LetGo) == 0 })
	}
}
