package main

import (
	"context"
	"errors"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
)

// backend is what the verbs call: package bridge, or a test's own functions.
type backend struct {
	// run runs the bridge until ctx ends, and returns nil when that is why it ended.
	run func(ctx context.Context, cfg *config.Config, opts bridge.Options) error
	// setup creates on the primary what the bridge needs; it may be run again.
	setup func(ctx context.Context, cfg *config.Config) error
	// setupSQL returns the statements that setup would run.
	setupSQL func(ctx context.Context, cfg *config.Config) ([]string, error)
	// status asks the bridge that runs with this configuration. If none does, it may return what the
	// database says together with the error.
	status func(ctx context.Context, cfg *config.Config) (*bridge.Report, error)
	// demo runs a whole cluster for a while; it writes its account to the terminal.
	demo func(ctx context.Context, opts demoOptions, c terminal) error
}

// errNoDemo is what demo says until it is built.
var errNoDemo = errors.New("demo is not built yet")

func realBackend() backend {
	return backend{
		run:      bridge.Run,
		setup:    bridge.Setup,
		setupSQL: bridge.SetupSQL,
		status:   bridge.Status,
		demo:     func(context.Context, demoOptions, terminal) error { return errNoDemo },
	}
}
