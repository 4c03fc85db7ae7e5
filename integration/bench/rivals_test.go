package main

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/integration/pgcluster"
)

// TestRivalsReplicate: each runs a line in one direction on PostgreSQL 15, and one in which every row is written at both
// ends.
func TestRivalsReplicate(t *testing.T) {
	longTest(t)
	names, chosen := []string{nativeName, floorName, pglogicalName, bucardoName}, []string{"one-update", "contested"}
	for _, name := range names {
		o := options{scale: 0.001, repeat: 1, timeout: time.Minute, major: 15, rivals: []string{name}, out: t.TempDir() + "/bench.json"}
		in, err := findInstall(o)
		if errors.Is(err, pgcluster.ErrNotInstalled) || errors.Is(err, exec.ErrNotFound) {
			t.Logf("%s is not tested: %v", name, err)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		b := &bench{opts: o, install: in, settings: smallServer()}
		for _, l := range lines() {
			if !slices.Contains(chosen, l.name) || !l.runBy(name) {
				continue
			}
			t.Run(name+"/"+l.name, func(t *testing.T) {
				if s := b.measure(t.Context(), l, name); s.Error != "" || s.Seconds <= 0 || s.WriteSeconds <= 0 && name != floorName {
					t.Errorf("%+v", s)
				}
			})
		}
	}
}

func TestTheOneThatBeginsChanges(t *testing.T) {
	o := options{rivals: []string{nativeName, pglogicalName, bucardoName}}
	if first, second := o.order(0), o.order(1); first[0] != nativeName || second[0] != bucardoName || len(second) != 3 {
		t.Errorf("%v, then %v", first, second)
	}
	if !slices.Equal(options{}.order(0), []string{nativeName, pgbridgeName, floorName}) {
		t.Errorf("where none are named: %v", options{}.order(0))
	}
	if (options{}).runs(bucardoName) || !o.runs(bucardoName) {
		t.Error("a rival runs that was not asked for, or the other way round")
	}
}

// TestRivalsOfTwoServersRunNoOtherLines: neither a mesh nor many peers, and nothing is counted of idle servers.
func TestRivalsOfTwoServersRunNoOtherLines(t *testing.T) {
	for _, l := range lines() {
		want := l.name != "mesh" && l.name != "idle" && !strings.HasPrefix(l.name, "peers-")
		for _, name := range []string{pglogicalName, bucardoName} {
			if l.runBy(name) != want {
				t.Errorf("%s runs %s: %v", name, l.name, !want)
			}
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for flags, want := range map[string]string{
		"-rivals spock":             `no rival "spock"`,
		"-only nothing":             `no line "nothing"`,
		"-major 15 -native-both":    "go round for ever",
		"-repeat 0":                 "above 0",
		"-rivals bucardo -major 15": "",
		"-native-both":              "",
	} {
		_, err := parseFlags(strings.Fields(flags))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", flags, err)
		}
	}
}

// TestOtherRivalsAreReported: with their times beside native's, and a failure among theirs is one of the run.
func TestOtherRivalsAreReported(t *testing.T) {
	r := newResult(lines()[2], 1)
	r.add(nativeName, sample{Seconds: 2, WriteSeconds: 1})
	r.add(bucardoName, sample{Seconds: 4, WriteSeconds: 3})
	whole := &report{Lines: []*result{r}}
	var text strings.Builder
	whole.print(&text)
	for _, want := range []string{"| bucardo |", "| 4.00 s", "| 1.00 s | 3.00 s "} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is not in\n%s", want, &text)
		}
	}
	if err := whole.failure(); err != nil {
		t.Errorf("two good runs: %v", err)
	}
	r.add(bucardoName, sample{Error: "not converged"})
	if whole.failure() == nil {
		t.Error("a run that did not converge is no failure")
	}
	if o := r.of(bucardoName); o.Seconds != nil || o.WriteSeconds != nil {
		t.Errorf("a run that did not converge has %+v", o)
	}
}
