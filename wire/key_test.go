package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

func bin(b ...byte) Value { return Value{Binary, b} }

func TestKeyHash(t *testing.T) {
	h := NewKeyHasher("public", "t", []*KeyType{{Form: FormNumeric}})
	one, oneOh := bin(0, 1, 0, 0, 0, 0, 0, 0, 0, 1), bin(0, 1, 0, 0, 0, 0, 0, 2, 0, 1) // 1 and 1.00
	if h.Hash([]Value{one}, nil) != h.Hash([]Value{oneOh}, nil) {
		t.Error("numeric 1 and 1.00 are one key")
	}
	two := NewKeyHasher("public", "t", nil)
	if two.Hash([]Value{bin('a', 'b'), bin('c')}, nil) == two.Hash([]Value{bin('a'), bin('b', 'c')}, nil) {
		t.Error("the border between columns counts")
	}
	if h.Hash([]Value{one}, nil) == NewKeyHasher("public", "u", []*KeyType{{Form: FormNumeric}}).Hash([]Value{one}, nil) {
		t.Error("the table counts")
	}
}

// TestKeyHashStays: tombstones of earlier versions are in the database, by hash.
func TestKeyHashStays(t *testing.T) {
	for _, c := range []struct {
		typ  *KeyType
		v    Value
		want string
	}{
		{nil, bin(0, 0, 0, 7), "1b93e6dadb884c39f165f4278f64f7b2"},
		{&KeyType{Form: FormNumeric}, bin(0, 1, 0, 0, 0, 0, 0, 2, 0, 1), "d89d1ff0e1141229046fa3680b7b6ece"},
	} {
		k := NewKeyHasher("public", "t", []*KeyType{c.typ}).Hash([]Value{c.v}, nil)
		if got := fmt.Sprintf("%016x%016x", k.Hi, k.Lo); got != c.want {
			t.Errorf("%v of %v: %s, want %s", c.typ, c.v, got, c.want)
		}
	}
}

// TestIntervalSpan compares with arithmetic of any size.
func TestIntervalSpan(t *testing.T) {
	edges := []int64{0, 1, -1, math.MaxInt32, math.MinInt32, math.MaxInt64, math.MinInt64, 86_400_000_000, -86_400_000_000}
	pick := func() int64 {
		if i := rand.IntN(len(edges) + 1); i < len(edges) {
			return edges[i]
		}
		return int64(rand.Uint64())
	}
	for range 20000 {
		micros, days, months := pick(), int32(pick()), int32(pick())
		b := binary.BigEndian.AppendUint64(nil, uint64(micros))
		b = binary.BigEndian.AppendUint32(b, uint32(days))
		b = binary.BigEndian.AppendUint32(b, uint32(months))
		var c canonicalizer
		c.interval(b)
		want := new(big.Int).Mul(big.NewInt(int64(days)+30*int64(months)), big.NewInt(86_400_000_000))
		want.Add(want, big.NewInt(micros))
		if want.Sign() < 0 {
			want.Add(want, new(big.Int).Lsh(big.NewInt(1), 128))
		}
		if got := new(big.Int).SetBytes(c.out); got.Cmp(want) != 0 {
			t.Fatalf("%d months, %d days, %d us: %x, want %x", months, days, micros, got, want)
		}
	}
}

// byteDigests calls values equal that differ in case only.
type byteDigests struct{}

func (byteDigests) Digest(_ *KeyType, v Value) (d Digest) {
	copy(d[:], bytes.ToLower(v.Data))
	return d
}

func TestServedKeys(t *testing.T) {
	h := NewKeyHasher("public", "t", []*KeyType{{Form: FormArray, Elem: &KeyType{Form: FormServed}}})
	array := func(s string) []Value {
		return []Value{bin(append([]byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, byte(len(s))}, s...)...)}
	}
	if !h.Served() || NewKeyHasher("public", "t", []*KeyType{nil, {Form: FormArray}}).Served() {
		t.Error("served is what holds something served")
	}
	if h.Hash(array("Ab"), byteDigests{}) != h.Hash(array("aB"), byteDigests{}) || h.Hash(array("ab"), byteDigests{}) == h.Hash(array("ac"), byteDigests{}) {
		t.Error("the digester decides")
	}
	if h.Hash(array("Ab"), nil) == h.Hash(array("aB"), nil) {
		t.Error("without a digester the bytes count")
	}
}

// FuzzKeyHash: a value that is not built as its type says is hashed all the same, in bounded time.
func FuzzKeyHash(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 23, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 9})
	f.Add([]byte{0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 23})
	f.Add([]byte{0, 0, 0, 2, 0, 0, 0, 23, 0, 0, 0, 1, 9, 0, 0, 0, 25, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{2, 0, 0, 0, 1, 9, 0, 0, 0, 1, 8})
	f.Add([]byte("\x01{\"a\\\"\": [1.10, -20.0, 1e5, \"x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		data = append(make([]byte, 0, len(data)), data...)
		for form := FormBytes; form <= FormServed; form++ {
			elem := &KeyType{Form: FormJSON}
			types := []*KeyType{{Form: form, Elem: elem, Fields: []*KeyType{nil, elem}}}
			h, again := NewKeyHasher("s", "t", types), NewKeyHasher("s", "t", types)
			for _, v := range []Value{{Binary, data}, {Text, data}} {
				if h.Hash([]Value{v}, byteDigests{}) != again.Hash([]Value{v}, byteDigests{}) {
					t.Fatal("two hashes of one key")
				}
			}
		}
	})
}

func nativeKeys() map[string]struct {
	typ *KeyType
	v   Value
} {
	ints := bin(0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 23, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 9)
	return map[string]struct {
		typ *KeyType
		v   Value
	}{
		"bytes":    {nil, bin(0, 0, 0, 7)},
		"numeric":  {&KeyType{Form: FormNumeric}, bin(0, 1, 0, 0, 0, 0, 0, 2, 0, 1)},
		"float8":   {&KeyType{Form: FormFloat8}, bin(0x80, 0, 0, 0, 0, 0, 0, 0)},
		"interval": {&KeyType{Form: FormInterval}, bin(make([]byte, 16)...)},
		"padded":   {&KeyType{Form: FormPadded}, bin('a', ' ')},
		"json":     {&KeyType{Form: FormJSON}, Value{Binary, []byte("\x01{\"a\": 1.10}")}},
		"array":    {&KeyType{Form: FormArray}, ints},
	}
}

func TestKeyHashDoesNotAllocate(t *testing.T) {
	for name, c := range nativeKeys() {
		h, key := NewKeyHasher("public", "t", []*KeyType{c.typ}), []Value{c.v}
		if n := testing.AllocsPerRun(100, func() { h.Hash(key, nil) }); n > 0 {
			t.Errorf("%s: %v allocations per key", name, n)
		}
	}
}

func BenchmarkKeyHash(b *testing.B) {
	for name, c := range nativeKeys() {
		b.Run(name, func(b *testing.B) {
			h, key := NewKeyHasher("public", "t", []*KeyType{c.typ}), []Value{c.v}
			b.ReportAllocs()
			for b.Loop() {
				h.Hash(key, nil)
			}
		})
	}
}
