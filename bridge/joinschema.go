package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/apply"
)

// eventTriggers are those of pgbridge in a dump, whose functions are not in it.
var eventTriggers = regexp.MustCompile(`(?s)\nCREATE EVENT TRIGGER ` + apply.EventTriggerPrefix + `.*?;\n`)

// takeSchema gives a database the schema of another one, as pg_dump tells it, as one transaction.
func takeSchema(ctx context.Context, from, to string) error {
	var out, fault bytes.Buffer
	cmd := exec.CommandContext(ctx, "pg_dump", "--schema-only", "--no-owner", "--no-privileges", "--no-publications", "--no-subscriptions", "--exclude-schema=pgbridge", "--dbname="+from)
	cmd.Stdout, cmd.Stderr = &out, &fault
	if err := cmd.Run(); errors.Is(err, exec.ErrNotFound) {
		return &configError{"--schema-dsn needs pg_dump, which is not on PATH here; install PostgreSQL's client programs, or create the tables yourself"}
	} else if err != nil {
		return fmt.Errorf("pg_dump of the database in --schema-dsn: %w: %s", err, oneLine(fault.String()))
	}
	// What stands in front of a backslash is for psql.
	var script strings.Builder
	for line := range strings.Lines(out.String()) {
		if !strings.HasPrefix(line, `\`) {
			script.WriteString(line)
		}
	}
	conn, err := pgx.Connect(ctx, to)
	if err != nil {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.PgConn().Exec(ctx, eventTriggers.ReplaceAllString(script.String(), "")).ReadAll(); err != nil {
		return fmt.Errorf("take the schema over: %w; nothing was changed", err)
	}
	return nil
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
