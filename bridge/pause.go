package bridge

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/config"
)

// Pause is something that an operator has paused at a node.
type Pause = apply.Pause

// Paused returns what is paused at this node, the oldest first. It asks the database, so that no bridge need run.
func Paused(ctx context.Context, cfg *config.Config) ([]Pause, error) {
	return apply.Paused(ctx, cfg.Postgres.DSN)
}

// SetPause has what another node writes, or transactions that touch a table, wait at this node. A bridge that runs sees it within
// a second.
func SetPause(ctx context.Context, cfg *config.Config, p Pause) error {
	if p.Origin != "" {
		if err := otherNode(cfg, p.Origin); err != nil {
			return err
		}
	}
	return apply.SetPause(ctx, cfg.Postgres.DSN, p)
}

// Resume ends a pause of a node or a table, or all of them if both are empty.
func Resume(ctx context.Context, cfg *config.Config, node, table string) error {
	return apply.Resume(ctx, cfg.Postgres.DSN, node, table)
}

// otherNode is an error unless a name is that of another node of the topology.
func otherNode(cfg *config.Config, name string) error {
	if _, ok := cfg.Topology.Nodes[name]; ok && name != cfg.Node {
		return nil
	}
	others := slices.DeleteFunc(slices.Sorted(maps.Keys(cfg.Topology.Nodes)), func(n string) bool { return n == cfg.Node })
	return fmt.Errorf("node %q is not another node of this cluster; topology.nodes has %s", name, strings.Join(others, ", "))
}

// yieldAlarms says that apply gives way to users, or cannot know whether it should.
func yieldAlarms(y apply.Yield) []Alarm {
	switch {
	case y.Blind:
		return []Alarm{{Code: "apply-yield-blind", Severity: SeverityWarning,
			Text: "apply.yield_at is set, and the role in postgres.dsn may not see whether sessions of others are at work: apply gives way to nobody",
			Mend: "GRANT pg_read_all_stats TO that role, or set apply.yield_at: 0"}}
	case y.Share < 1:
		return []Alarm{{Code: "apply-yields", Severity: SeverityWarning,
			Text: fmt.Sprintf("%s of users at work, and apply.yield_at is %d: apply works %.0f %% of the time, and has waited %s", count(y.Busy, "session", "sessions"), y.At, 100*y.Share, count(int(y.Rests), "time", "times")),
			Mend: "nothing is lost; set apply.yield_at higher, or 0, if what other nodes write comes too late"}}
	}
	return nil
}

// pauseAlarm says that something waits since an operator wanted it so.
func pauseAlarm(p apply.Pause) Alarm {
	return Alarm{Code: "paused", Severity: SeverityWarning, Text: p.String(),
		Mend: "the other nodes' streams keep what waits; a node that waits for too long is treated like one that is slow"}
}
