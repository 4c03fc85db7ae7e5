package capture

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// recorder is a Publisher that keeps all frames. Unless it is told otherwise they are durable at once.
type recorder struct {
	mu      sync.Mutex
	frames  []*wire.Frame // frames[i] has stream sequence first+i
	aheads  []ahead
	first   uint64
	durable uint64
	lazy    bool          // durable moves only by settle
	gate    chan struct{} // Publish waits until it is closed; nil: open
	maxBody int
	changed chan struct{}
	enc     wire.Encoder
	dec     wire.Decoder
}

func newRecorder() *recorder {
	return &recorder{first: 1, maxBody: 1 << 20, changed: make(chan struct{})}
}

func (r *recorder) Publish(ctx context.Context, f *wire.Frame) (uint64, error) {
	r.mu.Lock()
	gate := r.gate
	r.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(f.Body) > r.maxBody {
		return 0, fmt.Errorf("body of %d bytes, at most %d", len(f.Body), r.maxBody)
	}
	b, err := r.enc.Append(nil, f)
	if err != nil {
		return 0, err
	}
	g, err := r.dec.Decode(b)
	if err != nil {
		return 0, err
	}
	r.frames = append(r.frames, g)
	if !r.lazy {
		r.durable = r.last()
	}
	r.notify()
	return r.last(), nil
}

// ahead is what went ahead of a frame.
type ahead struct {
	next  uint64 // the stream sequence that the frame will get
	frame *wire.Frame
	whole bool
}

func (r *recorder) Ahead(f *wire.Frame, whole bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, err := r.enc.Append(nil, f)
	if err != nil {
		panic(err)
	}
	g, err := r.dec.Decode(b)
	if err != nil {
		panic(err)
	}
	r.aheads = append(r.aheads, ahead{r.last() + 1, g, whole})
}

func (r *recorder) last() uint64 { return r.first + uint64(len(r.frames)) - 1 }

func (r *recorder) notify() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// block makes Publish wait until the returned function is called.
func (r *recorder) block() (open func()) {
	gate := make(chan struct{})
	r.mu.Lock()
	r.gate = gate
	r.mu.Unlock()
	return func() {
		r.mu.Lock()
		r.gate = nil
		r.mu.Unlock()
		close(gate)
	}
}

// settle makes all frames up to seq durable.
func (r *recorder) settle(seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.durable = max(r.durable, seq)
	r.notify()
}

func (r *recorder) Durable() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.durable
}

func (r *recorder) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

func (r *recorder) InFlight() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return int(r.last() - r.durable)
}

func (r *recorder) Next() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last() + 1
}

func (r *recorder) MaxBody() int { return r.maxBody }

func (r *recorder) all() []*wire.Frame {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.frames)
}

// await waits until the frames fulfil a condition, and returns them.
func (r *recorder) await(t testing.TB, what string, ok func([]*wire.Frame) bool) []*wire.Frame {
	t.Helper()
	deadline := time.After(patience)
	for {
		changed, frames := r.Changed(), r.all()
		if ok(frames) {
			return frames
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("waited for %s; the frames hold\n%s", what, describe(t, frames))
		}
	}
}

// buried is a Deletes that keeps what it is told, as text.
type buried struct {
	mu     sync.Mutex
	lines  []string
	hashes []wire.KeyHash
	hold   uint64
	untold bool // nothing more of low is told
}

func (b *buried) LocalDelete(d Delete) {
	var key []string
	for i, v := range d.Key {
		c := d.Relation.Columns[d.Relation.Key[i]]
		key = append(key, c.Name+"="+show(c.TypeOID, v))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hashes = append(b.hashes, d.Hash)
	b.lines = append(b.lines, fmt.Sprintf("%d delete %s.%s %s", d.Seq, d.Relation.Schema, d.Relation.Name, strings.Join(key, " ")))
}

func (b *buried) LocalSchema(seq uint64, xid uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, fmt.Sprintf("%d schema", seq))
}

func (b *buried) LocalTruncate(x Truncate) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, fmt.Sprintf("%d truncate %s.%s", x.Seq, x.Relation.Schema, x.Relation.Name))
}

func (b *buried) HoldLSN() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.hold
}

func (b *buried) holdBack(yes bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.untold = yes
}

func (b *buried) Told(before, low origin.Vector) origin.Vector {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.untold {
		return before
	}
	return low
}

func (b *buried) told() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.lines)
}
