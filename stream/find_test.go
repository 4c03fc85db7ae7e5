package stream

import (
	"context"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/integration/natstest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// TestFindAgainstBruteForce builds streams of frames of two origins, with fences, frames in which nothing
// ends, open runs and a change of epoch, and compares Find with a walk over all frames.
func TestFindAgainstBruteForce(t *testing.T) {
	r := seeded(t)
	for range 8 {
		// A server of its own: nats-server 2.15 deletes a stream's files after its answer, and a stream that
		// is created meanwhile can come up with the old one's messages.
		nc := natstest.New(t).Connect(t)
		config := testConfig()
		config.Subjects = []string{"pgb.t.a.>"} // other nodes' frames, too
		createStream(t, nc, config)
		last := map[origin.Origin]uint64{}
		epochs := map[string]uint32{"a": 1, "b": 1}
		var frames []*wire.Frame
		length := uint64(1 + r.IntN(60))
		for seq := uint64(1); seq <= length; seq++ {
			node := []string{"a", "a", "b"}[r.IntN(3)]
			if r.IntN(30) == 0 {
				epochs[node]++
			}
			o := origin.Origin{Node: node, Epoch: epochs[node]}
			f := numbered(1, seq, 0)
			f.Origin, f.FirstSeq = o, 0
			if n := uint64(r.IntN(4)); n > 0 {
				f.FirstSeq = last[o] + 1
				last[o] += n
			}
			f.LastSeq = last[o]
			if r.IntN(4) == 0 {
				f.Back = 1 + r.Uint64N(seq)
			}
			frames = append(frames, f)
			storeAs(t, nc, f)
		}
		reader := newReader(t, nc)
		for o, n := range last {
			for seq := uint64(1); seq <= n+2; seq++ {
				want := bruteFind(frames, o, seq)
				got, err := reader.Find(testContext(t), o, seq)
				if err != nil || got != want {
					t.Errorf("transaction %d of %v: got frame %d, %v; want %d of %d", seq, o, got, err, want, len(frames))
				}
			}
		}
	}
}

func storeAs(t *testing.T, nc *nats.Conn, f *wire.Frame) {
	t.Helper()
	data, err := (&wire.Encoder{}).Append(nil, f)
	if err != nil {
		t.Fatal(err)
	}
	m, err := nc.RequestWithContext(testContext(t), Subject(testCluster, testNode, f.Origin.Node), data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newAckParser(testStream).read(m); err != nil {
		t.Fatal(err)
	}
}

// bruteFind walks the frames, which stand from sequence 1 on.
func bruteFind(frames []*wire.Frame, o origin.Origin, seq uint64) uint64 {
	var back uint64
	for i, f := range frames {
		if f.Origin.Node != o.Node {
			continue
		}
		if f.Origin.Epoch > o.Epoch || f.Origin.Epoch == o.Epoch && f.LastSeq >= seq {
			return behind(back, uint64(i+1))
		}
		back = f.Back
	}
	return behind(back, uint64(len(frames)+1))
}

func behind(back, seq uint64) uint64 {
	if back != 0 {
		return min(back, seq)
	}
	return seq
}

func TestFindInAPurgedStream(t *testing.T) {
	s := natstest.New(t)
	nc := s.Connect(t)
	o := origin.Origin{Node: testNode, Epoch: 1}
	reader := newReader(t, nc)
	createStream(t, nc, testConfig())
	if seq, err := reader.Find(testContext(t), o, 1); err != nil || seq != 1 {
		t.Errorf("empty stream: %d, %v", seq, err)
	}
	for n := uint64(1); n <= 20; n++ {
		store(t, nc, numbered(1, n, 0))
	}
	if err := newAPI(nc, "").purge(testContext(t), testStream, 11); err != nil {
		t.Fatal(err)
	}
	_, err := reader.Find(testContext(t), o, 10)
	wantErr(t, err, ErrGap)
	for _, n := range []uint64{11, 15, 20, 21} {
		if seq, err := reader.Find(testContext(t), o, n); err != nil || seq != n {
			t.Errorf("transaction %d: frame %d, %v", n, seq, err)
		}
	}
	if seq, err := reader.Find(testContext(t), origin.Origin{Node: "b", Epoch: 1}, 1); err != nil || seq != 21 {
		t.Errorf("an origin that the stream has nothing of: frame %d, %v", seq, err)
	}
}

// TestFindThenRun reads on from where Find says.
func TestFindThenRun(t *testing.T) {
	s := natstest.New(t)
	p, _ := running(t, s.Connect(t), 1, PublisherOptions{})
	for n := uint64(1); n <= 50; n++ {
		publish(t, p, numbered(1, n, 0))
	}
	await(t, p, p.Next()-1)
	r := newReader(t, s.Connect(t))
	from, err := r.Find(testContext(t), origin.Origin{Node: testNode, Epoch: 1}, 31)
	if err != nil {
		t.Fatal(err)
	}
	err = r.Run(testContext(t), from, func(_ context.Context, m Message) error {
		if n := number(m.Frame); n != 31 {
			t.Errorf("began with %d", n)
		}
		return errEnough
	})
	wantErr(t, err, errEnough)
}
