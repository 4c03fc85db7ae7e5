package capture

import (
	"bytes"
	"encoding/binary"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// The first bytes of pgoutput's messages ("Logical Replication Message Formats"). Rows and truncates have
// the letters of wire.Kind.
const (
	msgBegin        = 'B'
	msgCommit       = 'C'
	msgOrigin       = 'O'
	msgRelation     = 'R'
	msgType         = 'Y'
	msgLogical      = 'M'
	msgStreamStart  = 'S'
	msgStreamStop   = 'E'
	msgStreamCommit = 'c'
	msgStreamAbort  = 'A'
)

// cursor takes fixed fields off the front of a message. After the first one that is cut off, all further
// ones are zero and bad is set, so that a caller checks once at the end.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if n > len(c.b) {
		c.b, c.bad = nil, true
		return nil
	}
	v := c.b[:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) u8() byte {
	if v := c.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if v := c.take(2); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if v := c.take(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if v := c.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func (c *cursor) cstring() string {
	i := bytes.IndexByte(c.b, 0)
	if i < 0 {
		c.b, c.bad = nil, true
		return ""
	}
	v := string(c.b[:i])
	c.b = c.b[i+1:]
	return v
}

// firstUserOID is FirstGenbkiObjectId (access/transam.h): from here on pgoutput sends Type messages, since
// object ids need not agree between servers.
const firstUserOID = 10000

// typeName is what a Type message says of an object id.
type typeName struct{ schema, name string }

// parseRelation decodes a Relation message behind its letter and transaction id.
func parseRelation(b []byte, types map[uint32]typeName) (*relation, error) {
	c := cursor{b: b}
	r := &relation{home: homeUnknown, Relation: wire.Relation{
		ID: c.u32(), Schema: c.cstring(), Name: c.cstring(), ReplicaIdentity: c.u8(),
	}}
	if r.Schema == "" {
		r.Schema = "pg_catalog"
	}
	n := int(c.u16())
	for i := 0; i < n && !c.bad; i++ {
		col := wire.Column{Key: c.u8()&1 != 0, Name: c.cstring(), TypeOID: c.u32(), Typmod: int32(c.u32())}
		if t, ok := types[col.TypeOID]; ok && col.TypeOID >= firstUserOID {
			col.TypeSchema, col.TypeName = t.schema, t.name
		}
		r.Columns = append(r.Columns, col)
	}
	if c.bad || len(c.b) > 0 {
		return nil, protocolError("relation message of %d bytes", len(b))
	}
	return r, nil
}

// parseType decodes a Type message behind its letter and transaction id.
func parseType(b []byte) (uint32, typeName, error) {
	c := cursor{b: b}
	oid, t := c.u32(), typeName{schema: c.cstring(), name: c.cstring()}
	if t.schema == "" {
		t.schema = "pg_catalog"
	}
	if c.bad {
		return 0, t, protocolError("type message of %d bytes", len(b))
	}
	return oid, t, nil
}

// commitOf decodes a Commit or, behind its transaction id, a Stream Commit message.
func commitOf(b []byte) (lsn, end uint64, at origin.Stamp, err error) {
	c := cursor{b: b}
	c.u8() // flags, unused
	lsn, end, at = c.u64(), c.u64(), origin.Stamp(c.u64())
	if c.bad || end < lsn {
		return 0, 0, 0, protocolError("commit message of %d bytes", len(b))
	}
	return lsn, end, at, nil
}

// logicalMessage is a logical decoding message.
type logicalMessage struct {
	transactional bool
	lsn           uint64 // end of its WAL record
	prefix        string
	content       []byte // shares memory with the message
}

func parseLogicalMessage(b []byte) (logicalMessage, error) {
	c := cursor{b: b}
	m := logicalMessage{transactional: c.u8()&1 != 0, lsn: c.u64(), prefix: c.cstring()}
	m.content = c.take(int(c.u32()))
	if c.bad {
		return m, protocolError("logical message of %d bytes", len(b))
	}
	return m, nil
}

// parseTruncate decodes a Truncate message behind its letter and transaction id.
func parseTruncate(b []byte) (options byte, relations []uint32, err error) {
	c := cursor{b: b}
	n := c.u32()
	options = c.u8()
	if c.bad || uint64(n)*4 != uint64(len(c.b)) {
		return 0, nil, protocolError("truncate message of %d bytes", len(b))
	}
	for range n {
		relations = append(relations, c.u32())
	}
	return options, relations, nil
}
