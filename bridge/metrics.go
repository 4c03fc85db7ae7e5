package bridge

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics serves what Report says to Prometheus, made when it asks, and what the process uses.
func (b *bridge) metrics() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(&collector{report: b.report}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
}

// collector turns reports into metrics.
type collector struct {
	report func(context.Context) *Report
}

// metricPatience bounds how long a report may take.
const metricPatience = 5 * time.Second

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("pgbridge_"+name, help, labels, nil)
}

// The metrics. What can only rise within a bridge's life is a counter; one that begins anew is seen as such.
var (
	metricInfo        = describe("info", "1, with the names of the cluster and the node.", "cluster", "node")
	metricRunning     = describe("running", "1 while all parts of the bridge run, 0 while it waits to.")
	metricStreaming   = describe("capture_streaming", "1 while local changes are read.")
	metricSeq         = describe("captured_transactions_total", "Local transactions, by the number of the last one that was read.")
	metricDurable     = describe("published_transactions_total", "Local transactions that are safe at the broker, by the number of the last one.")
	metricWAL         = describe("slot_wal_held_bytes", "WAL that the server keeps for the slot.")
	metricInFlight    = describe("publisher_frames_in_flight", "Frames that were sent to the broker and are not acknowledged.")
	metricStream      = describe("stream_bytes", "Bytes in the own stream.")
	metricStreamLimit = describe("stream_limit_bytes", "The limit of the own stream in force; 0: none.")
	metricConnected   = describe("origin_connected", "1 while what the origin writes is read, from itself or from a node that hands it on.", "origin", "from")
	metricApplied     = describe("origin_applied_transactions_total", "Transactions of another node that are applied here, by the number of the last one.", "origin")
	metricQueued      = describe("origin_queued_transactions", "Transactions of another node that have arrived and are not applied.", "origin")
	metricLag         = describe("origin_lag_seconds", "Age of the oldest transaction that has arrived and is not applied; 0: there is none.", "origin")
	metricParked      = describe("origin_parked_transactions", "Transactions of another node that cannot be applied here.", "origin")
	metricLosses      = describe("origin_conflicts_total", "Conflicts that were recorded when the origin's transactions were applied.", "origin")
	metricAgain       = describe("origin_again_transactions_total", "Transactions that came once more and were passed over, since the start.", "origin")
	metricRefused     = describe("origin_frames_refused_total", "How often frames were met that the origin has not signed (stream.signatures).", "origin")
	metricAway        = describe("rows_written_away_total", "Local rows that were written though their home is another node.")
	metricKinds       = describe("conflicts_total", "Conflicts that were recorded, by kind.", "kind")
	metricQuarantined = describe("quarantined_rows", "Rows that are kept out of their tables, since later ones have a value that must be unique.")
	metricOwed        = describe("owed_rows", "Rows that wait for the node that wrote them to write them again in full.")
	metricLetGo       = describe("let_go_transactions", "Own transactions that a node lacks which was let go.", "peer")
	metricClock       = describe("clock_ahead_seconds", "How far another node's clock is ahead of this one's.", "peer")
	metricClockWithin = describe("clock_within_seconds", "How exactly that is known.", "peer")
	metricRefusals    = describe("broker_refused_total", "What the NATS server inside the bridge has refused: sign_in, tls or permission.", "what")
	metricSignIns     = describe("console_refused_sign_ins_total", "Sign-ins to the console that were refused.")
	metricAlarm       = describe("alarm", "How many alarms of that code status has.", "code", "severity")
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{metricInfo, metricRunning, metricStreaming, metricSeq, metricDurable, metricWAL, metricInFlight, metricStream, metricStreamLimit,
		metricConnected, metricApplied, metricQueued, metricLag, metricParked, metricLosses, metricRefused, metricAgain, metricKinds, metricAway, metricQuarantined, metricOwed, metricLetGo, metricClock,
		metricClockWithin, metricRefusals, metricSignIns, metricAlarm} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), metricPatience)
	defer cancel()
	r := c.report(ctx)
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(metricInfo, 1, r.Cluster, r.Node)
	gauge(metricRunning, one(r.Waiting == ""))
	gauge(metricWAL, float64(r.Slot.WALHeldBytes))
	if x := r.BrokerRefused; x != nil {
		count(metricRefusals, x.SignIns, "sign_in")
		count(metricRefusals, x.Handshakes, "tls")
		count(metricRefusals, x.Permissions, "permission")
	}
	count(metricSignIns, r.SignInsRefused)
	for _, a := range alarmCounts(r.Alarms) {
		gauge(metricAlarm, a.n, a.code, string(a.severity))
	}
	if r.Waiting != "" {
		return // the rest is known while the parts run
	}
	gauge(metricStreaming, one(r.Capture.State == "streaming"))
	count(metricSeq, r.Seq)
	count(metricDurable, r.Publisher.DurableSeq)
	gauge(metricInFlight, float64(r.Publisher.FramesInFlight))
	gauge(metricStream, float64(r.Stream.Bytes))
	gauge(metricStreamLimit, float64(r.Stream.LimitBytes))
	gauge(metricQuarantined, float64(r.Quarantined))
	gauge(metricOwed, float64(r.Owed))
	for _, l := range r.Links {
		gauge(metricConnected, one(l.State != "away"), l.Origin, l.Link)
		count(metricApplied, l.AppliedSeq, l.Origin)
		gauge(metricQueued, float64(l.ReceivedSeq-min(l.AppliedSeq, l.ReceivedSeq)), l.Origin)
		gauge(metricLag, l.LagSeconds, l.Origin)
		gauge(metricParked, float64(l.Parked), l.Origin)
		count(metricLosses, l.Conflicts, l.Origin)
		count(metricRefused, l.Refused, l.Origin)
		count(metricAgain, l.Again, l.Origin)
	}
	count(metricAway, r.WrittenAway)
	for kind, n := range r.Conflicts {
		count(metricKinds, n, kind)
	}
	for _, x := range r.LetGo {
		gauge(metricLetGo, float64(x.Transactions), x.Node)
	}
	for _, x := range r.Clocks {
		gauge(metricClock, x.AheadSeconds, x.Node)
		gauge(metricClockWithin, x.WithinSeconds, x.Node)
	}
}

func one(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// alarmCount is how many alarms have a code.
type alarmCount struct {
	code     string
	severity Severity
	n        float64
}

func alarmCounts(all []Alarm) (counts []alarmCount) {
	at := map[string]int{}
	for _, a := range all {
		key := a.Code + " " + string(a.Severity)
		i, ok := at[key]
		if !ok {
			i = len(counts)
			at[key] = i
			counts = append(counts, alarmCount{a.Code, a.Severity, 0})
		}
		counts[i].n++
	}
	return counts
}
