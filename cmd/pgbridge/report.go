package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
)

// printReport writes a report for a person.
func printReport(w io.Writer, r *bridge.Report) error {
	var b strings.Builder
	fmt.Fprintf(&b, "node %s of cluster %s, epoch %d, at %s\n", r.Node, r.Cluster, r.Epoch, clock(r.At))
	if r.Verdict != "" {
		fmt.Fprintf(&b, "%s\n", r.Verdict)
	} else if r.Waiting != "" {
		fmt.Fprintf(&b, "waits: %s\n", r.Waiting)
	}
	b.WriteString("\n")
	writeOwn(&b, r)
	if r.Shadow != nil {
		writeShadow(&b, r.Shadow)
	}
	writeLinks(&b, r.Links)
	if len(r.Nodes) > 0 {
		b.WriteString("\n")
		writeNodes(&b, r.Nodes)
	}
	writeAlarms(&b, r.Alarms)
	_, err := io.WriteString(w, b.String())
	return err
}

// writeOwn tells the way of this node's own transactions: WAL, slot, publisher, stream.
func writeOwn(b *strings.Builder, r *bridge.Report) {
	t := newTable(b)
	t.row("capture", orDash(r.Capture.State), fmt.Sprintf("seq %d, stamp %s", r.Seq, clock(r.Stamp)))
	if r.Capture.Waiting != "" {
		t.row("", "", "waits: "+r.Capture.Waiting)
	}
	t.row("slot", orDash(r.Slot.State), fmt.Sprintf("%s: read to %s, confirmed to %s, holds %s of WAL",
		orDash(r.Slot.Slot), orDash(r.Slot.CapturedLSN), orDash(r.Slot.ConfirmedLSN), size(r.Slot.WALHeldBytes)))
	t.row("publisher", orDash(r.Publisher.State), fmt.Sprintf("frames in flight %d, durable to seq %d",
		r.Publisher.FramesInFlight, r.Publisher.DurableSeq))
	if r.Publisher.Waiting != "" {
		t.row("", "", "waits: "+r.Publisher.Waiting)
	}
	t.row("stream", streamFill(r.Stream), fmt.Sprintf("%s: frames %d to %d",
		orDash(r.Stream.Stream), r.Stream.FirstStreamSeq, r.Stream.LastStreamSeq))
	if j := r.Joining; j != nil {
		t.row("joins", j.State, fmt.Sprintf("%d of about %d rows from %s, %s", j.Rows, j.About, j.From, size(j.Bytes)))
	}
	for _, n := range r.LetGo {
		t.row("let go", n.Node, fmt.Sprintf("lacks %d transactions, %d to %d, which are gone from the stream, since %s: it gets the rows from others when it is back",
			n.Transactions, n.SeenSeq+1, n.GoneSeq, clock(n.Since)))
	}
	if r.Owed > 0 {
		t.row("owed", fmt.Sprintf("%d rows", r.Owed), "their nodes write them again, with large values that are not here: pgbridge.owed")
	}
	if r.WrittenAway > 0 {
		t.row("away", fmt.Sprintf("%d rows", r.WrittenAway), "written here though their home is another node (conflict.home); the log names the tables")
	}
	if r.ConflictsPerMinute > 0 {
		t.row("conflicts", fmt.Sprintf("%d/min", r.ConflictsPerMinute), "pgbridge conflicts list shows them")
	}
	if r.Quarantined > 0 {
		t.row("quarantine", fmt.Sprintf("%d rows", r.Quarantined), "later ones have a value that must be unique: pgbridge.quarantine")
	}
	if v := r.Compared; v != nil {
		text := fmt.Sprintf("%d rows with all other nodes at %s: %d differ", v.Rows, clock(v.At), v.Differences)
		if v.At.IsZero() {
			text = "not yet"
		}
		t.row("compared", "", text)
		if v.Waiting != "" {
			t.row("", "", "waits: "+v.Waiting)
		}
	}
	t.flush()
}

func streamFill(s bridge.StreamReport) string {
	if s.LimitBytes == 0 {
		return size(int64(s.Bytes))
	}
	return size(int64(s.Bytes)) + " of " + size(int64(s.LimitBytes))
}

// writeLinks tells how far each other node's transactions have come here.
func writeLinks(b *strings.Builder, links []bridge.LinkReport) {
	if len(links) == 0 {
		b.WriteString("\nno links\n")
		return
	}
	b.WriteString("\n")
	t := newTable(b)
	t.row("LINK", "STATE", "APPLIED", "RECEIVED", "WAITING", "BYTES", "LAG", "CONFLICTS", "PARKED", "LAST STAMP")
	for _, l := range links {
		t.row(l.Link, l.State, fmt.Sprint(l.AppliedSeq), fmt.Sprint(l.ReceivedSeq), fmt.Sprint(l.Queued), size(l.QueuedBytes), seconds(l.LagSeconds),
			fmt.Sprint(l.Conflicts), fmt.Sprint(l.Parked), clock(l.AppliedStamp))
	}
	t.flush()
	for _, l := range links {
		if l.Waiting != "" {
			fmt.Fprintf(b, "%s (%s) waits: %s\n", l.Link, l.URL, l.Waiting)
		}
	}
}

// writeNodes tells how far the other nodes are behind this one.
func writeNodes(b *strings.Builder, nodes []bridge.NodeReport) {
	t := newTable(b)
	t.row("NODE", "HAS", "LACKS", "BYTES", "BEHIND")
	for _, n := range nodes {
		if n.Unknown {
			t.row(n.Node, "not known yet")
			continue
		}
		t.row(n.Node, fmt.Sprint(n.SeenSeq), fmt.Sprint(n.Transactions), size(int64(n.Bytes)), seconds(n.Seconds))
	}
	t.flush()
}

// seconds writes how long something takes, to a tenth.
func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(100 * time.Millisecond).String()
}

// writeAlarms tells what needs a person, each with its mend.
func writeAlarms(b *strings.Builder, alarms []bridge.Alarm) {
	if len(alarms) == 0 {
		b.WriteString("\nno alarms\n")
		return
	}
	b.WriteString("\n")
	for _, a := range alarms {
		fmt.Fprintf(b, "%s %s: %s; %s\n", a.Severity, a.Code, a.Text, a.Mend)
	}
}

// table aligns columns with two spaces between them.
type table struct{ *tabwriter.Writer }

func newTable(w io.Writer) table { return table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)} }

// row adds one row; the writer below is a strings.Builder, which cannot fail.
func (t table) row(cells ...string) { fmt.Fprintln(t, strings.Join(cells, "\t")) }

func (t table) flush() { _ = t.Flush() }

// orDash shows that something is not known.
func orDash(text string) string { return cmp.Or(text, "-") }

// clock writes a time in UTC to the millisecond; "-" if there is none.
func clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05.000Z")
}

// size writes bytes in the unit that leaves a number below 1024.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), 0
	for value >= 1024 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	return fmt.Sprintf("%.1f %s", value, units[unit])
}
