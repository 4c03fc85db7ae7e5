package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/pgbridge/pgbridge/bridge"
)

func newStatus(b backend, c terminal) *cobra.Command {
	var flags configFlags
	var asJSON, check, strict bool
	cmd := &cobra.Command{
		Use:   "status --config file",
		Short: "Show where this node stands, what waits and why",
		Long: `Show whether all is well, how far this node's own transactions and those of every other node have come, who is
behind, how much WAL the slot holds, what waits, and what to do about it. The exit code is 1 if no bridge runs here, or if it
does not work yet: what is written before its first start has created the slot is not replicated. With --check it is 3
if an alarm needs a person, with --strict also if there is a warning; a supervisor that starts the bridge anew for that would
not help.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			report, err := b.status(cmd.Context(), cfg)
			if report == nil {
				return err
			}
			if err == nil && report.Waiting != "" {
				err = errors.New(report.Waiting)
			}
			if err == nil && (check || strict) {
				err = reported(report, strict)
			}
			if asJSON {
				return errors.Join(err, printJSON(c, withLists(report)))
			}
			return errors.Join(err, printReport(c.out, report))
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the keys of the log")
	cmd.Flags().BoolVar(&check, "check", false, "end with exit code 3 if an alarm needs a person")
	cmd.Flags().BoolVar(&strict, "strict", false, "the same, and let a warning count as an error")
	return cmd
}

// reported is an error if an alarm counts as one.
func reported(r *bridge.Report, strict bool) error {
	errs := 0
	for _, a := range r.Alarms {
		if a.Severity == bridge.SeverityError {
			errs++
		}
	}
	if errs > 0 || strict && len(r.Alarms) > 0 {
		return &foundError{fmt.Sprintf("%s, %s", number(errs, "error"), number(len(r.Alarms)-errs, "warning"))}
	}
	return nil
}

// withLists makes an empty list of one that is nil, so that a program meets [] and never null.
func withLists(r *bridge.Report) *bridge.Report {
	filled := *r
	filled.Links = append([]bridge.LinkReport{}, r.Links...)
	filled.Nodes = append([]bridge.NodeReport{}, r.Nodes...)
	filled.Alarms = append([]bridge.Alarm{}, r.Alarms...)
	return &filled
}

// printJSON writes v for a program and for a person who looks over its shoulder.
func printJSON(c terminal, v any) error {
	enc := json.NewEncoder(c.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
