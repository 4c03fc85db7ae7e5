package apply

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// TestLossesAreOfRows: a transaction that lost on one row was there first on its others.
func TestLossesAreOfRows(t *testing.T) {
	b := testInbox(t)
	v := origin.Version{Stamp: 50, Origin: nodeC}
	many := make([]wire.Loss, lostKeysLimit+1)
	for i := range many {
		many[i] = wire.Loss{Version: v, Table: 3, Key: uint64(i + 1)}
	}
	body := wire.AppendLost(nil, append(many, wire.Loss{Version: v, Table: 1, Key: 7}, wire.Loss{Version: v, Table: 2}, wire.Loss{Version: v, Table: 2, Key: 9}))
	var unheard *unheardError
	if _, err := b.saw(v, 1, 8); !errors.As(err, &unheard) {
		t.Fatalf("before anything was heard: %v", err)
	}
	if err := pushFrame(t, b, 1, origin.Vector{{Origin: nodeC, Seq: 5, Stamp: 50}}, body); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		table, key uint64
		want       bool
		why        string
	}{
		{1, 7, false, "it lost there"},
		{1, 8, true, "it lost on another row"},
		{1, 0, false, "which row it is cannot be said"},
		{2, 8, false, "which rows were lost cannot be said"},
		{3, 1 << 40, false, "too many were lost"},
		{4, 7, true, "it lost in other tables"},
	} {
		if got, err := b.saw(v, c.table, c.key); got != c.want || err != nil {
			t.Errorf("row %d of table %d: saw %v, %v; %s", c.key, c.table, got, err, c.why)
		}
	}
	if got, err := b.saw(origin.Version{Stamp: 49, Origin: nodeC}, 1, 7); !got || err != nil {
		t.Errorf("another transaction: %v, %v", got, err)
	}
}

// TestNodeTellsWhatLost: the rows of tables with large values, of a DELETE that is followed by an INSERT too.
func TestNodeTellsWhatLost(t *testing.T) {
	t.Parallel()
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT+`; CREATE TABLE small (id int PRIMARY KEY)`)
	p.do(`INSERT INTO t SELECT generate_series(1, 5); INSERT INTO small VALUES (1)`)
	slot := "pgb_" + p.to.Name + "_told"
	p.to.Exec(t, `CREATE PUBLICATION p`)
	p.to.Exec(t, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
	p.from.Exec(t, `BEGIN; UPDATE t SET v = 'remote' WHERE id < 4; DELETE FROM t WHERE id = 5; INSERT INTO t VALUES (5); DELETE FROM small; COMMIT`)
	p.to.Exec(t, `UPDATE t SET v = 'local' WHERE id IN (2, 5); UPDATE small SET id = id`)
	p.ship(nil, false)
	p.await()
	if _, err := p.a.markers.flush(t.Context()); err != nil { // decoding reads what is flushed
		t.Fatal(err)
	}
	rows, err := p.to.Connect(t).Query(t.Context(), `SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, NULL,
		'proto_version', '1', 'publication_names', 'p', 'messages', 'true')`, slot)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		t.Fatal(err)
	}
	var told []uint64
	for _, m := range messages {
		if m[0] != 'M' {
			continue
		}
		_, content, _ := bytes.Cut(m[10:], []byte{0})
		marker, err := wire.ParseMarker(content[4:][:binary.BigEndian.Uint32(content)])
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range marker.Lost {
			if want := (origin.Version{Stamp: p.last, Origin: nodeA}); l.Version != want || l.Table != wire.TableHash("public", "t") {
				t.Errorf("told of %+v, want %v in table t", l, want)
			}
			told = append(told, l.Key)
		}
	}
	tab, err := p.a.catalog.table(t.Context(), "public", "t")
	if err != nil {
		t.Fatal(err)
	}
	var want []uint64
	for _, id := range []int{2, 5} {
		want = append(want, tab.hasher.Shared(tab.hasher.Hash(intKey(id), nil)))
	}
	slices.Sort(want)
	slices.Sort(told)
	if !slices.Equal(told, want) {
		t.Errorf("told of rows %x, want %x", told, want)
	}
}
