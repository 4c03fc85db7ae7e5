package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pgbridge/pgbridge/bridge"
)

func newSequences(b backend, c terminal) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sequences",
		Short: "Let the sequences of all nodes give different values",
		Long: `Let the sequences that fill columns of replicated tables give other values on each node: all go on by the same step,
and each node has a number of its own, which is the remainder of its values. Every other node is asked how far its sequences
are, so their bridges must run. Run "sequences apply" on each node.`,
		Args: cobra.ArbitraryArgs,
		RunE: refuseUnknownCommand,
	}
	cmd.AddCommand(newSequencesPlan(b, c), newSequencesApply(b, c))
	return cmd
}

// sequenceFlags are those of both verbs.
type sequenceFlags struct {
	configFlags
	bridge.SequenceOptions
	asJSON bool
}

func (f *sequenceFlags) add(cmd *cobra.Command) {
	f.configFlags.add(cmd)
	cmd.Flags().Int64Var(&f.Modulus, "modulus", 0, "the step, the same on every node: a `number` that more nodes fit into; 0: as the others have it, or at least twice the nodes")
	cmd.Flags().StringVar(&f.Table, "table", "", "only of tables that fit this `pattern` over schema.table, such as app.*")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "print JSON, with the keys of the log")
}

func newSequencesPlan(b backend, c terminal) *cobra.Command {
	var flags sequenceFlags
	cmd := &cobra.Command{
		Use:   "plan --config file",
		Short: "Print the statements for this node's sequences",
		Long: `Print the statements that "sequences apply" would run, for the sequences' owner to run by hand; nothing is changed.
With --ids time or --ids uuid it prints statements for identifiers that need no plan: 63 bits of time, node and count for
columns that sequences fill, or UUIDs of version 7 for uuid columns.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			p, err := b.planSequences(cmd.Context(), cfg, flags.SequenceOptions)
			if err != nil {
				return err
			}
			if flags.asJSON {
				return printJSON(c, p)
			}
			return printPlan(c.out, p)
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&flags.IDs, "ids", "", "identifiers of this `kind` instead of sequences: time or uuid")
	return cmd
}

func newSequencesApply(b backend, c terminal) *cobra.Command {
	var flags sequenceFlags
	cmd := &cobra.Command{
		Use:   "apply --config file",
		Short: "Change this node's sequences as planned",
		Long: `Change this node's sequences as "sequences plan" prints it, in one transaction: all that can be changed, or none. Each goes
on behind what any node has given and what any row has. The role in postgres.dsn must be, or be a member of, the sequences'
owner. Those that stay as they are, since they cannot be planned, are named, and the exit code is 3 then.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			p, err := b.applySequences(cmd.Context(), cfg, flags.SequenceOptions)
			if err != nil {
				return err
			}
			if flags.asJSON {
				err = printJSON(c, p)
			} else {
				err = printApplied(c.out, p)
			}
			if err != nil {
				return err
			}
			return unplanned(p)
		},
	}
	flags.add(cmd)
	return cmd
}

// unplanned is an error if sequences stay as they are that other nodes may meet.
func unplanned(p *bridge.SequencePlan) error {
	n := 0
	for _, s := range p.Steps {
		if s.Refused != "" {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return &foundError{number(n, "sequence") + " cannot be planned"}
}

// printPlan writes a script for psql.
func printPlan(w io.Writer, p *bridge.SequencePlan) error {
	var b strings.Builder
	fmt.Fprintf(&b, "-- sequences of node %s, cluster %s\n", p.Node, p.Cluster)
	for _, sql := range p.SQL {
		fmt.Fprintf(&b, "\n%s;\n", strings.TrimRight(sql, ";"))
	}
	if len(p.Steps) == 0 && len(p.SQL) == 0 {
		b.WriteString("-- no sequence fills a column of these tables\n")
	}
	for _, s := range p.Steps {
		fmt.Fprintf(&b, "\n-- column %s of table %s: values of this node leave %d when divided by %d\n", s.Column, s.Table, s.Number, s.Modulus)
		switch {
		case s.Refused != "":
			fmt.Fprintf(&b, "-- %s stays as it is: %s\n", s.Sequence, s.Refused)
		case s.Planned:
			fmt.Fprintf(&b, "-- %s is so already; it goes on with %d\n", s.Sequence, s.Next)
		default:
			fmt.Fprintf(&b, "%s;\n", s.SQL)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// printApplied tells what has become of each sequence.
func printApplied(w io.Writer, p *bridge.SequencePlan) error {
	var b strings.Builder
	if len(p.Steps) == 0 {
		b.WriteString("no sequence fills a column of these tables\n")
	}
	for _, s := range p.Steps {
		switch {
		case s.Refused != "":
			fmt.Fprintf(&b, "%s stays as it is: %s\n", s.Sequence, s.Refused)
		case s.Planned:
			fmt.Fprintf(&b, "%s is planned already: it goes on with %d, by %d\n", s.Sequence, s.Next, s.Modulus)
		default:
			fmt.Fprintf(&b, "%s goes on with %d, by %d\n", s.Sequence, s.Next, s.Modulus)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
