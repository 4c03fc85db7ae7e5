package apply

import (
	"maps"
	"math"
	"slices"
	"sync"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// tableName names a local table in the indexes of this file.
type tableName struct{ schema, name string }

func (n tableName) String() string { return n.schema + "." + n.name }

// tombstone is the version of a delete, with its seq for the question whether it is stable.
type tombstone struct {
	origin.Version
	seq uint64
}

// meets reports whether the delete meets a write of version v, whose author had seen up: it beats the write, or has lost to it.
func (t tombstone) meets(v origin.Version, up origin.Vector) bool {
	return t.Later(v) || t.Origin != v.Origin && !up.Covers(t.Origin, t.seq)
}

// registration says that a transaction may create a row (PROOF.md R18).
type registration struct {
	origin origin.Origin
	seq    uint64
}

// registryLimit bounds the keys that are registered one by one; above it whole tables are.
const registryLimit = 200_000

// absence is what this node knows about rows that are not there: tombstones, and the keys whose rows
// apply may be creating while capture has not yet read a local delete of them. All of it is in memory;
// tombstones come back from the tombstone table and the own stream after a restart, and until capture
// has passed rescan every local delete is checked in the database (PROOF.md R20).
//
// Apply registers a key first and asks for its tombstone then; capture buries first and asks the
// registry then (R18). Both happen under mu, so that one of them sees the other.
type absence struct {
	mu        sync.Mutex
	tombs     map[wire.KeyHash]tombstone
	bulks     []bulk
	truncated map[tableName]tombstone
	// localDeletes counts those of the local transaction localSeq, the one that is being told.
	localSeq     uint64
	localDeletes int
	names        []origin.Origin                // of the origins that registered anything
	registered   map[wire.KeyHash]registered    // the last registration of each key, but for those of fresh
	others       map[wire.KeyHash]origin.Vector // and those of other origins before it
	order        map[origin.Origin][]*entry     // of all, roughly by seq, for forgetting
	// fresh are entries that nobody has asked about: most are forgotten before somebody does, and come into no index.
	fresh     []*entry
	freshKeys int // of fresh
	spare     []entry
	spareKeys []wire.KeyHash
	settled   origin.Vector               // by which registrations were forgotten last
	wide      map[tableName]origin.Vector // of each origin the last one
	// begun is the last transaction of an origin that registered anything and was not rolled back. A
	// registration beyond it stands for nothing that is, or may come to be, in the database.
	begun map[origin.Origin]uint64
	takes takes
	wake  chan struct{} // of capacity 1: takes has grown, or some need not wait any more
	// Deletes with a commit LSN in [confirmed, rescan) are checked in the database: the registry of
	// the bridge's earlier life is gone, and their take-backs may not have been flushed. Not those that
	// stand behind the commits of all that the earlier life applied.
	confirmed, rescan uint64
	// watch reports whether all local deletes of a table are checked in the database, since rows of it are kept.
	watch func(tableName) bool
	// merged reports whether a table is merged.
	merged func(tableName) bool
	said   origin.Vector // by told; never changed
}

// registered is a registration in the index, where there may be many: its origin's place in names, and its seq.
type registered struct {
	seq    uint64
	origin uint16
}

// entry is what one transaction has registered.
type entry struct {
	registered
	keys    []wire.KeyHash // nil once forgotten
	indexed bool
}

// bulk holds the tombstones of one large transaction: sorted, without a map's overhead.
type bulk struct {
	tombstone
	keys   []wire.KeyHash
	sorted bool
}

// has looks a key up; a bulk that has grown since is sorted first.
func (b *bulk) has(k wire.KeyHash) bool {
	if !b.sorted {
		slices.SortFunc(b.keys, compareHash)
		b.sorted = true
	}
	_, ok := slices.BinarySearchFunc(b.keys, k, compareHash)
	return ok
}

// bulkLimit is the number of deletes from which a transaction's tombstones become a bulk.
const bulkLimit = 1000

func newAbsence() *absence {
	return &absence{
		tombs: map[wire.KeyHash]tombstone{}, truncated: map[tableName]tombstone{},
		registered: map[wire.KeyHash]registered{}, others: map[wire.KeyHash]origin.Vector{},
		order: map[origin.Origin][]*entry{}, wide: map[tableName]origin.Vector{},
		begun: map[origin.Origin]uint64{}, takes: newTakes(), wake: make(chan struct{}, 1), watch: func(tableName) bool { return false },
		merged: func(tableName) bool { return false },
	}
}

func compareHash(a, b wire.KeyHash) int {
	switch {
	case a.Hi < b.Hi || a.Hi == b.Hi && a.Lo < b.Lo:
		return -1
	case a == b:
		return 0
	}
	return 1
}

// bury records the deletes of one transaction. It takes over keys.
func (a *absence) bury(t tombstone, keys []wire.KeyHash) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(keys) >= bulkLimit {
		a.bulks = append(a.bulks, bulk{tombstone: t, keys: keys})
		return
	}
	for _, k := range keys {
		a.buryOne(t, k)
	}
}

// buryLocal is buryOne for the deletes of local transactions, which come one by one: many of one
// transaction make a bulk.
func (a *absence) buryLocal(t tombstone, k wire.KeyHash) {
	if a.localSeq != t.seq {
		a.localSeq, a.localDeletes = t.seq, 0
	}
	a.localDeletes++
	if a.localDeletes < bulkLimit {
		a.buryOne(t, k)
		return
	}
	if n := len(a.bulks); n == 0 || a.bulks[n-1].tombstone != t {
		a.bulks = append(a.bulks, bulk{tombstone: t})
	}
	b := &a.bulks[len(a.bulks)-1]
	b.keys, b.sorted = append(b.keys, k), false
}

func (a *absence) buryOne(t tombstone, k wire.KeyHash) {
	if old, ok := a.tombs[k]; !ok || t.Later(old.Version) {
		a.tombs[k] = t
	}
}

// truncate records the delete of everything in a table that is older than t.
func (a *absence) truncate(t tombstone, n tableName) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if old, ok := a.truncated[n]; !ok || t.Later(old.Version) {
		a.truncated[n] = t
	}
}

// tombstone returns the latest delete known of a key.
func (a *absence) tombstone(n tableName, k wire.KeyHash) (tombstone, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lookUp(n, k)
}

func (a *absence) lookUp(n tableName, k wire.KeyHash) (tombstone, bool) {
	best, found := a.tombs[k]
	consider := func(t tombstone) {
		if !found || t.Later(best.Version) {
			best, found = t, true
		}
	}
	for i := range a.bulks {
		if a.bulks[i].has(k) {
			consider(a.bulks[i].tombstone)
		}
	}
	if len(a.truncated) > 0 {
		if t, ok := a.truncated[n]; ok {
			consider(t)
		}
	}
	return best, found
}

// create registers keys whose rows the transaction r of version v may create, then asks the tombstones,
// in that order (R18). It reports whether a delete meets v.
func (a *absence) create(r registration, v origin.Version, up origin.Vector, rows ...created) (met bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.begins(r)
	if len(a.registered)+a.freshKeys+len(rows) > registryLimit {
		for i := range rows {
			a.widen(rows[i].table, r)
		}
	} else {
		a.register(r, rows)
	}
	for i := range rows {
		if t, ok := a.lookUp(rows[i].table, rows[i].key); ok && t.meets(v, up) {
			return true
		}
	}
	return false
}

// createMany registers a whole table for the transaction r.
func (a *absence) createMany(n tableName, r registration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.begins(r)
	a.widen(n, r)
}

func (a *absence) register(r registration, rows []created) {
	if len(rows) == 0 {
		return
	}
	e := &cut(&a.spare, 1)[0]
	*e = entry{registered: registered{r.seq, a.number(r.origin)}, keys: cut(&a.spareKeys, len(rows))}
	for i := range rows {
		e.keys[i] = rows[i].key
	}
	a.order[r.origin] = append(a.order[r.origin], e)
	a.fresh = append(a.fresh, e)
	a.freshKeys += len(rows)
}

// cutFrom is how many small things are made at once.
const cutFrom = 256

// cut returns n of what is spare, of which more is made if need be.
func cut[T any](spare *[]T, n int) []T {
	if n > cutFrom/4 {
		return make([]T, n)
	}
	if len(*spare) < n {
		*spare = make([]T, cutFrom)
	}
	taken := (*spare)[:n:n]
	*spare = (*spare)[n:]
	return taken
}

// index takes the fresh entries into the index.
func (a *absence) index() {
	for _, e := range a.fresh {
		for _, k := range e.keys {
			old, ok := a.registered[k]
			if ok && old.origin != e.origin {
				v := a.others[k]
				v.Advance(origin.Entry{Origin: a.names[old.origin], Seq: old.seq})
				a.others[k] = v
			}
			a.registered[k] = e.registered
		}
		e.indexed = true
	}
	clear(a.fresh)
	a.fresh, a.freshKeys = a.fresh[:0], 0
}

// number returns the place of an origin in names.
func (a *absence) number(o origin.Origin) uint16 {
	i := slices.Index(a.names, o)
	if i < 0 {
		i, a.names = len(a.names), append(a.names, o)
	}
	return uint16(i)
}

// begins notes that r has begun; an origin's transactions begin in order, also when they begin again.
func (a *absence) begins(r registration) { a.begun[r.origin] = r.seq }

func (a *absence) widen(n tableName, r registration) {
	v := a.wide[n]
	if v.Advance(origin.Entry{Origin: r.origin, Seq: r.seq}) {
		a.wide[n] = v
	}
}

// concerned returns the registrations that stand for a key, of each origin the last.
func (a *absence) concerned(n tableName, k wire.KeyHash) origin.Vector {
	a.index()
	v := a.wide[n].Clone()
	v.Merge(a.others[k])
	if r, ok := a.registered[k]; ok {
		v.Advance(origin.Entry{Origin: a.names[r.origin], Seq: r.seq})
	}
	return v
}

// ended reports whether e's transaction and those of its origin in front of it have landed or were rolled
// back, judged by applied.
func (a *absence) ended(e origin.Entry, applied origin.Vector) bool {
	return applied.Covers(e.Origin, min(e.Seq, a.begun[e.Origin]))
}

// settle forgets the registrations whose commits capture has passed: low is the vector that it has read
// back from markers, and a marker's done stands behind the commits that it names.
func (a *absence) settle(low origin.Vector) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if low.Equal(a.settled) {
		return
	}
	a.settled = low
	for o, list := range a.order {
		seq := low.Seq(o)
		for len(list) > 0 && list[0].seq <= seq {
			a.forget(list[0], o)
			list = list[1:]
		}
		a.order[o] = list
	}
	a.fresh = slices.DeleteFunc(a.fresh, func(e *entry) bool { return e.keys == nil })
	for n, v := range a.wide {
		if v = uncovered(v, low); len(v) == 0 {
			delete(a.wide, n)
		} else {
			a.wide[n] = v
		}
	}
}

// forget takes an entry of o out of the index.
func (a *absence) forget(e *entry, o origin.Origin) {
	if e.indexed {
		for _, k := range e.keys {
			a.unregister(k, o, e.registered)
		}
	} else {
		a.freshKeys -= len(e.keys)
	}
	e.keys = nil
}

// unregister forgets a registration of o.
func (a *absence) unregister(k wire.KeyHash, o origin.Origin, r registered) {
	if a.registered[k] == r {
		delete(a.registered, k)
	}
	if len(a.others) == 0 {
		return
	}
	v, ok := a.others[k]
	if !ok {
		return
	}
	v = slices.DeleteFunc(v, func(e origin.Entry) bool { return e.Origin == o && e.Seq <= r.seq })
	if len(v) == 0 {
		delete(a.others, k)
	} else {
		a.others[k] = v
	}
}

// uncovered returns what low has not seen of v, in v's memory.
func uncovered(v, low origin.Vector) origin.Vector {
	return slices.DeleteFunc(v, func(e origin.Entry) bool { return low.Covers(e.Origin, e.Seq) })
}

// unsettled reports whether a local delete that is not captured yet may still take the row back, other
// than from the transaction r itself (R19). passed is how far capture has read.
func (a *absence) unsettled(n tableName, k wire.KeyHash, r registration, passed uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if passed < a.rescan {
		return true
	}
	for _, e := range a.concerned(n, k) {
		last := min(e.Seq, a.begun[e.Origin])
		if e.Origin == r.origin { // what is behind r is not there, and may hide what is in front of it
			last = min(last, r.seq-1)
		}
		if !a.settled.Covers(e.Origin, last) {
			return true
		}
	}
	return a.takes.touch(n, k)
}

// deleted is told by capture, in WAL order, that a local transaction deleted a key: first the tombstone,
// then the registry (R18). lsn is the commit's.
func (a *absence) deleted(n tableName, key []wire.Value, k wire.KeyHash, t tombstone, lsn uint64, startPassed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.buryLocal(t, k)
	after := a.concerned(n, k)
	if len(after) == 0 && !a.watch(n) && (startPassed || lsn >= a.rescan || lsn < a.confirmed) {
		return
	}
	copied := make([]wire.Value, len(key))
	for i, v := range key {
		copied[i] = wire.Value{Format: v.Format, Data: slices.Clone(v.Data)}
	}
	a.push(take{table: n, key: copied, hash: k, version: t.Version, commitLSN: lsn, after: after}, a.merged(n))
}

// truncatedHere is deleted for a whole table.
func (a *absence) truncatedHere(n tableName, t tombstone, lsn uint64, startPassed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if old, ok := a.truncated[n]; !ok || t.Later(old.Version) {
		a.truncated[n] = t
	}
	after := a.wide[n].Clone()
	for o, list := range a.order { // which tables they are of is not known: all count
		for _, e := range list {
			after.Advance(origin.Entry{Origin: o, Seq: e.seq})
		}
	}
	if len(after) == 0 && !a.watch(n) && (startPassed || lsn >= a.rescan || lsn < a.confirmed) {
		return
	}
	a.push(take{table: n, version: t.Version, commitLSN: lsn, after: after}, a.merged(n))
}

func (a *absence) push(t take, merged bool) {
	a.takes.push(t)
	if merged {
		a.takes.commit(t.commitLSN).hold(t.after)
	}
	a.alert()
}

// told returns what of low may be told others, which have been told before. As long as a row of a merged table may yet be
// taken back, users here may update it: other nodes must not forget what it was made of in front of such an update, and so
// are not told that the transaction which made it has been seen.
func (a *absence) told(before, low origin.Vector) origin.Vector {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.said = low; len(a.takes.commits) == 0 {
		return low
	}
	a.said = before.Clone()
	for _, e := range low {
		if !a.takes.holds(e.Origin) {
			a.said.Advance(e)
		}
	}
	return a.said
}

// saidSeq is what told has said last of an origin: capture has read behind whatever made rows here up to that transaction,
// and no local delete takes back any of them that is in a merged table.
func (a *absence) saidSeq(o origin.Origin) uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.said.Seq(o)
}

func (a *absence) alert() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// withdraw says that the transactions of o from seq on were rolled back. What they registered stays, to
// be on the safe side, until they are applied after all; but nobody waits for their end meanwhile.
func (a *absence) withdraw(o origin.Origin, seq uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.begun[o] = min(a.begun[o], seq-1)
	if len(a.takes.waiting[o]) > 0 {
		a.alert()
	}
}

// due returns up to limit takes whose transactions have ended, judged by applied.
func (a *absence) due(applied origin.Vector, limit int) []take {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.takes.due(func(e origin.Entry) bool { return a.ended(e, applied) }, limit)
}

// takesWait reports whether there are takes whose transactions have not ended.
func (a *absence) takesWait() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.takes.wait()
}

// done removes takes that due has returned and that are flushed, with whatever they saw (R20); those that
// failed come again behind the others.
func (a *absence) done(takes, failed []take) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.takes.done(len(takes), failed)
}

// holdLSN is the lowest commit LSN of a local delete whose take-back is not flushed, 0 if there is none.
func (a *absence) holdLSN() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.takes.lowest()
}

// mayTakeBack reports whether a local delete that capture, which has read up to passed, has told of may still take rows
// back.
func (a *absence) mayTakeBack(passed uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return passed < a.rescan || a.takes.lowest() != 0
}

// mayTakeBackBelow reports the same of the local deletes whose commits begin below lsn.
func (a *absence) mayTakeBackBelow(lsn uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	lowest := a.takes.lowest()
	return lsn < a.rescan || lowest != 0 && lowest < lsn
}

// purge drops the tombstones that stable says nobody can ask for any more (R22), unless an older delete that may be of the same rows
// stays: what comes behind the later one has not met it, and must not find it instead. It returns how many are left.
func (a *absence) purge(stable func(o origin.Origin) uint64) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	seqs := map[origin.Origin]uint64{}
	asked := func(t tombstone) bool {
		seq, ok := seqs[t.Origin]
		if !ok {
			seq = stable(t.Origin)
			seqs[t.Origin] = seq
		}
		return t.seq > seq
	}
	many := origin.Stamp(math.MaxInt64) // the oldest that stays of those of many rows
	for i := range a.bulks {
		if t := a.bulks[i].tombstone; asked(t) {
			many = min(many, t.Stamp)
		}
	}
	for _, t := range a.truncated {
		if asked(t) {
			many = min(many, t.Stamp)
		}
	}
	oldest := many // and of all
	if len(a.bulks)+len(a.truncated) > 0 {
		for _, t := range a.tombs {
			if asked(t) {
				oldest = min(oldest, t.Stamp)
			}
		}
	}
	maps.DeleteFunc(a.tombs, func(_ wire.KeyHash, t tombstone) bool { return t.Stamp < many && !asked(t) })
	maps.DeleteFunc(a.truncated, func(_ tableName, t tombstone) bool { return t.Stamp < oldest && !asked(t) })
	a.bulks = slices.DeleteFunc(a.bulks, func(b bulk) bool { return b.Stamp < oldest && !asked(b.tombstone) })
	left := len(a.tombs) + len(a.truncated)
	for _, b := range a.bulks {
		left += len(b.keys)
	}
	return left
}
