package bridge

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/wire"
)

// A trace is one transaction's way over all nodes. Nothing travels for it: each node works out of the transaction's name whether it is
// traced, and by which ids, and sends the spans of its own part.

// The spans. The first one is the parent of the others.
const (
	spanTransaction = "transaction" // at its origin: from the commit until its frame is safe
	spanCapture     = "capture"     // at its origin: until it is handed to the broker
	spanStore       = "store"       // at its origin: until the broker has acknowledged it
	spanApply       = "apply"       // elsewhere: from its arrival until it is applied
)

// tracePending bounds the transactions of an origin that are traced and under way. Of more, the oldest are given up.
const tracePending = 1000

// traces sends spans of this node. nil: nothing is traced.
type traces struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
	cluster  string
	oneIn    uint64

	mu      sync.Mutex
	stored  []traced                   // own ones that the broker has yet to acknowledge
	applied map[origin.Origin][]traced // of others, that are yet to be applied
}

// traced is a transaction that is on its way.
type traced struct {
	seq    uint64
	stream uint64 // where its frame is, of an own one
	commit time.Time
	begun  time.Time // handed to the broker; or arrived
}

func newTraces(ctx context.Context, cfg *config.Config, log *slog.Logger) (*traces, error) {
	if cfg.Tracing.Endpoint == "" {
		return nil, nil
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(strings.TrimSuffix(cfg.Tracing.Endpoint, "/")+"/v1/traces"), otlptracehttp.WithRetry(otlptracehttp.RetryConfig{}))
	if err != nil {
		return nil, fmt.Errorf("trace.endpoint: %w", err)
	}
	about := resource.NewSchemaless(attribute.String("service.name", "pgbridge"), attribute.String("service.instance.id", cfg.Cluster+"/"+cfg.Node))
	provider := sdk.NewTracerProvider(sdk.WithBatcher(&logged{SpanExporter: exporter, log: log}), sdk.WithIDGenerator(traceIDs{}), sdk.WithResource(about))
	return &traces{provider: provider, tracer: provider.Tracer("pgbridge"), cluster: cfg.Cluster, oneIn: uint64(cfg.Tracing.OneIn), applied: map[origin.Origin][]traced{}}, nil
}

// logged tells of spans that nobody takes, the first time and once they are taken again.
type logged struct {
	sdk.SpanExporter
	log  *slog.Logger
	lost bool
}

// ExportSpans implements sdk.SpanExporter. Spans that are not taken are lost.
func (l *logged) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := l.SpanExporter.ExportSpans(ctx, spans)
	switch {
	case err != nil && !l.lost:
		l.log.Warn("traces are lost", "err", err.Error())
	case err == nil && l.lost:
		l.log.Info("traces are taken again")
	}
	l.lost = err != nil
	return nil
}

// traceName is a transaction, in a context in which its first span begins.
type traceName struct{}

// traceIDs gives the first span of a transaction the id that all nodes know, and others one by chance.
type traceIDs struct{}

func (traceIDs) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	if s, ok := ctx.Value(traceName{}).(trace.SpanContext); ok {
		return s.TraceID(), s.SpanID()
	}
	return trace.TraceID{}, trace.SpanID{}
}

func (traceIDs) NewSpanID(context.Context, trace.TraceID) trace.SpanID { return randomSpan() }

// name works out of a transaction's name by which ids it is traced; false: it is not.
func (t *traces) name(o origin.Origin, seq uint64) (trace.SpanContext, bool) {
	b := append(append(append(make([]byte, 0, 128), t.cluster...), '\n'), o.Node...)
	b = strconv.AppendUint(append(strconv.AppendUint(append(b, '\n'), uint64(o.Epoch), 10), '\n'), seq, 10)
	h := sha256.Sum256(b)
	if binary.BigEndian.Uint64(h[24:])%t.oneIn != 0 {
		return trace.SpanContext{}, false
	}
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID(h[:16]), SpanID: trace.SpanID(h[16:24]), TraceFlags: trace.FlagsSampled}), true
}

// among returns the transactions of a frame that are traced.
func (t *traces) among(f *wire.Frame, at time.Time) (all []traced) {
	any := false
	for seq := f.FirstSeq; f.FirstSeq != 0 && seq <= f.LastSeq && !any; seq++ {
		_, any = t.name(f.Origin, seq)
	}
	for recs := wire.NewRecords(f.Body); any; {
		rec, err := recs.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil // whoever reads it says so
		}
		var b wire.Begin
		switch rec.Kind {
		case wire.KindBegin:
			b, err = wire.ParseBegin(rec.Payload)
		case wire.KindLargeCommit:
			var l wire.LargeCommit
			l, err = wire.ParseLargeCommit(rec.Payload)
			b = l.Begin
		default:
			continue
		}
		if _, is := t.name(f.Origin, b.Seq); is && err == nil {
			all = append(all, traced{seq: b.Seq, commit: b.CommitTime.Time(), begun: at})
		}
	}
	return all
}

func randomSpan() (id trace.SpanID) {
	for !id.IsValid() {
		binary.NativeEndian.PutUint64(id[:], rand.Uint64())
	}
	return id
}

// span sends a span of a transaction.
func (t *traces) span(name string, o origin.Origin, seq uint64, begun, ended time.Time) {
	s, _ := t.name(o, seq)
	ctx := trace.ContextWithRemoteSpanContext(context.Background(), s)
	if name == spanTransaction {
		ctx = context.WithValue(context.Background(), traceName{}, s)
	}
	_, span := t.tracer.Start(ctx, name, trace.WithTimestamp(begun), trace.WithAttributes(attribute.String("pgbridge.cluster", t.cluster),
		attribute.String("pgbridge.origin", o.String()), attribute.Int64("pgbridge.seq", int64(seq))))
	span.End(trace.WithTimestamp(ended))
}

// handed notes own transactions whose frame was handed to the broker, and has that place in the stream.
func (t *traces) handed(stream uint64, f *wire.Frame) {
	if t == nil {
		return
	}
	all := t.among(f, time.Now())
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, x := range all {
		x.stream = stream
		t.stored = bounded(append(t.stored, x))
	}
}

// arrived notes transactions of another node that have come here, once.
func (t *traces) arrived(f *wire.Frame) {
	if t == nil {
		return
	}
	all := t.among(f, time.Now())
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, x := range all {
		before := t.applied[f.Origin]
		if n := len(before); n == 0 || before[n-1].seq < x.seq {
			t.applied[f.Origin] = bounded(append(before, x))
		}
	}
}

func bounded(all []traced) []traced { return all[max(len(all)-tracePending, 0):] }

// run sends spans of what is done, until ctx ends.
func (t *traces) run(ctx context.Context, own origin.Origin, a *apply.Applier, pub *stream.Publisher) error {
	for {
		acknowledged := pub.Changed()
		have, moved := a.WatchApplied()
		t.send(own, pub.Durable(), have, time.Now())
		select {
		case <-acknowledged:
		case <-moved:
		case <-ctx.Done():
			return nil
		}
	}
}

// send sends spans of own transactions whose frames are safe up to a place in the stream, and of what is applied.
func (t *traces) send(own origin.Origin, durable uint64, have origin.Vector, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.stored) > 0 && t.stored[0].stream <= durable {
		x := t.stored[0]
		t.stored = t.stored[1:]
		t.span(spanTransaction, own, x.seq, x.commit, now)
		t.span(spanCapture, own, x.seq, x.commit, x.begun)
		t.span(spanStore, own, x.seq, x.begun, now)
	}
	for o, all := range t.applied {
		for len(all) > 0 && all[0].seq <= have.Seq(o) {
			t.span(spanApply, o, all[0].seq, all[0].begun, now)
			all = all[1:]
		}
		t.applied[o] = all
	}
}

// close sends what is left, as far as that is possible in a moment.
func (t *traces) close() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	t.provider.Shutdown(ctx)
}
