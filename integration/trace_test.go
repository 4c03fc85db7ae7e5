package integration

import (
	"compress/gzip"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/pgbridge/pgbridge/integration/cluster"
)

// spans are what a collector has got.
type spans struct {
	mu   sync.Mutex
	all  map[string][]*otlp.Span // by who has sent them
	more chan struct{}
}

// ServeHTTP takes spans as OTLP over HTTP has them.
func (s *spans) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		body = z
	}
	text, err := io.ReadAll(body)
	var x collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(text, &x)
	}
	if err != nil || r.URL.Path != "/v1/traces" {
		http.Error(w, "no traces", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, from := range x.ResourceSpans {
		who := ""
		for _, a := range from.Resource.Attributes {
			if a.Key == "service.instance.id" {
				_, who, _ = strings.Cut(a.Value.GetStringValue(), "/")
			}
		}
		for _, scope := range from.ScopeSpans {
			s.all[who] = append(s.all[who], scope.Spans...)
		}
	}
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// TestTraces: a transaction is one trace over all nodes, whose parts each node sends by itself: of each transaction its origin three
// spans, and each other node one.
func TestTraces(t *testing.T) {
	t.Parallel()
	got := &spans{all: map[string][]*otlp.Span{}, more: make(chan struct{}, 1)}
	server := httptest.NewServer(got)
	t.Cleanup(server.Close)
	c := cluster.New(t, cluster.Options{Nodes: 3, Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`,
		Config: map[string]string{"trace.endpoint": server.URL, "trace.one_in": "1"}})
	a := c.Node("a")
	a.Exec(`INSERT INTO t VALUES (1, 'traced')`)
	c.WaitConverged()
	seq := int64(a.Status().Seq)
	for _, n := range c.Nodes { // which sends what it has
		n.Stop()
	}
	got.mu.Lock()
	defer got.mu.Unlock()
	names := map[string][]string{} // by trace: node and span
	root := map[string]string{}
	for node, all := range got.all {
		for _, s := range all {
			id := hex.EncodeToString(s.TraceId)
			if s.Name == "transaction" {
				root[id] = hex.EncodeToString(s.SpanId)
			}
			if s.EndTimeUnixNano < s.StartTimeUnixNano || s.StartTimeUnixNano == 0 {
				t.Errorf("%s of node %s ends before it begins", s.Name, node)
			}
			names[id] = append(names[id], node+" "+s.Name)
		}
	}
	for node, all := range got.all {
		for _, s := range all {
			if parent := hex.EncodeToString(s.ParentSpanId); s.Name != "transaction" && parent != root[hex.EncodeToString(s.TraceId)] {
				t.Errorf("%s of node %s is part of %s", s.Name, node, parent)
			}
		}
	}
	whole := 0
	for _, all := range names {
		if slices.Sort(all); slices.Equal(all, []string{"a capture", "a store", "a transaction", "b apply", "c apply"}) {
			whole++
		}
	}
	if whole < int(seq)-1 { // the last one may be on its way
		t.Errorf("of %d transactions of a, %d were traced everywhere: %v", seq, whole, names)
	}
}
