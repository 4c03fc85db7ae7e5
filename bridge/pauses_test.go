package bridge

import (
	"slices"
	"testing"
	"time"
)

func TestPausesBeginAgainAfterASuccess(t *testing.T) {
	var p pauses
	var got []time.Duration
	for i := range 10 {
		got = append(got, p.next(i == 8)/time.Millisecond)
	}
	if want := []time.Duration{100, 200, 400, 800, 1600, 3200, 5000, 5000, 100, 200}; !slices.Equal(got, want) {
		t.Errorf("pauses of %d ms, want %d", got, want)
	}
}
