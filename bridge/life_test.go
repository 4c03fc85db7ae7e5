package bridge

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/pgbridge/pgbridge/stream"
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

// TestBrokerThatFailedToRestart is what a full disk does: the server is stopped, and cannot start before there is
// room. Each life tries again.
func TestBrokerThatFailedToRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "jetstream")
	b := &bridge{log: slog.New(slog.DiscardHandler)}
	var err error
	if b.server, err = stream.StartServer(stream.ServerOptions{Listen: "127.0.0.1:0", StoreDir: dir, Logger: b.log}); err != nil {
		t.Fatal(err)
	}
	defer b.server.Close()
	if err := b.reviveServer(); err != nil {
		t.Fatal(err)
	}
	away := dir + ".away"
	if err := errors.Join(os.Rename(dir, away), os.WriteFile(dir, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if b.server.Restart() == nil || b.reviveServer() == nil {
		t.Fatal("the server runs without a store")
	}
	if err := errors.Join(os.Remove(dir), os.Rename(away, dir)); err != nil {
		t.Fatal(err)
	}
	if err := b.reviveServer(); err != nil {
		t.Fatal(err)
	}
	if err := b.server.Healthy(); err != nil {
		t.Error(err)
	}
}
