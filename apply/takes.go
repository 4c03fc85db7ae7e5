package apply

import (
	"cmp"
	"container/heap"
	"slices"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// take is a row to be taken back: a local delete that capture has met may beat a remote insert that is
// already here (PROOF.md R19). An empty key takes back from the whole table.
type take struct {
	table   tableName
	key     []wire.Value
	hash    wire.KeyHash
	version origin.Version
	after   origin.Vector // not before all that may have made the row has ended; of each origin the last
	// commitLSN is the local delete's; commit is set while the take is queued.
	commitLSN uint64
	commit    *commitTakes
}

// commitTakes counts the takes of one local commit that are not done.
type commitTakes struct {
	lsn  uint64
	left int
	// holds are the origins whose rows of merged tables they may take back, holdsAll: of whatever origin.
	holds    []origin.Origin
	holdsAll bool
}

// hold has what is told of the origins stay as it is until the commit's takes are done; none: of all.
func (c *commitTakes) hold(after origin.Vector) {
	c.holdsAll = c.holdsAll || len(after) == 0
	for _, e := range after {
		if !slices.Contains(c.holds, e.Origin) {
			c.holds = append(c.holds, e.Origin)
		}
	}
}

// holds reports whether what is told of o stays as it is.
func (q *takes) holds(o origin.Origin) bool {
	q.lowest() // the first of the commits is one that is not done
	return slices.ContainsFunc(q.commits, func(c *commitTakes) bool { return c.left > 0 && (c.holdsAll || slices.Contains(c.holds, o)) })
}

// takes queues what is to be taken back. A DELETE of a million rows makes a million takes, so that nothing here
// walks them all: each goes from fresh through waiting, of the origins that it waits for one after the other,
// to ready. absence's mutex guards it.
type takes struct {
	fresh   []take
	waiting map[origin.Origin]waitingTakes
	ready   []take // due hands them out from the front, and keeps them until they are done

	keys    map[wire.KeyHash]int // how many takes there are of a key
	tables  map[tableName]int    // and of a whole table
	commits []*commitTakes       // by LSN
}

// waitingTakes is a heap of takes that wait for one origin, by the seq that they wait for.
type waitingTakes []waitingTake

type waitingTake struct {
	seq uint64
	take
}

func (w waitingTakes) Len() int           { return len(w) }
func (w waitingTakes) Less(i, j int) bool { return w[i].seq < w[j].seq }
func (w waitingTakes) Swap(i, j int)      { w[i], w[j] = w[j], w[i] }

// Push implements heap.Interface.
func (w *waitingTakes) Push(x any) { *w = append(*w, x.(waitingTake)) }

// Pop implements heap.Interface.
func (w *waitingTakes) Pop() any {
	old := *w
	last := old[len(old)-1]
	old[len(old)-1] = waitingTake{}
	*w = old[:len(old)-1]
	return last
}

func newTakes() takes {
	return takes{waiting: map[origin.Origin]waitingTakes{}, keys: map[wire.KeyHash]int{}, tables: map[tableName]int{}}
}

func (q *takes) push(t take) {
	t.commit = q.commit(t.commitLSN)
	t.commit.left++
	if t.key == nil {
		q.tables[t.table]++
	} else {
		q.keys[t.hash]++
	}
	q.fresh = append(q.fresh, t)
}

// commit returns the count of one local commit. They come in the order of the WAL.
func (q *takes) commit(lsn uint64) *commitTakes {
	n := len(q.commits)
	if n > 0 && q.commits[n-1].lsn == lsn {
		return q.commits[n-1]
	}
	at := n
	if n > 0 && q.commits[n-1].lsn > lsn {
		var found bool
		at, found = slices.BinarySearchFunc(q.commits, lsn, func(c *commitTakes, lsn uint64) int {
			return cmp.Compare(c.lsn, lsn)
		})
		if found {
			return q.commits[at]
		}
	}
	c := &commitTakes{lsn: lsn}
	q.commits = slices.Insert(q.commits, at, c)
	return c
}

// lowest is the lowest commit LSN of a take that is not done, 0 if there is none.
func (q *takes) lowest() uint64 {
	for len(q.commits) > 0 && q.commits[0].left == 0 {
		q.commits[0] = nil
		q.commits = q.commits[1:]
	}
	if len(q.commits) == 0 {
		return 0
	}
	return q.commits[0].lsn
}

// touch reports whether a take may remove the row of a key.
func (q *takes) touch(n tableName, k wire.KeyHash) bool { return q.keys[k] > 0 || q.tables[n] > 0 }

// wait reports whether there are takes that are not ready.
func (q *takes) wait() bool {
	for _, w := range q.waiting {
		if len(w) > 0 {
			return true
		}
	}
	return len(q.fresh) > 0
}

// due returns up to limit takes whose transactions have ended, until done is told of them.
func (q *takes) due(ended func(origin.Entry) bool, limit int) []take {
	for _, t := range q.fresh {
		q.place(t, ended)
	}
	clear(q.fresh)
	q.fresh = q.fresh[:0]
	for o, w := range q.waiting {
		for len(w) > 0 && ended(origin.Entry{Origin: o, Seq: w[0].seq}) {
			t := heap.Pop(&w).(waitingTake)
			q.waiting[o] = w
			q.place(t.take, ended)
			w = q.waiting[o]
		}
	}
	return slices.Clone(q.ready[:min(limit, len(q.ready))])
}

// place lets t wait for the first that has not ended.
func (q *takes) place(t take, ended func(origin.Entry) bool) {
	for _, e := range t.after {
		if !ended(e) {
			w := q.waiting[e.Origin]
			heap.Push(&w, waitingTake{e.Seq, t})
			q.waiting[e.Origin] = w
			return
		}
	}
	q.ready = append(q.ready, t)
}

// done removes the first n that are ready; those of them that failed come again behind all others.
func (q *takes) done(n int, failed []take) {
	for i := range q.ready[:n] {
		q.forget(&q.ready[i])
	}
	clear(q.ready[:n])
	if q.ready = q.ready[n:]; len(q.ready) == 0 {
		q.ready = nil
	}
	for _, t := range failed {
		q.push(t)
	}
}

func (q *takes) forget(t *take) {
	t.commit.left--
	if t.key == nil {
		decrement(q.tables, t.table)
	} else {
		decrement(q.keys, t.hash)
	}
}

func decrement[K comparable](m map[K]int, k K) {
	if m[k]--; m[k] == 0 {
		delete(m, k)
	}
}
