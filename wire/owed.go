package wire

import (
	"encoding/binary"

	"github.com/pgbridge/pgbridge/origin"
)

// Prefixes of the logical messages whose content capture hands on to all peers as a record: an Ask, and an Answer.
const (
	AskPrefix    = "pgbridge.ask"
	AnswerPrefix = "pgbridge.answer"
)

// Ask is a node's request to another one to write a row again, in full: it could not apply a transaction of Of to it, which
// leaves a large value unchanged that is another one here (PROOF.md R16).
type Ask struct {
	ID            int64 // the asking node's own; not 0
	Of            origin.Origin
	Schema, Table string
	Key           []byte // a JSON object of the key's columns
}

// Answer says that the row of an Ask stands in the stream in front of this record as the answering node has it, in full or
// as deleted, whoever did that last.
type Answer struct {
	To origin.Origin // who asked
	ID int64         // Ask.ID
	// Kept says instead that the answering node keeps the row out of its table (PROOF.md R30), and will write it again when it has
	// come back. It is written as an ID below 0, which asks nothing of a node that does not know of it.
	Kept bool
}

// AppendAsk appends an Ask, as the content of a message or as a record's payload.
func AppendAsk(dst []byte, a *Ask) []byte {
	dst = binary.AppendVarint(dst, a.ID)
	dst = appendString(dst, a.Of.Node)
	dst = binary.AppendUvarint(dst, uint64(a.Of.Epoch))
	dst = appendString(appendString(dst, a.Schema), a.Table)
	return appendString(dst, string(a.Key))
}

// ParseAsk decodes what AppendAsk has written. Errors wrap ErrCorrupt.
func ParseAsk(b []byte) (*Ask, error) {
	p := parser{b: b}
	a := &Ask{ID: p.varint(), Of: p.origin(), Schema: p.string(), Table: p.string(), Key: []byte(p.string())}
	if p.err == nil && len(p.b) != 0 {
		p.fail("bytes behind the request")
	}
	return a, p.err
}

// AppendAnswer appends an Answer, as the content of a message or as a record's payload.
func AppendAnswer(dst []byte, a Answer) []byte {
	id := a.ID
	if a.Kept {
		id = -id
	}
	dst = binary.AppendVarint(dst, id)
	return binary.AppendUvarint(appendString(dst, a.To.Node), uint64(a.To.Epoch))
}

// ParseAnswer decodes what AppendAnswer has written. Errors wrap ErrCorrupt.
func ParseAnswer(b []byte) (Answer, error) {
	p := parser{b: b}
	a := Answer{ID: p.varint(), To: p.origin()}
	if p.err == nil && len(p.b) != 0 {
		p.fail("bytes behind the answer")
	}
	if a.ID < 0 {
		a.ID, a.Kept = -a.ID, true
	}
	return a, p.err
}

// AppendNote appends a message of AskPrefix or AnswerPrefix as a record; ok: the prefix is one of these, and the content is
// what it says.
func AppendNote(dst []byte, prefix string, content []byte) (_ []byte, ok bool) {
	switch prefix {
	case AskPrefix:
		if _, err := ParseAsk(content); err == nil {
			return appendRecord(dst, KindAsk, content), true
		}
	case AnswerPrefix:
		if _, err := ParseAnswer(content); err == nil {
			return appendRecord(dst, KindAnswer, content), true
		}
	}
	return dst, false
}
