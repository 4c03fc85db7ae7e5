package sim

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/pgbridge/pgbridge/conflict"
)

// Column is one column of a simulated table.
type Column struct {
	Name string
	Type string // as SQL names it
	OID  uint32 // the type's
	Kind conflict.Type
	Rule conflict.Rule // if the table is merged
}

// Table is a table that the users of a schedule write. Its key is its first column, an int4.
type Table struct {
	Name    string
	Columns []Column
	Merged  bool
	Deletes conflict.Deletes // if it is merged
}

// Priority lists the nodes whose writes come first under the rule of that name.
func Priority() []string { return []string{"c", "a"} }

func plainTable() *Table {
	return &Table{Name: "plain", Columns: []Column{{Name: "id", Type: "int", OID: 23}, {Name: "v", Type: "int", OID: 23}, {Name: "big", Type: "text", OID: 25}}}
}

// layouts are the merged tables: between them they have every rule.
func layouts() []Table {
	id := Column{Name: "id", Type: "int", OID: 23}
	return []Table{
		{Name: "counted", Columns: []Column{id, {"n", "bigint", 20, conflict.Int8, conflict.Delta}, {"hi", "int", 23, conflict.Int4, conflict.Max},
			{"lo", "int", 23, conflict.Int4, conflict.Min}}},
		{Name: "written", Columns: []Column{id, {"body", "text", 25, conflict.TextType, conflict.TextMerge}, {"tags", "int[]", 1007, conflict.Array, conflict.Set},
			{"doc", "jsonb", 3802, conflict.JSONB, conflict.JSONMerge}}},
		{Name: "chosen", Columns: []Column{id, {"a", "text", 25, conflict.TextType, conflict.Latest}, {"f", "text", 25, conflict.TextType, conflict.First},
			{"p", "text", 25, conflict.TextType, conflict.Priority}}},
	}
}

// Layouts is how many merged tables there are to choose from, and how many ways to treat deletes each has.
const (
	Layouts       = 3
	DeleteChoices = 3
)

// mergedTable returns one of them.
func mergedTable(layout int, d conflict.Deletes) *Table {
	t := layouts()[layout]
	t.Name += "_" + d.String()
	t.Merged, t.Deletes = true, d
	return &t
}

// AllTables returns the tables of all schedules.
func AllTables() []*Table {
	all := []*Table{plainTable()}
	for layout := range Layouts {
		for d := range conflict.Deletes(DeleteChoices) {
			all = append(all, mergedTable(layout, d))
		}
	}
	return all
}

// SQL creates the table.
func (t *Table) SQL() string {
	var cols []string
	for _, c := range t.Columns {
		cols = append(cols, c.Name+" "+c.Type)
	}
	sql := fmt.Sprintf("CREATE TABLE %s (%s, PRIMARY KEY (id)); ", t.Name, strings.Join(cols, ", "))
	return sql + fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY FULL;\n", t.Name)
}

// Config is the table's part of conflict.tables, empty for a plain one.
func (t *Table) Config() string {
	if !t.Merged {
		return ""
	}
	var rules []string
	for _, c := range t.Columns[1:] {
		rules = append(rules, fmt.Sprintf("%s=%s", c.Name, c.Rule))
	}
	return fmt.Sprintf("*.%s: %s, .deletes=%s", t.Name, strings.Join(rules, ", "), t.Deletes)
}

// Key is a key's cell.
func Key(id int) conflict.Cell {
	return conflict.Cell{Data: binary.BigEndian.AppendUint32(nil, uint32(id))}
}

// dice are random numbers out of an op's argument.
type dice uint64

func (d *dice) roll(n int) int { // splitmix64, by Sebastiano Vigna
	*d += 0x9e3779b97f4a7c15
	z := uint64(*d)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return int((z ^ z>>31) % uint64(n))
}

// Fresh is a new row as the op with that argument inserts it.
func (t *Table) Fresh(id int, arg uint64) []conflict.Cell {
	d := dice(arg)
	row := make([]conflict.Cell, len(t.Columns))
	row[0] = Key(id)
	for i := range t.Columns[1:] {
		row[i+1] = t.Columns[i+1].value(nil, &d)
	}
	return row
}

// Edit is the row as the op with that argument leaves it. One that keeps leaves the last column of a plain table alone.
func (t *Table) Edit(row []conflict.Cell, arg uint64, keeps bool) []conflict.Cell {
	d := dice(arg)
	row = slices.Clone(row)
	if !t.Merged {
		row[1] = t.Columns[1].value(nil, &d)
		if !keeps {
			row[2] = t.Columns[2].value(nil, &d)
		}
		return row
	}
	for range 1 + d.roll(2) {
		i := 1 + d.roll(len(t.Columns)-1)
		row[i] = t.Columns[i].value(row[i].Data, &d)
	}
	return row
}

// Added is by how much an edit of the row raised its counter, if it has one.
func (t *Table) Added(before, after []conflict.Cell) int64 {
	if t.Columns[1].Rule != conflict.Delta {
		return 0
	}
	return int64(binary.BigEndian.Uint64(after[1].Data)) - int64(binary.BigEndian.Uint64(before[1].Data))
}

func (c *Column) value(old []byte, d *dice) conflict.Cell {
	switch {
	case c.Rule == conflict.Delta:
		n := int64(d.roll(9) - 4)
		if old != nil {
			n += int64(binary.BigEndian.Uint64(old))
		}
		return conflict.Cell{Data: binary.BigEndian.AppendUint64(nil, uint64(n))}
	case c.OID == 23:
		return conflict.Cell{Data: binary.BigEndian.AppendUint32(nil, uint32(d.roll(1<<30)))}
	case c.Rule == conflict.TextMerge:
		return conflict.Cell{Data: editText(old, d)}
	case c.Rule == conflict.Set:
		return conflict.Cell{Data: editArray(old, d)}
	case c.Rule == conflict.JSONMerge:
		return conflict.Cell{Data: editJSON(old, d)}
	}
	return conflict.Cell{Data: fmt.Appendf(nil, "%x", d.roll(1<<40))}
}

func editText(text []byte, d *dice) []byte {
	from := d.roll(len(text) + 1)
	to := min(len(text), from+d.roll(3))
	var typed []byte
	for range d.roll(3) {
		typed = append(typed, "abcdefghijklmnopqrstuvwxyz"[d.roll(26)])
	}
	return slices.Concat(text[:from], typed, text[to:])
}

// editArray edits an int4[] in array_send's format, of one dimension without NULLs.
func editArray(b []byte, d *dice) []byte {
	const head, element = 20, 8
	var elements [][]byte
	for i := head; i+element <= len(b); i += element {
		elements = append(elements, b[i:i+element])
	}
	from := d.roll(len(elements) + 1)
	to := min(len(elements), from+d.roll(2))
	var added [][]byte
	for range d.roll(3) {
		added = append(added, binary.BigEndian.AppendUint32([]byte{0, 0, 0, 4}, uint32(d.roll(6))))
	}
	elements = slices.Concat(elements[:from], added, elements[to:])
	if len(elements) == 0 {
		return []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 23}
	}
	out := []byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 23}
	out = binary.BigEndian.AppendUint32(out, uint32(len(elements)))
	out = binary.BigEndian.AppendUint32(out, 1)
	return append(out, slices.Concat(elements...)...)
}

// editJSON edits a jsonb object in jsonb_send's format.
func editJSON(b []byte, d *dice) []byte {
	doc := map[string]any{}
	if len(b) > 0 {
		// What Fresh and the merge have written is an object.
		_ = json.Unmarshal(b[1:], &doc)
	}
	at := doc
	if d.roll(2) == 0 {
		inner, ok := doc["in"].(map[string]any)
		if !ok {
			inner = map[string]any{}
			doc["in"] = inner
		}
		at = inner
	}
	k := string("abc"[d.roll(3)])
	if d.roll(4) == 0 {
		delete(at, k)
	} else {
		at[k] = float64(d.roll(1 << 20))
	}
	return appendJSON([]byte{1}, doc)
}

// appendJSON writes a document as jsonb_out does: keys by length, then by bytes.
func appendJSON(b []byte, v any) []byte {
	m, ok := v.(map[string]any)
	if !ok {
		return fmt.Appendf(b, "%.0f", v)
	}
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	sort.Slice(keys, func(i, j int) bool {
		return len(keys[i]) < len(keys[j]) || len(keys[i]) == len(keys[j]) && keys[i] < keys[j]
	})
	b = append(b, '{')
	for i, k := range keys {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = appendJSON(fmt.Appendf(b, "%q: ", k), m[k])
	}
	return append(b, '}')
}
