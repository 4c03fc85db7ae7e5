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
	// seq is how far every other origin is applied here; round and everywhere are what turn goes by, and has found.
	seq        map[origin.Origin]uint64
	round      *round
	everywhere origin.Vector
	// parked is what the oldest parked transaction of an origin had seen: it is still to come (R23).
	parked map[origin.Origin]origin.Vector
}

// sight says that an origin's transactions behind seq had seen this node's up to own.
type sight struct{ seq, own uint64 }

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
	if !low.Includes(h.low[o]) { // it grows along the stream; what is read again may be older
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
	return h.stable(o)
}

func (h *hearsay) stable(o origin.Origin) uint64 {
	seq := uint64(math.MaxInt64)
	for p, low := range h.low {
		if p != o {
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
	seq := h.stable(h.own)
	for p := range h.ours {
		from, list := uint64(math.MaxInt64), h.ours[p]
		for at, low := range h.low {
			if at != p {
				from = min(from, low.Seq(p)) // what at has applied of p
			}
		}
		n := sort.Search(len(list), func(i int) bool { return list[i].seq > from })
		if n == 0 {
			return 0
		}
		seq = min(seq, list[n-1].own)
		h.ours[p] = slices.Delete(list, 0, n-1)
	}
	return seq
}

// turn works out up to where the others' transactions are stable at every node, as everywhereSeq does for the own ones: what was
// stable at one moment is so everywhere when all nodes have applied what had been applied here by then. That is coarser, and takes no
// memory. own is the last own transaction that is durable, and low what it had seen; those behind it have seen no less.
func (h *hearsay) turn(own uint64, low origin.Vector) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.round != nil {
		for _, e := range h.round.applied {
			if h.stable(e.Origin) < e.Seq {
				return
			}
		}
		h.everywhere = h.round.stable
	}
	h.round = &round{}
	h.round.applied.Advance(origin.Entry{Origin: h.own, Seq: own})
	for o := range h.low {
		h.round.applied.Advance(origin.Entry{Origin: o, Seq: h.seq[o]})
		h.round.stable.Advance(origin.Entry{Origin: o, Seq: min(h.stable(o), low.Seq(o))})
	}
}

// everywhereOf returns the highest seq of another origin that was stable at every node by the last turn.
func (h *hearsay) everywhereOf(o origin.Origin) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.everywhere.Seq(o)
}
