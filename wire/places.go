package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Places says which nodes have which rows of a table: the value of one column of its key decides. It does not change once built.
type Places struct {
	Column string
	// Nodes are by the value as its type writes it as text. OtherValues stands for all that are not named; if that is missing, their rows
	// are on all nodes.
	Nodes map[string][]string
}

// OtherValues stands for the values that are not named.
const OtherValues = "*"

// Of returns the nodes that have the rows of a value; nil: all have.
func (p *Places) Of(value []byte) []string {
	nodes, named := p.Nodes[string(value)]
	if !named || string(value) == OtherValues {
		nodes = p.Nodes[OtherValues]
	}
	return nodes
}

// At reports whether a node has the rows of a value.
func (p *Places) At(node string, value []byte) bool {
	nodes := p.Of(value)
	return nodes == nil || slices.Contains(nodes, node)
}

// Everywhere reports whether a node has all rows.
func (p *Places) Everywhere(node string) bool {
	for _, nodes := range p.Nodes {
		if !slices.Contains(nodes, node) {
			return false
		}
	}
	return true
}

// Values are those that are named, but for OtherValues, sorted.
func (p *Places) Values() []string {
	all := slices.Sorted(maps.Keys(p.Nodes))
	return slices.DeleteFunc(all, func(v string) bool { return v == OtherValues })
}

// The types, by their object ids (pg_type.dat), whose values are told apart by their text: it is one for each value. Enums are, too.
const (
	typeBool    = 16
	typeInt8    = 20
	typeInt2    = 21
	typeInt4    = 23
	typeText    = 25
	typeBPChar  = 1042
	typeVarchar = 1043
	typeUUID    = 2950
)

// OfKey finds the value in a row's key, a JSON object of its columns; false if it is not there.
func (p *Places) OfKey(key []byte) (value []byte, ok bool) {
	var columns map[string]json.RawMessage
	if err := json.Unmarshal(key, &columns); err != nil || len(columns[p.Column]) == 0 {
		return nil, false
	}
	value = columns[p.Column]
	if value[0] != '"' {
		return value, string(value) != "null" // a number, true or false: as it is written
	}
	var text string
	if err := json.Unmarshal(value, &text); err != nil {
		return nil, false
	}
	if _, named := p.Nodes[text]; !named {
		text = strings.TrimRight(text, " ") // it may be a char's
	}
	return []byte(text), true
}

// Placeable reports whether a type's values can be told apart by their text; enum says that it is one.
func Placeable(typ uint32, enum bool) bool {
	return enum || slices.Contains([]uint32{typeBool, typeInt8, typeInt2, typeInt4, typeText, typeBPChar, typeVarchar, typeUUID}, typ)
}

// CheckValue returns why no row of such a type has a value, as it is written; "" if rows may.
func CheckValue(typ uint32, value string) (why string) {
	number := func(bits int) {
		if n, err := strconv.ParseInt(value, 10, bits); err != nil || strconv.FormatInt(n, 10) != value {
			why = fmt.Sprintf("%q is not a number of its type, as the server writes it", value)
		}
	}
	switch typ {
	case typeBool:
		if value != "true" && value != "false" {
			why = fmt.Sprintf("%q is neither true nor false", value)
		}
	case typeInt2:
		number(16)
	case typeInt4:
		number(32)
	case typeInt8:
		number(64)
	case typeUUID:
		if !uuidText.MatchString(value) {
			why = fmt.Sprintf("%q is not a UUID in small letters", value)
		}
	}
	return why
}

// uuidText is a UUID as the server writes it.
var uuidText = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

func appendUUID(dst, id []byte) []byte {
	dst = hex.AppendEncode(dst, id[:4])
	for at := 4; at < 10; at += 2 {
		dst = hex.AppendEncode(append(dst, '-'), id[at:at+2])
	}
	return hex.AppendEncode(append(dst, '-'), id[10:])
}

// PlacedRows finds the places of a relation's rows. Not safe for concurrent use.
type PlacedRows struct {
	*Places
	OldBytes int // how long the old tuple was, with its letter, that Values has read last
	at       int // the column's
	typ      uint32
	before   []byte // scratch of Values
	after    []byte
	tuple    []Value
}

// In returns them for a relation. The error is that it lacks the column.
func (p *Places) In(r *Relation) (*PlacedRows, error) {
	at := slices.IndexFunc(r.Columns, func(c Column) bool { return c.Name == p.Column })
	if at < 0 {
		return nil, fmt.Errorf("table %s.%s has no column %s, by which topology.rows says where its rows are; put the column back, or change topology.rows on all nodes",
			r.Schema, r.Name, p.Column)
	}
	return &PlacedRows{Places: p, at: at, typ: r.Columns[at].TypeOID}, nil
}

// Index is the column's, from 0.
func (p *PlacedRows) Index() int { return p.at }

// AppendValue appends what a tuple has in the column, as text; false if that is nothing.
func (p *PlacedRows) AppendValue(dst []byte, tuple []Value) ([]byte, bool) {
	if p.at >= len(tuple) {
		return dst, false
	}
	v := tuple[p.at]
	switch {
	case v.Format == Text && p.typ == typeBool:
		return strconv.AppendBool(dst, string(v.Data) == "t"), true
	case (v.Format == Text || v.Format == Binary) && p.typ == typeBPChar:
		return append(dst, bytes.TrimRight(v.Data, " ")...), true
	case v.Format == Text:
		return append(dst, v.Data...), true
	case v.Format != Binary:
		return dst, false
	}
	switch n := len(v.Data); {
	case p.typ == typeBool && n == 1:
		return strconv.AppendBool(dst, v.Data[0] != 0), true
	case p.typ == typeInt2 && n == 2:
		return strconv.AppendInt(dst, int64(int16(binary.BigEndian.Uint16(v.Data))), 10), true
	case p.typ == typeInt4 && n == 4:
		return strconv.AppendInt(dst, int64(int32(binary.BigEndian.Uint32(v.Data))), 10), true
	case p.typ == typeInt8 && n == 8:
		return strconv.AppendInt(dst, int64(binary.BigEndian.Uint64(v.Data)), 10), true
	case p.typ == typeUUID && n == 16:
		return appendUUID(dst, v.Data), true
	}
	return append(dst, v.Data...), true
}

// Values returns what a change's row has in the column before the change and after it: the same unless an update moves the row. They are
// valid until the next call. tuples is what stands behind the relation.
func (p *PlacedRows) Values(tuples []byte) (before, after []byte, err error) {
	var had, has bool
	p.OldBytes = 0
	for all := len(tuples); len(tuples) > 0; {
		tag := tuples[0]
		p.tuple, tuples, err = ParseTuple(p.tuple[:0], tuples[1:])
		if err != nil {
			return nil, nil, err
		}
		if tag == 'N' {
			p.after, has = p.AppendValue(p.after[:0], p.tuple)
		} else {
			p.before, had = p.AppendValue(p.before[:0], p.tuple)
			p.OldBytes = all - len(tuples)
		}
	}
	switch {
	case had && has:
		return p.before, p.after, nil
	case had:
		return p.before, p.before, nil
	case has:
		return p.after, p.after, nil
	}
	return nil, nil, fmt.Errorf("%w: a row without %s, by which topology.rows says where it is", ErrCorrupt, p.Column)
}
