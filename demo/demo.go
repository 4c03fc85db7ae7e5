package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/pgbridge/pgbridge/integration/pgcluster"
)

// The bounds of [Options]: a cluster has two nodes, and every node costs a PostgreSQL.
const (
	LeastNodes, MostNodes       = 2, 9
	LeastDuration, MostDuration = time.Second, time.Hour
)

// The scenarios that Run can play.
const (
	// Tour has everybody write, provokes one conflict and kills one bridge.
	Tour = "tour"
	// Datacenters loses one node for good, bridge and server, while everybody writes.
	Datacenters = "datacenters"
	// Offline has devices that are mostly offline edit one calendar.
	Offline = "offline"
	// Editor serves a page on which people edit one text on all nodes, until ctx ends.
	Editor = "editor"
)

// Scenarios are the names of all scenarios; the first is the default.
var Scenarios = []string{Tour, Datacenters, Offline, Editor}

// Topologies are the ways in which Datacenters can link the nodes; the first is the default.
var Topologies = []string{"ring", "star", "mesh"}

// Options say what Run plays. The zero value is fine.
type Options struct {
	// Scenario is one of Scenarios; "" is Tour.
	Scenario string
	// Topology is one of Topologies, for Datacenters alone; "" is the first.
	Topology string
	// Nodes is how many nodes there are, LeastNodes to MostNodes; 0 is 3, or 5 for Datacenters, which needs 3. Offline has 4.
	Nodes int
	// Duration is how long is written, LeastDuration to MostDuration; 0 is 20 s. Set-up and comparison
	// come on top. Offline takes as long as it takes.
	Duration time.Duration
	// Keep leaves servers and bridges running at the end, until ctx ends.
	Keep bool
	// Out gets the account, os.Stdout if nil. On a terminal the figures are redrawn in place.
	Out io.Writer
	// Executable is the pgbridge program that runs as bridges; "" is the running one.
	Executable string
}

// FoundError says what was wrong in the end: rows that differ, transactions that were lost or applied
// twice, parts of transactions that were visible.
type FoundError struct {
	Faults []string // one line each
}

// Error gives all faults.
func (e *FoundError) Error() string {
	return "the demonstration failed: " + strings.Join(e.Faults, "; ")
}

// ExitCode is that of a check that found something.
func (e *FoundError) ExitCode() int { return 3 }

// ErrNoPostgres is returned by Run when there is no server to run on this machine.
var ErrNoPostgres = errors.New("no PostgreSQL is installed here; run `make demo`, which fetches one, or install it with the system's packages")

// Run plays the demonstration and removes everything again, whatever happens and also when ctx ends. It
// returns a [FoundError] when the nodes are not what they should be; ctx.Err when ctx ended before the
// comparison. Two may run at once.
func Run(ctx context.Context, o Options) (err error) {
	d, err := prepare(o)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			d.showBridges()
		}
		err = errors.Join(err, d.close())
	}()
	return d.play(ctx)
}

// demo is one run. Its fields belong to the goroutine of Run.
type demo struct {
	opts    Options
	install pgcluster.Install
	screen  *screen
	begun   time.Time
	nodes   []*node
	lost    []*node   // for good
	rounds  int       // checkpoints written so far
	looks   looks     // what observers saw
	shown   time.Time // when the figures were
}

func prepare(o Options) (*demo, error) {
	o.Scenario = cmp.Or(o.Scenario, Tour)
	least := LeastNodes
	if o.Scenario == Datacenters {
		o.Nodes, o.Topology, least = cmp.Or(o.Nodes, 5), cmp.Or(o.Topology, Topologies[0]), 3
	}
	if o.Scenario == Offline {
		o.Nodes = cmp.Or(o.Nodes, len(calendar.nodes))
	}
	o.Nodes = cmp.Or(o.Nodes, 3)
	o.Duration = cmp.Or(o.Duration, 20*time.Second)
	if o.Out == nil {
		o.Out = os.Stdout
	}
	if !slices.Contains(Scenarios, o.Scenario) {
		return nil, fmt.Errorf("demonstration %q: use one of %s", o.Scenario, strings.Join(Scenarios, ", "))
	}
	if o.Topology != "" && (o.Scenario != Datacenters || !slices.Contains(Topologies, o.Topology)) {
		return nil, fmt.Errorf("topology %q: use one of %s, with the scenario %s", o.Topology, strings.Join(Topologies, ", "), Datacenters)
	}
	if o.Nodes < least || o.Nodes > MostNodes {
		return nil, fmt.Errorf("demonstration with %d nodes: use %d to %d", o.Nodes, least, MostNodes)
	}
	if o.Scenario == Offline && o.Nodes != len(calendar.nodes) {
		return nil, fmt.Errorf("demonstration with %d nodes: the scenario %s has %d", o.Nodes, Offline, len(calendar.nodes))
	}
	if o.Duration < LeastDuration || o.Duration > MostDuration {
		return nil, fmt.Errorf("demonstration of %s: use %s to %s", o.Duration, LeastDuration, MostDuration)
	}
	if o.Executable == "" {
		own, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find the program to run as bridges: %w", err)
		}
		o.Executable = own
	}
	installs := pgcluster.Installed()
	if len(installs) == 0 {
		return nil, ErrNoPostgres
	}
	return &demo{opts: o, install: installs[0], screen: newScreen(o.Out), begun: time.Now()}, nil
}

// play plays the script of the scenario.
func (d *demo) play(ctx context.Context) error {
	script := map[string]func(context.Context) error{Tour: d.tour, Datacenters: d.datacenters, Offline: d.offline, Editor: d.editor}[d.opts.Scenario]
	err := script(ctx)
	var found *FoundError
	if d.opts.Keep && (err == nil || errors.As(err, &found)) {
		d.keep(ctx)
	}
	return err
}

// tour is the script of that name.
func (d *demo) tour(ctx context.Context) error {
	d.screen.say("pgbridge demo: %d nodes, PostgreSQL %s, %s of writing on all of them",
		d.opts.Nodes, d.install.Version, d.opts.Duration)
	return inOrder(
		func() error { return d.setUp(ctx, shop, "a mesh", "") },
		func() error { return d.underLoad(ctx) },
		func() error { return d.judge(ctx) },
	)
}

// underLoad is the part of the script in which everybody writes.
func (d *demo) underLoad(ctx context.Context) error {
	part := func(percent time.Duration) time.Duration { return d.opts.Duration * percent / 100 }
	return d.whileAllWrite(ctx, func(ctx context.Context, l *load) error {
		return inOrder(
			func() error { return d.watch(ctx, time.Now().Add(part(25))) },
			func() error { return d.clash(ctx) },
			func() error { return d.watchOn(ctx, time.Now().Add(part(15))) },
			func() error { return d.crash(ctx, time.Now().Add(part(25))) },
			func() error { l.endAt(l.begun.Add(part(100))); return d.restart(ctx) },
			func() error { return d.watchOn(ctx, l.begun.Add(part(100))) },
		)
	})
}

// whileAllWrite does something while there is load on all nodes. Its ctx ends when a writer fails.
func (d *demo) whileAllWrite(ctx context.Context, do func(ctx context.Context, l *load) error) error {
	d.screen.title("Everybody writes")
	l, ctx, err := d.startLoad(ctx)
	if err != nil {
		return err
	}
	err = do(ctx, l)
	if failed := l.stop(); failed != nil { // the reason why ctx ended, then
		return failed
	}
	return err
}

// inOrder runs steps until one fails.
func inOrder(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// keep says how to go on by hand and waits for ctx to end.
func (d *demo) keep(ctx context.Context) {
	s := d.screen
	s.title("Kept")
	for _, n := range d.nodes {
		s.say("node %s, in %s", n.name, n.dir)
		s.say("  psql '%s'", n.pg.DSN(n.world.name))
		s.say("  %s status --config %s", d.opts.Executable, n.file)
	}
	n := d.nodes[0]
	s.say("")
	s.say("Things to try:")
	s.say("  psql '%s' -c \"%s\", then look at another node", n.pg.DSN(n.world.name), n.world.try)
	s.say("  %s conflicts list --config %s --limit 3, then show and undo one of them", d.opts.Executable, n.file)
	s.say("  kill -9 %d (the bridge of %s), write, then %s run --config %s", n.bridge.pid(), n.name, d.opts.Executable, n.file)
	s.say("")
	s.say("Ctrl-C ends everything and removes it.")
	<-ctx.Done()
}

// showBridges prints what the bridges said last, and what they wait for.
func (d *demo) showBridges() {
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	for _, n := range d.nodes {
		if tail := n.logTail(); tail != "" {
			d.screen.title(fmt.Sprintf("The end of bridge %s's log", n.name))
			d.screen.say("%s", tail)
			for _, reason := range n.waits(ctx) {
				d.screen.say("%s", reason)
			}
		}
	}
}

// close ends what runs and removes all directories.
func (d *demo) close() error {
	all := slices.Concat(d.nodes, d.lost)
	errs := make([]error, len(all))
	inParallel(len(all), func(i int) { errs[i] = all[i].close() })
	return errors.Join(errs...)
}
