package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgbridge/pgbridge/bridge"
)

func newRun(b backend, c terminal) *cobra.Command {
	var flags configFlags
	cmd := &cobra.Command{
		Use:   "run --config file",
		Short: "Run this node's bridge",
		Long: `Run this node's bridge until SIGTERM or SIGINT. It then takes in nothing more, drains and leaves within
shutdown_timeout; a second signal leaves at once, which is safe too. The log goes to standard error.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			return within(cmd.Context(), cfg.ShutdownTimeout, func(ctx context.Context) error {
				return b.run(ctx, cfg, bridge.Options{Logger: newLogger(c.err, cfg.Log)})
			})
		},
	}
	flags.add(cmd)
	return cmd
}

// within runs something that ends when ctx does, and does not wait for it longer than timeout then: the program
// is about to end, and nothing that matters is only in memory.
func within(ctx context.Context, timeout time.Duration, run func(context.Context) error) error {
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(timeout):
		return fmt.Errorf("not everything has ended within shutdown_timeout (%v); left at once, which is safe", timeout)
	}
}
