package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

func TestPiecesDoNotMatter(t *testing.T) {
	s := exampleScript(3 * MinFrameBytes)
	var want string
	for _, n := range []int{len(s.b), 1, 2, 7, 64, 1000} {
		w := newWorkbench(t, MinFrameBytes)
		if err := w.play(s, n); err != nil {
			t.Fatal(err)
		}
		got := describe(t, w.pub.all()) + strings.Join(w.deletes.told(), "\n")
		if want == "" {
			want = got
		}
		if got != want {
			t.Errorf("in pieces of %d bytes:\n%s\nwhole:\n%s", n, got, want)
		}
	}
}

// exampleScript has every message that pgoutput sends, and a row of that many bytes.
func exampleScript(large int) *script {
	s := &script{}
	s.table(5, nil).marker(10, vector("b", 2), vector("b", 1), 700)
	s.begin(100, 1000, 701).add('I', uint32(5), 'N', tuple(1, "one")).
		add('U', uint32(5), 'K', keyTuple(1), 'N', tuple(2, "two")).add('D', uint32(5), 'K', keyTuple(2)).
		add('T', uint32(1), byte(2), uint32(5)).commit(100, 1000)
	s.keepalive(150, 1)
	s.add('S', uint32(710), byte(1)).add('Y', uint32(710), uint32(20000), "app", "mood").table(5, be32(710)).
		add('I', uint32(710), uint32(5), 'N', tuple(10, "top")).add('I', uint32(711), uint32(5), 'N', tuple(11, "sub")).
		add('D', uint32(711), uint32(5), 'K', keyTuple(1)).add('E')
	s.begin(200, 900, 702).add('I', uint32(5), 'N', tuple(3, "between")).commit(200, 900)
	s.add('A', uint32(710), uint32(711))
	s.add('S', uint32(710), byte(0)).add('D', uint32(712), uint32(5), 'K', keyTuple(9)).add('E')
	s.add('c', uint32(710), byte(0), uint64(300), uint64(308), uint64(1100))
	s.begin(400, 1200, 720).add('O', uint64(0), originPrefix("x", "a")+"_b_1").add('I', uint32(5), 'N', tuple(4, "applied")).commit(400, 1200)
	s.begin(500, 1300, 721).add('I', uint32(5), 'N', tuple(5, strings.Repeat("x", large))).
		add('D', uint32(5), 'K', keyTuple(5)).commit(500, 1300)
	s.begin(600, 1400, 722).commit(600, 1400)
	return s
}

func TestExampleScript(t *testing.T) {
	w := newWorkbench(t, MinFrameBytes)
	if err := w.play(exampleScript(3*MinFrameBytes), 1<<20); err != nil {
		t.Fatal(err)
	}
	want := `1 up {b:2} low {b:1}
  insert public.t id=1 x=one
  update public.t key id=1 x=NULL to id=2 x=two
  delete public.t key id=2 x=NULL
  truncate 2 public.t
2 up {b:2} low {b:1}
  insert public.t id=3 x=between
3 large up {b:2} low {b:1}
  insert public.t id=10 x=top
  delete public.t key id=9 x=NULL
4 large up {b:2} low {b:1}
  insert public.t id=5 x=<12288 bytes>
  delete public.t key id=5 x=NULL
`
	if got := describe(t, w.pub.all()); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	told := []string{"1 delete public.t id=1", "1 delete public.t id=2", "1 truncate public.t", "3 delete public.t id=9", "4 delete public.t id=5"}
	if got := w.deletes.told(); !slices.Equal(got, told) {
		t.Errorf("told %q", got)
	}
	done := read(t, w.pub.all()).done
	if s := []origin.Stamp{done[0].Stamp, done[1].Stamp, done[2].Stamp}; !slices.Equal(s, []origin.Stamp{1000, 1001, 1100}) {
		t.Errorf("stamps %v", s)
	}
	if w.Passed() != 608 {
		t.Errorf("passed %d", w.Passed())
	}
	if len(w.wire.asked) != 1 {
		t.Error("the keepalive that asks for a reply gets none")
	}
}

// TestRunsWithoutRows: a streamed transaction of which nothing is left gets no seq, since it would have got
// none if it had not been streamed (PROOF.md R6); its run is given up.
func TestRunsWithoutRows(t *testing.T) {
	w := newWorkbench(t, MinFrameBytes)
	s := &script{}
	stream := func(xid uint32, subs ...uint32) {
		s.add('S', xid, byte(1)).table(5, be32(xid))
		for _, sub := range subs {
			s.add('I', sub, uint32(5), 'N', tuple(sub, ""))
		}
		s.add('E')
	}
	end := func(xid uint32, lsn uint64) { s.add('c', xid, byte(0), lsn, lsn+8, lsn) }
	stream(10, 11, 12, 11)
	s.add('A', uint32(10), uint32(11)).add('A', uint32(10), uint32(12))
	end(10, 100)
	stream(20, 20)
	s.add('A', uint32(20), uint32(20))
	stream(30, 31)
	s.add('A', uint32(30), uint32(32)) // had no rows
	end(30, 300)
	stream(40)
	end(40, 400)
	s.add('A', uint32(50), uint32(51)) // of a transaction that was never begun
	stream(60, 61, 60)
	s.add('A', uint32(60), uint32(61))
	end(60, 600)
	if err := w.play(s, 1<<20); err != nil {
		t.Fatal(err)
	}
	r := read(t, w.pub.all())
	if got := describe(t, w.pub.all()); got != "1 large up {} low {}\n  insert public.t id=31 x=\n2 large up {} low {}\n  insert public.t id=60 x=\n" {
		t.Errorf("got\n%s", got)
	}
	if r.aborted != 2 || len(r.runs) != 0 {
		t.Errorf("%d runs were given up, %d are open", r.aborted, len(r.runs))
	}
}

// TestStreamedRelationsAreTheirOwn: a relation that a streamed transaction announces counts for others only
// when it has committed (pgoutput.c, maybe_send_schema and cleanup_rel_sync_cache).
func TestStreamedRelationsAreTheirOwn(t *testing.T) {
	renamed := func(s *script, xid uint32) {
		s.add('R', xid, uint32(5), "public", "renamed", 'd', uint16(1), byte(1), "id", uint32(23), uint32(0))
	}
	one := appendTuple(nil, []wire.Value{{Format: wire.Binary, Data: be32(7)}})
	for _, committed := range []bool{false, true} {
		w := newWorkbench(t, MinFrameBytes)
		s := (&script{}).table(5, nil).add('S', uint32(10), byte(1))
		renamed(s, 10)
		s.add('I', uint32(10), uint32(5), 'N', one).add('E')
		s.begin(100, 100, 20).add('I', uint32(5), 'N', tuple(1, "old")).commit(100, 100)
		want := "1 up {} low {}\n  insert public.t id=1 x=old\n"
		if committed {
			s.add('c', uint32(10), byte(0), uint64(200), uint64(208), uint64(200))
			s.begin(300, 300, 21).add('I', uint32(5), 'N', one).commit(300, 300)
			want += "2 large up {} low {}\n  insert public.renamed id=7\n3 up {} low {}\n  insert public.renamed id=7\n"
		} else {
			s.add('A', uint32(10), uint32(10))
			s.begin(300, 300, 21).add('I', uint32(5), 'N', tuple(2, "old")).commit(300, 300)
			want += "2 up {} low {}\n  insert public.t id=2 x=old\n"
		}
		if err := w.play(s, 1<<20); err != nil {
			t.Fatal(err)
		}
		if got := describe(t, w.pub.all()); got != want {
			t.Errorf("committed %t: got\n%swant\n%s", committed, got, want)
		}
	}
}

// TestFramesKeepTheirSize: whatever the sizes of transactions, no frame is larger than its bound by more than
// the records that end it, and all can be read.
func TestFramesKeepTheirSize(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	for range 20 {
		w := newWorkbench(t, MinFrameBytes+r.IntN(8000))
		w.pub.maxBody = 2 * MinFrameBytes
		w.tagger.draft.begin(w.tagger.target())
		s := (&script{}).table(5, nil)
		n := 20 + r.IntN(30)
		var up origin.Vector
		var want []origin.Vector
		for i := range n {
			at := uint64(100 + 10*i)
			if r.IntN(4) == 0 {
				up = vector("b", i+1)
				s.marker(at-5, up, vector("b", i), 600)
			}
			want = append(want, up)
			s.begin(at, at, uint32(700+i))
			for range 1 + r.IntN(6) {
				s.add('I', uint32(5), 'N', tuple(uint32(i), strings.Repeat("y", r.IntN(1+r.IntN(6000)))))
			}
			s.commit(at, at)
		}
		if err := w.play(s, 1+r.IntN(5000)); err != nil {
			t.Fatal(err)
		}
		got := read(t, w.pub.all()).done
		if len(got) != n {
			t.Fatalf("%d transactions, want %d", len(got), n)
		}
		for i, x := range got {
			if !x.up.Equal(want[i]) {
				t.Fatalf("transaction %d depends on %v, want %v", x.Seq, x.up, want[i])
			}
		}
	}
}

// TestDependenciesWithinAFrame: a marker counts for what stands behind it in the WAL, also within one frame.
func TestDependenciesWithinAFrame(t *testing.T) {
	w := newWorkbench(t, 64<<10)
	s := (&script{}).table(5, nil)
	for i := range 4 {
		at := uint64(100 * (i + 1))
		s.begin(at, at, uint32(700+i)).add('I', uint32(5), 'N', tuple(uint32(i), "")).commit(at, at)
		s.marker(at+50, vector("b", i+1), vector("b", i), uint64(700+i))
	}
	if err := w.play(s, 1<<20); err != nil {
		t.Fatal(err)
	}
	var got string
	for _, x := range read(t, w.pub.all()).done {
		got += fmt.Sprintf("%d {%s} {%s}\n", x.Seq, x.up, x.low)
	}
	if want := "1 {} {}\n2 {b:1} {}\n3 {b:2} {b:1}\n4 {b:3} {b:2}\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// TestEmptyFramesKeepTheirDistance: vectors that come faster than emptyInterval share a frame.
func TestEmptyFramesKeepTheirDistance(t *testing.T) {
	w := newWorkbench(t, MinFrameBytes)
	ctx := context.Background()
	marked := func(i int) {
		t.Helper()
		s := (&script{}).marker(uint64(100*i), vector("b", i), vector("b", i), uint64(i))
		if err := w.stitch.feed(ctx, s.b, w.session); err != nil {
			t.Fatal(err)
		}
	}
	frames := func(at time.Time, want int) {
		t.Helper()
		if _, err := w.tagger.tend(ctx, at, true); err != nil {
			t.Fatal(err)
		}
		if n := len(w.pub.all()); n != want {
			t.Fatalf("%d frames, want %d", n, want)
		}
	}
	marked(1)
	frames(time.Now(), 1) // the first at once
	sent := w.tagger.pacing.empty
	marked(2)
	frames(sent.Add(emptyInterval/2), 1)
	marked(3)
	frames(sent.Add(emptyInterval), 2)
	frames(sent.Add(100*emptyInterval), 2) // nothing new
	if last := w.pub.all()[1]; !last.Low.Equal(vector("b", 3)) || last.Mark.XID != 3 || last.ResumeLSN != 300 {
		t.Errorf("%+v", last.Header)
	}
}

// TestMemoryIsBounded: a row is never held as a whole, whatever its size (invariant 8).
func TestMemoryIsBounded(t *testing.T) {
	w := newWorkbench(t, 64<<10)
	w.tagger.pub = &sinkhole{recorder{first: 1, maxBody: 1 << 20, changed: make(chan struct{})}}
	const size = 16 << 20
	s := (&script{}).table(5, nil).begin(100, 100, 7).add('I', uint32(5), 'N', tuple(1, strings.Repeat("x", size))).
		add('U', uint32(5), 'K', keyTuple(1), 'N', tuple(2, strings.Repeat("x", size))).commit(100, 100)
	if err := w.play(s, bufferBytes); err != nil {
		t.Fatal(err)
	}
	g := w.tagger
	if held := cap(w.stitch.rest) + cap(g.chunk) + cap(g.draft.body) + cap(g.moved); held > 4*wholeLimit {
		t.Errorf("%d bytes are held for rows of %d", held, size)
	}
	if g.seq != 1 || g.counters.Bytes+uint64(g.opts.FrameBytes) < 2*size {
		t.Errorf("seq %d, %d bytes", g.seq, g.counters.Bytes)
	}
}

// TestBadMessages: what the server must not send ends the session with ErrProtocol.
func TestBadMessages(t *testing.T) {
	for name, s := range map[string]*script{
		"unknown letter":       new(script).add('!'),
		"empty":                new(script).add(),
		"row outside":          new(script).table(5, nil).add('I', uint32(5), 'N', tuple(1, "")),
		"unknown relation":     new(script).begin(1, 1, 1).add('I', uint32(5), 'N', tuple(1, "")),
		"row without a tuple":  new(script).table(5, nil).begin(1, 1, 1).add('I', uint32(5)),
		"cut tuple":            new(script).table(5, nil).begin(1, 1, 1).add('D', uint32(5), 'K', keyTuple(1)[:5]),
		"begin in transaction": new(script).begin(1, 1, 1).begin(2, 2, 2),
		"another commit":       new(script).begin(1, 1, 1).commit(2, 1),
		"commit outside":       new(script).commit(2, 1),
		"stream in stream":     new(script).add('S', uint32(1), byte(1)).add('S', uint32(2), byte(1)),
		"begin in stream":      new(script).add('S', uint32(1), byte(1)).begin(1, 1, 1),
		"second segment only":  new(script).add('S', uint32(1), byte(0)),
		"stop outside":         new(script).add('E'),
		"unknown commit":       new(script).add('c', uint32(1), byte(0), uint64(1), uint64(2), uint64(3)),
		"short abort":          new(script).add('A', uint32(1)),
		"short truncate":       new(script).table(5, nil).begin(1, 1, 1).add('T', uint32(2), byte(0), uint32(5)),
		"short relation":       new(script).add('R', uint32(5), "public"),
		"late origin":          new(script).table(5, nil).begin(1, 1, 1).add('I', uint32(5), 'N', tuple(1, "")).add('O', uint64(0), originPrefix("x", "a")),
		"short message length": {b: []byte{'d', 0, 0, 0, 3}},
		"huge message length":  {b: []byte{'d', 0xff, 0xff, 0xff, 0xff}},
		"unknown message":      {b: []byte{'#', 0, 0, 0, 4}},
		"unknown replication":  {b: []byte{'d', 0, 0, 0, 5, 'x'}},
	} {
		w := newWorkbench(t, MinFrameBytes)
		if err := w.play(s, 1<<20); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestServerErrors: what the server says decides whether to connect again.
func TestServerErrors(t *testing.T) {
	message := func(code string) *script {
		body := "SFATAL\x00C" + code + "\x00Mwords\x00\x00"
		return &script{b: append(binary.BigEndian.AppendUint32([]byte{'E'}, uint32(len(body)+4)), body...)}
	}
	for code, lost := range map[string]bool{"57P01": true, "55006": true, "53300": true, "08006": true, "XX000": false, "28000": false} {
		err := newWorkbench(t, MinFrameBytes).play(message(code), 1<<20)
		if isLost(err) != lost {
			t.Errorf("%s: %v", code, err)
		}
	}
	if err := newWorkbench(t, MinFrameBytes).play(&script{b: []byte{'c', 0, 0, 0, 4}}, 9); !isLost(err) || !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// sinkhole is a Publisher that takes everything and keeps nothing.
type sinkhole struct{ recorder }

func (s *sinkhole) Publish(context.Context, *wire.Frame) (uint64, error) {
	s.first++
	return s.last(), nil
}

// TestRowsDoNotAllocate: the hot path works in buffers that it has.
func TestRowsDoNotAllocate(t *testing.T) {
	w := newWorkbench(t, 64<<10)
	w.tagger.pub = &sinkhole{recorder{first: 1, maxBody: 1 << 20, changed: make(chan struct{})}}
	w.ledger.pub = w.tagger.pub
	const rows = 1000
	s := (&script{}).begin(100, 100, 7)
	for i := range uint32(rows / 3) {
		s.add('I', uint32(5), 'N', tuple(i, "some text")).add('U', uint32(5), 'N', tuple(i, "other text")).add('D', uint32(5), 'K', keyTuple(i))
	}
	s.commit(100, 100)
	if err := w.play((&script{}).table(5, nil), 1<<20); err != nil {
		t.Fatal(err)
	}
	w.tagger.del = nobody{}
	n := testing.AllocsPerRun(50, func() {
		if err := w.stitch.feed(context.Background(), s.b, w.session); err != nil {
			t.Fatal(err)
		}
	})
	if n > rows/50 {
		t.Errorf("%v allocations for %d rows", n, rows)
	}
}

type nobody struct{}

func (nobody) LocalDelete(Delete)                      {}
func (nobody) LocalTruncate(Truncate)                  {}
func (nobody) LocalSchema(uint64, uint32)              {}
func (nobody) HoldLSN() uint64                         { return 0 }
func (nobody) Told(_, low origin.Vector) origin.Vector { return low }
