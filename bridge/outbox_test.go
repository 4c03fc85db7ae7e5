package bridge

import (
	"testing"

	"github.com/pgbridge/pgbridge/wire"
)

// TestPurgeKeepsWhatARestartNeeds: three frames of ten transactions, whose commits lie below LSN 100, 200 and
// 300.
func TestPurgeKeepsWhatARestartNeeds(t *testing.T) {
	for _, x := range []struct {
		name         string
		stable, hold uint64
		want         uint64
	}{
		{"nothing is stable", 9, 0, 0},
		{"the frame of the last stable transaction stays", 10, 0, 0},
		{"two are stable", 20, 0, 2},
		{"all are stable", 30, 0, 3},
		{"a delete in the second frame is held", 30, 150, 0},
		{"a delete in the third frame is held", 30, 200, 2},
		{"a delete behind all frames is held", 30, 300, 3},
	} {
		o := &outbox{}
		for i := uint64(1); i <= 3; i++ {
			o.note(i, &wire.Frame{Header: wire.Header{LastSeq: 10 * i, ResumeLSN: 100 * i}})
		}
		if got := o.below(x.stable, x.hold); got != x.want {
			t.Errorf("%s: everything below frame %d goes; want %d", x.name, got, x.want)
		}
	}
}

// TestLettingGoStopsWhereItMay: ten frames of one transaction each, of which every second one is known.
func TestLettingGoStopsWhereItMay(t *testing.T) {
	for _, x := range []struct {
		name               string
		want, stable, hold uint64
		below              uint64
	}{
		{"the first place that is known behind the one that is wanted", 4, 9, 0, 5},
		{"that one itself", 5, 9, 0, 5},
		{"no further than what others have", 9, 5, 0, 5},
		{"no further than a delete that is held", 9, 9, 350, 3},
		{"nothing is stable", 4, 0, 0, 0},
		{"the frame of the last stable transaction stays", 4, 1, 0, 0},
	} {
		o := &outbox{}
		for i := uint64(1); i <= 10; i += 2 {
			o.note(i, &wire.Frame{Header: wire.Header{LastSeq: i, ResumeLSN: 100 * i}})
		}
		if got := o.toward(x.want, x.stable, x.hold); got != x.below {
			t.Errorf("%s: everything below frame %d goes; want %d", x.name, got, x.below)
		}
	}
}
