package bridge

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

func encodeVector(v origin.Vector) []byte { return wire.AppendVector(nil, v) }

// catchUp runs the node's bridge until it has what the donor has now.
func catchUp(ctx context.Context, cfg *config.Config, o JoinOptions) error {
	o.Tell("takes in what came meanwhile")
	running, stop := context.WithCancel(ctx)
	defer stop()
	ran := make(chan error, 1)
	go func() { ran <- Run(running, cfg, Options{Logger: o.Logger}) }()
	caught := make(chan error, 1)
	go func() { caught <- awaitCaughtUp(running, cfg, o) }()
	select {
	case err := <-ran:
		stop()
		<-caught
		if err == nil {
			err = context.Cause(ctx)
		}
		return err
	case err := <-caught:
		stop()
		return errors.Join(err, <-ran)
	}
}

// awaitCaughtUp returns when the node has joined and has what the donor had then.
func awaitCaughtUp(ctx context.Context, cfg *config.Config, o JoinOptions) error {
	if err := awaitJoined(ctx, cfg); err != nil {
		return err
	}
	a := newAsker(cfg, o.Logger)
	defer a.close()
	var seen nodeSeen
	if err := a.patiently(ctx, o.From, &nodeQuestion{Ask: askSeen}, &seen, o.Tell); err != nil {
		return err
	}
	v, err := vectorOf(seen.Vector)
	if err != nil {
		return err
	}
	token := strings.ReplaceAll(v.String(), " ", ",")
	o.Tell("catches up")
	for {
		// In short transactions: a bridge that starts may have to wait for one.
		if err := Wait(ctx, cfg, token, deltaPause); !errors.Is(err, ErrNotYet) {
			return err
		}
	}
}

func awaitJoined(ctx context.Context, cfg *config.Config) error {
	p := capture.NewPrimary(cfg.Postgres.DSN)
	defer p.Close()
	for {
		j, err := readJoining(ctx, p)
		if err == nil && j != nil && j.State == apply.Joined {
			return nil
		}
		select {
		case <-time.After(deltaPause): // an error is the bridge's, too
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
