package main

import (
	"github.com/spf13/cobra"

	"github.com/pgbridge/pgbridge/bridge"
)

func newRun(b backend, c terminal) *cobra.Command {
	var flags configFlags
	cmd := &cobra.Command{
		Use:   "run --config file",
		Short: "Run this node's bridge",
		Long: `Run this node's bridge until SIGTERM or SIGINT. It then stops capture, drains and leaves within
shutdown_timeout; a second signal leaves at once, which is safe too. The log goes to standard error.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			return b.run(cmd.Context(), cfg, bridge.Options{Logger: newLogger(c.err, cfg.Log)})
		},
	}
	flags.add(cmd)
	return cmd
}
