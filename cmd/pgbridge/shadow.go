package main

import (
	"fmt"
	"strings"

	"github.com/pgbridge/pgbridge/bridge"
)

// writeShadow tells what a node in shadow mode would meet.
func writeShadow(b *strings.Builder, s *bridge.ShadowReport) {
	fmt.Fprintf(b, "\nin shadow mode since %s: %s, if all this were applied now\n", clock(s.Since), number(int(s.Total()), "conflict"))
	t := newTable(b)
	for _, c := range s.Conflicts {
		t.row(string(c.Kind), c.Outcome, fmt.Sprintf("%d, of them %d within a second", c.Count, c.Close))
	}
	for _, o := range s.Read {
		t.row("compared", o.Origin, fmt.Sprintf("to transaction %d, stamp %s", o.Seq, clock(o.Stamp)))
	}
	t.flush()
	if len(s.Rows) > 0 {
		t := newTable(b)
		t.row("TABLE", "KEY", "KIND", "OUTCOME", "REMOTE", "STAMP", "LOCAL", "STAMP")
		for _, x := range s.Rows[:min(len(s.Rows), shadowRows)] {
			t.row(x.Table, orDash(x.Key), string(x.Kind), x.Outcome, x.RemoteOrigin, clock(x.RemoteStamp), x.LocalOrigin, clock(x.LocalStamp))
		}
		t.flush()
	}
	for _, text := range s.Undecided {
		fmt.Fprintf(b, "not compared: %s\n", text)
	}
	if s.Full {
		b.WriteString("no more is compared: there is no room to remember more\n")
	}
}

// shadowRows is how many rows a person is shown; --json has more.
const shadowRows = 10
