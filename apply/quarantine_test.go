package apply

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// versions feeds an applier with transactions of several origins, each with the stamp that the test gives it. They are
// written in a database whose tables have no unique indexes besides their keys.
type versions struct {
	*pair
	seqs map[origin.Origin]uint64
	base origin.Stamp
	sent map[origin.Origin]uint64
}

func newVersions(t *testing.T, s *pgtest.Server, tables, uniques string) *versions {
	t.Helper()
	p := newPairOf(t, s, s, tables, tables+";"+uniques, "c", "d")
	return &versions{pair: p, seqs: map[origin.Origin]uint64{}, sent: map[origin.Origin]uint64{}, base: origin.StampOf(time.Now())}
}

func node(name string) origin.Origin { return origin.Origin{Node: name, Epoch: 1} }

// write has an origin commit sql as one transaction at a stamp behind base, and waits until it is applied.
func (v *versions) write(name string, at int, sql string) {
	v.t.Helper()
	v.from.Exec(v.t, sql)
	v.ship(name, at)
}

func (v *versions) ship(name string, at int) {
	v.t.Helper()
	o := node(name)
	rows, err := v.src.Query(v.t.Context(), `SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, NULL,
		'proto_version', '1', 'publication_names', 'p', 'binary', 'true')`, v.slot())
	if err != nil {
		v.t.Fatal(err)
	}
	messages, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		v.t.Fatal(err)
	}
	v.seqs[o]++
	stamp := v.base + origin.Stamp(at)
	var changes []byte
	types := map[uint32][2]string{}
	for _, m := range messages {
		switch m[0] {
		case 'Y':
			names := strings.SplitN(string(m[5:]), "\x00", 3)
			types[binary.BigEndian.Uint32(m[1:])] = [2]string{names[0], names[1]}
		case 'R':
			r := parseRelation(m, types)
			v.rels[r.ID] = r
		case 'I', 'U', 'D':
			id := binary.BigEndian.Uint32(m[1:])
			changes = wire.AppendRelation(changes, v.rels[id])
			changes = wire.AppendChange(changes, wire.Kind(m[0]), id, m[5:])
		case 'T':
			id := binary.BigEndian.Uint32(m[6:])
			changes = wire.AppendRelation(changes, v.rels[id])
			changes = wire.AppendTruncate(changes, m[5], []uint32{id})
		}
	}
	begin := wire.Begin{Seq: v.seqs[o], Stamp: stamp, CommitTime: stamp}
	body := append(append(wire.AppendBegin(wire.AppendDeps(nil, nil, nil), begin), changes...), wire.AppendCommit(nil)...)
	v.sent[o]++
	f := &wire.Frame{Header: wire.Header{Cluster: v.to.Name, Sender: name, Origin: o, WriterEpoch: 1, LastSeq: v.seqs[o], LastStamp: stamp}, Body: body}
	if err := v.a.Feed(v.t.Context(), o, v.sent[o], f); err != nil {
		v.t.Fatal(err)
	}
	awaitTrue(v.t, func() bool {
		return v.a.progress.vector().Covers(o, v.seqs[o])
	})
}

// shows waits until the rows of the table, and those that are kept out of it, are as expected, by id.
func (v *versions) shows(visible, kept string) {
	v.t.Helper()
	got := func() (string, string) {
		return v.to.Value(v.t, `SELECT COALESCE(string_agg(id::text, ' ' ORDER BY id), '') FROM t`),
			v.to.Value(v.t, `SELECT COALESCE(string_agg(image[array_position(columns, 'id')], ' ' ORDER BY image[array_position(columns, 'id')]::int), '') FROM pgbridge.quarantine`)
	}
	end := time.Now().Add(10 * time.Second)
	for {
		a, b := got()
		if a == visible && b == kept {
			break
		}
		if time.Now().After(end) {
			v.t.Fatalf("visible %q, kept %q; want %q and %q; %+v", a, b, visible, kept, v.a.Status())
		}
		time.Sleep(5 * time.Millisecond) // between two looks at what no event tells of
	}
	if n := v.a.Quarantined(); n != len(strings.Fields(kept)) {
		v.t.Errorf("status counts %d kept rows, want %q", n, kept)
	}
}

const threeColumns = `CREATE TABLE t (id int PRIMARY KEY, e text, f text)`

// TestVisibleRowsDoNotDependOnTheOrder is the example of PROOF.md R30: in all orders the same rows are visible.
func TestVisibleRowsDoNotDependOnTheOrder(t *testing.T) {
	s := pgtest.SharedServer(t, pgtest.Newest(t))
	row := []string{"", `INSERT INTO t VALUES (1, 'e1', 'f1')`, `INSERT INTO t VALUES (2, 'e1', 'f2')`, `INSERT INTO t VALUES (3, 'e2', 'f2')`}
	for _, order := range [][]int{{1, 2, 3}, {1, 3, 2}, {2, 1, 3}, {2, 3, 1}, {3, 1, 2}, {3, 2, 1}} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			v := newVersions(t, s, threeColumns, `CREATE UNIQUE INDEX ON t (e); ALTER TABLE t ADD UNIQUE (f)`)
			for _, n := range order {
				v.write([]string{"", "a", "c", "d"}[n], n, row[n])
			}
			v.shows("1 3", "2")
			if got := v.to.Query(t, `SELECT DISTINCT kind FROM pgbridge.conflict`); !slices.Equal(got, []string{"unique"}) {
				t.Errorf("history has %q", got)
			}
			// And back again: without 3, 2 is the latest.
			v.write("d", 10, `DELETE FROM t WHERE id = 3`)
			v.shows("2", "1")
			v.write("c", 11, `DELETE FROM t WHERE id = 2`)
			v.shows("1", "")
		})
	}
}
