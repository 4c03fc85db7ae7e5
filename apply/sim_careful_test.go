package apply

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// attempt looks and decides. Between that and the statements local sessions may come in.
func (s *simWorker) attempt() bool {
	c := s.run
	h, err := c.claim()
	if err != nil {
		s.n.w.fail("%s: claim %s: %v", s.n.own, s.truth, err)
		return false
	}
	if ok, _ := s.locks.try(h); !ok {
		return false
	}
	s.held, s.session = h, s.n.pg.Begin()
	s.announce(0)
	if x := s.n.pg.XID(s.session); c.xmax == 0 {
		c.xmax = uint64(x) + 1
	}
	c.t, c.part = s.t, 0
	c.tries++
	c.rows, c.unsure, c.queue = map[wire.KeyHash]*rowState{}, map[uint32]bool{}, c.queue[:0]
	c.lost, c.buried, c.wiped, c.losses = keySet{}, keySet{}, nil, nil
	c.blind, c.beaten, c.told, c.swarm = false, lostRows{}, nil, swarm{}
	c.owes, c.paid = nil, nil
	switch err := s.walk(); {
	case err == nil:
		s.phase = simWriting
	default:
		return s.again(err)
	}
	if len(c.losses) > 0 && s.n.w.s.InTurn {
		s.n.w.fail("%s: %s conflicts, and there was never more than one writer", s.n.own, s.truth)
	}
	if told := c.tell(); len(told) > 0 {
		s.n.mark(s.t.entry(), told)
	}
	return true
}

// again says what follows on an attempt that failed.
func (s *simWorker) again(err error) bool {
	s.giveUp()
	s.n.w.log("%s: %s:%d on the careful path: %v", s.n.own, s.origin, s.t.Seq, err)
	var unheard *unheardError
	switch {
	case errors.Is(err, errSimBusy):
		s.phase = simCareful
		s.tired++
		return false
	case errors.As(err, &unheard):
		s.unheard, s.phase = unheard.version, simListening
	case errors.Is(err, errUnknown):
		if len(s.run.recalls) > 0 {
			s.n.w.fail("%s: %s finds a row that hides its author", s.n.own, s.truth)
		}
		s.n.flush()
		s.target, s.phase = len(s.n.pg.WAL), simWaiting
	default:
		s.n.w.fail("%s: %s on the careful path: %v", s.n.own, s.truth, err)
		s.phase = simCareful
	}
	return true
}

// walk is carefulRun.changes.
func (s *simWorker) walk() error {
	c := s.run
	var pending []step
	err := c.each(func(t *txn, m *mapping, ch *wire.Change) error {
		pending = append(pending, copyStep(t, m, ch))
		return nil
	}, func(ms []*mapping) error {
		err := s.window(pending)
		pending = nil
		if err == nil && (c.blind || !c.waited) {
			err = errUnknown
		}
		if err == nil {
			err = s.send()
		}
		for _, m := range ms {
			if err == nil {
				err = s.truncate(m)
			}
		}
		c.lost = keySet{}
		return err
	})
	if err == nil {
		err = s.window(pending)
	}
	if err == nil && c.blind {
		err = errUnknown
	}
	return err
}

// window is carefulRun.steps, over the model's rows.
func (s *simWorker) window(pending []step) error {
	c := s.run
	for i := range pending {
		p := &pending[i]
		if p.ch.Kind == wire.KindUpdate {
			fillUnchanged(&p.ch)
		}
		var err error
		if p.from, err = c.planner.hash(p.m, p.before()); err != nil {
			return err
		}
		if p.to = p.from; p.ch.Kind == wire.KindUpdate {
			if p.to, err = c.planner.hash(p.m, p.ch.New); err != nil {
				return err
			}
		}
	}
	c.blind = c.blind || c.unsettledBase(pending)
	if !c.blind {
		c.register(pending)
	}
	clear(c.rows)
	unknown, err := s.look(pending)
	if err != nil {
		return err
	}
	if c.blind = c.blind || unknown; c.blind {
		if !c.waited {
			return errUnknown
		}
		return nil
	}
	s.load(pending)
	for i := range pending {
		c.turn(pending[i].t)
		if err := c.step(s.n.w.ctx, &pending[i]); err != nil {
			return err
		}
	}
	if err := c.writeMerged(s.n.w.ctx, nil); err != nil {
		return err
	}
	s.journalize()
	for k, r := range c.rows {
		if r.lost {
			c.lost.add(k)
		}
	}
	return nil
}

// look is carefulRun.lookAll.
func (s *simWorker) look(pending []step) (unknown bool, err error) {
	c := s.run
	want := func(m *mapping, tuple []wire.Value, k wire.KeyHash, inserts bool) error {
		if c.rows[k] != nil {
			return nil
		}
		c.rows[k] = &rowState{lost: c.lost.has(k)}
		if c.rows[k].lost {
			return nil
		}
		place := s.n.w.place(m, tuple)
		if s.n.pg.Locked(s.session, place, false) {
			return errSimBusy
		}
		s.n.pg.Lock(s.session, place)
		l, err := c.judge(m, k, s.answer(place), inserts)
		if errors.Is(err, errUnknown) {
			unknown, err = true, nil
		}
		c.rows[k].look = l
		return err
	}
	for i := range pending {
		p := &pending[i]
		if err := want(p.m, p.before(), p.from, p.ch.Kind == wire.KindInsert); err != nil {
			return unknown, err
		}
		if p.to != p.from {
			if err := want(p.m, p.ch.New, p.to, true); err != nil {
				return unknown, err
			}
		}
	}
	return unknown, nil
}

// answer is the server's to lookSQL.
func (s *simWorker) answer(place int) [][]byte {
	v := s.n.pg.See(s.session, place)
	if v == nil {
		return nil
	}
	c, mine := s.n.pg.CommitOf(v), v.XID == s.n.pg.XID(s.session)
	stamp, by := origin.Stamp(0), 0
	if c != nil {
		stamp, by = c.Stamp, c.Origin
	}
	flag := map[bool]string{true: "t", false: "f"}
	return [][]byte{[]byte(strconv.Itoa(int(v.XID))), []byte(flag[mine]), []byte(strconv.FormatInt(stamp.Time().UnixMicro(), 10)),
		[]byte(strconv.Itoa(by)), []byte(flag[mine]), []byte("t"), nil, nil, []byte(strconv.Itoa(place))}
}

// load is carefulRun.loadMerged.
func (s *simWorker) load(pending []step) {
	c := s.run
	c.merged = map[wire.KeyHash]*mergedRow{}
	books := s.draft()
	want := func(m *mapping, tuple []wire.Value, k wire.KeyHash) {
		if c.merged[k] != nil {
			return
		}
		r := &mergedRow{m: m, key: k, tuple: tuple, lineage: books.lineage(m.local, k)}
		if v := s.n.pg.See(s.session, s.n.w.place(m, tuple)); v != nil && c.rows[k].found {
			r.here = v.Cells
		}
		if r.held = len(r.writes) > 0; !r.based {
			r.base = r.here
		}
		c.merged[k] = r
	}
	for i := range pending {
		if p := &pending[i]; p.m.local.merge != nil {
			want(p.m, p.before(), p.from)
			if p.to != p.from {
				want(p.m, p.ch.New, p.to)
			}
		}
	}
}

// draft is what the transaction sees of the bridge's tables.
func (s *simWorker) draft() *simBooks {
	if len(s.drafts) == 0 {
		return &s.n.books
	}
	b := simBooks{positions: slices.Clone(s.n.books.positions), lineages: map[wire.KeyHash]*lineage{}, truncates: slices.Clone(s.n.books.truncates)}
	for k := range s.n.books.lineages {
		l := s.n.books.lineage(s.n.w.tables[0].mapping.local, k)
		b.lineages[k] = &l
	}
	simCommits(s.drafts)(&b)
	return &b
}

// journalize takes what writeMerged puts into the journal.
func (s *simWorker) journalize() {
	c := s.run
	var bases []journalBase
	var writes []journaled
	for _, r := range c.mergedRows() {
		if len(r.steps) == 0 || c.seenByAll(r) {
			continue
		}
		if !r.based {
			bases = append(bases, journalBase{key: r.key, local: r.m.local, cells: r.base})
		}
		for _, st := range r.steps {
			w := r.writes[st.at]
			writes = append(writes, journaled{key: r.key, origin: int32(c.id), write: &w, local: r.m.local})
		}
	}
	if len(writes) > 0 {
		writes = s.n.faulty(writes)
		s.drafts = append(s.drafts, func(b *simBooks) { b.put(bases, writes) })
	}
}

// write executes what the attempt has queued, and records the commit.
func (s *simWorker) write() bool {
	switch err := s.send(); {
	case errors.Is(err, errSimBusy):
		if s.tired++; s.tired%simPatience == 0 {
			s.again(errUnknown)
		}
		return false
	case err != nil:
		s.again(errUnknown) // as any error that may pass
		return true
	}
	s.inbox.takeMany(1)
	s.wiped = s.run.wiped
	s.owe()
	s.landed = []landing{{t: s.t, held: s.held, tomb: s.tombstone(), buried: s.run.buried.all()}}
	s.record()
	return true
}

// send executes the queued statements, which it knows by how the mapping calls them.
func (s *simWorker) send() error {
	c := s.run
	for len(c.queue) > 0 {
		q := c.queue[0]
		if strings.HasPrefix(q.what, "table ") {
			if err := s.statement(q); err != nil {
				return err
			}
		}
		c.queue = c.queue[1:]
	}
	c.queue = nil
	return nil
}

func (s *simWorker) statement(q queued) error {
	for _, t := range s.n.w.tables {
		for name, st := range t.mapping.statements {
			if st != q.s {
				continue
			}
			return s.named(t, name, q.ps)
		}
	}
	return fmt.Errorf("statement %q is not known here", q.what)
}

func (s *simWorker) named(t *simTable, name string, ps []param) error {
	pg := s.n.pg
	cell := func(p param) conflict.Cell { return conflict.Cell{Null: p.null, Data: p.value} }
	key := func(p param) int {
		if len(p.value) != 4 {
			s.n.w.fail("%s: %s makes a row of %s without a key", s.n.own, s.truth, t.Name)
			return 0
		}
		return s.n.w.placeOf(t, p.value)
	}
	if name == "ki" {
		row := make([]conflict.Cell, len(ps))
		for i, p := range ps {
			row[i] = cell(p)
		}
		return s.insert(key(ps[0]), row)
	}
	at := key(ps[len(ps)-1])
	if pg.Locked(s.session, at, false) {
		return errSimBusy
	}
	v := pg.See(s.session, at)
	if v == nil {
		return errors.New("no row")
	}
	if name == "kd" {
		pg.Write(s.session, at, nil)
		return nil
	}
	set, ok := strings.CutPrefix(name, "ku")
	if !ok {
		return fmt.Errorf("statement %q is not known here", name)
	}
	row := slices.Clone(v.Cells)
	for i := 0; i < len(set); i += 2 {
		row[binary.BigEndian.Uint16([]byte(set[i:]))] = cell(ps[i/2])
	}
	pg.Write(s.session, at, row)
	return nil
}

// truncate is carefulRun.truncate and truncateMerged.
func (s *simWorker) truncate(m *mapping) error {
	c, pg := s.run, s.n.pg
	merged := m.local.merge != nil
	if merged {
		c.part++
		w := journaled{key: wholeTable(m.local), origin: int32(c.id), local: m.local,
			write: c.t.logged(wire.KindTruncate, c.part, nil)}
		s.drafts = append(s.drafts, func(b *simBooks) { b.put(nil, []journaled{w}) })
	} else {
		c.wiped = append(c.wiped, m.name())
	}
	for place := range s.n.w.places() {
		table, key := s.n.w.at(place)
		t := s.n.w.tables[table]
		if t.mapping != m {
			continue
		}
		if pg.Locked(s.session, place, false) {
			return errSimBusy
		}
		v := pg.See(s.session, place)
		switch {
		case v == nil:
			continue
		case merged:
			if _, err := c.judge(m, t.hash(key), s.answer(place), false); err != nil {
				return err
			}
			s.n.rework(s.draft(), s.session, place)
			continue
		case !s.covered(v, c.t.up):
			l, err := c.present(m, s.answer(place), t.hash(key))
			if err != nil {
				return err
			}
			d := c.policy(conflict.Case{Write: conflict.Truncate, Remote: c.t.version(), Local: l.local, Seen: l.seen})
			if !d.RemoteWins {
				continue
			}
		}
		pg.Write(s.session, place, nil)
	}
	return nil
}
