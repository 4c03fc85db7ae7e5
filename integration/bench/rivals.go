package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pgbridge/pgbridge/integration/pgcluster"
)

// standard are the rivals that run where the command line names none; the others have to be installed and
// know older servers only.
func standard() []string { return []string{nativeName, pgbridgeName} }

// rivalNames are those that -rivals knows, in the order in which they take turns.
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

// canRun reports whether the rival can do the line at all: with native replication, a row that is written at both ends
// ends the subscription or leaves the ends different.
func canRun(rival string, l line) bool { return l.back == nil || rival != nativeName }

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
	return nil
}

// newRival makes one that works between the two servers.
func (b *bench) newRival(name string, l line, p *pair) rival {
	logs := filepath.Dir(b.opts.out)
	switch name {
	case pgbridgeName:
		return &bridges{pair: p, command: b.bridgeCommand(l), logDir: logs, line: l.name}
	case pglogicalName:
		return &pglogical{pair: p, both: b.opts.both || l.back != nil}
	case bucardoName:
		return &bucardo{pair: p, keepLog: filepath.Join(logs, fmt.Sprintf("bench-%s-bucardo.log", l.name))}
	}
	return &native{pair: p, both: b.opts.both, major: b.opts.major}
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

// printOthers writes the table of the rivals beside native and pgbridge, with what the work cost at the source while it
// was written: triggers make Bucardo's share of that.
func (r *report) printOthers(w io.Writer) {
	t := [][]string{{"line", "rival", "time", "per second", "written in", "latency"}}
	others := false
	for _, l := range r.Lines {
		for _, name := range l.rivals() {
			others = others || l.OtherRuns[name] != nil
			runs := l.runs(name)
			took, latency := medianRun(runs)
			row := []string{l.Title, name, seconds(took), l.rate(took), "-", ""}
			if latency != nil {
				row[2], row[3], row[5] = "", "", latency.String()
			}
			var written []float64
			for _, s := range runs {
				written = append(written, s.WriteSeconds)
			}
			if m := median(written); m > 0 {
				row[4] = seconds(&m)
			}
			t = append(t, row)
		}
	}
	if others {
		printTable(w, t)
	}
}

// rivals names those that ran the line, in their usual order.
func (r *result) rivals() []string {
	return slices.DeleteFunc(rivalNames(), func(name string) bool { return r.runs(name) == nil })
}

// runs returns one rival's runs of the line.
func (r *result) runs(rival string) []sample {
	switch rival {
	case nativeName:
		return r.NativeRuns
	case pgbridgeName:
		return r.PgbridgeRuns
	}
	return r.OtherRuns[rival]
}

// allRuns returns the runs of all rivals.
func (r *result) allRuns() []sample {
	all := slices.Concat(r.NativeRuns, r.PgbridgeRuns)
	for _, name := range slices.Sorted(maps.Keys(r.OtherRuns)) {
		all = append(all, r.OtherRuns[name]...)
	}
	return all
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
