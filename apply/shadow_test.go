package apply

import (
	"errors"
	"testing"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// TestShadowTakesEachTransactionOnce: the same transactions may come by two streams, one that is missing is noticed, and when there is
// no room no more are taken, which the report says.
func TestShadowTakesEachTransactionOnce(t *testing.T) {
	b := origin.Origin{Node: "b", Epoch: 1}
	s := &Shadow{own: origin.Origin{Node: "a", Epoch: 1}, reached: map[origin.Origin]origin.Entry{}}
	sources := []*ShadowSource{s.Source(b), s.Source(b)}
	feed := func(source int, first, last uint64) error {
		var body []byte
		for seq := first; seq <= last; seq++ {
			body = wire.AppendCommit(wire.AppendBegin(body, wire.Begin{Seq: seq, Stamp: origin.Stamp(seq)}))
		}
		return sources[source].Feed(t.Context(), &wire.Frame{Header: wire.Header{Origin: b, FirstSeq: first, LastSeq: last, WriterEpoch: 1}, Body: body})
	}
	for _, step := range []struct {
		source      int
		first, last uint64
		err         error
		want        uint64
	}{{0, 1, 3, nil, 3}, {1, 1, 2, nil, 3}, {1, 3, 5, nil, 5}, {0, 7, 8, ErrGap, 5}, {0, 4, 6, nil, 6}} {
		if err := feed(step.source, step.first, step.last); !errors.Is(err, step.err) || s.Reached(b) != step.want || s.Failed() != nil {
			t.Errorf("transactions %d to %d: %v, reached %d", step.first, step.last, err, s.Reached(b))
		}
	}
	if s.order != 6 {
		t.Errorf("6 transactions were taken %d times", s.order)
	}
	s.held = ShadowLimit + 1
	for seq := range uint64(3) {
		if err := feed(0, seq+7, seq+7); err != nil {
			t.Error(err)
		}
	}
	if r := s.Report(); !r.Full || r.Read[0].Seq != 7 {
		t.Errorf("without room, the report is %+v", r)
	}
}
