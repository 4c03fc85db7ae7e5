package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pgbridge/pgbridge/bridge"
)

// showLimit is how many changes of a parked transaction are shown unless --changes says otherwise.
const showLimit = 100

func newParked(b backend, c terminal) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "parked",
		Short: "See to transactions that cannot be applied here",
		Long: `A transaction of another node that this server refuses for its data (a constraint, a trigger, a value that does
not fit) is parked, whole, and so are later ones that touch its rows; everything else goes on. Mend the cause and
retry it, or discard it. A transaction is named by its id or as origin:seq.`,
		Args: cobra.ArbitraryArgs,
		RunE: refuseUnknownCommand,
	}
	cmd.AddCommand(newParkedList(b, c), newParkedShow(b, c), newParkedRetry(b, c), newParkedDiscard(b, c))
	return cmd
}

// oneArgument takes the name of a transaction.
func oneArgument(cmd *cobra.Command, args []string) error {
	if len(args) == 1 {
		return nil
	}
	return usagef("%s takes the id of one parked transaction, or origin:seq; pgbridge parked list shows them", cmd.CommandPath())
}

func newParkedList(b backend, c terminal) *cobra.Command {
	var flags configFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list --config file",
		Short: "List what is parked, and why",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			all, err := b.parked(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c, append([]bridge.ParkedTransaction{}, all...))
			}
			return printParked(c, all)
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the keys of the log")
	return cmd
}

func printParked(c terminal, all []bridge.ParkedTransaction) error {
	var text strings.Builder
	if len(all) == 0 {
		text.WriteString("nothing is parked\n")
	} else {
		t := newTable(&text)
		t.row("ID", "TRANSACTION", "PARKED", "TABLE", "KEY", "SQLSTATE", "REASON")
		for _, p := range all {
			t.row(fmt.Sprint(p.ID), p.Name(), clock(p.At), orDash(p.Table), orDash(string(p.Key)), orDash(p.SQLState), parkedReason(&p))
		}
		t.flush()
	}
	_, err := c.out.Write([]byte(text.String()))
	return err
}

// parkedReason says in one line why a transaction is parked.
func parkedReason(p *bridge.ParkedTransaction) string {
	var parts []string
	if p.Message != "" {
		parts = append(parts, strings.ReplaceAll(p.Message, "\n", " "))
	}
	if len(p.DependsOn) > 0 && p.SQLState == "" {
		parts = append(parts, "depends on parked "+strings.Join(p.DependsOn, ", "))
	}
	if p.Request != "" {
		parts = append(parts, p.Request+" is asked for")
	}
	return cmp.Or(strings.Join(parts, "; "), "-")
}

func newParkedShow(b backend, c terminal) *cobra.Command {
	var flags configFlags
	var asJSON bool
	var limit int
	cmd := &cobra.Command{
		Use:   "show id --config file",
		Short: "Show the changes of a parked transaction",
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			p, changes, err := b.showParked(cmd.Context(), cfg, args[0], limit)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c, struct {
					*bridge.ParkedTransaction
					Rows []bridge.ParkedChange `json:"rows"`
				}{p, append([]bridge.ParkedChange{}, changes...)})
			}
			return printParkedChanges(c, p, changes)
		},
	}
	flags.add(cmd)
	cmd.Args = oneArgument
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the keys of the log")
	cmd.Flags().IntVar(&limit, "changes", showLimit, "show so many changes at most")
	return cmd
}

func printParkedChanges(c terminal, p *bridge.ParkedTransaction, changes []bridge.ParkedChange) error {
	var text strings.Builder
	t := newTable(&text)
	t.row("transaction", fmt.Sprintf("%s, stamp %s, %d changes", p.Name(), clock(p.Stamp), p.Changes))
	t.row("parked", clock(p.At))
	if p.Attempts > 0 {
		t.row("tried again", fmt.Sprintf("%d times, last at %s", p.Attempts, clock(p.TriedAt)))
	}
	t.row("reason", parkedReason(p))
	if p.SQLState != "" {
		t.row("refused", fmt.Sprintf("SQLSTATE %s, table %s, key %s, constraint %s", p.SQLState, orDash(p.Table), orDash(string(p.Key)), orDash(p.Constraint)))
	}
	t.flush()
	for _, ch := range changes {
		fmt.Fprintf(&text, "\n%s %s\n", ch.Kind, ch.Table)
		if ch.Unread != "" {
			fmt.Fprintf(&text, "  as it came: %s\n", ch.Unread)
		}
		for _, image := range []struct {
			name string
			json []byte
		}{{"old", ch.Old}, {"new", ch.New}} {
			if image.json != nil {
				fmt.Fprintf(&text, "  %s %s\n", image.name, image.json)
			}
		}
	}
	if left := p.Changes - int64(len(changes)); left > 0 {
		fmt.Fprintf(&text, "\nand %d more; --changes shows them\n", left)
	}
	_, err := c.out.Write([]byte(text.String()))
	return err
}

func newParkedRetry(b backend, c terminal) *cobra.Command {
	var flags configFlags
	var all, asJSON bool
	cmd := &cobra.Command{
		Use:   "retry [id] --config file",
		Short: "Try a parked transaction again, and those that depend on it",
		Long: `Try a parked transaction again, and those that depend on it, when its cause is mended; with --all everything that is
parked. The transaction keeps its stamp: rows that were written later stay as they are. The exit code is 1 if a
transaction is still refused.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			if len(args) > 1 || all == (len(args) == 1) {
				return usagef("%s takes the id of one parked transaction, or --all", cmd.CommandPath())
			}
			o, err := b.requestParked(cmd.Context(), cfg, strings.Join(args, ""), bridge.RetryParked)
			if err != nil {
				return err
			}
			return tellOutcome(c, o, bridge.RetryParked, asJSON)
		},
	}
	flags.add(cmd)
	cmd.Args = cobra.ArbitraryArgs // one, or --all
	cmd.Flags().BoolVar(&all, "all", false, "try all that are parked")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the keys of the log")
	return cmd
}

func newParkedDiscard(b backend, c terminal) *cobra.Command {
	var flags configFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "discard id --config file",
		Short: "Give a parked transaction up for good",
		Long: `Give a parked transaction up for good. Its changes are kept in the conflict history (pgbridge.conflict, kind
"discarded"), and those that depended on it are tried. This node then differs from the others in its rows, until
they are written again: an UPDATE of such a row on this node is later than the transaction, and goes to all nodes.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			o, err := b.requestParked(cmd.Context(), cfg, args[0], bridge.DiscardParked)
			if err != nil {
				return err
			}
			return tellOutcome(c, o, bridge.DiscardParked, asJSON)
		},
	}
	flags.add(cmd)
	cmd.Args = oneArgument
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the keys of the log")
	return cmd
}

// tellOutcome says what became of a request; an error if something is parked still.
func tellOutcome(c terminal, o *bridge.ParkedOutcome, request bridge.ParkedRequest, asJSON bool) error {
	if asJSON {
		if err := printJSON(c, o); err != nil {
			return err
		}
	} else {
		for _, name := range o.Done {
			done := "is applied"
			if request == bridge.DiscardParked && name == o.Asked {
				done = "is discarded: this node differs from the others in its rows until they are written again"
			}
			if _, err := fmt.Fprintf(c.out, "%s %s\n", name, done); err != nil {
				return err
			}
		}
	}
	if !o.Running {
		_, err := fmt.Fprintln(c.err, "no bridge runs here; it is done when it starts")
		return err
	}
	var errs []error
	for _, p := range o.Left {
		errs = append(errs, fmt.Errorf("%s is still parked: %s", p.Name(), parkedReason(&p)))
	}
	return errors.Join(errs...)
}
