package apply

import (
	"strings"
	"sync"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// TestNodeIsReadWhileItIsNoted is for the race detector: status reads the node's row at any time.
func TestNodeIsReadWhileItIsNoted(t *testing.T) {
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
	const last = 100
	var notes sync.WaitGroup
	notes.Go(func() {
		for seq := uint64(1); seq <= last; seq++ {
			if err := p.a.NotePublished(t.Context(), seq, 0); err != nil {
				t.Error(err)
			}
		}
	})
	for before := uint64(0); before < last && !t.Failed(); {
		now := p.a.Node().Published
		if now < before {
			t.Errorf("transaction %d was published, then %d", before, now)
		}
		before = now
	}
	notes.Wait()
}

// TestBeginningIsNoted: the state with which the own stream begins anew is read back as it was, until the node is brought back.
func TestBeginningIsNoted(t *testing.T) {
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
	h := &wire.Header{Fence: true, Cluster: "c", Sender: "a", Origin: origin.Origin{Node: "a", Epoch: 1}, WriterEpoch: 3, ResumeLSN: 100,
		Up: origin.Vector{{Origin: origin.Origin{Node: "b", Epoch: 1}, Seq: 7, Stamp: 8}}}
	if err := p.a.NoteBeginning(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	n, err := readNode(t.Context(), pgtest.Connect(t, p.a.opts.DSN))
	if err != nil {
		t.Fatal(err)
	}
	if got := n.Beginning; got == nil || !got.Up.Equal(h.Up) || got.ResumeLSN != h.ResumeLSN || got.Origin != h.Origin || p.a.Node().Beginning != h {
		t.Errorf("%+v was noted, %+v is read", h, got)
	}
	pgtest.Exec(t, p.a.opts.DSN, `ALTER TABLE pgbridge.node DROP COLUMN beginning`) // as before an earlier version is set up anew
	if n, err := readNode(t.Context(), pgtest.Connect(t, p.a.opts.DSN)); err != nil || n.Beginning != nil {
		t.Errorf("without the column %+v is read: %v", n, err)
	}
	if err := p.a.NoteBeginning(t.Context(), h); err == nil || !strings.Contains(err.Error(), "run pgbridge setup") {
		t.Errorf("without the column: %v", err)
	}
}

// TestWriterEpochJumpsOnAnotherTimeline: a standby that took over may not know the last ones.
func TestWriterEpochJumpsOnAnotherTimeline(t *testing.T) {
	db := pgtest.New(t)
	if err := Setup(t.Context(), pgtest.Connect(t, db.DSN), SetupOptions{Cluster: "c", Node: "a"}); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		before string
		want   string
	}{{`SELECT`, "1|1"}, {`SELECT`, "2|1"}, {`UPDATE pgbridge.node SET timeline = 9`, "1002|1"}, {`SELECT`, "1003|1"}} {
		db.Exec(t, x.before)
		if got := db.Query(t, raiseSQL)[0]; got != x.want {
			t.Errorf("after %s: %s, want %s", x.before, got, x.want)
		}
	}
}
