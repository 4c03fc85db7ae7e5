package conflict

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/big"
	"slices"
	"strings"
)

// joined is the function of a unit: both values, one behind the other.
func joined(earlier, later Candidate) ([]Cell, error) {
	var cells []Cell
	for i := range earlier.Cells {
		cells = append(cells, Cell{Data: slices.Concat(earlier.Cells[i].Data, later.Cells[i].Data)})
	}
	return cells, nil
}

func (w *world) blob(n int) []byte {
	b := make([]byte, n)
	w.r.Read(b)
	return b
}

func numeric(text string) []byte {
	if text == "NaN" {
		return decimal{special: numericNaN}.encode()
	}
	scale := 0
	if i := strings.IndexByte(text, '.'); i >= 0 {
		scale = len(text) - i - 1
		text = text[:i] + text[i+1:]
	}
	coef, ok := new(big.Int).SetString(text, 10)
	if !ok {
		panic(text)
	}
	return decimal{coef: coef, scale: scale}.encode()
}

func array(element uint32, values ...[]byte) []byte {
	a := alphabet{typ: Array, element: element, typed: true}
	var elements []int32
	for _, v := range values {
		elements = append(elements, a.intern(v))
	}
	return a.join(nil, elements)
}

func (w *world) randomJSON(depth int) string {
	switch n := w.r.Intn(8); {
	case n < 3 && depth < 3:
		keys := []string{"a", "b", "c", "dd", `e"`, "ée", ""}
		slices.SortFunc(keys, compareKeys)
		var parts []string
		for _, k := range keys {
			if w.r.Intn(3) == 0 {
				parts = append(parts, string(appendString(nil, k))+": "+w.randomJSON(depth+1))
			}
		}
		return "{" + strings.Join(parts, ", ") + "}"
	case n == 3:
		return `[1, {"x": 2.50}, "]"]`
	case n == 4:
		return []string{"1.0", "1.00", "-3e2", "12345678901234567890.10"}[w.r.Intn(4)]
	case n == 5:
		return []string{`"q\"{"`, `"\\"`, `""`}[w.r.Intn(3)]
	}
	return []string{"null", "true", "0"}[w.r.Intn(3)]
}

func (w *world) editJSON(old string) string {
	if len(old) == 0 || old[0] != '{' || w.r.Intn(8) == 0 {
		if w.r.Intn(4) > 0 {
			return "{" + `"a": ` + w.randomJSON(1) + `, "b": ` + w.randomJSON(1) + "}"
		}
		return w.randomJSON(0)
	}
	d, err := parseDocument([]byte(old), false)
	if err != nil {
		panic(err)
	}
	for range 1 + w.r.Intn(2) {
		keys := []string{"a", "b", "c", "dd", `e"`}
		path := []string{keys[w.r.Intn(len(keys))]}
		for w.r.Intn(2) == 0 && len(path) < 4 {
			path = append(path, keys[w.r.Intn(len(keys))])
		}
		c := change{path: path}
		if w.r.Intn(3) > 0 {
			c.set = []byte(w.randomJSON(2))
		}
		if err := d.apply(c); err != nil {
			panic(err)
		}
	}
	return string(d.append(nil, 0))
}

// respelled changes the blanks of JSON text.
func (w *world) respelled(text string) []byte {
	switch w.r.Intn(3) {
	case 0:
		return []byte(" " + text)
	case 1:
		return []byte(strings.ReplaceAll(text, `, "`, `,"`))
	}
	return []byte(text)
}

// change gives a user's new value for a column that has that one; nil old is an insert.
func (w *world) value(p plan, old *Cell, col, id int) Cell {
	null := old == nil || old.Null
	if !w.calm && w.r.Intn(12) == 0 {
		return Cell{Null: true}
	}
	i64 := func() int64 {
		if null {
			return 0
		}
		v, err := decodeInt(p.types, old.Data)
		if err != nil {
			panic(err)
		}
		return v
	}
	switch {
	case p.rule.picks():
		return Cell{Data: w.blob(w.r.Intn(3))}
	case p.rule == Delta && p.types != Numeric:
		v := i64()
		d := int64(w.r.Intn(11) - 5)
		bound := map[Type]int64{Int2: math.MaxInt16, Int4: math.MaxInt32, Int8: math.MaxInt64}[p.types]
		if !w.calm && w.r.Intn(4) == 0 {
			d *= bound / 8
		}
		n := new(big.Int).Add(big.NewInt(v), big.NewInt(d))
		if n.CmpAbs(big.NewInt(bound)) > 0 {
			d = 0 // PostgreSQL would refuse it
		}
		if old != nil {
			w.sums[col] += d
		}
		return Cell{Data: encodeInt(p.types, wideOf(v+d))}
	case p.types == Numeric:
		if !w.calm && w.r.Intn(10) == 0 {
			return Cell{Data: numeric("NaN")}
		}
		d, err := decimal{coef: big.NewInt(0)}, error(nil)
		if !null {
			if d, err = decodeNumeric(old.Data); err != nil {
				panic(err)
			}
		}
		if d.special != 0 || w.r.Intn(6) == 0 {
			return Cell{Data: numeric([]string{"0", "1.50", "1.5", "-12345678.9", "100000", "0.0000001"}[w.r.Intn(6)])}
		}
		add, _ := decodeNumeric(numeric([]string{"1", "-1", "0.25", "10000", "-99.9999", "0.00"}[w.r.Intn(6)]))
		return Cell{Data: d.plus(add).encode()}
	case p.types == Int4 || p.types == Int8 || p.types == Date || p.types == Timestamp:
		return Cell{Data: encodeInt(map[bool]Type{true: Int4, false: Int8}[p.types == Int4 || p.types == Date], wideOf(int64(w.r.Intn(60)-30)))}
	case p.types == Float8:
		return Cell{Data: binary.BigEndian.AppendUint64(nil, math.Float64bits([]float64{math.NaN(), math.Inf(1), 0, math.Copysign(0, -1), 1.5, -2}[w.r.Intn(6)]))}
	case p.types == Float4:
		return Cell{Data: binary.BigEndian.AppendUint32(nil, math.Float32bits(float32(w.r.Intn(9)-4)/2))}
	case p.types == Bool:
		return Cell{Data: []byte{byte(w.r.Intn(2))}}
	case p.types == UUID:
		return Cell{Data: append(w.blob(2), make([]byte, 14)...)}
	case p.types == TextType && p.rule != TextMerge:
		return Cell{Data: []byte(strings.Repeat("b", w.r.Intn(5)))}
	case p.types == TextType:
		var text []rune
		if !null {
			text = []rune(string(old.Data))
		}
		for range 1 + w.r.Intn(2) {
			from := w.r.Intn(len(text) + 1)
			to := from
			if w.r.Intn(2) == 0 {
				to = min(len(text), from+w.r.Intn(4))
			}
			var typed []rune
			for range w.r.Intn(4) {
				typed = append(typed, w.nextRune)
				w.births[w.nextRune] = id
				w.nextRune++
			}
			text = slices.Replace(text, from, to, typed...)
		}
		return Cell{Data: []byte(string(text))}
	case p.rule == Set && p.types == Array:
		if !w.calm && w.r.Intn(15) == 0 { // two dimensions of one element
			return Cell{Data: []byte{0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 23, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, byte(w.r.Intn(9))}}
		}
		a := alphabet{typ: Array, element: 23, typed: true}
		var els []int32
		if !null {
			els, _ = a.split(nil, old.Data)
			if isBlock(els) {
				els = nil
			}
		}
		fresh := func() int32 {
			if n := w.r.Intn(7); n > 0 {
				return a.intern([]byte{byte(n)})
			}
			return a.intern(nil)
		}
		return Cell{Data: a.join(nil, w.splice(els, fresh))}
	case p.rule == Set:
		a := alphabet{typ: JSONB}
		var els []int32
		if !null {
			els, _ = a.split(nil, old.Data)
			if isBlock(els) {
				els = nil
			}
		}
		if !w.calm && w.r.Intn(15) == 0 {
			return Cell{Data: []byte("\x01{}")}
		}
		return Cell{Data: a.join(nil, w.splice(els, func() int32 { return a.intern([]byte(w.randomJSON(3))) }))}
	case p.types == JSONB:
		text := ""
		if !null {
			text = string(old.Data[1:])
		}
		return Cell{Data: append([]byte{1}, w.editJSON(text)...)}
	}
	text := ""
	if !null {
		text = string(appendLoose(nil, bytes.TrimSpace(old.Data), 0))
	}
	return Cell{Data: w.respelled(w.editJSON(text))}
}

func (w *world) splice(els []int32, fresh func() int32) []int32 {
	for range 1 + w.r.Intn(2) {
		from := w.r.Intn(len(els) + 1)
		to := min(len(els), from+w.r.Intn(3))
		var added []int32
		for range w.r.Intn(3) {
			added = append(added, fresh())
		}
		els = slices.Replace(slices.Clone(els), from, to, added...)
	}
	return els
}

// change gives a user's new row.
func (w *world) change(old []Cell, id int) []Cell {
	row := make([]Cell, w.rules.Width)
	for u, p := range w.plans {
		for _, col := range w.rules.Units[u].Columns {
			switch {
			case old == nil:
				row[col] = w.value(p, nil, col, id)
			case w.r.Intn(2) == 0:
				row[col] = w.value(p, &old[col], col, id)
			default:
				row[col] = old[col]
			}
		}
	}
	return row
}
