package capture

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

func TestXIDSetAgainstMap(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var s xidSet
	m := map[uint32]bool{}
	for range 20000 {
		x := uint32(r.IntN(3))<<30 + uint32(r.IntN(9000))
		switch r.IntN(3) {
		case 0:
			if s.add(x) == m[x] {
				t.Fatalf("add %d", x)
			}
			m[x] = true
		case 1:
			if s.remove(x) != m[x] {
				t.Fatalf("remove %d", x)
			}
			delete(m, x)
		}
		if s.has(x) != m[x] || s.len() != len(m) {
			t.Fatalf("has %d: %t; %d ids, want %d", x, s.has(x), s.len(), len(m))
		}
	}
}

func TestMarksAgainstList(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var m marks
		var all []wire.Mark
		xid, seq := uint64(1), uint64(0)
		for range 50 {
			xid += uint64(r.IntN(3))
			seq += uint64(r.IntN(3))
			m.add(wire.Mark{XID: xid, Seq: seq}, nil)
			all = append(all, wire.Mark{XID: xid, Seq: seq})
		}
		forgotten := uint64(0)
		check := func() {
			for s := forgotten; s < seq+2; s++ {
				var want uint64
				for _, x := range all {
					if x.Seq <= s {
						want = max(want, x.XID)
					}
				}
				if got, ok := m.newest(s); got.XID != want || ok != (want > 0) {
					t.Fatalf("newest(%d) = %+v, want %d of %v", s, got, want, all)
				}
			}
		}
		check()
		if first, _ := m.first(); first != all[0] {
			t.Fatalf("first %+v, want %+v", first, all[0])
		}
		forgotten = uint64(r.IntN(int(seq) + 1))
		m.forget(forgotten)
		check()
	}
}

// TestMarksWithinAgainstList: the newest mark at which nothing had been announced that the asker does not know.
func TestMarksWithinAgainstList(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	own, p, q := origin.Origin{Node: "own"}, origin.Origin{Node: "p"}, origin.Origin{Node: "q"}
	at := func(ofOwn, ofP, ofQ uint64) origin.Vector {
		var v origin.Vector
		v.Advance(origin.Entry{Origin: own, Seq: ofOwn})
		v.Advance(origin.Entry{Origin: p, Seq: ofP})
		v.Advance(origin.Entry{Origin: q, Seq: ofQ})
		return v
	}
	for range 200 {
		var m marks
		var all []fullMark
		xid, now := uint64(1), [3]uint64{}
		for range 30 {
			xid += uint64(r.IntN(3))
			now[r.IntN(3)] += uint64(r.IntN(3))
			x := fullMark{wire.Mark{XID: xid, Seq: now[0]}, at(0, now[1], now[2])}
			m.add(x.Mark, x.up)
			all = append(all, x)
		}
		check := func(deps origin.Vector) {
			t.Helper()
			var want uint64
			for _, x := range all {
				if x.Seq <= deps.Seq(own) && deps.Covers(q, x.up.Seq(q)) {
					want = max(want, x.XID)
				}
			}
			if got, ok := m.within(deps, own, p); got != want || ok != (want > 0) {
				t.Fatalf("within %v: %d, want %d", deps, got, want)
			}
		}
		for range 20 {
			check(at(r.Uint64N(now[0]+2), r.Uint64N(now[1]+2), r.Uint64N(now[2]+2)))
		}
		stable := at(r.Uint64N(now[0]+1), r.Uint64N(now[1]+1), r.Uint64N(now[2]+1))
		m.forgetWithin(stable, own)
		for range 20 {
			deps := at(r.Uint64N(now[0]+2), r.Uint64N(now[1]+2), r.Uint64N(now[2]+2))
			deps.Merge(stable)
			check(deps)
		}
	}
}

// TestMarksTooFarBack: an id of 32 bits is not on the wrong side of a mark because ids have come round.
func TestMarksTooFarBack(t *testing.T) {
	for last, want := range map[uint64]bool{1000: true, 999 + 1<<31: true, 1000 + 1<<31: false, 1000 + 1<<32: false} {
		var m marks
		m.add(wire.Mark{XID: 1000, Seq: 1}, nil)
		m.add(wire.Mark{XID: last, Seq: 2}, nil)
		_, found := m.newest(1)
		_, within := m.within(origin.Vector{{Origin: origin.Origin{Node: "own"}, Seq: 1}}, origin.Origin{Node: "own"}, origin.Origin{})
		if _, ok := m.newest(2); found != want || within != want || !ok {
			t.Errorf("mark 1000 behind mark %d: %t %t, want %t; the newest: %t", last, found, within, want, ok)
		}
	}
}

// TestWrittenAgainstMap: commit times in no order, with some forgotten behind a mark.
func TestWrittenAgainstMap(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	var w written
	w.begin(7)
	if w.captured() != 7 || w.has(0) {
		t.Error("nothing was captured yet")
	}
	times := map[origin.Stamp]uint64{}
	n := uint64(3*writtenChunk + 100)
	for seq := uint64(8); seq < n; seq++ {
		at := origin.Stamp(10*seq) + origin.Stamp(r.IntN(200))
		w.add(at, seq, uint32(1000+seq))
		times[at] = seq
	}
	check := func(stable uint64) {
		t.Helper()
		for range 2000 {
			at := origin.Stamp(r.Uint64N(10*n + 300))
			if seq, ok := times[at]; w.has(at) != ok && (!ok || seq > stable) {
				t.Fatalf("has(%d): %t", at, w.has(at))
			}
		}
	}
	check(0)
	w.forget(wire.Mark{XID: 1000 + 2*writtenChunk, Seq: n})
	if len(w.chunks) != 3 {
		t.Errorf("%d chunks are left", len(w.chunks))
	}
	check(2 * writtenChunk)
	w.forget(wire.Mark{XID: 1 << 40, Seq: n})
	w.forget(wire.Mark{XID: 1000 + 2*n, Seq: n})
	if len(w.chunks) != 0 || w.captured() != n-1 {
		t.Errorf("%d chunks are left, captured %d", len(w.chunks), w.captured())
	}
}

// TestWrittenIsBounded: what went for lack of room counts as captured.
func TestWrittenIsBounded(t *testing.T) {
	var w written
	for i := range writtenLimit + 2*writtenChunk {
		w.add(origin.Stamp(2*i+100), uint64(i+1), uint32(i+1))
	}
	if got := len(w.chunks) * writtenChunk; got > writtenLimit {
		t.Errorf("%d are kept", got)
	}
	if !w.has(100) || !w.has(101) || w.has(2*writtenLimit+101) {
		t.Error("exactly what is older than the oldest counts as captured")
	}
}

// TestThinMarks: what is left of the list proves no more than the list did.
func TestThinMarks(t *testing.T) {
	var list []wire.Mark
	for i := range uint64(11) {
		list = append(list, wire.Mark{XID: 100 + i, Seq: i})
	}
	thinned := thin(slices.Clone(list))
	if len(thinned) > 7 || thinned[0] != list[0] || thinned[len(thinned)-1] != list[10] {
		t.Errorf("%v", thinned)
	}
	for _, x := range thinned {
		if !slices.Contains(list, x) {
			t.Errorf("%v was not there", x)
		}
	}
}

// TestLiftedIsBounded: the oldest go first, and are counted.
func TestLiftedIsBounded(t *testing.T) {
	var l lifted
	lost := 0
	keys := make([]wire.KeyHash, liftedKeys)
	n := liftedKeysLimit/liftedKeys + 10
	for i := range n {
		at := origin.Stamp(i)
		lost += l.add(at, at+1, uint64(i), keys, false)
	}
	if lost == 0 || len(l.entries)+lost != n || len(l.last) != len(l.entries) {
		t.Errorf("%d lost, %d of %d left, %d commit times", lost, len(l.entries), n, len(l.last))
	}
	if at := origin.Stamp(0); l.stamp(at, keys[0]) != at {
		t.Error("the oldest is still there")
	}
	if at := origin.Stamp(n - 1); l.stamp(at, keys[0]) != at+1 {
		t.Error("the newest is not there")
	}
}

// TestLiftedLastWriterCounts: of several transactions with one commit time, the last that wrote the key.
func TestLiftedLastWriterCounts(t *testing.T) {
	key := func(n uint64) wire.KeyHash { return wire.KeyHash{Lo: n} }
	var l lifted
	l.add(100, 101, 1, []wire.KeyHash{key(1), key(2)}, false)
	l.add(200, 201, 2, []wire.KeyHash{key(1)}, false)
	l.add(100, 202, 3, []wire.KeyHash{key(1)}, false)
	l.add(100, 203, 4, []wire.KeyHash{key(3)}, false)
	for _, c := range []struct {
		at, want origin.Stamp
		key      uint64
	}{{100, 202, 1}, {100, 101, 2}, {100, 203, 3}, {100, 100, 4}, {200, 201, 1}, {200, 200, 2}, {300, 300, 1}} {
		if got := l.stamp(c.at, key(c.key)); got != c.want {
			t.Errorf("stamp(%d, %d) = %d, want %d", c.at, c.key, got, c.want)
		}
	}
	l.forget(3)
	if l.stamp(100, key(1)) != 100 || l.stamp(100, key(3)) != 203 || len(l.entries) != 1 {
		t.Errorf("after forgetting: %+v", l.entries)
	}
}

func TestRecents(t *testing.T) {
	var r recents
	for _, x := range []uint32{1<<32 - 2, 1<<32 - 1, 3, 4, 5} { // across the wrap-around
		r.add(x)
	}
	r.ended(1<<40 + 3)
	if got := r.get(); !slices.Equal(got, []uint32{3, 4, 5}) {
		t.Errorf("after xmin 3: %v", got)
	}
	xmax, running, err := parseSnapshot("1099511627779:1099511627781:1099511627780")
	if err != nil {
		t.Fatal(err)
	}
	r.prune(xmax, running)
	if got := r.get(); !slices.Equal(got, []uint32{4, 5}) {
		t.Errorf("4 runs and 5 began later: %v", got)
	}
	for _, bad := range []string{"", "1:2", "1:x:", "1:2:x"} {
		if _, _, err := parseSnapshot(bad); err == nil {
			t.Errorf("snapshot %q", bad)
		}
	}
}

func TestWaterlineWakesEverybody(t *testing.T) {
	var w waterline
	ctx, cancel := context.WithCancel(t.Context())
	var g sync.WaitGroup
	for i := range uint64(200) {
		g.Go(func() {
			if err := w.wait(ctx, i); err != nil || w.lsn.Load() < i {
				t.Errorf("waited for %d, at %d: %v", i, w.lsn.Load(), err)
			}
		})
	}
	for i := range uint64(200) {
		w.advance(i)
	}
	g.Wait()
	w.advance(7)
	if w.lsn.Load() != 199 || w.waiting.Load() != 0 {
		t.Errorf("at %d, %d wait", w.lsn.Load(), w.waiting.Load())
	}
	cancel()
	if err := w.wait(ctx, 1000); err == nil {
		t.Error("waiting ended without a reason")
	}
}

// TestLedger: the slot gets what is durable, less what is held, and never less than before.
func TestLedger(t *testing.T) {
	pub, del := newRecorder(), &buried{}
	l := &ledger{pub: pub, del: del, after: time.Second}
	l.begin(50)
	l.push(1, 100)
	l.push(2, 200)
	l.push(3, 300)
	for _, c := range []struct{ durable, hold, want uint64 }{
		{0, 0, 50}, {1, 0, 100}, {2, 150, 149}, {2, 120, 149}, {2, 0, 200}, {3, 301, 300}, {3, 0, 300}, {0, 10, 300},
	} {
		pub.durable, del.hold = c.durable, c.hold
		if got := l.confirm(); got != c.want {
			t.Errorf("durable %d, hold %d: %d, want %d", c.durable, c.hold, got, c.want)
		}
	}
	now := time.Now()
	for _, c := range []struct {
		after         time.Duration
		durable, want uint64
	}{{0, 3, 50}, {l.after / 2, 3, 50}, {l.after, 4, 300}, {3 * l.after / 2, 4, 300}, {2 * l.after, 4, 400}} {
		l.push(4, 400)
		pub.durable, del.hold = c.durable, 0
		if got := l.tell(now.Add(c.after)); got != c.want {
			t.Errorf("after %v: %d is told, want %d", c.after, got, c.want)
		}
	}
	for i := range uint64(2*ledgerLimit + 1) {
		l.push(10+i, 1000+i)
	}
	if len(l.waiting) > ledgerLimit {
		t.Errorf("%d entries", len(l.waiting))
	}
	pub.durable, del.hold = 10+ledgerLimit, 0
	if got := l.confirm(); got > 1000+ledgerLimit || got < 1000+ledgerLimit-8 {
		t.Errorf("confirmed %d, durable is %d", got, 1000+ledgerLimit)
	}
}

// TestGravesSpill: on disk or not, what comes out is what went in, without what is void.
func TestGravesSpill(t *testing.T) {
	rel := wire.Relation{ID: 5, Schema: "public", Name: "t", ReplicaIdentity: 'd', Columns: []wire.Column{{Name: "id", TypeOID: 25, Key: true}}}
	a, b := newTable(&rel, nil, nil), newTable(&rel, nil, nil)
	for _, n := range []int{3, 20000} {
		g := graves{dir: t.TempDir() + "/spool"}
		for i := range n {
			e := grave{sub: uint32(i % 7), table: []*Table{a, b}[i%2], hash: wire.KeyHash{Lo: uint64(i)}}
			if i%10 != 0 {
				e.key = []wire.Value{{Format: wire.Binary, Data: []byte(strings.Repeat("k", i%50))}}
			}
			if err := g.add(e); err != nil {
				t.Fatal(err)
			}
		}
		if (g.file != nil) != (n > 1000) || len(g.buf) > gravesInMemory || len(g.tables) > 2 {
			t.Errorf("%d entries: file %v, %d bytes in memory, %d tables", n, g.file, len(g.buf), len(g.tables))
		}
		void := &xidSet{}
		void.add(3)
		var got []int
		if err := g.each(void, func(e grave) {
			i := int(e.hash.Lo)
			got = append(got, i)
			if e.table != []*Table{a, b}[i%2] || (e.key == nil) != (i%10 == 0) || e.key != nil && len(e.key[0].Data) != i%50 {
				t.Fatalf("entry %d: %+v", i, e)
			}
		}); err != nil {
			t.Fatal(err)
		}
		if want := n - (n+3)/7; len(got) != want || !slices.IsSorted(got) {
			t.Errorf("%d entries, want %d", len(got), want)
		}
		g.reset()
		if err := g.each(void, func(grave) { t.Error("an entry after reset") }); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTableKey: which columns are the key, in which order.
func TestTableKey(t *testing.T) {
	columns := func(flags ...bool) (cs []wire.Column) {
		for i, key := range flags {
			cs = append(cs, wire.Column{Name: []string{"b", "a", "c"}[i], TypeOID: 23, Key: key})
		}
		return cs
	}
	for name, c := range map[string]struct {
		identity byte
		columns  []wire.Column
		catalog  []keyColumn
		want     []int
	}{
		"of the catalog":                  {'d', columns(true, true, false), []keyColumn{{name: "a", typ: 23}, {name: "b", typ: 23}}, []int{1, 0}},
		"table is gone":                   {'d', columns(true, true, false), nil, []int{1, 0}},
		"key was changed since":           {'d', columns(true, false, false), []keyColumn{{name: "c", typ: 23}}, []int{0}},
		"key column was renamed since":    {'i', columns(true, false, false), []keyColumn{{name: "z", typ: 23}}, []int{0}},
		"whole row with a key":            {'f', columns(true, true, true), []keyColumn{{name: "c", typ: 23}}, []int{2}},
		"whole row, gone":                 {'f', columns(true, true, true), nil, nil},
		"no identity, inserts have a key": {'n', columns(false, false, false), []keyColumn{{name: "c", typ: 23}}, []int{2}},
		"no identity and no key":          {'d', columns(false, false, false), nil, nil},
	} {
		rel := wire.Relation{Schema: "public", Name: "t", ReplicaIdentity: c.identity, Columns: c.columns}
		if got := newTable(&rel, c.catalog, nil).Key; !slices.Equal(got, c.want) {
			t.Errorf("%s: key %v, want %v", name, got, c.want)
		}
	}
}

// TestDraftTakesDeclarationsBack: a relation whose R record was taken out of the frame is declared again.
func TestDraftTakesDeclarationsBack(t *testing.T) {
	a, b := &relation{Relation: wire.Relation{ID: 1}}, &relation{Relation: wire.Relation{ID: 2}}
	d := &draft{}
	d.begin(MinFrameBytes)
	d.declare(a)
	d.worth = true
	at := len(d.body)
	d.declare(b)
	size := len(d.body)
	d.truncate(at)
	d.declare(a)
	if len(d.body) != at {
		t.Error("a relation is declared twice")
	}
	d.declare(b)
	if len(d.body) != size {
		t.Error("a relation is not declared again")
	}
	d.worth = false
	d.truncate(at)
	if len(d.body) != 0 || len(d.declared) != 0 {
		t.Errorf("%d bytes are left of a frame without worth", len(d.body))
	}
}

// TestBigRowAgreesWithWhole: a row that arrives in parts means the same as one that arrives whole.
func TestBigRowAgreesWithWhole(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 3))
	for range 3000 {
		rel := wire.Relation{ID: 5, Schema: "public", Name: "t", ReplicaIdentity: 'f'}
		var key []keyColumn
		for i := range 1 + r.IntN(4) {
			c := wire.Column{Name: string(rune('a' + i)), TypeOID: 25, Key: true}
			rel.Columns = append(rel.Columns, c)
			if r.IntN(2) == 0 {
				key = append(key, keyColumn{name: c.Name, typ: 25})
			}
		}
		table := newTable(&rel, key, nil)
		value := func() wire.Value {
			switch r.IntN(5) {
			case 0:
				return wire.Value{Format: wire.Null}
			case 1:
				return wire.Value{Format: wire.Unchanged}
			}
			return wire.Value{Format: wire.Binary, Data: []byte(strings.Repeat("v", r.IntN(3)))}
		}
		image := func() (vs []wire.Value) {
			for range rel.Columns {
				vs = append(vs, value())
			}
			return vs
		}
		kind := []wire.Kind{wire.KindInsert, wire.KindUpdate, wire.KindDelete}[r.IntN(3)]
		var tuples []byte
		if kind != wire.KindInsert {
			tuples = appendTuple(append(tuples, 'O'), image())
		}
		if kind != wire.KindDelete {
			tuples = appendTuple(append(tuples, 'N'), image())
		}
		whole, parts := touched{lifted: true}, touched{lifted: true}
		if err := whole.row(t.Context(), table, kind, 9, tuples); err != nil {
			t.Fatal(err)
		}
		var b bigRow
		b.start(table, kind, 9)
		for rest := tuples; len(rest) > 0; {
			n := 1 + r.IntN(len(rest))
			if err := b.feed(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := b.finish(t.Context(), &parts); err != nil {
			t.Fatal(err)
		}
		if string(whole.graves.buf) != string(parts.graves.buf) || !slices.Equal(whole.keys, parts.keys) || whole.many != parts.many {
			t.Fatalf("%c %q with key %v:\n%+v\n%+v", kind, tuples, key, whole, parts)
		}
		b.start(table, kind, 9)
		cut := tuples[:r.IntN(len(tuples))]
		if err := b.feed(cut); err == nil && len(cut) > 0 && kind == wire.KindDelete {
			if err := b.finish(t.Context(), &parts); err == nil {
				t.Fatalf("%q is cut off", cut)
			}
		}
	}
}
