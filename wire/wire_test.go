package wire

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand"
	"reflect"
	"slices"
	"testing"

	"github.com/pgbridge/pgbridge/origin"
)

func vector(pairs ...any) origin.Vector {
	var v origin.Vector
	for i := 0; i < len(pairs); i += 2 {
		n := uint64(pairs[i+1].(int))
		v.Advance(origin.Entry{Origin: origin.Origin{Node: pairs[i].(string), Epoch: 1}, Seq: n, Stamp: origin.Stamp(n * 1000)})
	}
	return v
}

func tuple(values ...string) []byte {
	b := []byte{0, byte(len(values))}
	for _, v := range values {
		switch v {
		case "NULL":
			b = append(b, 'n')
		case "UNCHANGED":
			b = append(b, 'u')
		default:
			b = append(b, 'b', 0, 0, 0, byte(len(v)))
			b = append(b, v...)
		}
	}
	return b
}

// exampleFrame has every kind of record once.
func exampleFrame() *Frame {
	rel := &Relation{ID: 16400, Schema: "public", Name: "täble", ReplicaIdentity: 'd', Columns: []Column{
		{Name: "id", TypeOID: 23, Typmod: -1, Key: true},
		{Name: "mood", TypeOID: 16500, Typmod: -1, TypeSchema: "public", TypeName: "mood"},
	}}
	b := AppendDeps(nil, vector("b", 3), vector("b", 2))
	b = AppendRelation(b, rel)
	b = AppendBegin(b, Begin{Seq: 7, Stamp: 700, CommitTime: 699, CommitLSN: 1 << 33, XID: 790})
	b = AppendChange(b, KindInsert, rel.ID, append([]byte{'N'}, tuple("\x00\x00\x00\x01", "happy")...))
	b = AppendChange(b, KindUpdate, rel.ID, append(append([]byte{'K'}, tuple("\x00\x00\x00\x01", "NULL")...),
		append([]byte{'N'}, tuple("\x00\x00\x00\x02", "UNCHANGED")...)...))
	b = AppendChange(b, KindDelete, rel.ID, append([]byte{'K'}, tuple("\x00\x00\x00\x02", "NULL")...))
	b = AppendTruncate(b, 2, []uint32{rel.ID})
	b = AppendCommit(b)
	b = AppendChunk(b, 5, 300, []byte("cut anywhere"))
	b = AppendNumber(b, KindRunAbort, 4)
	b = AppendLargeCommit(b, LargeCommit{Begin: Begin{Seq: 8, Stamp: 800, CommitTime: 800, CommitLSN: 1 << 34, XID: 791},
		Run: 5, Length: 312, Changes: 9, Aborts: 1})
	return &Frame{Header: Header{Cluster: "demo", Sender: "a", Origin: origin.Origin{Node: "a", Epoch: 1}, WriterEpoch: 3,
		FirstSeq: 7, LastSeq: 8, LastStamp: 800, FirstCommitTime: 699, LastCommitTime: 800, Up: vector("b", 3), Low: vector("b", 2),
		ResumeLSN: 1<<34 + 48, Back: 12, Mark: Mark{XID: 789, Seq: 6}, SystemID: 1 << 62, Timeline: 1, Standbys: "b1,b2"}, Body: b}
}

func TestFrameRoundTrip(t *testing.T) {
	for _, zstd := range []bool{false, true} {
		f := exampleFrame()
		if zstd {
			f.Body = append(f.Body, AppendChunk(nil, 6, 0, bytes.Repeat([]byte("compressible "), 500))...)
		}
		e := Encoder{Zstd: zstd}
		b, err := e.Append([]byte("in front"), f)
		if err != nil {
			t.Fatal(err)
		}
		if b = b[len("in front"):]; zstd && len(b) > len(f.Body)/2 {
			t.Errorf("%d bytes for a body of %d: not compressed", len(b), len(f.Body))
		}
		var d Decoder
		got, err := d.Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, f) {
			t.Fatalf("got %+v, want %+v", got, f)
		}
	}
}

// TestEveryFlippedByteIsNoticed: no single corrupted byte, and no cut, passes for a frame.
func TestEveryFlippedByteIsNoticed(t *testing.T) {
	b, err := new(Encoder).Append(nil, exampleFrame())
	if err != nil {
		t.Fatal(err)
	}
	var d Decoder
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 0x41
		if _, err := d.Decode(c); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
		if _, err := d.Decode(b[:i]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	b[4] = Version + 1
	if _, err := d.Decode(b); !errors.Is(err, ErrVersion) {
		t.Fatalf("newer version: %v", err)
	}
}

func TestRecordsOfAFrame(t *testing.T) {
	f := exampleFrame()
	recs := NewRecords(f.Body)
	var kinds []byte
	for {
		r, err := recs.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, byte(r.Kind))
		switch r.Kind {
		case KindVector:
			up, low, err := ParseDeps(r.Payload)
			if err != nil || !up.Equal(f.Up) || !low.Equal(f.Low) {
				t.Errorf("deps %v %v %v", up, low, err)
			}
		case KindRelation:
			rel, err := ParseRelation(r.Payload)
			if err != nil || rel.Name != "täble" || len(rel.Columns) != 2 || rel.Columns[1].TypeName != "mood" || !rel.Columns[0].Key {
				t.Errorf("relation %+v %v", rel, err)
			}
		case KindBegin:
			if begin, err := ParseBegin(r.Payload); err != nil || begin.Seq != 7 || begin.XID != 790 || begin.CommitLSN != 1<<33 {
				t.Errorf("begin %+v %v", begin, err)
			}
		case KindInsert, KindUpdate, KindDelete:
			var c Change
			if err := c.Parse(r); err != nil {
				t.Error(err)
			}
			if r.Kind == KindUpdate && (c.New[1].Format != Unchanged || c.Old[0].Data[3] != 1 || c.OldFull) {
				t.Errorf("update %+v", c)
			}
		case KindTruncate:
			if o, ids, err := ParseTruncate(r.Payload); err != nil || o != 2 || len(ids) != 1 {
				t.Errorf("truncate %v %v %v", o, ids, err)
			}
		case KindChunk:
			if run, off, data, err := ParseChunk(r.Payload); err != nil || run != 5 || off != 300 || string(data) != "cut anywhere" {
				t.Errorf("chunk %v %v %q %v", run, off, data, err)
			}
		case KindLargeCommit:
			if c, err := ParseLargeCommit(r.Payload); err != nil || c.Seq != 8 || c.Run != 5 || c.Length != 312 || c.Aborts != 1 {
				t.Errorf("large commit %+v %v", c, err)
			}
		case KindRunAbort:
			if n, err := ParseNumber(r.Payload); err != nil || n != 4 {
				t.Errorf("abort %v %v", n, err)
			}
		}
	}
	if string(kinds) != "VRBIUDTCKXL" {
		t.Errorf("records %s", kinds)
	}
}

// TestRunIsTheSameHoweverCut: a run read back through a file gives the records that went in.
func TestRunIsTheSameHoweverCut(t *testing.T) {
	r := rand.New(rand.NewSource(3))
	var run []byte
	var want [][]byte
	for range 50 {
		p := make([]byte, r.Intn(5000))
		r.Read(p)
		run = AppendChange(run, KindInsert, 9, p)
		want = append(want, p)
	}
	in := bufio.NewReaderSize(bytes.NewReader(run), 16)
	for _, w := range want {
		rec, err := ReadRecord(in, nil, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if _, got, err := ParseChange(rec.Payload); err != nil || !bytes.Equal(got, w) {
			t.Fatalf("%v, %d bytes, want %d", err, len(got), len(w))
		}
	}
	if _, err := ReadRecord(in, nil, 1<<20); err != io.EOF {
		t.Fatalf("at the end: %v", err)
	}
	in.Reset(bytes.NewReader(run[:len(run)-1]))
	var err error
	for err == nil {
		_, err = ReadRecord(in, nil, 1<<20)
	}
	if !errors.Is(err, ErrCorrupt) {
		t.Fatalf("a run that is cut off: %v", err)
	}
	in.Reset(bytes.NewReader(AppendChange(nil, KindInsert, 9, make([]byte, 100))))
	if _, err := ReadRecord(in, nil, 50); err == nil {
		t.Fatal("the limit must hold")
	}
}

func exampleLosses() []Loss {
	v := origin.Version{Stamp: -5, Origin: origin.Origin{Node: "b", Epoch: 2}}
	return []Loss{{Version: v, Table: TableHash("s", "t"), Key: 1<<64 - 1}, {Version: v, Table: TableHash("st", "")}}
}

func TestLostRoundTrip(t *testing.T) {
	for _, want := range [][]Loss{nil, exampleLosses()} {
		recs := NewRecords(AppendLost(nil, want))
		r, err := recs.Next()
		if err != nil || r.Kind != KindLost {
			t.Fatal(r.Kind, err)
		}
		got, err := ParseLost(r.Payload)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
		for n := range r.Payload {
			if _, err := ParseLost(r.Payload[:n]); !errors.Is(err, ErrCorrupt) {
				t.Errorf("cut off at %d: %v", n, err)
			}
		}
	}
}

// TestHashesOfLosses are told to other nodes: they must not change.
func TestHashesOfLosses(t *testing.T) {
	for _, c := range []struct {
		name  string
		types []*KeyType
		want  bool
	}{
		{"bytes", []*KeyType{nil}, true},
		{"numbers", []*KeyType{{Form: FormInteger}, {Form: FormNumeric}, {Form: FormInterval}}, true},
		{"hashed by the server", []*KeyType{nil, {Form: FormServed}}, false},
		{"with object ids", []*KeyType{{Form: FormArray}}, false},
	} {
		if got := NewKeyHasher("s", "t", c.types).Shared(KeyHash{1, 2}); got != 2 && c.want || got != 0 && !c.want {
			t.Errorf("%s: %d", c.name, got)
		}
	}
	h := NewKeyHasher("s", "t", []*KeyType{{Form: FormInteger}})
	key := h.Shared(h.Hash([]Value{{Format: Binary, Data: []byte{0, 0, 0, 7}}}, nil))
	if table := TableHash("s", "t"); table != 0x859b91804cbccee0 || key != 0xe4960e84f7d30094 {
		t.Errorf("table %#x, key %#x", table, key)
	}
}

func TestMarkerRoundTrip(t *testing.T) {
	up, done := vector("a", 9, "b", 4), vector("a", 7)
	m, err := ParseMarker(append(AppendMarker(nil, up, done, exampleLosses()), 0, 0, 0, 0, 0, 0, 3, 20))
	if err != nil || !m.Up.Equal(up) || !m.Done.Equal(done) || m.XMin != 788 || !reflect.DeepEqual(m.Lost, exampleLosses()) {
		t.Fatalf("%+v %v", m, err)
	}
	if _, err := ParseMarker([]byte("somebody else's message")); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, z := range []bool{false, true} {
		b, _ := (&Encoder{Zstd: z}).Append(nil, exampleFrame())
		f.Add(b)
	}
	signed := exampleFrame()
	newSigner(f, 1).sign(signed)
	for seq := range signed.LastSeq + 2 {
		again := *signed
		if err := again.GoOn(&Header{LastSeq: seq}); err != nil {
			f.Fatal(err)
		}
		b, _ := new(Encoder).Append(nil, &again)
		f.Add(b)
	}
	verifier := newVerifier(f, true)
	f.Fuzz(func(t *testing.T, data []byte) {
		var d Decoder
		fr, err := d.Decode(data)
		if err != nil {
			return
		}
		b, err := new(Encoder).Append(nil, fr)
		if err != nil {
			t.Fatal(err)
		}
		again, err := d.Decode(b)
		if err != nil || !reflect.DeepEqual(again, fr) {
			t.Fatalf("%+v, %v, want %+v", again, err, fr)
		}
		if err := verifier.Check(fr); err == nil && !fr.Fence && fr.Signature == nil {
			t.Fatalf("%+v is taken without a signature", fr)
		}
	})
}

// FuzzRecords feeds arbitrary bodies to everything that takes records apart.
func FuzzRecords(f *testing.F) {
	f.Add(exampleFrame().Body)
	f.Fuzz(func(t *testing.T, body []byte) {
		recs := NewRecords(body)
		var c Change
		for {
			r, err := recs.Next()
			if err != nil {
				return
			}
			ParseDeps(r.Payload)
			ParseRelation(r.Payload)
			ParseBegin(r.Payload)
			ParseTruncate(r.Payload)
			ParseChunk(r.Payload)
			ParseLargeCommit(r.Payload)
			ParseNumber(r.Payload)
			ParseMarker(r.Payload)
			ParseLost(r.Payload)
			ParseWriter(r.Payload)
			ParseGone(r.Payload)
			ParseLogged(r.Payload)
			ParseEnd(r.Payload)
			ParseSchema(r.Payload)
			ParseSchemaMessage(r.Payload, "s")
			c.Parse(r)
		}
	})
}

func TestChangeParseDoesNotAllocate(t *testing.T) {
	body := AppendChange(nil, KindInsert, 16400, append([]byte{'N'}, tuple("\x00\x00\x00\x01", "happy", "NULL")...))
	var c Change
	n := testing.AllocsPerRun(100, func() {
		recs := NewRecords(body)
		r, _ := recs.Next()
		if c.Parse(r) != nil {
			t.Fatal("parse")
		}
	})
	if n > 0 {
		t.Errorf("%v allocations per row", n)
	}
}

func BenchmarkChangeParse(b *testing.B) {
	body := AppendChange(nil, KindInsert, 16400, append([]byte{'N'}, tuple("1234", "5678", "a name", "NULL", "12345678", "x", "y", "z")...))
	recs := NewRecords(body)
	r, _ := recs.Next()
	var c Change
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for range b.N {
		c.Parse(r)
	}
}

func TestRespells(t *testing.T) {
	numeric := &KeyType{Form: FormNumeric}
	for _, x := range []struct {
		t    *KeyType
		want bool
	}{
		{nil, false}, {&KeyType{Form: FormInteger}, false}, {numeric, true}, {&KeyType{Form: FormPadded}, true}, {&KeyType{Form: FormServed}, true},
		{&KeyType{Form: FormArray}, false}, {&KeyType{Form: FormArray, Elem: numeric}, true},
		{&KeyType{Form: FormRecord, Fields: []*KeyType{nil, nil}}, false}, {&KeyType{Form: FormRecord, Fields: []*KeyType{nil, numeric}}, true},
	} {
		if got := x.t.Respells(); got != x.want {
			t.Errorf("%+v: %t", x.t, got)
		}
	}
}

func TestSchemaRoundTrip(t *testing.T) {
	want := &Schema{Role: "ann", SearchPath: `app, "of ""x"""`, SQL: "ALTER TABLE t ADD n int;\nSELECT 'ä'"}
	recs := NewRecords(AppendSchema(nil, want))
	r, err := recs.Next()
	if err != nil || r.Kind != KindSchema {
		t.Fatal(r.Kind, err)
	}
	if got, err := ParseSchema(r.Payload); err != nil || *got != *want {
		t.Errorf("%+v, %v", got, err)
	}
	for n := range r.Payload {
		if _, err := ParseSchema(r.Payload[:n]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut off at %d: %v", n, err)
		}
	}
	if _, err := ParseSchema(append(r.Payload, 0)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("with more behind it: %v", err)
	}
	for _, schemas := range []uint64{0, 3} {
		recs := NewRecords(AppendLargeCommit(nil, LargeCommit{Run: 5, Aborts: 1, Schemas: schemas}))
		r, _ := recs.Next()
		if c, err := ParseLargeCommit(r.Payload); err != nil || c.Schemas != schemas || c.Aborts != 1 {
			t.Errorf("large commit %+v, %v", c, err)
		}
	}
}

// TestSchemaMessagesAreSigned: any user may write a message, and only pgbridge.ddl knows the secret.
func TestSchemaMessagesAreSigned(t *testing.T) {
	payload := []byte(`{"xid":7,"role":"ann","search_path":"public","sql":"DROP TABLE t"}`)
	sum := sha256.Sum256(append([]byte("secret"), payload...))
	signed := append(sum[:], payload...)
	m, err := ParseSchemaMessage(signed, "secret")
	if err != nil || m.XID != 7 || m.Role != "ann" || m.SearchPath != "public" || m.SQL != "DROP TABLE t" {
		t.Fatalf("%+v, %v", m, err)
	}
	for name, bad := range map[string][]byte{"of another": append(slices.Clone(signed), ' '), "short": signed[:31], "without": payload} {
		if _, err := ParseSchemaMessage(bad, "secret"); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, secret := range []string{"", "guess"} {
		if _, err := ParseSchemaMessage(signed, secret); !errors.Is(err, ErrCorrupt) {
			t.Errorf("with secret %q: %v", secret, err)
		}
	}
}
