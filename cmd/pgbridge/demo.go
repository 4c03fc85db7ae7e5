package main

import (
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
		Long: `Start PostgreSQL clusters in temporary directories with a bridge beside each, write on all of them at
once, provoke one conflict, kill one bridge, and compare all rows at the end. Nothing is left behind.
The exit code is 3 if any row differs.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.Nodes < demo.LeastNodes || opts.Nodes > demo.MostNodes {
				return usagef("--nodes %d is out of range; use %d to %d", opts.Nodes, demo.LeastNodes, demo.MostNodes)
			}
			if seconds < demoLeastSeconds || seconds > demoMostSeconds {
				return usagef("--seconds %d is out of range; use %d to %d", seconds, demoLeastSeconds, demoMostSeconds)
			}
			opts.Duration = time.Duration(seconds) * time.Second
			return b.demo(cmd.Context(), opts)
		},
	}
	cmd.Flags().IntVar(&opts.Nodes, "nodes", 3, "`number` of nodes")
	cmd.Flags().IntVar(&seconds, "seconds", 20, "how long to write, in `seconds`")
	cmd.Flags().BoolVar(&opts.Keep, "keep", false, "leave everything running at the end until Ctrl-C, and say how to reach it")
	return cmd
}
