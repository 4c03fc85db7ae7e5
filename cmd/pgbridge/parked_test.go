package main

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
)

// parkedBackend has two parked transactions; of requests it applies or discards the first.
func parkedBackend(running bool) backend {
	at := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	all := []bridge.ParkedTransaction{
		{ID: 3, At: at, Origin: "b", Seq: 17, Stamp: at, Changes: 3, SQLState: "23514", Message: "violates check constraint", Constraint: "positive",
			Table: "public.t", Key: json.RawMessage(`{"id":1}`), Attempts: 2, TriedAt: at},
		{ID: 4, At: at, Origin: "c", Seq: 5, Stamp: at, Changes: 1, DependsOn: []string{"b:17"}, Table: "public.t", Request: "retry"},
	}
	return backend{
		parked: func(context.Context, *config.Config) ([]bridge.ParkedTransaction, error) { return all, nil },
		showParked: func(_ context.Context, _ *config.Config, name string, limit int) (*bridge.ParkedTransaction, []bridge.ParkedChange, error) {
			if name != "b:17" {
				return nil, nil, fmt.Errorf("%s: not parked", name)
			}
			return &all[0], []bridge.ParkedChange{
				{Table: "public.t", Kind: "update", Old: json.RawMessage(`{"id":1}`), New: json.RawMessage(`{"id":1,"n":-1}`)},
				{Table: "public.gone", Kind: "insert", New: json.RawMessage(`{"id":"\\x01"}`), Unread: `table "public"."gone" is not here`},
			}[:min(limit, 2)], nil
		},
		requestParked: func(_ context.Context, _ *config.Config, name string, r bridge.ParkedRequest) (*bridge.ParkedOutcome, error) {
			o := &bridge.ParkedOutcome{Asked: name, Running: running, Done: []string{"b:17"}, Left: []bridge.ParkedTransaction{}}
			if !running {
				o.Done = []string{}
			}
			if name == "" || !running {
				o.Left = all[1:]
			}
			return o, nil
		},
	}
}

func TestParked(t *testing.T) {
	running := true
	b := func() backend { return parkedBackend(running) }
	requireSession(t, "parked", b, bare("--help", exitDone), bare("list --help", exitDone), bare("show --help", exitDone), bare("retry --help", exitDone),
		bare("discard --help", exitDone), of("list", exitDone), of("list --json", exitDone), of("show b:17", exitDone), of("show b:17 --json --changes 1", exitDone),
		of("show c:99", exitFailed), of("show", exitUsage), of("retry b:17", exitDone), of("retry --all", exitFailed), of("retry --all --json", exitFailed),
		of("retry", exitUsage), of("retry b:17 --all", exitUsage), of("discard b:17", exitDone), of("discard", exitUsage), bare("lits", exitUsage))
	running = false
	if got := call(t, b(), "parked", "retry", "--all", "--config", writeConfig(t)); got.code != exitDone || got.err != "no bridge runs here; it is done when it starts\n" {
		t.Errorf("a request for a bridge that does not run: code %d, %q", got.code, got.err)
	}
}
