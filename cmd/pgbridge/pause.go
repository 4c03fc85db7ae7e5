package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pgbridge/pgbridge/bridge"
)

func newPause(b backend, c terminal) *cobra.Command {
	var flags configFlags
	var p bridge.Pause
	var list, asJSON bool
	cmd := &cobra.Command{
		Use:   "pause --config file (--origin node | --table schema.table | --list)",
		Short: "Have what another node writes, or what touches a table, wait here",
		Long: `Have the transactions of one node, or all that touch a table, wait at this node until pgbridge resume. What is written
here goes to the others as ever, and nothing is lost: transactions wait in the others' streams, in their order, and those that
depend on one that waits do, too. A transaction is applied whole or not at all, so one that touches a paused table holds all
that its node wrote since. It holds through restarts; no bridge need run.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			if list {
				all, err := b.paused(cmd.Context(), cfg)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(c, append([]bridge.Pause{}, all...))
				}
				return printPauses(c, all)
			}
			if (p.Origin == "") == (p.Table == "") {
				return usagef("pause takes either --origin with a node, or --table with schema.table; or --list")
			}
			if err := b.setPause(cmd.Context(), cfg, p); err != nil {
				return err
			}
			what := "node " + p.Origin
			if p.Table != "" {
				what = "table " + p.Table
			}
			_, err = fmt.Fprintf(c.out, "%s is paused at node %s\n", what, cfg.Node)
			return err
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&p.Origin, "origin", "", "the `node` whose transactions are to wait")
	cmd.Flags().StringVar(&p.Table, "table", "", "the `table`, as schema.table")
	cmd.Flags().StringVar(&p.Reason, "reason", "", "a `text` for those who look at status")
	cmd.Flags().BoolVar(&list, "list", false, "list what is paused")
	cmd.Flags().BoolVar(&asJSON, "json", false, "with --list: print JSON")
	return cmd
}

func printPauses(c terminal, all []bridge.Pause) error {
	var text strings.Builder
	if len(all) == 0 {
		text.WriteString("nothing is paused\n")
	} else {
		t := newTable(&text)
		t.row("ORIGIN", "TABLE", "SINCE", "REASON")
		for _, p := range all {
			t.row(orDash(p.Origin), orDash(p.Table), clock(p.Since), orDash(p.Reason))
		}
		t.flush()
	}
	_, err := c.out.Write([]byte(text.String()))
	return err
}

func newResume(b backend) *cobra.Command {
	var flags configFlags
	var node, table string
	var all bool
	cmd := &cobra.Command{
		Use:   "resume --config file (--origin node | --table schema.table | --all)",
		Short: "End a pause",
		Long:  `End a pause that pgbridge pause began: what waited is applied, in its order.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			given := 0
			for _, is := range []bool{node != "", table != "", all} {
				if is {
					given++
				}
			}
			if given != 1 {
				return usagef("resume takes --origin with a node, --table with schema.table, or --all")
			}
			return b.resume(cmd.Context(), cfg, node, table)
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&node, "origin", "", "the `node`")
	cmd.Flags().StringVar(&table, "table", "", "the `table`, as schema.table")
	cmd.Flags().BoolVar(&all, "all", false, "end all pauses of this node")
	return cmd
}
