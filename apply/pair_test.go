package apply

import (
	"context"
	"encoding/binary"
	"errors"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// pair is an origin's database, read by a little capture of the test's own, and a node that applies it.
type pair struct {
	t        *testing.T
	from     *pgtest.Database
	to       *pgtest.Database
	a        *Applier
	wal      *fakeWAL
	src      *pgx.Conn
	streamed uint64
	seq      uint64
	last     origin.Stamp
	rels     map[uint32]*wire.Relation
	merge    []MergePolicy
	stop     func() error
	ended    chan struct{} // closed when the applier has ended, by itself or by stop
	ahead    atomic.Int64  // nanoseconds that the applier's clock is ahead
	frame    *wire.Frame   // the last one that was shipped
	limit    int           // of parked transactions; 0: the default
}

var nodeA = origin.Origin{Node: "a", Epoch: 1}

// fakeWAL answers for a node whose capture has read everything at once. It reads markers' xmin from the
// transactions that run, as capture would from the WAL.
type fakeWAL struct {
	mu     sync.Mutex
	lifted map[origin.Stamp]origin.Stamp
	keys   map[wire.KeyHash]bool // whose stamps lifted holds; nil: all
	low    origin.Vector
	mark   func(seq uint64) (uint64, bool)
	local  atomic.Uint64 // seq of the last local transaction that capture has read
	passed func()        // called whenever somebody has waited for capture
	judged func()        // called when a local row's stamp is asked for
}

func (f *fakeWAL) Passed() uint64 { return 1 << 62 }
func (f *fakeWAL) WaitPassed(ctx context.Context, lsn uint64) error {
	f.mu.Lock()
	passed := f.passed
	f.mu.Unlock()
	if passed != nil {
		passed()
	}
	return nil
}
func (f *fakeWAL) LocalStamp(s origin.Stamp, k wire.KeyHash) origin.Stamp {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.judged != nil {
		f.judged()
	}
	if l, ok := f.lifted[s]; ok && (f.keys == nil || f.keys[k]) {
		return l
	}
	return s
}
func (f *fakeWAL) Wrote(origin.Stamp) bool                  { return true }
func (f *fakeWAL) Captured() uint64                         { return f.local.Load() }
func (f *fakeWAL) Hasten()                                  {}
func (f *fakeWAL) Before(origin.Stamp, uint64, uint64) bool { return false }
func (f *fakeWAL) MarkWithin(deps origin.Vector, _ origin.Origin) (uint64, bool) {
	return f.MarkFor(deps.Seq(origin.Origin{Node: "b", Epoch: 1}))
}
func (f *fakeWAL) MarkFor(seq uint64) (uint64, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mark == nil {
		return 0, false
	}
	return f.mark(seq)
}
func (f *fakeWAL) Vectors() (up, low origin.Vector) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return nil, f.low
}
func (f *fakeWAL) RecentXIDs() []uint32 { return nil }

// onPassed sets what happens, as seen from apply, while it waits for capture.
func (f *fakeWAL) onPassed(passed func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.passed = passed
}

// tell sets the vector that capture has read back from markers.
func (f *fakeWAL) tell(low origin.Vector) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.low = low
}

// newPair makes two databases with the same schema and starts applying at the second.
func newPair(t *testing.T, s *pgtest.Server, schema string, peers ...string) *pair {
	t.Helper()
	return newPairOf(t, s, s, schema, schema, peers...)
}

// newPairOf is newPair with a server and a schema of its own for each side.
func newPairOf(t *testing.T, from, to *pgtest.Server, schema, schemaTo string, peers ...string) *pair {
	t.Helper()
	return newPairIn(t, from.NewDatabase(t), to.NewDatabase(t), schema, schemaTo, peers...)
}

// newPairIn is newPairOf for two databases that are there.
func newPairIn(t *testing.T, from, to *pgtest.Database, schema, schemaTo string, peers ...string) *pair {
	t.Helper()
	p := &pair{t: t, from: from, to: to, rels: map[uint32]*wire.Relation{}}
	p.from.Exec(t, schema)
	p.to.Exec(t, schemaTo)
	p.from.Exec(t, `CREATE PUBLICATION p FOR ALL TABLES WITH (publish_via_partition_root = true)`)
	p.from.Exec(t, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, p.slot())
	p.src = p.from.Connect(t)
	p.wal = &fakeWAL{lifted: map[origin.Stamp]origin.Stamp{}}
	if err := Setup(t.Context(), pgtest.Connect(t, p.to.DSN), SetupOptions{Cluster: p.to.Name, Node: "b", Peers: append(peers, "a")}); err != nil {
		t.Fatal(err)
	}
	p.start(peers...)
	t.Cleanup(func() { p.stop() })
	return p
}

func (p *pair) slot() string { return "pgb_" + p.from.Name + "_t" }

func (p *pair) start(peers ...string) {
	p.t.Helper()
	a, err := Open(p.t.Context(), Options{DSN: p.to.DSN, Cluster: p.to.Name, Node: "b", Peers: append(peers, "a"), SpoolDir: p.t.TempDir(), ParkedLimit: p.limit, Merge: p.merge,
		Now: func() time.Time { return time.Now().Add(time.Duration(p.ahead.Load())) }})
	if err != nil {
		p.t.Fatal(err)
	}
	p.a = a
	ctx, cancel := context.WithCancel(p.t.Context())
	ended := make(chan struct{})
	var end error
	go func() {
		defer close(ended)
		end = a.Run(ctx, p.wal, noFrames{})
	}()
	p.ended = ended
	p.stop = sync.OnceValue(func() error {
		cancel()
		<-ended
		return end
	})
}

// ship turns what was committed at the origin into one frame and feeds it. vectors gives the
// dependencies; large ships every transaction as a run.
func (p *pair) ship(up origin.Vector, large bool) {
	p.t.Helper()
	rows, err := p.src.Query(p.t.Context(), `SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, NULL,
		'proto_version', '1', 'publication_names', 'p', 'binary', 'true')`, p.slot())
	if err != nil {
		p.t.Fatal(err)
	}
	messages, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		p.t.Fatal(err)
	}
	body := wire.AppendDeps(nil, up, up)
	var changes []byte
	var begin wire.Begin
	types := map[uint32][2]string{}
	n := 0
	for _, m := range messages {
		switch m[0] {
		case 'B':
			p.seq++
			at := origin.Stamp(binary.BigEndian.Uint64(m[9:]))
			p.last = max(at, p.last+1, up.MaxStamp()+1)
			begin = wire.Begin{Seq: p.seq, Stamp: p.last, CommitTime: at, CommitLSN: binary.BigEndian.Uint64(m[1:]), XID: binary.BigEndian.Uint32(m[17:])}
			changes, n = nil, 0
		case 'Y':
			id := binary.BigEndian.Uint32(m[1:])
			names := strings.SplitN(string(m[5:]), "\x00", 3)
			types[id] = [2]string{names[0], names[1]}
		case 'R':
			r := parseRelation(m, types)
			p.rels[r.ID] = r
			changes = wire.AppendRelation(changes, r)
		case 'I', 'U', 'D':
			if id := binary.BigEndian.Uint32(m[1:]); n == 0 && p.rels[id] != nil {
				changes = wire.AppendRelation(changes, p.rels[id])
			}
			changes = wire.AppendRelation(changes, p.rels[binary.BigEndian.Uint32(m[1:])])
			changes = wire.AppendChange(changes, wire.Kind(m[0]), binary.BigEndian.Uint32(m[1:]), m[5:])
			n++
		case 'T':
			var ids []uint32
			for b := m[6:]; len(b) > 0; b = b[4:] {
				ids = append(ids, binary.BigEndian.Uint32(b))
				changes = wire.AppendRelation(changes, p.rels[ids[len(ids)-1]])
			}
			changes = wire.AppendTruncate(changes, m[5], ids)
		case 'C':
			if !large {
				body = append(append(wire.AppendBegin(body, begin), changes...), wire.AppendCommit(nil)...)
				continue
			}
			half := len(changes) / 2
			body = wire.AppendChunk(body, p.seq, 0, changes[:half])
			body = wire.AppendChunk(body, p.seq, uint64(half), changes[half:])
			body = wire.AppendLargeCommit(body, wire.LargeCommit{Begin: begin, Run: p.seq, Length: uint64(len(changes))})
		}
	}
	p.streamed++
	f := &wire.Frame{Header: wire.Header{Cluster: p.to.Name, Sender: "a", Origin: nodeA, WriterEpoch: 1, LastSeq: p.seq, LastStamp: p.last, Up: up, Low: up}, Body: body}
	p.frame = f
	if err := p.a.Feed(p.t.Context(), nodeA, p.streamed, f); err != nil {
		p.t.Fatal(err)
	}
}

func parseRelation(m []byte, types map[uint32][2]string) *wire.Relation {
	r := &wire.Relation{ID: binary.BigEndian.Uint32(m[1:])}
	b := m[5:]
	text := func() string {
		i := strings.IndexByte(string(b), 0)
		s := string(b[:i])
		b = b[i+1:]
		return s
	}
	r.Schema, r.Name = text(), text()
	r.ReplicaIdentity = b[0]
	n := binary.BigEndian.Uint16(b[1:])
	b = b[3:]
	for range n {
		c := wire.Column{Key: b[0]&1 != 0}
		b = b[1:]
		c.Name = text()
		c.TypeOID, c.Typmod = binary.BigEndian.Uint32(b), int32(binary.BigEndian.Uint32(b[4:]))
		c.TypeSchema, c.TypeName = types[c.TypeOID][0], types[c.TypeOID][1]
		b = b[8:]
		r.Columns = append(r.Columns, c)
	}
	return r
}

// await waits until everything shipped is applied.
func (p *pair) await() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 20*time.Second)
	defer cancel()
	err := p.a.progress.hold(ctx, origin.Vector{{Origin: nodeA, Seq: p.seq}}, origin.Origin{}, origin.Origin{}, func(origin.Entry) {})
	if errors.Is(err, context.DeadlineExceeded) {
		p.t.Fatalf("not applied: %+v; %v", p.a.Status(), p.stop())
	}
}

// do runs SQL at the origin, ships it, and waits until it is applied.
func (p *pair) do(sql string) {
	p.t.Helper()
	p.from.Exec(p.t, sql)
	p.ship(nil, false)
	p.await()
}

// same compares a query's rows at both nodes.
func (p *pair) same(sql string) {
	p.t.Helper()
	want, got := p.from.Query(p.t, sql), p.to.Query(p.t, sql)
	if strings.Join(want, "\n") != strings.Join(got, "\n") {
		p.t.Errorf("%s:\norigin %q\nhere   %q", sql, want, got)
	}
}

func (p *pair) status() OriginStatus {
	for _, s := range p.a.Status() {
		if s.Origin == nodeA {
			return s
		}
	}
	return OriginStatus{}
}

func intKey(n int) []wire.Value {
	return []wire.Value{{Format: wire.Binary, Data: binary.BigEndian.AppendUint32(nil, uint32(n))}}
}

func xmin(t *testing.T, p *pair) uint64 {
	n, err := strconv.ParseUint(p.to.Value(t, `SELECT pg_snapshot_xmin(pg_current_snapshot())`), 10, 64)
	if err != nil {
		t.Error(err)
	}
	return n
}

func parseStamp(t *testing.T, s string) origin.Stamp {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return origin.Stamp(n)
}

// awaitTrue polls what no event tells of: what another session or goroutine will have done.
func awaitTrue(t *testing.T, ok func() bool) {
	t.Helper()
	end := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("did not happen")
		}
	}
}

func awaitValue(t *testing.T, p *pair, sql, want string) {
	t.Helper()
	awaitTrue(t, func() bool { return pgtest.ValueShared(t, p.to.DSN, sql) == want })
}

// noFrames is Streams of a node whose own transactions touch no table that is merged.
type noFrames struct{}

func (noFrames) Reread(context.Context, origin.Origin, uint64, uint64, func(*wire.Frame) error) error {
	return nil
}
