package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
)

// Values that are longer are cut where a person reads them.
const (
	keyWidth   = 48
	valueWidth = 48
)

// printConflicts writes a list for a person.
func printConflicts(w io.Writer, p *bridge.ConflictPage) error {
	var b strings.Builder
	if len(p.Conflicts) == 0 {
		b.WriteString("no conflicts\n")
	} else {
		t := newTable(&b)
		t.row("ID", "TIME", "TABLE", "KEY", "KIND", "WINNER", "LOSER", "MARGIN")
		for i := range p.Conflicts {
			c := &p.Conflicts[i]
			t.row(fmt.Sprint(c.ID), clock(c.At), c.Table, orDash(cut(c.Key.String(), keyWidth)), c.Kind, c.Winner, c.Loser, margin(c)+marks(c))
		}
		t.flush()
	}
	if p.More {
		fmt.Fprintf(&b, "older ones are left out; --limit %d shows more\n", 10*len(p.Conflicts))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// marks are what must not be overlooked in a list.
func marks(c *bridge.Conflict) string {
	var text string
	if c.Close {
		text += ", close"
	}
	if c.UndoneAt != nil {
		text += ", undone"
	}
	return text
}

// margin writes how far the stamps are apart, with three digits or so.
func margin(c *bridge.Conflict) string {
	d := c.Margin()
	for _, unit := range []time.Duration{time.Hour, time.Minute, time.Second, time.Millisecond} {
		if d >= 10*unit {
			return d.Round(unit / 10).String()
		}
	}
	return d.String()
}

// printConflict writes one conflict for a person.
func printConflict(w io.Writer, d *bridge.ConflictDetail, clocks string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "conflict %d in table %s, row %s, decided here at %s\n", d.ID, d.Table, orDash(d.Key.String()), clock(d.At))
	fmt.Fprintf(&b, "%s: %s\n", d.Kind, met(&d.Conflict))
	if d.Constraint != "" {
		fmt.Fprintf(&b, "both hit %s; the row that lost is kept until that is free\n", d.Constraint)
	}
	fmt.Fprintf(&b, "%s won: %s\n", d.Winner, why(&d.Conflict))
	if d.Close {
		fmt.Fprintf(&b, "close: the clocks of two nodes may be %s, so that the other write may have been the later one\n", clocks)
	}
	if d.UndoneAt != nil {
		fmt.Fprintf(&b, "undone at %s by %s\n", clock(*d.UndoneAt), d.UndoneBy)
	} else {
		b.WriteString("not undone\n")
	}
	b.WriteString("\n")
	if d.NotRecorded != "" {
		fmt.Fprintf(&b, "the versions were not recorded: %s\n", d.NotRecorded)
	} else {
		writeVersions(&b, d)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// met says what each side did, as conflict.Kind has it: the remote write first, then what stood here.
func met(c *bridge.Conflict) string {
	switch c.Kind {
	case "undecided":
		return fmt.Sprintf("%s and %s both wrote the row, and a person has to decide", c.Remote.Origin, c.Local.Origin)
	case "discarded":
		return fmt.Sprintf("a parked transaction of %s was given up here", c.Remote.Origin)
	case "unique":
		return fmt.Sprintf("%s and %s wrote rows of different keys that have the same value where it may be there once", c.Remote.Origin, c.Local.Origin)
	case bridge.OrphanKind:
		return "the row had no parent, and was mended here"
	case bridge.RepairKind:
		return fmt.Sprintf("the row was not the same on all nodes, and that of node %s is right", c.Remote.Origin)
	}
	remote, local, _ := strings.Cut(c.Kind, "_")
	came := map[string]string{"insert": "inserted the row", "update": "updated the row", "delete": "deleted the row", "truncate": "truncated the table"}[remote]
	stands := map[string]string{"insert": "inserted it too", "update": "wrote it", "delete": "deleted it"}[local]
	switch {
	case remote == "truncate":
		stands = "wrote the row"
	case remote == "delete" && local == "delete":
		stands = "deleted it too"
	}
	return fmt.Sprintf("%s %s, %s %s, and neither had seen the other's write", c.Remote.Origin, came, c.Local.Origin, stands)
}

// why gives the rule. That of a merged table is not noted; it shows where the earlier write has won.
func why(c *bridge.Conflict) string {
	later := c.Remote.Stamp.After(c.Local.Stamp) == (c.Outcome == "remote wins")
	switch {
	case c.Kind == "undecided":
		return fmt.Sprintf("it is shown until then; the stamps are %s apart", margin(c))
	case c.Kind == "discarded":
		return "somebody has asked for that"
	case c.Kind == bridge.OrphanKind:
		return "pgbridge orphans --fix"
	case c.Kind == bridge.RepairKind:
		return "pgbridge verify --repair"
	case c.Margin() == 0:
		return "the stamps are equal, so that the order of the nodes' names decides"
	case !later:
		return fmt.Sprintf("its write is stamped %s earlier; conflict.tables says so", margin(c))
	}
	return fmt.Sprintf("its write is stamped %s later", margin(c))
}

// writeVersions puts both versions side by side, the loser first.
func writeVersions(b *strings.Builder, d *bridge.ConflictDetail) {
	won := map[bool]string{true: "won", false: "lost"}
	remoteWon := d.Outcome == "remote wins"
	t := newTable(b)
	t.row("", "", fmt.Sprintf("%s, was here, %s", d.Local.Origin, won[!remoteWon]), fmt.Sprintf("%s, came, %s", d.Remote.Origin, won[remoteWon]))
	t.row("", "(stamp)", microClock(d.Local.Stamp), microClock(d.Remote.Stamp))
	if len(d.Columns) == 0 {
		t.row("", "", "(deleted)", "(deleted)")
	}
	long := false
	for _, c := range d.Columns {
		mark := " "
		if c.Differs {
			mark = "*"
		}
		local, remote := value(c.Local, d.LocalRow), value(c.Remote, d.RemoteRow)
		long = long || strings.HasSuffix(local, "…") || strings.HasSuffix(remote, "…")
		t.row(mark, c.Name, local, remote)
	}
	t.flush()
	if long {
		b.WriteString("\nvalues are cut at …; --json has them whole\n")
	}
}

// value writes what a row has in one column.
func value(v, row json.RawMessage) string {
	switch {
	case string(row) == "null":
		return "(deleted)"
	case v == nil:
		return "(not sent)"
	}
	var b bytes.Buffer // json is kept as it was written, in lines
	if json.Compact(&b, v) == nil {
		v = b.Bytes()
	}
	return cut(string(v), valueWidth)
}

// cut shortens a text to n characters.
func cut(text string, n int) string {
	if r := []rune(text); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return text
}

// microClock is clock to the microsecond, as stamps are.
func microClock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000000Z") }

// printUndone tells what was done, or the statements of a dry run as a script for psql.
func printUndone(w io.Writer, u *bridge.Undone, o bridge.UndoOptions) error {
	if o.DryRun {
		_, err := fmt.Fprintf(w, "-- conflict %d, row %s of %s\nBEGIN;\n%s;\nCOMMIT;\n", u.ID, u.Key, u.Table, strings.Join(u.Statements, ";\n"))
		return err
	}
	did := "is what it was before it lost"
	if u.Deleted {
		did = "is deleted again"
	}
	_, err := fmt.Fprintf(w, "conflict %d: row %s of %s %s\n", u.ID, u.Key, u.Table, did)
	return err
}

// printCounts writes counts for a person.
func printCounts(w io.Writer, counts []bridge.ConflictCount) error {
	var b strings.Builder
	if len(counts) == 0 {
		b.WriteString("no conflicts\n")
	} else {
		t := newTable(&b)
		t.row("TABLE", "KIND", "WINNER", "CONFLICTS", "CLOSE", "UNDONE", "NEWEST")
		var sum bridge.ConflictCount
		for _, n := range counts {
			t.row(n.Table, n.Kind, n.Winner, fmt.Sprint(n.Conflicts), fmt.Sprint(n.Close), fmt.Sprint(n.Undone), clock(n.Newest))
			sum.Conflicts, sum.Close, sum.Undone = sum.Conflicts+n.Conflicts, sum.Close+n.Close, sum.Undone+n.Undone
			if n.Newest.After(sum.Newest) {
				sum.Newest = n.Newest
			}
		}
		t.row("all", "all", "all", fmt.Sprint(sum.Conflicts), fmt.Sprint(sum.Close), fmt.Sprint(sum.Undone), clock(sum.Newest))
		t.flush()
	}
	_, err := io.WriteString(w, b.String())
	return err
}
