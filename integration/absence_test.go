package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// TestAbsenceCostsWhatHasChanged: tables of many rows, of which some are changed on both sides while a node is away, until the others
// let it go. What it is given then is a small part of its tables, nobody's memory grows with them, and the others hold no WAL.
func TestAbsenceCostsWhatHasChanged(t *testing.T) {
	t.Parallel()
	pgtest.Long(t)
	rows := 40_000 // of each table; one in twenty is changed on each side
	if pgtest.Soak() {
		rows = 1_000_000
	}
	config := letGoConfig()
	config["stream.max_bytes"], config["stream.absent_bytes"] = "512MiB", "128KiB"
	c := cluster.New(t, cluster.Options{Majors: pgtest.Versions(t), Processes: true, Own: true, Config: config, Settings: map[string]string{"fsync": "off"},
		Schema: `CREATE TABLE x (id int PRIMARY KEY, v text, n int); CREATE TABLE y (id int PRIMARY KEY, v text, n int)`})
	a, b, other := c.Node("a"), c.Node("b"), c.Node("c")
	for _, table := range []string{"x", "y"} {
		for from := 0; from < rows; from += 20_000 {
			a.Exec(fmt.Sprintf(`INSERT INTO %s SELECT i, repeat(md5(i::text), 4), 0 FROM generate_series(%d, %d) i`, table, from+1, from+20_000))
		}
	}
	c.WaitConverged()
	separate(c, b)
	// Of every hundred rows a changes 1 to 3, b 3 and 4, and a's row of that number was there before b's.
	each := func(n *cluster.Node, what string) {
		for _, table := range []string{"x", "y"} {
			n.Exec(fmt.Sprintf(what, table))
		}
	}
	each(a, `UPDATE %s SET v = repeat(md5('a' || id), 4), n = n + 1 WHERE id %% 100 BETWEEN 1 AND 3`)
	each(a, `DELETE FROM %s WHERE id %% 200 = 5`)
	each(other, `INSERT INTO %[1]s SELECT -id, v, n FROM %[1]s WHERE id %% 200 = 6`)
	each(b, `UPDATE %s SET v = repeat(md5('b' || id), 4), n = n + 1 WHERE id %% 100 BETWEEN 3 AND 4`)
	each(b, `DELETE FROM %s WHERE id %% 200 = 7`)
	awaitSame(a, other, `SELECT count(*), sum(n), sum(id::bigint) FROM x`, `SELECT count(*), sum(n), sum(id::bigint) FROM y`)
	here := []*cluster.Node{a, other}
	a.AwaitStatus(func(r *cluster.Report) bool { return isLetGo(r, b) }) // c has written less
	awaitGone(t, c, a, b, a, other)
	for _, n := range here {
		n.AwaitStatus(func(r *cluster.Report) bool {
			n.Exec(`CHECKPOINT`) // on an idle server nothing else has a slot find out what it need not keep
			return r.Publisher.DurableSeq == r.Seq && r.Slot.WALHeldBytes < 64<<20
		})
		t.Logf("node %s holds %.1f MiB of WAL", n.Name, float64(n.Status().Slot.WALHeldBytes)/(1<<20))
	}
	copied, took := copyTables(t, a, b, "x", "y")
	for _, l := range b.Links {
		l.Heal()
	}
	for _, n := range here {
		n.Links[b.Name].Heal()
	}
	c.WaitConverged()
	given, changed, seconds := givenTo(t, b)
	t.Logf("a full copy of %d rows is %.1f MiB and takes %s; what had changed is %d rows, %.2f MiB (%.1f %%), and took %s", 2*rows, float64(copied)/(1<<20), took.Round(time.Millisecond),
		changed, float64(given)/(1<<20), 100*float64(given)/float64(copied), seconds)
	if given*20 > copied {
		t.Errorf("node b was given %d bytes, its tables are %d", given, copied)
	}
	for _, n := range c.Nodes {
		want := fmt.Sprint(rows/100, "|", rows/50)
		if got := n.Query(`SELECT count(*) FILTER (WHERE v = repeat(md5('b' || id), 4) AND id % 100 = 3), count(*) FILTER (WHERE v = repeat(md5('a' || id), 4)) FROM x`); got[0] != want {
			t.Errorf("node %s has %s rows of b and a, want %s", n.Name, got[0], want)
		}
		if peak := n.PeakMemory(); peak > memoryLimit {
			t.Errorf("node %s: peak memory of the bridge %d MiB, the limit is %d", n.Name, peak>>20, memoryLimit>>20)
		} else {
			t.Logf("node %s: peak memory of the bridge %d MiB", n.Name, peak>>20)
		}
	}
}

// isLetGo reports whether a node that reports this has let another one go.
func isLetGo(r *cluster.Report, away *cluster.Node) bool {
	return slices.ContainsFunc(r.LetGo, func(x bridge.LetGoReport) bool { return x.Node == away.Name })
}

// copyTables copies tables of one node into new ones of another, as a full copy would, and returns the bytes and how long it took.
func copyTables(t *testing.T, from, to *cluster.Node, tables ...string) (size int, took time.Duration) {
	t.Helper()
	read, write := pgtest.Connect(t, from.DSN), pgtest.Connect(t, to.DSN)
	begun := time.Now()
	for _, table := range tables {
		if _, err := write.Exec(t.Context(), fmt.Sprintf(`CREATE UNLOGGED TABLE %[1]s_copy (LIKE %[1]s INCLUDING ALL)`, table)); err != nil {
			t.Fatal(err)
		}
		r, w := io.Pipe()
		go func() {
			_, err := read.PgConn().CopyTo(context.Background(), w, "COPY "+table+" TO STDOUT (FORMAT binary)")
			w.CloseWithError(err)
		}()
		counted := &counter{r: r}
		if _, err := write.PgConn().CopyFrom(t.Context(), counted, "COPY "+table+"_copy FROM STDIN (FORMAT binary)"); err != nil {
			t.Fatal(err)
		}
		size += counted.n
		if _, err := write.Exec(t.Context(), "DROP TABLE "+table+"_copy"); err != nil {
			t.Fatal(err)
		}
	}
	return size, time.Since(begun)
}

// counter counts what is read.
type counter struct {
	r io.Reader
	n int
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += n
	return n, err
}

// givenTo says how many bytes and rows a node was given, by its log, and how long that took.
func givenTo(t *testing.T, n *cluster.Node) (size, rows int, took string) {
	t.Helper()
	said := regexp.MustCompile(`has taken in what came meanwhile.* bytes=(\d+) rows=(\d+) .* took=(\S+)`)
	var m [][]byte
	n.AwaitStatus(func(*cluster.Report) bool { // it is said a moment after the rows are there
		text, err := os.ReadFile(filepath.Join(n.Dir, "bridge.log"))
		if err != nil {
			t.Fatal(err)
		}
		m = said.FindSubmatch(bytes.TrimSpace(text))
		return m != nil
	})
	size, _ = strconv.Atoi(string(m[1]))
	rows, _ = strconv.Atoi(string(m[2]))
	return size, rows, string(m[3])
}
