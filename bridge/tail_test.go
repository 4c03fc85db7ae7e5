package bridge

import (
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/wire"
)

// TestTailOfAnotherHistory: a bridge goes on behind the last own frame only on the server that wrote it.
func TestTailOfAnotherHistory(t *testing.T) {
	for _, x := range []struct {
		name string
		tail *wire.Frame
		want string // "" for none
	}{
		{"the same server", &wire.Frame{Header: wire.Header{LastSeq: 7, SystemID: 5, Timeline: 1}}, ""},
		{"a fence of a first start", &wire.Frame{Header: wire.Header{LastSeq: 7}}, ""},
		{"an older stream", &wire.Frame{Header: wire.Header{LastSeq: 6, SystemID: 5, Timeline: 1}}, "ends with transaction 6"},
		{"another cluster", &wire.Frame{Header: wire.Header{LastSeq: 7, SystemID: 6, Timeline: 1}}, "another PostgreSQL cluster"},
		{"another timeline", &wire.Frame{Header: wire.Header{LastSeq: 7, SystemID: 5, Timeline: 2}}, "timeline 2, the server is on timeline 1"},
	} {
		err := (&life{}).checkTail(x.tail, apply.Node{Name: "a", Published: 7}, capture.SlotInfo{SystemID: 5, Timeline: 1})
		if err == nil && x.want == "" {
			continue
		}
		if err == nil || x.want == "" || !strings.Contains(err.Error(), x.want) || !permanent(err) {
			t.Errorf("%s: %v; want %q, for good", x.name, err, x.want)
		}
	}
}
