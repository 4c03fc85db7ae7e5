package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// show prints a value as far as tests need it.
func show(oid uint32, v wire.Value) string {
	switch v.Format {
	case wire.Null:
		return "NULL"
	case wire.Unchanged:
		return "UNCHANGED"
	case wire.Text:
		return "'" + string(v.Data) + "'"
	}
	if len(v.Data) > 100 {
		return fmt.Sprintf("<%d bytes>", len(v.Data))
	}
	switch {
	case oid == 23 && len(v.Data) == 4:
		return fmt.Sprint(int32(binary.BigEndian.Uint32(v.Data)))
	case oid == 20 && len(v.Data) == 8:
		return fmt.Sprint(int64(binary.BigEndian.Uint64(v.Data)))
	case oid == 25 || oid == 1043 || oid >= 16384:
		return string(v.Data)
	}
	return fmt.Sprintf("x%x", v.Data)
}

// captured is one transaction as a reader of the stream sees it.
type captured struct {
	wire.Begin
	up, low origin.Vector
	rows    []string
	large   bool
}

// reader decodes frames as another node does: chunks are put together, rolled back subtransactions taken
// out.
type reader struct {
	t         testing.TB
	up, low   origin.Vector
	relations map[uint32]*wire.Relation
	runs      map[uint64]*bytes.Buffer
	epoch     uint64
	open      *captured
	done      []captured
	aborted   int
}

func read(t testing.TB, frames []*wire.Frame) *reader {
	t.Helper()
	r := &reader{t: t, runs: map[uint64]*bytes.Buffer{}}
	for _, f := range frames {
		r.frame(f)
	}
	return r
}

func (r *reader) frame(f *wire.Frame) {
	r.t.Helper()
	if f.WriterEpoch != r.epoch {
		r.epoch, r.runs = f.WriterEpoch, map[uint64]*bytes.Buffer{}
	}
	r.up, r.low, r.relations = nil, nil, map[uint32]*wire.Relation{}
	recs := wire.NewRecords(unsealed(r.t, f.Body))
	first := uint64(0)
	for {
		rec, err := recs.Next()
		if err == io.EOF {
			break
		}
		r.check(err)
		before := len(r.done)
		r.record(rec)
		if len(r.done) > before && first == 0 {
			first = r.done[before].Seq
		}
	}
	if r.open != nil {
		r.t.Fatalf("frame ends within transaction %d", r.open.Seq)
	}
	if f.FirstSeq != first {
		r.t.Errorf("frame says that its first transaction is %d, it is %d", f.FirstSeq, first)
	}
	if n := len(r.done); n > 0 && (f.LastSeq != r.done[n-1].Seq || f.LastStamp != r.done[n-1].Stamp) {
		r.t.Errorf("frame says last seq %d stamp %d, its last transaction has %d, %d", f.LastSeq, f.LastStamp, r.done[n-1].Seq, r.done[n-1].Stamp)
	}
}

func (r *reader) check(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *reader) record(rec wire.Record) {
	r.t.Helper()
	var err error
	switch rec.Kind {
	case wire.KindVector:
		r.up, r.low, err = wire.ParseDeps(rec.Payload)
	case wire.KindRelation:
		var rel *wire.Relation
		rel, err = wire.ParseRelation(rec.Payload)
		if err == nil {
			r.relations[rel.ID] = rel
		}
	case wire.KindBegin:
		r.open = &captured{up: r.up, low: r.low}
		r.open.Begin, err = wire.ParseBegin(rec.Payload)
	case wire.KindCommit:
		r.done = append(r.done, *r.open)
		r.open = nil
	case wire.KindChunk:
		var run, offset uint64
		var b []byte
		run, offset, b, err = wire.ParseChunk(rec.Payload)
		if r.runs[run] == nil {
			r.runs[run] = &bytes.Buffer{}
		}
		if uint64(r.runs[run].Len()) != offset {
			r.t.Fatalf("chunk of run %d at %d, %d bytes are there", run, offset, r.runs[run].Len())
		}
		r.runs[run].Write(b)
	case wire.KindRunAbort:
		var run uint64
		run, err = wire.ParseNumber(rec.Payload)
		if r.runs[run] == nil {
			r.t.Fatalf("abort of run %d, which has no chunk", run)
		}
		delete(r.runs, run)
		r.aborted++
	case wire.KindLargeCommit:
		var l wire.LargeCommit
		l, err = wire.ParseLargeCommit(rec.Payload)
		r.check(err)
		r.large(l)
	default:
		if r.open == nil {
			r.t.Fatalf("record %q outside of a transaction", rec.Kind)
		}
		r.open.rows = append(r.open.rows, row(r.t, r.relations, rec))
	}
	r.check(err)
}

func (r *reader) large(l wire.LargeCommit) {
	r.t.Helper()
	b := r.runs[l.Run]
	if b == nil || uint64(b.Len()) != l.Length {
		r.t.Fatalf("commit of run %d with %d bytes: %v", l.Run, l.Length, b)
	}
	delete(r.runs, l.Run)
	x := captured{Begin: l.Begin, up: r.up, low: r.low, large: true}
	void := map[uint64]bool{}
	var aborts, changes uint64
	for pass := range 2 {
		sub := uint64(l.XID)
		relations := map[uint32]*wire.Relation{}
		recs := wire.NewRecords(unsealed(r.t, b.Bytes()))
		for {
			rec, err := recs.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			r.check(err)
			switch rec.Kind {
			case wire.KindRelation:
				rel, err := wire.ParseRelation(rec.Payload)
				r.check(err)
				relations[rel.ID] = rel
			case wire.KindSub:
				sub, err = wire.ParseNumber(rec.Payload)
				r.check(err)
			case wire.KindSubAbort:
				n, err := wire.ParseNumber(rec.Payload)
				r.check(err)
				if pass == 0 {
					void[n] = true
					aborts++
				}
			default:
				if pass == 0 {
					changes++
				} else if !void[sub] {
					x.rows = append(x.rows, row(r.t, relations, rec))
				}
			}
		}
	}
	if aborts != l.Aborts || changes != l.Changes {
		r.t.Errorf("run %d has %d changes and %d aborts, its commit says %d and %d", l.Run, changes, aborts, l.Changes, l.Aborts)
	}
	r.done = append(r.done, x)
}

func row(t testing.TB, relations map[uint32]*wire.Relation, rec wire.Record) string {
	t.Helper()
	if rec.Kind == wire.KindTruncate {
		options, ids, err := wire.ParseTruncate(rec.Payload)
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("truncate %d", options)
		for _, id := range ids {
			line += fmt.Sprintf(" %s.%s", relations[id].Schema, relations[id].Name)
		}
		return line
	}
	var c wire.Change
	if err := c.Parse(rec); err != nil {
		t.Fatal(err)
	}
	rel := relations[c.Relation]
	if rel == nil {
		t.Fatalf("row of relation %d, which has no R record", c.Relation)
	}
	names := map[wire.Kind]string{wire.KindInsert: "insert", wire.KindUpdate: "update", wire.KindDelete: "delete"}
	line := fmt.Sprintf("%s %s.%s", names[c.Kind], rel.Schema, rel.Name)
	for i, tuple := range [][]wire.Value{c.Old, c.New} {
		if len(tuple) == 0 {
			continue
		}
		if i == 0 && c.OldFull {
			line += " whole"
		} else if i == 0 {
			line += " key"
		}
		if i == 1 && c.Kind == wire.KindUpdate {
			line += " to"
		}
		for j, v := range tuple {
			col := rel.Columns[j]
			line += " " + col.Name + "="
			if v.Format == wire.Sealed {
				var err error
				if v, err = testOpener(t).Value(origin.Origin{Node: "a", Epoch: 1}, v); err != nil {
					t.Fatal(err)
				}
				line += "sealed "
			}
			line += show(col.TypeOID, v)
			if col.TypeName != "" {
				line += ":" + col.TypeSchema + "." + col.TypeName
			}
		}
	}
	return line
}

func describe(t testing.TB, frames []*wire.Frame) string {
	t.Helper()
	var b strings.Builder
	for _, x := range read(t, frames).done {
		b.WriteString(x.String())
	}
	return b.String()
}

// String leaves out what differs from run to run.
func (x captured) String() string {
	kind := ""
	if x.large {
		kind = " large"
	}
	s := fmt.Sprintf("%d%s up {%s} low {%s}\n", x.Seq, kind, x.up, x.low)
	for _, r := range x.rows {
		s += "  " + r + "\n"
	}
	return s
}
