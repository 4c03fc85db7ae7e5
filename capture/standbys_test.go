package capture

import (
	"strings"
	"testing"
)

// TestGuard: standbys are held when they have all that was flushed before the walsender was sure to wait for them, and given up
// as soon as it may not.
func TestGuard(t *testing.T) {
	on := func(names string, lsn, flush uint64) Standbys {
		return Standbys{Failover: true, Names: names, LSN: lsn, flush: flush}
	}
	type look struct {
		s      Standbys
		begins bool
		want   string
	}
	for name, x := range map[string]struct {
		tail  string
		looks []look
	}{
		"nobody is waited for":         {"", []look{{on("", 0, 9), true, ""}, {on("", 0, 9), false, ""}}},
		"from the beginning":           {"", []look{{on("s", 5, 9), true, ""}, {on("s", 8, 20), false, ""}, {on("s", 9, 30), false, "s"}}},
		"the walsender hears of it":    {"", []look{{on("", 0, 9), true, ""}, {on("s", 9, 9), false, ""}, {on("s", 9, 12), false, ""}, {on("s", 11, 13), false, ""}, {on("s", 12, 14), false, "s"}}},
		"as it was":                    {"s", []look{{on("s", 5, 9), true, "s"}, {on("s", 5, 9), false, "s"}}},
		"given up":                     {"s", []look{{on("s", 5, 9), true, "s"}, {on("", 0, 9), false, ""}, {on("", 0, 9), false, ""}}},
		"given up and back":            {"s", []look{{on("", 0, 9), true, ""}, {on("s", 9, 9), false, ""}, {on("s", 9, 9), false, ""}, {on("s", 9, 9), false, "s"}}},
		"another one":                  {"s", []look{{on("r,s", 5, 9), true, ""}, {on("r,s", 9, 9), false, "r,s"}}},
		"the slot is not for failover": {"s", []look{{Standbys{Names: "s", LSN: 9, flush: 9}, true, ""}, {Standbys{Names: "s", LSN: 9, flush: 9}, false, ""}}},
	} {
		g := &guard{}
		g.resume(x.tail)
		for i, l := range x.looks {
			g.look(l.s, l.begins)
			if got := g.names(); got != l.want {
				t.Errorf("%s: after look %d %q is held, want %q", name, i, got, l.want)
			}
		}
	}
}

// TestNothingIsShownBehindAPromise: what a standby may lack is not shown before a frame is stored that says so.
func TestNothingIsShownBehindAPromise(t *testing.T) {
	for _, x := range []struct {
		last, held string
		want       bool
	}{{"", "", true}, {"", "s", true}, {"s", "s", true}, {"s", "", false}, {"s", "r,s", false}} {
		c := &tagger{state: &state{}, pacing: pacing{standbys: x.last}}
		c.state.guard.resume(x.held)
		if got := c.plain(); got != x.want {
			t.Errorf("last frame %q, held %q: shown %v", x.last, x.held, got)
		}
	}
}

func TestFork(t *testing.T) {
	history := "1\t0/3000110\tno recovery target specified\n\n# by hand\n2\t1/10\tbefore 2026-11-29\n"
	for timeline, want := range map[uint32]uint64{1: 0x3000110, 2: 1<<32 + 16, 3: 0} {
		if got, err := forkOf([]byte(history), timeline); got != want || err != nil {
			t.Errorf("timeline %d ends at %x, %v; want %x", timeline, got, err, want)
		}
	}
	for _, bad := range []string{"1\n", "1\tx\ty\n"} {
		if _, err := forkOf([]byte(bad), 1); err == nil {
			t.Errorf("%q is accepted", strings.TrimSpace(bad))
		}
	}
}
