package apply

import (
	"sync"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
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
