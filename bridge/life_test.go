package bridge

import (
	"context"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
)

// TestAPartThatEndsEndsTheLife: also one that has no reason to give.
func TestAPartThatEndsEndsTheLife(t *testing.T) {
	g, ctx := errgroup.WithContext(t.Context())
	part(ctx, g, "capture", func(context.Context) error { return nil })
	part(ctx, g, "apply", func(ctx context.Context) error { <-ctx.Done(); return nil })
	if err := g.Wait(); !errors.Is(err, errEnded) || !strings.Contains(err.Error(), "capture") {
		t.Errorf("the life ended with %v", err)
	}
}
