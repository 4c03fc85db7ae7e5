package apply

import (
	"slices"

	"github.com/pgbridge/pgbridge/wire"
)

// keySet is a set of keys that may have tens of millions: all but the newest are in sorted slices, 16 bytes
// for each key, a map would take three times that. The zero value is an empty one.
type keySet struct {
	recent map[wire.KeyHash]struct{}
	sorted [][]wire.KeyHash // each more than twice as long as the next
}

// keySetRecent is how many keys a keySet collects in its map.
const keySetRecent = 4096

func (s *keySet) has(k wire.KeyHash) bool {
	if _, ok := s.recent[k]; ok {
		return true
	}
	for _, keys := range s.sorted {
		if _, ok := slices.BinarySearchFunc(keys, k, compareHash); ok {
			return true
		}
	}
	return false
}

func (s *keySet) add(k wire.KeyHash) {
	if s.has(k) {
		return
	}
	if s.recent == nil {
		s.recent = map[wire.KeyHash]struct{}{}
	}
	s.recent[k] = struct{}{}
	if len(s.recent) < keySetRecent {
		return
	}
	keys := make([]wire.KeyHash, 0, len(s.recent))
	for k := range s.recent {
		keys = append(keys, k)
	}
	clear(s.recent)
	slices.SortFunc(keys, compareHash)
	for n := len(s.sorted); n > 0 && len(s.sorted[n-1]) <= 2*len(keys); n-- {
		keys = mergeKeys(s.sorted[n-1], keys)
		s.sorted = s.sorted[:n-1]
	}
	s.sorted = append(s.sorted, keys)
}

func mergeKeys(a, b []wire.KeyHash) []wire.KeyHash {
	out := make([]wire.KeyHash, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if compareHash(a[0], b[0]) < 0 {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return append(append(out, a...), b...)
}

// all returns the keys in one slice.
func (s *keySet) all() []wire.KeyHash {
	var keys []wire.KeyHash
	for _, run := range s.sorted {
		keys = append(keys, run...)
	}
	for k := range s.recent {
		keys = append(keys, k)
	}
	return keys
}
