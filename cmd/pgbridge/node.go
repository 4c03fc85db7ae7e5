package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgbridge/pgbridge/bridge"
)

func newNode(b backend, c terminal) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Let nodes join and leave a running cluster, or come back",
		Long: `Let a node join a running cluster with the rows of another one, leave it, or remove one that is dead; or say that
a node's data were set back. Users of the other nodes go on meanwhile.`,
		Args: cobra.ArbitraryArgs,
		RunE: refuseUnknownCommand,
	}
	cmd.AddCommand(newNodeJoin(b, c), newNodeLeave(b, c), newNodeRemove(b, c), newNodeRestored(b, c))
	return cmd
}

func newNodeJoin(b backend, c terminal) *cobra.Command {
	var flags configFlags
	o := bridge.JoinOptions{}
	cmd := &cobra.Command{
		Use:   "join --from node --config file",
		Short: "Join the cluster with the rows of another node",
		Long: `Copy the rows of all replicated tables from another node to this one, take in what came meanwhile, and end when this
node has caught up: start its bridge then. First give all nodes a topology that names this one, and start their bridges
again one after the other. The tables must be here, unless --schema-dsn is given, and empty, unless --existing is. A run that
was interrupted goes on where it was when the command is given again. Keep users away from this node until it has joined.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			if o.From == "" {
				return usagef("%s needs --from, the node that gives the rows", cmd.CommandPath())
			}
			bar := newProgressBar(c.err, b.now)
			o.Tell, o.Progress = bar.say, bar.show
			o.Logger, _ = newLogger(c.err, cfg.Log)
			if err := b.join(cmd.Context(), cfg, o); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.out, "node %s has joined cluster %s; start its bridge\n", cfg.Node, cfg.Cluster)
			return err
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&o.From, "from", "", "the `node` that gives the rows")
	cmd.Flags().IntVar(&o.Jobs, "jobs", 4, "copy with so many sessions side by side")
	cmd.Flags().StringVar(&o.SchemaDSN, "schema-dsn", "", "take the schema of this database where tables are missing here, by pg_dump")
	cmd.Flags().BoolVar(&o.Existing, "existing", false, "rows that are here already, from a dump or a backup, stay where the other node has the same")
	return cmd
}

func newNodeLeave(b backend, c terminal) *cobra.Command {
	var flags configFlags
	cmd := &cobra.Command{
		Use:   "leave --config file",
		Short: "Leave the cluster with nothing lost",
		Long: `Wait until all other nodes have all that this node has, have them wait for it no more, and drop its slot, publication and
streams. Its bridge must run, and ends. Writes to replicated tables wait until that is done; then they are this node's
own. Its data stay, and its name is not used again.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			bar := newProgressBar(c.err, b.now)
			log, _ := newLogger(c.err, cfg.Log)
			if err := b.leave(cmd.Context(), cfg, bridge.MemberOptions{Logger: log, Tell: bar.say}); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.out, "node %s has left cluster %s; take it out of topology.nodes of the others\n", cfg.Node, cfg.Cluster)
			return err
		},
	}
	flags.add(cmd)
	return cmd
}

func newNodeRemove(b backend, c terminal) *cobra.Command {
	var flags configFlags
	cmd := &cobra.Command{
		Use:   "remove node --config file",
		Short: "Remove a node that is dead for good",
		Long: `Have all other nodes wait no more for a node that is dead, once they all have the same of what it wrote. What it did not
send to any of them is lost to the cluster. If it comes back it is refused, and its name is not used again. Run it on any
of the others; all of them must run.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			bar := newProgressBar(c.err, b.now)
			log, _ := newLogger(c.err, cfg.Log)
			if err := b.remove(cmd.Context(), cfg, args[0], bridge.MemberOptions{Logger: log, Tell: bar.say}); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.out, "node %s is removed from cluster %s; take it out of topology.nodes of the others\n", args[0], cfg.Cluster)
			return err
		},
	}
	flags.add(cmd)
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			return nil
		}
		return usagef("%s takes the name of the node that is dead", cmd.CommandPath())
	}
	return cmd
}

// barPause is the time from one line of progress to the next where these stay, as in a log.
const barPause = 10 * time.Second

// progressBar tells a person, on a terminal or in a log, how far something has come.
type progressBar struct {
	out      io.Writer
	now      func() time.Time
	terminal bool
	open     bool // the cursor stands behind a line that is not ended
	shown    time.Time
	said     string
}

func newProgressBar(out io.Writer, now func() time.Time) *progressBar {
	p := &progressBar{out: out, now: now}
	if f, ok := out.(*os.File); ok {
		s, err := f.Stat()
		p.terminal = err == nil && s.Mode()&os.ModeCharDevice != 0
	}
	return p
}

// say tells what is being done, once.
func (p *progressBar) say(text string) {
	if text == p.said {
		return
	}
	p.said = text
	p.end()
	fmt.Fprintln(p.out, text)
}

func (p *progressBar) end() {
	if p.open {
		fmt.Fprintln(p.out)
		p.open = false
	}
}

const barWidth = 30

// show tells of rows that are copied.
func (p *progressBar) show(j bridge.JoinProgress) {
	if !p.terminal && p.now().Sub(p.shown) < barPause && j.Rows < j.About {
		return
	}
	p.shown = p.now()
	line := progressLine(j)
	if !p.terminal {
		fmt.Fprintln(p.out, line)
		return
	}
	filled := int(barWidth * j.Rows / max(j.About, 1))
	fmt.Fprintf(p.out, "\r[%s%s] %s\x1b[K", strings.Repeat("=", filled), strings.Repeat(" ", barWidth-filled), line)
	p.open = true
}

// progressLine says how far copying has come, how fast, and how long it may yet take at that pace.
func progressLine(j bridge.JoinProgress) string {
	line := fmt.Sprintf("%3d %%  %d of about %d rows  %s", 100*j.Rows/max(j.About, 1), j.Rows, j.About, size(j.Bytes))
	if rate := float64(j.Rows-j.Before) / j.Took.Seconds(); j.Took > 0 && rate >= 1 {
		left := time.Duration(float64(j.About-j.Rows) / rate * float64(time.Second))
		line += fmt.Sprintf("  %.0f rows/s  %s left", rate, left.Round(time.Second))
	}
	return line
}
