package apply

import (
	"encoding/binary"
	"errors"
	"io"
	"slices"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/integration/sim"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// simPhase is where a worker is with its transaction.
type simPhase byte

const (
	simIdle      simPhase = iota
	simStraight           // the optimistic path's statements
	simCareful            // before an attempt
	simWriting            // the attempt has looked and decided, its statements follow
	simWaiting            // for capture
	simListening          // for the origin to tell
	simRecorded           // the commit record is in the WAL
)

// simWorker drives a worker step by step. What the worker decides is its own code's work; what is here are the statements
// that it would send, and in which moments they take effect.
type simWorker struct {
	*worker
	n     *simNode
	from  int // node
	phase simPhase

	t       *txn
	truth   *simTxn
	session *sim.Session
	changes []step // of the optimistic path
	at      int
	late    bool // the marker comes behind the statements
	tired   int  // steps in vain

	run     *carefulRun
	held    *held
	landed  []landing
	wiped   []tableName
	paid    []*owedRow
	drafts  []simCommit // what the transaction changes in the bridge's tables
	target  int         // records that capture must have read
	unheard origin.Version
}

// errSimBusy means that a row is locked.
var errSimBusy = errors.New("row is locked")

// simPatience is how often a transaction waits for a row before it is given up and begins anew, as for a deadlock.
const simPatience = 8

// step does a little; false if there was nothing to do. pick chooses between what may come first.
func (s *simWorker) step(pick int64) bool {
	switch s.phase {
	case simIdle:
		return s.next(pick)
	case simStraight:
		return s.straightOn()
	case simCareful:
		return s.attempt()
	case simWriting:
		return s.write()
	case simWaiting:
		n := s.n
		if n.read < s.target || n.journal.upTo() < n.seq || !n.w.broken.noVisible && n.pg.Hidden(n.Passed()) {
			return false
		}
		for x := range s.run.unsure {
			s.run.known[x] = true
		}
		s.run.waited, s.phase = true, simCareful
		return true
	case simListening:
		if _, err := s.inbox.saw(s.unheard, 0, 0); err != nil {
			if s.tired++; s.tired%simDeaf != 0 {
				return false
			}
			s.run.deaf = true
		}
		s.phase = simCareful
		return true
	}
	s.finish()
	return true
}

// decide is the policy, watched: a conflict is between writes that had not seen each other.
func (s *simWorker) decide(c conflict.Case) conflict.Decision {
	d := conflict.LastWriterWins(c)
	if s.n.w.broken.arrivalWins {
		d.RemoteWins = true
	}
	if s.n.w.broken.skips {
		d.RemoteWins = false
	}
	if d.Conflict {
		s.n.w.stats.conflicts++
	}
	if d.Conflict && s.n.w.s.InTurn {
		s.n.w.fail("%s: %s conflicts with %s, and there was never more than one writer", s.n.own, s.truth, c.Local.Version)
	}
	for p, seq := range s.truth.seen {
		if o := simOrigin(p); d.Conflict && o == c.Local.Version.Origin {
			if t := s.n.w.byVersion(c.Local.Version); t != nil && t.Seq <= seq {
				s.n.w.fail("%s: %s is recorded as a conflict with %s, which its author had seen", s.n.own, s.truth, t)
			}
		}
	}
	return d
}

// next takes up the origin's next transaction.
func (s *simWorker) next(pick int64) bool {
	t, _ := s.inbox.peek(s.passed)
	if t == nil || !s.n.w.broken.noHold && !s.announceable(t) {
		return false
	}
	s.t, s.truth, s.at, s.tired, s.late, s.drafts, s.wiped = t, s.n.w.nodes[s.from].captured[t.Seq-1], 0, 0, pick&1 == 1, nil, nil
	if s.opts.mayMerge(t) {
		return s.carefully()
	}
	s.current = &batch{}
	s.planner.out = s.planner.out[:0]
	err := s.planner.plan(t)
	if err == nil {
		err = s.claim(t)
	}
	var busy *busyError
	switch {
	case errors.As(err, &busy):
		return false
	case errors.Is(err, errSurprise):
		return s.carefully()
	case err != nil:
		s.n.w.fail("%s: plan %s: %v", s.n.own, s.truth, err)
		return false
	}
	s.commits(0)
	s.inbox.take()
	if s.changes, err = s.steps(); err != nil {
		s.n.w.fail("%s: read %s: %v", s.n.own, s.truth, err)
		return false
	}
	s.session, s.phase = s.n.pg.Begin(), simStraight
	if !s.late {
		s.announce(int(pick >> 1))
	}
	return true
}

// steps reads the transaction's changes.
func (s *simWorker) steps() ([]step, error) {
	c, err := newChanges(s.t)
	if err != nil {
		return nil, err
	}
	var all []step
	for {
		rec, relations, err := c.next()
		if err == io.EOF {
			return all, nil
		}
		var ch wire.Change
		if err == nil {
			err = ch.Parse(rec)
		}
		if err != nil {
			return nil, err
		}
		m, err := s.mapping(relations[ch.Relation], ch.Relation)
		if err != nil {
			return nil, err
		}
		all = append(all, copyStep(s.t, m, &ch))
	}
}

// announce writes the marker that announces the transaction, and so many behind it.
func (s *simWorker) announce(more int) {
	last := s.t
	if t := s.inbox.ahead(more, s.announceable); t != nil && t.Seq > last.Seq {
		last = t
	}
	s.progress.mu.Lock()
	done := s.progress.announced.Covers(s.origin, s.t.Seq)
	s.progress.mu.Unlock()
	if !done && !s.n.w.broken.markAfter {
		s.n.mark(last.entry(), nil)
	}
}

// giveUp rolls back.
func (s *simWorker) giveUp() {
	s.n.pg.Rollback(s.session)
	s.session = nil
	if s.phase == simStraight {
		s.giveBack(s.current)
		s.inbox.rewind()
	} else {
		s.locks.release(s.held)
	}
	s.absence.withdraw(s.origin, s.t.Seq)
	s.drafts, s.wiped = nil, nil
}

// carefully begins the careful path.
func (s *simWorker) carefully() bool {
	s.run = newCarefulRun(s.worker, []*txn{s.t})
	s.phase = simCareful
	return true
}

// straightOn executes the next statement of the optimistic path.
func (s *simWorker) straightOn() bool {
	if s.at < len(s.changes) {
		switch err := s.execute(&s.changes[s.at]); {
		case err == nil:
			s.at++
		case errors.Is(err, errSimBusy):
			if s.tired++; s.tired > simPatience {
				s.giveUp()
				s.phase = simIdle
			}
			return s.tired == 0
		default:
			s.n.w.log("%s: %s:%d fails: %v", s.n.own, s.origin, s.t.Seq, err)
			s.giveUp()
			return s.carefully()
		}
		return true
	}
	s.announce(0)
	s.landed = s.current.txns
	s.record()
	return true
}

// execute is one statement with its guard and the assertion that it finds its row (statement.go).
func (s *simWorker) execute(st *step) error {
	pg := s.n.pg
	c := &st.ch
	deps := s.t.up
	if c.Kind == wire.KindUpdate && fillUnchanged(c) {
		deps = s.t.low
	}
	place := func(tuple []wire.Value) int { return s.n.w.place(st.m, tuple) }
	if c.Kind == wire.KindInsert {
		return s.insert(place(c.New), cellsOf(c.New, nil))
	}
	at := place(st.before())
	if pg.Locked(s.session, at, false) {
		return errSimBusy
	}
	v := pg.See(s.session, at)
	if v == nil {
		return errors.New("no row")
	}
	if !s.covered(v, deps) {
		return errors.New("guard")
	}
	if c.Kind == wire.KindDelete {
		pg.Write(s.session, at, nil)
		return nil
	}
	row := cellsOf(c.New, v.Cells)
	if to := place(c.New); to != at {
		if pg.Locked(s.session, to, true) {
			return errSimBusy
		}
		if err := s.insert(to, row); err != nil {
			return err
		}
		pg.Write(s.session, at, nil)
		return nil
	}
	pg.Write(s.session, at, row)
	return nil
}

func (s *simWorker) insert(place int, row []conflict.Cell) error {
	pg := s.n.pg
	if pg.Locked(s.session, place, true) {
		return errSimBusy
	}
	if pg.See(s.session, place) != nil {
		return errors.New("unique violation")
	}
	pg.Write(s.session, place, row)
	return nil
}

// cellsOf are a tuple's values; what it leaves unchanged is before's.
func cellsOf(tuple []wire.Value, before []conflict.Cell) []conflict.Cell {
	row := make([]conflict.Cell, len(tuple))
	for i, v := range tuple {
		switch v.Format {
		case wire.Unchanged:
			row[i] = before[i]
		case wire.Null:
			row[i].Null = true
		default:
			row[i].Data = v.Data
		}
	}
	return row
}

// covered is guard.condition, which is SQL, with the parameters that the worker gives it.
func (s *simWorker) covered(v *sim.Version, deps origin.Vector) bool {
	ps := s.guardParams(deps)
	older := func(p param) bool {
		x := binary.BigEndian.Uint32(p.value)
		return x != 0 && v.XID < x
	}
	ok := older(ps[0])
	c := s.n.pg.CommitOf(v)
	switch {
	case ok:
	case c == nil && v.XID >= sim.FirstXID:
		ok = true // its own, which is not committed yet
		return ok
	case c == nil:
	case c.Origin == int(s.guard.self):
		ok = true
	case len(s.guard.ids) == 0:
	case c.Origin == 0 && s.n.w.broken.guardByTime:
		ok = c.Stamp <= deps.Get(s.own).Stamp
	case c.Origin == 0:
		ok = older(ps[1])
	default:
		at := slices.Index(s.guard.ids, uint32(c.Origin))
		ok = at >= 0 && int64(c.Stamp) <= int64(binary.BigEndian.Uint64(ps[2+at].value))
	}
	if c == nil || !ok {
		return ok
	}
	if t := c.Of.(*simTxn); t.node != s.from && (!t.published || !s.t.up.Covers(t.Origin, t.Seq)) && s.n.w.strict() {
		s.n.w.fail("%s: the guard lets %s over %s, which it does not cover", s.n.own, s.truth, t)
	}
	return ok
}

// record puts the commit record into the WAL. Position and tombstones go with it.
func (s *simWorker) record() {
	t := s.t
	s.genuine()
	stone := simTomb{tombstone: s.tombstone(), wiped: s.wiped}
	for _, l := range s.landed {
		stone.keys = append(stone.keys, l.buried...)
	}
	from, entry := s.from, t.entry()
	s.drafts = append(s.drafts, func(b *simBooks) {
		b.positions[from] = entry
		if len(stone.keys)+len(stone.wiped) > 0 {
			b.tombs = append(b.tombs, stone)
		}
	})
	if before := s.n.books.positions[from].Seq; before+1 != t.Seq {
		s.n.w.fail("%s: position of %s moves from %d to %d", s.n.own, s.origin, before, t.Seq)
	}
	s.n.pg.Record(s.session, sim.Commit{Origin: from + 1, Stamp: t.Stamp, Of: s.truth}, simCommits(s.drafts))
	s.n.w.log("%s: commit record of %s, %s path", s.n.own, s.truth, map[bool]string{true: "straight", false: "careful"}[s.phase == simStraight])
	if s.phase != simStraight {
		s.n.w.stats.careful++
	}
	s.n.w.stats.applied++
	s.n.mayAsk(t)
	s.phase = simRecorded
}

func (s *simWorker) tombstone() tombstone { return tombstone{s.t.version(), s.t.Seq} }

// simCommits makes one of several.
func simCommits(all []simCommit) simCommit {
	return func(b *simBooks) {
		for _, c := range all {
			c(b)
		}
	}
}

// finish makes the commit visible and acknowledges it.
func (s *simWorker) finish() {
	n := s.n
	n.pg.Show(s.session)
	for p, seq := range s.truth.seen {
		if p != n.id && p != s.from && n.shown[p] < seq {
			n.w.fail("%s shows %s before %s:%d, which its author had seen", n.own, s.truth, sim.NodeName(p), seq)
		}
	}
	simCommits(s.drafts)(&n.books)
	n.owed.drop(s.paid...)
	n.mayTell()
	s.paid = nil
	n.show(s.truth)
	for _, name := range s.wiped {
		s.absence.truncate(s.tombstone(), name)
	}
	t := s.t
	s.session, s.t, s.run, s.phase = nil, nil, nil, simIdle
	s.land(s.landed)
	n.dropTombs()
	if n.w.broken.markAfter {
		n.mark(t.entry(), nil)
	}
}
