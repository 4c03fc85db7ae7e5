package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgbridge/pgbridge/bridge"
)

func newVerify(b backend, c terminal) *cobra.Command {
	var flags configFlags
	var asJSON bool
	var o bridge.VerifyOptions
	cmd := &cobra.Command{
		Use:   "verify --config file",
		Short: "Compare the rows of nodes while they are written, and mend them",
		Long: `Have the bridge that runs here compare its node's rows with those of the other nodes. What is on its way is waited
for, so that a row which is told of differs for good. --repair mends such rows by ordinary writes: the later version
is right, or the node that --from names. What was not right goes into the history (pgbridge conflicts list --kind
repair). The exit code is 3 if rows differ that are not mended, or if a table could not be compared.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkVerify(cmd, o); err != nil {
				return err
			}
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			var told time.Time
			r, err := b.verify(cmd.Context(), cfg, o, func(p bridge.VerifyProgress) {
				if now := b.now(); p.Table != "" && now.Sub(told) >= verifyTellEach {
					told = now
					fmt.Fprintf(c.err, "%s: %d rows, %s\n", p.Table, p.Rows, p.Doing)
				}
			})
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(c, r)
			} else {
				err = printVerified(c.out, r, o.Limit)
			}
			if err != nil {
				return err
			}
			return verifyFound(r)
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&o.Table, "table", "", "only tables that fit this `pattern` over schema.table, such as app.*")
	cmd.Flags().StringSliceVar(&o.Nodes, "node", nil, "compare with this `node` only; may be repeated")
	cmd.Flags().BoolVar(&o.Repair, "repair", false, "mend the rows that differ")
	cmd.Flags().StringVar(&o.From, "from", "", "with --repair: the `node` whose rows are right")
	cmd.Flags().IntVar(&o.Rate, "rate", bridge.VerifyRate, "read so many rows of each node in a second, a `number`; 0 is no bound")
	cmd.Flags().IntVar(&o.Limit, "limit", 20, "show at most so many rows, a `number`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the keys of the log")
	return cmd
}

// verifyTellEach is how often a person hears how far it is.
const verifyTellEach = 5 * time.Second

// checkVerify checks the flags against each other.
func checkVerify(cmd *cobra.Command, o bridge.VerifyOptions) error {
	switch {
	case o.From != "" && !o.Repair:
		return usagef("--from says whose rows are right for --repair; give both")
	case cmd.Flags().Changed("from") && o.From == "":
		return usagef("--from names no node; give the one whose rows are right")
	case o.Rate < 0:
		return usagef("--rate %d is out of range; use 0 for no bound, or more", o.Rate)
	case o.Limit < 0:
		return usagef("--limit %d is out of range; use 0 or more", o.Limit)
	}
	if schema, name, ok := strings.Cut(o.Table, "."); cmd.Flags().Changed("table") && (!ok || schema == "" || name == "") {
		return usagef("--table %q is not a pattern over schema.table; write public.items or app.*", o.Table)
	}
	return nil
}

// verifyFound is an error if something is left to be seen to.
func verifyFound(r *bridge.VerifyReport) error {
	left := r.Differences - r.Mended
	switch {
	case left == 1:
		return &foundError{"1 row differs"}
	case left > 1:
		return &foundError{fmt.Sprintf("%d rows differ", left)}
	case r.Partial:
		return &foundError{"there may be more rows that differ; compare again"}
	case len(r.Skipped) > 0:
		return &foundError{"not all was compared"}
	}
	return nil
}

// printVerified writes a report for a person.
func printVerified(w io.Writer, r *bridge.VerifyReport, limit int) error {
	var b strings.Builder
	fmt.Fprintf(&b, "nodes %s, compared at %s in %s\n\n", strings.Join(r.Nodes, ", "), clock(r.At), took(r.Seconds))
	t := newTable(&b)
	t.row("TABLE", "ROWS", "SEGMENTS", "LOOKED AT", "DIFFER", "MENDED", "TIME")
	for _, v := range r.Tables {
		t.row(v.Table, fmt.Sprint(v.Rows), fmt.Sprint(v.Segments), fmt.Sprint(v.Looked), fmt.Sprint(v.Differences), fmt.Sprint(v.Mended), took(v.Seconds))
	}
	t.flush()
	for i := range r.Found {
		writeDifference(&b, &r.Found[i])
	}
	if more := r.Differences - len(r.Found); more > 0 {
		fmt.Fprintf(&b, "\nand %d more rows; --limit %d shows more\n", more, max(10*limit, 10))
	}
	if r.Partial {
		b.WriteString("\nso many rows differ that it ended here; mend these and compare again\n")
	}
	writeReasons(&b, "differs for now, for a reason that the nodes know of", r.Explained)
	writeReasons(&b, "could not be compared", r.Unsettled)
	for _, s := range r.Skipped {
		fmt.Fprintf(&b, "\n%s was not compared: %s\n", s.Table, s.Reason)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// took writes how long something took, to a millisecond.
func took(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(time.Millisecond).String()
}

func writeReasons(b *strings.Builder, what string, rows []bridge.RowReason) {
	if len(rows) > 0 {
		b.WriteString("\n")
	}
	for _, e := range rows {
		fmt.Fprintf(b, "row %s of %s %s: %s\n", cut(e.Key, keyWidth), e.Table, what, e.Reason)
	}
}

// writeDifference shows a row side by side, as the nodes have it.
func writeDifference(b *strings.Builder, d *bridge.RowDifference) {
	fmt.Fprintf(b, "\n%s, row %s: %s\n", d.Table, cut(d.Key, keyWidth), fate(d))
	t := newTable(b)
	head, version, cols := []string{""}, []string{"(version)"}, map[string]bool{}
	for _, n := range d.Nodes {
		name := n.Node
		if n.Node == d.Right {
			name += ", right"
		}
		head, version = append(head, name), append(version, n.Version)
		for col := range n.Values {
			cols[col] = true
		}
	}
	t.row(head...)
	t.row(version...)
	for _, col := range slices.Sorted(maps.Keys(cols)) {
		mark := "   "
		if slices.Contains(d.Columns, col) {
			mark = "*  "
		}
		row := []string{mark + col}
		for _, n := range d.Nodes {
			v, ok := n.Values[col]
			switch {
			case !ok:
				row = append(row, "(no row)")
			case v == nil:
				row = append(row, "NULL")
			default:
				row = append(row, cut(fmt.Sprintf("%q", *v), valueWidth))
			}
		}
		t.row(row...)
	}
	t.flush()
}

// fate says what became of a difference.
func fate(d *bridge.RowDifference) string {
	switch {
	case d.Mended:
		return "mended"
	case d.Refused != "":
		return "differs, not mended: " + d.Refused
	}
	return "differs"
}
