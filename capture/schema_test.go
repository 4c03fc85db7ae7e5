package capture

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/wire"
)

// schema is a message that pgbridge.ddl writes.
func (s *script) schema(xid []byte, sub uint32, sql, secret string) *script {
	payload, _ := json.Marshal(wire.SchemaMessage{XID: sub, Role: "ann", SearchPath: "public", SQL: sql})
	sum := sha256.Sum256(append([]byte(secret), payload...))
	content := append(sum[:], payload...)
	return s.add('M', xid, byte(1), uint64(5), wire.SchemaPrefix, uint32(len(content)), content)
}

// wide announces public.t as it is with one more column.
func (s *script) wide(id uint32, xid []byte) *script {
	return s.add('R', xid, id, "public", "t", 'd', uint16(3),
		byte(1), "id", uint32(23), uint32(1<<32-1), byte(0), "x", uint32(25), uint32(1<<32-1), byte(0), "n", uint32(25), uint32(1<<32-1))
}

// changesOf lists the changes of all transactions in the frames, each with the width of its relation as a reader sees it then; those
// of runs come when they are committed.
func changesOf(t *testing.T, frames []*wire.Frame) string {
	t.Helper()
	var all []string
	runs := map[uint64][]byte{}
	var walk func(body []byte, widths map[uint64]int)
	walk = func(body []byte, widths map[uint64]int) {
		recs := wire.NewRecords(body)
		for {
			rec, err := recs.Next()
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			switch rec.Kind {
			case wire.KindRelation:
				r, _ := wire.ParseRelation(rec.Payload)
				widths[uint64(r.ID)] = len(r.Columns)
			case wire.KindInsert:
				var c wire.Change
				if err := c.Parse(rec); err != nil || len(c.New) != widths[uint64(c.Relation)] {
					t.Errorf("a row of %d columns, its relation has %d, %v", len(c.New), widths[uint64(c.Relation)], err)
				}
				all = append(all, fmt.Sprint("I", len(c.New)))
			case wire.KindSchema:
				m, err := wire.ParseSchema(rec.Payload)
				if err != nil || m.Role != "ann" || m.SearchPath != "public" {
					t.Errorf("%+v, %v", m, err)
				}
				all = append(all, m.SQL)
			case wire.KindSub, wire.KindSubAbort:
				n, _ := wire.ParseNumber(rec.Payload)
				all = append(all, fmt.Sprintf("%c%d", rec.Kind, n))
			case wire.KindChunk:
				id, _, b, _ := wire.ParseChunk(rec.Payload)
				runs[id] = append(runs[id], b...)
			case wire.KindLargeCommit:
				l, _ := wire.ParseLargeCommit(rec.Payload)
				walk(runs[l.Run], map[uint64]int{})
				all = append(all, fmt.Sprintf("L schemas=%d changes=%d", l.Schemas, l.Changes))
			case wire.KindCommit:
				all = append(all, "C")
			}
		}
	}
	for _, f := range frames {
		walk(f.Body, map[uint64]int{})
	}
	return strings.Join(slices.CompactFunc(all, func(a, b string) bool { return a == b && a[0] == 'I' }), " ")
}

// TestSchemaChangesStandInTheirPlace: rows in front of a change have the relation as it was, those behind it as it is, also where the
// transaction outgrows a frame, and where the server streams it.
func TestSchemaChangesStandInTheirPlace(t *testing.T) {
	big := strings.Repeat("x", 300)
	wide := func(id uint32) []byte {
		return appendTuple(nil, []wire.Value{{Format: wire.Binary, Data: be32(id)}, {Format: wire.Binary, Data: []byte(big)}, {Format: wire.Null}})
	}
	rows := func(s *script, xid []byte, n int, tuple func(uint32) []byte) {
		for i := range uint32(n) {
			s.add('I', xid, uint32(7), 'N', tuple(i))
		}
	}
	narrow := func(id uint32) []byte { return tuple(id, big) }
	for _, x := range []struct {
		name          string
		before, after int // rows
		want          string
	}{
		{"alone", 0, 0, "A C"}, {"small", 2, 2, "I2 A I3 C"}, {"that fits if the other one leaves", 4, 4, "I2 A I3 C"},
		{"larger than a frame before", 30, 2, "I2 A I3 L schemas=1 changes=32"},
		{"larger than a frame behind", 2, 30, "I2 A I3 L schemas=1 changes=32"},
	} {
		for _, lead := range []int{0, 1} { // another transaction in front of it, which the frame is cut behind
			w := newWorkbench(t, MinFrameBytes)
			w.tagger.opts.Secret = "secret"
			s := &script{}
			want := x.want
			if lead > 0 {
				s.begin(1, 1, 1).table(7, nil)
				rows(s, nil, 6, narrow)
				s.commit(1, 1)
				want = "I2 C " + want
			}
			s.begin(100, 2, 2)
			if x.before > 0 && lead == 0 {
				s.table(7, nil)
			}
			rows(s, nil, x.before, narrow)
			s.schema(nil, 2, "forged", "guess").schema(nil, 2, "A", "secret")
			if x.after > 0 {
				s.wide(7, nil)
			}
			rows(s, nil, x.after, wide)
			s.commit(100, 2)
			if err := w.play(s, 1000); err != nil {
				t.Fatal(err)
			}
			if got := changesOf(t, w.pub.all()); got != want {
				t.Errorf("%s: %s, want %s", x.name, got, want)
			}
			if w.tagger.counters.BadMarkers != 1 || !slices.Contains(w.deletes.lines, fmt.Sprintf("%d schema", 1+lead)) {
				t.Errorf("%s: %d forged; told %q", x.name, w.tagger.counters.BadMarkers, w.deletes.lines)
			}
		}
	}

	// In a subtransaction of a streamed one, which the server does not name.
	w := newWorkbench(t, MinFrameBytes)
	w.tagger.opts.Secret = "secret"
	s := &script{}
	s.add('S', be32(5), byte(1)).table(7, be32(5))
	rows(s, be32(5), 2, narrow)
	s.schema(be32(5), 6, "void", "secret").add('E').add('A', be32(5), be32(6))
	s.add('S', be32(5), byte(0)).schema(be32(5), 5, "A", "secret").wide(7, be32(5))
	rows(s, be32(5), 2, wide)
	s.add('E').add('c', be32(5), byte(0), uint64(100), uint64(108), uint64(2))
	if err := w.play(s, 1000); err != nil {
		t.Fatal(err)
	}
	if got, want := changesOf(t, w.pub.all()), "I2 S6 void Z6 S5 A I3 L schemas=2 changes=4"; got != want {
		t.Errorf("streamed: %s, want %s", got, want)
	}
	if !bytes.Contains(w.pub.all()[0].Body, []byte("void")) {
		t.Error("what is void is left out")
	}
}
