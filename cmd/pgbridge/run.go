package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
)

func newRun(b backend, c terminal) *cobra.Command {
	var flags configFlags
	cmd := &cobra.Command{
		Use:   "run --config file",
		Short: "Run this node's bridge",
		Long: `Run this node's bridge until SIGTERM or SIGINT. It then takes in nothing more, drains and leaves within
shutdown_timeout; a second signal leaves at once, which is safe too. SIGHUP has it read its configuration again, as
pgbridge reload does. The log goes to standard error.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			asked, stop := hangups()
			defer stop()
			log, setLog := newLogger(c.err, cfg.Log)
			present := new(atomic.Pointer[config.Config])
			present.Store(cfg)
			source, err := flags.source(asked, func(cfg *config.Config) {
				setLog(cfg.Log)
				present.Store(cfg)
			})
			if err != nil {
				return err
			}
			timeout := func() time.Duration { return present.Load().ShutdownTimeout }
			return within(cmd.Context(), timeout, func(ctx context.Context) error {
				return b.run(ctx, cfg, bridge.Options{Logger: log, Source: source})
			})
		},
	}
	flags.add(cmd)
	return cmd
}

// within runs something that ends when ctx does, and does not wait for it longer than timeout then: the program
// is about to end, and nothing that matters is only in memory.
func within(ctx context.Context, timeout func() time.Duration, run func(context.Context) error) error {
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	most := timeout()
	select {
	case err := <-done:
		return err
	case <-time.After(most):
		return fmt.Errorf("not everything has ended within shutdown_timeout (%v); left at once, which is safe", most)
	}
}
