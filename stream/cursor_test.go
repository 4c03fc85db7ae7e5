package stream

import (
	"errors"
	"testing"

	"github.com/nats-io/nats.go"
)

// TestStatusOfARequest has what a broker says of a request that it does not serve whole: what is left of
// it does not come any more and must be asked for again.
func TestStatusOfARequest(t *testing.T) {
	for name, tc := range map[string]struct {
		header nats.Header
		frames int
		bytes  int64
		lost   bool
	}{
		"heartbeat": {nats.Header{"Status": {"100"}, "Description": {"Idle Heartbeat"}}, 10, 1000, false},
		"expired":   {pendingHeader("408", "Request Timeout", "3", "400"), 7, 600, false},
		"too large": {pendingHeader("409", "Message Size Exceeds MaxBytes", "10", "1000"), 0, 0, false},
		"too many":  {pendingHeader("408", "Request Timeout", "11", "2000"), 0, 0, false},
		"deleted":   {nats.Header{"Status": {"409"}, "Description": {"Consumer Deleted"}}, 10, 1000, true},
		"absent":    {nats.Header{"Status": {"503"}}, 10, 1000, true},
		"garbled":   {pendingHeader("408", "Request Timeout", "x", "1"), 10, 1000, true},
	} {
		c := cursor{frames: 10, bytes: 1000}
		m := &nats.Msg{Header: tc.header}
		if !isStatus(m) {
			t.Errorf("%s: taken for a frame", name)
		}
		err := c.note(m)
		if errors.Is(err, errCursorLost) != tc.lost || c.frames != tc.frames || c.bytes != tc.bytes {
			t.Errorf("%s: %v, %d frames and %d bytes to come", name, err, c.frames, c.bytes)
		}
	}
}

func pendingHeader(code, text, frames, bytes string) nats.Header {
	return nats.Header{
		"Status": {code}, "Description": {text}, "Nats-Pending-Messages": {frames}, "Nats-Pending-Bytes": {bytes},
	}
}
