package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// hangups gives a value for each SIGHUP, until stop is called; several that come together may be one.
func hangups() (asked <-chan os.Signal, stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	return signals, func() { signal.Stop(signals) }
}

// untilSignal returns a context that the first signal ends, with the signal as its cause. A second one
// calls leave with exit code 1: whoever asks twice does not want to wait for the drain. stop ends the
// waiting and joins it.
func untilSignal(ctx context.Context, signals <-chan os.Signal, log io.Writer, leave func(int)) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stopped, joined := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(joined)
		for first := true; ; first = false {
			select {
			case s := <-signals:
				if !first {
					leave(exitFailed)
					return
				}
				fmt.Fprintf(log, "pgbridge: %s: stopping; a second signal leaves at once\n", s)
				cancel(fmt.Errorf("stopped by signal: %s", s))
			case <-stopped:
				return
			}
		}
	}()
	return ctx, func() {
		close(stopped)
		<-joined
		cancel(nil)
	}
}
