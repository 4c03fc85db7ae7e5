package conflict

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth bounds how deep objects are compared key by key; what lies deeper is replaced whole.
const maxDepth = 200

// document is a JSON object of which only the parts that somebody asked for are taken apart. All else stays
// as it is spelled, numbers above all.
type document struct {
	members []member // sorted by keys
	loose   bool     // json: any spelling can come in; jsonb has only one
}

type member struct {
	key   string // unescaped
	raw   []byte
	child *document // takes raw's place if not nil
}

// compareKeys is jsonb's own order of keys: shorter ones first, then by bytes (jsonb_util.c).
func compareKeys(a, b string) int {
	if c := cmp.Compare(len(a), len(b)); c != 0 {
		return c
	}
	return cmp.Compare(a, b)
}

func isObject(raw []byte) bool { return len(raw) > 0 && raw[0] == '{' }

// jsonText gives the text of a json or jsonb cell, without blanks around it.
func jsonText(t Type, b []byte) ([]byte, error) {
	if t == JSONB {
		if len(b) < 2 || b[0] != 1 {
			return nil, fmt.Errorf("%d bytes are no jsonb of version 1", len(b))
		}
		return b[1:], nil
	}
	if b = bytes.Trim(b, " \t\r\n"); len(b) == 0 {
		return nil, fmt.Errorf("empty json")
	}
	return b, nil
}

func parseDocument(raw []byte, loose bool) (*document, error) {
	d := &document{loose: loose}
	sorted := true
	err := eachMember(raw, func(key, value []byte) error {
		k, err := unescape(key)
		if err != nil {
			return err
		}
		if n := len(d.members); n > 0 && compareKeys(d.members[n-1].key, k) >= 0 {
			sorted = false
		}
		if loose {
			value = respace(value)
		}
		d.members = append(d.members, member{key: k, raw: value})
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !sorted {
		slices.SortStableFunc(d.members, func(a, b member) int { return compareKeys(a.key, b.key) })
		keep := d.members[:0]
		for i, m := range d.members { // of equal keys the last one counts, as in jsonb
			if i+1 == len(d.members) || d.members[i+1].key != m.key {
				keep = append(keep, m)
			}
		}
		d.members = keep
	}
	return d, nil
}

// scanner steps over JSON text without understanding more of it than where values end.
type scanner struct {
	b  []byte
	at int
}

var errJSON = errors.New("malformed json")

// next gives the next byte that is no blank, or 0 at the end.
func (s *scanner) next() byte {
	for ; s.at < len(s.b); s.at++ {
		switch c := s.b[s.at]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c
		}
	}
	return 0
}

func (s *scanner) take(c byte) bool {
	if s.next() != c {
		return false
	}
	s.at++
	return true
}

// text steps over a string and gives what is between its quotes.
func (s *scanner) text() ([]byte, bool) {
	if !s.take('"') {
		return nil, false
	}
	for from := s.at; s.at < len(s.b); s.at++ {
		switch s.b[s.at] {
		case '\\':
			s.at++
		case '"':
			s.at++
			return s.b[from : s.at-1], true
		}
	}
	return nil, false
}

// value steps over a value and gives it.
func (s *scanner) value() ([]byte, bool) {
	s.next()
	from, depth := s.at, 0
	for s.at < len(s.b) {
		switch s.b[s.at] {
		case '"':
			if _, ok := s.text(); !ok {
				return nil, false
			}
			if depth == 0 {
				return s.b[from:s.at], true
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return s.b[from:s.at], s.at > from
			}
			if depth--; depth == 0 {
				s.at++
				return s.b[from:s.at], true
			}
		case ',', ' ', '\t', '\r', '\n', ':':
			if depth == 0 {
				return s.b[from:s.at], s.at > from
			}
		}
		s.at++
	}
	return s.b[from:], depth == 0 && s.at > from
}

// wholeValue reports whether b is one value and nothing else, as far as a scanner can tell. encoding/json would
// tell more, but has limits of its own, and what PostgreSQL took must not be refused here.
func wholeValue(b []byte) bool {
	s := scanner{b: b}
	v, ok := s.value()
	return ok && len(v) == len(b)
}

func eachMember(raw []byte, yield func(key, value []byte) error) error {
	s := scanner{b: raw}
	if !s.take('{') {
		return errJSON
	}
	for first := true; !s.take('}'); first = false {
		if !first && !s.take(',') {
			return errJSON
		}
		key, ok := s.text()
		if !ok || !s.take(':') {
			return errJSON
		}
		value, ok := s.value()
		if !ok {
			return errJSON
		}
		if err := yield(key, value); err != nil {
			return err
		}
	}
	if s.next() != 0 {
		return errJSON
	}
	return nil
}

func eachElement(raw []byte, yield func(value []byte)) error {
	s := scanner{b: raw}
	if !s.take('[') {
		return errJSON
	}
	for first := true; !s.take(']'); first = false {
		if !first && !s.take(',') {
			return errJSON
		}
		value, ok := s.value()
		if !ok {
			return errJSON
		}
		yield(value)
	}
	if s.next() != 0 {
		return errJSON
	}
	return nil
}

// unescape gives the text that a JSON string stands for. A lone surrogate, which json lets in, becomes the
// three bytes that it would have if it were a character, so that no two keys become one.
func unescape(s []byte) (string, error) {
	if bytes.IndexByte(s, '\\') < 0 {
		return string(s), nil
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			out = append(out, s[i])
			continue
		}
		if i++; i == len(s) {
			return "", errJSON
		}
		switch s[i] {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case '"', '\\', '/':
			out = append(out, s[i])
		case 'u':
			c, ok := hex4(s[i+1:])
			if !ok {
				return "", errJSON
			}
			i += 4
			if utf16.IsSurrogate(c) && len(s) > i+2 && s[i+1] == '\\' && s[i+2] == 'u' {
				if low, ok := hex4(s[i+3:]); ok && utf16.DecodeRune(c, low) != utf8.RuneError {
					c = utf16.DecodeRune(c, low)
					i += 6
				}
			}
			if utf16.IsSurrogate(c) {
				out = append(out, 0xE0|byte(c>>12), 0x80|byte(c>>6)&0x3F, 0x80|byte(c)&0x3F)
			} else {
				out = utf8.AppendRune(out, c)
			}
		default:
			return "", errJSON
		}
	}
	return string(out), nil
}

func hex4(s []byte) (rune, bool) {
	if len(s) < 4 {
		return 0, false
	}
	v, err := strconv.ParseUint(string(s[:4]), 16, 16)
	return rune(v), err == nil
}

// appendString writes a string as PostgreSQL does (escape_json).
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\b':
			b = append(b, `\b`...)
		case c == '\f':
			b = append(b, `\f`...)
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\r':
			b = append(b, `\r`...)
		case c == '\t':
			b = append(b, `\t`...)
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ':
			b = fmt.Appendf(b, `\u%04x`, c)
		case c == 0xED && i+2 < len(s) && s[i+1] >= 0xA0:
			b = fmt.Appendf(b, `\u%04x`, 0xD000|rune(s[i+1]&0x3F)<<6|rune(s[i+2]&0x3F))
			i += 2
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// respace writes JSON text with jsonb's blanks. It copies only if it must.
func respace(raw []byte) []byte {
	if !bytes.ContainsAny(raw, " \t\r\n,:") {
		return raw
	}
	out := make([]byte, 0, len(raw)+len(raw)/8)
	s := scanner{b: raw}
	for c := s.next(); c != 0; c = s.next() {
		if c == '"' {
			from := s.at
			if _, ok := s.text(); !ok {
				return raw
			}
			out = append(out, raw[from:s.at]...)
			continue
		}
		out = append(out, c)
		if c == ',' || c == ':' {
			out = append(out, ' ')
		}
		s.at++
	}
	return out
}

// append writes the object as jsonb_send prints it.
func (d *document) append(b []byte, depth int) []byte {
	b = append(b, '{')
	for i, m := range d.members {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(appendString(b, m.key), ": "...)
		switch {
		case m.child != nil:
			b = m.child.append(b, depth+1)
		case d.loose:
			b = appendLoose(b, m.raw, depth+1)
		default:
			b = append(b, m.raw...)
		}
	}
	return append(b, '}')
}

// appendLoose writes any JSON text in the one spelling that two nodes agree on: objects sorted, jsonb's blanks.
func appendLoose(b, raw []byte, depth int) []byte {
	if isObject(raw) && depth < maxDepth {
		if d, err := parseDocument(raw, true); err == nil {
			return d.append(b, depth)
		}
	}
	return append(b, respace(raw)...)
}

// change sets or removes what a path of keys leads to.
type change struct {
	path []string
	set  []byte // nil: remove
}

// patchOp is the differences between two objects, key by key; arrays and scalars are replaced whole.
func patchOp(t Type, before, after Cell) (Op, error) {
	if after.Null {
		return assignOp(0, after), nil
	}
	to, err := jsonText(t, after.Data)
	if err != nil {
		return nil, err
	}
	if before.Null {
		return assignOp(0, after), nil
	}
	from, err := jsonText(t, before.Data)
	if err != nil {
		return nil, err
	}
	if !isObject(from) || !isObject(to) {
		return assignOp(0, after), nil
	}
	var changes []change
	if err := compareObjects(from, to, t == JSON, nil, &changes); err != nil {
		return nil, err
	}
	o := newOp(opPatch, 64).state(stateOf(after, t))
	if t == JSON {
		o = o.bytes(after.Data)
	}
	o = o.number(len(changes))
	for _, c := range changes {
		o = o.number(len(c.path))
		for _, key := range c.path {
			o = o.bytes([]byte(key))
		}
		o = o.bytes(c.set) // no JSON value is empty
	}
	return o, nil
}

func compareObjects(before, after []byte, loose bool, path []string, changes *[]change) error {
	from, err := parseDocument(before, loose)
	if err != nil {
		return err
	}
	to, err := parseDocument(after, loose)
	if err != nil {
		return err
	}
	add := func(key string, set []byte) {
		*changes = append(*changes, change{append(slices.Clone(path), key), set})
	}
	i, j := 0, 0
	for i < len(from.members) || j < len(to.members) {
		switch {
		case j == len(to.members) || i < len(from.members) && compareKeys(from.members[i].key, to.members[j].key) < 0:
			add(from.members[i].key, nil)
			i++
		case i == len(from.members) || compareKeys(from.members[i].key, to.members[j].key) > 0:
			add(to.members[j].key, to.members[j].raw)
			j++
		default:
			a, b, key := from.members[i].raw, to.members[j].raw, to.members[j].key
			i, j = i+1, j+1
			switch {
			case bytes.Equal(a, b):
			case isObject(a) && isObject(b) && len(path) < maxDepth:
				if err := compareObjects(a, b, loose, append(path, key), changes); err != nil {
					return err
				}
			default:
				add(key, b)
			}
		}
	}
	return nil
}

// apply puts one change in. What is in the way of a set becomes an object.
func (d *document) apply(c change) error {
	for len(c.path) > 1 {
		i, ok := d.find(c.path[0])
		if !ok {
			if c.set == nil {
				return nil
			}
			d.members = slices.Insert(d.members, i, member{key: c.path[0]})
		}
		m := &d.members[i]
		if m.child == nil {
			child := &document{loose: d.loose}
			if isObject(m.raw) {
				var err error
				if child, err = parseDocument(m.raw, d.loose); err != nil {
					return err
				}
			} else if c.set == nil {
				return nil
			}
			m.child = child
		}
		d, c.path = m.child, c.path[1:]
	}
	i, ok := d.find(c.path[0])
	switch {
	case c.set == nil && ok:
		d.members = slices.Delete(d.members, i, i+1)
	case c.set == nil:
	case ok:
		d.members[i].raw, d.members[i].child = c.set, nil
	default:
		d.members = slices.Insert(d.members, i, member{key: c.path[0], raw: c.set})
	}
	return nil
}

func (d *document) find(key string) (int, bool) {
	return slices.BinarySearchFunc(d.members, key, func(m member, k string) int { return compareKeys(m.key, k) })
}

// mergeJSON applies the patches that the last assignment's author had not seen to its value, in canonical
// order, from cut to cut. NULL stays NULL until it is assigned.
//
// json keeps its author's spelling where that says the same as the merged value, which it does wherever
// nobody else wrote meanwhile.
func (m *merger) mergeJSON(value Cell) (Cell, error) {
	for part := range m.parts() {
		from := m.lastAssign(part)
		if from >= 0 {
			r := m.read(part[from])
			if value = r.assigned(); r.err != nil {
				return Cell{}, r.err
			}
		}
		if value.Null || from >= 0 && len(part) == 1 {
			continue
		}
		text, err := jsonText(m.unit.Type, value.Data)
		if err != nil {
			return Cell{}, err
		}
		loose := m.unit.Type == JSON
		d := &document{loose: loose}
		if isObject(text) {
			if d, err = parseDocument(text, loose); err != nil {
				return Cell{}, err
			}
		}
		changed := isObject(text) // what is no object stays as it is if there is nothing to put in
		var spelled []byte
		for r := range m.increments(part, from) {
			r.want(opPatch)
			r.state()
			if loose {
				spelled = r.bytes()
			}
			for n := r.number(); n > 0 && r.err == nil; n-- {
				if c := r.change(); r.err == nil {
					changed = changed || c.set != nil
					if err := d.apply(c); err != nil {
						return Cell{}, err
					}
				}
			}
			if r.err != nil {
				return Cell{}, r.err
			}
		}
		if !changed {
			continue
		}
		out := make([]byte, 0, len(text)+64)
		if !loose {
			out = append(out, 1)
		}
		value = Cell{Data: d.append(out, 0)}
		if loose && len(part) == 1 && bytes.Equal(appendLoose(nil, bytes.TrimSpace(spelled), 0), value.Data) {
			value.Data = spelled
		}
	}
	return value, nil
}

func (r *opReader) change() change {
	n := r.number()
	if n == 0 || n > maxDepth+1 {
		r.fail("bad path")
		return change{}
	}
	c := change{path: make([]string, 0, n)}
	for range n {
		c.path = append(c.path, string(r.bytes()))
	}
	if set := r.bytes(); len(set) > 0 {
		c.set = set
		if !wholeValue(set) {
			r.fail("malformed json")
		}
	}
	return c
}
