package demo

import (
	"context"
	"fmt"
	"time"
)

// pollInterval is how often what no event tells of is looked at.
const pollInterval = 10 * time.Millisecond

// await calls look until it returns "" or an error; a text says what is waited for. When it has taken
// longer than timeout, the error holds the last text. A look is not cut off by the timeout, which would
// cost the session: it must have a bound of its own.
func await(ctx context.Context, timeout time.Duration, look func(context.Context) (string, error)) error {
	late := time.NewTimer(timeout)
	defer late.Stop()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		missing, err := look(ctx)
		if err != nil || missing == "" {
			return err
		}
		select {
		case <-late.C:
			return fmt.Errorf("after %s: %s", timeout, missing)
		default:
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
