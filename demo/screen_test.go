package demo

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestFiguresInAPipe(t *testing.T) {
	var out strings.Builder
	s := newScreen(&out)
	all := []figure{
		{node: "a", bridge: bridgeRuns, commits: 1234, applied: 2300, missing: 2, lag: 8 * time.Millisecond},
		{node: "b", bridge: bridgeKilled, commits: 7, lag: 3 * time.Second},
	}
	s.figures(1500*time.Millisecond, all)
	s.figures(2000*time.Millisecond, all) // too early for another line
	s.figures(2500*time.Millisecond, all)
	s.say("meanwhile")
	s.figures(3500*time.Millisecond, all)
	want := `    time | a: commits applied     lag | b: commits applied     lag
   1.5 s |      1,234   2,300    8 ms |          7       0  killed
   2.5 s |      1,234   2,300    8 ms |          7       0  killed
meanwhile
    time | a: commits applied     lag | b: commits applied     lag
   3.5 s |      1,234   2,300    8 ms |          7       0  killed
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

// TestFiguresOnATerminal: a block is drawn over the one before, unless something was said since.
func TestFiguresOnATerminal(t *testing.T) {
	var out strings.Builder
	s := &screen{out: &out, terminal: true}
	all := []figure{{node: "a", bridge: bridgeRuns, rows: tally{1, 2, 3}}}
	s.figures(0, all)
	if strings.Contains(out.String(), "\x1b[2A") {
		t.Errorf("the first block moves the cursor: %q", out.String())
	}
	s.figures(0, all)
	if strings.Count(out.String(), "\x1b[2A") != 1 {
		t.Errorf("the second block does not replace the first: %q", out.String())
	}
	s.say("meanwhile")
	out.Reset()
	s.figures(0, all)
	if strings.Contains(out.String(), "\x1b[2A") {
		t.Errorf("what was said is overwritten: %q", out.String())
	}
}

// TestBlockFitsATerminal: a line that wraps could not be drawn over.
func TestBlockFitsATerminal(t *testing.T) {
	for _, line := range block(time.Hour, []figure{{node: "a", bridge: bridgeKilled, commits: 999_999, rows: tally{999_999, 999_999, 999_999},
		applied: 999_999, missing: 999_999, lag: time.Hour, conflicts: 999_999}}) {
		if len(line) > 79 {
			t.Errorf("%d columns: %s", len(line), line)
		}
	}
}

func TestGrouped(t *testing.T) {
	for n, want := range map[int]string{0: "0", 12: "12", 999: "999", 1000: "1,000", 1234567: "1,234,567", -999: "-999", -1000: "-1,000"} {
		if got := grouped(n); got != want {
			t.Errorf("grouped(%d) is %s, want %s", n, got, want)
		}
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{-time.Second: "0", 0: "0", 8 * time.Millisecond: "8 ms", 2250 * time.Millisecond: "2.2 s"} {
		if got := age(d); got != want {
			t.Errorf("age(%s) is %s, want %s", d, got, want)
		}
	}
}

// TestChildrenDoNotInheritSettings: a variable of the caller's own bridge must not send the
// demonstration to a real database.
func TestChildrenDoNotInheritSettings(t *testing.T) {
	got := childEnv([]string{"PATH=/bin", "PGBRIDGE_POSTGRES_DSN=postgres://prod", "HOME=/", "PGBRIDGE_PG_CACHE=/x"})
	if want := []string{"PATH=/bin", "HOME=/"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLedgerNumbersTransactionsWithRows(t *testing.T) {
	var l ledger
	l.note(tally{inserts: 2})
	l.note(tally{}) // wrote nothing: the node gives it no number
	before := time.Now()
	l.note(tally{updates: 1, deletes: 1})
	if l.count() != 2 || l.tally() != (tally{2, 1, 1}) {
		t.Errorf("%d transactions with %+v", l.count(), l.tally())
	}
	if l.at(2).Before(before) || l.at(1).After(before) {
		t.Error("the times are not those of the transactions")
	}
}

func TestRowsThatOnlyOneNodeHas(t *testing.T) {
	rows := []string{"0", "1", "2", "3", "4", "5", "6", "7"}
	got := onlyIn("a", rows, []string{"3"})
	want := []string{"  only on a: 0", "  only on a: 1", "  only on a: 2", "  only on a: 4", "  only on a: 5", "  and 2 more on a"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAddressesAreFreeAndDistinct(t *testing.T) {
	addrs, err := freeAddrs(MostNodes)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(addrs)
	if got := len(slices.Compact(addrs)); got != MostNodes {
		t.Errorf("%d distinct addresses, want %d", got, MostNodes)
	}
}
