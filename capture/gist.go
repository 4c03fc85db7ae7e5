package capture

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// Gist is what own frames say that a bridge must know which starts when they have gone from the stream, though not every node has
// seen what they hold: it takes the place of Restore. What is deleted in them is told apart, since it is kept where the other
// nodes' deletes are. It is not safe for concurrent use.
type Gist struct {
	opts     Options
	restorer *restorer
	state    state
	seq      uint64
	stamp    origin.Stamp
	buried   []Buried
}

// Buried is what one own transaction deleted.
type Buried struct {
	Seq    uint64
	Stamp  origin.Stamp
	Keys   []wire.KeyHash
	Tables []*Table // that it truncated
}

// NewGist returns the gist of no frames.
func (c *Capture) NewGist() *Gist {
	g := &Gist{opts: c.opts}
	g.restorer = newRestorer(&g.opts, g, &g.state)
	return g
}

// Close gives up what Frame needs.
func (g *Gist) Close() { g.restorer.close() }

// Frame takes a frame in, in stream order. Runs must begin and end in the frames of one gist.
func (g *Gist) Frame(f *wire.Frame) error {
	if err := g.restorer.frame(f); err != nil {
		return fmt.Errorf("boil down frame up to transaction %d: %w", f.LastSeq, err)
	}
	g.seq, g.stamp = f.LastSeq, f.LastStamp
	return nil
}

// Last returns the last own transaction up to which the frames go, and its stamp.
func (g *Gist) Last() (seq uint64, stamp origin.Stamp) { return g.seq, g.stamp }

// Buried returns what was deleted, by transaction.
func (g *Gist) Buried() []Buried { return g.buried }

// of returns where to note what the transaction seq deletes.
func (g *Gist) of(seq uint64, v origin.Version) *Buried {
	if n := len(g.buried); n == 0 || g.buried[n-1].Seq != seq {
		g.buried = append(g.buried, Buried{Seq: seq, Stamp: v.Stamp})
	}
	return &g.buried[len(g.buried)-1]
}

// LocalDelete implements Deletes.
func (g *Gist) LocalDelete(d Delete) {
	b := g.of(d.Seq, d.Version)
	b.Keys = append(b.Keys, d.Hash)
}

// LocalSchema implements Deletes: what is let go is noted in the database (apply/schemachange.go).
func (g *Gist) LocalSchema(uint64, uint32) {}

// LocalTruncate implements Deletes.
func (g *Gist) LocalTruncate(t Truncate) {
	b := g.of(t.Seq, t.Version)
	b.Tables = append(b.Tables, t.Relation)
}

// HoldLSN implements Deletes; nobody asks it.
func (*Gist) HoldLSN() uint64 { return 0 }

// Told implements Deletes; nobody asks it.
func (*Gist) Told(_, low origin.Vector) origin.Vector { return low }

// The gist's form: numbers as varints, each list behind its length.
//
//	form, seq
//	commit times, sorted, each as the difference from the one before; the highest id
//	lifted transactions: commit time, stamp - commit time, seq, keys + 1 or 0 for many, keys of 16 bytes
//	lifted ones that are not known: the highest commit time, the last seq
//	marks: id, seq; those with vectors: id, seq, bytes, vector
//	ids that may not be visible yet
const gistForm = 1

const (
	// gistMarks and gistFullMarks bound the marks of one gist, as marksLimit does.
	gistMarks     = 4096
	gistFullMarks = 256
)

// Encode returns what RestoreGist takes.
func (g *Gist) Encode() []byte {
	b := binary.AppendUvarint([]byte{gistForm}, g.seq)
	b = g.appendWritten(b)
	b = g.appendLifted(b)
	m := &g.state.marks
	for len(m.list) > gistMarks {
		m.list = thin(m.list)
	}
	for len(m.full) > gistFullMarks {
		m.full = thin(m.full)
	}
	b = binary.AppendUvarint(b, uint64(len(m.list)))
	for _, x := range m.list {
		b = binary.AppendUvarint(binary.AppendUvarint(b, x.XID), x.Seq)
	}
	b = binary.AppendUvarint(b, uint64(len(m.full)))
	for i := range m.full {
		x := &m.full[i]
		up := wire.AppendVector(nil, x.up)
		b = binary.AppendUvarint(binary.AppendUvarint(b, x.XID), x.Seq)
		b = append(binary.AppendUvarint(b, uint64(len(up))), up...)
	}
	b = binary.AppendUvarint(b, uint64(len(g.state.recents.xids)))
	for _, x := range g.state.recents.xids {
		b = binary.AppendUvarint(b, uint64(x))
	}
	return b
}

func (g *Gist) appendWritten(b []byte) []byte {
	var times []origin.Stamp
	var xid uint32
	for i := range g.state.written.chunks {
		c := &g.state.written.chunks[i]
		times = append(times, c.times...)
		if i == 0 || int32(c.xid-xid) > 0 {
			xid = c.xid
		}
	}
	slices.Sort(times)
	b = binary.AppendUvarint(b, uint64(len(times)))
	last := origin.Stamp(0)
	for _, t := range times {
		b = binary.AppendVarint(b, int64(t-last))
		last = t
	}
	return binary.AppendUvarint(b, uint64(xid))
}

func (g *Gist) appendLifted(b []byte) []byte {
	l := &g.state.lifted
	b = binary.AppendUvarint(b, uint64(len(l.entries)))
	for i := range l.entries {
		e := &l.entries[i]
		b = binary.AppendVarint(b, int64(e.commitTime))
		b = binary.AppendVarint(b, int64(e.stamp-e.commitTime))
		b = binary.AppendUvarint(b, e.seq)
		if e.many {
			b = binary.AppendUvarint(b, 0)
			continue
		}
		b = binary.AppendUvarint(b, uint64(len(e.keys))+1)
		for _, k := range e.keys {
			b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, k.Hi), k.Lo)
		}
	}
	return binary.AppendUvarint(binary.AppendVarint(b, int64(l.lost.commitTime)), l.lost.seq)
}

// RestoreGist takes the gist of frames that are gone, in order, before those that are there are restored.
func (c *Capture) RestoreGist(b []byte) error {
	p := gistParser{b: b}
	if form := p.uvarint(); !p.bad && form != gistForm {
		return fmt.Errorf("what frames said that are gone has form %d, this bridge reads %d; start a newer one", form, gistForm)
	}
	p.restore(c.state)
	if p.bad || len(p.b) != 0 {
		return fmt.Errorf("what frames said that are gone: %w", wire.ErrCorrupt)
	}
	return nil
}

// gistParser reads what Encode has written. Once it is bad it gives zeros.
type gistParser struct {
	b   []byte
	bad bool
}

func (p *gistParser) restore(s *state) {
	seq := p.uvarint()
	p.written(s, seq)
	p.lifted(s)
	s.marks.mu.Lock()
	defer s.marks.mu.Unlock()
	for range p.count() {
		x := p.mark()
		s.marks.addShort(x)
		s.recents.ended(x.XID)
	}
	for range p.count() {
		x := fullMark{Mark: p.mark()}
		up, err := wire.ParseVectors(p.bytes(p.count()), 1)
		p.bad = p.bad || err != nil
		if x.up = up[0]; !p.bad {
			s.marks.addFull(x)
		}
	}
	for range p.count() {
		s.recents.add(uint32(p.uvarint()))
	}
}

func (p *gistParser) written(s *state, seq uint64) {
	var times []origin.Stamp
	last := origin.Stamp(0)
	for range p.count() {
		last += origin.Stamp(p.varint())
		times = append(times, last)
	}
	xid := uint32(p.uvarint())
	if n := uint64(len(times)); n > 0 && n <= seq { // one for each transaction
		s.written.since(seq - n + 1)
	}
	for _, t := range times {
		s.written.add(t, seq, xid)
	}
}

func (p *gistParser) lifted(s *state) {
	for range p.count() {
		commitTime := origin.Stamp(p.varint())
		stamp := commitTime + origin.Stamp(p.varint())
		seq, n := p.uvarint(), p.count()
		var keys []wire.KeyHash
		for range n - 1 {
			if k := p.bytes(16); k != nil {
				keys = append(keys, wire.KeyHash{Hi: binary.BigEndian.Uint64(k), Lo: binary.BigEndian.Uint64(k[8:])})
			}
		}
		if !p.bad {
			s.lifted.add(commitTime, stamp, seq, keys, n == 0)
		}
	}
	if at, seq := origin.Stamp(p.varint()), p.uvarint(); seq != 0 && !p.bad {
		s.lifted.mu.Lock()
		defer s.lifted.mu.Unlock()
		s.lifted.lose(at, seq)
	}
}

func (p *gistParser) mark() wire.Mark { return wire.Mark{XID: p.uvarint(), Seq: p.uvarint()} }

func (p *gistParser) uvarint() uint64 {
	v, n := binary.Uvarint(p.b)
	return p.took(v, n)
}

func (p *gistParser) varint() int64 {
	v, n := binary.Varint(p.b)
	return int64(p.took(uint64(v), n))
}

// took takes n bytes that hold v; n is not above 0 if there is no number.
func (p *gistParser) took(v uint64, n int) uint64 {
	if p.bad = p.bad || n <= 0; p.bad {
		return 0
	}
	p.b = p.b[n:]
	return v
}

// count is a number of things that take a byte each at least.
func (p *gistParser) count() int {
	n := p.uvarint()
	if p.bad = p.bad || n > uint64(len(p.b)); p.bad {
		return 0
	}
	return int(n)
}

func (p *gistParser) bytes(n int) []byte {
	if p.bad = p.bad || n > len(p.b); p.bad {
		return nil
	}
	b := p.b[:n]
	p.b = p.b[n:]
	return b
}
