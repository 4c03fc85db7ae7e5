package conflict

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"math/bits"
	"strings"
)

// wide is a 128-bit integer: sums of 64-bit differences never leave it.
type wide struct {
	hi int64
	lo uint64
}

func wideOf(v int64) wide { return wide{v >> 63, uint64(v)} }

func (w wide) add(v wide) wide {
	lo, carry := bits.Add64(w.lo, v.lo, 0)
	return wide{w.hi + v.hi + int64(carry), lo}
}

func (w wide) neg() wide { return wide{^w.hi, ^w.lo}.add(wide{0, 1}) }

// clamp gives the nearest value between lo and hi.
func (w wide) clamp(lo, hi int64) int64 {
	switch {
	case w.hi < 0 && (w.hi < -1 || int64(w.lo) >= 0 || int64(w.lo) < lo):
		return lo
	case w.hi >= 0 && (w.hi > 0 || w.lo > uint64(hi)):
		return hi
	}
	return int64(w.lo)
}

// decodeInt reads any of the types that are an integer inside.
func decodeInt(t Type, b []byte) (int64, error) {
	switch {
	case t == Int2 && len(b) == 2:
		return int64(int16(binary.BigEndian.Uint16(b))), nil
	case (t == Int4 || t == Date) && len(b) == 4:
		return int64(int32(binary.BigEndian.Uint32(b))), nil
	case (t == Int8 || t == Timestamp) && len(b) == 8:
		return int64(binary.BigEndian.Uint64(b)), nil
	}
	return 0, fmt.Errorf("%d bytes are no %s", len(b), t)
}

// encodeInt writes w as t. What t cannot hold becomes its greatest or least value: concurrent increments
// can add up to what no session could have written, and an error would stop all nodes for good.
func encodeInt(t Type, w wide) []byte {
	switch t {
	case Int2:
		return binary.BigEndian.AppendUint16(nil, uint16(w.clamp(math.MinInt16, math.MaxInt16)))
	case Int4:
		return binary.BigEndian.AppendUint32(nil, uint32(w.clamp(math.MinInt32, math.MaxInt32)))
	}
	return binary.BigEndian.AppendUint64(nil, uint64(w.clamp(math.MinInt64, math.MaxInt64)))
}

// numeric_send's sign words (numeric.c).
const (
	numericPositive = 0x0000
	numericNegative = 0x4000
	numericNaN      = 0xC000
	numericPosInf   = 0xD000
	numericNegInf   = 0xF000
	numericMaxScale = 16383
)

// decimal is coef / 10^scale, exactly, or one of numeric's special values.
type decimal struct {
	special uint16 // numericNaN, numericPosInf, numericNegInf; 0 for a number
	coef    *big.Int
	scale   int
}

var ten = big.NewInt(10)

func power(n int) *big.Int { return new(big.Int).Exp(ten, big.NewInt(int64(n)), nil) }

// decodeNumeric reads numeric_send's format: the counts of base-10000 digits, the weight of the first one,
// sign, display scale, and the digits.
func decodeNumeric(b []byte) (decimal, error) {
	bad := func() (decimal, error) { return decimal{}, fmt.Errorf("%d bytes are no numeric", len(b)) }
	if len(b) < 8 {
		return bad()
	}
	count, weight := int(binary.BigEndian.Uint16(b)), int(int16(binary.BigEndian.Uint16(b[2:])))
	sign, scale := binary.BigEndian.Uint16(b[4:]), int(binary.BigEndian.Uint16(b[6:]))
	if len(b) != 8+2*count || scale > numericMaxScale {
		return bad()
	}
	switch sign {
	case numericNaN, numericPosInf, numericNegInf:
		return decimal{special: sign}, nil
	case numericPositive, numericNegative:
	default:
		return bad()
	}
	coef := new(big.Int)
	if count <= 4 {
		var v int64
		for i := range count {
			d := int64(binary.BigEndian.Uint16(b[8+2*i:]))
			if d > 9999 {
				return bad()
			}
			v = v*10000 + d
		}
		coef.SetInt64(v)
	} else {
		var text strings.Builder
		text.Grow(4 * count)
		for i := range count {
			d := binary.BigEndian.Uint16(b[8+2*i:])
			if d > 9999 {
				return bad()
			}
			text.Write([]byte{'0' + byte(d/1000), '0' + byte(d/100%10), '0' + byte(d/10%10), '0' + byte(d%10)})
		}
		coef.SetString(text.String(), 10)
	}
	// The digits are worth coef * 10000^(weight-count+1); make that coef / 10^scale.
	d := decimal{coef: coef}
	if exp := 4 * (weight - count + 1); exp > 0 {
		coef.Mul(coef, power(exp))
	} else {
		d.scale = -exp
	}
	d = d.rescale(scale)
	if sign == numericNegative {
		d.coef.Neg(d.coef)
	}
	return d, nil
}

// rescale gives the same number with that scale, or with the least one that can hold it. It may change d.
func (d decimal) rescale(scale int) decimal {
	if d.scale < scale {
		d.coef.Mul(d.coef, power(scale-d.scale))
		d.scale = scale
		return d
	}
	if d.scale > scale {
		if q, r := new(big.Int).QuoRem(d.coef, power(d.scale-scale), new(big.Int)); r.Sign() == 0 {
			return decimal{coef: q, scale: scale}
		}
	}
	if d.scale > scale {
		text := d.coef.Text(10)
		drop := min(len(text)-len(strings.TrimRight(text, "0")), d.scale-scale)
		d.coef, d.scale = new(big.Int).Quo(d.coef, power(drop)), d.scale-drop
	}
	return d
}

// plus may change both.
func (d decimal) plus(e decimal) decimal {
	scale := max(d.scale, e.scale)
	d, e = d.rescale(scale), e.rescale(scale)
	d.coef.Add(d.coef, e.coef)
	return d
}

// compare is PostgreSQL's order of numerics: -Infinity, numbers, Infinity, NaN. It may change both.
func (d decimal) compare(e decimal) int {
	if d.special != 0 || e.special != 0 {
		place := func(d decimal) int {
			switch d.special {
			case numericNegInf:
				return -1
			case numericPosInf:
				return 1
			case numericNaN:
				return 2
			}
			return 0
		}
		return cmp.Compare(place(d), place(e))
	}
	scale := max(d.scale, e.scale)
	return d.rescale(scale).coef.Cmp(e.rescale(scale).coef)
}

// encode writes numeric_send's format. A number beyond numeric's range becomes an infinity.
func (d decimal) encode() []byte {
	head := func(count, weight int, sign uint16, scale int) []byte {
		b := make([]byte, 8, 8+2*count)
		binary.BigEndian.PutUint16(b, uint16(count))
		binary.BigEndian.PutUint16(b[2:], uint16(weight))
		binary.BigEndian.PutUint16(b[4:], sign)
		binary.BigEndian.PutUint16(b[6:], uint16(scale))
		return b
	}
	if d.special != 0 {
		return head(0, 0, d.special, 0)
	}
	text, sign := d.coef.Text(10), uint16(numericPositive)
	if d.coef.Sign() < 0 {
		text, sign = text[1:], numericNegative
	}
	if d.coef.Sign() == 0 {
		return head(0, 0, sign, d.scale)
	}
	// Pad so that groups of four stand at the decimal point.
	whole := max(len(text)-d.scale, 0)
	lead := (4 - whole%4) % 4
	if len(text) < d.scale {
		lead += d.scale - len(text)
	}
	text = strings.Repeat("0", lead) + text + strings.Repeat("0", (4-d.scale%4)%4)
	weight := (whole+3)/4 - 1
	for strings.HasPrefix(text, "0000") {
		text, weight = text[4:], weight-1
	}
	for strings.HasSuffix(text, "0000") {
		text = text[:len(text)-4]
	}
	if weight > math.MaxInt16 || len(text)/4 > math.MaxUint16 {
		if sign == numericNegative {
			return head(0, 0, numericNegInf, 0)
		}
		return head(0, 0, numericPosInf, 0)
	}
	b := head(len(text)/4, weight, sign, d.scale)
	for ; text != ""; text = text[4:] {
		v := uint16(text[0]-'0')*1000 + uint16(text[1]-'0')*100 + uint16(text[2]-'0')*10 + uint16(text[3]-'0')
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b
}

// compareValues is the order of max and min: PostgreSQL's own, but that texts are compared by their bytes,
// since collations differ between servers.
func compareValues(t Type, a, b []byte) (int, error) {
	switch t {
	case Bool, UUID, TextType:
		if t == Bool && (len(a) != 1 || len(b) != 1) || t == UUID && (len(a) != 16 || len(b) != 16) {
			return 0, fmt.Errorf("%d or %d bytes are no %s", len(a), len(b), t)
		}
		return bytes.Compare(a, b), nil
	case Float4, Float8:
		x, err := decodeFloat(t, a)
		if err != nil {
			return 0, err
		}
		y, err := decodeFloat(t, b)
		if err != nil {
			return 0, err
		}
		return -cmp.Compare(-x, -y), nil // Go has NaN first, PostgreSQL last; negation leaves NaN where it is
	case Numeric:
		x, err := decodeNumeric(a)
		if err != nil {
			return 0, err
		}
		y, err := decodeNumeric(b)
		if err != nil {
			return 0, err
		}
		return x.compare(y), nil
	}
	x, err := decodeInt(t, a)
	if err != nil {
		return 0, err
	}
	y, err := decodeInt(t, b)
	return cmp.Compare(x, y), err
}

func decodeFloat(t Type, b []byte) (float64, error) {
	switch {
	case t == Float4 && len(b) == 4:
		return float64(math.Float32frombits(binary.BigEndian.Uint32(b))), nil
	case t == Float8 && len(b) == 8:
		return math.Float64frombits(binary.BigEndian.Uint64(b)), nil
	}
	return 0, fmt.Errorf("%d bytes are no %s", len(b), t)
}
