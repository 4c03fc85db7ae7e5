package capture

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// knows is what a Capture would answer from after it was restored, in a form that can be compared.
type knows struct {
	times   []origin.Stamp
	last    uint64
	lifted  []liftedEntry
	marks   []wire.Mark
	full    []fullMark
	recents []uint32
}

func (c *Capture) knows() (k knows) {
	for _, x := range c.state.written.chunks {
		k.times = append(k.times, x.times...)
	}
	slices.Sort(k.times)
	k.last = c.state.written.last
	k.lifted, k.marks, k.full, k.recents = c.state.lifted.entries, c.state.marks.list, c.state.marks.full, c.state.recents.xids
	for i := range k.lifted {
		if len(k.lifted[i].keys) == 0 {
			k.lifted[i].keys = nil
		}
	}
	return k
}

func difference(a, b knows) (what string, x, y any) {
	for i := range reflect.TypeFor[knows]().NumField() {
		x, y := fmt.Sprintf("%+v", reflect.ValueOf(a).Field(i)), fmt.Sprintf("%+v", reflect.ValueOf(b).Field(i))
		if x != y {
			return reflect.TypeFor[knows]().Field(i).Name, x, y
		}
	}
	return "", nil, nil
}

// TestGistsAreAsGoodAsTheirFrames: random transactions, of which the first frames are boiled down, once or several times. Restored from
// what is left a Capture knows what it would know from the frames, and what they deleted is told.
func TestGistsAreAsGoodAsTheirFrames(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		r := rand.New(rand.NewPCG(seed, 1))
		b := newBench(t, s.NewDatabase(t), `
			CREATE TABLE t (id int PRIMARY KEY, x text);
			CREATE TABLE f (id int PRIMARY KEY, x text);
			ALTER TABLE f REPLICA IDENTITY FULL`)
		smallMemory(b)
		b.opts.FrameBytes = MinFrameBytes
		b.start(nil)
		b.history(r)
		b.exec(`TRUNCATE t, f;
INSERT INTO t SELECT i, 'behind it' FROM generate_series(1, 50) i;
DELETE FROM t WHERE id % 3 = 0`)
		frames := b.sentinel()
		b.end()
		tail := frames[len(frames)-1]
		whole := &buried{}
		want, err := New(b.opts, b.pub, whole, tail)
		b.must(err)
		for _, f := range frames {
			b.must(want.Restore(f))
		}
		var cuts []int // where no run is open
		for i, f := range frames {
			if f.Back == 0 && i > 0 {
				cuts = append(cuts, i+1)
			}
		}
		if len(cuts) == 0 || len(want.state.lifted.entries) == 0 {
			t.Fatalf("%d places to cut, %d lifted transactions", len(cuts), len(want.state.lifted.entries))
		}
		for range 10 {
			gists, from := 1+r.IntN(3), 0
			rest := &buried{}
			got, err := New(b.opts, b.pub, rest, tail)
			b.must(err)
			var gone []wire.KeyHash
			var truncates []string
			for _, to := range b.some(r, cuts, gists) {
				g := want.NewGist()
				for _, f := range frames[from:to] {
					b.must(g.Frame(f))
				}
				if seq, stamp := g.Last(); seq != frames[to-1].LastSeq || stamp != frames[to-1].LastStamp {
					t.Errorf("gist up to transaction %d@%d, its last frame goes up to %d@%d", seq, stamp, frames[to-1].LastSeq, frames[to-1].LastStamp)
				}
				for _, x := range g.Buried() {
					gone = append(gone, x.Keys...)
					for _, table := range x.Tables {
						truncates = append(truncates, fmt.Sprintf("%d truncate %s.%s", x.Seq, table.Schema, table.Name))
					}
				}
				b.must(got.RestoreGist(g.Encode()))
				g.Close()
				from = to
			}
			for _, f := range frames[from:] {
				b.must(got.Restore(f))
			}
			if what, g, w := difference(got.knows(), want.knows()); what != "" {
				t.Fatalf("boiled down up to frame %d of %d, its %s are\n%+v\nand by the frames\n%+v", from, len(frames), what, g, w)
			}
			if all := append(gone, rest.hashes...); !slices.Equal(all, whole.hashes) {
				t.Errorf("%d deletes are boiled down, %d told of, %d by the frames", len(gone), len(rest.hashes), len(whole.hashes))
			}
			for _, x := range truncates {
				if !slices.Contains(whole.told(), x) {
					t.Errorf("%s is boiled down", x)
				}
			}
			if n := len(whole.told()) - len(whole.hashes); n != len(truncates)+len(rest.told())-len(rest.hashes) {
				t.Errorf("%d truncates are boiled down, %d in all", len(truncates), n)
			}
		}
	})
}

// some returns n of the places, in order, the last one not always.
func (b *bench) some(r *rand.Rand, places []int, n int) (some []int) {
	for range n {
		some = append(some, places[r.IntN(len(places))])
	}
	slices.Sort(some)
	return slices.Compact(some)
}

// TestGistOfALostStamp: what was forgotten for lack of room does not count as known after a restart either.
func TestGistOfALostStamp(t *testing.T) {
	w := newWorkbench(t, MinFrameBytes)
	g := w.NewGist()
	for i := range origin.Stamp(3) {
		g.state.written.add(10+i, uint64(i)+1, 700)
		g.state.lifted.add(10+i, 100+i, uint64(i)+1, nil, true)
	}
	g.state.lifted.lose(11, 2)
	if err := w.RestoreGist(g.Encode()); err != nil {
		t.Fatal(err)
	}
	for at, want := range map[origin.Stamp]bool{9: false, 10: false, 11: false, 12: true} {
		if got := w.Wrote(at); got != want {
			t.Errorf("written at %d: %t, want %t", at, got, want)
		}
	}
	w.Forget(origin.Vector{{Origin: w.opts.Origin, Seq: 1}})
	if w.Wrote(11) {
		t.Error("a stamp that is not known counts as known when an older one is stable")
	}
	w.Forget(origin.Vector{{Origin: w.opts.Origin, Seq: 2}})
	if !w.Wrote(11) {
		t.Error("a stamp that nobody can ask for any more counts as not known")
	}
}

func FuzzRestoreGist(f *testing.F) {
	g := &Gist{}
	g.state.written.add(10, 1, 700)
	g.state.lifted.add(10, 12, 1, []wire.KeyHash{{Hi: 1, Lo: 2}}, false)
	g.state.marks.add(wire.Mark{XID: 701, Seq: 1}, vector("b", 3))
	g.state.recents.add(702)
	f.Add(g.Encode())
	f.Add([]byte{gistForm})
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &Capture{state: &state{}}
		if err := c.RestoreGist(b); err == nil && len(c.state.written.chunks) > len(b) {
			t.Errorf("%d bytes make %d chunks", len(b), len(c.state.written.chunks))
		}
	})
}

// TestLiftedStampsAreBounded: what was forgotten is unknown, and not taken for a stamp that was not lifted.
func TestLiftedStampsAreBounded(t *testing.T) {
	var l lifted
	for i := range origin.Stamp(liftedLimit + 2) {
		l.add(10+i, 1000+i, uint64(i)+1, nil, true)
	}
	if !l.unknown(10) || !l.unknown(11) || l.unknown(12) {
		t.Error("of two that were forgotten the stamps count as known, or that of the next one as not known")
	}
	if l.forget(2); l.unknown(11) {
		t.Error("what is stable counts as not known")
	}
}
