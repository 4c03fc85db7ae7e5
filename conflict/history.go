package conflict

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sort"

	"github.com/pgbridge/pgbridge/origin"
)

// history is the writes of one Merge in canonical order, with what each of them covers as plain counts: a
// write always covers a prefix of each origin's writes, so one number per origin says all.
type history struct {
	writes  []Logged
	order   []int32 // place in canonical order -> index into writes
	origins []origin.Origin
	org     []int32 // by place: index into origins
	rank    []int32 // by place: how many writes of its own origin stand before it
	saw     []int32 // by place and origin: how many of that origin's writes it covers
	lanes   [][]int32
}

// before is the canonical order of writes.
func (w *Logged) before(v *Logged) int {
	if c := cmp.Compare(w.Stamp, v.Stamp); c != 0 {
		return c
	}
	if c := w.Origin.Compare(v.Origin); c != 0 {
		return c
	}
	if c := cmp.Compare(w.Seq, v.Seq); c != 0 {
		return c
	}
	return cmp.Compare(w.Part, v.Part)
}

// Covers reports whether w's author may have seen v. No write covers itself.
func (w *Logged) Covers(v *Logged) bool {
	if w.Origin == v.Origin {
		return v.Seq < w.Seq || v.Seq == w.Seq && v.Part < w.Part
	}
	return w.Up.Covers(v.Origin, v.Seq)
}

// newHistory sorts the writes. It refuses a log in which the canonical order does not extend Covers, since
// nothing below would be a function of the set alone.
func newHistory(writes []Logged) (*history, error) {
	n := len(writes)
	h := &history{writes: writes, origins: make([]origin.Origin, 0, 4)}
	buf := make([]int32, 4*n, 4*n+4*n) // room for lanes and four origins' counts in one piece
	h.order, h.org, h.rank = buf[:n:n], buf[n:2*n:2*n], buf[2*n:3*n:3*n]
	for i := range h.order {
		h.order[i] = int32(i)
	}
	compare := func(i, j int32) int { return writes[i].before(&writes[j]) }
	if !slices.IsSortedFunc(h.order, compare) {
		slices.SortFunc(h.order, compare)
	}
	for p := range h.order {
		o := slices.Index(h.origins, h.at(p).Origin)
		if o < 0 {
			o = len(h.origins)
			h.origins = append(h.origins, h.at(p).Origin)
		}
		h.org[p] = int32(o)
	}
	k := len(h.origins)
	if k <= 4 {
		h.saw = buf[4*n : 4*n+k*n]
	} else {
		h.saw = make([]int32, k*n)
	}
	h.lanes = h.split(nil, buf[3*n:3*n])
	for _, lane := range h.lanes {
		for r, p := range lane {
			h.rank[p] = int32(r)
			if r > 0 && !h.at(int(p)).Covers(h.at(int(lane[r-1]))) {
				return nil, fmt.Errorf("stamps of %s do not rise with its seqs at seq %d", h.at(int(p)).Origin, h.at(int(p)).Seq)
			}
		}
	}
	for p := range h.order {
		w := h.at(p)
		saw := h.seen(p)
		for o := range saw {
			if o == int(h.org[p]) {
				saw[o] = h.rank[p]
				continue
			}
			lane, seq := h.lanes[o], w.Up.Seq(h.origins[o])
			count := sort.Search(len(lane), func(r int) bool { return h.at(int(lane[r])).Seq > seq })
			if count > 0 && int(lane[count-1]) > p {
				return nil, fmt.Errorf("write %s:%d has a stamp below that of %s:%d, which it covers", w.Origin, w.Seq, h.origins[o], seq)
			}
			saw[o] = int32(count)
		}
	}
	return h, nil
}

func (h *history) at(p int) *Logged { return &h.writes[h.order[p]] }

func (h *history) seen(p int) []int32 {
	k := len(h.origins)
	return h.saw[p*k : (p+1)*k : (p+1)*k]
}

// covers is Logged.Covers by places.
func (h *history) covers(p, q int32) bool { return h.seen(int(p))[h.org[q]] > h.rank[q] }

// split deals the given places (nil: all) out by origin, into buf as far as it reaches.
func (h *history) split(places []int32, buf []int32) [][]int32 {
	lanes := make([][]int32, len(h.origins))
	count := len(places)
	if places == nil {
		count = len(h.order)
	}
	for o := range lanes {
		from := len(buf)
		for i := range count {
			p := int32(i)
			if places != nil {
				p = places[i]
			}
			if int(h.org[p]) == o {
				buf = append(buf, p)
			}
		}
		lanes[o] = buf[from:len(buf):len(buf)]
	}
	return lanes
}

// within counts the places of a lane whose rank is below bound.
func (h *history) within(lane []int32, bound int32) int32 {
	if n := len(lane); n == 0 || h.rank[lane[n-1]] < bound {
		return int32(n)
	}
	return int32(sort.Search(len(lane), func(i int) bool { return h.rank[lane[i]] >= bound }))
}

// exists says whether there is a row once the first so many writes of each origin (nil: all) are in it, and
// which delete rules if there is none. Heads decide: the writes that no other one covers.
func (h *history) exists(d Deletes, base bool, counts []int32) (exists bool, deleter int) {
	var few [8]int32
	top := few[:]
	if len(h.origins) > len(few) {
		top = make([]int32, len(h.origins))
	}
	for p := range h.order {
		if counts != nil && h.rank[p] >= counts[h.org[p]] {
			continue
		}
		for o, n := range h.seen(p) {
			top[o] = max(top[o], n)
		}
	}
	written, deleted := int32(-1), int32(-1)
	for o, lane := range h.lanes {
		n := len(lane)
		if counts != nil {
			n = int(counts[o])
		}
		if n == 0 || int(top[o]) >= n {
			continue
		}
		if p := lane[n-1]; h.at(int(p)).Kind >= Delete {
			deleted = max(deleted, p)
		} else {
			written = max(written, p)
		}
	}
	switch {
	case written < 0 && deleted < 0:
		return base, -1
	case deleted < 0:
		return true, -1
	case written < 0 || d == DeleteWins || d == DeleteLatest && deleted > written:
		return false, int(h.order[deleted])
	}
	return true, -1
}

// heads returns those of the given places that no other one of them covers, in buf.
func (h *history) heads(places, buf []int32) []int32 {
	buf = buf[:0]
	for i, p := range places {
		covered := false
		// Who covers p stands behind it, and mostly at the end.
		for j := len(places) - 1; j > i && !covered; j-- {
			covered = h.covers(places[j], p)
		}
		if !covered {
			buf = append(buf, p)
		}
	}
	return buf
}

// cuts marks each of the given places with 1 if it and all behind it cover all before it, so that what is
// before may be taken as one value; else with 0. Wherever a log can be folded there is a cut, which is why
// rules that are not associative (saturation, display scale, spelling) go from cut to cut: then folding
// cannot change their result.
func (h *history) cuts(places []int32) []int32 {
	m, k := len(places), len(h.origins)
	buf := make([]int32, m+2*k)
	marks, last, low := buf[:m], buf[m:m+k], buf[m+k:]
	for o := range last {
		last[o], low[o] = -1, math.MaxInt32
	}
	for i, p := range places { // for now: the rank of the origin's place before
		marks[i] = last[h.org[p]]
		last[h.org[p]] = h.rank[p]
	}
	for i := m - 1; i >= 0; i-- {
		p := places[i]
		last[h.org[p]] = marks[i]
		marks[i] = 1
		for o, n := range h.seen(int(p)) {
			low[o] = min(low[o], n)
			if low[o] <= last[o] {
				marks[i] = 0
			}
		}
	}
	return marks
}

// guesses bounds how many sets of seen writes are tried for one write; beyond, it is taken by its word. A node that applies what came
// in while it was away announces some hundred writes before its row has the first of them. It is one number for all rows: what one node
// finds, all must find, also one that has folded more and so has fewer elements.
const guesses = 512

// guess looks for what the author of p has really seen. Up over-approximates: a remote write may have been
// announced to his node and not have been in the row yet. It tries sets of lanes' prefixes, as counts by
// origin, until one fits: first all that p covers, then the same with what Low has of some origins alone, since what a node applies
// together comes into its rows at once; then with as few as possible of the other origins' newest
// transactions left out, down to Low and then beyond. A set must be closed: a remote write is in a row only after all that it covers. Own
// writes are always seen, and prove nothing of what they cover. If no set fits, all that p covers is the answer.
//
// Fewest first makes the search blind to folding: if all that is left in the log has really seen what was
// folded, each set that contains the folded writes comes before each that does not.
func (h *history) guess(p int32, lanes [][]int32, counts []int32, fits func(counts []int32) bool) bool {
	all, low := make([]int32, len(lanes)), make([]int32, len(lanes))
	for o, lane := range lanes {
		all[o] = h.within(lane, h.seen(int(p))[o])
		low[o] = all[o]
		if o != int(h.org[p]) {
			seq := h.at(int(p)).Low.Seq(h.origins[o])
			low[o] = min(all[o], int32(sort.Search(len(lane), func(i int) bool { return h.at(int(lane[i])).Seq > seq })))
		}
	}
	copy(counts, all)
	if fits(counts) || h.guessCorner(p, lanes, low, all, counts, fits) || h.guessBetween(p, lanes, low, all, counts, fits) {
		return true
	}
	if slices.ContainsFunc(low, func(n int32) bool { return n > 0 }) && h.guessBetween(p, lanes, make([]int32, len(lanes)), all, counts, fits) {
		return true
	}
	copy(counts, all)
	return false
}

// cornerOrigins bounds of how many origins guessCorner chooses.
const cornerOrigins = 6

// guessCorner tries sets in which of each other origin there is either all, or what is low.
func (h *history) guessCorner(p int32, lanes [][]int32, low, all, counts []int32, fits func(counts []int32) bool) bool {
	var open []int // where that makes a difference
	for o := range lanes {
		if low[o] < all[o] && len(open) < cornerOrigins {
			open = append(open, o)
		}
	}
	for set := 1; set < 1<<len(open); set++ {
		copy(counts, all)
		for i, o := range open {
			if set>>i&1 == 1 {
				counts[o] = low[o]
			}
		}
		if h.closed(lanes, counts, int(h.org[p])) && fits(counts) {
			return true
		}
	}
	return false
}

// guessBetween tries the sets between low and all, with the fewest transactions left out first.
func (h *history) guessBetween(p int32, lanes [][]int32, low, all, counts []int32, fits func(counts []int32) bool) bool {
	own := int(h.org[p])
	steps := make([][]int32, len(lanes)) // by origin: the counts with so many transactions left out
	total := 0
	for o, lane := range lanes {
		n := all[o]
		steps[o] = append(steps[o], n)
		for o != own && n > low[o] && len(steps[o]) <= guesses {
			seq := h.at(int(lane[n-1])).Seq
			for n > 0 && h.at(int(lane[n-1])).Seq == seq {
				n--
			}
			steps[o] = append(steps[o], n)
		}
		total += len(steps[o]) - 1
	}
	later := make([]int, len(lanes)) // by origin: how many the lanes behind its own can leave out
	for o := len(lanes) - 2; o >= 0; o-- {
		later[o] = later[o+1] + len(steps[o+1]) - 1
	}
	tries, looks := 1, 0
	var descend func(o, left int) bool
	descend = func(o, left int) bool {
		if o == len(lanes) {
			if looks++; !h.closed(lanes, counts, own) {
				return false
			}
			tries++
			return fits(counts)
		}
		for d := max(0, left-later[o]); d < len(steps[o]) && d <= left; d++ {
			counts[o] = steps[o][d]
			if descend(o+1, left-d) {
				return true
			}
			if tries >= guesses || looks >= 64*guesses {
				break
			}
		}
		return false
	}
	for left := 1; left <= total && tries < guesses && looks < 64*guesses; left++ {
		if descend(0, left) {
			return true
		}
	}
	return false
}

// closed reports whether with each write in the set, but those of own, what it covers is in it too.
func (h *history) closed(lanes [][]int32, counts []int32, own int) bool {
	for o, n := range counts {
		if o == own || n == 0 {
			continue
		}
		seen := h.seen(int(lanes[o][n-1]))
		for q, lane := range lanes {
			if q != own && q != o && h.within(lane, seen[q]) > counts[q] {
				return false
			}
		}
	}
	return true
}
