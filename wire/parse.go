package wire

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/pgbridge/pgbridge/origin"
)

// parser takes values off the front of b. After the first error every further call returns zero values,
// so that a caller checks err once at the end.
type parser struct {
	b   []byte
	err error
}

func (p *parser) fail(what string) {
	if p.err == nil {
		p.err = fmt.Errorf("%w: %s", ErrCorrupt, what)
	}
	p.b = nil
}

func (p *parser) uvarint() uint64 {
	v, n := binary.Uvarint(p.b)
	if n <= 0 {
		p.fail("number is cut off")
		return 0
	}
	p.b = p.b[n:]
	return v
}

func (p *parser) varint() int64 {
	v, n := binary.Varint(p.b)
	if n <= 0 {
		p.fail("number is cut off")
		return 0
	}
	p.b = p.b[n:]
	return v
}

func (p *parser) uint32() uint32 {
	v := p.uvarint()
	if v > math.MaxUint32 {
		p.fail("number is out of range")
		return 0
	}
	return uint32(v)
}

// length reads a length and checks that so many bytes are left.
func (p *parser) length() int {
	v := p.uvarint()
	if v > uint64(len(p.b)) {
		p.fail("length reaches beyond the end")
		return 0
	}
	return int(v)
}

// bytes takes n bytes, which length has checked; they share memory with the input.
func (p *parser) bytes(n int) []byte {
	if n > len(p.b) {
		p.fail("bytes are cut off")
		return nil
	}
	v := p.b[:n:n]
	p.b = p.b[n:]
	return v
}

func (p *parser) byte() byte {
	if len(p.b) == 0 {
		p.fail("byte is cut off")
		return 0
	}
	v := p.b[0]
	p.b = p.b[1:]
	return v
}

func (p *parser) string() string { return string(p.bytes(p.length())) }

func (p *parser) origin() origin.Origin {
	return origin.Origin{Node: p.string(), Epoch: p.uint32()}
}

// vector insists on rising order, so that equal vectors have equal bytes and a decoded one is sound.
func (p *parser) vector() origin.Vector {
	n := p.length() // an entry takes more than a byte, so this bounds the count too
	if n == 0 {
		return nil
	}
	v := make(origin.Vector, 0, min(n, 64))
	for range n {
		e := origin.Entry{Origin: p.origin(), Seq: p.uvarint(), Stamp: origin.Stamp(p.varint())}
		if p.err != nil {
			return nil
		}
		if len(v) > 0 && v[len(v)-1].Origin.Compare(e.Origin) >= 0 {
			p.fail("vector is not in order")
			return nil
		}
		v = append(v, e)
	}
	return v
}

// losses reads a count and so many losses.
func (p *parser) losses() []Loss {
	n := p.length() // a loss takes more than a byte, so this bounds the count too
	if n == 0 {
		return nil
	}
	l := make([]Loss, 0, min(n, 64))
	for range n {
		l = append(l, Loss{Version: origin.Version{Origin: p.origin(), Stamp: origin.Stamp(p.varint())}, Table: p.fixed64(), Key: p.fixed64()})
		if p.err != nil {
			return nil
		}
	}
	return l
}

func (p *parser) fixed64() uint64 {
	if len(p.b) < 8 {
		p.fail("hash is cut off")
		return 0
	}
	v := binary.BigEndian.Uint64(p.b)
	p.b = p.b[8:]
	return v
}

func appendLosses(b []byte, losses []Loss) []byte {
	b = binary.AppendUvarint(b, uint64(len(losses)))
	for _, l := range losses {
		b = binary.AppendVarint(appendOrigin(b, l.Version.Origin), int64(l.Version.Stamp))
		b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, l.Table), l.Key)
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendOrigin(b []byte, o origin.Origin) []byte {
	return binary.AppendUvarint(appendString(b, o.Node), uint64(o.Epoch))
}

func appendVector(b []byte, v origin.Vector) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	for _, e := range v {
		b = appendOrigin(b, e.Origin)
		b = binary.AppendUvarint(b, e.Seq)
		b = binary.AppendVarint(b, int64(e.Stamp))
	}
	return b
}

// AppendVector appends v in the frame format's encoding.
func AppendVector(dst []byte, v origin.Vector) []byte { return appendVector(dst, v) }

// ParseVectors decodes n vectors that stand one behind the other and fill b. Errors wrap ErrCorrupt.
func ParseVectors(b []byte, n int) ([]origin.Vector, error) {
	p := parser{b: b}
	out := make([]origin.Vector, n)
	for i := range out {
		out[i] = p.vector()
	}
	if p.err == nil && len(p.b) != 0 {
		p.fail("bytes behind the vectors")
	}
	return out, p.err
}
