package apply

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/pgbridge/pgbridge/wire"
)

// Rows of one kind that follow each other on one table go out as one statement: inserts as a COPY, updates and deletes as
// arrays. The planner collects them here.

// pending is a run of rows of one kind on one table that is being collected. Each row is encoded as in
// COPY's binary format: the number of fields, then length and bytes of each.
type pending struct {
	kind wire.Kind
	m    *mapping
	set  []int
	low  bool // the guard is by low: the update leaves TOAST values unchanged (R16)
	rows []byte
	n    int                       // of rows
	sent int                       // rows that have gone out before them, each COPY with copyRows of them
	keys map[wire.KeyHash]struct{} // of an update run: none twice (R34)
	open bool                      // a COPY has begun to go out
}

// join makes p.run the run that the next row belongs to, after sending out another one.
func (p *planner) join(kind wire.Kind, m *mapping, set []int, low bool) error {
	r := &p.run
	full := kind != wire.KindInsert && (r.n >= runRows || len(r.rows) >= runBytes)
	if r.m == m && r.kind == kind && r.low == low && !full && slices.Equal(r.set, set) {
		return nil
	}
	if err := p.flushRun(); err != nil {
		return err
	}
	p.run = pending{kind: kind, m: m, set: slices.Clone(set), low: low, rows: p.run.rows[:0]}
	if kind == wire.KindUpdate {
		p.run.keys = map[wire.KeyHash]struct{}{}
	}
	return nil
}

// mustHave lists the columns that an update cannot write and looks for instead.
func (m *mapping) mustHave(kind wire.Kind) []int {
	if kind == wire.KindUpdate {
		return m.always
	}
	return nil
}

// row appends one row to the run: the columns of set from tuple, then the key from old, then what the
// row must have already.
func (p *planner) row(m *mapping, tuple []wire.Value, set []int, old []wire.Value) error {
	r := &p.run
	always := m.mustHave(r.kind)
	n := len(set) + len(always)
	if old != nil {
		n += len(m.key)
	}
	r.rows = binary.BigEndian.AppendUint16(r.rows, uint16(n))
	for _, i := range set {
		if err := p.field(m, i, tuple); err != nil {
			return err
		}
	}
	if old != nil {
		for _, i := range m.key {
			if err := p.field(m, i, old); err != nil {
				return err
			}
		}
	}
	for _, i := range always {
		if err := p.field(m, i, tuple); err != nil {
			return err
		}
	}
	r.n++
	switch {
	case r.kind != wire.KindInsert:
	case len(r.rows) >= runBytes:
		return p.copyOut()
	case r.n == copyRows && r.sent < shortCopies && !r.open:
		return p.copyShort()
	}
	return nil
}

// A COPY lays out a slot for each of its first thousand rows and has its resource owner keep note of it, all of them with the same hash, so that
// what this costs grows with the square of their number (resowner.c, up to 18 at least): with a thousand, half of what the whole COPY costs. With a
// hundred or two it is about what a COPY costs by itself. In the long run one COPY is cheaper.
const (
	copyRows    = 200
	shortCopies = 2400
)

// copyShort sends the collected rows of an insert run as a COPY.
func (p *planner) copyShort() error {
	if err := p.copyOut(); err != nil {
		return err
	}
	p.copyDone()
	r := &p.run
	r.open, r.sent, r.n = false, r.sent+r.n, 0
	return nil
}

// copyDone ends a COPY.
func (p *planner) copyDone() { p.out = appendCopyDone(appendCopyData(p.out, copyTrailer)) }

func (p *planner) field(m *mapping, i int, tuple []wire.Value) error {
	if i >= len(tuple) {
		return fmt.Errorf("%w: tuple of %s has %d columns", wire.ErrCorrupt, m.local.quoted, len(tuple))
	}
	v, err := m.param(i, tuple[i])
	if err != nil {
		return err
	}
	if v.null {
		p.run.rows = binary.BigEndian.AppendUint32(p.run.rows, math.MaxUint32)
		return nil
	}
	p.run.rows = binary.BigEndian.AppendUint32(p.run.rows, uint32(len(v.value)))
	if len(v.value) > giantBytes { // grown by half, it would be there twice for what follows
		p.run.rows = slices.Grow(p.run.rows, len(v.value)+runBytes)
	}
	p.run.rows = append(p.run.rows, v.value...)
	return nil
}

// giantBytes is the size from which on a row is not copied, nor its buffer kept, where that can be helped.
const giantBytes = 4 << 20

// kept is a buffer to be used again, unless a giant row was in it.
func kept(b []byte) []byte {
	if cap(b) > giantBytes {
		return nil
	}
	return b[:0]
}

// copyOut sends the collected rows of an insert run as part of a COPY.
func (p *planner) copyOut() error {
	p.scatter()
	r := &p.run
	if !r.open {
		r.open = true
		p.exec(r.m.statement("c", func() (string, []uint32) { return r.m.copySQL(), nil }), nil)
		p.out = appendCopyData(p.out, copyHeader)
	}
	if p.spill == nil || len(r.rows) <= giantBytes {
		p.out = appendCopyData(p.out, r.rows)
		r.rows = kept(r.rows)
		return nil
	}
	p.out = binary.BigEndian.AppendUint32(append(p.out, 'd'), uint32(len(r.rows)+4))
	rows := r.rows
	r.rows = nil
	return p.spill(rows)
}

// flushRun sends the run that has been collected.
func (p *planner) flushRun() error {
	r := &p.run
	switch {
	case r.n == 0: // all has gone out
	case r.kind == wire.KindInsert && (r.open || r.n >= runMin):
		if err := p.copyOut(); err != nil {
			return err
		}
		p.copyDone()
	case r.n < runMin:
		p.oneByOne()
	default:
		p.asArrays()
	}
	p.run = pending{rows: kept(r.rows)}
	if p.spill != nil && len(p.out) > runBytes {
		return p.spill(nil)
	}
	return nil
}

// eachRow walks the collected rows and gives their fields as binary parameters.
func (p *planner) eachRow(f func(fields []param)) {
	for b := p.run.rows; len(b) > 0; {
		n := int(binary.BigEndian.Uint16(b))
		b = b[2:]
		p.params = p.params[:0]
		for range n {
			size := binary.BigEndian.Uint32(b)
			b = b[4:]
			if size == math.MaxUint32 {
				p.params = append(p.params, param{null: true})
				continue
			}
			p.params = append(p.params, binaryParam(b[:size]))
			b = b[size:]
		}
		f(p.params)
	}
}

func (p *planner) oneByOne() {
	r := &p.run
	p.eachRow(func([]param) { p.one(r.kind, r.m, r.set, r.low) })
}

func (p *planner) asArrays() {
	p.scatter()
	r := &p.run
	cols := slices.Concat(r.set, r.m.key, r.m.mustHave(r.kind))
	width := len(cols)
	for len(p.arrays) < width {
		p.arrays = append(p.arrays, array{})
	}
	for i := range width {
		p.arrays[i].reset()
	}
	p.eachRow(func(fields []param) {
		for i, f := range fields {
			p.arrays[i].add(f.value, f.null)
		}
	})
	p.params = p.params[:0]
	for at, i := range cols {
		p.params = append(p.params, binaryParam(p.arrays[at].value(r.m.local.cols[r.m.cols[i]].param())))
	}
	p.params = append(p.params, int64Param(int64(r.n)))
	p.params = append(p.params, p.guardParams(r.low)...)
	var s *statement
	if r.kind == wire.KindUpdate {
		s = r.m.statement("U"+shape(r.set), func() (string, []uint32) { return r.m.updateRunSQL(r.set, &p.w.guard) })
	} else {
		s = r.m.statement("D", func() (string, []uint32) { return r.m.deleteRunSQL(&p.w.guard) })
	}
	p.exec(s, p.params)
}

// runs reports whether the remote columns can travel as arrays, together with the key.
func (m *mapping) runs(cols []int) bool {
	for _, i := range cols {
		if m.cols[i] >= 0 && !m.local.cols[m.cols[i]].typ.runs() {
			return false
		}
	}
	for _, k := range m.local.key {
		if !m.local.cols[k].typ.runs() {
			return false
		}
	}
	return true // identity columns, which always may follow, are integers
}

func allBinary(tuple []wire.Value, cols []int) bool {
	for _, i := range cols {
		if i < len(tuple) && tuple[i].Format == wire.Text {
			return false
		}
	}
	return true
}
