package bridge

import (
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/integration/natstest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// TestTailOfAnotherHistory: a bridge goes on behind the last own frame only on the server that wrote it.
func TestTailOfAnotherHistory(t *testing.T) {
	for _, x := range []struct {
		name string
		tail *wire.Frame
		want string // "" for none
	}{
		{"the same server", &wire.Frame{Header: wire.Header{LastSeq: 7, SystemID: 5, Timeline: 1}}, ""},
		{"a fence of a first start", &wire.Frame{Header: wire.Header{LastSeq: 7}}, ""},
		{"another cluster", &wire.Frame{Header: wire.Header{LastSeq: 7, SystemID: 6, Timeline: 1}}, "another PostgreSQL cluster"},
	} {
		err := (&life{}).checkTail(x.tail, apply.Node{Name: "a", Published: 7, Timeline: 1}, capture.SlotInfo{SystemID: 5, Timeline: 1})
		if err == nil && x.want == "" {
			continue
		}
		if err == nil || x.want == "" || !strings.Contains(err.Error(), x.want) || !permanent(err) {
			t.Errorf("%s: %v; want %q, for good", x.name, err, x.want)
		}
	}
}

// TestStreamThatWasSetBack: a stream ends before what was published, or before what the slot was confirmed for.
func TestStreamThatWasSetBack(t *testing.T) {
	node, slot := apply.Node{Published: 7}, capture.SlotInfo{Timeline: 2, ConfirmedLSN: 100}
	for _, x := range []struct {
		name string
		tail *wire.Frame
		want bool
	}{
		{"all is there", &wire.Frame{Header: wire.Header{LastSeq: 7, Timeline: 2, ResumeLSN: 100}}, false},
		{"a transaction is missing", &wire.Frame{Header: wire.Header{LastSeq: 6, Timeline: 2, ResumeLSN: 100}}, true},
		{"one may be missing that nobody had noted yet", &wire.Frame{Header: wire.Header{LastSeq: 7, Timeline: 2, ResumeLSN: 99}}, true},
		{"a standby has taken over", &wire.Frame{Header: wire.Header{LastSeq: 7, Timeline: 1, ResumeLSN: 99}}, false},
	} {
		if got := setBack(x.tail, node, slot); got != x.want {
			t.Errorf("%s: %v", x.name, got)
		}
	}
}

// TestForeignTimeline: a server of another timeline is one that has taken over only if it has all that was read, and shown, before.
func TestForeignTimeline(t *testing.T) {
	for _, x := range []struct {
		name     string
		resume   uint64
		standbys string
		fork     capture.Fork
		want     string // "" for none
	}{
		{"has all", 100, "b2", capture.Fork{LSN: 100, Slot: "b2"}, ""},
		{"one of several", 100, "b2,b3", capture.Fork{LSN: 101, Slot: "b3"}, ""},
		{"does not say its slot any more", 100, "b2", capture.Fork{LSN: 100}, ""},
		{"lacks what was read", 101, "b2", capture.Fork{LSN: 100, Slot: "b2"}, "up to 0/64 only"},
		{"may lack what was shown", 100, "", capture.Fork{LSN: 100, Slot: "b2"}, "synchronized_standby_slots"},
		{"is another standby", 100, "b2,b3", capture.Fork{LSN: 100, Slot: "b4"}, "its slot b4 was not"},
		{"is of another branch", 100, "b2", capture.Fork{Slot: "b2"}, "does not come from that timeline"},
	} {
		got := foreignTimeline(&wire.Frame{Header: wire.Header{ResumeLSN: x.resume, Standbys: x.standbys}}, x.fork)
		if x.want == "" && got != "" || !strings.Contains(got, x.want) {
			t.Errorf("%s: %q; want %q", x.name, got, x.want)
		}
	}
}

// TestFenceOfAnotherTimeline: a server that has taken over promises nothing of its own standbys yet.
func TestFenceOfAnotherTimeline(t *testing.T) {
	tail := &wire.Frame{Header: wire.Header{LastSeq: 7, SystemID: 5, Timeline: 1, Standbys: "b2"}}
	l := &life{bridge: &bridge{cfg: &config.Config{}}}
	for timeline, want := range map[uint32]string{1: "b2", 2: ""} {
		f := l.fenceFrame(tail, apply.Node{}, capture.SlotInfo{SystemID: 5, Timeline: timeline}, origin.Origin{})
		if f.Timeline != timeline || f.Standbys != want {
			t.Errorf("timeline %d: the fence has timeline %d and standbys %q", timeline, f.Timeline, f.Standbys)
		}
	}
}

// TestDeletesOfAnotherServer: as long as frames of an older timeline are kept, all deletes are checked.
func TestDeletesOfAnotherServer(t *testing.T) {
	nc := natstest.New(t).Connect(t)
	p := openStream(t.Context(), t, nc)
	h := wire.Header{Fence: true, Cluster: "t", Sender: "a", Origin: origin.Origin{Node: "a", Epoch: 1}, WriterEpoch: 1, Timeline: 1}
	if _, err := p.Fence(t.Context(), &wire.Frame{Header: h}); err != nil {
		t.Fatal(err)
	}
	l := &life{publisher: p}
	for timeline, want := range map[uint32]uint64{1: 50, 2: 0} {
		if got, err := l.deletesFrom(t.Context(), capture.SlotInfo{Timeline: timeline, ConfirmedLSN: 50}); got != want || err != nil {
			t.Errorf("timeline %d: deletes from %d on, %v; want %d", timeline, got, err, want)
		}
	}
}
