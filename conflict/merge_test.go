package conflict

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"math/rand"
	"slices"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/origin"
)

// step is one write of a table test. A step has seen those that it names, and what they have seen.
type step struct {
	node  string
	stamp int
	sees  []int
	after string // "-" deletes, "~" is NULL
	ins   bool
}

// example runs steps on a row of one column: each author's row is the merge of what he has seen.
func example(t *testing.T, rules *Rules, code func(string) Cell, start string, steps []step) Merged {
	t.Helper()
	row := func(s string) []Cell {
		if s == "-" {
			return nil
		}
		if s == "~" {
			return []Cell{{Null: true}}
		}
		return []Cell{code(s)}
	}
	base := row(start)
	var writes []Logged
	seqs := map[string]uint64{}
	var seen [][]int
	for i, st := range steps {
		seqs[st.node]++
		o := origin.Origin{Node: st.node, Epoch: 1}
		w := Logged{Origin: o, Seq: seqs[st.node], Stamp: origin.Stamp(st.stamp), Kind: Update}
		var has []int
		for j := range i {
			if slices.ContainsFunc(st.sees, func(k int) bool { return k == j || slices.Contains(seen[k], j) }) || writes[j].Origin == o {
				has = append(has, j)
			}
		}
		seen = append(seen, has)
		var log []Logged
		for _, j := range has {
			log = append(log, writes[j])
			if writes[j].Origin != o {
				w.Up.Advance(origin.Entry{Origin: writes[j].Origin, Seq: writes[j].Seq, Stamp: writes[j].Stamp})
			}
		}
		m, err := rules.Merge(base, log)
		if err != nil {
			t.Fatal(err)
		}
		after := row(st.after)
		switch {
		case after == nil:
			w.Kind = Delete
		case m.Row == nil:
			w.Kind = Insert
		}
		if after != nil {
			if w.Ops, err = rules.Diff(m.Row, after); err != nil {
				t.Fatal(err)
			}
		}
		writes = append(writes, w)
		if m, err = rules.Merge(base, append(log, w)); err != nil || !sameRow(m.Row, after) {
			t.Fatalf("step %d: its author has %v, wrote %v: %v", i, m.Row, after, err)
		}
	}
	m, err := rules.Merge(base, writes)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewSource(1))
	for range 5 {
		shuffled := slices.Clone(writes)
		r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if n, err := rules.Merge(base, shuffled); err != nil || !sameRow(n.Row, m.Row) {
			t.Fatalf("another order gives %v, not %v: %v", n.Row, m.Row, err)
		}
	}
	return m
}

func asText(s string) Cell    { return Cell{Data: []byte(s)} }
func asJSONB(s string) Cell   { return Cell{Data: append([]byte{1}, s...)} }
func asNumeric(s string) Cell { return Cell{Data: numeric(s)} }
func asInt4(s string) Cell {
	n, _ := new(big.Int).SetString(s, 10)
	return Cell{Data: encodeInt(Int4, wideOf(n.Int64()))}
}
func asArray(s string) Cell {
	var values [][]byte
	for _, v := range strings.Fields(s) {
		if v == "NULL" {
			values = append(values, nil)
		} else {
			values = append(values, []byte(v))
		}
	}
	return Cell{Data: array(25, values...)}
}

func TestRules(t *testing.T) {
	now, later := 10, 20
	both := func(x, y string) []step { return []step{{"a", now, nil, x, false}, {"b", later, nil, y, false}} }
	for _, tt := range []struct {
		name   string
		rule   Rule
		typ    Type
		code   func(string) Cell
		start  string
		steps  []step
		want   string
		winner int
	}{
		{"the later value", Latest, Opaque, asText, "x", both("1", "2"), "2", 1},
		{"the earlier value", First, Opaque, asText, "x", both("1", "2"), "1", 0},
		{"first is about concurrent writes only", First, Opaque, asText, "x", []step{{"a", now, nil, "1", false}, {"b", later, []int{0}, "2", false}}, "2", 1},
		{"the preferred node's value", Priority, Opaque, asText, "x", []step{{"c", now, nil, "1", false}, {"a", later, nil, "2", false}}, "1", 0},
		{"the home's value", Home, Opaque, asText, "x", []step{{"c", now, nil, "c1", false}, {"a", later, nil, "c2", false}}, "c1", 0},
		{"nobody is at home", Home, Opaque, asText, "x", both("c1", "c2"), "c2", 1},
		{"both are at home", Home, Opaque, asText, "x", []step{{"a", later, nil, "a1", false}, {"b", now, nil, "b1", false}}, "a1", 0},
		{"a later write that has seen the home's", Home, Opaque, asText, "x", []step{{"c", now, nil, "c1", false}, {"a", later, []int{0}, "c2", false}}, "c2", 1},
		{"unnamed nodes come last, the later first", Priority, Opaque, asText, "x", both("1", "2"), "2", 1},
		{"increments add up", Delta, Int4, asInt4, "10", both("11", "8"), "9", -1},
		{"an increment alone is its author's", Delta, Int4, asInt4, "10", both("11", "11")[:1], "11", 0},
		{"int4 stops at its bound", Delta, Int4, asInt4, "2147483640", both("2147483647", "2147483646"), "2147483647", -1},
		{"what is seen at the bound counts from there", Delta, Int4, asInt4, "2147483640",
			append(both("2147483647", "2147483646"), step{"a", 30, []int{1}, "2147483600", false}), "2147483600", 2},
		{"NULL takes what is concurrent with it", Delta, Int4, asInt4, "10", both("11", "~"), "~", 1},
		{"assigned from NULL, then counted", Delta, Int4, asInt4, "~", append(both("5", "7"), step{"b", 30, nil, "8", false}), "8", 2},
		{"numerics keep the widest scale", Delta, Numeric, asNumeric, "1.0", both("1.25", "3"), "3.25", -1},
		{"a numeric keeps its author's scale", Delta, Numeric, asNumeric, "1.25", both("2.250", "0")[:1], "2.250", 0},
		{"not a number stays", Delta, Numeric, asNumeric, "1", both("NaN", "2"), "NaN", -1},
		{"the greatest", Max, Int4, asInt4, "5", both("9", "7"), "9", 0},
		{"the least", Min, Int4, asInt4, "5", both("1", "3"), "1", 0},
		{"a reset, and a raise that it has not seen", Max, Int4, asInt4, "5", both("9", "2"), "9", 0},
		{"a reset of what was seen", Max, Int4, asInt4, "5", []step{{"a", now, nil, "9", false}, {"b", later, []int{0}, "2", false}}, "2", 1},
		{"numerics by value", Max, Numeric, asNumeric, "9", both("10.5", "10.25"), "10.5", 0},
		{"keys merge", JSONMerge, JSONB, asJSONB, `{"a": 1, "b": {"x": 1.0}}`, both(`{"a": 2, "b": {"x": 1.0}}`, `{"a": 1, "b": {"x": 1.0, "y": 2}}`), `{"a": 2, "b": {"x": 1.0, "y": 2}}`, -1},
		{"removed and set", JSONMerge, JSONB, asJSONB, `{"a": 1, "b": 2}`, both(`{"b": 2}`, `{"a": 1, "b": 3}`), `{"b": 3}`, -1},
		{"one key: the later", JSONMerge, JSONB, asJSONB, `{"a": 1}`, both(`{"a": 2}`, `{"a": 3}`), `{"a": 3}`, 1},
		{"a path through a number makes an object", JSONMerge, JSONB, asJSONB, `{"a": {"b": 1}}`, both(`{"a": 7}`, `{"a": {"b": 2}}`), `{"a": {"b": 2}}`, 1},
		{"json keeps its only author's spelling", JSONMerge, JSON, asText, `{"a":1}`, both(`{ "b":2,"a":1}`, "")[:1], `{ "b":2,"a":1}`, 0},
		{"merged json is spelled like jsonb", JSONMerge, JSON, asText, `{"a":1}`, both(`{"a":1,"b":2}`, `{"a":3}`), `{"a": 3, "b": 2}`, -1},
		{"letters merge", TextMerge, TextType, asText, "hello world", both("hello, world", "hello world!"), "hello, world!", -1},
		{"runs do not mix", TextMerge, TextType, asText, "", both("abc", "xyz"), "abcxyz", -1},
		{"a word replaced, another inserted in it", TextMerge, TextType, asText, "one two", both("1 two", "one big two"), "1 big two", -1},
		{"delete and insert", TextMerge, TextType, asText, "abcd", both("ad", "abXcd"), "aXd", -1},
		{"assigned twice: both stay", TextMerge, TextType, asText, "~", both("one.", "two."), "two.one.", -1},
		{"NULL leaves what it has not seen", TextMerge, TextType, asText, "ab", both("~", "abc"), "c", -1},
		{"elements added and removed", Set, Array, asArray, "1 2 3", both("1 3", "1 2 3 4"), "1 3 4", -1},
		{"the same element twice shows once", Set, Array, asArray, "1", both("1 2", "1 2 3"), "1 2 3", 1},
		{"removed with its twin", Set, Array, asArray, "1", append(both("1 2", "1 2"), step{"c", 30, []int{0, 1}, "1", false}), "1", 2},
		{"added again beside a remove", Set, Array, asArray, "1", []step{{"a", 10, nil, "1 2", false}, {"b", 20, []int{0}, "1", false}, {"c", 15, nil, "1 2", false}}, "1 2", -1},
		{"an author's own twins stay", Set, Array, asArray, "1", both("1 NULL NULL", "0 1"), "0 1 NULL NULL", -1},
		{"elements of a json array", Set, JSONB, asJSONB, `["a", {"b": 1}]`, both(`[{"b": 1}]`, `["a", {"b": 1}, 2.50]`), `[{"b": 1}, 2.50]`, -1},
	} {
		t.Run(tt.rule.String()+"/"+tt.name, func(t *testing.T) {
			rules := &Rules{Width: 1, Units: []Unit{{Columns: []int{0}, Rule: tt.rule, Type: tt.typ}}, Priority: []string{"c"},
				Home: func(node string, c Cell) bool { return strings.HasPrefix(string(c.Data), node) }}
			if err := rules.Validate(); err != nil {
				t.Fatal(err)
			}
			m := example(t, rules, tt.code, tt.start, tt.steps)
			want := Cell{Null: tt.want == "~"}
			if !want.Null {
				want = tt.code(tt.want)
			}
			if m.Row == nil || !m.Row[0].Equal(want) {
				t.Fatalf("got %v, want %v", m.Row, want)
			}
			if m.Winner[0] != tt.winner {
				t.Errorf("winner is %d, want %d", m.Winner[0], tt.winner)
			}
		})
	}
}

func TestDeletes(t *testing.T) {
	for _, tt := range []struct {
		name    string
		start   string
		steps   []step
		want    [3]string // by Deletes: the later one, the delete, the update wins
		deleted [3]int
	}{
		{"delete, then a concurrent update", "x", []step{{"a", 10, nil, "-", false}, {"b", 20, nil, "y", false}}, [3]string{"y", "-", "y"}, [3]int{-1, 0, -1}},
		{"update, then a concurrent delete", "x", []step{{"a", 10, nil, "y", false}, {"b", 20, nil, "-", false}}, [3]string{"-", "-", "y"}, [3]int{1, 1, -1}},
		{"an update that was seen does not save the row", "x", []step{{"a", 10, nil, "y", false}, {"b", 20, []int{0}, "-", false}}, [3]string{"-", "-", "-"}, [3]int{1, 1, 1}},
		{"two deletes", "x", []step{{"a", 10, nil, "-", false}, {"b", 20, nil, "-", false}}, [3]string{"-", "-", "-"}, [3]int{1, 1, 1}},
		{"inserted again", "x", []step{{"a", 10, nil, "-", false}, {"b", 20, []int{0}, "z", false}}, [3]string{"z", "z", "z"}, [3]int{-1, -1, -1}},
		{"inserted twice", "-", []step{{"a", 10, nil, "p", false}, {"b", 20, nil, "q", false}}, [3]string{"q", "q", "q"}, [3]int{-1, -1, -1}},
	} {
		for d := range tt.want {
			rules := &Rules{Width: 1, Units: []Unit{{Columns: []int{0}, Rule: Latest, Type: Opaque}}, Deletes: Deletes(d)}
			m := example(t, rules, asText, tt.start, tt.steps)
			got := "-"
			if m.Row != nil {
				got = string(m.Row[0].Data)
			}
			if got != tt.want[d] || m.Deleted != tt.deleted[d] {
				t.Errorf("%s, %s: %s by %d, want %s by %d", tt.name, rules.Deletes, got, m.Deleted, tt.want[d], tt.deleted[d])
			}
		}
	}
}

// TestDeclaredIsNotSeen: b's row did not have a's letters yet when b typed, though they were announced.
func TestDeclaredIsNotSeen(t *testing.T) {
	rules := &Rules{Width: 1, Units: []Unit{{Columns: []int{0}, Rule: TextMerge, Type: TextType}}}
	write := func(node string, stamp int, up origin.Vector, before, after string) Logged {
		ops, err := rules.Diff([]Cell{asText(before)}, []Cell{asText(after)})
		if err != nil {
			t.Fatal(err)
		}
		return Logged{Origin: origin.Origin{Node: node, Epoch: 1}, Seq: 1, Stamp: origin.Stamp(stamp), Up: up, Kind: Update, Ops: ops}
	}
	a := write("a", 10, nil, "world", "hello world")
	b := write("b", 20, origin.Vector{{Origin: a.Origin, Seq: 1, Stamp: 10}}, "world", "worlds")
	m, err := rules.Merge([]Cell{asText("world")}, []Logged{a, b})
	if err != nil || string(m.Row[0].Data) != "hello worlds" {
		t.Fatalf("got %v, %v", m.Row, err)
	}
}

// TestManyDeclaredAreNotSeen: so many of a's writes were announced on b, which catches up, before its row had more than the first few.
func TestManyDeclaredAreNotSeen(t *testing.T) {
	rules := &Rules{Width: 1, Units: []Unit{{Columns: []int{0}, Rule: TextMerge, Type: TextType}}}
	const many = guesses - 1
	for _, had := range []int{0, 1, many / 2, many - 1, many} {
		text := []string{"world"}
		var writes []Logged
		for i := range many {
			text = append(text, string(rune(0x4e00+i))+text[i])
			writes = append(writes, Logged{Origin: origin.Origin{Node: "a", Epoch: 1}, Seq: uint64(i + 1), Stamp: origin.Stamp(i + 1), Kind: Update})
		}
		diff := func(w *Logged, before, after string) {
			var err error
			if w.Ops, err = rules.Diff([]Cell{asText(before)}, []Cell{asText(after)}); err != nil {
				t.Fatal(err)
			}
		}
		for i := range writes {
			diff(&writes[i], text[i], text[i+1])
		}
		b := Logged{Origin: origin.Origin{Node: "b", Epoch: 1}, Seq: 1, Stamp: many + 1, Kind: Update,
			Up: origin.Vector{{Origin: writes[0].Origin, Seq: many, Stamp: many}}}
		diff(&b, text[had], strings.Replace(text[had], "ld", "lds", 1)[len(text[had])-len("world"):])
		m, err := rules.Merge([]Cell{asText("world")}, append(writes, b))
		if want := text[many][:len(text[many])-len(text[had])] + "worlds"; err != nil || string(m.Row[0].Data) != want {
			t.Errorf("b had %d: got %s, want %s, %v", had, m.Row[0].Data, want, err)
		}
	}
}

// TestDeclaredByTwoAreNotSeen: of two nodes more was announced on c, which was cut off, than all their writes could be left out one by one. c
// applies what comes together at once, so that its row has all that was announced of one, and of the other what it had before.
func TestDeclaredByTwoAreNotSeen(t *testing.T) {
	rules := &Rules{Width: 1, Units: []Unit{{Columns: []int{0}, Rule: TextMerge, Type: TextType}}}
	const many = 100
	nodes := []origin.Origin{{Node: "a", Epoch: 1}, {Node: "b", Epoch: 1}}
	for _, had := range [][2]int{{many, many}, {many, 20}, {10, many}, {10, 20}, {many - 1, many - 2}} {
		var writes []Logged
		diff := func(w Logged, before, after string) {
			var err error
			if w.Ops, err = rules.Diff([]Cell{asText(before)}, []Cell{asText(after)}); err != nil {
				t.Fatal(err)
			}
			writes = append(writes, w)
		}
		typed := func(node, n int) string { // what is in front of the text, and behind it
			text := ""
			for i := range n {
				text += string(rune(0x4e00 + 0x1000*node + i))
			}
			return text
		}
		for i := range many {
			w := Logged{Origin: nodes[0], Seq: uint64(i + 1), Stamp: origin.Stamp(2 * i), Kind: Update}
			diff(w, typed(0, i)+"world", typed(0, i+1)+"world")
			w.Origin, w.Stamp = nodes[1], w.Stamp+1
			diff(w, "world"+typed(1, i), "world"+typed(1, i+1))
		}
		c := Logged{Origin: origin.Origin{Node: "c", Epoch: 1}, Seq: 1, Stamp: 10 * many, Kind: Update}
		for i, o := range nodes {
			c.Up.Advance(origin.Entry{Origin: o, Seq: many, Stamp: 2 * many})
			c.Low.Advance(origin.Entry{Origin: o, Seq: 10 * uint64(1+i), Stamp: 2 * many})
		}
		diff(c, typed(0, had[0])+"world"+typed(1, had[1]), typed(0, had[0])+"wor|ld"+typed(1, had[1]))
		m, err := rules.Merge([]Cell{asText("world")}, writes)
		if want := typed(0, many) + "wor|ld" + typed(1, many); err != nil || string(m.Row[0].Data) != want {
			t.Errorf("c had %v: got %s, want %s, %v", had, m.Row[0].Data, want, err)
		}
	}
}

func TestValidate(t *testing.T) {
	for want, r := range map[string]Rules{
		"":                      {Width: 3, Units: []Unit{{Columns: []int{2, 0}, Rule: Latest, Type: Opaque}, {Columns: []int{1}, Rule: Delta, Type: Int4}}},
		"belongs to no unit":    {Width: 2, Units: []Unit{{Columns: []int{0}, Rule: Latest, Type: Opaque}}},
		"another unit too":      {Width: 1, Units: []Unit{{Columns: []int{0}, Rule: Latest, Type: Opaque}, {Columns: []int{0}, Rule: First, Type: Opaque}}},
		"is not one of 1":       {Width: 1, Units: []Unit{{Columns: []int{1}, Rule: Latest, Type: Opaque}}},
		"takes one column":      {Width: 2, Units: []Unit{{Columns: []int{0, 1}, Rule: Delta, Type: Int4}}},
		"order of adding":       {Width: 1, Units: []Unit{{Columns: []int{0}, Rule: Delta, Type: Float8}}},
		"does not work on text": {Width: 1, Units: []Unit{{Columns: []int{0}, Rule: JSONMerge, Type: TextType}}},
		"no conflict rule":      {Width: 1, Units: []Unit{{Columns: []int{0}, Rule: 99, Type: Opaque}}},
		"for deletes":           {Width: 1, Units: []Unit{{Columns: []int{0}, Rule: Latest, Type: Opaque}}, Deletes: 9},
	} {
		err := r.Validate()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestNames(t *testing.T) {
	for r := Latest; r <= TextMerge; r++ {
		if got, err := RuleByName(r.String()); got != r || err != nil {
			t.Errorf("%s is %v, %v", r, got, err)
		}
	}
	for d := DeleteLatest; d <= UpdateWins; d++ {
		if got, err := DeletesByName(d.String()); got != d || err != nil {
			t.Errorf("%s is %v, %v", d, got, err)
		}
	}
	if _, err := RuleByName("arrival"); err == nil {
		t.Error("an arrival-order rule must not exist")
	}
}

func TestNumericFormat(t *testing.T) {
	for text, want := range map[string][]uint16{
		"0":          {0, 0, 0, 0},
		"0.00":       {0, 0, 0, 2},
		"1":          {1, 0, 0, 0, 1},
		"-12345.678": {3, 1, numericNegative, 3, 1, 2345, 6780},
		"0.0001":     {1, 0xFFFF, 0, 4, 1},
		"0.00001":    {1, 0xFFFE, 0, 5, 1000},
		"100000000":  {1, 2, 0, 0, 1},
		"NaN":        {0, 0, numericNaN, 0},
	} {
		var b []byte
		for _, v := range want {
			b = binary.BigEndian.AppendUint16(b, v)
		}
		if got := numeric(text); !slices.Equal(got, b) {
			t.Errorf("%s is %x, want %x", text, got, b)
		}
		if d, err := decodeNumeric(b); err != nil || !slices.Equal(d.encode(), b) {
			t.Errorf("%s comes back as %x: %v", text, d.encode(), err)
		}
	}
	r := rand.New(rand.NewSource(3))
	for range 2000 {
		digits := fmt.Sprintf("%d", r.Int63n(1<<uint(1+r.Intn(62))))
		digits += strings.Repeat("0", r.Intn(6)) + strings.Repeat("7", r.Intn(30))
		text := digits + "." + strings.Repeat("0", r.Intn(9)) + "5"
		d, err := decodeNumeric(numeric(text))
		if err != nil {
			t.Fatal(err)
		}
		if got := new(big.Rat).SetFrac(d.coef, power(d.scale)); got.Cmp(ratOf(text)) != 0 {
			t.Fatalf("%s comes back as %s", text, got)
		}
	}
}

func ratOf(text string) *big.Rat {
	r, _ := new(big.Rat).SetString(text)
	return r
}

func TestWide(t *testing.T) {
	r := rand.New(rand.NewSource(4))
	lo, hi := big.NewInt(-1<<63), big.NewInt(1<<63-1)
	for range 5000 {
		sum, want := wide{}, new(big.Int)
		for range r.Intn(5) {
			v := int64(r.Uint64()) >> uint(r.Intn(64))
			if r.Intn(2) == 0 {
				sum = sum.add(wideOf(v))
				want.Add(want, big.NewInt(v))
			} else {
				sum = sum.add(wideOf(v).neg())
				want.Sub(want, big.NewInt(v))
			}
		}
		if want.Cmp(lo) < 0 {
			want = lo
		} else if want.Cmp(hi) > 0 {
			want = hi
		}
		if got := sum.clamp(-1<<63, 1<<63-1); got != want.Int64() {
			t.Fatalf("got %d, want %s", got, want)
		}
	}
}

// TestScripts: the edit script of two sequences makes one into the other, and is short where they are alike.
func TestScripts(t *testing.T) {
	r := rand.New(rand.NewSource(5))
	for range 5000 {
		a := make([]int32, r.Intn(30))
		for i := range a {
			a[i] = int32(r.Intn(4))
		}
		b := slices.Clone(a)
		for range r.Intn(6) {
			from := r.Intn(len(b) + 1)
			to := min(len(b), from+r.Intn(3))
			b = slices.Replace(b, from, to, make([]int32, r.Intn(3))...)
		}
		var got []int32
		at := 0
		for _, h := range compareSequences(a, b) {
			got = append(append(got, a[at:at+h.keep]...), h.insert...)
			at += h.keep
			if !slices.Equal(a[at:at+len(h.remove)], h.remove) {
				t.Fatalf("%v to %v removes %v at %d", a, b, h.remove, at)
			}
			at += len(h.remove)
		}
		if got = append(got, a[at:]...); !slices.Equal(got, b) {
			t.Fatalf("%v to %v gives %v", a, b, got)
		}
	}
}

func TestUnknownStampsAreRefused(t *testing.T) {
	rules := &Rules{Width: 1, Units: []Unit{{Columns: []int{0}, Rule: Latest, Type: Opaque}}}
	a, b := origin.Origin{Node: "a", Epoch: 1}, origin.Origin{Node: "b", Epoch: 1}
	for name, log := range map[string][]Logged{
		"falling":        {{Origin: a, Seq: 1, Stamp: 2}, {Origin: a, Seq: 2, Stamp: 1}},
		"twice":          {{Origin: a, Seq: 1, Stamp: 2}, {Origin: a, Seq: 1, Stamp: 2}},
		"below the seen": {{Origin: a, Seq: 1, Stamp: 5}, {Origin: b, Seq: 1, Stamp: 4, Up: origin.Vector{{Origin: a, Seq: 1, Stamp: 5}}}},
	} {
		if _, err := rules.Merge(nil, log); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestCorruptOps(t *testing.T) {
	rules := &Rules{Width: 1, Units: []Unit{{Columns: []int{0}, Rule: TextMerge, Type: TextType}}}
	for _, op := range []Op{{1}, {9, 's'}, {1, 'p', 0, 0}, {1, 's', 1}, append(newOp(opScript, 0).state(0).state(0), 0, 200, 200)} {
		w := Logged{Origin: origin.Origin{Node: "a", Epoch: 1}, Seq: 1, Kind: Update, Ops: []Op{op}}
		if _, err := rules.Merge([]Cell{asText("abc")}, []Logged{w}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%x: %v", []byte(op), err)
		}
	}
}

// FuzzMerge: ops from outside give an error or a row, never a panic.
func FuzzMerge(f *testing.F) {
	units := []Unit{{Rule: Latest}, {Rule: Delta, Type: Int4}, {Rule: Delta, Type: Numeric}, {Rule: Max, Type: Numeric}, {Rule: Min, Type: Float8},
		{Rule: Set, Type: Array}, {Rule: Set, Type: JSONB}, {Rule: JSONMerge, Type: JSONB}, {Rule: JSONMerge, Type: JSON}, {Rule: TextMerge, Type: TextType}}
	for seed := range int64(200) {
		w := newWorld(seed, faults{})
		if err := w.run(); err != nil {
			f.Fatal(err)
		}
		for _, d := range w.writes {
			for u, op := range d.Ops {
				i := slices.IndexFunc(units, func(x Unit) bool { return x.Rule == w.rules.Units[u].Rule && x.Type == w.rules.Units[u].Type })
				if len(op) > 0 && i >= 0 && seed%10 == int64(i) {
					f.Add(byte(i), d.from != nil, []byte(op), []byte(op))
				}
			}
		}
	}
	starts := []string{"x", "\x00\x00\x00\x01", string(numeric("1.5")), string(numeric("-2")), "\x00\x00\x00\x00\x00\x00\x00\x00",
		string(array(23, []byte{1}, nil, []byte{2})), "\x01[1, 2]", "\x01{\"a\": 1}", `{"a":1}`, "abc"}
	f.Fuzz(func(t *testing.T, unit byte, row bool, first, second []byte) {
		u := units[int(unit)%len(units)]
		u.Columns = []int{0}
		rules := &Rules{Width: 1, Units: []Unit{u}}
		var base []Cell
		if row {
			base = []Cell{asText(starts[int(unit)%len(units)])}
		}
		var writes []Logged
		for i, op := range [][]byte{first, second, first} {
			writes = append(writes, Logged{Origin: origin.Origin{Node: string(rune('a' + i%2)), Epoch: 1}, Seq: uint64(1 + i/2), Stamp: origin.Stamp(i), Kind: Update, Ops: []Op{op}})
		}
		m, err := rules.Merge(base, writes)
		if err != nil {
			return
		}
		slices.Reverse(writes)
		if n, err := rules.Merge(base, writes); err != nil || !sameRow(m.Row, n.Row) {
			t.Fatalf("%v in one order, %v in the other: %v", m.Row, n.Row, err)
		}
	})
}

// FuzzDiff: whatever a column holds, a write's op makes its author's value of it, or is refused.
func FuzzDiff(f *testing.F) {
	f.Add(byte(Set), byte(Array), array(23, []byte{1}), array(23, []byte{2}, nil))
	f.Add(byte(JSONMerge), byte(JSONB), []byte("\x01{\"a\": 1}"), []byte("\x01{\"a\": [1, {}], \"b\": null}"))
	f.Add(byte(JSONMerge), byte(JSON), []byte(`{"a":1,"a":2}`), []byte(` {"\ud800":"\u00e9"}`))
	f.Add(byte(Delta), byte(Numeric), numeric("1.50"), numeric("-2"))
	f.Add(byte(TextMerge), byte(TextType), []byte("abc"), []byte("ab\xffc"))
	f.Add(byte(Max), byte(Float8), []byte("12345678"), []byte("87654321"))
	f.Fuzz(func(t *testing.T, rule, typ byte, before, after []byte) {
		u := Unit{Columns: []int{0}, Rule: Rule(rule), Type: Type(typ), Call: joined}
		rules := &Rules{Width: 1, Units: []Unit{u}}
		if rules.Validate() != nil {
			return
		}
		ops, err := rules.Diff([]Cell{{Data: before}}, []Cell{{Data: after}})
		if err != nil || ops[0] == nil {
			return
		}
		w := Logged{Origin: origin.Origin{Node: "a", Epoch: 1}, Seq: 1, Kind: Update, Ops: ops}
		m, err := rules.Merge([]Cell{{Data: before}}, []Logged{w})
		if err != nil {
			t.Fatalf("%q to %q: %v", before, after, err)
		}
		if u.Type == Array || u.Type == Numeric || u.Type == JSONB || u.Type == JSON && !isObject(after) {
			return // only the server's own spelling comes back byte for byte
		}
		if !m.Row[0].Equal(Cell{Data: after}) {
			t.Fatalf("%q to %q gives %q", before, after, m.Row[0].Data)
		}
	})
}
