// Command bench measures pgbridge against PostgreSQL's own logical replication, on one machine, in one
// run, on the same work.
//
// Each line (line.go) is run by each rival in turn on two new PostgreSQL servers of its own, with the
// same settings (pair.go). Catch-up: both ends get the line's tables and rows, replication is set up and
// seen to work, it is stopped, the work is committed at the source, and the clock runs from the moment
// at which replication goes on (catchup.go says which that is) until the receiver shows a row that was
// committed after all the work. Latency: single rows at a fixed rate, from the commit's return until the
// receiver shows them (latency.go). Then both ends are compared, row counts and digests of all tables: a
// run in which they differ has no time, and the command ends with 1.
//
// The rivals are native (native.go): a subscription with origin = none, binary = true, streaming =
// parallel; and pgbridge (bridges.go): two processes of the built binary with embedded brokers and
// default settings. Neither gets a setting that the other does not get. A third run reads the slot to
// nowhere: the decode floor of both (floor.go). -rivals and -major ask for others, and for another server
// than PostgreSQL 18: pglogical (pglogical.go) and Bucardo (bucardo.go); rivals.go says what each of them
// needs.
//
// Out go tables on standard output (table.go), a picture (picture.go), and build/bench.json with every single run, the CPU seconds
// that each kind of process took, and the bridges' peak memory (usage.go). With -profile the bridges are this
// program itself, started again (profile.go), and leave pprof files beside the JSON.
//
// It knows bridge through its command line, its configuration file, its log and its status; only with
// -profile does it run one.
// Goroutines: those that write the latency probe's rows and that read the bridges' logs; all are joined
// before the run that needs them ends.
//
// docs/benchmarks.md says how to read the result. Begin reading at runAll.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// options are what the command line says.
type options struct {
	scale   float64       // share of the full amount of work
	only    []string      // names of lines; nil is all
	rivals  []string      // names of rivals; nil is standard()
	major   int           // of the PostgreSQL that all run on
	repeat  int           // runs of each line
	binary  string        // pgbridge
	out     string        // JSON file
	tables  string        // Markdown file; "" is none
	svg     string        // picture; "" is beside the JSON
	timeout time.Duration // for one catch-up
	profile bool
	long    bool // the long lines instead of the others
	both    bool // native replicates in both directions
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == profiledBridge {
		os.Exit(runProfiledBridge(os.Args[2:]))
	}
	o, err := parseFlags(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err = runAll(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parseFlags(args []string) (options, error) {
	var o options
	var only, rivals string
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	scale := 1.0
	if text := os.Getenv("BENCH_SCALE"); text != "" {
		var err error
		if scale, err = strconv.ParseFloat(text, 64); err != nil {
			return o, fmt.Errorf("BENCH_SCALE=%q is not a number; write a share of the full work such as 0.1", text)
		}
	}
	f.Float64Var(&o.scale, "scale", scale, "share of the full amount of work (BENCH_SCALE)")
	f.StringVar(&only, "only", "", "run these `lines`: "+strings.Join(lineNames(), ","))
	f.StringVar(&rivals, "rivals", "", "run these `rivals`: "+rivalList()+"; by default "+strings.Join(standard(), ","))
	f.IntVar(&o.major, "major", defaultMajor, "the PostgreSQL that all rivals run on")
	f.IntVar(&o.repeat, "repeat", 1, "runs of each line; the median counts")
	f.StringVar(&o.binary, "binary", filepath.Join("bin", "pgbridge"), "the built `pgbridge`")
	f.StringVar(&o.out, "out", filepath.Join("build", "bench.json"), "JSON `file`; profiles and logs go beside it")
	f.StringVar(&o.tables, "markdown", "", "write the tables to this `file` too")
	f.StringVar(&o.svg, "svg", "", "SVG `file` of the ratios (default beside the JSON)")
	f.DurationVar(&o.timeout, "timeout", 5*time.Minute, "how long one catch-up may take")
	f.BoolVar(&o.profile, "profile", false, "leave CPU and allocation profiles of both bridges, one pair per line")
	f.BoolVar(&o.long, "long", false, "run the long lines instead of the others, if -only names none")
	f.BoolVar(&o.both, "native-both", false, "let native replicate in both directions, as pgbridge always does")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.only, o.rivals = fields(only), fields(rivals)
	o.svg = cmp.Or(o.svg, strings.TrimSuffix(o.out, filepath.Ext(o.out))+".svg")
	return o, o.validate()
}

func fields(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

func (o options) validate() error {
	for _, name := range o.only {
		if !slices.Contains(lineNames(), name) {
			return fmt.Errorf("-only: no line %q; there are %s", name, strings.Join(lineNames(), ", "))
		}
	}
	if name := unknownRival(o.rivals); name != "" {
		return fmt.Errorf("-rivals: no rival %q; there are %s", name, rivalList())
	}
	if o.both && o.major < 16 {
		return fmt.Errorf("-native-both: before PostgreSQL 16 a subscription hands on what it received, and changes go round for ever; not with -major %d", o.major)
	}
	if o.scale <= 0 || o.repeat < 1 {
		return errors.New("-scale and -repeat must be above 0")
	}
	return nil
}

// runs reports whether the rival is among those that were asked for.
func (o options) runs(rival string) bool { return slices.Contains(o.order(0), rival) }

// chooses reports whether the line is to run.
func (o options) chooses(l line) bool {
	if o.only != nil {
		return slices.Contains(o.only, l.name)
	}
	return l.long == o.long
}

// runAll runs the chosen lines, writes the report after each of them, and prints the table at the end.
func runAll(ctx context.Context, o options) error {
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	r := &report{At: time.Now().UTC(), Scale: o.scale, Repeat: o.repeat, NativeBothWays: o.both,
		Machine: readMachine(), Versions: b.versions(ctx), Settings: serverSettings()}
	for _, l := range lines() {
		if !o.chooses(l) {
			continue
		}
		result, err := b.runLine(ctx, l)
		if err != nil {
			return err
		}
		r.Lines = append(r.Lines, result)
		if err := r.write(o.out); err != nil {
			return err
		}
	}
	r.print(os.Stdout)
	if err := r.draw(o.svg); err != nil {
		return err
	}
	fmt.Printf("\nwritten to %s and %s\n", o.out, o.svg)
	if o.tables != "" {
		if err := r.printTo(o.tables); err != nil {
			return err
		}
	}
	return r.failure()
}

// runLine runs one line: the rivals take turns, and the one that begins changes with each round. The floor is read once.
func (b *bench) runLine(ctx context.Context, l line) (*result, error) {
	result := newResult(l, b.opts.scale)
	for round := range b.opts.repeat {
		for _, name := range b.opts.order(round) {
			if !l.runBy(name) || name == floorName && round > 0 { // it varies little
				continue
			}
			s := b.measure(ctx, l, name)
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			fmt.Fprintf(os.Stderr, "%-13s %-9s %s\n", l.name, name, cmp.Or(s.Error, s.text()))
			if len(s.Warnings) > 0 {
				fmt.Fprintf(os.Stderr, "%d warnings, the last one: %s\n", len(s.Warnings), s.Warnings[len(s.Warnings)-1])
			}
			result.add(name, s)
		}
	}
	return result, nil
}
