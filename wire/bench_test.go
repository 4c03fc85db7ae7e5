package wire

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/origin"
)

// rowsFrame is a frame of single-row updates of a table with eight columns, one transaction each.
func rowsFrame(rows int) *Frame {
	f := exampleFrame()
	f.Standbys = ""
	f.Body = AppendDeps(nil, vector("b", 3), vector("b", 2))
	f.Body = AppendRelation(f.Body, exampleRelation())
	row := append([]byte{'N'}, tuple("1234", "5678", "a name", "NULL", "12345678", "x", "y", strings.Repeat("z", 40))...)
	for i := range rows {
		f.Body = AppendBegin(f.Body, Begin{Seq: uint64(7 + i), Stamp: 700, CommitTime: 699, CommitLSN: 1 << 33, XID: 790})
		f.Body = AppendChange(f.Body, KindUpdate, exampleRelation().ID, row)
		f.Body = AppendCommit(f.Body)
	}
	return f
}

func exampleRelation() *Relation {
	r := &Relation{ID: 16400, Schema: "public", Name: "t", ReplicaIdentity: 'd'}
	for i := range 8 {
		r.Columns = append(r.Columns, Column{Name: fmt.Sprintf("column_%d", i), TypeOID: 25, Typmod: -1, Key: i == 0})
	}
	return r
}

// walk reads a body as its receiver does, and returns how many rows it has.
func walk(body []byte, c *Change) (rows int, err error) {
	recs := NewRecords(body)
	for {
		r, err := recs.Next()
		if err == io.EOF {
			return rows, nil
		}
		if err != nil {
			return rows, err
		}
		switch r.Kind {
		case KindBegin:
			_, err = ParseBegin(r.Payload)
		case KindInsert, KindUpdate, KindDelete:
			rows++
			err = c.Parse(r)
		}
		if err != nil {
			return rows, err
		}
	}
}

// allocs fails the test if a step allocates more often than it may.
func allocs(t *testing.T, what string, most float64, step func()) {
	t.Helper()
	if n := testing.AllocsPerRun(100, step); n > most {
		t.Errorf("%s: %v allocations, at most %v are allowed", what, n, most)
	}
}

// TestRowsAreWrittenAndReadWithoutAllocating: what is done for each row or transaction works in buffers that are there.
func TestRowsAreWrittenAndReadWithoutAllocating(t *testing.T) {
	f, dst, c := rowsFrame(100), make([]byte, 0, 64<<10), Change{}
	up, low := vector("b", 3, "c", 4), vector("b", 2, "c", 1)
	row := append([]byte{'N'}, tuple("1234", "a name", "NULL")...)
	allocs(t, "append a transaction of one row", 0, func() {
		dst = AppendBegin(dst[:0], Begin{Seq: 7, Stamp: 700, CommitTime: 699, CommitLSN: 1 << 33, XID: 790})
		dst = AppendChange(dst, KindInsert, 16400, row)
		dst = AppendCommit(dst)
	})
	allocs(t, "append a chunk of a run", 0, func() { dst = AppendChunk(dst[:0], 5, 300, row) })
	allocs(t, "append dependencies", 0, func() { dst = AppendDeps(dst[:0], up, low) })
	allocs(t, "append a vector", 0, func() { dst = AppendVector(dst[:0], up) })
	allocs(t, "walk 100 transactions", 0, func() {
		if rows, err := walk(f.Body, &c); rows != 100 || err != nil {
			t.Fatal(rows, err)
		}
	})
}

// TestFramesAllocateByTheFrame: what a frame costs does not grow with its rows.
func TestFramesAllocateByTheFrame(t *testing.T) {
	for _, zstd := range []bool{false, true} {
		e, d, dst := Encoder{Zstd: zstd}, Decoder{}, make([]byte, 0, 64<<10)
		decode := 4.0
		if zstd {
			decode += 2 // the body's own memory
		}
		for _, rows := range []int{1, 200} {
			f := rowsFrame(rows)
			allocs(t, fmt.Sprintf("encode %d rows, zstd %v", rows, zstd), 0, func() { dst, _ = e.Append(dst[:0], f) })
			allocs(t, fmt.Sprintf("decode %d rows, zstd %v", rows, zstd), decode, func() {
				if _, err := d.Decode(dst); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// BenchmarkFrame/direction/rows=n/zstd=b: a frame as it goes to the broker and comes from it.
func BenchmarkFrame(b *testing.B) {
	for _, rows := range []int{1, 1000} {
		for _, zstd := range []bool{false, true} {
			f, e, d := rowsFrame(rows), Encoder{Zstd: zstd}, Decoder{}
			coded, err := e.Append(nil, f)
			if err != nil {
				b.Fatal(err)
			}
			b.Run(fmt.Sprintf("encode/rows=%d/zstd=%v", rows, zstd), func(b *testing.B) {
				dst := make([]byte, 0, 2*len(coded))
				b.ReportAllocs()
				b.SetBytes(int64(len(f.Body)))
				for b.Loop() {
					dst, _ = e.Append(dst[:0], f)
				}
			})
			b.Run(fmt.Sprintf("decode/rows=%d/zstd=%v", rows, zstd), func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(len(f.Body)))
				for b.Loop() {
					if _, err := d.Decode(coded); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkRecords/direction: 1 000 transactions of one row with eight columns.
func BenchmarkRecords(b *testing.B) {
	const rows = 1000
	body := rowsFrame(rows).Body
	row := append([]byte{'N'}, tuple("1234", "5678", "a name", "NULL", "12345678", "x", "y", strings.Repeat("z", 40))...)
	b.Run("append", func(b *testing.B) {
		dst := make([]byte, 0, 2*len(body))
		b.ReportAllocs()
		b.SetBytes(int64(len(body)))
		for b.Loop() {
			dst = dst[:0]
			for range rows {
				dst = AppendBegin(dst, Begin{Seq: 7, Stamp: 700, CommitTime: 699, CommitLSN: 1 << 33, XID: 790})
				dst = AppendChange(dst, KindUpdate, 16400, row)
				dst = AppendCommit(dst)
			}
		}
	})
	b.Run("parse", func(b *testing.B) {
		var c Change
		b.ReportAllocs()
		b.SetBytes(int64(len(body)))
		for b.Loop() {
			if _, err := walk(body, &c); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkTuple/cols=n/bytes=n: one tuple into its columns.
func BenchmarkTuple(b *testing.B) {
	for _, cols := range []int{4, 40} {
		for _, size := range []int{4, 100} {
			values := make([]string, cols)
			for i := range values {
				values[i] = strings.Repeat("v", size)
			}
			data, dst := tuple(values...), make([]Value, 0, cols)
			b.Run(fmt.Sprintf("cols=%d/bytes=%d", cols, size), func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(len(data)))
				for b.Loop() {
					var err error
					if dst, _, err = ParseTuple(dst[:0], data); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkVectors/direction: the dependencies of a cluster of five.
func BenchmarkVectors(b *testing.B) {
	v := vector("a", 1, "b", 2, "c", 3, "d", 4, "e", 5)
	data := AppendVector(AppendVector(nil, v), v)
	b.Run("append", func(b *testing.B) {
		dst := make([]byte, 0, len(data))
		b.ReportAllocs()
		for b.Loop() {
			dst = AppendVector(AppendVector(dst[:0], v), v)
		}
		if !bytes.Equal(dst, data) {
			b.Fatal("other bytes")
		}
	})
	b.Run("parse", func(b *testing.B) {
		var got []origin.Vector
		b.ReportAllocs()
		for b.Loop() {
			got, _ = ParseVectors(data, 2)
		}
		if len(got) != 2 || !got[1].Equal(v) {
			b.Fatal("other vectors")
		}
	})
}
