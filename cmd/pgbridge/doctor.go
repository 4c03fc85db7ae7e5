package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgbridge/pgbridge/bridge"
)

func newDoctor(b backend, c terminal) *cobra.Command {
	var flags configFlags
	var asJSON, strict bool
	cmd := &cobra.Command{
		Use:   "doctor --config file",
		Short: "Look for what is wrong, or will be, with what to do about it",
		Long: `Look at everything that this node rests on: the server's settings, the role's privileges, slot and WAL, tables,
sequences, broker, disk, certificates, clocks, and the other nodes, which are asked over their brokers. If a bridge runs
here, a probe goes the way of a write, too; nothing else is changed. Each finding says why it matters and how to mend it. At
the end stands what pgbridge promises on this server. The exit code is 3 if there is an error, with --strict also if there is
a warning.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			x, err := b.doctor(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(c, x)
			} else {
				err = printExamination(c.out, x)
			}
			if err != nil {
				return err
			}
			return examined(x, strict)
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the keys of the log")
	cmd.Flags().BoolVar(&strict, "strict", false, "let a warning count as an error")
	return cmd
}

// examined is an error if a finding counts as one.
func examined(x *bridge.Examination, strict bool) error {
	errs, warnings := x.Count(bridge.FindingError), x.Count(bridge.FindingWarning)
	if errs > 0 || strict && warnings > 0 {
		return &foundError{fmt.Sprintf("%s, %s", number(errs, "error"), number(warnings, "warning"))}
	}
	return nil
}

// number writes how many there are of something that takes an s.
func number(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// printExamination writes what was found for a person.
func printExamination(w io.Writer, x *bridge.Examination) error {
	var b strings.Builder
	running := "no bridge runs"
	if x.Running {
		running = "a bridge runs"
	}
	fmt.Fprintf(&b, "node %s of cluster %s, at %s: PostgreSQL %s, %s\n", x.Node, x.Cluster, clock(x.At), orDash(x.Server), running)
	if p := x.Probe; p != nil {
		fmt.Fprintf(&b, "probe: read from the WAL after %s, stored at the broker and read there after %s more\n",
			p.WAL.Round(time.Millisecond/10), p.Broker.Round(time.Millisecond/10))
	}
	for _, f := range x.Findings {
		fmt.Fprintf(&b, "\n%s %s: %s\n  why:  %s\n  mend: %s\n", f.Severity, f.Code, f.Text, f.Why, f.Mend)
	}
	if len(x.Findings) == 0 {
		b.WriteString("\nnothing was found\n")
	}
	if len(x.Skipped) > 0 {
		b.WriteString("\nnot looked at:\n")
		t := newTable(&b)
		for _, s := range x.Skipped {
			t.row("  "+s.Check, s.Because)
		}
		t.flush()
	}
	if len(x.Guarantees) > 0 {
		b.WriteString("\non this server:\n")
		t := newTable(&b)
		for _, g := range x.Guarantees {
			if g.Holds {
				t.row("  yes", g.Name)
			} else {
				t.row("  no", g.Name+": "+g.Because)
			}
		}
		t.flush()
	}
	_, err := io.WriteString(w, b.String())
	return err
}
