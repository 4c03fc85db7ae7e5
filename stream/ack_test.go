package stream

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func TestAckIsRead(t *testing.T) {
	for name, tc := range map[string]struct {
		ack  string
		want uint64 // 0: an error
	}{
		"plain":     {`{"stream":"S", "seq":17}`, 17},
		"tight":     {`{"stream":"S","seq":17}`, 17},
		"domain":    {`{"stream":"S", "domain":"hub", "seq":17}`, 17},
		"large":     {`{"stream":"S", "seq":18446744073709551615}`, 1<<64 - 1},
		"other":     {`{"stream":"T", "seq":17}`, 0},
		"duplicate": {`{"stream":"S", "seq":17,"duplicate": true}`, 0},
		"error":     {`{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 5"},"stream":"S","seq":0}`, 0},
		"no number": {`{"stream":"S", "seq":}`, 0},
		"no ack":    {`+OK`, 0},
		"empty":     {``, 0},
	} {
		seq, err := newAckParser("S").read(&nats.Msg{Data: []byte(tc.ack)})
		if seq != tc.want || (err != nil) != (tc.want == 0) {
			t.Errorf("%s: %d, %v", name, seq, err)
		}
	}
	_, err := newAckParser("S").read(&nats.Msg{Header: nats.Header{"Status": {"503"}}})
	wantErr(t, err, nats.ErrNoResponders)
}

func TestFullIsToldFromOtherErrors(t *testing.T) {
	for code, want := range map[jetstream.ErrorCode]bool{
		codeAccountFull: true, codeServerFull: true, codeNoStorage: true, codeStoreFailed: true,
		jetstream.JSErrCodeStreamWrongLastSequence: false, jetstream.JSErrCodeStreamNotFound: false,
	} {
		if got := isFull(&jetstream.APIError{ErrorCode: code}); got != want {
			t.Errorf("code %d: %t", code, got)
		}
	}
	if isFull(errors.New("x")) || isFull(nil) {
		t.Error("an error that is not the broker's counts as full")
	}
}

func TestAckSubject(t *testing.T) {
	life, seq, ok := parseAckSubject(ackSubject("_INBOX.abc", 7, 1<<60))
	if !ok || life != 7 || seq != 1<<60 {
		t.Errorf("%d %d %t", life, seq, ok)
	}
	for _, s := range []string{"", "x", ".", "a.b", "a.1.x", "a.x.1", "1"} {
		if _, _, ok := parseAckSubject(s); ok {
			t.Errorf("%q was taken", s)
		}
	}
}

// FuzzAck compares the fast way with encoding/json.
func FuzzAck(f *testing.F) {
	f.Add([]byte(`{"stream":"S", "seq":17}`))
	f.Add([]byte(`{"stream":"S","seq":17,"duplicate":true}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		a := newAckParser("S")
		got, ok := a.fast(data)
		if !ok {
			return
		}
		var want struct {
			Stream string
			Seq    uint64
		}
		if err := json.Unmarshal(data, &want); err != nil {
			t.Fatalf("%q: %v", data, err)
		}
		if want.Stream != "S" || want.Seq != got {
			t.Fatalf("%q: got %d, want %d", data, got, want.Seq)
		}
	})
}
