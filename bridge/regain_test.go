package bridge

import (
	"bytes"
	"context"
	"slices"
	"testing"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/wire"
)

// TestRegainGoesOnInTheMiddle: a bridge that is killed while it makes its stream again leaves a part of it. The next one goes on from
// there, and what it makes is what was there, runs of chunks too.
func TestRegainGoesOnInTheMiddle(t *testing.T) {
	server, err := stream.StartServer(stream.ServerOptions{Listen: "127.0.0.1:0", StoreDir: t.TempDir(), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	own := origin.Origin{Node: "a", Epoch: 1}
	cfg := &config.Config{Cluster: "x", Node: "b"}
	cfg.Topology.Nodes = map[string]string{"a": server.ClientURL(), "b": server.ClientURL(), "c": server.ClientURL()}
	cfg.Topology.Kind = "mesh"
	cfg.Stream.MaxBytes = 64 << 20

	// b hands ten transactions of a on, of which the fifth is a run whose first chunk comes with the second.
	b := &life{bridge: &bridge{cfg: cfg, log: quiet}, node: apply.Node{WriterEpoch: 1}}
	nc, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	r, err := b.openRelay(t.Context(), nc, own)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go r.pub.Run(ctx)
	chunk := wire.AppendChunk(nil, 1, 0, []byte("data")) // with which a run begins
	body := func(seq uint64) (b []byte) {
		if seq == 2 {
			b = slices.Clone(chunk)
		}
		return wire.AppendCommit(wire.AppendBegin(b, wire.Begin{Seq: seq}))
	}
	for seq := uint64(1); seq <= 10; seq++ {
		f := &wire.Frame{Header: wire.Header{Cluster: "x", Sender: "a", Origin: own, WriterEpoch: 7, FirstSeq: seq, LastSeq: seq, ResumeLSN: 100 * seq},
			Body: body(seq)}
		if seq >= 2 && seq < 5 {
			f.Back = 1002
		}
		if err := r.handOn(ctx, received{1, 1000 + seq, f}); err != nil {
			t.Fatal(err)
		}
	}
	for changed := r.pub.Changed(); r.pub.InFlight() > 0; changed = r.pub.Changed() {
		<-changed
	}
	r.pub.Close()

	regain := func(epoch uint64, most int) (n int, whole bool) {
		t.Helper()
		node := apply.Node{Name: "a", WriterEpoch: epoch, Published: 9}
		cfg := *cfg
		cfg.Node = "a"
		a := &life{bridge: &bridge{cfg: &cfg, log: quiet}, node: node}
		var err error
		a.publisher, err = stream.OpenPublisher(t.Context(), nc, stream.PublisherOptions{Cluster: "x", Node: "a", Logger: quiet, FirstSeq: a.firstSeq()})
		if err != nil {
			t.Fatal(err)
		}
		defer a.publisher.Close()
		_, tail := a.publisher.Tail()
		slot := capture.SlotInfo{ConfirmedLSN: 1000}
		wiped, err := a.wiped(t.Context(), tail, node, slot)
		if err != nil {
			t.Fatal(err)
		}
		if !wiped {
			return 0, true
		}
		best, away := a.bestDonor(t.Context(), own)
		if best == nil || best.name != "b" || best.tail.LastSeq != 10 {
			t.Fatalf("%+v has most; not asked: %v", best, away)
		}
		defer best.nc.Close()
		if most > 0 {
			best.last = best.first + uint64(most)
		}
		if n, err = a.copyFrames(t.Context(), best, tail, node, own); err != nil {
			t.Fatal(err)
		}
		return n, false
	}
	regain(8, stream.MaxWindowFrames+2) // the fence's copies, and three frames
	regain(9, 0)
	if _, whole := regain(10, 0); !whole {
		t.Error("it is not whole")
	}

	reader, err := stream.NewReader(nc, stream.ReaderOptions{Cluster: "x", Sender: "a", Origin: "a", Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	first, last, _, err := reader.Info(t.Context())
	if err != nil || first < regained(8) {
		t.Fatalf("the stream begins with %d, %v", first, err)
	}
	got, begins, highest := map[uint64]int{}, map[uint64]bool{}, uint64(0)
	err = reader.Run(t.Context(), first, func(_ context.Context, m stream.Message) error {
		f := m.Frame
		if !f.Fence {
			if f.FirstSeq != 0 { // else it has come again
				got[f.LastSeq]++
			}
			begins[m.Seq] = bytes.HasPrefix(f.Body, chunk)
			whole := f.FirstSeq == f.LastSeq && bytes.Equal(f.Body, body(f.LastSeq))
			if f.RunWriter() != 7 || f.Sender != "a" || len(f.Hops) > 0 || !whole && (f.FirstSeq != 0 || len(f.Body) > 0 && !bytes.Equal(f.Body, chunk)) || f.LastSeq < highest {
				t.Errorf("behind %d frame %+v", highest, f)
			}
			highest = f.LastSeq
			if f.Back != 0 && !begins[f.Back] || whole && (f.Back != 0) != (f.LastSeq >= 2 && f.LastSeq < 5) {
				t.Errorf("behind frame %d a run is open that begins at %d", f.LastSeq, f.Back)
			}
		}
		if m.Seq == last {
			return errCopied
		}
		return nil
	})
	if err != errCopied {
		t.Fatal(err)
	}
	for seq := uint64(1); seq <= 10; seq++ {
		if got[seq] != 1 {
			t.Errorf("transaction %d is there %d times", seq, got[seq])
		}
	}
}
