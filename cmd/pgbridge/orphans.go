package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pgbridge/pgbridge/bridge"
)

func newOrphans(b backend, c terminal) *cobra.Command {
	var flags historyFlags
	var o bridge.OrphanOptions
	cmd := &cobra.Command{
		Use:   "orphans --config file",
		Short: "Find rows whose parent is missing, and mend them",
		Long: `Look at every foreign key of the replicated tables for rows whose parent is missing: one that was inserted on
one node while its parent was deleted on another. --fix delete deletes them, --fix null sets the columns that
refer to the parent to NULL: one new transaction for each foreign key, that is replicated like any other write,
on one node. What the rows were is kept, and can be brought back by "pgbridge conflicts undo". No bridge needs
to run. The exit code is 3 if there are orphans, and 0 if there are none or all are mended.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Limit < 1 {
				return usagef("--limit %d is out of range; use 1 or more", o.Limit)
			}
			if o.DryRun && o.Fix == "" {
				return usagef("--dry-run shows what --fix would do; give it --fix delete or --fix null")
			}
			return flags.with(cmd.Context(), b, func(h history) error {
				found, err := h.Orphans(cmd.Context(), o)
				if err != nil {
					return err
				}
				if flags.asJSON {
					err = printJSON(c, map[string]any{"orphans": found, "dry_run": o.DryRun})
				} else {
					err = printOrphans(c.out, found)
				}
				if err != nil {
					return err
				}
				return orphansLeft(found)
			})
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&o.Table, "table", "", "only of tables that fit this `pattern` over schema.table, such as app.*")
	cmd.Flags().StringVar(&o.Fix, "fix", "", "mend them: `how`, delete or null")
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "print the statements instead of running them")
	cmd.Flags().IntVar(&o.Limit, "limit", 10, "show at most so many keys of each foreign key, a `number`")
	return cmd
}

// foundError is what a check has found.
type foundError struct{ text string }

// Error tells it.
func (e *foundError) Error() string { return e.text }

// ExitCode is that of a check that found something.
func (e *foundError) ExitCode() int { return exitFound }

// orphansLeft is an error if there are any.
func orphansLeft(found []bridge.Orphans) error {
	var left int64
	for _, f := range found {
		left += max(f.Orphans-f.Mended, 0)
	}
	switch left {
	case 0:
		return nil
	case 1:
		return &foundError{"1 row has no parent"}
	}
	return &foundError{fmt.Sprintf("%d rows have no parent", left)}
}

// printOrphans writes what was found for a person.
func printOrphans(w io.Writer, found []bridge.Orphans) error {
	var b strings.Builder
	if len(found) == 0 {
		b.WriteString("no orphans\n")
	}
	for i := range found {
		f := &found[i]
		fmt.Fprintf(&b, "table %s, foreign key %s: no row of %s for %s in %d\n", f.Table, f.Constraint, f.Parent, strings.Join(f.Columns, ", "), f.Orphans)
		for _, k := range f.Keys {
			fmt.Fprintf(&b, "  %s\n", cut(k.String(), keyWidth))
		}
		if n := f.Orphans - int64(len(f.Keys)); n > 0 {
			fmt.Fprintf(&b, "  and %d more\n", n)
		}
		switch {
		case f.Refused != "":
			fmt.Fprintf(&b, "  not mended: %s\n", f.Refused)
		case f.Mended > 0:
			fmt.Fprintf(&b, "  mended: %d\n", f.Mended)
		case f.Statement != "":
			fmt.Fprintf(&b, "%s;\n", f.Statement)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
