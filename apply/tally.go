package apply

import (
	"maps"
	"sync"
)

// tally counts recorded conflicts by their kind.
type tally struct {
	mu sync.Mutex // guards n
	n  map[string]uint64
}

func (t *tally) add(kinds []string) {
	if len(kinds) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == nil {
		t.n = map[string]uint64{}
	}
	for _, k := range kinds {
		t.n[k]++
	}
}

// ConflictKinds counts the conflicts that were recorded since the start, by kind. It is safe for concurrent use.
func (a *Applier) ConflictKinds() map[string]uint64 {
	a.kinds.mu.Lock()
	defer a.kinds.mu.Unlock()
	return maps.Clone(a.kinds.n)
}
