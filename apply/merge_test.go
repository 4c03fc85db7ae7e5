package apply

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

var nodeB = origin.Origin{Node: "b", Epoch: 1}

// newMergedPair has a counter in table t that is merged, with deletes as given.
func newMergedPair(t *testing.T, deletes conflict.Deletes) *pair {
	t.Helper()
	s := pgtest.SharedServer(t, pgtest.Newest(t))
	const schema = `CREATE TABLE t (id int PRIMARY KEY, n int); ALTER TABLE t REPLICA IDENTITY FULL`
	p := newPair(t, s, schema)
	p.merge = []MergePolicy{{Pattern: "public.t", Match: func(_, table string) bool { return table == "t" }, Deletes: deletes,
		Columns: []MergeColumns{{Names: []string{"n"}, Rule: conflict.Delta}}}}
	p.restart()
	return p
}

func intTuple(kind byte, values ...int) []byte {
	b := append([]byte{kind}, 0, byte(len(values)))
	for _, v := range values {
		b = binary.BigEndian.AppendUint32(append(b, 'b', 0, 0, 0, 4), uint32(v))
	}
	return b
}

// deleted has capture tell that a local transaction deleted the row (id, n) of t, with that stamp and having seen up: the
// frame with it is published, too.
func (p *pair) deleted(id, n int, stamp origin.Stamp, up origin.Vector) {
	p.t.Helper()
	var rel *wire.Relation
	for _, r := range p.rels {
		if r.Name == "t" {
			rel = r
		}
	}
	body := wire.AppendRelation(wire.AppendDeps(nil, up, up), rel)
	body = wire.AppendBegin(body, wire.Begin{Seq: 1, Stamp: stamp})
	body = wire.AppendCommit(wire.AppendChange(body, wire.KindDelete, rel.ID, intTuple('O', id, n)))
	p.wal.local.Store(1)
	p.a.Published(p.t.Context(), &wire.Frame{Header: wire.Header{Cluster: p.to.Name, Sender: "b", Origin: nodeB, WriterEpoch: 1,
		FirstSeq: 1, LastSeq: 1, LastStamp: stamp, Up: up, Low: up}, Body: body})
	tab, err := p.a.catalog.table(p.t.Context(), "public", "t")
	if err != nil {
		p.t.Fatal(err)
	}
	p.a.LocalDelete("public", "t", intKey(id), tab.hasher.Hash(intKey(id), nil), origin.Version{Stamp: stamp, Origin: nodeB}, 1, 500)
}

// TestDeleteOnTheWayMeetsAMergedRow: a local delete that capture reads only after a remote transaction has made the row
// again decides as it does on every other node, by the policy.
func TestDeleteOnTheWayMeetsAMergedRow(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		deletes conflict.Deletes
		after   origin.Stamp // behind the remote insert
		saw     bool
		stays   bool
	}{
		"it had declared the row":              {conflict.DeleteLatest, 1000, true, false},
		"it had declared the row, updates win": {conflict.UpdateWins, 1000, true, false},
		"later":                                {conflict.DeleteLatest, 1000, false, false},
		"earlier":                              {conflict.DeleteLatest, -1000, false, true},
		"later, but updates win":               {conflict.UpdateWins, 1000, false, true},
		"earlier, but deletes win":             {conflict.DeleteWins, -1000, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := newMergedPair(t, c.deletes)
			p.do(`INSERT INTO t VALUES (1, 5)`)
			var up origin.Vector
			if c.saw {
				up = origin.Vector{{Origin: nodeA, Seq: p.seq, Stamp: p.last}}
			}
			p.deleted(1, 3, p.last+c.after, up)
			awaitTrue(t, func() bool { return p.a.HoldLSN() == 0 })
			want := "0"
			if c.stays {
				want = "1"
			}
			if got := p.to.Value(t, `SELECT count(*) FROM t`); got != want {
				t.Errorf("%s rows are there, want %s", got, want)
			}
			// The origin knows nothing of the delete and goes on; what it writes meets it here.
			p.do(`UPDATE t SET n = n + 1`)
			if c.deletes == conflict.DeleteLatest && c.stays {
				p.same(`SELECT * FROM t`)
			}
		})
	}
}

// TestMergedRowsAreForgotten: what every node has seen goes out of the journal.
func TestMergedRowsAreForgotten(t *testing.T) {
	t.Parallel()
	p := newMergedPair(t, conflict.DeleteLatest)
	p.do(`INSERT INTO t SELECT i, i FROM generate_series(1, 20) i; UPDATE t SET n = n + 1; DELETE FROM t WHERE id > 10`)
	if n := p.to.Value(t, `SELECT count(DISTINCT (hi, lo)) FROM pgbridge.journal`); n != "20" {
		t.Errorf("the journal holds %s rows, want 20", n)
	}
	reads := func() { p.a.Told(nil, p.a.progress.vector()) } // as capture, at a marker
	reads()
	awaitValue(t, p, `SELECT (SELECT count(*) FROM pgbridge.journal) + (SELECT count(*) FROM pgbridge.journal_base)`, "0")
	p.same(`SELECT * FROM t ORDER BY id`)
	p.do(`UPDATE t SET n = n * 2; TRUNCATE t; INSERT INTO t VALUES (1, 7)`)
	p.same(`SELECT * FROM t ORDER BY id`)
	reads()
	awaitValue(t, p, `SELECT count(*) FROM pgbridge.journal`, "0")
}

// TestOneOfSeveralTruncatesIsForgotten: a TRUNCATE that all have seen takes nothing of the journal with it while the table has
// a later one in it: by that one, an update of a row whose insert is not in the journal would be one of a row that is gone.
func TestOneOfSeveralTruncatesIsForgotten(t *testing.T) {
	t.Parallel()
	p := newMergedPair(t, conflict.DeleteLatest)
	j := &journal{conn: p.to.Connect(t), own: nodeB, origins: p.a.journal.origins, catalog: p.a.catalog, wiped: map[wiped]origin.Vector{}}
	// purge has it forget what it may when all have seen a's transactions up to seq.
	purge := func(seq uint64) {
		t.Helper()
		if err := p.stop(); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		j.heard, j.absence, j.progress, j.locks = p.a.heard, p.a.absence, p.a.progress, newKeyLocks(1)
		j.absence.told(nil, origin.Vector{{Origin: nodeA, Seq: seq}})
		if err := j.purge(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	p.do(`TRUNCATE t`)
	p.do(`TRUNCATE t`)
	p.do(`INSERT INTO t VALUES (1, 1)`)
	purge(1)
	p.start()
	p.do(`INSERT INTO t VALUES (2, 2)`)
	purge(3)
	if got := p.to.Value(t, `SELECT string_agg(seq || ' ' || kind::text, ', ' ORDER BY seq) FROM pgbridge.journal`); got != "2 T, 3 I, 4 I" {
		t.Errorf("the journal holds %s", got)
	}
	p.start()
	p.do(`UPDATE t SET n = n + 1`)
	p.same(`SELECT * FROM t ORDER BY id`)
	purge(5)
	if got := p.to.Value(t, `SELECT count(*) FROM pgbridge.journal`); got != "0" {
		t.Errorf("the journal holds %s writes that all have seen", got)
	}
}

// TestOwnDeleteTellsOfTheRow: an own delete that comes into the journal behind a remote one, which found no row any more, tells
// what the row was; behind a remote insert it does not.
func TestOwnDeleteTellsOfTheRow(t *testing.T) {
	t.Parallel()
	for kind, want := range map[string]string{"D": "f", "I": "t"} {
		t.Run(kind, func(t *testing.T) {
			p := newMergedPair(t, conflict.UpdateWins)
			p.do(`INSERT INTO t VALUES (2, 1)`) // describes the table
			tab, err := p.a.catalog.table(t.Context(), "public", "t")
			if err != nil {
				t.Fatal(err)
			}
			k := tab.hasher.Hash(intKey(1), nil)
			p.to.Exec(t, `INSERT INTO pgbridge.journal_base VALUES ($1, $2, 'public', 't', NULL)`, int64(k.Hi), int64(k.Lo))
			p.to.Exec(t, `INSERT INTO pgbridge.journal VALUES ($1, $2, (SELECT id FROM pgbridge.position), 1, 1, 1, $3, $4, '')`, int64(k.Hi), int64(k.Lo), kind,
				wire.AppendVector(wire.AppendVector(nil, nil), nil))
			p.deleted(1, 7, p.last+1000, nil)
			awaitValue(t, p, `SELECT count(*) FROM pgbridge.journal WHERE origin = 0`, "1")
			if got := p.to.Value(t, `SELECT cells IS NULL FROM pgbridge.journal_base WHERE hi = $1 AND lo = $2`, int64(k.Hi), int64(k.Lo)); got != want {
				t.Errorf("the row is not known: %s, want %s", got, want)
			}
		})
	}
}
