package main

import (
	"context"
	"errors"
	"fmt"
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
		automaticSchema: func(_ context.Context, _ *config.Config, on bool) error {
			if on {
				return nil
			}
			return errors.New("event triggers: permission denied")
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
	sql := func(code int, args ...string) line { return line{args: args, code: code} }
	requireSession(t, "ddl", ddlBackend, bare("--help", exitDone),
		sql(exitDone, "ALTER TABLE t ADD n int"), sql(exitDone, "ALTER TABLE t ADD n int", "--json"), sql(exitFailed, "DROP TABLE t", "--breaking", "--wait", "5s"),
		of("--list", exitDone), of("--list --json", exitDone), of("--done b:5", exitDone), of("--done b:6", exitFailed),
		of("--automatic on", exitDone), of("--automatic off", exitFailed), of("--automatic perhaps", exitUsage), of("--automatic on --list", exitUsage),
		of("", exitUsage), of("ALTER TABLE", exitUsage), sql(exitUsage, "ALTER TABLE t", "--list"), of("x --wait soon", exitUsage))
}
