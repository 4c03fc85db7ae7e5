package apply

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/integration/sim"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// simBroken switches single rules of the protocol off, to see that the simulation notices.
type simBroken struct {
	arrivalWins     bool // what comes last wins
	skips           bool // what comes last loses
	unlifted        bool // stamps are commit times (R5)
	rawStamps       bool // a local row is compared by its commit time (R15)
	firstByTime     bool // and by the first transaction that has it
	guardByTime     bool // the guard compares local rows by time (R11)
	noTombstones    bool // deletes are not remembered
	noTakeBacks     bool // a local delete does not take a row back (R19)
	noRescan        bool // and not either what an earlier life has applied (R20)
	unflushedTakes  bool // the slot is confirmed though what a take-back saw is not on disk (R20)
	noKeyLocks      bool // workers meet on the same keys (R21)
	noHold          bool // a transaction does not wait for what its author had seen
	noVisible       bool // what capture has read is taken for visible (R14)
	markAfter       bool // markers stand behind the commits (R7)
	noSavedVectors  bool // capture forgets its vectors at a start (R6)
	lowIsUp         bool // what was announced counts as seen (R8)
	goneHides       bool // who wrote a row is not known if the frame went before the bridge started (R15)
	purgeBySide     bool // what every node has applied is forgotten, also if older transactions are on their way (R22)
	foldByUp        bool // the journal folds what all declare
	tellsUnsettled  bool // others may forget what a local delete may yet take back of merged rows
	owedIsSeen      bool // others are told that a transaction has been seen which left a row as it is
	ownsOwed        bool // a row is written again for another node though it is owed itself
	forgetsUnlocked bool // what a TRUNCATE judged is forgotten while transactions are applied to these rows
	truncateGoes    bool // a TRUNCATE of a merged table is forgotten though rows in the journal are older
	forgetsForAll   bool // what one TRUNCATE judged is forgotten though the table has others
	sendsUnsettled  bool // a row is written again for another node though a local delete may still take it back
	keepsGone       bool // who is asked for a row that is gone does not answer as long as it is owed that row
	keepsNoRow      bool // what a remote delete found behind a local one counts as the beginning
	ignoresOwed     bool // what is here is taken for the latest, though a later version is owed
	mergeByArrival  bool // merged rows go by the order in which writes came
	forgetsHandedOn bool // what was handed on is purged at once
}

// simStats counts what happened.
type simStats struct {
	events, published, applied, careful, conflicts, owed, crashes, restarts int

	// Schedules in which nodes hand on, bridges that were away, frames that were handed on, and those of them that were purged.
	routed, away, handed, purged int
}

func (s *simStats) add(o simStats) {
	s.events, s.published, s.applied, s.careful = s.events+o.events, s.published+o.published, s.applied+o.applied, s.careful+o.careful
	s.conflicts, s.owed, s.crashes, s.restarts = s.conflicts+o.conflicts, s.owed+o.owed, s.crashes+o.crashes, s.restarts+o.restarts
	s.routed, s.away, s.handed, s.purged = s.routed+o.routed, s.away+o.away, s.handed+o.handed, s.purged+o.purged
}

func (s simStats) String() string {
	return fmt.Sprintf("%d events, %d transactions applied %d times, %d by the careful path, %d conflicts, %d rows owed, %d crashes, %d restarts; "+
		"%d with transit: %d times a bridge was away, %d frames handed on, %d of them purged",
		s.events, s.published, s.applied, s.careful, s.conflicts, s.owed, s.crashes, s.restarts, s.routed, s.away, s.handed, s.purged)
}

// simWorld is one simulation.
type simWorld struct {
	ctx      context.Context
	s        *sim.Schedule
	broken   simBroken
	catalog  *simCatalog
	policies []MergePolicy
	tables   [2]*simTable
	nodes    []*simNode
	now      int64
	began    [][]conflict.Cell // the rows at first, by place
	versions map[origin.Version]*simTxn
	written  []simWrites // truth, by place
	wipes    []journaled // truth: TRUNCATEs of the merged table
	fault    string
	trace    []string
	tracing  bool
	stats    simStats
	owedIDs  int64
	owedOver map[int64]uint32 // the writers of the rows that were left as they are, by id in pgbridge.owed
	r        *rand.Rand       // who goes on first when all that has begun comes to its end
	purges   bool             // the schedule has the bridge forget
	// ways is, by node and origin, the node that is read from; -1: nobody has anything. nil while it has to be worked out.
	ways [][]int
}

// simWrites is what was ever written at a place.
type simWrites struct {
	last    *simTxn
	image   []conflict.Cell
	by      map[int]bool      // nodes
	single  []conflict.Cell   // the image of the only node that writes
	logged  []conflict.Logged // of merged tables
	sum     int64             // of increments
	unclear bool              // the counter may have been lost with its row
}

// simulate plays a schedule to its end; what went wrong is in fault, "" for nothing.
func simulate(ctx context.Context, p *simPlayer, s *sim.Schedule, broken simBroken, tracing bool) *simWorld {
	w := &simWorld{ctx: ctx, s: s, broken: broken, catalog: p.catalog, policies: p.policies, nodes: make([]*simNode, s.Nodes), versions: map[origin.Version]*simTxn{}, owedOver: map[int64]uint32{}, tracing: tracing,
		now: 1_000_000_000, r: rand.New(rand.NewPCG(s.Seed, 1)),
		purges: slices.ContainsFunc(s.Events, func(e sim.Event) bool { return e.Kind == sim.Purge })}
	for i, t := range s.Tables() {
		table, err := w.catalog.table(t, s.Full)
		if err != nil {
			w.fail("table: %v", err)
			return w
		}
		w.tables[i] = table
		for key := 1; key <= s.Keys; key++ {
			var row []conflict.Cell
			if s.Filled {
				row = t.Fresh(key, uint64(key))
			}
			w.began = append(w.began, row)
		}
	}
	w.written = make([]simWrites, len(w.began))
	for i := range w.written {
		w.written[i].by = map[int]bool{}
		w.written[i].unclear = !s.Filled
	}
	for i := range w.nodes {
		w.nodes[i] = w.newNode(i, w.began)
	}
	if s.Links != nil {
		w.stats.routed++
	}
	for i := range s.Events {
		if w.fault != "" {
			return w
		}
		w.event(&s.Events[i])
	}
	w.drain()
	if w.fault == "" {
		w.check()
	}
	if w.fault == "" {
		w.forgetAll()
	}
	return w
}

func (w *simWorld) fail(format string, args ...any) {
	if w.fault == "" {
		w.fault = fmt.Sprintf(format, args...)
		w.log("FAULT %s", w.fault)
	}
}

func (w *simWorld) log(format string, args ...any) {
	if w.tracing {
		w.trace = append(w.trace, fmt.Sprintf(format, args...))
	}
}

// strict reports whether the guard's errors count by themselves: else what comes of them must be found.
func (w *simWorld) strict() bool { return w.broken == simBroken{} }

func (w *simWorld) places() int { return len(w.began) }

// at is table and key of a place.
func (w *simWorld) at(place int) (table, key int) { return place / w.s.Keys, place%w.s.Keys + 1 }

func (w *simWorld) placeAt(table, key int) int { return table*w.s.Keys + key - 1 }

func (w *simWorld) placeOf(t *simTable, key []byte) int {
	return w.placeAt(slices.Index(w.tables[:], t), int(key[3]))
}

func (w *simWorld) place(m *mapping, tuple []wire.Value) int {
	for i, t := range w.tables {
		if t.mapping == m {
			return w.placeAt(i, int(tuple[0].Data[3]))
		}
	}
	panic("a mapping that no table has")
}

// byVersion finds a published transaction.
func (w *simWorld) byVersion(v origin.Version) *simTxn { return w.versions[v] }

// published takes in what a transaction means for the end.
func (w *simWorld) published(t *simTxn) {
	w.stats.published++
	w.log("%s: captured %s", simOrigin(t.node), t)
	w.versions[t.version()] = t
	part := conflict.Part(0)
	wrote := func(table, key int, row []conflict.Cell) *simWrites {
		p := &w.written[w.placeAt(table, key)]
		if p.last == nil || p.last == t || t.version().Later(p.last.version()) {
			p.last, p.image = t, row
		}
		p.by[t.node] = true
		p.single = row
		return p
	}
	logged := func(p *simWrites, kind conflict.Write, before, after []conflict.Cell) {
		part++
		l := conflict.Logged{Origin: t.Origin, Seq: t.Seq, Part: part, Stamp: t.Stamp, Up: t.up, Low: t.low, Kind: kind}
		if after != nil {
			ops, err := w.tables[1].mapping.local.merge.rules.Diff(before, after)
			if err != nil {
				w.fail("diff: %v", err)
			}
			l.Ops = ops
		}
		if p != nil {
			p.logged = append(p.logged, l)
			return
		}
		w.wipes = append(w.wipes, journaled{write: &l})
	}
	for i := range t.changes {
		c := &t.changes[i]
		merged := c.table == 1
		switch {
		case c.kind == wire.KindTruncate:
			for key := 1; key <= w.s.Keys; key++ {
				p := wrote(c.table, key, nil)
				p.unclear = true
			}
			if merged {
				logged(nil, conflict.Truncate, nil, nil)
			}
		case c.kind == wire.KindUpdate && c.from == c.to:
			p := wrote(c.table, c.to, c.new)
			if merged {
				logged(p, conflict.Update, c.old, c.new)
				p.sum += w.tables[1].Added(c.old, c.new)
			}
		default:
			if c.old != nil {
				p := wrote(c.table, c.from, nil)
				if p.unclear = true; merged {
					logged(p, conflict.Delete, nil, nil)
				}
			}
			if c.new != nil {
				p := wrote(c.table, c.to, c.new)
				if p.unclear = true; merged {
					logged(p, conflict.Insert, nil, c.new)
				}
			}
		}
	}
}

// ---- events ----

func (w *simWorld) event(e *sim.Event) {
	w.stats.events++
	w.now += 1 + e.N%3
	n := w.nodes[e.Node]
	many := int(e.N) + 1
	if n.down && e.Kind != sim.Begin && e.Kind != sim.Step && e.Kind != sim.Flush && e.Kind != sim.Clock && e.Kind != sim.Up {
		return
	}
	switch e.Kind {
	case sim.Begin:
		if w.s.InTurn {
			w.drain()
		}
		n.begin(e)
		if w.s.InTurn {
			w.drain()
		}
	case sim.Step:
		if len(n.users) > 0 {
			n.user(n.users[int(e.N)%len(n.users)])
		}
	case sim.Flush:
		n.pg.Flushed = min(len(n.pg.WAL), n.pg.Flushed+many)
	case sim.Capture:
		for ; many > 0 && n.read < n.pg.Flushed; many-- {
			n.capture()
		}
	case sim.Deliver:
		for ; many > 0 && !n.away(e.Peer) && n.deliver(e.Peer); many-- {
		}
	case sim.Apply:
		n.workers[e.Peer].step(e.N)
		n.handOn(e.Peer)
	case sim.Take:
		n.takeBack()
	case sim.Journal:
		n.keep()
	case sim.Mark:
		n.mark(origin.Entry{}, nil)
		n.resend(false)
		if e.N&1 == 1 {
			n.pg.Flushed = len(n.pg.WAL)
		}
	case sim.Confirm:
		n.confirm()
	case sim.Purge:
		n.purge()
	case sim.Clock:
		n.ahead = e.N
	case sim.Crash:
		w.log("%s: PostgreSQL crashes, WAL from %d to %d records", n.own, len(n.pg.WAL), n.pg.Flushed)
		w.stats.crashes++
		n.crash()
	case sim.Restart:
		w.log("%s: bridge starts again", n.own)
		w.stats.restarts++
		n.restart()
	case sim.Cut:
		n.cut[e.Peer] = true
	case sim.Heal:
		n.cut[e.Peer] = false
	case sim.Down:
		w.log("%s: its bridge and its broker are gone", n.own)
		w.stats.away++
		n.restart() // for its sessions to end
		n.down, w.ways = true, nil
	case sim.Up:
		n.back()
	}
}

// deliver takes in the next frame of an origin.
func (n *simNode) deliver(from int) bool {
	q := n.w.nodes[from]
	first, last := n.stands(from)
	if n.reached[from] >= last {
		return false
	}
	if f := q.frames[n.reached[from]]; n.reached[from] < first && f.LastSeq > n.books.positions[from].Seq {
		n.w.fail("%s: transaction %d of %s is gone from the stream that it is read from", n.own, f.LastSeq, q.own)
	}
	f := q.frames[n.reached[from]]
	n.reached[from]++
	if err := n.workers[from].inbox.push(n.w.ctx, uint64(n.reached[from]), f); err != nil {
		n.w.fail("%s: frame of %s: %v", n.own, q.own, err)
	}
	return true
}

// simUser is a user's open transaction.
type simUser struct {
	t       *simTxn
	ops     []sim.Op
	session *sim.Session
	state   simUserState
	sync    bool // waits for the disk
	then    func()
	standby int // steps that it waits for a standby, recorded and not visible
	tired   int
}

type simUserState byte

const (
	simOpen    simUserState = iota
	simStamped              // its timestamp is taken
	simWritten              // its record is in the WAL
)

// usersAtOnce is how many transactions users have open on one node.
const usersAtOnce = 3

func (n *simNode) begin(e *sim.Event) {
	if len(n.users) == usersAtOnce {
		return
	}
	u := &simUser{t: &simTxn{node: n.id, seen: make([]uint64, n.w.s.Nodes)}, ops: e.Ops, session: n.pg.Begin(), sync: e.N&1 == 0}
	if e.N&2 != 0 {
		u.standby = 6
	}
	n.users = append(n.users, u)
}

// user takes a step of a user's transaction; false if it waits.
func (n *simNode) user(u *simUser) bool {
	switch u.state {
	case simOpen:
		if len(u.ops) > 0 {
			if !n.op(u, &u.ops[0]) {
				if u.tired++; u.tired > simPatience {
					n.pg.Rollback(u.session)
					n.gone(u)
				}
				return false
			}
			u.ops = u.ops[1:]
			return true
		}
		if len(u.t.changes) == 0 {
			n.pg.Rollback(u.session)
			n.gone(u)
			return true
		}
		u.t.commitTime = origin.Stamp((n.w.now + n.ahead) / n.w.s.Grain * n.w.s.Grain)
		u.state = simStamped
	case simStamped:
		u.t.xid = n.pg.XID(u.session)
		n.pg.Record(u.session, sim.Commit{Stamp: u.t.commitTime, Of: u.t}, u.t)
		n.w.log("%s: commit record of a user, id %d: %s", n.own, u.t.xid, u.t)
		u.state = simWritten
	default:
		if u.standby > 0 {
			u.standby--
			return true
		}
		if u.sync {
			n.pg.Flushed = max(n.pg.Flushed, int(n.commitOf(u.t.xid).LSN))
		}
		n.pg.Show(u.session)
		n.gone(u)
		if u.then != nil {
			u.then()
		}
	}
	return true
}

func (n *simNode) gone(u *simUser) {
	n.users = slices.DeleteFunc(n.users, func(v *simUser) bool { return v == u })
}

// op executes a user's statement; false if it waits for a row.
func (n *simNode) op(u *simUser, o *sim.Op) bool {
	w, pg, table := n.w, n.pg, 0
	if o.Merged {
		table = 1
	}
	t := w.tables[table]
	at := w.placeAt(table, min(o.Key, w.s.Keys))
	_, key := w.at(at)
	row := pg.See(u.session, at)
	if o.Kind == sim.Truncate {
		if !pg.Truncate(u.session, table) {
			return false
		}
	} else if pg.Locked(u.session, at, row == nil && (o.Kind == sim.Put || o.Kind == sim.Patch)) {
		return false
	}
	for p := range u.t.seen {
		u.t.seen[p] = max(u.t.seen[p], n.shown[p])
	}
	change := func(c simChange) {
		c.table = table
		u.t.changes = append(u.t.changes, c)
	}
	switch {
	case o.Kind == sim.Truncate:
		change(simChange{kind: wire.KindTruncate})
	case o.Kind == sim.Remove:
		if row != nil {
			change(simChange{kind: wire.KindDelete, from: key, old: row.Cells})
			pg.Write(u.session, at, nil)
		}
	case o.Kind == sim.Move:
		to := w.placeAt(table, min(o.To, w.s.Keys))
		if row == nil || to == at || pg.See(u.session, to) != nil || pg.Locked(u.session, to, true) {
			return true
		}
		_, toKey := w.at(to)
		cells := t.Edit(row.Cells, o.Arg, false)
		cells[0] = sim.Key(toKey)
		change(simChange{kind: wire.KindUpdate, from: key, to: toKey, old: row.Cells, new: cells})
		pg.Write(u.session, at, nil)
		pg.Write(u.session, to, cells)
	case row == nil:
		cells := t.Fresh(key, o.Arg)
		change(simChange{kind: wire.KindInsert, to: key, new: cells})
		pg.Write(u.session, at, cells)
	default:
		keeps := o.Kind == sim.Patch && table == 0
		cells := t.Edit(row.Cells, o.Arg, keeps)
		change(simChange{kind: wire.KindUpdate, from: key, to: key, old: row.Cells, new: cells, keeps: keeps})
		pg.Write(u.session, at, cells)
	}
	return true
}

// ---- the end ----

// drainRounds bounds how long it may take until all is applied everywhere.
const drainRounds = 3000

// drain lets everything that has begun come to its end, everywhere.
func (w *simWorld) drain() {
	for _, n := range w.nodes {
		if n.down {
			n.back()
		}
	}
	for round := 0; w.fault == "" && !w.quiet(); round++ {
		if round == drainRounds {
			w.fail("stuck: %s", w.stuck())
			return
		}
		w.now++
		for _, n := range w.nodes {
			n.settle(int64(round))
		}
	}
}

// settle takes a step of most of what is open on a node.
func (n *simNode) settle(round int64) {
	often := func() bool { return n.w.r.IntN(3) > 0 }
	for _, u := range slices.Clone(n.users) {
		n.user(u)
	}
	n.pg.Flushed = len(n.pg.WAL)
	for often() && n.read < n.pg.Flushed {
		n.capture()
	}
	if n.owed.count.Load()+int64(len(n.resends.asked)) > 0 && often() {
		n.resend(round%64 == 63)
	}
	if often() {
		n.keep()
	}
	idle := true
	for p, s := range n.workers {
		if s == nil {
			continue
		}
		if often() {
			n.deliver(p)
		}
		idle = !(often() && s.step(n.w.r.Int64N(8))) && idle
		n.handOn(p)
	}
	if idle && round%8 == 7 { // whoever hears nothing more writes a closing marker
		n.closing()
	}
	if often() {
		n.takeBack()
	}
	n.absence.settle(n.progress.readBack(n))
	n.confirm()
	if n.w.purges && n.w.r.IntN(8) == 0 {
		n.purge()
	}
}

// closing writes a marker if there is anything to tell.
func (n *simNode) closing() {
	if n.read == len(n.pg.WAL) && !(n.told.Includes(n.seenHere()) && n.progress.readBack(n).Includes(n.progress.vector())) {
		n.flush()
	}
}

func (w *simWorld) quiet() bool {
	for _, n := range w.nodes {
		if len(n.users) > 0 || n.read < len(n.pg.WAL) || len(n.absence.takes.commits) > 0 && n.absence.holdLSN() != 0 || n.journals < len(n.frames) ||
			n.owed.count.Load() > 0 || len(n.resends.asked) > 0 {
			return false
		}
		for p, s := range n.workers {
			if s != nil && (s.phase != simIdle || n.reached[p] < len(w.nodes[p].frames) || n.progress.vector().Seq(simOrigin(p)) < w.nodes[p].seq) {
				return false
			}
		}
	}
	return true
}

func (w *simWorld) stuck() string {
	text := ""
	for _, n := range w.nodes {
		text += fmt.Sprintf("%s: users %d, read %d of %d, applied %s, takes %d, journal %d of %d, hidden %t, owed %d, asked %d;", n.own, len(n.users), n.read, len(n.pg.WAL), n.progress.vector(), len(n.absence.takes.commits), n.journal.upTo(), n.seq, n.pg.Hidden(n.Passed()), n.owed.count.Load(), len(n.resends.asked))
		for _, s := range n.workers {
			if s != nil && s.phase != simIdle {
				text += fmt.Sprintf(" %s:%d in phase %d, waits for record %d", s.origin, s.t.Seq, s.phase, s.target)
			}
		}
		text += "\n"
	}
	return text
}

// check compares the rows of all nodes with each other and with what was written.
func (w *simWorld) check() {
	for place := range w.places() {
		table, key := w.at(place)
		p := &w.written[place]
		want := p.image
		if p.last == nil {
			want = w.began[place]
		}
		if table == 1 {
			l := lineage{based: true, base: w.began[place], writes: p.logged}
			for _, t := range w.wipes {
				l.truncates = append(l.truncates, *t.write)
			}
			out, err := l.merged(context.Background(), nil, w.tables[1].mapping.local)
			if err != nil {
				w.fail("merge of all writes: %v", err)
			}
			want = out.Row
		} else if len(p.by) == 1 && !sameCells(want, p.single) {
			w.fail("key %d: %s is the only node that writes, and its last row %s is not the latest: %s", key, simOrigin(p.last.node), cellsText(p.single), cellsText(want))
		}
		for _, n := range w.nodes {
			var got []conflict.Cell
			if v := n.pg.See(nil, place); v != nil {
				got = v.Cells
			}
			if !sameCells(got, want) {
				w.fail("%s has for key %d of table %s: %s, not %s", n.own, key, w.tables[table].Name, cellsText(got), cellsText(want))
			}
		}
		if t := w.tables[table]; table == 1 && !p.unclear && t.Columns[1].Rule == conflict.Delta && t.Added(w.began[place], want) != p.sum {
			w.fail("counter %d rose by %d, its increments are %d", key, t.Added(w.began[place], want), p.sum)
		}
	}
}

// forgetAll requires that nothing is remembered for ever: once all nodes have told what they have seen, no tombstone and
// no journal is left.
func (w *simWorld) forgetAll() {
	if !w.strict() {
		return
	}
	for range 4 {
		for _, n := range w.nodes {
			n.closing()
		}
		w.drain()
		for _, n := range w.nodes {
			for _, s := range n.workers {
				if s != nil {
					s.inbox.peek(s.passed)
				}
			}
			n.purge()
		}
		w.drain()
	}
	for _, n := range w.nodes {
		if left := n.absence.purge(n.stable); left+len(n.books.tombs)+len(n.books.lineages)+len(n.books.truncates) > 0 {
			w.fail("%s still remembers %d tombstones (%d stored), %d rows of the journal, %d truncates", n.own, left, len(n.books.tombs), len(n.books.lineages),
				len(n.books.truncates))
		}
		for p := range w.nodes {
			if n.given[p] < n.handed[p] {
				w.fail("%s still has %d of %d frames that it has handed on of %s", n.own, n.handed[p]-n.given[p], n.handed[p], simOrigin(p))
			}
		}
		if n.absence.unsettled(w.tables[0].mapping.name(), w.tables[0].hash(1), registration{n.own, 1 << 62}, n.Passed()) {
			w.fail("%s: a key is still unsettled", n.own)
		}
	}
}
