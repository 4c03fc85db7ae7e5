package conflict

import (
	"fmt"
	"testing"

	"github.com/pgbridge/pgbridge/origin"
)

// chain is one author's edits of a text: one character each, at a place that wanders, nobody else's seen.
func chain(tb testing.TB, rules *Rules, node string, text string, edits int, first origin.Stamp) []Logged {
	row := []Cell{{Data: []byte(text)}}
	var writes []Logged
	for i := range edits {
		at := i * 7 % len(row[0].Data)
		data := append(append(append([]byte(nil), row[0].Data[:at]...), 'a'+byte(i%26)), row[0].Data[at:]...)
		if i%3 == 2 {
			data = append(append([]byte(nil), row[0].Data[:at]...), row[0].Data[at+1:]...)
		}
		next := []Cell{{Data: data}}
		ops, err := rules.Diff(row, next)
		if err != nil {
			tb.Fatal(err)
		}
		writes = append(writes, Logged{Origin: origin.Origin{Node: node, Epoch: 1}, Seq: uint64(i + 1),
			Stamp: first + 2*origin.Stamp(i), Kind: Update, Ops: ops})
		row = next
	}
	return writes
}

func letters(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = ' ' + byte(i*31%90)
	}
	return string(b)
}

// BenchmarkText/size=n/edits=n: two authors' concurrent edits of one text.
func BenchmarkText(b *testing.B) {
	rules := &Rules{Width: 1, Units: []Unit{{Columns: []int{0}, Rule: TextMerge, Type: TextType}}}
	for _, tt := range []struct{ size, edits int }{{100, 1}, {1000, 1}, {20_000, 1}, {20_000, 100}, {20_000, 10_000}} {
		text := letters(tt.size)
		writes := append(chain(b, rules, "a", text, tt.edits, 1), chain(b, rules, "b", text, tt.edits, 2)...)
		b.Run(fmt.Sprintf("size=%d/edits=%d", tt.size, tt.edits), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := rules.Merge([]Cell{{Data: []byte(text)}}, writes); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkMerge/rule/writes=n: a small log; all writes but the first are concurrent with it.
func BenchmarkMerge(b *testing.B) {
	text := func(s string) Cell { return Cell{Data: []byte(s)} }
	for _, tt := range []struct {
		unit         Unit
		before       Cell
		first, other Cell
	}{
		{Unit{Rule: Latest}, text("a"), text("b"), text("c")},
		{Unit{Rule: Delta, Type: Int8}, Cell{Data: encodeInt(Int8, wide{0, 5})}, Cell{Data: encodeInt(Int8, wide{0, 7})}, Cell{Data: encodeInt(Int8, wide{0, 8})}},
		{Unit{Rule: Delta, Type: Numeric}, Cell{Data: numeric("5.00")}, Cell{Data: numeric("7.50")}, Cell{Data: numeric("8.25")}},
		{Unit{Rule: Max, Type: Int8}, Cell{Data: encodeInt(Int8, wide{0, 5})}, Cell{Data: encodeInt(Int8, wide{0, 7})}, Cell{Data: encodeInt(Int8, wide{0, 8})}},
		{Unit{Rule: JSONMerge, Type: JSONB}, text("\x01{\"a\": 1, \"b\": 2}"), text("\x01{\"a\": 2, \"b\": 2}"), text("\x01{\"a\": 1, \"b\": 2, \"c\": 3}")},
		{Unit{Rule: Set, Type: Array}, Cell{Data: array(23, []byte("1"), []byte("2"))}, Cell{Data: array(23, []byte("1"))}, Cell{Data: array(23, []byte("1"), []byte("2"), []byte("3"))}},
		{Unit{Rule: TextMerge, Type: TextType}, text("hello world"), text("hello, world"), text("hello world!")},
	} {
		tt.unit.Columns = []int{0}
		rules := &Rules{Width: 1, Units: []Unit{tt.unit}}
		var writes []Logged
		for i, after := range []Cell{tt.first, tt.other, tt.other} {
			ops, err := rules.Diff([]Cell{tt.before}, []Cell{after})
			if err != nil {
				b.Fatal(err)
			}
			writes = append(writes, Logged{Origin: origin.Origin{Node: string(rune('a' + i)), Epoch: 1}, Seq: 1, Stamp: origin.Stamp(i), Kind: Update, Ops: ops})
		}
		for n := 1; n <= 3; n++ {
			b.Run(fmt.Sprintf("%s-%s/writes=%d", tt.unit.Rule, tt.unit.Type, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := rules.Merge([]Cell{tt.before}, writes[:n]); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkDiff/what: one write's ops.
func BenchmarkDiff(b *testing.B) {
	rules := &Rules{Width: 1, Units: []Unit{{Columns: []int{0}, Rule: TextMerge, Type: TextType}}}
	text := letters(20_000)
	for name, after := range map[string]string{"one-character": text[:9000] + "x" + text[9000:], "all-else": letters(9_000)[1:] + "y"} {
		b.Run("20kB/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := rules.Diff([]Cell{{Data: []byte(text)}}, []Cell{{Data: []byte(after)}}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
