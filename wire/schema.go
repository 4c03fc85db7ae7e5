package wire

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"fmt"
)

// SchemaPrefix is the prefix of the transactional messages in which a schema change stands in the WAL.
const SchemaPrefix = "pgbridge.ddl"

// Schema is a change of the schema that other nodes make, too, in its place in the transaction.
type Schema struct {
	Role       string // who made it, and is to make it elsewhere
	SearchPath string // as SET takes it
	SQL        string // one or more statements
}

// AppendSchema appends an M record.
func AppendSchema(dst []byte, s *Schema) []byte {
	return appendRecord(dst, KindSchema, appendSchema(make([]byte, 0, 64+len(s.SQL)), s))
}

func appendSchema(b []byte, s *Schema) []byte {
	return appendString(appendString(appendString(b, s.Role), s.SearchPath), s.SQL)
}

// ParseSchema decodes an M record.
func ParseSchema(payload []byte) (*Schema, error) {
	p := parser{b: payload}
	s := p.schema()
	return &s, p.err
}

// schema decodes what stands at the end.
func (p *parser) schema() Schema {
	s := Schema{Role: p.string(), SearchPath: p.string(), SQL: p.string()}
	if p.err == nil && len(p.b) != 0 {
		p.fail("bytes behind the schema change")
	}
	return s
}

// SchemaMessage is what a message with SchemaPrefix says. Its content is SHA-256 of the node's secret and of what follows, and
// that: a JSON object. Any user of the database may write messages; the secret tells who called pgbridge.ddl.
type SchemaMessage struct {
	XID        uint32 `json:"xid"` // of the subtransaction that made the change
	Role       string `json:"role"`
	SearchPath string `json:"search_path"`
	SQL        string `json:"sql"`
}

// ParseSchemaMessage decodes and checks the content of a message. Errors wrap ErrCorrupt.
func ParseSchemaMessage(content []byte, secret string) (*SchemaMessage, error) {
	if len(content) < sha256.Size || secret == "" {
		return nil, fmt.Errorf("%w: schema change without a signature", ErrCorrupt)
	}
	sum := sha256.Sum256(append([]byte(secret), content[sha256.Size:]...))
	if subtle.ConstantTimeCompare(sum[:], content[:sha256.Size]) != 1 {
		return nil, fmt.Errorf("%w: schema change with a wrong signature", ErrCorrupt)
	}
	m := &SchemaMessage{}
	if err := json.Unmarshal(content[sha256.Size:], m); err != nil {
		return nil, fmt.Errorf("%w: schema change: %v", ErrCorrupt, err)
	}
	return m, nil
}
