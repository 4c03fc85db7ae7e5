package main

import (
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// The long lines at their smallest; each ends with the comparison of all ends. They start too many servers for every
// run of the tests: make soak has them.

func TestPeersHaveAllRows(t *testing.T) {
	longTest(t)
	l := peersLine(2)
	native := func(p *pair) rival { return &native{pair: p} }
	if s, err := runLine(t, l, native, peerDatabases(2)...); err != nil || s.Seconds <= 0 {
		t.Errorf("native: %+v, %v", s, err)
	}
	b := testBench(t)
	bridges := func(p *pair) rival {
		b.opts.binary = buildBridge(t, false)
		return &bridges{pair: p, command: b.bridgeCommand(l), logDir: t.TempDir(), line: l.name, peers: 2}
	}
	if s, err := runLine(t, l, bridges); err != nil || s.Seconds <= 0 {
		t.Errorf("pgbridge: %+v, %v", s, err)
	}
}

func TestBacklogAndSteadyStateEnd(t *testing.T) {
	longTest(t)
	native := func(p *pair) rival { return &native{pair: p} }
	backlog, steady := lineNamed(t, "backlog"), lineNamed(t, "steady")
	if s, err := runLine(t, backlog, native); err != nil || s.Seconds <= 0 {
		t.Errorf("backlog: %+v, %v", s, err)
	}
	steady.amount, steady.least = 1, 1 // a second is enough
	if s, err := runLine(t, steady, native); err != nil || s.Latency == nil || s.Rate <= 0 {
		t.Errorf("steady: %+v, %v", s, err)
	}
}

// longTest skips unless long tests are asked for: CI has no time for as many servers.
func longTest(t *testing.T) {
	t.Helper()
	if !pgtest.Soak() {
		t.Skipf("%s is not set", pgtest.SoakVariable)
	}
	if _, err := findPgbench(testBench(t).install); err != nil {
		t.Fatal(err)
	}
}
