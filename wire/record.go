package wire

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/zeebo/xxh3"

	"github.com/pgbridge/pgbridge/origin"
)

// Kind is the first byte of a record; the package comment lists what each means.
type Kind byte

// The kinds of records. Insert, Update, Delete and Truncate are pgoutput's own letters.
const (
	KindVector      Kind = 'V'
	KindRelation    Kind = 'R'
	KindBegin       Kind = 'B'
	KindInsert      Kind = 'I'
	KindUpdate      Kind = 'U'
	KindDelete      Kind = 'D'
	KindTruncate    Kind = 'T'
	KindCommit      Kind = 'C'
	KindChunk       Kind = 'K'
	KindLargeCommit Kind = 'L'
	KindRunAbort    Kind = 'X'
	KindSub         Kind = 'S'
	KindSubAbort    Kind = 'Z'
	KindLost        Kind = 'Y'
	KindAsk         Kind = 'Q'
	KindAnswer      Kind = 'A'
	KindSchema      Kind = 'M'
	KindSealed      Kind = 'E'
)

// Record is one entry of a frame's body or of a run. The payload shares memory with what it was read
// from.
type Record struct {
	Kind    Kind
	Payload []byte
}

// Records walks the records of b, a frame's body. It is a value: copy it to remember a place.
type Records struct {
	b []byte
}

// NewRecords returns a walk from the beginning of body.
func NewRecords(body []byte) Records { return Records{body} }

// Next returns the next record, or io.EOF behind the last. Other errors wrap ErrCorrupt.
func (r *Records) Next() (Record, error) {
	if len(r.b) == 0 {
		return Record{}, io.EOF
	}
	p := parser{b: r.b[1:]}
	rec := Record{Kind: Kind(r.b[0]), Payload: p.bytes(p.length())}
	if p.err != nil {
		return Record{}, p.err
	}
	r.b = p.b
	return rec, nil
}

// ReadRecord reads one record of a run from r into buf, which it grows when needed and returns as the
// record's payload; io.EOF means that the run ends here. limit bounds the payload's length in bytes.
func ReadRecord(r *bufio.Reader, buf []byte, limit int) (Record, error) {
	k, err := r.ReadByte()
	if err != nil {
		return Record{}, err
	}
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return Record{}, fmt.Errorf("%w: run ends within a record", ErrCorrupt)
	}
	if n > uint64(limit) {
		return Record{}, fmt.Errorf("record of %d bytes, the limit is %d", n, limit)
	}
	if uint64(cap(buf)) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		return Record{}, fmt.Errorf("%w: run ends within a record", ErrCorrupt)
	}
	return Record{Kind(k), buf}, nil
}

func appendRecord(dst []byte, k Kind, payload []byte) []byte {
	dst = append(dst, byte(k))
	dst = binary.AppendUvarint(dst, uint64(len(payload)))
	return append(dst, payload...)
}

// AppendDeps appends a V record: the dependencies of the transactions that follow in the frame.
func AppendDeps(dst []byte, up, low origin.Vector) []byte {
	return appendRecord(dst, KindVector, appendVector(appendVector(make([]byte, 0, 128), up), low))
}

// ParseDeps decodes a V record.
func ParseDeps(payload []byte) (up, low origin.Vector, err error) {
	v, err := ParseVectors(payload, 2)
	if err != nil {
		return nil, nil, err
	}
	return v[0], v[1], nil
}

// Loss says that a version of another origin lost on some row, or on some rows of a table, to what was there
// already. The hashes are the same on all nodes; where two names or keys share one, more is taken for lost.
type Loss struct {
	Version origin.Version
	Table   uint64 // TableHash
	Key     uint64 // KeyHasher.Shared of the row's key; 0: any row of the table
}

// TableHash is the hash of a table's name in a Loss.
func TableHash(schema, table string) uint64 {
	return xxh3.Hash(appendString(appendString(nil, schema), table))
}

// AppendLost appends a Y record.
func AppendLost(dst []byte, lost []Loss) []byte {
	return appendRecord(dst, KindLost, appendLosses(make([]byte, 0, 64), lost))
}

// ParseLost decodes a Y record.
func ParseLost(payload []byte) ([]Loss, error) {
	p := parser{b: payload}
	l := p.losses()
	if p.err == nil && len(p.b) != 0 {
		p.fail("bytes behind the losses")
	}
	return l, p.err
}

// Column is one column of a Relation, as the origin has it.
type Column struct {
	Name       string
	TypeOID    uint32
	Typmod     int32
	TypeSchema string // empty for a built-in type
	TypeName   string // empty for a built-in type
	Key        bool   // part of the replica identity
}

// Relation describes a table as the origin had it when it wrote the rows that follow. Names count;
// object ids and column order need not agree between nodes.
type Relation struct {
	ID              uint32
	Schema, Name    string
	ReplicaIdentity byte // 'd', 'n', 'f' or 'i', as pg_class.relreplident
	Columns         []Column
}

// AppendRelation appends an R record.
func AppendRelation(dst []byte, r *Relation) []byte {
	b := binary.AppendUvarint(make([]byte, 0, 256), uint64(r.ID))
	b = appendString(b, r.Schema)
	b = appendString(b, r.Name)
	b = append(b, r.ReplicaIdentity)
	b = binary.AppendUvarint(b, uint64(len(r.Columns)))
	for i := range r.Columns {
		c := &r.Columns[i]
		var flags byte
		if c.Key {
			flags = 1
		}
		b = appendString(append(b, flags), c.Name)
		b = binary.AppendUvarint(b, uint64(c.TypeOID))
		b = binary.AppendVarint(b, int64(c.Typmod))
		b = appendString(b, c.TypeSchema)
		b = appendString(b, c.TypeName)
	}
	return appendRecord(dst, KindRelation, b)
}

// ParseRelation decodes an R record.
func ParseRelation(payload []byte) (*Relation, error) {
	p := parser{b: payload}
	r := &Relation{ID: p.uint32(), Schema: p.string(), Name: p.string(), ReplicaIdentity: p.byte()}
	n := p.length()
	r.Columns = make([]Column, 0, min(n, 1600))
	for i := 0; i < n && p.err == nil; i++ {
		c := Column{Key: p.byte()&1 != 0, Name: p.string(), TypeOID: p.uint32()}
		m := p.varint()
		if m < math.MinInt32 || m > math.MaxInt32 {
			p.fail("typmod is out of range")
		}
		c.Typmod = int32(m)
		c.TypeSchema, c.TypeName = p.string(), p.string()
		r.Columns = append(r.Columns, c)
	}
	return r, p.err
}

// Begin identifies a transaction.
type Begin struct {
	Seq        uint64
	Stamp      origin.Stamp
	CommitTime origin.Stamp // PostgreSQL's own commit timestamp, before it was lifted
	CommitLSN  uint64       // of the commit record
	XID        uint32       // of the top-level transaction
}

func (t *Begin) append(b []byte) []byte {
	b = binary.AppendUvarint(b, t.Seq)
	b = binary.AppendVarint(b, int64(t.Stamp))
	b = binary.AppendVarint(b, int64(t.CommitTime))
	b = binary.AppendUvarint(b, t.CommitLSN)
	return binary.AppendUvarint(b, uint64(t.XID))
}

func (p *parser) begin() Begin {
	return Begin{
		Seq: p.uvarint(), Stamp: origin.Stamp(p.varint()), CommitTime: origin.Stamp(p.varint()),
		CommitLSN: p.uvarint(), XID: p.uint32(),
	}
}

// AppendBegin appends a B record.
func AppendBegin(dst []byte, t Begin) []byte {
	return appendRecord(dst, KindBegin, t.append(make([]byte, 0, 48)))
}

// ParseBegin decodes a B record.
func ParseBegin(payload []byte) (Begin, error) {
	p := parser{b: payload}
	return p.begin(), p.err
}

// AppendCommit appends a C record.
func AppendCommit(dst []byte) []byte { return append(dst, byte(KindCommit), 0) }

// AppendChange appends an I, U or D record: tuples is what pgoutput's message has behind the relation id.
func AppendChange(dst []byte, k Kind, relation uint32, tuples []byte) []byte {
	dst = append(dst, byte(k))
	dst = binary.AppendUvarint(dst, uint64(uvarintLen(uint64(relation))+len(tuples)))
	dst = binary.AppendUvarint(dst, uint64(relation))
	return append(dst, tuples...)
}

// ParseChange splits the payload of an I, U or D record. tuples shares memory with it.
func ParseChange(payload []byte) (relation uint32, tuples []byte, err error) {
	p := parser{b: payload}
	relation = p.uint32()
	return relation, p.b, p.err
}

func uvarintLen(v uint64) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

// AppendTruncate appends a T record; options are pgoutput's (1: CASCADE, 2: RESTART IDENTITY).
func AppendTruncate(dst []byte, options byte, relations []uint32) []byte {
	b := binary.AppendUvarint([]byte{options}, uint64(len(relations)))
	for _, r := range relations {
		b = binary.AppendUvarint(b, uint64(r))
	}
	return appendRecord(dst, KindTruncate, b)
}

// ParseTruncate decodes a T record.
func ParseTruncate(payload []byte) (options byte, relations []uint32, err error) {
	p := parser{b: payload}
	options = p.byte()
	n := p.length()
	for i := 0; i < n && p.err == nil; i++ {
		relations = append(relations, p.uint32())
	}
	return options, relations, p.err
}

// AppendChunk appends a K record.
func AppendChunk(dst []byte, run, offset uint64, data []byte) []byte {
	dst = append(dst, byte(KindChunk))
	dst = binary.AppendUvarint(dst, uint64(uvarintLen(run)+uvarintLen(offset)+len(data)))
	dst = binary.AppendUvarint(dst, run)
	dst = binary.AppendUvarint(dst, offset)
	return append(dst, data...)
}

// ParseChunk splits a K record. data shares memory with it.
func ParseChunk(payload []byte) (run, offset uint64, data []byte, err error) {
	p := parser{b: payload}
	run, offset = p.uvarint(), p.uvarint()
	return run, offset, p.b, p.err
}

// LargeCommit commits a run as one transaction.
type LargeCommit struct {
	Begin
	Run     uint64
	Length  uint64 // bytes of the run, all chunks together
	Changes uint64 // row changes and truncates in it, those of rolled back subtransactions too
	Aborts  uint64 // Z records in it
	Schemas uint64 // M records in it, those of rolled back subtransactions too
}

// AppendLargeCommit appends an L record.
func AppendLargeCommit(dst []byte, t LargeCommit) []byte {
	b := t.Begin.append(make([]byte, 0, 64))
	b = binary.AppendUvarint(b, t.Run)
	b = binary.AppendUvarint(b, t.Length)
	b = binary.AppendUvarint(b, t.Changes)
	b = binary.AppendUvarint(b, t.Aborts)
	if t.Schemas > 0 {
		b = binary.AppendUvarint(b, t.Schemas)
	}
	return appendRecord(dst, KindLargeCommit, b)
}

// ParseLargeCommit decodes an L record.
func ParseLargeCommit(payload []byte) (LargeCommit, error) {
	p := parser{b: payload}
	t := LargeCommit{Begin: p.begin(), Run: p.uvarint(), Length: p.uvarint(), Changes: p.uvarint(), Aborts: p.uvarint()}
	if len(p.b) > 0 {
		t.Schemas = p.uvarint()
	}
	return t, p.err
}

// AppendNumber appends an X, S or Z record, whose payload is one number: a run or a transaction id.
func AppendNumber(dst []byte, k Kind, n uint64) []byte {
	dst = append(dst, byte(k), byte(uvarintLen(n)))
	return binary.AppendUvarint(dst, n)
}

// ParseNumber decodes an X, S or Z record.
func ParseNumber(payload []byte) (uint64, error) {
	p := parser{b: payload}
	return p.uvarint(), p.err
}

// Rest returns what the walk has not come to yet.
func (r *Records) Rest() []byte { return r.b }
