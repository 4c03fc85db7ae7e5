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

// nodeBackend copies a thousand rows in a minute.
func nodeBackend() backend {
	now := time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC)
	return backend{
		now: func() time.Time { return now },
		join: func(_ context.Context, _ *config.Config, o bridge.JoinOptions) error {
			if o.From == "x" {
				return errors.New("there is no such node")
			}
			o.Tell(fmt.Sprintf("%d jobs", o.Jobs))
			o.Tell("waits")
			o.Tell("waits")
			for rows := int64(0); rows <= 1000; rows += 250 {
				o.Progress(bridge.JoinProgress{Rows: rows, About: 1000, Bytes: rows << 10, Took: time.Duration(rows) * 60 * time.Millisecond})
				now = now.Add(6 * time.Second)
			}
			return nil
		},
		leave: func(context.Context, *config.Config, bridge.MemberOptions) error { return nil },
		remove: func(_ context.Context, _ *config.Config, node string, o bridge.MemberOptions) error {
			o.Tell("asks who has what of " + node)
			return nil
		},
	}
}

func TestNode(t *testing.T) {
	requireSession(t, "node", nodeBackend, bare("--help", exitDone), bare("join --help", exitDone), bare("leave --help", exitDone), bare("remove --help", exitDone),
		of("join --from b", exitDone), of("join --from b --jobs 8", exitDone), of("join", exitUsage), of("join b", exitUsage), of("join --from x", exitFailed),
		of("join --from b --jobs many", exitUsage), of("leave", exitDone), of("leave b", exitUsage), of("remove c", exitDone), of("remove", exitUsage),
		bare("remvoe c", exitUsage))
}

// TestProgressLine: what a person sees is true when nothing is known yet, and behind an interruption.
func TestProgressLine(t *testing.T) {
	for want, p := range map[string]bridge.JoinProgress{
		"  0 %  0 of about 0 rows  0 B":                                 {},
		" 50 %  500 of about 1000 rows  2.0 KiB  100 rows/s  5s left":   {Rows: 500, About: 1000, Bytes: 2048, Took: 5 * time.Second},
		" 50 %  500 of about 1000 rows  2.0 KiB  20 rows/s  25s left":   {Rows: 500, About: 1000, Bytes: 2048, Took: 5 * time.Second, Before: 400},
		"100 %  1000 of about 1000 rows  1.0 MiB  1000 rows/s  0s left": {Rows: 1000, About: 1000, Bytes: 1 << 20, Took: time.Second},
		" 40 %  400 of about 1000 rows  1.0 MiB":                        {Rows: 400, About: 1000, Bytes: 1 << 20, Took: time.Second, Before: 400},
	} {
		if got := progressLine(p); got != want {
			t.Errorf("%+v is %q, want %q", p, got, want)
		}
	}
}
