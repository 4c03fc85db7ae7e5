package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
)

func ddlBackend() backend {
	at := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	return backend{
		changeSchema: func(_ context.Context, _ *config.Config, sql string, o bridge.SchemaOptions) (int64, error) {
			if !o.Breaking {
				return 4, nil
			}
			return 0, fmt.Errorf("%w: b (away); waited %s for %s", bridge.ErrNodesBehind, o.Wait, sql)
		},
		schemaChanges: func(context.Context, *config.Config) ([]bridge.SchemaChange, error) {
			return []bridge.SchemaChange{
				{ID: 1, Origin: "a", Seq: 17, At: at, Role: "ann", SQL: "ALTER TABLE t\n  ADD n int", Changes: []string{"adds column n of public.t"}},
				{ID: 2, Origin: "b", At: at, Role: "ann", SQL: "GRANT SELECT ON t TO bob", Changes: []string{}},
			}, nil
		},
		schemaDone: func(_ context.Context, _ *config.Config, name string) error {
			if name != "b:5" {
				return fmt.Errorf("transaction %s does not wait here", name)
			}
			return nil
		},
	}
}

func TestDDL(t *testing.T) {
	path := writeConfig(t)
	var told strings.Builder
	for _, c := range []struct {
		args []string
		code int
	}{
		{[]string{"--help"}, exitDone}, {[]string{"ALTER TABLE t ADD n int"}, exitDone}, {[]string{"ALTER TABLE t ADD n int", "--json"}, exitDone},
		{[]string{"DROP TABLE t", "--breaking", "--wait", "5s"}, exitFailed}, {[]string{"--list"}, exitDone}, {[]string{"--list", "--json"}, exitDone},
		{[]string{"--done", "b:5"}, exitDone}, {[]string{"--done", "b:6"}, exitFailed},
		{nil, exitUsage}, {[]string{"ALTER", "TABLE"}, exitUsage}, {[]string{"ALTER TABLE t", "--list"}, exitUsage}, {[]string{"x", "--wait", "soon"}, exitUsage},
	} {
		args := append([]string{"ddl"}, c.args...)
		if len(c.args) == 0 || c.args[0] != "--help" {
			args = append(args, "--config", path)
		}
		got := call(t, ddlBackend(), args...)
		if got.code != c.code {
			t.Errorf("%q: code %d, want %d", c.args, got.code, c.code)
		}
		fmt.Fprintf(&told, "$ pgbridge ddl %q\n%s%s\n", c.args, got.out, got.err)
	}
	requireGolden(t, "ddl.txt", told.String())
}
