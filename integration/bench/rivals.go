package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pgbridge/pgbridge/integration/pgcluster"
)

// standard are the rivals that run where the command line names none; the others have to be installed and
// know older servers only.
func standard() []string { return []string{nativeName, pgbridgeName, floorName} }

// rivalNames are those that -rivals knows, in the order of the report.
func rivalNames() []string { return append(standard(), pglogicalName, bucardoName) }

// order returns the chosen rivals in the order of that round: the one that begins changes.
func (o options) order(round int) []string {
	chosen := standard()
	if o.rivals != nil {
		chosen = o.rivals
	}
	order := slices.Clone(chosen)
	if round%2 == 1 {
		slices.Reverse(order)
	}
	return order
}

// findInstall finds the PostgreSQL that all chosen rivals can run on.
func findInstall(o options) (pgcluster.Install, error) {
	var libraries []string
	if o.runs(pglogicalName) {
		libraries = append(libraries, "pglogical")
	}
	if o.runs(bucardoName) {
		libraries = append(libraries, "plperl")
		if _, err := exec.LookPath(bucardoCommand); err != nil {
			return pgcluster.Install{}, fmt.Errorf("find %s: %w; run scripts/rivals.sh", bucardoCommand, err)
		}
	}
	return pgcluster.FindWith(o.major, libraries...)
}

// rivalSettings are what a rival needs of its servers beyond serverSettings. The others do not get them: a preloaded
// library is a part of the rival that brings it.
func rivalSettings(name string, major int) map[string]string {
	switch {
	case name == pglogicalName:
		return map[string]string{"shared_preload_libraries": "pglogical", "pglogical.conflict_resolution": "last_update_wins"}
	case name == nativeName && major < 16:
		// A worker is started this long after the one before it at the earliest, 5 s by default: they would be in the time.
		return map[string]string{"wal_retrieve_retry_interval": "20ms"}
	}
	return map[string]string{}
}

// newRival makes one that works between the servers; the floor is none (floor.go).
func (b *bench) newRival(name string, l line, p *pair) rival {
	logs := filepath.Dir(b.opts.out)
	switch name {
	case pgbridgeName:
		return &bridges{pair: p, command: b.bridgeCommand(l), logDir: logs, line: l.name, peers: max(l.peers, 1)}
	case pglogicalName:
		return &pglogical{pair: p, both: b.opts.both || l.everywhere}
	case bucardoName:
		return &bucardo{pair: p, keepLog: filepath.Join(logs, fmt.Sprintf("bench-%s-bucardo.log", l.name))}
	}
	return &native{pair: p, both: b.opts.both}
}

// rivalVersions tells the versions of the chosen rivals that are not part of the server, as their packages say.
func (o options) rivalVersions(ctx context.Context) map[string]string {
	v := map[string]string{}
	for name, pkg := range map[string]string{
		pglogicalName: fmt.Sprintf("postgresql-%d-pglogical", o.major), bucardoName: "bucardo"} {
		if !o.runs(name) {
			continue
		}
		v[name] = "not from a package"
		if out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${Version}", pkg).Output(); err == nil {
			v[name] = string(out)
		}
	}
	return v
}

// unknownRival returns a name that is not a rival's, "" when there is none.
func unknownRival(names []string) string {
	for _, name := range names {
		if !slices.Contains(rivalNames(), name) {
			return name
		}
	}
	return ""
}

// rivalList is how the command line spells all rivals.
func rivalList() string { return strings.Join(rivalNames(), ",") }
