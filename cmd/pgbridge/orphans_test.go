package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/bridge"
)

func TestOrphans(t *testing.T) {
	path := writeConfig(t)
	f := &fakeHistory{orphans: []bridge.Orphans{}}
	if got := call(t, f.backend(), "orphans", "-c", path); got != (outcome{exitDone, "no orphans\n", ""}) {
		t.Errorf("without any: %+v", got)
	}
	f.orphans = []bridge.Orphans{{Table: "app.lines", Constraint: "lines_item_fkey", Parent: "app.items", Columns: []string{"item"}, Orphans: 3,
		Keys: []bridge.ConflictKey{itemKey(7), itemKey(8)}}}
	const found = "table app.lines, foreign key lines_item_fkey: no row of app.items for item in 3\n  id=7\n  id=8\n  and 1 more\n"
	if got := call(t, f.backend(), "orphans", "-c", path, "--limit", "2"); got != (outcome{exitFound, found, "pgbridge: 3 rows have no parent\n"}) {
		t.Errorf("found: %+v", got)
	}
	if got := call(t, f.backend(), "orphans", "-c", path, "--json"); got.code != exitFound || !strings.Contains(got.out, `"constraint": "lines_item_fkey"`) {
		t.Errorf("as JSON: %+v", got)
	}
	f.orphans[0].Statement = "DELETE"
	if got := call(t, f.backend(), "orphans", "-c", path, "--fix", "delete", "--dry-run"); got != (outcome{exitFound, found + "DELETE;\n", "pgbridge: 3 rows have no parent\n"}) {
		t.Errorf("dry run: %+v", got)
	}
	if want := (bridge.OrphanOptions{Limit: 10, Fix: "delete", DryRun: true}); f.asked != want {
		t.Errorf("asked for %+v, want %+v", f.asked, want)
	}
	f.orphans[0].Mended = 3
	if got := call(t, f.backend(), "orphans", "-c", path, "--fix", "delete", "--table", "app.*"); got != (outcome{exitDone, found + "  mended: 3\n", ""}) {
		t.Errorf("mended: %+v", got)
	}
	f.orphans[0].Mended, f.orphans[0].Orphans, f.orphans[0].Refused = 0, 1, "no"
	if got := call(t, f.backend(), "orphans", "-c", path, "--fix", "null"); got.code != exitFound || !strings.Contains(got.out, "  not mended: no\n") || got.err != "pgbridge: 1 row has no parent\n" {
		t.Errorf("refused: %+v", got)
	}
	for _, args := range [][]string{{"--limit", "0"}, {"--dry-run"}} {
		if got := call(t, f.backend(), append([]string{"orphans", "-c", path}, args...)...); got.code != exitUsage {
			t.Errorf("%v: %+v", args, got)
		}
	}
	f.err = errors.New("no server")
	if got := call(t, f.backend(), "orphans", "-c", path); got != (outcome{exitFailed, "", "pgbridge: no server\n"}) {
		t.Errorf("failed: %+v", got)
	}
}
