package capture

import (
	"context"
	"slices"

	"github.com/pgbridge/pgbridge/wire"
)

// placed finds out, when a relation is announced, whether only some nodes have some of its rows.
func (r *relation) placed(o *Options) {
	if o.Rows == nil {
		return
	}
	if p := o.Rows(r.Schema, r.Name); p != nil {
		r.places, r.unplaced = p.In(&r.Relation)
	}
}

// watch tells the log, once, that users have written a row that is not to be on this node, neither as it was nor as it is. It goes into frames as any
// row does, since what stands there must not hang on the configuration with which it is read: after a crash it is read again. Who applies it
// leaves it out.
func (t *tagger) watch(r *relation, before, after []byte) {
	if r.strange || r.places.At(t.opts.Node, before) || r.places.At(t.opts.Node, after) {
		return
	}
	r.strange = true
	t.opts.Logger.Warn("a row is written here that is for other nodes (topology.rows): it stays here", "table", r.Schema+"."+r.Name)
}

// appendRow appends a row change, sealed as its table's or its own place wants it. An update that takes a sealed row from some nodes to others
// is for those that are to have it; behind it a delete is for those that had it. records is how many these are.
func (t *tagger) appendRow(dst []byte, r *relation, kind wire.Kind, id uint32, tuples []byte) (_ []byte, records int, err error) {
	at := len(dst)
	if r.unplaced != nil {
		return dst, 0, r.unplaced
	}
	if r.columns != nil {
		if tuples, err = t.sealValues(r, tuples); err != nil {
			return dst, 0, protocolError("row of %s.%s: %v", r.Schema, r.Name, err)
		}
	}
	if r.places == nil {
		return r.sealed(wire.AppendChange(dst, kind, id, tuples), at, wire.SealedChange), 1, nil
	}
	before, after, err := r.places.Values(tuples)
	if err != nil {
		return dst, 0, protocolError("row of %s.%s: %v", r.Schema, r.Name, err)
	}
	t.watch(r, before, after)
	if t.opts.SealRow == nil {
		return wire.AppendChange(dst, kind, id, tuples), 1, nil
	}
	from, to := r.sealer(t.opts.SealRow, before), r.sealer(t.opts.SealRow, after)
	dst = r.sealedBy(to, wire.AppendChange(dst, kind, id, tuples), at, wire.SealedChange)
	if from == to || to == nil {
		return dst, 1, nil
	}
	at = len(dst)
	return r.sealedBy(from, wire.AppendChange(dst, wire.KindDelete, id, tuples[:r.places.OldBytes]), at, wire.SealedChange), 2, nil
}

// sealer is what rows with a value are sealed by; nil: by nothing.
func (r *relation) sealer(seal func(nodes []string) *wire.Sealer, value []byte) *wire.Sealer {
	s, known := r.seals[string(value)]
	if known {
		return s
	}
	if nodes := r.places.Of(value); nodes != nil {
		s = seal(nodes)
	}
	if r.seals == nil || len(r.seals) >= maxSeals {
		r.seals = map[string]*wire.Sealer{}
	}
	r.seals[string(value)] = s
	return s
}

// maxSeals bounds the values whose sealers are remembered: most may be others than those that are named.
const maxSeals = 1000

// askSealer is what a question for a row is sealed by, so that whom it is asked of can read it, and who has the row; false if that cannot be
// told.
func (t *tagger) askSealer(ask *wire.Ask) (_ *wire.Sealer, ok bool) {
	var p *wire.Places
	if t.opts.Rows != nil && t.opts.SealRow != nil {
		p = t.opts.Rows(ask.Schema, ask.Table)
	}
	if p == nil {
		return t.opts.sealer(ask.Schema, ask.Table), true
	}
	value, ok := p.OfKey(ask.Key)
	if !ok {
		return nil, false
	}
	if nodes := p.Of(value); nodes != nil {
		return t.opts.SealRow(append(slices.Clone(nodes), ask.Of.Node)), true
	}
	return nil, true
}

// heldRow is a row that arrives in parts and is held until the column has come that says what it is sealed by.
type heldRow struct {
	bigRow
	rel  *relation
	xid  uint32
	id   uint32
	size int    // of its tuples
	head []byte // of them, as far as they are here
}

// hold makes a row wait.
func (t *tagger) hold(r *relation, kind wire.Kind, xid, id uint32, size int) {
	h := &heldRow{rel: r, xid: xid, id: id, size: size}
	table := &Table{Schema: r.Schema, Name: r.Name, Columns: r.Columns, keyAt: make([]int, len(r.Columns))}
	for i := range table.keyAt {
		table.keyAt[i] = -1
	}
	table.keyAt[r.places.Index()] = 0
	h.start(table, kind, xid)
	t.big.held = h
}

// known reports whether the column has come of the last tuple.
func (h *heldRow) known() bool {
	last := h.has || h.had && h.kind == wire.KindDelete
	return last && (h.step == stepTag || h.column > h.rel.places.Index())
}

// release takes the next part of a row that is held. When it is known where the row is to be, it begins, and what has been held is returned;
// nothing before.
func (t *tagger) release(ctx context.Context, b []byte, last bool) ([]byte, error) {
	h := t.big.held
	h.head = append(h.head, b...)
	if err := h.feed(b); err != nil {
		return nil, err
	}
	if !h.known() {
		if last {
			return nil, protocolError("row of %s is cut off", h.rel.Name)
		}
		return nil, nil
	}
	t.big.held = nil
	var before, after []byte
	var had, has bool
	if h.had {
		before, had = h.rel.places.AppendValue(nil, h.old)
	}
	if h.has {
		after, has = h.rel.places.AppendValue(nil, h.new)
	}
	switch {
	case !had && !has:
		return nil, protocolError("row of %s without %s", h.rel.Name, h.rel.places.Column)
	case !had:
		before = after
	case !has:
		after = before
	}
	t.watch(h.rel, before, after)
	if err := t.bigStart(ctx, h.kind, h.xid, h.id, h.size, h.head[0] != 'N'); err != nil {
		return nil, err
	}
	g := t.big
	from, to := h.rel.sealer(t.opts.SealRow, before), h.rel.sealer(t.opts.SealRow, after)
	g.seal = to
	if from != to && to != nil {
		_, rest, err := wire.ParseTuple(nil, h.head[1:])
		if err != nil {
			return nil, protocolError("row of %s: %v", h.rel.Name, err)
		}
		old := h.head[:len(h.head)-len(rest)]
		g.run.changes++
		t.counters.Changes++
		g.behind = h.rel.sealedBy(from, wire.AppendChange(nil, wire.KindDelete, h.id, old), 0, wire.SealedChange)
	}
	return h.head, nil
}
