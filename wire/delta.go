package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/pgbridge/pgbridge/origin"
)

// A delta is what one node has and another one lacks: rows by their versions instead of transactions. It is a list of records,
// as in a frame's body: R, I, and those below. E ends it.
//
//	W  who wrote the rows that follow: origin stamp:varint
//	G  keys that were deleted: origin seq:uvarint stamp:varint schema:string table:string (both empty unless all
//	   of the table was), and the keys' hashes, 16 bytes each
//	J  a write to a row of a merged table: relation:uvarint, the key's hash, origin seq:uvarint part:uvarint stamp:varint
//	   kind:byte, what its author had seen and what it did, as the journal has them, each with its length, the row as its
//	   author left it (1 and with its length, or 0), and the row's key as a tuple of the relation if the donor has the row
//	H  keys of rows that the donor has, whether they stand in the delta or not: hashes of 16 bytes each
//	F  the row of a merged table in front of the writes that the journal has: the key's hash, schema:string table:string, and the row
//	   (1 and with its length, or 0: there was none)
//	P  a change of the schema that the donor has made: the origin and seq:uvarint of its transaction, and what an M record has
//	E  what the node that gives the delta has seen, all of which it holds: vector rows:uvarint
const (
	KindWriter Kind = 'W'
	KindGone   Kind = 'G'
	KindLogged Kind = 'J'
	KindKeys   Kind = 'H'
	KindBase   Kind = 'F'
	KindMade   Kind = 'P'
	KindEnd    Kind = 'E'
)

// AppendWriter appends a W record.
func AppendWriter(dst []byte, v origin.Version) []byte {
	return appendRecord(dst, KindWriter, binary.AppendVarint(appendOrigin(make([]byte, 0, 32), v.Origin), int64(v.Stamp)))
}

// ParseWriter decodes a W record.
func ParseWriter(payload []byte) (origin.Version, error) {
	p := parser{b: payload}
	o := p.origin()
	return origin.Version{Origin: o, Stamp: origin.Stamp(p.varint())}, p.err
}

// Gone is a delete of keys, or of all that a table held before.
type Gone struct {
	Version       origin.Version
	Seq           uint64
	Schema, Table string // of a TRUNCATE; else empty
	Keys          []KeyHash
}

// AppendGone appends a G record.
func AppendGone(dst []byte, g *Gone) []byte {
	b := binary.AppendUvarint(appendOrigin(make([]byte, 0, 64+16*len(g.Keys)), g.Version.Origin), g.Seq)
	b = binary.AppendVarint(b, int64(g.Version.Stamp))
	b = appendString(appendString(b, g.Schema), g.Table)
	for _, k := range g.Keys {
		b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, k.Hi), k.Lo)
	}
	return appendRecord(dst, KindGone, b)
}

// ParseGone decodes a G record.
func ParseGone(payload []byte) (*Gone, error) {
	p := parser{b: payload}
	g := &Gone{}
	g.Version.Origin = p.origin()
	g.Seq = p.uvarint()
	g.Version.Stamp = origin.Stamp(p.varint())
	g.Schema, g.Table = p.string(), p.string()
	if p.err == nil && len(p.b)%16 != 0 {
		p.fail("keys are cut off")
	}
	if p.err != nil {
		return nil, p.err
	}
	for b := p.b; len(b) > 0; b = b[16:] {
		g.Keys = append(g.Keys, KeyHash{Hi: binary.BigEndian.Uint64(b), Lo: binary.BigEndian.Uint64(b[8:])})
	}
	return g, nil
}

// Logged is a write to a row of a merged table. Seen, Ops and Image are as apply's journal has them.
type Logged struct {
	Relation  uint32
	Key       KeyHash
	Version   origin.Version
	Seq       uint64
	Part      uint32
	Kind      Kind
	Seen, Ops []byte
	Image     []byte // nil: none is kept
	Row       []byte // a tuple with the key's values; empty: the donor has no row
}

// AppendLogged appends a J record.
func AppendLogged(dst []byte, l *Logged) []byte {
	b := binary.AppendUvarint(make([]byte, 0, 128+len(l.Seen)+len(l.Ops)+len(l.Image)+len(l.Row)), uint64(l.Relation))
	b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, l.Key.Hi), l.Key.Lo)
	b = binary.AppendUvarint(appendOrigin(b, l.Version.Origin), l.Seq)
	b = binary.AppendVarint(binary.AppendUvarint(b, uint64(l.Part)), int64(l.Version.Stamp))
	b = appendString(appendString(append(b, byte(l.Kind)), string(l.Seen)), string(l.Ops))
	if l.Image != nil {
		b = appendString(append(b, 1), string(l.Image))
	} else {
		b = append(b, 0)
	}
	return appendRecord(dst, KindLogged, append(b, l.Row...))
}

// ParseLogged decodes a J record. What it returns shares memory with payload.
func ParseLogged(payload []byte) (*Logged, error) {
	p := parser{b: payload}
	l := &Logged{Relation: p.uint32(), Key: KeyHash{Hi: p.fixed64(), Lo: p.fixed64()}}
	l.Version.Origin, l.Seq, l.Part = p.origin(), p.uvarint(), p.uint32()
	l.Version.Stamp = origin.Stamp(p.varint())
	l.Kind = Kind(p.byte())
	l.Seen, l.Ops = p.bytes(p.length()), p.bytes(p.length())
	if p.byte() != 0 {
		l.Image = p.bytes(p.length())
	}
	l.Row = p.b
	return l, p.err
}

// AppendKeys appends an H record.
func AppendKeys(dst []byte, keys []KeyHash) []byte {
	b := make([]byte, 0, 16*len(keys))
	for _, k := range keys {
		b = appendHash(b, k)
	}
	return appendRecord(dst, KindKeys, b)
}

// ParseKeys decodes an H record, behind keys.
func ParseKeys(keys []KeyHash, payload []byte) ([]KeyHash, error) {
	if len(payload)%16 != 0 {
		return nil, fmt.Errorf("%w: keys are cut off", ErrCorrupt)
	}
	for b := payload; len(b) > 0; b = b[16:] {
		keys = append(keys, KeyHash{Hi: binary.BigEndian.Uint64(b), Lo: binary.BigEndian.Uint64(b[8:])})
	}
	return keys, nil
}

// Base is a row of a merged table in front of the writes that the journal has.
type Base struct {
	Key           KeyHash
	Schema, Table string
	Cells         []byte // as the journal has them; nil: there was no row
}

// AppendBase appends an F record.
func AppendBase(dst []byte, x *Base) []byte {
	b := appendString(appendString(appendHash(nil, x.Key), x.Schema), x.Table)
	if x.Cells != nil {
		b = appendString(append(b, 1), string(x.Cells))
	} else {
		b = append(b, 0)
	}
	return appendRecord(dst, KindBase, b)
}

// ParseBase decodes an F record. What it returns shares memory with payload.
func ParseBase(payload []byte) (*Base, error) {
	p := parser{b: payload}
	x := &Base{Key: KeyHash{Hi: p.fixed64(), Lo: p.fixed64()}, Schema: p.string(), Table: p.string()}
	if p.byte() != 0 {
		x.Cells = p.bytes(p.length())
	}
	return x, p.err
}

// Made is a change of the schema that the donor has made.
type Made struct {
	Origin origin.Origin // of the node where it was made first
	Seq    uint64        // of its transaction there
	Schema
}

// AppendMade appends a P record.
func AppendMade(dst []byte, m *Made) []byte {
	return appendRecord(dst, KindMade, appendSchema(binary.AppendUvarint(appendOrigin(make([]byte, 0, 64+len(m.SQL)), m.Origin), m.Seq), &m.Schema))
}

// ParseMade decodes a P record.
func ParseMade(payload []byte) (*Made, error) {
	p := parser{b: payload}
	m := &Made{Origin: p.origin(), Seq: p.uvarint(), Schema: p.schema()}
	return m, p.err
}

func appendHash(b []byte, k KeyHash) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, k.Hi), k.Lo)
}

// AppendEnd appends an E record; rows is how many I records stand before it.
func AppendEnd(dst []byte, seen origin.Vector, rows uint64) []byte {
	return appendRecord(dst, KindEnd, binary.AppendUvarint(appendVector(make([]byte, 0, 128), seen), rows))
}

// ParseEnd decodes an E record.
func ParseEnd(payload []byte) (seen origin.Vector, rows uint64, err error) {
	p := parser{b: payload}
	seen, rows = p.vector(), p.uvarint()
	return seen, rows, p.err
}
