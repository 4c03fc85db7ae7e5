package integration

import (
	"bytes"
	"fmt"
	"math/rand"
	"slices"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// TestJoinWithRows: a node joins with the rows of an old dump, in which some are missing, some have changed and some are left over; what
// is still so is not copied, and it is one of the others afterwards.
func TestJoinWithRows(t *testing.T) {
	t.Parallel()
	c, rows, page := newJoined(t, `;
		CREATE TABLE partial (id int PRIMARY KEY, u int, on_ boolean, w text); CREATE UNIQUE INDEX ON partial (u, lower(w)) WHERE on_;
		CREATE TABLE moved (id int PRIMARY KEY, u int UNIQUE); CREATE TABLE apart (id int PRIMARY KEY, r int4range, EXCLUDE USING gist (r WITH &&))`)
	c.Node("b").Exec(`INSERT INTO partial SELECT i, i % 10, i <= 10, 'W' FROM generate_series(1, 50) i`)
	c.Node("b").Exec(`INSERT INTO moved SELECT i, i FROM generate_series(0, 1199) i`)
	c.Node("b").Exec(`INSERT INTO apart SELECT i, int4range(10 * i, 10 * i + 9) FROM generate_series(0, 1199) i`)
	c.WaitConverged()
	old := *c
	d := c.Grow()
	d.Exec(alteredParted)
	dump := restoreFrom(t, c.Node("a"), d)
	s := seedOr(t, 944428)
	t.Logf("seed %d", s)
	r := rand.New(rand.NewSource(s))
	// Values that must be unique stand in rows of later pages, and others in rows that stay and are not in the index.
	d.Exec(`BEGIN; UPDATE moved SET u = -1 - u; UPDATE moved SET u = (599 - u) % 1200; COMMIT`)
	d.Exec(`UPDATE partial SET u = u + 100 WHERE on_`)
	d.Exec(`DELETE FROM apart; INSERT INTO apart SELECT i, int4range(10 * (1199 - i), 10 * (1199 - i) + 5) FROM generate_series(0, 1199) i`)
	for range 40 {
		spoil(d, r, rows)
	}
	l := newLoad(t, &old, 1, s)
	l.lacks = 500
	if pgtest.Soak() { // TestJoin has it always
		l.start()
	}
	o := bridge.JoinOptions{From: "a", Jobs: 2, PageRows: page, Logger: d.Logger()}
	if err := bridge.Join(t.Context(), d.Load(), o); err == nil || !strings.Contains(err.Error(), "--existing") {
		t.Errorf("join where rows are: %v", err)
	}
	cancelJoin(t, d, bridge.JoinOptions{From: "a", Jobs: 2, PageRows: page, Existing: true}, rows/3)
	changeWhileCopied(&old)
	b := c.Node("b")
	b.Exec(`UPDATE partial SET on_ = false WHERE id BETWEEN 5 AND 10`)
	b.Exec(`UPDATE partial SET on_ = true WHERE id BETWEEN 15 AND 20`)
	var last bridge.JoinProgress
	o = bridge.JoinOptions{From: "b", Jobs: 4, PageRows: page, Existing: true, Logger: d.Logger(), Tell: func(text string) { t.Log(text) },
		Progress: func(p bridge.JoinProgress) { last = p }}
	if err := bridge.Join(t.Context(), d.Load(), o); err != nil {
		t.Fatalf("%v\n%s", err, d.LogTail())
	}
	if last.Rows < int64(rows) || last.Bytes > dump/2 {
		t.Errorf("%d rows, of which %d bytes were copied; the dump has %d", last.Rows, last.Bytes, dump)
	}
	d.Start()
	if pgtest.Soak() {
		l.stop()
	}
	for _, n := range c.Nodes {
		n.AwaitStatus(func(r *cluster.Report) bool {
			return !slices.ContainsFunc(r.Links, func(l bridge.LinkReport) bool { return l.AppliedSeq < l.ReceivedSeq })
		})
	}
	c.WaitConverged()
	requireSchemas(t, c)
	requireApplied(t, &old, l)

	// What stood there before counts as old: it loses against all, and what is written over it meets nobody.
	before := d.Value(`SELECT count(*) FROM pgbridge.conflict`)
	d.Exec(`UPDATE bulk SET v = 'of d' WHERE id % 100 = 1`)
	c.WaitConverged()
	c.Node("a").Exec(`UPDATE bulk SET v = 'of a, late' WHERE id % 200 = 3`)
	b.Exec(`DELETE FROM bulk WHERE id % 10 = 4`)
	c.WaitConverged()
	if got := d.Value(`SELECT count(*) FROM pgbridge.conflict`); got != before {
		t.Errorf("%s conflicts with rows that stood here before, %s earlier", got, before)
	}
}

// joinedTables are those of joinSchema that have rows worth copying.
var joinedTables = []string{"bulk", "keyed", "parted", "felt", "uniq", "emptied", "partial", "moved", "apart"}

// restoreFrom copies the rows of one node to another one, as a dump does, and returns how many bytes they are.
func restoreFrom(t *testing.T, from, to *cluster.Node) (size int64) {
	t.Helper()
	source, target := pgtest.Connect(t, from.DSN), pgtest.Connect(t, to.DSN)
	for _, table := range joinedTables {
		columns := from.Value(`SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
			WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''`, table)
		var b bytes.Buffer
		if _, err := source.PgConn().CopyTo(t.Context(), &b, fmt.Sprintf("COPY (SELECT %s FROM %s) TO STDOUT", columns, table)); err != nil {
			t.Fatal(err)
		}
		size += int64(b.Len())
		if _, err := target.PgConn().CopyFrom(t.Context(), &b, fmt.Sprintf("COPY %s (%s) FROM STDIN", table, columns)); err != nil {
			t.Fatal(err)
		}
	}
	return size
}

// spoil changes a few rows, so that they are not those of the others.
func spoil(n *cluster.Node, r *rand.Rand, rows int) {
	id := r.Intn(rows)
	n.Exec([]string{
		fmt.Sprintf(`DELETE FROM bulk WHERE id BETWEEN %d AND %d`, id, id+r.Intn(20)),
		fmt.Sprintf(`UPDATE bulk SET v = 'spoilt' WHERE id BETWEEN %d AND %d`, id, id+r.Intn(20)),
		fmt.Sprintf(`INSERT INTO bulk SELECT i, 'left over' FROM generate_series(%d, %d) i ON CONFLICT DO NOTHING`, id-rows, id-rows+r.Intn(700)),
		fmt.Sprintf(`INSERT INTO bulk SELECT i, 'left over' FROM generate_series(%d, %d) i ON CONFLICT DO NOTHING`, rows+id, rows+id+r.Intn(700)),
		`UPDATE uniq SET u = NULL WHERE id % 2 = 0`,
		`UPDATE uniq SET u = NULL WHERE id % 3 = 0`,
		fmt.Sprintf(`BEGIN; UPDATE uniq SET u = NULL WHERE id IN (%[1]d, %[1]d + 1); UPDATE uniq SET u = 2 * %[1]d + 1 - id WHERE id IN (%[1]d, %[1]d + 1); COMMIT`, 1+2*(id%49)),
		fmt.Sprintf(`DELETE FROM keyed WHERE a < 0; UPDATE keyed SET a = a + 1 WHERE b < chr(%d)`, 65+r.Intn(57)),
		fmt.Sprintf(`UPDATE parted SET id = id + 3000 WHERE id BETWEEN %d AND %[1]d + 100`, id%900),
		`INSERT INTO emptied SELECT generate_series(-50, -1) ON CONFLICT DO NOTHING`,
		fmt.Sprintf(`DELETE FROM felt WHERE at < current_date - %d`, r.Intn(50)),
	}[r.Intn(11)])
}
