package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
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
	path := writeConfig(t)
	var told strings.Builder
	for _, c := range []struct {
		running bool
		args    string
		code    int
	}{
		{true, "--help", exitDone}, {true, "list --help", exitDone}, {true, "show --help", exitDone}, {true, "retry --help", exitDone},
		{true, "discard --help", exitDone},
		{true, "list", exitDone}, {true, "list --json", exitDone}, {true, "show b:17", exitDone}, {true, "show b:17 --json --changes 1", exitDone},
		{true, "show c:99", exitFailed}, {true, "show", exitUsage}, {true, "retry b:17", exitDone}, {true, "retry --all", exitFailed},
		{true, "retry --all --json", exitFailed}, {true, "retry", exitUsage}, {true, "retry b:17 --all", exitUsage},
		{false, "retry --all", exitDone}, {true, "discard b:17", exitDone}, {true, "discard", exitUsage}, {true, "lits", exitUsage},
	} {
		args := append([]string{"parked"}, strings.Fields(c.args)...)
		if !strings.Contains(c.args, "--help") && c.args != "lits" {
			args = append(args, "--config", path)
		}
		got := call(t, parkedBackend(c.running), args...)
		if got.code != c.code {
			t.Errorf("%s: code %d, want %d", c.args, got.code, c.code)
		}
		fmt.Fprintf(&told, "$ pgbridge parked %s\n%s%s\n", c.args, got.out, got.err)
	}
	requireGolden(t, "parked.txt", told.String())
}
