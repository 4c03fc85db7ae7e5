package capture

import (
	"slices"
	"sort"
	"sync"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// marksLimit bounds the markers that are remembered, 16 bytes each. Above it every second one is
// forgotten: an older marker proves less, so that apply takes its careful path more often, and no more.
const marksLimit = 1 << 20

// fullMarksLimit bounds the markers that are remembered with their vectors, in the same way.
const fullMarksLimit = 4096

// marks is the list of markers that capture has met (PROOF.md R11). XID and Seq rise along it.
type marks struct {
	mu   sync.RWMutex
	list []wire.Mark // guarded by mu
	full []fullMark  // likewise; up rises, too
}

// fullMark is a marker with everything that had been announced by then.
type fullMark struct {
	wire.Mark
	up origin.Vector
}

// add appends a marker. One that has no higher XID says nothing new: an earlier one with the same XID has
// a lower seq and proves more.
func (m *marks) add(x wire.Mark, up origin.Vector) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.addFull(fullMark{x, up})
	m.addShort(x)
}

// addShort and addFull need mu held.
func (m *marks) addShort(x wire.Mark) {
	if n := len(m.list); n > 0 {
		last := &m.list[n-1]
		if x.XID <= last.XID || x.Seq < last.Seq {
			return
		}
		if x.Seq == last.Seq && n > 1 { // the first one stays: it is the oldest that is known
			last.XID = x.XID
			return
		}
	}
	if len(m.list) >= marksLimit {
		m.list = thin(m.list)
	}
	m.list = append(m.list, x)
}

func (m *marks) addFull(x fullMark) {
	if n := len(m.full); n > 0 {
		last := &m.full[n-1]
		if x.XID <= last.XID || x.Seq < last.Seq || !x.up.Includes(last.up) {
			return
		}
		if x.Seq == last.Seq && x.up.Equal(last.up) {
			last.XID = x.XID
			return
		}
	}
	if len(m.full) >= fullMarksLimit {
		m.full = thin(m.full)
	}
	m.full = append(m.full, x)
}

// thin drops every second mark but the first and the last.
func thin[M any](list []M) []M {
	keep := list[:1]
	for i := 2; i < len(list)-1; i += 2 {
		keep = append(keep, list[i])
	}
	return append(keep, list[len(list)-1])
}

// newest returns the newest mark whose seq is at most seq, unless it is too far back.
func (m *marks) newest(seq uint64) (wire.Mark, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	n, _ := slices.BinarySearchFunc(m.list, seq, func(x wire.Mark, seq uint64) int {
		if x.Seq <= seq {
			return -1
		}
		return 1
	})
	if n == 0 || far(m.list[n-1], m.list[len(m.list)-1]) {
		return wire.Mark{}, false
	}
	return m.list[n-1], true
}

func (m *marks) first() (wire.Mark, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if len(m.list) == 0 {
		return wire.Mark{}, false
	}
	return m.list[0], true
}

// within returns the newest mark up to which deps covers everything, but what except has done, unless it is
// too far back.
func (m *marks) within(deps origin.Vector, own, except origin.Origin) (xid uint64, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	n := m.countWithin(deps, own, except)
	if n == 0 || far(m.full[n-1].Mark, m.full[len(m.full)-1].Mark) {
		return 0, false
	}
	return m.full[n-1].XID, true
}

// far reports whether so many ids lie between two marks that the 32 bits which a row has of its writer's do not
// tell on which side of the first one that is (PROOF.md F9).
func far(x, newest wire.Mark) bool { return newest.XID-x.XID >= 1<<31 }

func (m *marks) countWithin(deps origin.Vector, own, except origin.Origin) int {
	seq := deps.Seq(own)
	return sort.Search(len(m.full), func(i int) bool {
		x := &m.full[i]
		return x.Seq > seq || slices.ContainsFunc(x.up, func(e origin.Entry) bool {
			return e.Origin != own && e.Origin != except && !deps.Covers(e.Origin, e.Seq)
		})
	})
}

// forgetWithin drops the marks with vectors that are older than the newest one up to which stable covers
// everything.
func (m *marks) forgetWithin(stable origin.Vector, own origin.Origin) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.countWithin(stable, own, origin.Origin{}); n > 1 {
		m.full = slices.Delete(m.full, 0, n-1)
	}
}

// forget drops all marks with a seq below that of the newest one that is at most below.
func (m *marks) forget(below uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for n+1 < len(m.list) && m.list[n+1].Seq <= below {
		n++
	}
	if n > 0 {
		m.list = slices.Delete(m.list, 0, n)
	}
}

// recentLimit is the number of ids from which on the server is asked which of them still matter.
const recentLimit = 8192

// recents are the top-level ids of captured transactions that may not be visible at home yet, since a
// commit is sent before it is visible (PROOF.md F2, R14).
type recents struct {
	mu   sync.Mutex
	xids []uint32 // guarded by mu
}

// add reports whether there are so many that prune should be called.
func (r *recents) add(x uint32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.xids = append(r.xids, x)
	return len(r.xids)%recentLimit == 0
}

// ended drops all ids below xmin, a full transaction id: they had ended when that was taken.
func (r *recents) ended(xmin uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.xids = slices.DeleteFunc(r.xids, func(x uint32) bool { return int32(x-uint32(xmin)) < 0 })
}

// prune drops all ids that a snapshot of the server shows as ended.
func (r *recents) prune(xmax uint64, running []uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.xids = slices.DeleteFunc(r.xids, func(x uint32) bool {
		return int32(x-uint32(xmax)) < 0 && !slices.Contains(running, x)
	})
}

func (r *recents) get() []uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.xids)
}
