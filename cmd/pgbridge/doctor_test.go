package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/doctor"
)

// examination is a doctor's answer.
func examination(findings ...bridge.ExaminationFinding) (backend, *bridge.Examination) {
	x := &bridge.Examination{Cluster: "shop", Node: "a", At: time.Date(2026, 11, 29, 6, 0, 0, 0, time.UTC), Server: "18.4", Running: true,
		Probe: &doctor.Probe{WAL: 2 * time.Millisecond, Broker: 1200 * time.Microsecond}, Findings: append([]bridge.ExaminationFinding{}, findings...),
		Guarantees: []doctor.Guarantee{{Name: "what PostgreSQL has committed survives a power cut", Holds: true},
			{Name: "the slot cannot fill the server's disk", Because: "max_slot_wal_keep_size is -1"}},
		Skipped: []doctor.Skipped{{Check: "disk-room", Because: "data_dir is not there"}}}
	return backend{doctor: func(context.Context, *config.Config) (*bridge.Examination, error) { return x, nil }}, x
}

func TestDoctor(t *testing.T) {
	path := writeConfig(t)
	grave := bridge.ExaminationFinding{Code: "wal-level", Severity: bridge.FindingError, Text: "setting wal_level is replica", Why: "it matters", Mend: "run ALTER SYSTEM SET wal_level = logical"}
	mild := bridge.ExaminationFinding{Code: "broker-sync", Severity: bridge.FindingWarning, Text: "nats.embedded.sync is interval", Why: "a power cut", Mend: "nats: {embedded: {sync: always}}"}
	note := bridge.ExaminationFinding{Code: "superuser", Severity: bridge.FindingNote, Text: "role is a superuser", Why: "it need not be", Mend: "give it a role"}
	b, _ := examination(grave, mild, note)
	got := call(t, b, "doctor", "-c", path)
	requireGolden(t, "doctor.txt", got.out)
	if got.code != exitFound || got.err != "pgbridge: 1 error, 1 warning\n" {
		t.Errorf("%+v", got)
	}
	if got := call(t, b, "doctor", "-c", path, "--json"); got.code != exitFound || !strings.Contains(got.out, `"code": "wal-level"`) || !strings.Contains(got.out, `"holds": true`) {
		t.Errorf("as JSON: %+v", got)
	}
	for _, c := range []struct {
		findings []bridge.ExaminationFinding
		flag     string
		want     int
	}{
		{nil, "--strict", exitDone},
		{[]bridge.ExaminationFinding{note}, "--strict", exitDone},
		{[]bridge.ExaminationFinding{mild}, "--strict=false", exitDone},
		{[]bridge.ExaminationFinding{mild}, "--strict", exitFound},
	} {
		b, _ := examination(c.findings...)
		if got := call(t, b, "doctor", "-c", path, c.flag); got.code != c.want {
			t.Errorf("%d findings, %s: %+v", len(c.findings), c.flag, got)
		}
	}
	b.doctor = func(context.Context, *config.Config) (*bridge.Examination, error) { return nil, errors.New("no") }
	if got := call(t, b, "doctor", "-c", path); got != (outcome{exitFailed, "", "pgbridge: no\n"}) {
		t.Errorf("failed: %+v", got)
	}
}
