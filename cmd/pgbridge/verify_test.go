package main

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
)

// fakeVerify answers with what a test says.
type fakeVerify struct {
	asked  bridge.VerifyOptions
	report *bridge.VerifyReport
	err    error
}

func (f *fakeVerify) backend() backend {
	at := time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC)
	return backend{
		now: func() time.Time { return at },
		verify: func(_ context.Context, _ *config.Config, o bridge.VerifyOptions, tell func(bridge.VerifyProgress)) (*bridge.VerifyReport, error) {
			f.asked = o
			tell(bridge.VerifyProgress{})
			tell(bridge.VerifyProgress{Table: "shop.items", Rows: 70, Doing: "compared"})
			tell(bridge.VerifyProgress{Table: "shop.items", Rows: 80, Doing: "compared"}) // in the same moment
			return f.report, f.err
		},
	}
}

// comparison is a report of two nodes with everything in it.
func comparison() *bridge.VerifyReport {
	text := func(s string) *string { return &s }
	return &bridge.VerifyReport{At: time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC), Seconds: 1.5, Nodes: []string{"a", "b"}, Rows: 1007, Differences: 4, Mended: 1,
		Tables: []bridge.VerifiedTable{{Table: "shop.items", Rows: 1000, Segments: 2, Looked: 9, Differences: 4, Mended: 1, Seconds: 1.2}, {Table: "shop.tags", Rows: 7, Segments: 1, Seconds: 0.3}},
		Found: []bridge.RowDifference{
			{Table: "shop.items", Key: "id=7", Columns: []string{"name", "price"}, Right: "a", Mended: true, Nodes: []bridge.RowOfNode{
				{Node: "a", Found: true, Version: "a, 2026-11-29 07:00:00.000001Z", Values: map[string]*string{"id": text("7"), "name": text("chair"), "price": text("10.00")}},
				{Node: "b", Found: true, Version: "a session that is not replicated", Values: map[string]*string{"id": text("7"), "name": nil, "price": text("10.0")}}}},
			{Table: "shop.items", Key: "id=8", Columns: []string{}, Refused: "no version tells which row is right; name a node whose rows are, with --from", Nodes: []bridge.RowOfNode{
				{Node: "a", Version: "-"},
				{Node: "b", Found: true, Version: "not known any more", Values: map[string]*string{"id": text("8"), "name": text(strings.Repeat("x", 60))}}}},
			{Table: "shop.items", Key: "id=9", Columns: []string{"name"}, Right: "b", Nodes: []bridge.RowOfNode{
				{Node: "a", Found: true, Version: "-", Values: map[string]*string{"id": text("9"), "name": text("a\nb")}},
				{Node: "b", Found: true, Version: "-", Values: map[string]*string{"id": text("9"), "name": text("ab")}}}}},
		Explained: []bridge.RowReason{{Table: "shop.items", Key: "id=10", Reason: "at node b: transaction a:5 is parked, which touches it (pgbridge parked)"}},
		Unsettled: []bridge.RowReason{{Table: "shop.items", Key: "id=11", Reason: "it changed each time that it was looked at"}},
		Skipped:   []bridge.VerifySkipped{{Table: "shop.new", Reason: "it is not replicated at node b, or is not there"}}}
}

func TestVerify(t *testing.T) {
	path := writeConfig(t)
	f := &fakeVerify{report: comparison()}
	got := call(t, f.backend(), "verify", "-c", path, "--limit", "3")
	requireGolden(t, "verify.txt", got.out)
	if got.code != exitFound || got.err != "shop.items: 70 rows, compared\npgbridge: 3 rows differ\n" {
		t.Errorf("found: %d, %q", got.code, got.err)
	}
	if want := (bridge.VerifyOptions{Rate: bridge.VerifyRate, Limit: 3}); !reflect.DeepEqual(f.asked, want) {
		t.Errorf("asked for %+v", f.asked)
	}
	got = call(t, f.backend(), "verify", "-c", path, "--json", "--node", "b", "--node", "c", "--table", "shop.*", "--repair", "--from", "b", "--rate", "0")
	if got.code != exitFound || !strings.Contains(got.out, `"version": "a session that is not replicated"`) {
		t.Errorf("as JSON: %+v", got)
	}
	if want := (bridge.VerifyOptions{Limit: 20, Nodes: []string{"b", "c"}, Table: "shop.*", Repair: true, From: "b"}); !reflect.DeepEqual(f.asked, want) {
		t.Errorf("asked for %+v", f.asked)
	}
	for _, tt := range []struct {
		what   string
		report bridge.VerifyReport
		code   int
		err    string
	}{
		{"equal", bridge.VerifyReport{}, exitDone, ""},
		{"mended", bridge.VerifyReport{Differences: 2, Mended: 2}, exitDone, ""},
		{"one left", bridge.VerifyReport{Differences: 2, Mended: 1}, exitFound, "1 row differs"},
		{"explained", bridge.VerifyReport{Explained: comparison().Explained}, exitDone, ""},
		{"not all", bridge.VerifyReport{Skipped: comparison().Skipped}, exitFound, "not all was compared"},
		{"too many", bridge.VerifyReport{Differences: 2, Mended: 2, Partial: true}, exitFound, "there may be more rows that differ; compare again"},
	} {
		f.report = &tt.report
		got := call(t, f.backend(), "verify", "-c", path)
		if got.code != tt.code || !strings.HasSuffix(got.err, tt.err+"\n") || tt.err == "" && strings.Contains(got.err, "pgbridge:") {
			t.Errorf("%s: %+v", tt.what, got)
		}
	}
	f.err = errors.New("no bridge")
	if got := call(t, f.backend(), "verify", "-c", path); got.code != exitFailed || got.out != "" || !strings.HasSuffix(got.err, "pgbridge: no bridge\n") {
		t.Errorf("failed: %+v", got)
	}
}

func TestVerifyRefusesWrongUse(t *testing.T) {
	path := writeConfig(t)
	for want, args := range map[string][]string{
		"--from says whose rows are right for --repair; give both":                                                                        {"--from", "b"},
		"--from names no node; give the one whose rows are right":                                                                         {"--repair", "--from", ""},
		"--rate -1 is out of range; use 0 for no bound, or more":                                                                          {"--rate", "-1"},
		"--limit -1 is out of range; use 0 or more":                                                                                       {"--limit", "-1"},
		`--table "items" is not a pattern over schema.table; write public.items or app.*`:                                                 {"--table", "items"},
		`--table "" is not a pattern over schema.table; write public.items or app.*`:                                                      {"--table", ""},
		`verify takes no arguments, got "items"; "pgbridge verify --help" shows its use`:                                                  {"items"},
		`unknown flag: --fix; "pgbridge verify --help" lists the flags`:                                                                   {"--fix"},
		`invalid argument "x" for "--rate" flag: strconv.ParseInt: parsing "x": invalid syntax; "pgbridge verify --help" lists the flags`: {"--rate", "x"},
	} {
		got := call(t, (&fakeVerify{report: &bridge.VerifyReport{}}).backend(), append([]string{"verify", "-c", path}, args...)...)
		if got != (outcome{exitUsage, "", "pgbridge: " + want + "\n"}) {
			t.Errorf("%v: %+v", args, got)
		}
	}
}
