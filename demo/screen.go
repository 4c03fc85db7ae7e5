package demo

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// screen writes the account. On a terminal the figures are one block that is drawn again in place; into
// a pipe or a file they are one line each time.
type screen struct {
	out      io.Writer
	terminal bool
	drawn    int // lines of the block that the cursor stands below; 0 when something else was said since
	// Of the one-line form:
	headed bool          // its head stands above
	lined  time.Duration // when its last line was written
}

// lineInterval is how often a line is written into a pipe, however often the figures are known.
const lineInterval = time.Second

func newScreen(out io.Writer) *screen { return &screen{out: out, terminal: isTerminal(out)} }

// isTerminal reports whether out understands cursor movements.
func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok || os.Getenv("TERM") == "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

// say writes lines for good.
func (s *screen) say(format string, args ...any) {
	s.drawn, s.headed = 0, false
	fmt.Fprintf(s.out, format+"\n", args...)
}

// title begins a part of the account.
func (s *screen) title(text string) {
	if s.terminal {
		text = "\x1b[1m" + text + "\x1b[0m"
	}
	s.say("\n%s", text)
}

// figures shows where all nodes stand.
func (s *screen) figures(at time.Duration, all []figure) {
	if s.terminal {
		s.redraw(block(at, all))
		return
	}
	if s.headed && at-s.lined < lineInterval*9/10 {
		return
	}
	if !s.headed {
		s.say("%s", compactHead(all))
	}
	s.say("%s", compact(at, all))
	s.headed, s.lined = true, at
}

// redraw replaces the block, if the cursor still stands below it.
func (s *screen) redraw(lines []string) {
	var b strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", s.drawn)
	}
	for _, line := range lines {
		b.WriteString(line + "\x1b[K\n")
	}
	fmt.Fprint(s.out, b.String())
	s.drawn = len(lines)
}

// figure is where one node stands.
type figure struct {
	node      string
	bridge    string        // what its bridge does
	commits   int           // of its own writers
	rows      tally         // in those
	applied   int           // transactions of the others
	missing   int           // transactions of the others that are not applied yet
	lag       time.Duration // age of the oldest of them
	conflicts int           // that were decided there
}

// block gives the figures as a table with a row for each node. It fits into 80 columns: a line that
// wraps could not be drawn over.
func block(at time.Duration, all []figure) []string {
	line := func(first string, rest ...any) string {
		return fmt.Sprintf("%7s%8s%8s%8s%8s%8s%8s%8s%8s %s", append([]any{first}, rest...)...)
	}
	lines := []string{line(fmt.Sprintf("%.1f s", at.Seconds()),
		"commits", "inserts", "updates", "deletes", "applied", "missing", "lag", "clashes", "bridge")}
	for _, f := range all {
		lines = append(lines, line(f.node, grouped(f.commits), grouped(f.rows.inserts), grouped(f.rows.updates), grouped(f.rows.deletes),
			grouped(f.applied), grouped(f.missing), age(f.lag), grouped(f.conflicts), f.bridge))
	}
	return lines
}

func compactHead(all []figure) string {
	var b strings.Builder
	b.WriteString("    time")
	for _, f := range all {
		fmt.Fprintf(&b, " | %s: commits applied     lag", f.node)
	}
	return b.String()
}

// compact gives the figures as one line.
func compact(at time.Duration, all []figure) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%6.1f s", at.Seconds())
	for _, f := range all {
		last := age(f.lag)
		if f.bridge != bridgeRuns {
			last = f.bridge
		}
		fmt.Fprintf(&b, " | %10s %7s %7s", grouped(f.commits), grouped(f.applied), last)
	}
	return b.String()
}

// age gives a lag, "0" for none.
func age(d time.Duration) string {
	switch {
	case d <= 0:
		return "0"
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// grouped writes 1234567 as 1,234,567.
func grouped(n int) string {
	digits := strconv.Itoa(n)
	for i := len(digits) - 3; i > 0 && digits[i-1] != '-'; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
