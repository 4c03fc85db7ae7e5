package apply

import (
	"slices"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// TestWhatIsLetGoOutlivesARestart: what own frames deleted is among the tombstones, which nodes lack what is gone is known, and all of
// it ends when every node has seen it.
func TestWhatIsLetGoOutlivesARestart(t *testing.T) {
	t.Parallel()
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT, "c")
	nodeC := origin.Origin{Node: "c", Epoch: 1}
	var keys []wire.KeyHash
	for i := range uint64(tombstoneRow + 10) {
		keys = append(keys, wire.KeyHash{Hi: i, Lo: 1})
	}
	p.a.heard.hear(nodeC, 1, origin.Vector{{Origin: p.a.own, Seq: 3}})
	for i, x := range []LetGo{
		{StreamSeq: 20, Seq: 5, Stamp: 50, Away: []string{"c"}, Buried: []Buried{{Seq: 4, Stamp: 44, Keys: keys}}, Gist: []byte("one")},
		{StreamSeq: 30, Seq: 9, Stamp: 90, Away: []string{"a", "c"}, Buried: []Buried{{Seq: 7, Stamp: 77, Keys: keys[:1], Tables: [][2]string{{"public", "t"}}}}, Gist: []byte("two")},
	} {
		if i == 1 {
			p.a.heard.hear(nodeA, 1, origin.Vector{{Origin: p.a.own, Seq: 9}}) // it was away, but lacks nothing
		}
		if err := p.a.LetGo(t.Context(), x); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string) {
		t.Helper()
		if stream, seq := p.a.Gone(); stream != 30 || seq != 9 {
			t.Errorf("%s: frames below %d and transactions up to %d are gone", when, stream, seq)
		}
		all := p.a.Lacking()
		if len(all) != 1 || all[0].Node != "c" || all[0].Seen != 3 || all[0].Transactions != 6 || all[0].Since.IsZero() {
			t.Errorf("%s: %+v lack what is gone", when, all)
		}
	}
	check("at once")
	p.restart("c")
	check("after a restart")
	var gists []string
	if err := p.a.Gists(t.Context(), func(b []byte) error { gists = append(gists, string(b)); return nil }); err != nil || !slices.Equal(gists, []string{"one", "two"}) {
		t.Errorf("gists %q: %v", gists, err)
	}
	other := tableName{"public", "u"}
	for _, x := range []struct {
		table tableName
		key   wire.KeyHash
		want  uint64
	}{{other, keys[0], 7}, {other, keys[1], 4}, {other, keys[len(keys)-1], 4}, {tableName{"public", "t"}, keys[1], 7}} {
		if d, _ := p.a.absence.tombstone(x.table, x.key); d.seq != x.want || d.Origin != p.a.own || uint64(d.Stamp) != 11*x.want {
			t.Errorf("%v of %v was deleted by %+v, want transaction %d", x.key, x.table, d, x.want)
		}
	}
	left := func(a, c uint64, want string) {
		t.Helper()
		p.a.heard.hear(nodeA, a, origin.Vector{{Origin: p.a.own, Seq: a}})
		p.a.heard.hear(nodeC, c, origin.Vector{{Origin: p.a.own, Seq: c}})
		if err := p.a.purge(t.Context(), p.wal); err != nil {
			t.Fatal(err)
		}
		got := p.to.Value(t, `SELECT concat((SELECT count(*) FROM pgbridge.let_go), ' ', (SELECT count(*) FROM pgbridge.tombstone))`)
		if got != want {
			t.Errorf("when a has seen %d and c %d, rows of let_go and tombstone are %s, want %s", a, c, got, want)
		}
	}
	left(9, 4, "2 4")
	left(10, 5, "1 2")
	left(11, 9, "0 0")
	if all := p.a.Lacking(); len(all) != 0 {
		t.Errorf("%+v lack what they have seen", all)
	}
}
