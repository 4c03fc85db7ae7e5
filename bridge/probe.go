package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/wire"
)

// A probe goes the way of every write: into the WAL, by a session that is a user's as any, through capture into a frame, to the
// broker, and is read there again. It is an answer to a question that nobody has asked, by this node to itself: others pass it over.

// probeResult is what a probe has found.
type probeResult struct {
	WAL    time.Duration `json:"wal"`
	Broker time.Duration `json:"broker"`
	Seq    uint64        `json:"seq"` // of the last own transaction at that time
}

// probes lets one probe at a time go through the outbox.
type probes struct {
	mu   sync.Mutex // held by the one that is on its way
	wait atomic.Pointer[probeWait]
}

// probeWait is a probe that waits for its frame.
type probeWait struct {
	id    int64
	found chan uint64 // of capacity 1: the frame's stream sequence
}

// published looks for the probe in a frame that was handed to the broker.
func (p *probes) published(seq uint64, f *wire.Frame) {
	if w := p.wait.Load(); w != nil && holdsAnswer(f, w.id) {
		select {
		case w.found <- seq:
		default:
		}
	}
}

// holdsAnswer reports whether the frame has an answer with that id.
func holdsAnswer(f *wire.Frame, id int64) bool {
	for recs := wire.NewRecords(f.Body); ; {
		rec, err := recs.Next()
		if err != nil {
			return false
		}
		if rec.Kind == wire.KindAnswer {
			if a, err := wire.ParseAnswer(rec.Payload); err == nil && a.ID == id {
				return true
			}
		}
	}
}

// errProbeLost means that what the broker has stored is not what was sent.
var errProbeLost = errors.New("the frame that the broker has acknowledged cannot be read there")

func (l *life) probe(ctx context.Context) (*probeResult, error) {
	l.outbox.probes.mu.Lock()
	defer l.outbox.probes.mu.Unlock()
	w := &probeWait{time.Now().UnixNano(), make(chan uint64, 1)}
	l.outbox.probes.wait.Store(w)
	defer l.outbox.probes.wait.Store(nil)
	var begun time.Time
	err := l.primary.Ask(ctx, func(conn *pgx.Conn) error {
		begun = time.Now()
		_, err := conn.Exec(ctx, `SELECT pg_logical_emit_message(false, $1, $2::bytea)`, wire.AnswerPrefix, wire.AppendAnswer(nil, wire.Answer{To: l.own, ID: w.id}))
		return named("write into the WAL", err)
	})
	if err != nil {
		return nil, err
	}
	if _, err := l.applier.Seen(ctx, l.capture); err != nil { // flushes the WAL, too
		return nil, named("wait for the WAL to be read", err)
	}
	r := &probeResult{WAL: time.Since(begun), Seq: l.capture.Captured()}
	begun = time.Now()
	l.capture.Hasten()
	var seq uint64
	select {
	case seq = <-w.found:
	case <-ctx.Done():
		return nil, named("wait for a frame", context.Cause(ctx))
	}
	for l.outbox.Durable() < seq {
		changed := l.publisher.Changed()
		if l.outbox.Durable() >= seq {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, named("wait for the broker", context.Cause(ctx))
		}
	}
	there := false
	err = l.publisher.Scan(ctx, seq, seq, func(_ uint64, f *wire.Frame) error {
		there = holdsAnswer(f, w.id)
		return nil
	})
	if err == nil && !there {
		err = errProbeLost
	}
	r.Broker = time.Since(begun)
	return r, named("read from the broker", err)
}

// probePatience is how long a probe may take.
const probePatience = 10 * time.Second

func (b *bridge) serveProbe(w http.ResponseWriter, r *http.Request) {
	l, err := b.current.get()
	if l == nil {
		http.Error(w, errors.Join(errors.New(starting), err).Error(), http.StatusServiceUnavailable)
		return
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), probePatience, errors.New("it did not come within "+probePatience.String()))
	defer cancel()
	p, err := l.probe(ctx)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(p)
}

// askProbe has the bridge that runs here make a probe; the text is why it could not.
func (b *bridge) askProbe(ctx context.Context) (*probeResult, string) {
	resp, err := ask(ctx, b.cfg, "/probe")
	if err != nil {
		return nil, err.Error()
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		return nil, string(text)
	}
	p := &probeResult{}
	if err := json.NewDecoder(resp.Body).Decode(p); err != nil {
		return nil, err.Error()
	}
	return p, ""
}
