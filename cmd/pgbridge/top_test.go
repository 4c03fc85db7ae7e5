package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
)

// looks is a backend whose bridge has done a little more at each look, two seconds later; a tick comes when the test sends it.
func looks(tick chan time.Time) (backend, *int) {
	n := new(int)
	at := time.Date(2026, 11, 29, 6, 0, 0, 0, time.UTC)
	return backend{
		status: func(context.Context, *config.Config) (*bridge.Report, error) {
			*n++
			k := uint64(*n)
			return &bridge.Report{Cluster: "shop", Node: "a", At: at.Add(time.Duration(k) * 2 * time.Second), Well: true, Verdict: "it works, with 1 warning", Seq: 1000 * k,
				Slot: bridge.SlotReport{WALHeldBytes: 3 << 20}, Stream: bridge.StreamReport{Bytes: 1 << 20, LimitBytes: 8 << 30}, ConflictsPerMinute: 4, Owed: 1, Quarantined: 2,
				Links: []bridge.LinkReport{
					{Link: "b", Origin: "b", State: "connected", AppliedSeq: 300 * k, ReceivedSeq: 400 * k, Queued: 100, QueuedBytes: 1 << 20, LagSeconds: 1.26, Conflicts: 7, Parked: 1},
					{Link: "b", Origin: "c", State: "waiting", Waiting: "table app.x does not exist here"}},
				Nodes:  []bridge.NodeReport{{Node: "b", SeenSeq: 990, Transactions: 10, Bytes: 2048, Seconds: 0.5}, {Node: "c", Unknown: true}},
				Alarms: []bridge.Alarm{{Code: "rows-owed", Severity: bridge.SeverityWarning, Text: "a row waits", Mend: "look"}}}, nil
		},
		window: func(io.Writer) (int, int, bool) { return 60, 9, true },
		every:  func(time.Duration) (<-chan time.Time, func()) { return tick, func() {} },
	}, n
}

// TestTopOnce: one picture of two looks, with rates between them, and no control characters.
func TestTopOnce(t *testing.T) {
	tick := make(chan time.Time, 1)
	tick <- time.Time{}
	b, n := looks(tick)
	got := call(t, b, "top", "-c", writeConfig(t), "--once")
	requireGolden(t, "top.txt", got.out)
	if got.code != exitDone || got.err != "" || *n != 2 || strings.Contains(got.out, "\x1b") {
		t.Errorf("after %d looks: %+v", *n, got)
	}
	b.status = func(context.Context, *config.Config) (*bridge.Report, error) {
		return &bridge.Report{}, errors.New("no bridge runs")
	}
	if got := call(t, b, "top", "-c", writeConfig(t), "--once"); got.code != exitFailed || got.err != "pgbridge: no bridge runs\n" {
		t.Errorf("without a bridge: %+v", got)
	}
}

// TestTopDraws: each look is drawn over the one before, no wider nor longer than the terminal, which is left as it was found.
func TestTopDraws(t *testing.T) {
	tick := make(chan time.Time)
	b, n := looks(tick)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for range 3 { // the third is taken when three pictures are drawn
			tick <- time.Time{}
		}
		cancel()
	}()
	var out, errs bytes.Buffer
	code := execute(ctx, []string{"top", "-c", writeConfig(t)}, terminal{&out, &errs}, b, nil, func(int) {})
	text := out.String()
	if code != exitDone || errs.Len() > 0 || *n < 3 {
		t.Errorf("code %d, %d looks, %s", code, *n, errs.String())
	}
	if !strings.HasPrefix(text, enterScreen) || !strings.HasSuffix(text, leaveScreen) {
		t.Errorf("the terminal is not left as it was: %q", text)
	}
	pictures := strings.Split(strings.TrimSuffix(strings.TrimPrefix(text, enterScreen), leaveScreen), home)[1:]
	for _, p := range pictures {
		lines := strings.Split(strings.TrimSuffix(p, clearBelow), "\r\n")
		if len(lines) > 9 {
			t.Errorf("%d lines on 9", len(lines))
		}
		for _, l := range lines {
			if l, ok := strings.CutSuffix(l, clearLine); !ok || len([]rune(l)) > 60 {
				t.Errorf("a line of %d characters, cleared %t: %q", len([]rune(l)), ok, l)
			}
		}
	}
	if len(pictures) < 3 || !strings.Contains(pictures[2], "own: 500/s") {
		t.Errorf("%d pictures: %q", len(pictures), pictures)
	}
}

// TestTopShowsThatTheBridgeIsAway: a bridge that ends is told of, and top goes on.
func TestTopShowsThatTheBridgeIsAway(t *testing.T) {
	tick := make(chan time.Time)
	b, _ := looks(tick)
	b.status = func(context.Context, *config.Config) (*bridge.Report, error) {
		return &bridge.Report{Node: "a"}, errors.New("no bridge runs")
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { tick <- time.Time{}; cancel() }()
	var out, errs bytes.Buffer
	if code := execute(ctx, []string{"top", "-c", writeConfig(t)}, terminal{&out, &errs}, b, nil, func(int) {}); code != exitDone || !strings.Contains(out.String(), "no bridge runs") {
		t.Errorf("code %d: %q", code, out.String())
	}
}

// TestTopNeedsATerminal: what cannot be drawn on is refused, as is an interval that makes no sense.
func TestTopNeedsATerminal(t *testing.T) {
	b, _ := looks(nil)
	b.window = window
	for _, c := range []struct{ flag, want string }{
		{"--once=false", "pgbridge: top draws on a terminal, and standard output is none; use --once, or pgbridge status\n"},
		{"--interval=1ms", "pgbridge: --interval 1ms is out of range; use 100ms to 1m0s\n"},
		{"--interval=2m", "pgbridge: --interval 2m0s is out of range; use 100ms to 1m0s\n"},
	} {
		if got := call(t, b, "top", "-c", writeConfig(t), c.flag); got != (outcome{exitUsage, "", c.want}) {
			t.Errorf("%s: %+v", c.flag, got)
		}
	}
}

// TestStatusForScripts: the exit code says whether a person must look.
func TestStatusForScripts(t *testing.T) {
	for _, c := range []struct {
		alarms []bridge.Severity
		flag   string
		want   int
	}{
		{nil, "--strict", exitDone},
		{[]bridge.Severity{bridge.SeverityWarning}, "--check", exitDone},
		{[]bridge.Severity{bridge.SeverityWarning}, "--strict", exitFound},
		{[]bridge.Severity{bridge.SeverityWarning, bridge.SeverityError}, "--check", exitFound},
		{[]bridge.Severity{bridge.SeverityError}, "--json", exitDone}, // what health checks ask
	} {
		r := &bridge.Report{Node: "a"}
		for _, s := range c.alarms {
			r.Alarms = append(r.Alarms, bridge.Alarm{Code: "x", Severity: s})
		}
		b := backend{status: func(context.Context, *config.Config) (*bridge.Report, error) { return r, nil }}
		if got := call(t, b, "status", "-c", writeConfig(t), c.flag); got.code != c.want || !strings.Contains(got.out, "a") {
			t.Errorf("%v, %s: %+v", c.alarms, c.flag, got)
		}
	}
}
