package apply

import (
	"cmp"
	"context"
	"maps"
	"math"
	"slices"
	"sort"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/integration/sim"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/rowkey"
	"github.com/pgbridge/pgbridge/wire"
)

// simBooks are the bridge's tables. They change in commits alone, so that a crash loses what the rows lose.
type simBooks struct {
	positions []origin.Entry // by node
	tombs     []simTomb
	lineages  map[wire.KeyHash]*lineage
	truncates []journaled
	done      origin.Entry // own transactions up to here are in the journal
	owed      []*owedRow
	byArrival bool // a rule is broken: merges go by the order of writes here
}

type simTomb struct {
	tombstone
	keys  []wire.KeyHash
	wiped []tableName
}

// simCommit is what one commit of the bridge's changes in its tables.
type simCommit func(*simBooks)

// putOwn is put for own writes, as ownBaseSQL does it.
func (b *simBooks) putOwn(bases []journalBase, writes []journaled) {
	for _, base := range bases {
		l := b.lineages[base.key]
		if l != nil && l.based && l.base == nil && !slices.ContainsFunc(l.writes, func(w conflict.Logged) bool { return w.Kind == conflict.Insert }) {
			l.base = base.cells
		}
	}
	b.put(bases, writes)
}

// put takes writes into the journal, as baseSQL and journalSQL do: what is there stays.
func (b *simBooks) put(bases []journalBase, writes []journaled) {
	row := func(k wire.KeyHash) *lineage {
		if b.lineages[k] == nil {
			b.lineages[k] = &lineage{}
		}
		return b.lineages[k]
	}
	for _, base := range bases {
		if l := row(base.key); !l.based {
			l.based, l.base = true, base.cells
		}
	}
	for _, w := range writes {
		same := func(v *conflict.Logged) bool {
			return v.Origin == w.write.Origin && v.Seq == w.write.Seq && v.Part == w.write.Part
		}
		if w.write.Kind == conflict.Truncate {
			if !slices.ContainsFunc(b.truncates, func(t journaled) bool { return t.key == w.key && same(t.write) }) {
				b.truncates = append(b.truncates, w)
			}
			continue
		}
		if l := row(w.key); !slices.ContainsFunc(l.writes, func(v conflict.Logged) bool { return same(&v) }) {
			l.add(*w.write, w.image)
		}
	}
}

// lineage is what lineages reads of a key.
func (b *simBooks) lineage(t *table, k wire.KeyHash) lineage {
	var l lineage
	if stored := b.lineages[k]; stored != nil {
		l = lineage{based: stored.based, base: stored.base, writes: slices.Clone(stored.writes), images: slices.Clone(stored.images),
			truncates: slices.Clone(stored.truncates)}
	}
	for i := range l.writes {
		if b.byArrival {
			l.writes[i].Stamp = origin.Stamp(i)
		}
	}
	for _, w := range b.truncates {
		if w.key == wholeTable(t) {
			l.truncates, l.whole = append(l.truncates, *w.write), true
		}
	}
	return l
}

// simMarker is a marker in the WAL.
type simMarker struct{ wire.Marker }

// Below is the id below which none is given out again: the marker names it.
func (m *simMarker) Below() uint32 { return uint32(m.XMin) }

// simMark is a marker that capture has read, with what had been announced by then.
type simMark struct {
	wire.Mark
	up origin.Vector
}

// simNode is a node: a model of PostgreSQL, a little capture, and what an Applier is made of. It implements WAL.
type simNode struct {
	w     *simWorld
	id    int
	own   origin.Origin
	pg    *sim.Server
	ahead int64 // microseconds by which its clock is ahead
	users []*simUser
	shown []uint64 // truth: which transactions are visible here, by node

	// Capture's state. What is captured is published, and durable, at once.
	read      int // records
	confirmed uint64
	seq       uint64
	clock     origin.Clock
	up, low   origin.Vector
	told      origin.Vector // what of low others are told
	marks     []simMark
	captured  []*simTxn
	frames    []*wire.Frame
	kept      uint64 // own transactions behind it are still in the stream
	from      uint64 // and were when the bridge started: what capture knows is of those
	next      uint64 // the first id that was given out since then

	books    simBooks
	start    origin.Vector
	opts     Options
	absence  *absence
	heard    *hearsay
	progress *progress
	owed     *owed
	resends  *resender
	locks    *keyLocks
	journal  *journal
	own2     *inbox // of own frames, for the journal
	journals int    // own frames that the journal has met
	workers  []*simWorker
	reached  []int  // frames of each origin that have arrived
	cut      []bool // links to the other nodes' streams

	down   bool  // there is no bridge and no broker
	handed []int // frames of each origin that this node has handed on, and
	given  []int // of those, how many it has purged
}

func (w *simWorld) newNode(id int, rows [][]conflict.Cell) *simNode {
	nodes := w.s.Nodes
	n := &simNode{w: w, id: id, own: simOrigin(id), pg: sim.NewServer(rows, w.s.Keys), ahead: w.s.Skew[id], shown: make([]uint64, nodes),
		cut: make([]bool, nodes), handed: make([]int, nodes), given: make([]int, nodes)}
	n.clock.Last = math.MinInt64 / 2
	n.books = simBooks{positions: make([]origin.Entry, nodes), lineages: map[wire.KeyHash]*lineage{}, byArrival: w.broken.mergeByArrival}
	n.opts = Options{FirstXID: sim.FirstXID, Merge: w.policies, Priority: sim.Priority()}.withDefaults()
	n.open()
	return n
}

func simOrigin(id int) origin.Origin { return origin.Origin{Node: sim.NodeName(id), Epoch: 1} }

// open is what Open and the start of a life do: everything in memory comes from what is durable.
func (n *simNode) open() {
	n.from, n.next = n.kept, uint64(n.pg.Next())
	n.marks = slices.DeleteFunc(n.marks, func(m simMark) bool { return m.Seq <= n.from && n.from > 0 })
	var others []origin.Origin
	n.absence, n.progress = newAbsence(), newProgress()
	n.absence.merged = func(t tableName) bool { return n.opts.merges(t.schema, t.name) }
	n.absence.told(n.told, n.told)
	for p := range n.w.s.Nodes {
		if p == n.id {
			continue
		}
		others = append(others, simOrigin(p))
		e := n.books.positions[p]
		e.Origin = simOrigin(p)
		n.progress.advance(e)
	}
	n.heard = newHearsay(n.own, others)
	n.openOwed()
	n.locks = newKeyLocks(len(others))
	n.locks.alone = n.w.broken.noKeyLocks
	n.journal = &journal{own: n.own, wal: n, heard: n.heard, absence: n.absence, progress: n.progress, locks: n.locks, opts: &n.opts, changed: make(chan struct{}),
		mappings: map[string]*mapping{}, wiped: map[wiped]origin.Vector{}, origins: map[int32]origin.Origin{}, done: n.books.done}
	for p := range n.w.s.Nodes {
		n.journal.origins[n.journalID(p)] = simOrigin(p)
	}
	merged := n.w.tables[1]
	n.journal.mappings[string(merged.record)] = merged.mapping
	n.own2, n.journals = newInbox(n.own, &n.opts, n.books.done.Seq), 0
	n.workers, n.reached = nil, make([]int, n.w.s.Nodes)
	for p := range n.w.s.Nodes {
		n.workers = append(n.workers, n.openWorker(p, others))
		if p == n.id {
			continue
		}
		if q := n.w.nodes[p]; q != nil {
			n.reached[p] = sort.Search(len(q.frames), func(i int) bool { return q.frames[i].LastSeq >= n.books.positions[p].Seq })
		}
	}
	n.start = n.progress.vector()
	for _, t := range n.books.tombs {
		if !n.w.broken.noTombstones {
			n.absence.bury(t.tombstone, slices.Clone(t.keys))
		}
		for _, name := range t.wiped {
			n.absence.truncate(t.tombstone, name)
		}
	}
	n.absence.confirmed, n.absence.rescan = n.confirmed, sim.LSN(len(n.pg.WAL))
	if n.w.broken.noRescan {
		n.absence.rescan = 0
	}
	for _, t := range n.captured { // what is told again proves nothing of what has passed
		if t.Seq > n.kept {
			n.tell(t, false)
		}
	}
}

// journalID is what the journal calls a node's origin; as in pgbridge.position, 0 is this node.
func (n *simNode) journalID(p int) int32 {
	if p == n.id {
		return 0
	}
	return int32(p + 1)
}

func (n *simNode) openWorker(p int, others []origin.Origin) *simWorker {
	if p == n.id {
		return nil
	}
	w := &worker{origin: simOrigin(p), own: n.own, id: uint32(p + 1), opts: &n.opts, log: n.opts.Logger, wal: n, progress: n.progress,
		absence: n.absence, locks: n.locks, journal: n.journal, kept: newQuarantine(), heard: n.heard, owed: n.owed, ctx: n.w.ctx, mappings: map[uint32]*mapping{},
		digests: rowkey.NewDigests(nil), combined: n.w.catalog.combined, current: &batch{}, atOnce: 1, bundled: 1}
	w.inbox = newInbox(w.origin, &n.opts, n.books.positions[p].Seq)
	w.inbox.resends = n.resends
	if n.w.broken.ignoresOwed {
		w.owed = newOwed(newProgress())
	}
	w.guard.self = w.id
	for _, o := range others {
		if o != w.origin {
			w.guard.others, w.guard.ids = append(w.guard.others, o), append(w.guard.ids, uint32(o.Node[0]-'a')+1)
		}
	}
	w.kept.back = math.MaxUint32 // no rows come back
	w.planner.w = w
	fixed := func() *statement { return &statement{name: "fixed", sent: true, ready: true} }
	w.positionStatement, w.tombstoneStatement = fixed(), fixed()
	for _, t := range n.w.tables {
		w.mappings[t.relation.ID] = t.mapping
	}
	s := &simWorker{worker: w, n: n, from: p}
	w.policy = s.decide
	return s
}

// restart kills the bridge and starts it again. What the server has a commit record of is committed.
func (n *simNode) restart() {
	for _, s := range n.workers {
		switch {
		case s == nil || s.session == nil:
		case s.phase == simRecorded:
			n.pg.Show(s.session)
			simCommits(s.drafts)(&n.books)
			n.show(s.truth)
		default:
			n.pg.Rollback(s.session)
		}
	}
	if n.w.purges { // so that as much as may be is forgotten
		n.purge()
	}
	n.forgetState()
	n.open()
}

// crash is the server's. Asynchronous commits may be lost, and what was never published with them.
func (n *simNode) crash() {
	n.pg.Crash()
	n.users = nil
	n.books = simBooks{positions: make([]origin.Entry, n.w.s.Nodes), lineages: map[wire.KeyHash]*lineage{}, byArrival: n.w.broken.mergeByArrival}
	n.shown = make([]uint64, n.w.s.Nodes)
	for i := range n.pg.WAL {
		r := &n.pg.WAL[i]
		if c, ok := r.Of.(simCommit); ok {
			c(&n.books)
		}
		if t, ok := r.Commit.Of.(*simTxn); ok && r.Kind == sim.Committed {
			n.show(t)
		}
	}
	n.forgetState()
	n.open()
}

// forgetState loses what capture does not keep with the frames, and that too if the rule is broken that it does.
func (n *simNode) forgetState() {
	if n.w.broken.noSavedVectors {
		n.up, n.told = nil, nil
	}
	n.low = n.told
}

// bridge commits what the bridge does for itself.
func (n *simNode) bridge(c simCommit) {
	t := n.pg.Begin()
	n.pg.Record(t, sim.Commit{Origin: simOwn}, c)
	n.pg.Show(t)
	c(&n.books)
}

// simOwn is the replication origin of the bridge's own work.
const simOwn = 99

// keep takes the next own frame into the journal; false: there is none.
func (n *simNode) keep() bool {
	if n.journals == len(n.frames) {
		return false
	}
	f := n.frames[n.journals]
	n.journals++
	j := n.journal
	txns, err := n.own2.open(0, f)
	if err != nil {
		n.w.fail("own frame: %v", err)
		return false
	}
	for _, t := range txns {
		if t.vectorOnly || t.Seq <= j.upTo() {
			continue
		}
		j.writes, j.bases = nil, nil
		if err := j.txn(n.w.ctx, t); err != nil {
			n.w.fail("journal: %v", err)
			return false
		}
		writes, bases, done := n.faulty(j.writes), j.bases, t.entry()
		n.bridge(func(b *simBooks) {
			if n.w.broken.keepsNoRow {
				b.put(bases, writes)
			} else {
				b.putOwn(bases, writes)
			}
			b.done = done
		})
		j.advance(done)
	}
	return true
}

// faulty spoils writes on their way into the journal, if a rule is broken.
func (n *simNode) faulty(writes []journaled) []journaled {
	for i := range writes {
		if n.w.broken.foldByUp {
			writes[i].write.Low = writes[i].write.Up
		}
	}
	return writes
}

// takeBack removes rows that a local delete beats which capture met only after they had been made.
func (n *simNode) takeBack() bool {
	due := n.absence.due(n.progress.vector(), math.MaxInt)
	if len(due) == 0 || n.journal.upTo() < n.seq {
		return false
	}
	slices.SortFunc(due, func(a, b take) int {
		return cmp.Or(cmp.Compare(a.commitLSN, b.commitLSN), compareHash(a.hash, b.hash))
	})
	if n.w.broken.noTakeBacks {
		n.absence.done(due, nil)
		return true
	}
	t := n.pg.Begin()
	for _, take := range due {
		if !n.takeOne(t, take) {
			n.pg.Rollback(t) // a row is locked: later
			return false
		}
	}
	n.pg.Record(t, sim.Commit{Origin: simOwn}, nil)
	n.pg.Show(t)
	if !n.w.broken.unflushedTakes {
		n.flush()
	}
	n.absence.done(due, nil)
	return true
}

func (n *simNode) takeOne(t *sim.Session, k take) bool {
	for place := range n.w.places() {
		table, key := n.w.at(place)
		m := n.w.tables[table]
		if k.table != m.mapping.name() || k.key != nil && k.hash != m.hash(key) {
			continue
		}
		v := n.pg.See(t, place)
		if v == nil {
			continue
		}
		if n.pg.Locked(t, place, false) {
			return false
		}
		c := n.pg.CommitOf(v)
		if c == nil || c.Origin == 0 && !m.Merged {
			continue // of before, or a user's: that is later
		}
		if m.Merged {
			if c.Origin == 0 && !n.journal.holds(v.XID, c.Stamp, m.hash(key)) {
				n.flush()
				return false
			}
			h := &held{origin: n.own, keys: []wire.KeyHash{m.hash(key)}}
			if ok, _ := n.locks.try(h); !ok {
				return false
			}
			n.locks.release(h)
			n.rework(&n.books, t, place)
			continue
		} else if !k.version.Later(origin.Version{Stamp: c.Stamp, Origin: simOrigin(c.Origin - 1)}) {
			continue
		}
		n.pg.Write(t, place, nil)
	}
	return true
}

// rework is journal.rework.
func (n *simNode) rework(b *simBooks, t *sim.Session, place int) {
	table, key := n.w.at(place)
	m := n.w.tables[table]
	l := b.lineage(m.mapping.local, m.hash(key))
	here := n.pg.See(t, place).Cells
	row, err := l.reworked(context.Background(), nil, m.mapping.local, here)
	if err != nil {
		n.w.fail("merge: %v", err)
	}
	if !sameCells(here, row) {
		n.pg.Write(t, place, row)
	}
}

// stable is up to where all other nodes have seen an origin.
func (n *simNode) stable(o origin.Origin) uint64 {
	if !n.w.broken.purgeBySide {
		return n.heard.stableSeq(o)
	}
	seq := uint64(math.MaxInt64)
	for _, p := range n.w.nodes {
		if p.own != o {
			seq = min(seq, p.progress.vector().Seq(o))
		}
	}
	return seq
}

// purge forgets what is stable.
func (n *simNode) purge() {
	n.absence.settle(n.progress.readBack(n))
	n.absence.purge(n.stable)
	n.shorten()
	n.giveUp()
	stable := map[origin.Origin]uint64{}
	for p := range n.w.s.Nodes {
		stable[simOrigin(p)] = n.stable(simOrigin(p))
	}
	gone := func(t simTomb) bool { return t.seq <= stable[t.Origin] }
	if slices.ContainsFunc(n.books.tombs, gone) {
		n.bridge(func(b *simBooks) { b.tombs = slices.DeleteFunc(slices.Clone(b.tombs), gone) })
	}
	for o := range stable { // as journal.stableSeq
		if o != n.own {
			stable[o] = min(stable[o], n.absence.saidSeq(o))
		}
	}
	n.purgeTruncates(stable)
	if len(n.books.truncates) > 0 {
		return
	}
	for _, k := range slices.SortedFunc(maps.Keys(n.books.lineages), compareHash) {
		h := &held{origin: n.own, keys: []wire.KeyHash{k}}
		if ok, _ := n.locks.try(h); !ok {
			continue
		}
		n.fold(k, stable)
		n.locks.release(h)
	}
}

// shorten purges the own stream, as bridge does: only of what is stable at every node, by what is on disk here.
func (n *simNode) shorten() {
	kept, hold := min(n.heard.everywhereSeq(), n.journal.upTo(), n.seq), n.absence.holdLSN()
	for kept > n.kept && hold != 0 && n.commitOf(n.captured[kept-1].xid).LSN >= hold {
		kept--
	}
	if kept > n.kept {
		n.flush()
		n.kept = kept
	}
}

// fold forgets a row's journal if it is stable as a whole, and folds what can be of it into the base else.
func (n *simNode) fold(k wire.KeyHash, stable map[origin.Origin]uint64) {
	l := n.books.lineage(n.w.tables[1].mapping.local, k)
	if !slices.ContainsFunc(l.writes, func(w conflict.Logged) bool { return w.Seq > stable[w.Origin] }) {
		n.bridge(func(b *simBooks) { delete(b.lineages, k) })
		return
	}
	old, cut := l.folding(func(o origin.Origin) uint64 { return stable[o] })
	if old == nil {
		return
	}
	out, err := old.merged(context.Background(), nil, n.w.tables[1].mapping.local)
	if err != nil {
		n.w.fail("fold: %v", err)
		return
	}
	n.bridge(func(b *simBooks) {
		next := lineage{based: true, base: out.Row}
		for i, w := range b.lineages[k].writes {
			if w.Seq > cut[w.Origin] {
				next.add(w, b.lineages[k].images[i])
			}
		}
		b.lineages[k] = &next
	})
}

// purgeTruncates is journal.purgeTruncates.
func (n *simNode) purgeTruncates(stable map[origin.Origin]uint64) {
	if len(n.books.truncates) > 1 && !n.w.broken.forgetsForAll {
		last := slices.MaxFunc(n.books.truncates, func(a, b journaled) int { return later(a.write, b.write) })
		n.bridge(func(b *simBooks) {
			b.truncates = slices.DeleteFunc(slices.Clone(b.truncates), func(t journaled) bool { return t.write.Seq != last.write.Seq || t.write.Origin != last.write.Origin })
		})
	}
	for _, t := range slices.Clone(n.books.truncates) {
		if t.write.Seq > stable[t.write.Origin] {
			continue
		}
		w := wiped{t.origin, t.write.Seq, int64(t.key.Hi)}
		behind, ok := n.journal.wiped[w]
		if !ok {
			behind = n.progress.vector()
			behind.Advance(n.journal.done)
			n.journal.wiped[w] = behind
		}
		if slices.ContainsFunc(behind, func(e origin.Entry) bool { return e.Seq > stable[e.Origin] }) {
			continue
		}
		h := &held{origin: n.own, keys: slices.Collect(maps.Keys(n.books.lineages))}
		if n.w.broken.forgetsUnlocked {
			h.keys = nil
		}
		if ok, _ := n.locks.try(h); !ok {
			continue
		}
		kept := map[wire.KeyHash]bool{} // rows with writes that not all have seen
		for k, l := range n.books.lineages {
			kept[k] = slices.ContainsFunc(l.writes, func(w conflict.Logged) bool { return w.Seq > stable[w.Origin] })
		}
		if n.w.broken.truncateGoes {
			clear(kept)
		}
		n.bridge(func(b *simBooks) {
			for k := range kept {
				if l := *b.lineages[k]; !kept[k] {
					delete(b.lineages, k)
				} else {
					l.truncates = append(slices.Clone(l.truncates), *t.write)
					b.lineages[k] = &l
				}
			}
			b.truncates = slices.DeleteFunc(slices.Clone(b.truncates), func(u journaled) bool {
				return u.key == t.key && u.write.Origin == t.write.Origin && u.write.Seq == t.write.Seq
			})
		})
		n.locks.release(h)
	}
}
