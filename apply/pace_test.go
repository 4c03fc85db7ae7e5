package apply

import (
	"testing"
	"time"
)

// TestPace: what was applied is paid for afterwards, time that was not used counts for a moment only, and without a bound nothing is.
func TestPace(t *testing.T) {
	now := time.Now()
	p := &pace{rate: 1000}
	for _, step := range []struct {
		passes time.Duration
		bytes  int64
		want   time.Duration
	}{
		{0, 600, 500 * time.Millisecond},
		{200 * time.Millisecond, 0, 300 * time.Millisecond},
		{0, 1700, 2 * time.Second},
		{time.Hour, 100, 0},
		{time.Hour, 5100, 5 * time.Second},
	} {
		now = now.Add(step.passes)
		p.used(step.bytes, now)
		if got := p.due(now); got != step.want {
			t.Errorf("%v later, after %d bytes more: %v are due, want %v", step.passes, step.bytes, got, step.want)
		}
	}
	free := &pace{}
	if free.used(1<<40, now); free.due(now) > 0 {
		t.Errorf("without a bound %v are due", free.due(now))
	}
}
