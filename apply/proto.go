package apply

import (
	"encoding/binary"
	"math"
	"slices"
)

// The functions of this file append messages of PostgreSQL's frontend protocol to a buffer ("Message
// Formats" in its documentation). The pipeline writes thousands of them per network round trip, which
// is why they are not built through a client library's types.

// param is one parameter of a statement. Its bytes are copied when it is appended.
type param struct {
	format byte // 0 text, 1 binary
	null   bool
	value  []byte
}

func binaryParam(b []byte) param { return param{format: 1, value: b} }

func int64Param(v int64) param { return binaryParam(binary.BigEndian.AppendUint64(nil, uint64(v))) }

// begin starts a message and returns the place of its length, for finish.
func begin(dst []byte, kind byte) ([]byte, int) {
	dst = append(dst, kind, 0, 0, 0, 0)
	return dst, len(dst) - 4
}

func finish(dst []byte, at int) []byte {
	binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-at))
	return dst
}

func appendCString(dst []byte, s string) []byte { return append(append(dst, s...), 0) }

// appendParse appends a Parse of sql under name; types are the parameters' type object ids, 0: infer.
func appendParse(dst []byte, name, sql string, types []uint32) []byte {
	dst, at := begin(dst, 'P')
	dst = appendCString(appendCString(dst, name), sql)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(types)))
	for _, t := range types {
		dst = binary.BigEndian.AppendUint32(dst, t)
	}
	return finish(dst, at)
}

// appendRun appends a Bind of the statement with params to the unnamed portal, and its Execute.
func appendRun(dst []byte, name string, params []param) []byte {
	dst, at := begin(dst, 'B')
	dst = append(dst, 0) // portal
	dst = appendCString(dst, name)
	if slices.ContainsFunc(params, func(p param) bool { return p.format == 0 }) {
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(params)))
		for i := range params {
			dst = append(dst, 0, params[i].format)
		}
	} else {
		dst = append(dst, 0, 1, 0, 1) // all are binary
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(params)))
	for i := range params {
		if params[i].null {
			dst = binary.BigEndian.AppendUint32(dst, math.MaxUint32)
			continue
		}
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(params[i].value)))
		dst = append(dst, params[i].value...)
	}
	dst = finish(append(dst, 0, 0), at) // all results as text
	return append(dst, 'E', 0, 0, 0, 9, 0, 0, 0, 0, 0)
}

func appendSync(dst []byte) []byte { return append(dst, 'S', 0, 0, 0, 4) }

func appendCopyData(dst, data []byte) []byte {
	dst, at := begin(dst, 'd')
	return finish(append(dst, data...), at)
}

func appendCopyDone(dst []byte) []byte { return append(dst, 'c', 0, 0, 0, 4) }

// copyHeader begins a COPY in binary format; copyTrailer ends it.
var (
	copyHeader  = append([]byte("PGCOPY\n\xff\r\n\x00"), 0, 0, 0, 0, 0, 0, 0, 0)
	copyTrailer = []byte{0xff, 0xff}
)

// array builds the binary form of a one-dimensional array, element by element.
type array struct {
	b     []byte
	n     uint32
	nulls bool
}

const arrayHead = 20 // dimensions, has nulls, element type, length, lower bound: four bytes each

func (a *array) reset() {
	a.b = append(a.b[:0], make([]byte, arrayHead)...)
	a.n, a.nulls = 0, false
}

func (a *array) add(v []byte, null bool) {
	a.n++
	if null {
		a.nulls = true
		a.b = binary.BigEndian.AppendUint32(a.b, math.MaxUint32)
		return
	}
	a.b = binary.BigEndian.AppendUint32(a.b, uint32(len(v)))
	a.b = append(a.b, v...)
}

// value completes the header for an element type and returns the array's bytes, valid until reset.
func (a *array) value(element uint32) []byte {
	h := a.b[:arrayHead]
	binary.BigEndian.PutUint32(h[0:], 1)
	h[7] = 0
	if a.nulls {
		h[7] = 1
	}
	binary.BigEndian.PutUint32(h[8:], element)
	binary.BigEndian.PutUint32(h[12:], a.n)
	binary.BigEndian.PutUint32(h[16:], 1)
	return a.b
}
