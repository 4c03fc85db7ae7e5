package wire

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math/rand"
	"runtime"
	"testing"

	"github.com/pgbridge/pgbridge/origin"
)

var sealAuthor = origin.Origin{Node: "a", Epoch: 1}

func sealKey(b byte) []byte { return bytes.Repeat([]byte{b}, SealKeyBytes) }

func newSealer(t testing.TB, group string, key byte) *Sealer {
	t.Helper()
	s, err := NewSealer(sealAuthor, group, sealKey(key), bytes.Repeat([]byte{7}, SealPrefixBytes))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newOpener(t testing.TB, node string, keys ...byte) *Opener {
	t.Helper()
	var all [][]byte
	for _, k := range keys {
		all = append(all, sealKey(k))
	}
	o, err := NewOpener(node, all)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// TestSealedRecordsAreForTheirNodes: who has the key reads what was written, who is not meant reads the rest, and who is meant and has no
// key is told.
func TestSealedRecordsAreForTheirNodes(t *testing.T) {
	s := newSealer(t, Group([]string{"b", "a"}), 1)
	row := func(text string) []byte { return appendRecord(nil, KindInsert, []byte(text)) }
	body := s.Append(nil, SealedRelation, appendRecord(nil, KindRelation, []byte("described")))
	body = append(body, row("open")...)
	body = s.Append(body, SealedChange, row("secret"))
	body = append(body, row("open again")...)
	if bytes.Contains(body, []byte("secret")) || bytes.Contains(body, []byte("described")) {
		t.Fatal("it can be read")
	}
	want := append(appendRecord(nil, KindRelation, []byte("described")), append(append(row("open"), row("secret")...), row("open again")...)...)
	for node, keys := range map[string][]byte{"a": {1}, "b": {3, 1}} {
		if got, err := newOpener(t, node, keys...).Body(sealAuthor, body); err != nil || !bytes.Equal(got, want) {
			t.Errorf("node %s reads %q, %v", node, got, err)
		}
	}
	if got, err := newOpener(t, "c", 1).Body(sealAuthor, body); err != nil || !bytes.Equal(got, append(row("open"), row("open again")...)) {
		t.Errorf("node c reads %q, %v", got, err)
	}
	if _, err := newOpener(t, "b", 2).Body(sealAuthor, body); !errors.Is(err, ErrSealed) {
		t.Errorf("node b, which lacks the key: %v", err)
	}
	if _, err := newOpener(t, "b", 1).Body(origin.Origin{Node: "b", Epoch: 1}, body); !errors.Is(err, ErrCorrupt) {
		t.Errorf("as of another author: %v", err)
	}
	plain := append(row("open"), row("open again")...)
	if got, err := newOpener(t, "b").Body(sealAuthor, plain); err != nil || &got[0] != &plain[0] {
		t.Errorf("what is not sealed becomes %q, %v", got, err)
	}
}

// TestTamperedSealIsFound: whatever byte is changed, the record is not taken for what was written.
func TestTamperedSealIsFound(t *testing.T) {
	body := newSealer(t, "a b", 1).Append(nil, SealedChange, appendRecord(nil, KindInsert, []byte("secret")))
	o := newOpener(t, "b", 1)
	want, err := o.Body(sealAuthor, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := range body {
		bad := bytes.Clone(body)
		bad[i] ^= 1
		if got, err := o.Body(sealAuthor, bad); err == nil && bytes.Equal(got, want) {
			t.Errorf("byte %d is changed, and nobody minds", i)
		}
	}
}

// TestNoncesAreUsedOnce.
func TestNoncesAreUsedOnce(t *testing.T) {
	s := newSealer(t, "a b", 1)
	a := s.Append(nil, SealedChange, []byte("x"))
	if b := s.Append(nil, SealedChange, []byte("x")); bytes.Equal(a, b) {
		t.Error("the same is sealed alike twice")
	}
}

// TestSealedRunIsReadAsWritten: rows of all sizes, some sealed for us, some for others, some not at all, however they are read.
func TestSealedRunIsReadAsWritten(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	ours, theirs := newSealer(t, "a b", 1), newSealer(t, "a c", 2)
	var run, want []byte
	for range 200 {
		size := r.Intn(300)
		if r.Intn(10) == 0 {
			size = r.Intn(4 * SealPiece)
		}
		data := make([]byte, size)
		r.Read(data)
		row := appendRecord(nil, KindInsert, data)
		switch r.Intn(3) {
		case 0:
			run, want = append(run, row...), append(want, row...)
		case 1:
			cut := r.Intn(len(row) + 1) // as a row that comes in parts
			run = ours.Append(ours.Append(run, SealedChange, row[:cut]), SealedRest, row[cut:])
			want = append(want, row...)
		case 2:
			run = theirs.Append(run, SealedChange, row)
		}
	}
	o := newOpener(t, "b", 1)
	got, err := io.ReadAll(io.Reader(o.NewOpenedRun(sealAuthor, bufio.NewReaderSize(bytes.NewReader(run), 16))))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes are read, want %d; %v", len(got), len(want), err)
	}
	if body, err := o.Body(sealAuthor, run); err != nil || !bytes.Equal(body, want) {
		t.Errorf("as a body it has %d bytes, want %d; %v", len(body), len(want), err)
	}
	for _, cut := range []int{1, len(run) - 1} {
		if _, err := io.ReadAll(o.NewOpenedRun(sealAuthor, bufio.NewReader(bytes.NewReader(run[:cut])))); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut off behind %d bytes: %v", cut, err)
		}
	}
}

func FuzzSealed(f *testing.F) {
	s, err := NewSealer(sealAuthor, "a b", sealKey(1), make([]byte, SealPrefixBytes))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s.Append(nil, SealedChange, appendRecord(nil, KindInsert, []byte("secret"))))
	f.Add([]byte("E\x00"))
	o, err := NewOpener("b", [][]byte{sealKey(1)})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := o.Body(sealAuthor, body)
		read, late := io.ReadAll(o.NewOpenedRun(sealAuthor, bufio.NewReader(bytes.NewReader(body))))
		if err == nil && (late != nil || !bytes.Equal(got, read)) {
			t.Errorf("as a body %q, as a run %q, %v", got, read, late)
		}
	})
}

// TestSealedBodiesAreCopiedFewTimes: however many records are sealed in a body, it is not moved for each of them.
func TestSealedBodiesAreCopiedFewTimes(t *testing.T) {
	s, o := newSealer(t, "a b", 1), newOpener(t, "a", 1)
	row := appendRecord(nil, KindInsert, bytes.Repeat([]byte("x"), 500))
	var body []byte
	allocated := func(do func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		do()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	sealing := allocated(func() {
		for range 10000 {
			body = s.Append(body, SealedChange, row)
		}
	})
	opening := allocated(func() {
		if plain, err := o.Body(sealAuthor, body); err != nil || len(plain) != 10000*len(row) {
			t.Errorf("%d bytes are opened, %v", len(plain), err)
		}
	})
	if most := uint64(20 * len(body)); sealing > most || opening > most {
		t.Errorf("sealing %d bytes takes %d of memory, opening them %d", len(body), sealing, opening)
	}
}
