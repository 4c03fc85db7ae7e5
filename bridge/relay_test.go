package bridge

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"

	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/wire"
)

var quiet = slog.New(slog.DiscardHandler)

func testRelay() *relay {
	return &relay{life: &life{bridge: &bridge{cfg: &config.Config{Node: "b"}}}, origin: origin.Origin{Node: "a", Epoch: 1},
		changed: make(chan struct{})}
}

// TestRelayTakesWhatComes: also with stream sequences that came before, as of a sender whose broker has lost its last frames.
func TestRelayTakesWhatComes(t *testing.T) {
	r := testRelay()
	take := func(seq, last uint64, hops ...string) error {
		return r.take(t.Context(), seq, &wire.Frame{Header: wire.Header{LastSeq: last, Hops: hops}})
	}
	r.begin()
	for _, seq := range []uint64{1, 2, 3} {
		if err := take(seq, 10*seq); err != nil {
			t.Fatal(err)
		}
	}
	r.begin()
	if err := take(2, 40, "a"); err != nil {
		t.Fatal(err)
	}
	if len(r.queue) != 4 || r.upTo() != 40 || r.queue[3].reading == r.queue[2].reading {
		t.Errorf("%d frames wait, up to transaction %d", len(r.queue), r.upTo())
	}
	// What this node has handed on comes back where ways change, and is not handed on again, unless it was lost here.
	for i, last := range []uint64{40, 50} {
		if err := take(uint64(3+i), last, "a", "b", "c"); err != nil || len(r.queue) != 4+i || r.upTo() != 40+10*uint64(i) {
			t.Errorf("a frame that was here already: %v; %d frames wait, up to transaction %d", err, len(r.queue), r.upTo())
		}
	}
}

// TestRelayTakesFramesOnce: what reading brings again that begins anew, as on another connection, is not handed on again, unless
// a run is open in it or it has no transactions, but news.
func TestRelayTakesFramesOnce(t *testing.T) {
	r := testRelay()
	for i, x := range []struct {
		header wire.Header
		taken  bool
	}{
		{wire.Header{FirstSeq: 1, LastSeq: 2}, true},
		{wire.Header{FirstSeq: 3, LastSeq: 4, Back: 2}, true},
		{wire.Header{FirstSeq: 1, LastSeq: 2}, false},
		{wire.Header{FirstSeq: 3, LastSeq: 4, Back: 2}, true},
		{wire.Header{LastSeq: 4}, true},
		{wire.Header{FirstSeq: 4, LastSeq: 5}, true},
		{wire.Header{FirstSeq: 4, LastSeq: 5}, false},
	} {
		r.begin()
		r.queue = nil
		if err := r.take(t.Context(), uint64(i), &wire.Frame{Header: x.header}); err != nil || (len(r.queue) == 1) != x.taken {
			t.Errorf("frame %d: %v; %d taken, want that %t", i, err, len(r.queue), x.taken)
		}
	}
}

// openedRelay is node b's relay of a, with a broker of its own, and a publisher that runs.
func openedRelay(t *testing.T, maxBytes config.Size) *relay {
	server, err := stream.StartServer(stream.ServerOptions{Listen: "127.0.0.1:0", StoreDir: t.TempDir(), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	nc, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	l := testRelay().life
	l.cfg.Cluster, l.cfg.Topology.Nodes, l.cfg.Stream.MaxBytes = "x", map[string]string{"a": "", "b": "", "c": ""}, maxBytes
	l.log, l.node.WriterEpoch = quiet, 1
	r, err := l.openRelay(t.Context(), nc, origin.Origin{Node: "a", Epoch: 1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.pub.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return r
}

func awaitDurable(r *relay) {
	for changed := r.pub.Changed(); r.pub.InFlight() > 0; changed = r.pub.Changed() {
		<-changed
	}
}

// TestWhatComesAgainGoesOn: an author begins its stream anew, and its frames come again, with runs of other names, for what was handed
// on and for more. Numbers rise all along the stream in which they are handed on, so that what is asked for is found in it; no
// transaction stands there twice, and no run is left open.
func TestWhatComesAgainGoesOn(t *testing.T) {
	r := openedRelay(t, 1<<30)
	relation := wire.AppendRelation(nil, &wire.Relation{ID: 7, Schema: "public", Name: "t"})
	frame := func(h wire.Header, body ...[]byte) *wire.Frame {
		h.Cluster, h.Sender, h.Origin, h.LastStamp, h.ResumeLSN = "x", "a", r.origin, origin.Stamp(h.LastSeq), 100+h.LastSeq
		return &wire.Frame{Header: h, Body: slices.Concat(body...)}
	}
	small := func(seq uint64) []byte {
		return wire.AppendCommit(wire.AppendBegin(nil, wire.Begin{Seq: seq}))
	}
	chunk := func(run, offset uint64) []byte { return wire.AppendChunk(nil, run, offset, []byte("data")) }
	large := func(seq, run uint64) []byte {
		return wire.AppendLargeCommit(nil, wire.LargeCommit{Begin: wire.Begin{Seq: seq}, Run: run, Length: 8})
	}
	readings := [][]*wire.Frame{{
		frame(wire.Header{WriterEpoch: 1, Back: 1}, chunk(1, 0)),
		frame(wire.Header{WriterEpoch: 1, Back: 1, FirstSeq: 1, LastSeq: 2}, chunk(1, 4), small(1), small(2)),
		frame(wire.Header{WriterEpoch: 1, FirstSeq: 3, LastSeq: 4}, large(3, 1), small(4)),
		frame(wire.Header{WriterEpoch: 1, LastSeq: 4}),
	}, {
		frame(wire.Header{WriterEpoch: 2}),
		frame(wire.Header{WriterEpoch: 2, Back: 2}, chunk(5, 0)),
		frame(wire.Header{WriterEpoch: 2, Back: 2, FirstSeq: 1, LastSeq: 1}, small(1), chunk(6, 0)),
		frame(wire.Header{WriterEpoch: 2, Back: 3, FirstSeq: 2, LastSeq: 3}, small(2), chunk(5, 4), large(3, 5)),
		frame(wire.Header{WriterEpoch: 2, Back: 3, FirstSeq: 4, LastSeq: 5}, relation, small(4), small(5), chunk(6, 4)),
		frame(wire.Header{WriterEpoch: 2, FirstSeq: 6, LastSeq: 6}, large(6, 6)),
	}, {
		frame(wire.Header{WriterEpoch: 2, Back: 1, LastSeq: 5}, chunk(6, 0)),
		frame(wire.Header{WriterEpoch: 2, FirstSeq: 6, LastSeq: 6}, chunk(6, 4), large(6, 6)),
	}}
	for _, reading := range readings {
		r.begin()
		r.places = nil
		for i, f := range reading {
			if err := r.take(t.Context(), uint64(i+1), f); err != nil {
				t.Fatal(err)
			}
			for len(r.queue) > 0 {
				x, err := r.next(t.Context())
				if err == nil {
					err = r.handOn(t.Context(), x)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	awaitDurable(r)

	var last wire.Header
	begun, ended, runs, relations := map[uint64]int{}, map[uint64]uint64{}, map[uint64]bool{}, 0
	err := r.pub.Scan(t.Context(), r.fenced+1, r.handed, func(seq uint64, f *wire.Frame) error {
		if f.LastSeq < last.LastSeq || f.LastStamp < last.LastStamp || f.ResumeLSN < last.ResumeLSN || f.FirstSeq > f.LastSeq || f.FirstSeq != 0 && f.FirstSeq != last.LastSeq+1 {
			t.Errorf("frame %d: transactions %d to %d, from WAL up to %d, behind %d and %d", seq, f.FirstSeq, f.LastSeq, f.ResumeLSN, last.LastSeq, last.ResumeLSN)
		}
		last = f.Header
		recs := wire.NewRecords(f.Body)
		for rec, err := recs.Next(); err == nil; rec, err = recs.Next() {
			switch rec.Kind {
			case wire.KindRelation:
				relations++
			case wire.KindBegin:
				b, _ := wire.ParseBegin(rec.Payload)
				begun[b.Seq]++
				ended[b.Seq] = seq
			case wire.KindLargeCommit:
				c, _ := wire.ParseLargeCommit(rec.Payload)
				begun[c.Seq]++
				ended[c.Seq] = seq
				delete(runs, c.Run)
			case wire.KindRunAbort:
				id, _ := wire.ParseNumber(rec.Payload)
				delete(runs, id)
			case wire.KindChunk:
				id, _, _, _ := wire.ParseChunk(rec.Payload)
				runs[id] = true
			}
		}
		return nil
	})
	if err != nil || last.LastSeq != 6 || len(runs) != 0 || relations != 1 {
		t.Errorf("%v; transactions up to %d, runs %v are open, %d relations", err, last.LastSeq, runs, relations)
	}
	for seq := uint64(1); seq <= 6; seq++ {
		if at, err := r.reader.Find(t.Context(), r.origin, seq); err != nil || at > ended[seq] || begun[seq] != 1 {
			t.Errorf("transaction %d stands %d times, last in frame %d, and is looked for from frame %d on, %v", seq, begun[seq], ended[seq], at, err)
		}
	}
}

// TestRelayGivesUpTheOldest: what nobody may purge yet goes when it is too much, with an alarm; what is newer stays.
func TestRelayGivesUpTheOldest(t *testing.T) {
	r := openedRelay(t, 1<<20)
	ctx := t.Context()
	for seq := uint64(1); seq <= 100; seq++ {
		x := received{1, seq, &wire.Frame{Header: wire.Header{Cluster: "x", Sender: "a", Origin: r.origin, WriterEpoch: 5, FirstSeq: seq, LastSeq: seq},
			Body: make([]byte, 16<<10)}}
		if err := r.handOn(ctx, x); err != nil {
			t.Fatal(err)
		}
	}
	awaitDurable(r)
	before, err := r.pub.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for r.alarm() == nil || before.Bytes > 1<<20 {
		if err := r.limit(ctx); err != nil {
			t.Fatal(err)
		}
		after, err := r.pub.Info(ctx)
		if err != nil || after.First <= before.First || after.Last != before.Last {
			t.Fatalf("of frames %d to %d are left %d to %d, %v", before.First, before.Last, after.First, after.Last, err)
		}
		before = after
	}
	if err := r.limit(ctx); err != nil {
		t.Fatal(err)
	}
	if after, err := r.pub.Info(ctx); err != nil || after.First != before.First {
		t.Errorf("frames %d on are left of %d, though there is room, %v", after.First, before.First, err)
	}
	if _, err := r.reader.Find(ctx, r.origin, 1); !errors.Is(err, stream.ErrGap) {
		t.Errorf("who needs what was given up is told: %v", err)
	}
}

func TestRelayWaitsForRoom(t *testing.T) {
	r := testRelay()
	r.begin()
	big := func(seq uint64) *wire.Frame {
		return &wire.Frame{Header: wire.Header{LastSeq: seq}, Body: make([]byte, relayBytes*2/3)}
	}
	if err := r.take(t.Context(), 1, big(1)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- r.take(t.Context(), 2, big(2)) }()
	if x, err := r.next(t.Context()); err != nil || x.seq != 1 {
		t.Errorf("%+v, %v", x, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.take(ctx, 3, big(3)); err == nil {
		t.Error("a frame was taken beyond the bound")
	}
}

// TestRelayKnowsWhereRunsBegin: a run that is open behind a frame begins in our stream where we have handed on its first
// chunk.
func TestRelayKnowsWhereRunsBegin(t *testing.T) {
	r := testRelay()
	for i, theirs := range []uint64{10, 11, 13, 14} {
		r.places = append(r.places, place{theirs, uint64(100 + i)})
	}
	for _, x := range []struct{ back, ours uint64 }{{10, 100}, {11, 101}, {12, 102}, {14, 103}} {
		if got := r.places.oldest(x.back); got != x.ours {
			t.Errorf("their frame %d is our %d, want %d", x.back, got, x.ours)
		}
	}
}

// TestARelaysStreamMayBeLost: what it held can be had again.
func TestARelaysStreamMayBeLost(t *testing.T) {
	if permanent(named("publish", relayFault(named("stream", stream.ErrStreamLost)))) {
		t.Error("the bridge would end with it")
	}
	if err := relayFault(named("stream", stream.ErrFenced)); !errors.Is(err, stream.ErrFenced) {
		t.Errorf("another bridge has this node, and it says %v", err)
	}
}
