package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
)

// fakeHistory answers what it was given, and keeps what it was asked.
type fakeHistory struct {
	page    bridge.ConflictPage
	detail  bridge.ConflictDetail
	counts  []bridge.ConflictCount
	orphans []bridge.Orphans
	refuse  map[int64]error // what Undo says
	err     error           // what the others say

	clockError time.Duration
	filter     bridge.ConflictFilter
	undone     []string
	asked      bridge.OrphanOptions
	closed     int
}

func (f *fakeHistory) List(_ context.Context, filter bridge.ConflictFilter) (*bridge.ConflictPage, error) {
	f.filter = filter
	return &f.page, f.err
}

func (f *fakeHistory) Show(_ context.Context, id int64) (*bridge.ConflictDetail, error) {
	f.detail.ID = id
	return &f.detail, f.err
}

func (f *fakeHistory) Undo(_ context.Context, id int64, o bridge.UndoOptions) (*bridge.Undone, error) {
	if o.By == "" {
		return nil, errors.New("nobody asks")
	}
	f.undone = append(f.undone, fmt.Sprint(id, o.Force, o.DryRun))
	return &bridge.Undone{ID: id, Table: "app.items", Key: itemKey(id), Deleted: id == 2, Statements: []string{"UPDATE x", "UPDATE y"}}, f.refuse[id]
}

func (f *fakeHistory) Stats(_ context.Context, filter bridge.ConflictFilter) ([]bridge.ConflictCount, error) {
	f.filter = filter
	return f.counts, f.err
}

func (f *fakeHistory) Orphans(_ context.Context, o bridge.OrphanOptions) ([]bridge.Orphans, error) {
	f.asked = o
	return f.orphans, f.err
}

func (f *fakeHistory) ClockError() (time.Duration, bridge.ClockSource) {
	return 10 * time.Millisecond, bridge.ClockMeasured
}

func (f *fakeHistory) Close(context.Context) { f.closed++ }

// wallClock is when the tests run.
var wallClock = time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)

func (f *fakeHistory) backend() backend {
	return backend{now: func() time.Time { return wallClock },
		history: func(_ context.Context, cfg *config.Config, clockError time.Duration) (history, error) {
			if cfg.Cluster != "shop" {
				return nil, errors.New("another configuration")
			}
			f.clockError = clockError
			return f, nil
		}}
}

func itemKey(id int64) bridge.ConflictKey {
	return bridge.ConflictKey{{Name: "id", Value: json.RawMessage(fmt.Sprint(id))}}
}

// clashOf is a conflict that the remote side won by margin.
func clashOf(id int64, kind string, margin time.Duration) bridge.Conflict {
	return bridge.Conflict{ID: id, At: wallClock, Table: "app.items", Key: itemKey(id), Kind: kind, Outcome: "remote wins", Winner: "b", Loser: "a",
		Remote: bridge.ConflictEnd{Origin: "b", Stamp: wallClock.Add(-time.Second)}, Local: bridge.ConflictEnd{Origin: "a", Stamp: wallClock.Add(-time.Second - margin)},
		MarginSeconds: margin.Seconds(), Close: margin < 10*time.Millisecond}
}

func TestConflictsList(t *testing.T) {
	undone := clashOf(12, "update_update", 1234567*time.Microsecond)
	undone.UndoneAt, undone.UndoneBy = &wallClock, "ann@host as app"
	odd := clashOf(9, "delete_delete", 90*time.Hour)
	odd.Key, odd.Table = nil, "public.with a name that is long"
	long := clashOf(1000000, "insert_insert", 0)
	long.Key = append(bridge.ConflictKey{{Name: "code", Value: json.RawMessage(`"<` + strings.Repeat("é", 60) + `"`)}}, long.Key...)
	f := &fakeHistory{page: bridge.ConflictPage{More: true, Conflicts: []bridge.Conflict{long, undone, clashOf(11, "update_delete", 15*time.Millisecond+400*time.Microsecond),
		clashOf(10, "delete_update", 999*time.Microsecond), odd}}}
	path := writeConfig(t)
	requireGolden(t, "conflicts_list.txt", call(t, f.backend(), "conflicts", "list", "-c", path).out)
	requireGolden(t, "conflicts_list.json", call(t, f.backend(), "conflicts", "list", "-c", path, "--json").out)
	if f.clockError != 0 || f.closed != 2 {
		t.Errorf("clock error %s, closed %d times", f.clockError, f.closed)
	}
	f.page = bridge.ConflictPage{Conflicts: []bridge.Conflict{}}
	if got := call(t, f.backend(), "conflicts", "list", "-c", path); got != (outcome{exitDone, "no conflicts\n", ""}) {
		t.Errorf("without any: %+v", got)
	}
	if got := call(t, f.backend(), "conflicts", "list", "-c", path, "--json"); !strings.Contains(got.out, `"conflicts": []`) {
		t.Errorf("without any: %+v", got)
	}
	f.err = fmt.Errorf("kind: %w", coded{exitUsage})
	if got := call(t, f.backend(), "conflicts", "list", "-c", path); got != (outcome{exitUsage, "", "pgbridge: kind: coded\n"}) {
		t.Errorf("refused: %+v", got)
	}
}

// TestConflictsFilters: each flag comes to where it belongs.
func TestConflictsFilters(t *testing.T) {
	f := &fakeHistory{}
	path := writeConfig(t)
	call(t, f.backend(), "conflicts", "list", "-c", path, "--table", "app.*", "--key", "a=b=c", "--key", `{"id": 7, "s": "x", "n": 1.50, "o": {"a" : [1, 2]}}`, "--kind", "update_update",
		"--origin", "b", "--outcome", "remote", "--limit", "3", "--since", "1d2h", "--until", "2026-11-24T11:00:00+02:00", "--clock-error", "1s")
	got := f.filter
	if want := map[string]string{"a": "b=c", "id": "7", "s": "x", "n": "1.50", "o": `{"a":[1,2]}`}; !maps.Equal(got.Key, want) {
		t.Errorf("key %q, want %q", got.Key, want)
	}
	if got.Key = nil; got.Table != "app.*" || got.Kind != "update_update" || got.Origin != "b" || got.Outcome != "remote" || got.Limit != 3 || f.clockError != time.Second {
		t.Errorf("filter %+v, clock error %s", got, f.clockError)
	}
	if !got.Since.Equal(wallClock.Add(-26*time.Hour)) || !got.Until.Equal(wallClock.Add(-time.Hour)) {
		t.Errorf("since %s until %s", got.Since, got.Until)
	}
	call(t, f.backend(), "conflicts", "stats", "-c", path, "--since", clock(wallClock), "--until", "0s")
	if got := f.filter; !got.Since.Equal(wallClock) || !got.Until.Equal(wallClock) {
		t.Errorf("a time as it is printed: since %s until %s", got.Since, got.Until)
	}
	call(t, f.backend(), "conflicts", "list", "-c", path)
	if got := f.filter; !got.Since.IsZero() || !got.Until.IsZero() || got.Limit != 50 || got.Table != "" {
		t.Errorf("without flags %+v", got)
	}
}

func TestConflictsShow(t *testing.T) {
	path := writeConfig(t)
	raw := func(s string) json.RawMessage { return json.RawMessage(s) }
	updates := bridge.ConflictDetail{Conflict: clashOf(12, "update_update", 4*time.Millisecond), LocalRow: raw(`{"id":12}`), RemoteRow: raw(`{"id":12}`), Columns: []bridge.ConflictColumn{
		{Name: "id", Local: raw("12"), Remote: raw("12")}, {Name: "name", Local: raw(`"<x>\n"`), Remote: raw("null"), Differs: true},
		{Name: "doc", Local: raw("{\"a\":\n 1}"), Remote: raw(`"` + strings.Repeat("y", 60) + `"`), Differs: true}, {Name: "picture", Local: raw(`"z"`)},
	}}
	deleted := bridge.ConflictDetail{Conflict: clashOf(13, "delete_update", time.Minute), LocalRow: raw(`{"id":13}`), RemoteRow: raw("null"),
		Columns: []bridge.ConflictColumn{{Name: "id", Local: raw("13")}}}
	deleted.UndoneAt, deleted.UndoneBy = &wallClock, "ann@host as app"
	local := bridge.ConflictDetail{Conflict: clashOf(14, "insert_insert", 0), NotRecorded: "row too long", LocalRow: raw(`{"pgbridge":"x"}`), RemoteRow: raw(`{"pgbridge":"x"}`)}
	local.Outcome, local.Winner, local.Loser, local.Key = "local wins", "a", "b", nil
	both := bridge.ConflictDetail{Conflict: clashOf(15, "delete_delete", time.Hour), LocalRow: raw("null"), RemoteRow: raw("null")}
	cut := bridge.ConflictDetail{Conflict: clashOf(16, "truncate_update", 3*time.Hour), LocalRow: raw(`{"id":16}`), RemoteRow: raw("null"),
		Columns: []bridge.ConflictColumn{{Name: "id", Local: raw("16")}}}
	unique := bridge.ConflictDetail{Conflict: clashOf(17, "unique", time.Second), Constraint: "items_name_key", LocalRow: raw(`{"id":17}`), RemoteRow: raw(`{"id":18}`),
		Columns: []bridge.ConflictColumn{{Name: "id", Local: raw("17"), Remote: raw("18"), Differs: true}}}
	var text strings.Builder
	for _, d := range []bridge.ConflictDetail{updates, deleted, local, both, cut, unique} {
		got := call(t, (&fakeHistory{detail: d}).backend(), "conflicts", "show", "-c", path, fmt.Sprint(d.ID))
		if got.code != exitDone || got.err != "" {
			t.Errorf("%d: %+v", d.ID, got)
		}
		fmt.Fprintf(&text, "$ pgbridge conflicts show %d\n%s\n", d.ID, got.out)
	}
	requireGolden(t, "conflicts_show.txt", text.String())
	requireGolden(t, "conflicts_show.json", call(t, (&fakeHistory{detail: updates}).backend(), "conflicts", "show", "12", "-c", path, "--json").out)
	got := call(t, (&fakeHistory{err: errors.New("there is none")}).backend(), "conflicts", "show", "-c", path, "99")
	if got != (outcome{exitFailed, "", "pgbridge: conflict 99: there is none\n"}) {
		t.Errorf("one that is not there: %+v", got)
	}
}

// TestConflictsUndo: one that is refused does not hold up the others, and the exit code tells of it.
func TestConflictsUndo(t *testing.T) {
	path := writeConfig(t)
	f := &fakeHistory{}
	got := call(t, f.backend(), "conflicts", "undo", "-c", path, "1", "2")
	want := outcome{exitDone, "conflict 1: row id=1 of app.items is what it was before it lost\nconflict 2: row id=2 of app.items is deleted again\n", ""}
	if got != want || f.closed != 1 {
		t.Errorf("%+v, closed %d times", got, f.closed)
	}
	f.refuse = map[int64]error{1: errors.New("no"), 3: errors.New("not either")}
	got = call(t, f.backend(), "conflicts", "undo", "-c", path, "1", "2", "3", "--force")
	want = outcome{exitFailed, "conflict 2: row id=2 of app.items is deleted again\n", "pgbridge: conflict 1: no\npgbridge: conflict 3: not either\n"}
	if got != want {
		t.Errorf("%+v", got)
	}
	got = call(t, f.backend(), "conflicts", "undo", "-c", path, "4", "--dry-run")
	want = outcome{exitDone, "-- conflict 4, row id=4 of app.items\nBEGIN;\nUPDATE x;\nUPDATE y;\nCOMMIT;\n", ""}
	if got != want {
		t.Errorf("%+v", got)
	}
	got = call(t, f.backend(), "conflicts", "undo", "-c", path, "1", "2", "--json")
	requireGolden(t, "conflicts_undo.json", got.out)
	if got.code != exitFailed || got.err != "pgbridge: conflict 1: no\n" {
		t.Errorf("%+v", got)
	}
	if asked := strings.Join(f.undone, ", "); asked != "1 false false, 2 false false, 1 true false, 2 true false, 3 true false, 4 false true, 1 false false, 2 false false" {
		t.Errorf("asked for %s", asked)
	}
	f.refuse = map[int64]error{1: fmt.Errorf("write: %w", coded{exitUsage})}
	if got := call(t, f.backend(), "conflicts", "undo", "-c", path, "1"); got.code != exitUsage {
		t.Errorf("without the privilege: %+v", got)
	}
}

func TestConflictsStats(t *testing.T) {
	path := writeConfig(t)
	f := &fakeHistory{counts: []bridge.ConflictCount{
		{Table: "app.items", Kind: "update_update", Winner: "b", Conflicts: 1204, Close: 3, Undone: 1, Newest: wallClock},
		{Table: "app.notes", Kind: "insert_insert", Winner: "a", Conflicts: 2, Newest: wallClock.Add(-time.Hour)},
	}}
	requireGolden(t, "conflicts_stats.txt", call(t, f.backend(), "conflicts", "stats", "-c", path).out)
	requireGolden(t, "conflicts_stats.json", call(t, f.backend(), "conflicts", "stats", "-c", path, "--json").out)
	if got := call(t, (&fakeHistory{counts: []bridge.ConflictCount{}}).backend(), "conflicts", "stats", "-c", path); got != (outcome{exitDone, "no conflicts\n", ""}) {
		t.Errorf("without any: %+v", got)
	}
}

// TestHistoryCannotBeOpened: the reason and its exit code come through.
func TestHistoryCannotBeOpened(t *testing.T) {
	b := backend{history: func(context.Context, *config.Config, time.Duration) (history, error) {
		return nil, errors.New("not set up")
	}}
	for _, verb := range []string{"list", "show 1", "undo 1", "stats"} {
		args := append(strings.Fields("conflicts "+verb), "-c", writeConfig(t))
		if got := call(t, b, args...); got != (outcome{exitFailed, "", "pgbridge: not set up\n"}) {
			t.Errorf("%s: %+v", verb, got)
		}
	}
}
