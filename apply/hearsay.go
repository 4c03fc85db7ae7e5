package apply

import (
	"math"
	"slices"
	"sort"
	"sync"

	"github.com/pgbridge/pgbridge/origin"
)

// hearsay is what the other nodes had seen by the last transaction of theirs that was applied here
// (PROOF.md R22). Vectors learnt in any other way prove nothing about what is still to come.
type hearsay struct {
	own origin.Origin
	mu  sync.Mutex
	low map[origin.Origin]origin.Vector // of every other origin; nil until something is heard
	// ours is, for every other origin, how its seq and what it had seen of this node's transactions rose
	// together; oldest first.
	ours map[origin.Origin][]sight
	// seq is how far every other origin is applied here.
	seq map[origin.Origin]uint64
	// all is what turn goes by, and has found; present the same without the nodes that are away.
	all, present turns
	// parked is what the oldest parked transaction of an origin had seen: it is still to come (R23).
	parked map[origin.Origin]origin.Vector
}

// sight says that an origin's transactions behind seq had seen this node's up to own.
type sight struct{ seq, own uint64 }

// turns is up to where transactions are stable at every node but those that are away, and the look by which more of them will be.
type turns struct {
	away       []string
	round      *round
	everywhere origin.Vector
}

// round is a look at what was stable at one moment: all transactions behind applied have seen it.
type round struct{ applied, stable origin.Vector }

// sightLimit bounds the sights that are kept of an origin; above it every second one is forgotten, which only
// makes everywhereSeq coarser.
const sightLimit = 10_000

func newHearsay(own origin.Origin, others []origin.Origin) *hearsay {
	h := &hearsay{own: own, low: map[origin.Origin]origin.Vector{}, ours: map[origin.Origin][]sight{},
		seq: map[origin.Origin]uint64{}, parked: map[origin.Origin]origin.Vector{}}
	for _, o := range others {
		h.low[o] = nil
	}
	return h
}

// hear takes in low of the last transaction of o, or of a vector behind it; seq is that transaction's.
func (h *hearsay) hear(o origin.Origin, seq uint64, low origin.Vector) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq[o] = max(h.seq[o], seq)
	if old, ok := h.low[o]; !ok || !low.Includes(old) { // it grows along the stream, and what is read again may be older; nobody waits for one that is gone
		return
	}
	h.low[o] = low
	list := h.ours[o]
	n := len(list)
	switch own := low.Seq(h.own); {
	case n > 0 && (seq < list[n-1].seq || own == list[n-1].own):
		return
	case n > 0 && seq == list[n-1].seq:
		list[n-1].own = own
		return
	default:
		list = append(list, sight{seq, own})
	}
	if len(list) > sightLimit {
		for i := 1; i < len(list)/2; i++ {
			list[i] = list[2*i]
		}
		list = append(list[:len(list)/2], list[len(list)-1])
	}
	h.ours[o] = list
}

// stableSeq returns the highest seq of o that is stable.
func (h *hearsay) stableSeq(o origin.Origin) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stable(o, nil)
}

// stable leaves nodes that are away out; mu is held.
func (h *hearsay) stable(o origin.Origin, away []string) uint64 {
	seq := uint64(math.MaxInt64)
	for p, low := range h.low {
		if p != o && !slices.Contains(away, p.Node) {
			seq = min(seq, low.Seq(o))
			if parked, ok := h.parked[p]; ok {
				seq = min(seq, parked.Seq(o))
			}
		}
	}
	return seq
}

// everywhereSeq returns the highest own seq that is stable at every node: all have applied it, and none of
// them can still meet a transaction of a third node whose author had not seen it. Until then they may ask for
// it again (past.go).
func (h *hearsay) everywhereSeq() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	seq := h.everywhere(nil)
	for p, list := range h.ours {
		h.ours[p] = slices.Delete(list, 0, max(h.sights(p, nil), 1)-1)
	}
	return seq
}

// everywhereBut is everywhereSeq without the nodes that are away, which may lack what it says, and whose transactions may not have
// seen it. 0 if no other node is left.
func (h *hearsay) everywhereBut(away []string) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.alone(away) {
		return 0
	}
	return h.everywhere(away)
}

// alone reports whether all other nodes are away; mu is held.
func (h *hearsay) alone(away []string) bool {
	for p := range h.low {
		if !slices.Contains(away, p.Node) {
			return false
		}
	}
	return true
}

func (h *hearsay) everywhere(away []string) uint64 {
	seq := h.stable(h.own, away)
	for p, list := range h.ours {
		if slices.Contains(away, p.Node) {
			continue
		}
		n := h.sights(p, away)
		if n == 0 {
			return 0
		}
		seq = min(seq, list[n-1].own)
	}
	return seq
}

// sights is how many of the sights of p are of transactions that all nodes but those away have applied.
func (h *hearsay) sights(p origin.Origin, away []string) int {
	from, list := uint64(math.MaxInt64), h.ours[p]
	for at, low := range h.low {
		if at != p && !slices.Contains(away, at.Node) {
			from = min(from, low.Seq(p)) // what at has applied of p
		}
	}
	return sort.Search(len(list), func(i int) bool { return list[i].seq > from })
}

// turn works out up to where the others' transactions are stable at every node, as everywhereSeq does for the own ones: what was
// stable at one moment is so everywhere when all nodes have applied what had been applied here by then. That is coarser, and takes no
// memory. own is the last own transaction that is durable, and low what it had seen; those behind it have seen no less. The same is
// worked out without the nodes that are away.
func (h *hearsay) turn(own uint64, low origin.Vector, away []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.turnOf(&h.all, own, low)
	if !slices.Equal(h.present.away, away) || h.alone(away) {
		h.present = turns{away: away}
	}
	if len(away) > 0 && !h.alone(away) {
		h.turnOf(&h.present, own, low)
	}
}

func (h *hearsay) turnOf(t *turns, own uint64, low origin.Vector) {
	if t.round != nil {
		for _, e := range t.round.applied {
			if h.stable(e.Origin, t.away) < e.Seq {
				return
			}
		}
		t.everywhere = t.round.stable
	}
	t.round = &round{}
	t.round.applied.Advance(origin.Entry{Origin: h.own, Seq: own})
	for o := range h.low {
		t.round.applied.Advance(origin.Entry{Origin: o, Seq: h.seq[o]})
		t.round.stable.Advance(origin.Entry{Origin: o, Seq: min(h.stable(o, t.away), low.Seq(o))})
	}
}

// everywhereOf returns the highest seq of another origin that was stable at every node by the last turn.
func (h *hearsay) everywhereOf(o origin.Origin) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.all.everywhere.Seq(o)
}

// everywhereOfBut is everywhereOf without the nodes that were away at the last turn.
func (h *hearsay) everywhereOfBut(o origin.Origin) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.present.everywhere.Seq(o)
}

// seen returns up to which own transaction another node has told of having seen them.
func (h *hearsay) seen(node string) (seq uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for p, low := range h.low {
		if p.Node == node {
			seq = max(seq, low.Seq(h.own))
		}
	}
	return seq
}
