package bridge

import (
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/stream"
)

// TestLettingGoHasHysteresis: it begins below the budget, and goes on until there is room for a while.
func TestLettingGoHasHysteresis(t *testing.T) {
	for _, x := range []struct {
		bytes uint64
		begin bool
		want  uint64
	}{{1500, true, 0}, {1501, true, 101}, {1500, false, 100}, {1400, false, 0}, {3000, true, 1600}, {0, true, 0}} {
		if got := surplus(stream.Extent{Bytes: x.bytes}, 1600, x.begin); got != x.want {
			t.Errorf("%d bytes, beginning: %t: %d are too many, want %d", x.bytes, x.begin, got, x.want)
		}
	}
}

func TestLetGoAlarm(t *testing.T) {
	a := letGoAlarm(&LetGoReport{Node: "b", SeenSeq: 5, GoneSeq: 9, Transactions: 4, Since: time.Date(2026, 11, 29, 1, 2, 3, 0, time.UTC)})
	if a.Code != "node-let-go" || a.Severity != SeverityWarning || !strings.Contains(a.Text, "node b") || !strings.Contains(a.Text, "4 own transactions") ||
		!strings.Contains(a.Text, "2026-11-29T01:02:03Z") {
		t.Errorf("alarm %+v", a)
	}
}
