package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

// readSlotOf is ReadSlot over a connection of its own.
func readSlotOf(t testing.TB, dsn, slot string) (SlotInfo, error) {
	p := NewPrimary(dsn)
	defer p.Close()
	return ReadSlot(t.Context(), p, slot)
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
	info, err := readSlotOf(t, db.DSN, name)
	if err != nil {
		t.Fatal(err)
	}
	b.opts = Options{
		DSN: db.DSN, Cluster: db.Name, Node: "a", Origin: origin.Origin{Node: "a", Epoch: 1}, WriterEpoch: 1,
		SystemID: info.SystemID, Timeline: info.Timeline, Slot: name, Publication: name, SpoolDir: t.TempDir(), ConfirmAfter: time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(b.log, nil)),
	}
	b.sealAtRandom()
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
		$1::bytea || int8send(pg_snapshot_xmin(pg_current_snapshot())::text::int8))`, wire.AppendMarker(nil, up, done, nil))
}

func vector(pairs ...any) origin.Vector {
	var v origin.Vector
	for i := 0; i < len(pairs); i += 2 {
		n := uint64(pairs[i+1].(int))
		v.Advance(origin.Entry{Origin: origin.Origin{Node: pairs[i].(string), Epoch: 1}, Seq: n, Stamp: origin.Stamp(n)})
	}
	return v
}
