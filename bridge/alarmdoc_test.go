package bridge

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/capture"
)

// TestEachAlarmIsDocumented: docs/alarms.md has an entry for each alarm that a bridge may have, with its severity, and none for others.
func TestEachAlarmIsDocumented(t *testing.T) {
	// Those whose code does not stand where they are made.
	known := map[string]bool{"slot-missing": true, "slot-invalidated": true, "sequence-exhausts": true, capture.CodeTableUnpublished: true, capture.CodeTableUnusable: true}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	made := regexp.MustCompile(`Alarm\{\{?Code: "([a-z-]*[a-z])"`)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range made.FindAllSubmatch(text, -1) {
			known[string(m[1])] = true
		}
	}
	text, err := os.ReadFile("../docs/alarms.md")
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| ((?:`[a-z-]+`,? ?)+)(?:error|warning)").FindAllStringSubmatch(string(text), -1) {
		for _, code := range regexp.MustCompile("[a-z-]+").FindAllString(m[1], -1) {
			told[code] = true
		}
	}
	if len(known) < 25 {
		t.Errorf("only %d alarms are found", len(known))
	}
	if got, want := slices.Sorted(maps.Keys(told)), slices.Sorted(maps.Keys(known)); !slices.Equal(got, want) {
		t.Errorf("docs/alarms.md tells of\n%s\nand there are\n%s", strings.Join(got, " "), strings.Join(want, " "))
	}
}
