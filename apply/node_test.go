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
			if err := p.a.NotePublished(t.Context(), seq); err != nil {
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
