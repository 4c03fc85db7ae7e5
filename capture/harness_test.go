package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// patience bounds every wait for an event.
const patience = 30 * time.Second

// recorder is a Publisher that keeps all frames. Unless it is told otherwise they are durable at once.
type recorder struct {
	mu      sync.Mutex
	frames  []*wire.Frame // frames[i] has stream sequence first+i
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

func (b *buried) told() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.lines)
}

// show prints a value as far as tests need it.
func show(oid uint32, v wire.Value) string {
	switch v.Format {
	case wire.Null:
		return "NULL"
	case wire.Unchanged:
		return "UNCHANGED"
	case wire.Text:
		return "'" + string(v.Data) + "'"
	}
	if len(v.Data) > 100 {
		return fmt.Sprintf("<%d bytes>", len(v.Data))
	}
	switch {
	case oid == 23 && len(v.Data) == 4:
		return fmt.Sprint(int32(binary.BigEndian.Uint32(v.Data)))
	case oid == 20 && len(v.Data) == 8:
		return fmt.Sprint(int64(binary.BigEndian.Uint64(v.Data)))
	case oid == 25 || oid == 1043 || oid >= 16384:
		return string(v.Data)
	}
	return fmt.Sprintf("x%x", v.Data)
}

// captured is one transaction as a reader of the stream sees it.
type captured struct {
	wire.Begin
	up, low origin.Vector
	rows    []string
	large   bool
}

// reader decodes frames as another node does: chunks are put together, rolled back subtransactions taken
// out.
type reader struct {
	t         testing.TB
	up, low   origin.Vector
	relations map[uint32]*wire.Relation
	runs      map[uint64]*bytes.Buffer
	epoch     uint64
	open      *captured
	done      []captured
	aborted   int
}

func read(t testing.TB, frames []*wire.Frame) *reader {
	t.Helper()
	r := &reader{t: t, runs: map[uint64]*bytes.Buffer{}}
	for _, f := range frames {
		r.frame(f)
	}
	return r
}

func (r *reader) frame(f *wire.Frame) {
	r.t.Helper()
	if f.WriterEpoch != r.epoch {
		r.epoch, r.runs = f.WriterEpoch, map[uint64]*bytes.Buffer{}
	}
	r.up, r.low, r.relations = nil, nil, map[uint32]*wire.Relation{}
	recs := wire.NewRecords(f.Body)
	first := uint64(0)
	for {
		rec, err := recs.Next()
		if err == io.EOF {
			break
		}
		r.check(err)
		before := len(r.done)
		r.record(rec)
		if len(r.done) > before && first == 0 {
			first = r.done[before].Seq
		}
	}
	if r.open != nil {
		r.t.Fatalf("frame ends within transaction %d", r.open.Seq)
	}
	if f.FirstSeq != first {
		r.t.Errorf("frame says that its first transaction is %d, it is %d", f.FirstSeq, first)
	}
	if n := len(r.done); n > 0 && (f.LastSeq != r.done[n-1].Seq || f.LastStamp != r.done[n-1].Stamp) {
		r.t.Errorf("frame says last seq %d stamp %d, its last transaction has %d, %d", f.LastSeq, f.LastStamp, r.done[n-1].Seq, r.done[n-1].Stamp)
	}
}

func (r *reader) check(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *reader) record(rec wire.Record) {
	r.t.Helper()
	var err error
	switch rec.Kind {
	case wire.KindVector:
		r.up, r.low, err = wire.ParseDeps(rec.Payload)
	case wire.KindRelation:
		var rel *wire.Relation
		rel, err = wire.ParseRelation(rec.Payload)
		if err == nil {
			r.relations[rel.ID] = rel
		}
	case wire.KindBegin:
		r.open = &captured{up: r.up, low: r.low}
		r.open.Begin, err = wire.ParseBegin(rec.Payload)
	case wire.KindCommit:
		r.done = append(r.done, *r.open)
		r.open = nil
	case wire.KindChunk:
		var run, offset uint64
		var b []byte
		run, offset, b, err = wire.ParseChunk(rec.Payload)
		if r.runs[run] == nil {
			r.runs[run] = &bytes.Buffer{}
		}
		if uint64(r.runs[run].Len()) != offset {
			r.t.Fatalf("chunk of run %d at %d, %d bytes are there", run, offset, r.runs[run].Len())
		}
		r.runs[run].Write(b)
	case wire.KindRunAbort:
		var run uint64
		run, err = wire.ParseNumber(rec.Payload)
		if r.runs[run] == nil {
			r.t.Fatalf("abort of run %d, which has no chunk", run)
		}
		delete(r.runs, run)
		r.aborted++
	case wire.KindLargeCommit:
		var l wire.LargeCommit
		l, err = wire.ParseLargeCommit(rec.Payload)
		r.check(err)
		r.large(l)
	default:
		if r.open == nil {
			r.t.Fatalf("record %q outside of a transaction", rec.Kind)
		}
		r.open.rows = append(r.open.rows, row(r.t, r.relations, rec))
	}
	r.check(err)
}

func (r *reader) large(l wire.LargeCommit) {
	r.t.Helper()
	b := r.runs[l.Run]
	if b == nil || uint64(b.Len()) != l.Length {
		r.t.Fatalf("commit of run %d with %d bytes: %v", l.Run, l.Length, b)
	}
	delete(r.runs, l.Run)
	x := captured{Begin: l.Begin, up: r.up, low: r.low, large: true}
	void := map[uint64]bool{}
	var aborts, changes uint64
	for pass := range 2 {
		sub := uint64(l.XID)
		relations := map[uint32]*wire.Relation{}
		recs := wire.NewRecords(b.Bytes())
		for {
			rec, err := recs.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			r.check(err)
			switch rec.Kind {
			case wire.KindRelation:
				rel, err := wire.ParseRelation(rec.Payload)
				r.check(err)
				relations[rel.ID] = rel
			case wire.KindSub:
				sub, err = wire.ParseNumber(rec.Payload)
				r.check(err)
			case wire.KindSubAbort:
				n, err := wire.ParseNumber(rec.Payload)
				r.check(err)
				if pass == 0 {
					void[n] = true
					aborts++
				}
			default:
				if pass == 0 {
					changes++
				} else if !void[sub] {
					x.rows = append(x.rows, row(r.t, relations, rec))
				}
			}
		}
	}
	if aborts != l.Aborts || changes != l.Changes {
		r.t.Errorf("run %d has %d changes and %d aborts, its commit says %d and %d", l.Run, changes, aborts, l.Changes, l.Aborts)
	}
	r.done = append(r.done, x)
}

func row(t testing.TB, relations map[uint32]*wire.Relation, rec wire.Record) string {
	t.Helper()
	if rec.Kind == wire.KindTruncate {
		options, ids, err := wire.ParseTruncate(rec.Payload)
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("truncate %d", options)
		for _, id := range ids {
			line += fmt.Sprintf(" %s.%s", relations[id].Schema, relations[id].Name)
		}
		return line
	}
	var c wire.Change
	if err := c.Parse(rec); err != nil {
		t.Fatal(err)
	}
	rel := relations[c.Relation]
	if rel == nil {
		t.Fatalf("row of relation %d, which has no R record", c.Relation)
	}
	names := map[wire.Kind]string{wire.KindInsert: "insert", wire.KindUpdate: "update", wire.KindDelete: "delete"}
	line := fmt.Sprintf("%s %s.%s", names[c.Kind], rel.Schema, rel.Name)
	for i, tuple := range [][]wire.Value{c.Old, c.New} {
		if len(tuple) == 0 {
			continue
		}
		if i == 0 && c.OldFull {
			line += " whole"
		} else if i == 0 {
			line += " key"
		}
		if i == 1 && c.Kind == wire.KindUpdate {
			line += " to"
		}
		for j, v := range tuple {
			col := rel.Columns[j]
			line += " " + col.Name + "=" + show(col.TypeOID, v)
			if col.TypeName != "" {
				line += ":" + col.TypeSchema + "." + col.TypeName
			}
		}
	}
	return line
}

func describe(t testing.TB, frames []*wire.Frame) string {
	t.Helper()
	var b strings.Builder
	for _, x := range read(t, frames).done {
		b.WriteString(x.String())
	}
	return b.String()
}

// String leaves out what differs from run to run.
func (x captured) String() string {
	kind := ""
	if x.large {
		kind = " large"
	}
	s := fmt.Sprintf("%d%s up {%s} low {%s}\n", x.Seq, kind, x.up, x.low)
	for _, r := range x.rows {
		s += "  " + r + "\n"
	}
	return s
}

// bench is a database with capture reading it.
type bench struct {
	t       testing.TB
	db      *pgtest.Database
	opts    Options
	pub     *recorder
	deletes *buried
	capture *Capture
	log     *syncBuffer

	stop func() error
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// newBench sets the database up, after running schema, without starting capture.
func newBench(t testing.TB, db *pgtest.Database, schema string) *bench {
	t.Helper()
	b := &bench{t: t, db: db, pub: newRecorder(), deletes: &buried{}, log: &syncBuffer{}}
	db.Exec(t, "CREATE TABLE sentinel (id int PRIMARY KEY)")
	if schema != "" {
		b.exec(schema)
	}
	if err := Setup(t.Context(), SetupOptions{DSN: db.DSN, Cluster: db.Name, Node: "a"}); err != nil {
		t.Fatal(err)
	}
	name := originPrefix(db.Name, "a")
	info, err := ReadSlot(t.Context(), db.DSN, name)
	if err != nil {
		t.Fatal(err)
	}
	b.opts = Options{
		DSN: db.DSN, Cluster: db.Name, Node: "a", Origin: origin.Origin{Node: "a", Epoch: 1}, WriterEpoch: 1,
		SystemID: info.SystemID, Timeline: info.Timeline, Slot: name, Publication: name, SpoolDir: t.TempDir(),
		Logger: slog.New(slog.NewTextHandler(b.log, nil)),
	}
	t.Cleanup(func() {
		if b.stop != nil {
			b.end()
		}
		if t.Failed() {
			t.Logf("log of capture:\n%s", b.log)
		}
	})
	return b
}

// start starts capture behind tail.
func (b *bench) start(tail *wire.Frame) {
	b.t.Helper()
	c, err := New(b.opts, b.pub, b.deletes, tail)
	if err != nil {
		b.t.Fatal(err)
	}
	b.launch(c)
}

func (b *bench) launch(c *Capture) {
	b.capture = c
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	b.stop = func() error {
		cancel()
		return <-done
	}
}

// end stops capture and expects that nothing was wrong.
func (b *bench) end() {
	b.t.Helper()
	err := b.stop()
	b.stop = nil
	if !errors.Is(err, context.Canceled) {
		b.t.Errorf("run ended with %v", err)
	}
}

// fails waits until capture ends by itself and returns why.
func (b *bench) fails(c *Capture) error {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := c.Run(ctx)
	if ctx.Err() != nil {
		b.t.Fatal("capture did not end")
	}
	return err
}

// exec runs SQL, any number of statements, outside of any transaction that they don't begin themselves.
func (b *bench) exec(sql string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, b.db.DSN)
	if err != nil {
		b.t.Fatal(err)
	}
	defer conn.Close(ctx)
	for _, stmt := range strings.Split(sql, ";\n") {
		if strings.TrimSpace(stmt) == "" {
			continue
		}
		if _, err := conn.PgConn().Exec(ctx, stmt).ReadAll(); err != nil {
			b.t.Fatalf("%s: %v", stmt, err)
		}
	}
}

// sentinel commits a transaction and waits until it is in the stream. It returns all frames.
func (b *bench) sentinel() []*wire.Frame {
	b.t.Helper()
	var commit uint64
	row := b.db.Value(b.t, `WITH d AS (DELETE FROM sentinel), i AS (INSERT INTO sentinel SELECT coalesce(max(id), 0) + 1 FROM sentinel RETURNING id)
		SELECT pg_current_xact_id()::text::int8 FROM i`)
	fmt.Sscan(row, &commit)
	return b.pub.await(b.t, "the sentinel", func(frames []*wire.Frame) bool {
		done := read(b.t, frames).done
		return len(done) > 0 && slices.ContainsFunc(done, func(x captured) bool { return x.XID == uint32(commit) })
	})
}

// transactions returns what the stream holds, without sentinels.
func (b *bench) transactions(frames []*wire.Frame) []captured {
	b.t.Helper()
	return slices.DeleteFunc(read(b.t, frames).done, func(x captured) bool {
		return slices.ContainsFunc(x.rows, func(r string) bool { return strings.Contains(r, "public.sentinel") })
	})
}

// mark writes a marker, as apply does, and returns what it says.
func (b *bench) mark(up, done origin.Vector) {
	b.t.Helper()
	b.db.Exec(b.t, `SELECT pg_logical_emit_message(false, 'pgbridge',
		$1::bytea || int8send(pg_snapshot_xmin(pg_current_snapshot())::text::int8))`, wire.AppendMarker(nil, up, done))
}

func vector(pairs ...any) origin.Vector {
	var v origin.Vector
	for i := 0; i < len(pairs); i += 2 {
		n := uint64(pairs[i+1].(int))
		v.Advance(origin.Entry{Origin: origin.Origin{Node: pairs[i].(string), Epoch: 1}, Seq: n, Stamp: origin.Stamp(n)})
	}
	return v
}
