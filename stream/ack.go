package stream

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// ackSubject is where the ack of a frame goes.
func ackSubject(inbox string, life, seq uint64) string {
	b := make([]byte, 0, len(inbox)+24)
	b = append(append(b, inbox...), '.')
	b = append(strconv.AppendUint(b, life, 10), '.')
	return string(strconv.AppendUint(b, seq, 10))
}

// parseAckSubject undoes ackSubject.
func parseAckSubject(subject string) (life, seq uint64, ok bool) {
	i := strings.LastIndexByte(subject, '.')
	j := strings.LastIndexByte(subject[:max(i, 0)], '.')
	if j < 0 {
		return 0, 0, false
	}
	life, err1 := strconv.ParseUint(subject[j+1:i], 10, 64)
	seq, err2 := strconv.ParseUint(subject[i+1:], 10, 64)
	return life, seq, err1 == nil && err2 == nil
}

// ackParser reads a publish ack of one stream: {"stream":"S", "seq":N} or one with an error.
type ackParser struct {
	stream string
	begin  []byte // of an ack that is not an error
}

func newAckParser(stream string) ackParser {
	return ackParser{stream, []byte(`{"stream":"` + stream + `",`)}
}

var seqKey = []byte(`"seq":`)

// read returns the sequence under which a message was stored. Its error is the broker's, a
// *jetstream.APIError, or says that the ack is not what it must be.
func (a ackParser) read(m *nats.Msg) (uint64, error) {
	if len(m.Data) == 0 {
		if m.Header.Get("Status") == "503" {
			return 0, nats.ErrNoResponders
		}
		return 0, errors.New("an ack without content")
	}
	if seq, ok := a.fast(m.Data); ok {
		return seq, nil
	}
	var ack struct {
		Error     *jetstream.APIError `json:"error"`
		Stream    string              `json:"stream"`
		Seq       uint64              `json:"seq"`
		Duplicate bool                `json:"duplicate"`
	}
	if err := json.Unmarshal(m.Data, &ack); err != nil {
		return 0, fmt.Errorf("an ack that cannot be read: %w", err)
	}
	switch {
	case ack.Error != nil:
		return 0, ack.Error
	case ack.Stream != a.stream:
		return 0, fmt.Errorf("an ack of stream %s", ack.Stream)
	case ack.Duplicate:
		return 0, errors.New("an ack that calls the frame a duplicate")
	}
	return ack.Seq, nil
}

// fast reads the one form that a plain ack has in nats-server, and leaves all others to read.
func (a ackParser) fast(b []byte) (uint64, bool) {
	b, ok := bytes.CutPrefix(b, a.begin)
	if !ok {
		return 0, false
	}
	if b, ok = bytes.CutPrefix(bytes.TrimLeft(b, " "), seqKey); !ok {
		return 0, false
	}
	b, ok = bytes.CutSuffix(b, []byte("}"))
	if !ok {
		return 0, false
	}
	var seq uint64
	b = bytes.TrimLeft(b, " ")
	if len(b) == 0 || len(b) > 19 || len(b) > 1 && b[0] == '0' {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		seq = seq*10 + uint64(c-'0')
	}
	return seq, true
}
