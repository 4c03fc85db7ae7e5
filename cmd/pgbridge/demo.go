package main

import (
	"time"

	"github.com/spf13/cobra"
)

// demoOptions are what demo's flags say.
type demoOptions struct {
	nodes    int
	duration time.Duration // of the load
	keep     bool          // leave clusters and logs behind
}

// The bounds of demo's flags: a cluster has two nodes, and every node costs a PostgreSQL.
const (
	demoLeastNodes, demoMostNodes     = 2, 9
	demoLeastSeconds, demoMostSeconds = 1, 3600
)

func newDemo(b backend, c terminal) *cobra.Command {
	var opts demoOptions
	var seconds int
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a whole cluster on this machine and compare it at the end",
		Long: `Start PostgreSQL clusters in a temporary directory with a bridge beside each, write on all of them at
once, provoke one conflict, kill one bridge, and compare all rows at the end. Nothing is left behind,
unless --keep asks for it. The exit code is 3 if any row differs.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.nodes < demoLeastNodes || opts.nodes > demoMostNodes {
				return usagef("--nodes %d is out of range; use %d to %d", opts.nodes, demoLeastNodes, demoMostNodes)
			}
			if seconds < demoLeastSeconds || seconds > demoMostSeconds {
				return usagef("--seconds %d is out of range; use %d to %d", seconds, demoLeastSeconds, demoMostSeconds)
			}
			opts.duration = time.Duration(seconds) * time.Second
			return b.demo(cmd.Context(), opts, c)
		},
	}
	cmd.Flags().IntVar(&opts.nodes, "nodes", 3, "`number` of nodes")
	cmd.Flags().IntVar(&seconds, "seconds", 20, "how long to write, in `seconds`")
	cmd.Flags().BoolVar(&opts.keep, "keep", false, "keep the directory of the clusters and say where it is")
	return cmd
}
