package bridge

import (
	"context"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.yaml.in/yaml/v3"

	"github.com/pgbridge/pgbridge/stream"
)

// gather gives the metrics that a report makes.
func gather(t *testing.T, r *Report) []*dto.MetricFamily {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(&collector{func(context.Context) *Report { return r }})
	all, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// rule is an alert rule of deploy/prometheus/alerts.yaml, which compares a metric with a number.
type rule struct {
	Alert, Expr string
	Annotations map[string]string
}

func alertRules(t *testing.T) []rule {
	t.Helper()
	text, err := os.ReadFile("../deploy/prometheus/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct{ Rules []rule }
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	return file.Groups[0].Rules
}

var comparison = regexp.MustCompile(`^([a-z_]+)(?:\{([a-z]+)="([a-z]+)"\})? (==|>) ([0-9.]+)$`)

// fires reports whether a rule is true for one of the metrics.
func (r rule) fires(t *testing.T, all []*dto.MetricFamily) bool {
	t.Helper()
	m := comparison.FindStringSubmatch(r.Expr)
	if m == nil {
		t.Fatalf("%s: %q is no comparison of a metric with a number", r.Alert, r.Expr)
	}
	limit, err := strconv.ParseFloat(m[5], 64)
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range all {
		if family.GetName() != m[1] {
			continue
		}
		for _, x := range family.Metric {
			fits := m[2] == "" || slices.ContainsFunc(x.Label, func(l *dto.LabelPair) bool { return l.GetName() == m[2] && l.GetValue() == m[3] })
			v := x.GetGauge().GetValue() + x.GetCounter().GetValue()
			if fits && (m[4] == "==" && v == limit || m[4] == ">" && v > limit) {
				return true
			}
		}
	}
	return false
}

// wellReport is of a node with which all is well.
func wellReport() *Report {
	return &Report{Cluster: "shop", Node: "a", Seq: 7, Capture: CaptureReport{State: "streaming"}, Publisher: PublisherReport{DurableSeq: 7}, Slot: SlotReport{WALHeldBytes: 16 << 20},
		BrokerRefused: &stream.Refusals{SignIns: 2}, Stream: StreamReport{Bytes: 1000, LimitBytes: 8 << 30}, Conflicts: map[string]uint64{"update_update": 3}, Clocks: []ClockReport{{"b", -0.2, 0.001}},
		Links: []LinkReport{{Link: "c", Origin: "b", State: "connected", AppliedSeq: 11, ReceivedSeq: 12, LagSeconds: 0.5, Conflicts: 3}}, Alarms: []Alarm{{Code: "paused", Severity: SeverityWarning}}}
}

// TestAlertRules: each rule fires when the thing happens that it is for, and none does while all is well.
func TestAlertRules(t *testing.T) {
	provoked := map[string]func(*Report){
		"PgbridgeNotRunning": func(r *Report) { r.Waiting = "PostgreSQL is away" },
		"PgbridgeAlarm":      func(r *Report) { r.Alarms = append(r.Alarms, Alarm{Code: "stream-full", Severity: SeverityError}) },
		"PgbridgePeerAway":   func(r *Report) { r.Links[0].State = "away" },
		"PgbridgeLag":        func(r *Report) { r.Links[0].LagSeconds = 61 },
		"PgbridgeWALHeld":    func(r *Report) { r.Slot.WALHeldBytes = 6 << 30 },
		"PgbridgeParked":     func(r *Report) { r.Links[0].Parked = 1 },
		"PgbridgeClock":      func(r *Report) { r.Clocks[0].AheadSeconds = 1.5 },
		"PgbridgeLetGo":      func(r *Report) { r.LetGo = []LetGoReport{{Node: "b", Transactions: 5}} },
	}
	for _, rule := range alertRules(t) {
		if rule.fires(t, gather(t, wellReport())) {
			t.Errorf("%s fires while all is well", rule.Alert)
		}
		provoke, ok := provoked[rule.Alert]
		if !ok {
			t.Errorf("nothing provokes %s", rule.Alert)
			continue
		}
		r := wellReport()
		if provoke(r); !rule.fires(t, gather(t, r)) {
			t.Errorf("%s does not fire", rule.Alert)
		}
		if rule.Annotations["summary"] == "" {
			t.Errorf("%s says nothing", rule.Alert)
		}
		delete(provoked, rule.Alert)
	}
	for name := range provoked {
		t.Errorf("there is no rule %s", name)
	}
}

// TestDashboardAsksForMetricsThatExist: and docs/metrics.md lists all that do.
func TestDashboardAsksForMetricsThatExist(t *testing.T) {
	r := wellReport()
	r.LetGo = []LetGoReport{{Node: "b", Transactions: 5}}
	var names []string
	docs, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range gather(t, r) {
		names = append(names, family.GetName())
		if !strings.Contains(string(docs), "| `"+family.GetName()+"`") {
			t.Errorf("docs/metrics.md does not have %s", family.GetName())
		}
	}
	text, err := os.ReadFile("../deploy/grafana/pgbridge.json")
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(text) {
		t.Fatal("the dashboard is no JSON")
	}
	asked := regexp.MustCompile(`pgbridge_[a-z_]+`).FindAllString(string(text), -1)
	if len(asked) < 10 {
		t.Errorf("the dashboard asks for %q only", asked)
	}
	for _, name := range asked {
		if !slices.Contains(names, name) {
			t.Errorf("the dashboard asks for %s, which there is not", name)
		}
	}
}
