package wire

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/pgbridge/pgbridge/origin"
)

func newSigner(t testing.TB, seed byte) *Signer {
	t.Helper()
	s, err := NewSigner(bytes.Repeat([]byte{seed}, SignSeedBytes))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// newVerifier knows the key of node a, whose seed is 1, and of node b, whose seed is 2.
func newVerifier(t testing.TB, require bool) *Verifier {
	t.Helper()
	public := func(seed byte) []byte { return newSigner(t, seed).key.Public().(ed25519.PublicKey) }
	v, err := NewVerifier(map[string][]byte{"a": public(1), "b": public(2)}, require)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// sent is a frame as it comes to who reads what a node sends.
func sent(t testing.TB, signer *Signer, f *Frame) *Frame {
	t.Helper()
	data, err := (&Encoder{Signer: signer}).Append(nil, f)
	if err != nil {
		t.Fatal(err)
	}
	got, err := new(Decoder).Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// TestSignedFramesAreTheirAuthors: what an author has signed is taken from whoever hands it on, and nothing that is changed.
func TestSignedFramesAreTheirAuthors(t *testing.T) {
	v := newVerifier(t, true)
	own := sent(t, newSigner(t, 1), exampleFrame())
	if err := v.Check(own); err != nil {
		t.Fatal(err)
	}
	handOn := func() *Frame {
		f := *own
		f.Sender, f.OriginWriter, f.WriterEpoch, f.Hops, f.Back = "b", own.WriterEpoch, 9, []string{"a"}, 99
		return sent(t, nil, &f)
	}
	if err := v.Check(handOn()); err != nil {
		t.Fatalf("handed on: %v", err)
	}
	for name, change := range map[string]func(*Frame){
		"cluster": func(f *Frame) { f.Cluster = "other" }, "origin": func(f *Frame) { f.Origin.Node = "b" },
		"epoch": func(f *Frame) { f.Origin.Epoch++ }, "writer": func(f *Frame) { f.OriginWriter++ },
		"first": func(f *Frame) { f.FirstSeq-- }, "last": func(f *Frame) { f.LastSeq++ }, "stamp": func(f *Frame) { f.LastStamp++ },
		"first time": func(f *Frame) { f.FirstCommitTime++ }, "last time": func(f *Frame) { f.LastCommitTime++ },
		"up": func(f *Frame) { f.Up = vector("b", 4) }, "low": func(f *Frame) { f.Low = vector("b", 3) }, "place": func(f *Frame) { f.ResumeLSN++ },
		"mark": func(f *Frame) { f.Mark.Seq++ }, "server": func(f *Frame) { f.SystemID++ }, "timeline": func(f *Frame) { f.Timeline++ },
		"standbys": func(f *Frame) { f.Standbys = "b1" }, "body": func(f *Frame) { f.Body[len(f.Body)-1]++ },
		"no body": func(f *Frame) { f.Body = nil }, "signature": func(f *Frame) { f.Signature[3]++ }, "short signature": func(f *Frame) { f.Signature = f.Signature[:5] },
		"no signature": func(f *Frame) { f.Signature = nil },
		"another's":    func(f *Frame) { f.Signature = sent(t, newSigner(t, 2), exampleFrame()).Signature },
		"unknown node": func(f *Frame) { f.Origin.Node = "x" },
		"body beside its claim": func(f *Frame) {
			f.Keep()
			f.FirstSeq, f.Body = 0, AppendNumber(f.Body, KindRunAbort, 7)
		},
		"origin beside its claim":  func(f *Frame) { f.Keep(); f.Origin = origin.Origin{Node: "a", Epoch: 2} },
		"cluster beside its claim": func(f *Frame) { f.Keep(); f.Cluster = "other" },
		"writer beside its claim":  func(f *Frame) { f.Keep(); f.OriginWriter++ },
		"claim":                    func(f *Frame) { f.Keep(); f.Claim[1]++ },
		"short claim":              func(f *Frame) { f.Claim = []byte("claim") },
	} {
		f := handOn()
		change(f)
		data, err := new(Encoder).Append(nil, f)
		if err != nil {
			t.Fatal(err)
		}
		got, err := new(Decoder).Decode(data)
		if err == nil {
			err = v.Check(got)
		}
		if !errors.Is(err, ErrSignature) && !(name == "short claim" && errors.Is(err, ErrCorrupt)) {
			t.Errorf("%s changed: %v", name, err)
		}
	}
	if err := newVerifier(t, false).Check(sent(t, nil, exampleFrame())); err != nil {
		t.Errorf("not signed, where that is permitted: %v", err)
	}
	if err := (*Verifier)(nil).Check(sent(t, nil, exampleFrame())); err != nil {
		t.Errorf("not checked: %v", err)
	}
}

// TestSignedFramesGoOn: who hands on what comes again leaves out what was handed on, and whoever checks it has all that was signed. Who
// does not gets what is left, also through another one.
func TestSignedFramesGoOn(t *testing.T) {
	body := func(from, to uint64) (b []byte) {
		for seq := from; seq <= to; seq++ {
			b = AppendCommit(AppendBegin(b, Begin{Seq: seq}))
		}
		return AppendLost(b, exampleLosses())
	}
	for _, x := range []struct{ behind, first uint64 }{{3, 4}, {5, 0}, {7, 0}} {
		author := exampleFrame()
		author.FirstSeq, author.LastSeq, author.LastStamp, author.Body = 2, 5, 500, body(2, 5)
		as := sent(t, newSigner(t, 1), author)
		f := *as
		head := Header{Origin: author.Origin, LastSeq: x.behind, LastStamp: origin.Stamp(x.behind * 100), Up: vector("b", 9), Low: vector("b", 8), SystemID: author.SystemID, Timeline: 1, ResumeLSN: author.ResumeLSN + 1}
		if err := f.GoOn(&head); err != nil {
			t.Fatal(err)
		}
		f.OriginWriter, f.Sender, f.WriterEpoch, f.Hops = f.RunWriter(), "b", 9, []string{"a"}
		for range 2 { // once more
			got := sent(t, nil, &f)
			if got.FirstSeq != x.first || got.LastSeq != max(x.behind, 5) || !bytes.Equal(got.Body, body(x.behind+1, 5)) {
				t.Fatalf("behind %d: transactions %d to %d, %d bytes", x.behind, got.FirstSeq, got.LastSeq, len(got.Body))
			}
			f = *got
			f.Hops = append(slices.Clone(f.Hops), f.Sender)
		}
		got := sent(t, nil, &f)
		if err := newVerifier(t, true).Check(got); err != nil {
			t.Fatal(err)
		}
		want := *as
		want.Sender, want.WriterEpoch, want.OriginWriter, want.Hops = got.Sender, got.WriterEpoch, got.OriginWriter, got.Hops
		if !reflect.DeepEqual(got, &want) {
			t.Errorf("behind %d it says\n%+v\nand said\n%+v", x.behind, got, &want)
		}
		if err := got.GoOn(&head); err != nil || !bytes.Equal(got.Body, f.Body) {
			t.Errorf("behind %d again: %v", x.behind, err)
		}
		// Somebody takes more out.
		f.whole = append(slices.Clone(f.whole), body(6, 6)...)
		if err := newVerifier(t, true).Check(sent(t, nil, &f)); f.whole != nil && !errors.Is(err, ErrSignature) {
			t.Errorf("behind %d another body is taken: %v", x.behind, err)
		}
	}
}

// TestSignedFences: a fence says what its author has signed, or nothing.
func TestSignedFences(t *testing.T) {
	v := newVerifier(t, true)
	fence := Frame{Header: exampleFrame().Header, Body: []byte{}}
	fence.Fence, fence.FirstSeq, fence.WriterEpoch, fence.Back = true, 0, 4, 0
	fence.Signature = []byte("of another frame, whose header it has")
	own := sent(t, newSigner(t, 1), &fence)
	if err := v.Check(own); err != nil || !own.Low.Equal(fence.Low) {
		t.Errorf("own fence: %v", err)
	}
	own.Low = vector("b", 99)
	if err := v.Check(sent(t, nil, own)); !errors.Is(err, ErrSignature) {
		t.Errorf("own fence, changed: %v", err)
	}
	tail := sent(t, newSigner(t, 1), exampleFrame())
	tail.Keep()
	handed := Frame{Header: tail.Header}
	handed.Fence, handed.Sender, handed.WriterEpoch, handed.OriginWriter, handed.Back, handed.FirstSeq = true, "b", 11, 3, 0, 0
	handed.Low = vector("b", 99)
	got := sent(t, nil, &handed)
	if err := v.Check(got); err != nil || !got.Low.Equal(tail.Low) || got.WriterEpoch != 11 || got.FirstSeq != 0 {
		t.Errorf("fence of who hands on: %v, %+v", err, got)
	}
	if again := sent(t, nil, got); v.Check(again) != nil || !again.Low.Equal(tail.Low) {
		t.Errorf("and again: %+v", again)
	}
	handed.Signature, handed.Claim = nil, nil
	if got := sent(t, nil, &handed); v.Check(got) != nil || got.Low != nil || got.Up != nil || got.LastSeq != 0 {
		t.Errorf("a fence that is not signed says %+v", got)
	}
}

func BenchmarkSign(b *testing.B) {
	f := exampleFrame()
	f.Body = make([]byte, 64<<10)
	e := Encoder{Signer: newSigner(b, 1)}
	var buf []byte
	b.Run("sign", func(b *testing.B) {
		for b.Loop() {
			buf, _ = e.Append(buf[:0], f)
		}
	})
	v := newVerifier(b, true)
	got, err := new(Decoder).Decode(buf)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("check", func(b *testing.B) {
		for b.Loop() {
			if err := v.Check(got); err != nil {
				b.Fatal(err)
			}
		}
	})
}
