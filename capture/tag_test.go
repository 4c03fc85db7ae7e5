package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// script builds what a walsender sends.
type script struct{ b []byte }

func (s *script) add(m ...any) *script {
	body := []byte{'w'}
	body = append(body, make([]byte, 24)...)
	for _, x := range m {
		switch x := x.(type) {
		case rune:
			body = append(body, byte(x))
		case byte:
			body = append(body, x)
		case uint16:
			body = binary.BigEndian.AppendUint16(body, x)
		case uint32:
			body = binary.BigEndian.AppendUint32(body, x)
		case uint64:
			body = binary.BigEndian.AppendUint64(body, x)
		case string:
			body = append(append(body, x...), 0)
		case []byte:
			body = append(body, x...)
		default:
			panic(x)
		}
	}
	s.b = binary.BigEndian.AppendUint32(append(s.b, 'd'), uint32(len(body)+4))
	s.b = append(s.b, body...)
	return s
}

func (s *script) keepalive(end uint64, reply byte) *script {
	body := binary.BigEndian.AppendUint64([]byte{'k'}, end)
	body = append(binary.BigEndian.AppendUint64(body, 0), reply)
	s.b = append(binary.BigEndian.AppendUint32(append(s.b, 'd'), uint32(len(body)+4)), body...)
	return s
}

// table announces public.t(id int4 key, x text) with that object id; xid is nil outside of a stream.
func (s *script) table(id uint32, xid []byte) *script {
	return s.add('R', xid, id, "public", "t", 'd', uint16(2),
		byte(1), "id", uint32(23), uint32(1<<32-1), byte(0), "x", uint32(25), uint32(1<<32-1))
}

func (s *script) begin(lsn, at uint64, xid uint32) *script { return s.add('B', lsn, at, xid) }

func (s *script) commit(lsn, at uint64) *script { return s.add('C', byte(0), lsn, lsn+8, at) }

func (s *script) marker(lsn uint64, up, done origin.Vector, xmin uint64) *script {
	c := binary.BigEndian.AppendUint64(wire.AppendMarker(nil, up, done), xmin)
	return s.add('M', byte(0), lsn, wire.MarkerPrefix, uint32(len(c)), c)
}

func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// tuple is a tuple of (int4, text).
func tuple(id uint32, x string) []byte {
	return appendTuple(nil, []wire.Value{{Format: wire.Binary, Data: be32(id)}, {Format: wire.Binary, Data: []byte(x)}})
}

// keyTuple is the key of one.
func keyTuple(id uint32) []byte {
	return appendTuple(nil, []wire.Value{{Format: wire.Binary, Data: be32(id)}, {Format: wire.Null}})
}

// workbench is a session without a server.
type workbench struct {
	*session
	pub     *recorder
	deletes *buried
}

func newWorkbench(t testing.TB, frameBytes int) *workbench {
	t.Helper()
	w := &workbench{pub: newRecorder(), deletes: &buried{}}
	c, err := New(Options{
		DSN: "none", Cluster: "x", Node: "a", Origin: origin.Origin{Node: "a", Epoch: 1}, WriterEpoch: 1,
		Slot: "s", Publication: "p", FrameBytes: frameBytes, SpoolDir: filepath.Join(os.TempDir(), "pgbridge-capture-test"), Logger: slog.New(slog.DiscardHandler),
	}, w.pub, w.deletes, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.tagger.lookUp = func(context.Context, uint32) ([]keyColumn, error) { return nil, nil }
	c.tagger.crowded = func() {}
	c.tagger.draft.begin(c.tagger.target())
	w.session = newSession(c, &wireConn{asked: make(chan struct{}, 1)})
	return w
}

// play feeds the script in pieces of at most n bytes, then lets go what may go.
func (w *workbench) play(s *script, n int) error {
	for b := s.b; len(b) > 0; {
		k := min(n, len(b))
		if err := w.stitch.feed(context.Background(), b[:k], w.session); err != nil {
			return err
		}
		b = b[k:]
	}
	// Once for the draft's time to begin, once for it to be over.
	if _, err := w.tagger.tend(context.Background(), time.Now(), true); err != nil {
		return err
	}
	_, err := w.tagger.tend(context.Background(), time.Now().Add(time.Hour), true)
	return err
}

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

// TestInterruptedAnywhere: wherever the connection is lost, what it had begun is begun anew and comes once.
func TestInterruptedAnywhere(t *testing.T) {
	b := exampleScript(2 * MinFrameBytes).b
	var ends []int // of messages
	for at := 0; at < len(b); {
		n, _, err := messageSize(b[at:])
		if err != nil {
			t.Fatal(err)
		}
		at += n
		ends = append(ends, at)
	}
	for _, cut := range ends {
		w := newWorkbench(t, MinFrameBytes)
		if err := w.play(&script{b: b[:cut]}, 1000); err != nil {
			t.Fatal(err)
		}
		w.tagger.interrupted()
		w.stitch.rest = nil
		before := w.tagger.position
		if err := w.play(behind(t, b, before), 1000); err != nil {
			t.Fatalf("behind %d: %v", before, err)
		}
		var seqs []uint64
		var xids []uint32
		for _, x := range read(t, w.pub.all()).done {
			seqs, xids = append(seqs, x.Seq), append(xids, x.XID)
		}
		if !slices.Equal(seqs, []uint64{1, 2, 3, 4}) || !slices.Equal(xids, []uint32{701, 702, 710, 721}) {
			t.Errorf("cut at byte %d: seqs %v, transactions %v", cut, seqs, xids)
		}
		checkFrames(t, w.pub.all())
	}
}

// behind is what a server sends that is asked to begin at lsn: announcements and streamed transactions from
// their start, commits from lsn on.
func behind(t *testing.T, b []byte, lsn uint64) *script {
	t.Helper()
	s := &script{}
	skip := false
	for at := 0; at < len(b); {
		n, _, err := messageSize(b[at:])
		if err != nil {
			t.Fatal(err)
		}
		m := b[at : at+n]
		at += n
		if m[copyHead] == 'k' {
			continue
		}
		kind, c := m[dataHead], cursor{b: m[dataHead+1:]}
		switch kind {
		case msgBegin:
			skip = c.u64() < lsn
		case msgStreamStart, msgStreamAbort, msgStreamCommit:
			skip = lsn > 300 // the only one commits there
		case msgLogical:
			c.u8()
			skip = c.u64() < lsn
		}
		if !skip {
			s.b = append(s.b, m...)
		}
		switch kind {
		case msgCommit, msgStreamStop, msgStreamAbort, msgStreamCommit, msgLogical:
			skip = false
		}
	}
	return s
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
	if last := w.pub.all()[1]; !last.Low.Equal(vector("b", 3)) || last.Mark.XID != 3 || last.ResumeLSN != 301 {
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
	for code, lost := range map[string]bool{"57P01": true, "55006": true, "53300": true, "08006": true, "XX000": false, "42704": false, "28000": false} {
		err := newWorkbench(t, MinFrameBytes).play(message(code), 1<<20)
		if isLost(err) != lost {
			t.Errorf("%s: %v", code, err)
		}
	}
	var check *CheckError
	if err := newWorkbench(t, MinFrameBytes).play(message("42704"), 1<<20); !errors.As(err, &check) || !check.Has(CodeSlotMissing) {
		t.Error(err)
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

func (nobody) LocalDelete(Delete)     {}
func (nobody) LocalTruncate(Truncate) {}
func (nobody) HoldLSN() uint64        { return 0 }

// FuzzMessages feeds arbitrary bytes to everything between the socket and the publisher: it must refuse or
// make frames that can be taken apart.
func FuzzMessages(f *testing.F) {
	f.Add(exampleScript(10).b, uint16(1000))
	f.Add(exampleScript(MinFrameBytes).b, uint16(100))
	f.Add((&script{}).table(5, nil).begin(1, 1, 1).add('U', uint32(5), 'O', tuple(1, "a"), 'N', tuple(2, "b")).commit(1, 1).b, uint16(3))
	f.Fuzz(func(t *testing.T, data []byte, piece uint16) {
		w := newWorkbench(t, MinFrameBytes)
		err := w.play(&script{b: bytes.Clone(data)}, max(1, int(piece)))
		w.tagger.interrupted()
		if perr := w.tagger.publish(context.Background()); perr != nil {
			t.Fatal(perr)
		}
		checkFrames(t, w.pub.all())
		var check *CheckError
		if err != nil && !errors.Is(err, ErrProtocol) && !errors.Is(err, wire.ErrCorrupt) && !errors.As(err, &check) &&
			!strings.Contains(err.Error(), "replicat") && !strings.Contains(err.Error(), "key of a deleted row") {
			t.Fatalf("an error of no kind: %v", err)
		}
	})
}

// checkFrames checks what holds of all frames, whatever the rows in them are.
func checkFrames(t *testing.T, frames []*wire.Frame) {
	t.Helper()
	var seq uint64
	lengths := map[uint64]uint64{}
	for _, f := range frames {
		recs := wire.NewRecords(f.Body)
		open := false
		for {
			rec, err := recs.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			switch rec.Kind {
			case wire.KindBegin:
				b, err := wire.ParseBegin(rec.Payload)
				if err != nil || open || b.Seq != seq+1 {
					t.Fatalf("begin %+v behind %d, %v", b, seq, err)
				}
				open, seq = true, b.Seq
			case wire.KindCommit:
				open = false
			case wire.KindChunk:
				run, offset, b, err := wire.ParseChunk(rec.Payload)
				if err != nil || offset != lengths[run] {
					t.Fatalf("chunk of run %d at %d instead of %d, %v", run, offset, lengths[run], err)
				}
				lengths[run] += uint64(len(b))
			case wire.KindLargeCommit:
				l, err := wire.ParseLargeCommit(rec.Payload)
				if err != nil || l.Seq != seq+1 || l.Length != lengths[l.Run] {
					t.Fatalf("%+v behind %d, length %d, %v", l, seq, lengths[l.Run], err)
				}
				seq = l.Seq
			}
		}
		if open || f.LastSeq != seq {
			t.Fatalf("frame ends in a transaction (%t) or says %d instead of %d", open, f.LastSeq, seq)
		}
	}
}
