package apply

import (
	"testing"
	"time"
)

// TestYields: apply gives way step by step while users are at work, never stops, and goes on as before when they are through.
func TestYields(t *testing.T) {
	y := newYields(4)
	rest := func(worked, want time.Duration) {
		t.Helper()
		if got, _ := y.rest(worked); got != want {
			t.Errorf("after %v of work it rests %v, want %v", worked, got, want)
		}
	}
	y.look(3, true)
	rest(time.Hour, 0)
	y.look(4, true)
	rest(slice-1, 0) // not yet
	rest(slice, slice)
	y.look(9, true)
	rest(slice, 3*slice)
	for range 20 {
		y.look(9, true)
	}
	rest(slice, 7*slice)
	rest(time.Hour, longestRest)
	_, over := y.rest(slice)
	for range 3 {
		y.look(0, true)
	}
	rest(time.Hour, 0)
	select {
	case <-over:
	default:
		t.Error("who rests does not hear that it is over")
	}
	y.look(9, false)
	rest(time.Hour, 0) // it cannot be known
	y.look(9, true)
	_, over = y.rest(slice)
	y.set(0)
	y.look(9, true)
	rest(time.Hour, 0)
	select {
	case <-over:
	default:
		t.Error("who rests does not hear that it is switched off")
	}
	var none *yields
	if got, _ := none.rest(time.Hour); got != 0 {
		t.Errorf("a worker without users rests %v", got)
	}
}
