package apply

import (
	"testing"
	"time"
)

// TestPace: what was applied is paid for afterwards, time that was not used counts for a moment only, and without a bound nothing is.
func TestPace(t *testing.T) {
	now := time.Now()
	p := newPace(1000)
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
		if got, _ := p.due(now); got != step.want {
			t.Errorf("%v later, after %d bytes more: %v are due, want %v", step.passes, step.bytes, got, step.want)
		}
	}
	free := newPace(0)
	free.used(1<<40, now)
	if due, _ := free.due(now); due > 0 {
		t.Errorf("without a bound %v are due", due)
	}
}

// TestPaceIsSet: who waits hears of another rate, and has to wait for what is not paid for at that one.
func TestPaceIsSet(t *testing.T) {
	now := time.Now()
	p := newPace(1000)
	p.used(4100, now)
	for _, step := range []struct {
		rate int64
		want time.Duration
	}{{2000, 2 * time.Second}, {500, 8 * time.Second}, {0, 0}, {1000, 0}} {
		_, changed := p.due(now)
		p.set(step.rate, now)
		select {
		case <-changed:
		default:
			t.Errorf("rate %d: who waits does not hear of it", step.rate)
		}
		if got, _ := p.due(now); max(got, 0).Round(time.Microsecond) != step.want {
			t.Errorf("rate %d: %v are due, want %v", step.rate, got, step.want)
		}
	}
	_, changed := p.due(now)
	p.set(1000, now)
	select {
	case <-changed:
		t.Error("the same rate wakes who waits")
	default:
	}
}
