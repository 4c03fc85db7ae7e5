package main

import (
	"encoding/json"
	"errors"

	"github.com/spf13/cobra"

	"github.com/pgbridge/pgbridge/bridge"
)

func newStatus(b backend, c terminal) *cobra.Command {
	var flags configFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status --config file",
		Short: "Show where this node stands, what waits and why",
		Long: `Show how far this node's own transactions and those of every other node have come, how much WAL the
slot holds, what waits, and what to do about it. The exit code is 1 if no bridge runs here, or if it does
not work yet: what is written before its first start has created the slot is not replicated.`,
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
			if asJSON {
				return errors.Join(err, printJSON(c, withLists(report)))
			}
			return errors.Join(err, printReport(c.out, report))
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the keys of the log")
	return cmd
}

// withLists makes an empty list of one that is nil, so that a program meets [] and never null.
func withLists(r *bridge.Report) *bridge.Report {
	filled := *r
	filled.Links = append([]bridge.LinkReport{}, r.Links...)
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
