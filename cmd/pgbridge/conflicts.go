package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
)

func newConflicts(b backend, c terminal) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "conflicts",
		Short: "Look at lost writes, and bring them back",
		Long: `Look at the conflict history of this node's primary: every decision between two writes of one row of which
neither had seen the other. The loser's version is kept and can be brought back. The role in postgres.dsn
must be able to read pgbridge.conflict and, for undo, to write the tables. No bridge needs to run.`,
		Args: cobra.ArbitraryArgs,
		RunE: refuseUnknownCommand,
	}
	cmd.AddCommand(newConflictsList(b, c), newConflictsShow(b, c), newConflictsUndo(b, c), newConflictsStats(b, c))
	return cmd
}

// historyFlags are those of every verb that opens the history.
type historyFlags struct {
	configFlags
	clockError span
	asJSON     bool
}

func (f *historyFlags) add(cmd *cobra.Command) {
	f.configFlags.add(cmd)
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "print JSON, with the keys of the log")
}

// addClockError adds the flag that says which decisions are close.
func (f *historyFlags) addClockError(cmd *cobra.Command) {
	cmd.Flags().Var(&f.clockError, "clock-error", "how far the nodes' clocks may be apart: a decision by less is marked as close; 0s: as the bridge has measured")
}

// with opens the history for as long as use runs.
func (f *historyFlags) with(ctx context.Context, b backend, use func(history) error) error {
	cfg, err := f.load()
	if err != nil {
		return err
	}
	h, err := b.history(ctx, cfg, time.Duration(f.clockError))
	if err != nil {
		return err
	}
	defer h.Close(context.WithoutCancel(ctx)) // a signal must not keep the server from hearing of the end
	return use(h)
}

// windowFlags are a window of time.
type windowFlags struct{ since, until moment }

func (w *windowFlags) add(cmd *cobra.Command, now func() time.Time) {
	w.since.now, w.until.now = now, now
	cmd.Flags().Var(&w.since, "since", "only from then on: a duration back from now, such as 2h, or a time as in RFC 3339")
	cmd.Flags().Var(&w.until, "until", "only until then, written alike")
}

func newConflictsList(b backend, c terminal) *cobra.Command {
	var flags historyFlags
	var window windowFlags
	var f bridge.ConflictFilter
	var key []string
	cmd := &cobra.Command{
		Use:   "list --config file",
		Short: "List conflicts, the newest first",
		Long: `List the conflicts that this node has decided, the newest first. "close" behind the margin says that the two
stamps are less apart than clocks can be trusted: the other write may have been the later one.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("limit") && f.Limit < 1 {
				return usagef("--limit %d is out of range; use 1 or more", f.Limit)
			}
			var err error
			if f.Key, err = keyFilter(key); err != nil {
				return err
			}
			f.Since, f.Until = window.since.at, window.until.at
			return flags.with(cmd.Context(), b, func(h history) error {
				p, err := h.List(cmd.Context(), f)
				if err != nil {
					return err
				}
				if flags.asJSON {
					return printJSON(c, p)
				}
				return printConflicts(c.out, p)
			})
		},
	}
	flags.add(cmd)
	flags.addClockError(cmd)
	window.add(cmd, b.now)
	cmd.Flags().StringVar(&f.Table, "table", "", "only of tables that fit this `pattern` over schema.table, such as app.*")
	cmd.Flags().StringArrayVar(&key, "key", nil, "only of rows with this `column=value`, or JSON object; may be repeated")
	cmd.Flags().StringVar(&f.Kind, "kind", "", "only of this `kind`, such as update_update")
	cmd.Flags().StringVar(&f.Origin, "origin", "", "only with a write of this `node`")
	cmd.Flags().StringVar(&f.Outcome, "outcome", "", "only those that this `side` won: remote or local")
	cmd.Flags().IntVar(&f.Limit, "limit", 50, "at most so many, a `number`")
	return cmd
}

func newConflictsShow(b backend, c terminal) *cobra.Command {
	var flags historyFlags
	cmd := &cobra.Command{
		Use:   "show --config file id",
		Short: "Show both versions of one conflict, who won and why",
		Long: `Show both versions of the row side by side, with a star at the columns that differ, who won, by which rule and
by how much, and whether the loser was brought back. Long values are cut; --json has them whole.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := conflictIDs(cmd, args)
			if err != nil {
				return err
			}
			if len(ids) != 1 {
				return usagef("show takes one id of a conflict, got %d; %q shows its use", len(ids), cmd.CommandPath()+" --help")
			}
			return flags.with(cmd.Context(), b, func(h history) error {
				d, err := h.Show(cmd.Context(), ids[0])
				if err != nil {
					return fmt.Errorf("conflict %d: %w", ids[0], err)
				}
				if flags.asJSON {
					return printJSON(c, d)
				}
				clockError, source := h.ClockError()
				return printConflict(c.out, d, fmt.Sprintf("%s apart (%s)", clockError, source))
			})
		},
	}
	flags.add(cmd)
	cmd.Args = cobra.ArbitraryArgs
	flags.addClockError(cmd)
	return cmd
}

func newConflictsUndo(b backend, c terminal) *cobra.Command {
	var flags historyFlags
	var o bridge.UndoOptions
	cmd := &cobra.Command{
		Use:   "undo --config file id...",
		Short: "Bring the losers of conflicts back",
		Long: `Write the losing version of each conflict back, or delete the row again if the loser was a delete: one new
transaction each, that is replicated like any other write and fires triggers like any other. It is refused
if the row is not the version any more that won; --force writes it all the same. The history notes when and
by whom. The role in postgres.dsn must be able to write the tables. The exit code is 1 if one was refused;
the others are done all the same.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := conflictIDs(cmd, args)
			if err != nil {
				return err
			}
			o.By = whoAsks()
			return flags.with(cmd.Context(), b, func(h history) error { return flags.undo(cmd.Context(), c, h, ids, o) })
		},
	}
	flags.add(cmd)
	cmd.Args = cobra.ArbitraryArgs
	cmd.Flags().BoolVar(&o.Force, "force", false, "write it whatever is there now, also if it was undone before")
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "print the statements instead of running them")
	return cmd
}

// undo brings the losers back one by one; one that is refused does not hold up the others.
func (f *historyFlags) undo(ctx context.Context, c terminal, h history, ids []int64, o bridge.UndoOptions) error {
	all := []*bridge.Undone{}
	var refused []error
	for _, id := range ids {
		u, err := h.Undo(ctx, id, o)
		if err != nil {
			refused = append(refused, fmt.Errorf("conflict %d: %w", id, err))
		} else if all = append(all, u); !f.asJSON {
			err = printUndone(c.out, u, o)
		}
		if err != nil && ctx.Err() != nil {
			break
		}
	}
	if f.asJSON {
		refused = append(refused, printJSON(c, map[string]any{"undone": all, "dry_run": o.DryRun}))
	}
	return errors.Join(refused...)
}

// whoAsks names the person at this machine, as far as it is known.
func whoAsks() string {
	name, host := "", ""
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil && h != "" {
		host = "@" + h
	}
	return cmp.Or(name, "somebody") + host
}

func newConflictsStats(b backend, c terminal) *cobra.Command {
	var flags historyFlags
	var window windowFlags
	cmd := &cobra.Command{
		Use:   "stats --config file",
		Short: "Count conflicts by table, kind and winner",
		Long: `Count the conflicts that this node has decided, by table, kind and winner, the most frequent first. Close are
those of which the two stamps are less apart than clocks can be trusted.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return flags.with(cmd.Context(), b, func(h history) error {
				counts, err := h.Stats(cmd.Context(), bridge.ConflictFilter{Since: window.since.at, Until: window.until.at})
				if err != nil {
					return err
				}
				if flags.asJSON {
					return printJSON(c, map[string]any{"counts": counts})
				}
				return printCounts(c.out, counts)
			})
		},
	}
	flags.add(cmd)
	flags.addClockError(cmd)
	window.add(cmd, b.now)
	return cmd
}

// conflictIDs reads ids, of which there must be one at least.
func conflictIDs(cmd *cobra.Command, args []string) ([]int64, error) {
	var ids []int64
	for _, a := range args {
		id, err := strconv.ParseInt(a, 10, 64)
		if err != nil || id < 1 {
			return nil, usagef("%q is not the id of a conflict; %q shows them", a, "pgbridge conflicts list")
		}
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return nil, usagef("%s needs the id of a conflict; %q shows them", cmd.Name(), "pgbridge conflicts list")
	}
	return ids, nil
}

// keyFilter reads columns with their values.
func keyFilter(args []string) (map[string]string, error) {
	key := map[string]string{}
	for _, a := range args {
		if strings.HasPrefix(strings.TrimSpace(a), "{") {
			var values map[string]json.RawMessage
			if err := json.Unmarshal([]byte(a), &values); err != nil {
				return nil, usagef("--key %q is not a JSON object (%v); write it as in --key '{\"id\": 7}'", a, err)
			}
			for col, v := range values {
				key[col] = bridge.KeyValue(v)
			}
			continue
		}
		col, value, ok := strings.Cut(a, "=")
		if !ok || col == "" {
			return nil, usagef("--key %q is neither column=value nor a JSON object; write it as in --key id=7", a)
		}
		key[col] = value
	}
	return key, nil
}

// span is a flag that is a duration as in the configuration.
type span time.Duration

// String writes it as Go does.
func (s *span) String() string { return time.Duration(*s).String() }

// Set reads it.
func (s *span) Set(text string) error {
	d, err := config.ParseDuration(text)
	if err == nil {
		*s = span(d)
	}
	return err
}

// Type names it in the help.
func (s *span) Type() string { return "duration" }

// moment is a flag that is a time, or how long ago it was.
type moment struct {
	at  time.Time // zero if it was not given
	now func() time.Time
}

// momentLayouts are the ways to write a time: that of RFC 3339, and that in which times are printed.
var momentLayouts = []string{time.RFC3339Nano, "2006-01-02 15:04:05.999999Z07:00"}

// String writes the time; empty if there is none.
func (m *moment) String() string {
	if m.at.IsZero() {
		return ""
	}
	return m.at.Format(time.RFC3339Nano)
}

// Set reads it.
func (m *moment) Set(text string) error {
	if d, err := config.ParseDuration(text); err == nil {
		m.at = m.now().Add(-d)
		return nil
	}
	for _, layout := range momentLayouts {
		if at, err := time.Parse(layout, text); err == nil {
			m.at = at
			return nil
		}
	}
	return fmt.Errorf("it is neither a duration, such as 2h, nor a time, such as 2006-01-02T15:04:05Z")
}

// Type names it in the help.
func (m *moment) Type() string { return "when" }
