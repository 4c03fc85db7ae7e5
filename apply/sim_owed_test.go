package apply

import (
	"slices"
	"strconv"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// Rows that are owed (owed.go, resend.go), in the model.

// simNote is a message in the WAL that capture hands on.
type simNote struct {
	prefix  string
	content []byte
}

// simDeaf is how many steps a worker listens for what an origin has not told.
const simDeaf = 40

func (n *simNode) openOwed() {
	n.owed = newOwed(n.progress)
	n.resends = newResender(n.own, n.owed)
	for _, e := range n.books.owed {
		n.owed.add(&owedRow{id: e.id, of: e.of, before: e.before, table: e.table, key: e.key, hash: e.hash})
	}
	n.mayTell()
}

// mayTell breaks the rule that what is told ends in front of what is owed, if it is to be broken.
func (n *simNode) mayTell() {
	if n.w.broken.owedIsSeen {
		clear(n.progress.unseen[isOwed])
	}
}

// seenHere is what others may be told.
func (n *simNode) seenHere() origin.Vector {
	n.progress.mu.Lock()
	defer n.progress.mu.Unlock()
	return n.progress.now().done
}

// owe is what carefulRun.pushDebts and attempt do.
func (s *simWorker) owe() {
	c, n := s.run, s.n
	var rows []*owedRow
	keys := make([]wire.KeyHash, 0, len(c.owes))
	for k := range c.owes {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compareHash)
	for _, k := range keys {
		d := c.owes[k]
		e := c.owedRow(k, d)
		e.id = n.w.nextOwed()
		place := n.w.place(d.m, d.tuple)
		_, key := n.w.at(place)
		e.key = []byte(strconv.Itoa(key))
		if v := n.pg.See(s.session, place); v != nil {
			n.w.owedOver[e.id] = v.XID
		}
		rows = append(rows, e)
	}
	if len(rows)+len(c.paid) == 0 {
		return
	}
	n.w.stats.owed += len(rows)
	paid := slices.Clone(c.paid)
	s.drafts = append(s.drafts, func(b *simBooks) { b.owe(rows, paid) })
	s.n.owed.add(rows...)
	s.paid = paid
	n.mayTell()
}

func (b *simBooks) owe(rows, paid []*owedRow) {
	b.owed = slices.DeleteFunc(slices.Clone(b.owed), func(e *owedRow) bool {
		return slices.ContainsFunc(paid, func(p *owedRow) bool { return p.id == e.id })
	})
	b.owed = append(b.owed, rows...)
}

// resend is a turn of resender.run.
func (n *simNode) resend(again bool) {
	if done, _ := n.owed.settled(n.own); len(done) > 0 {
		n.bridge(func(b *simBooks) { b.owe(nil, done) })
		n.owed.drop(done...)
		n.mayTell()
	}
	for _, e := range n.owed.unasked(again) {
		n.pg.Emit(&simNote{wire.AskPrefix, wire.AppendAsk(nil, &wire.Ask{ID: e.id, Of: e.of.Origin, Schema: e.table.schema, Table: e.table.name, Key: e.key})})
	}
	asked := n.resends.asked
	n.resends.asked = nil
	clear(n.resends.have)
	for _, r := range asked {
		if !n.resendOne(r) {
			n.resends.asked = append(n.resends.asked, r)
			n.resends.have[r.id()] = true
		}
	}
}

// resendOne is resender.resend; the answer follows on the commit.
func (n *simNode) resendOne(r askedRow) bool {
	key, _ := strconv.Atoi(string(r.Key))
	table := slices.IndexFunc(n.w.tables[:], func(t *simTable) bool { return t.mapping.name() == tableName{r.Schema, r.Table} })
	at := n.w.placeAt(table, key)
	answer := func() {
		n.pg.Emit(&simNote{wire.AnswerPrefix, wire.AppendAnswer(nil, wire.Answer{To: r.by, ID: r.ID})})
	}
	v := n.pg.See(nil, at)
	for _, e := range n.books.owed {
		if e.hash != n.w.tables[table].hash(key) || n.w.broken.ownsOwed {
			continue
		}
		if v == nil && n.w.broken.keepsGone {
			return false
		}
		if v == nil { // whatever took it is later, and on its way to all
			continue
		}
		if v.XID == n.w.owedOver[e.id] {
			return false
		}
		if c := n.pg.CommitOf(v); c == nil || c.Origin != 0 {
			return false
		}
	}
	if v == nil {
		answer()
		return true
	}
	u := &simUser{t: &simTxn{node: n.id, seen: slices.Clone(n.shown)}, session: n.pg.Begin(), sync: true, then: answer}
	if n.pg.Locked(u.session, at, false) {
		n.pg.Rollback(u.session)
		return false
	}
	n.absence.settle(n.progress.readBack(n))
	if t := n.w.tables[table]; n.absence.unsettled(t.mapping.name(), t.hash(key), registration{n.own, 1 << 62}, n.Passed()) && !n.w.broken.sendsUnsettled {
		n.pg.Rollback(u.session)
		return false
	}
	row := slices.Clone(n.pg.See(u.session, at).Cells)
	captured := true
	if c := n.pg.CommitOf(v); c != nil {
		captured = c.Of.(*simTxn).published
	}
	if p := &n.w.written[at]; captured && p.last != nil && n.shown[p.last.node] >= p.last.Seq && !sameCells(row, p.image) {
		n.w.fail("%s writes a row again that is not what %s has made of it, which is applied here", n.own, p.last)
	}
	u.t.changes = []simChange{{kind: wire.KindUpdate, table: table, from: key, to: key, old: row, new: row}}
	n.pg.Write(u.session, at, row)
	n.users = append(n.users, u)
	return true
}

// nextOwed is the next id of pgbridge.owed.
func (w *simWorld) nextOwed() int64 {
	w.owedIDs++
	return w.owedIDs
}

// genuine requires that the transaction's rows of the plain table are what its author made of them.
func (s *simWorker) genuine() {
	n := s.n
	for i := len(s.truth.changes) - 1; i >= 0; i-- {
		c := &s.truth.changes[i]
		if c.table != 0 || c.new == nil || slices.ContainsFunc(s.truth.changes[i+1:], func(d simChange) bool {
			return d.table == 0 && (d.kind == wire.KindTruncate || d.from == c.to || d.to == c.to)
		}) {
			continue
		}
		if n.w.nodes[s.from].deletes(s.t.Seq, c.to) {
			continue
		}
		v := n.pg.See(s.session, n.w.placeAt(0, c.to))
		if v != nil && v.XID == n.pg.XID(s.session) && !sameCells(v.Cells, c.new) && n.w.rightValues() {
			n.w.fail("%s: %s makes of key %d: %s, which its author saw as %s", n.own, s.truth, c.to, cellsText(v.Cells), cellsText(c.new))
		}
	}
}

// deletes reports whether a user of the node has deleted a row of the plain table after transaction seq. Behind such a delete
// another version may come in and be taken back, which counts as one that was here before (heard.go): the row of seq may
// get its values, until the delete comes.
func (n *simNode) deletes(seq uint64, key int) bool {
	return slices.ContainsFunc(n.captured[seq:], func(t *simTxn) bool {
		return slices.ContainsFunc(t.changes, func(c simChange) bool {
			return c.table == 0 && (c.kind == wire.KindTruncate || c.from == key && (c.kind == wire.KindDelete || c.to != key))
		})
	})
}

// rightValues reports whether nothing is broken that is to be found by its other consequences.
func (w *simWorld) rightValues() bool {
	b := w.broken
	b.owedIsSeen, b.ownsOwed, b.ignoresOwed = false, false, false
	return b == simBroken{}
}
