package main

import (
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgbridge/pgbridge/demo"
)

// The bounds of --seconds.
const (
	demoLeastSeconds = int(demo.LeastDuration / time.Second)
	demoMostSeconds  = int(demo.MostDuration / time.Second)
)

func newDemo(b backend, c terminal) *cobra.Command {
	opts := demo.Options{Out: c.out}
	var seconds int
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a whole cluster on this machine and compare it at the end",
		Long: `Start PostgreSQL clusters in temporary directories with a bridge beside each, play one scenario, and
compare all rows at the end. Nothing is left behind. The exit code is 3 if any row differs.

  tour         write on all at once, provoke one conflict, kill one bridge
  datacenters  write on all at once, and lose one for good: how soon do the others go on without it?
  offline      a laptop, a phone and a tablet edit one calendar offline, and meet at a server at home
  editor       a web page on which one text is edited on all nodes at once, until Ctrl-C`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.Nodes != 0 && (opts.Nodes < demo.LeastNodes || opts.Nodes > demo.MostNodes) {
				return usagef("--nodes %d is out of range; use %d to %d", opts.Nodes, demo.LeastNodes, demo.MostNodes)
			}
			if seconds < demoLeastSeconds || seconds > demoMostSeconds {
				return usagef("--seconds %d is out of range; use %d to %d", seconds, demoLeastSeconds, demoMostSeconds)
			}
			if !slices.Contains(demo.Scenarios, opts.Scenario) {
				return usagef("--scenario %q is not known; use %s", opts.Scenario, strings.Join(demo.Scenarios, ", "))
			}
			if opts.Topology != "" && (opts.Scenario != demo.Datacenters || !slices.Contains(demo.Topologies, opts.Topology)) {
				return usagef("--topology %q cannot be; use %s, with --scenario %s", opts.Topology, strings.Join(demo.Topologies, ", "), demo.Datacenters)
			}
			opts.Duration = time.Duration(seconds) * time.Second
			return b.demo(cmd.Context(), opts)
		},
	}
	cmd.Flags().StringVar(&opts.Scenario, "scenario", demo.Scenarios[0], "the scenario to play, by `name`: "+strings.Join(demo.Scenarios, ", "))
	cmd.Flags().StringVar(&opts.Topology, "topology", "", "how data centres are linked, by `kind`: "+strings.Join(demo.Topologies, ", ")+" (default "+demo.Topologies[0]+")")
	cmd.Flags().IntVar(&opts.Nodes, "nodes", 0, "`number` of nodes (default 3, or 5 data centres)")
	cmd.Flags().IntVar(&seconds, "seconds", 20, "how long to write, in `seconds`")
	cmd.Flags().BoolVar(&opts.Keep, "keep", false, "leave everything running at the end until Ctrl-C, and say how to reach it")
	return cmd
}
