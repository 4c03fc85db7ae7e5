package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
)

const (
	leastInterval = 100 * time.Millisecond
	mostInterval  = time.Minute
)

func newTop(b backend, c terminal) *cobra.Command {
	var flags configFlags
	var once bool
	interval := span(time.Second)
	cmd := &cobra.Command{
		Use:   "top --config file",
		Short: "Watch this node in the terminal: who is behind, what waits, at what rates",
		Long: `Watch this node's bridge until Ctrl-C: what "status" says, and how many transactions a second go each way. With --once one
picture is printed as text, made of two looks, which needs no terminal.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if d := time.Duration(interval); d < leastInterval || d > mostInterval {
				return usagef("--interval %s is out of range; use %s to %s", d, leastInterval, mostInterval)
			}
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			v := &topView{b: b, cfg: cfg, out: c.out}
			if once {
				return v.once(cmd.Context(), time.Duration(interval))
			}
			if _, _, ok := b.window(c.out); !ok {
				return usagef("top draws on a terminal, and standard output is none; use --once, or pgbridge status")
			}
			return v.watch(cmd.Context(), time.Duration(interval))
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&once, "once", false, "print one picture and end")
	cmd.Flags().Var(&interval, "interval", "time between two looks")
	return cmd
}

// topView draws reports, with what has changed since the one before.
type topView struct {
	b      backend
	cfg    *config.Config
	out    io.Writer
	before *bridge.Report
}

// once draws one picture of two looks.
func (v *topView) once(ctx context.Context, interval time.Duration) error {
	tick, stop := v.b.every(interval)
	defer stop()
	r, err := v.b.status(ctx, v.cfg)
	if err != nil {
		return err
	}
	v.before = r
	select {
	case <-tick:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if r, err = v.b.status(ctx, v.cfg); err != nil {
		return err
	}
	_, err = io.WriteString(v.out, strings.Join(v.picture(r), "\n")+"\n")
	return err
}

// ANSI: the other screen and no cursor, and back; home; clear to the end of the line, and of the screen.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	clearLine   = "\x1b[K"
	clearBelow  = "\x1b[J"
)

// watch draws until ctx ends, which is no error: a person has had enough.
func (v *topView) watch(ctx context.Context, interval time.Duration) error {
	tick, stop := v.b.every(interval)
	defer stop()
	if _, err := io.WriteString(v.out, enterScreen); err != nil {
		return err
	}
	defer io.WriteString(v.out, leaveScreen)
	for {
		r, err := v.b.status(ctx, v.cfg)
		if ctx.Err() != nil {
			return nil
		}
		lines := []string{}
		if r != nil {
			lines = v.picture(r)
		}
		if err != nil {
			lines = append(lines, "", err.Error())
		}
		v.before = r
		if err := v.draw(lines); err != nil {
			return err
		}
		select {
		case <-tick:
		case <-ctx.Done():
			return nil
		}
	}
}

// draw puts lines on the screen, as far as they fit: a longer one would push the others down.
func (v *topView) draw(lines []string) error {
	columns, rows, _ := v.b.window(v.out)
	var b strings.Builder
	b.WriteString(home)
	for i, line := range lines[:min(len(lines), max(rows, 1))] {
		if i > 0 {
			b.WriteString("\r\n")
		}
		if runes := []rune(line); columns > 0 && len(runes) > columns {
			line = string(runes[:columns])
		}
		b.WriteString(line + clearLine)
	}
	b.WriteString(clearBelow)
	_, err := io.WriteString(v.out, b.String())
	return err
}

// picture writes a report, line by line.
func (v *topView) picture(r *bridge.Report) []string {
	var b strings.Builder
	fmt.Fprintf(&b, "pgbridge %s/%s  %s  %s\n", r.Cluster, r.Node, clock(r.At), r.Verdict)
	old := v.before
	if old == nil {
		old = &bridge.Report{At: r.At}
	}
	took := r.At.Sub(old.At).Seconds()
	fmt.Fprintf(&b, "own: %s/s, seq %d  WAL held %s  stream %s  conflicts %d/min  waiting rows: %d owed, %d in quarantine\n\n",
		rate(old.Seq, r.Seq, took), r.Seq, size(r.Slot.WALHeldBytes), streamFill(r.Stream), r.ConflictsPerMinute, r.Owed, r.Quarantined)
	t := newTable(&b)
	t.row("FROM", "STATE", "APPLIED/S", "RECEIVED/S", "WAITING", "BYTES", "LAG", "CONFLICTS", "PARKED")
	for _, l := range r.Links {
		was := linkOf(old, l.Origin)
		t.row(origin(l), l.State, rate(was.AppliedSeq, l.AppliedSeq, took), rate(was.ReceivedSeq, l.ReceivedSeq, took), fmt.Sprint(l.Queued), size(l.QueuedBytes),
			seconds(l.LagSeconds), fmt.Sprint(l.Conflicts), fmt.Sprint(l.Parked))
	}
	t.flush()
	b.WriteString("\n")
	writeNodes(&b, r.Nodes)
	for _, l := range r.Links {
		if l.Waiting != "" {
			fmt.Fprintf(&b, "%s waits: %s\n", l.Link, l.Waiting)
		}
	}
	for _, a := range r.Alarms {
		fmt.Fprintf(&b, "%s %s: %s; %s\n", a.Severity, a.Code, a.Text, a.Mend)
	}
	return strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
}

// origin names whose transactions a link brings, and from where if that is another node.
func origin(l bridge.LinkReport) string {
	if l.Origin == "" || l.Origin == l.Link || strings.HasPrefix(l.Origin, l.Link+"/") {
		return l.Link
	}
	return l.Origin + " via " + l.Link
}

// linkOf is the origin's link in an earlier report.
func linkOf(r *bridge.Report, origin string) bridge.LinkReport {
	for _, l := range r.Links {
		if l.Origin == origin {
			return l
		}
	}
	return bridge.LinkReport{}
}

// rate is by how much a number has risen a second; "-" if that is not known, as after a start.
func rate(before, now uint64, took float64) string {
	if before == 0 || now < before || took <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f", float64(now-before)/took)
}
