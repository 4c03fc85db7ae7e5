package capture

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pglogrepl"
)

// Fork is where a server's history left an older timeline.
type Fork struct {
	LSN  uint64 // the WAL of the older timeline counts up to here; 0 if the server does not come from that timeline
	Slot string // through which the server followed its primary as a standby, as primary_slot_name still says; may be empty
}

// ReadFork asks the server on timeline to where its history left timeline from.
func ReadFork(ctx context.Context, dsn string, from, to uint32) (Fork, error) {
	var f Fork
	conn, err := connectReplication(ctx, dsn)
	if err != nil {
		return f, err
	}
	defer conn.Close(ctx)
	results, err := conn.Exec(ctx, "SELECT current_setting('primary_slot_name')").ReadAll()
	if err != nil {
		return f, classify(err, "read primary_slot_name")
	}
	if len(results) != 1 || len(results[0].Rows) != 1 {
		return f, protocolError("no primary_slot_name")
	}
	f.Slot = string(results[0].Rows[0][0])
	if to <= 1 { // nothing comes before the first one, which has no history
		return f, nil
	}
	history, err := pglogrepl.TimelineHistory(ctx, conn, int32(to))
	if err != nil {
		return f, classify(err, fmt.Sprintf("read the history of timeline %d", to))
	}
	f.LSN, err = forkOf(history.Content, from)
	return f, err
}

// forkOf finds in a timeline's history file where a timeline before it ends (timeline.c, readTimeLineHistory).
func forkOf(history []byte, timeline uint32) (uint64, error) {
	for line := range bytes.Lines(history) {
		fields := strings.Fields(string(line))
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) < 2 {
			return 0, protocolError("timeline history line %q", line)
		}
		if fields[0] != fmt.Sprint(timeline) {
			continue
		}
		lsn, err := pglogrepl.ParseLSN(fields[1])
		if err != nil {
			return 0, protocolError("timeline history line %q", line)
		}
		return uint64(lsn), nil
	}
	return 0, nil
}
