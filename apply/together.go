package apply

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/pgbridge/pgbridge/wire"
)

// A statement costs the server about as much as the row that it writes, so that a small transaction sent row
// by row costs twice its rows. What most transactions do, a few rows in a few tables, repeats: its changes go
// out as one statement, with the position's move as its main part and each change in a WITH. Several
// changes of one row, or of tables where the order of changes could matter, go out one by one.

const (
	// maxTogether is how many changes one statement may hold. Its plan grows with them.
	maxTogether = 16
	// combineFrom is how often a sequence of changes must have come before a statement is made for it:
	// planning costs as much as several executions.
	combineFrom = 3
	// maxCombinations bounds the statements that are kept, and so the server's memory for their plans.
	maxCombinations = 256
)

// waiting is one single-row change of a small transaction that has not gone out yet.
type waiting struct {
	kind wire.Kind
	m    *mapping
	set  []int // valid until the planner's next transaction
	low  bool
	// its parameters, without the guard's, in planner.held
	from, to int
}

// combination is a sequence of changes that has come before.
type combination struct {
	seen int
	s    *statement // nil until it has come often enough
}

// hold keeps a change back to go out together with the transaction's others. It reports false where that
// cannot be.
func (p *planner) hold(kind wire.Kind, m *mapping, set []int, low bool, params []param) bool {
	if p.large || p.scattered || len(p.waiting) == maxTogether || m.local.ordered {
		return false
	}
	from := len(p.held)
	for _, v := range params { // they may lie in a buffer that the next rows overwrite
		at := len(p.heldBytes)
		p.heldBytes = append(p.heldBytes, v.value...)
		v.value = p.heldBytes[at:len(p.heldBytes):len(p.heldBytes)]
		p.held = append(p.held, v)
	}
	p.waiting = append(p.waiting, waiting{kind: kind, m: m, set: slices.Clone(set), low: low, from: from, to: len(p.held)})
	return true
}

// scatter sends what waits one by one, and so what follows in this transaction.
func (p *planner) scatter() {
	p.scattered = true
	for i := range p.waiting {
		c := &p.waiting[i]
		p.send(c.kind, c.m, c.set, c.low, p.held[c.from:c.to])
	}
	p.waiting = p.waiting[:0]
}

// touch notes that the transaction changes the row of key k. A large one, which holds all locks while it is planned, may not
// be planned on if the row is owed (owed.go); others are asked for that as they take their locks.
func (p *planner) touch(k wire.KeyHash) error {
	if p.large && p.w.owed.any(k) {
		return errSurprise
	}
	if p.twice || p.scattered {
		return nil
	}
	p.twice = slices.Contains(p.touched, k)
	if p.touched = append(p.touched, k); len(p.touched) > 2*maxTogether {
		p.twice = true // too many to go out together anyway
	}
	return nil
}

// together sends what waits as one statement that also moves the position. It reports false, and sends
// nothing, if that cannot be or is not worth it.
func (p *planner) together() bool {
	if p.scattered || p.twice || len(p.waiting) == 0 || !p.independent() {
		return false
	}
	c := p.w.combined[string(p.shapes())]
	if c == nil {
		if len(p.w.combined) < maxCombinations {
			p.w.combined[string(p.shape)] = &combination{seen: 1}
		}
		return false
	}
	if c.seen++; c.seen < combineFrom {
		return false
	}
	if c.s == nil {
		sql, types := p.combinedSQL()
		c.s = &statement{sql: sql, types: types}
	}
	t := p.t
	p.params = append(p.params[:0], int64Param(int64(t.Seq)), int64Param(int64(t.Stamp)),
		int64Param(int64(t.resume)), int64Param(int64(t.Stamp)))
	for _, low := range []bool{false, true} {
		if p.guarded(low) {
			p.params = append(p.params, p.guardParams(low)...)
		}
	}
	p.params = append(p.params, p.held...)
	p.exec(c.s, p.params)
	p.waiting = p.waiting[:0]
	return true
}

// independent reports whether no change can be in another's way: two changes of a table with unique
// constraints besides its key could swap a value.
func (p *planner) independent() bool {
	for i := range p.waiting {
		for j := range p.waiting[:i] {
			if p.waiting[i].m == p.waiting[j].m && p.waiting[i].m.local.unique {
				return false
			}
		}
	}
	return true
}

// guarded reports whether a change that waits is guarded by low, or by up.
func (p *planner) guarded(low bool) bool {
	return slices.ContainsFunc(p.waiting, func(c waiting) bool { return c.kind != wire.KindInsert && c.low == low })
}

// shapes names the sequence of changes that waits.
func (p *planner) shapes() []byte {
	b := p.shape[:0]
	for i := range p.waiting {
		c := &p.waiting[i]
		b = append(b, byte(c.kind))
		if c.low {
			b = append(b, 'l')
		}
		b = binary.AppendUvarint(b, c.m.id)
		b = binary.AppendUvarint(b, uint64(len(c.set)))
		for _, i := range c.set {
			b = binary.AppendUvarint(b, uint64(i))
		}
	}
	p.shape = b
	return b
}

// combinedSQL is the statement for all that waits. Parameters: the position's, the guards' by up and by low
// where a change has one, then those of each change. Each update and each delete must have found its row:
// without one its WITH is empty and stands for NULL, as does a position that is not the one before, and the
// position's seq cannot be NULL.
func (p *planner) combinedSQL() (string, []uint32) {
	types := slices.Clone(p.w.positionStatement.types)
	guards := map[bool]string{}
	for _, low := range []bool{false, true} {
		if p.guarded(low) {
			guards[low] = p.w.guard.brief(len(types) + 1) // no row comes twice (touch)
			types = append(types, p.w.guard.types()...)
		}
	}
	var with []string
	found := ""
	for i := range p.waiting {
		c := &p.waiting[i]
		var text string
		switch c.kind {
		case wire.KindInsert:
			text, types = c.m.insertText(types)
		case wire.KindUpdate:
			text, types = c.m.updateText(types, c.set)
		case wire.KindDelete:
			text, types = c.m.deleteText(types)
		}
		if c.kind != wire.KindInsert {
			text += " AND " + guards[c.low] + " RETURNING 1"
			found += fmt.Sprintf(" * (TABLE c%d)", i)
		}
		with = append(with, fmt.Sprintf("c%d AS (%s)", i, text))
	}
	return fmt.Sprintf("WITH %s UPDATE pgbridge.position SET seq = CASE WHEN seq = $1 - 1%s THEN $1%s END, stamp = $2, stream_seq = $3 "+
		"WHERE id = %d AND pg_replication_origin_xact_setup('0/0', $4) IS NOT NULL", strings.Join(with, ", "), p.w.sameSchema(), found, p.w.id), types
}
