package bridge

import (
	"strings"
	"testing"
	"time"
)

// TestStandstill: a stream may grow when it was full for a while and nobody has seen more, and once each time.
func TestStandstill(t *testing.T) {
	var s standstill
	start := time.Now()
	for _, x := range []struct {
		after  time.Duration
		full   bool
		stable uint64
		want   bool
	}{
		{0, true, 5, false},
		{fullPatience - 1, true, 5, false},
		{fullPatience, true, 6, false}, // a peer has seen more
		{2 * fullPatience, true, 6, true},
		{2*fullPatience + 1, true, 6, false}, // give it time
		{3 * fullPatience, false, 6, false},
		{4 * fullPatience, true, 6, false}, // full anew
		{5 * fullPatience, true, 6, true},
	} {
		if got := s.lasts(x.full, x.stable, start.Add(x.after)); got != x.want {
			t.Errorf("after %v, full %t, stable %d: %t", x.after, x.full, x.stable, got)
		}
	}
}

func TestFullAlarmNamesWhoIsWaitedFor(t *testing.T) {
	a := fullAlarm("no room", []string{"b (has seen 5 of 9 transactions, is away)"}, 7)
	if a.Code != "stream-full" || !strings.Contains(a.Mend, "b (has seen 5 of 9") || !strings.Contains(a.Mend, "stream.max_bytes") {
		t.Errorf("%+v", a)
	}
}
