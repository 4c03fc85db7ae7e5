package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pgbridge/pgbridge/integration/pgcluster"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/wire"
)

// TestKeepalivesWhilePublishWaits: a broker that is away for longer than wal_sender_timeout does not cost
// the connection to the server (invariant 6).
func TestKeepalivesWhilePublishWaits(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		b := newBench(t, s.NewDatabase(t), `CREATE TABLE t (id int PRIMARY KEY, x text)`)
		b.db.Exec(t, "ALTER DATABASE "+b.db.Name+" SET wal_sender_timeout = '2s'")
		open := b.pub.block()
		b.opts.FrameBytes = MinFrameBytes
		b.start(nil)
		// More than all buffers on the way hold, so that the server cannot write either.
		b.exec(`INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 10000) i`)
		pid := b.walsender()
		deadline := time.Now().Add(5 * time.Second)
		conn := b.db.Connect(t)
		for time.Now().Before(deadline) { // each round trip is an event of the server's
			var n int
			if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_replication, pg_sleep(0.1) WHERE pid = $1`, pid).Scan(&n); err != nil || n != 1 {
				t.Fatalf("walsender is gone while publish waits: %v", err)
			}
		}
		open()
		if got := b.transactions(b.sentinel()); len(got) != 1 || len(got[0].rows) != 10000 {
			t.Errorf("%d transactions", len(got))
		}
		if st := b.capture.Status(); st.Reconnects != 0 {
			t.Errorf("%d reconnects", st.Reconnects)
		}
	})
}

// walsender returns the process that serves the slot, once there is one.
func (b *bench) walsender() int {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	conn := b.db.Connect(b.t)
	for {
		var pid *int
		err := conn.QueryRow(ctx, `SELECT active_pid FROM pg_replication_slots, pg_sleep(0.01) WHERE slot_name = $1`, b.opts.Slot).Scan(&pid)
		if err != nil {
			b.t.Fatal(err)
		}
		if pid != nil {
			return *pid
		}
	}
}

// TestReconnect: a lost connection costs nothing and repeats nothing, wherever it is lost, also within a
// transaction and while a run is open.
func TestReconnect(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		b := newBench(t, s.NewDatabase(t), `CREATE TABLE t (id int PRIMARY KEY, x text)`)
		smallMemory(b)
		b.opts.FrameBytes = MinFrameBytes
		b.start(nil)
		long, err := b.db.Connect(t).Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := long.Exec(t.Context(), `INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(100001, 102000) i`); err != nil {
			t.Fatal(err)
		}
		b.awaitRuns(1)
		const rounds = 4
		for i := range rounds {
			b.exec(fmt.Sprintf(`INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(%d, %d) i`, i*1000+1, i*1000+10))
			pid := b.walsender()
			b.exec(fmt.Sprintf(`INSERT INTO t SELECT i, repeat('x', 20) FROM generate_series(%d, %d) i;
SELECT pg_terminate_backend(%d, 5000)`, i*1000+11, i*1000+1000, pid))
		}
		if err := long.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		frames := b.sentinel()
		got := b.transactions(frames)
		ids := map[string]int{}
		for i, x := range got {
			if x.Seq != uint64(i+1) {
				t.Errorf("transaction %d has seq %d", i+1, x.Seq)
			}
			for _, r := range x.rows {
				ids[r]++
			}
		}
		if len(got) != 2*rounds+1 || len(ids) != rounds*1000+2000 {
			t.Errorf("%d transactions with %d different rows", len(got), len(ids))
		}
		for r, n := range ids {
			if n != 1 {
				t.Fatalf("%d times %s", n, r)
			}
		}
		if r := read(t, frames); r.aborted == 0 || len(r.runs) != 0 {
			t.Errorf("%d runs were given up, %d are open", r.aborted, len(r.runs))
		}
		if st := b.capture.Status(); st.Reconnects < rounds {
			t.Errorf("%d reconnects", st.Reconnects)
		}
		b.checkBack()
	})
}

// TestServerStopsWhilePublishWaits: a server that is stopped waits for its walsenders; a bridge whose broker
// is away must not keep it (invariant 6). It goes on when the server is back.
func TestServerStopsWhilePublishWaits(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		cluster := pgtest.NewCluster(t, s.Major, nil)
		db := &pgtest.Database{Name: "stops", Major: s.Major, DSN: cluster.SocketDSN("postgres")}
		b := newBench(t, db, `CREATE TABLE t (id int PRIMARY KEY, x text)`)
		b.opts.FrameBytes = MinFrameBytes
		b.start(nil)
		b.sentinel()
		open := b.pub.block()
		b.exec(`INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 20000) i`)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := cluster.Stop(ctx, pgcluster.Fast); err != nil {
			t.Fatal(err)
		}
		open()
		if err := cluster.Restart(ctx); err != nil {
			t.Fatal(err)
		}
		if got := b.transactions(b.sentinel()); len(got) != 1 || len(got[0].rows) != 20000 {
			t.Errorf("%d transactions", len(got))
		}
	})
}

// TestConfirmsWhatIsDurable: the slot never gets ahead of durable frames (invariant 1), nor of a delete that
// is held (PROOF.md R20), and follows when it may.
func TestConfirmsWhatIsDurable(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		b := newBench(t, s.NewDatabase(t), `CREATE TABLE t (id int PRIMARY KEY)`)
		b.db.Exec(t, "ALTER DATABASE "+b.db.Name+" SET wal_sender_timeout = '200ms'") // makes it report often
		b.pub.lazy = true
		begin := b.confirmed()
		b.start(nil)
		b.exec(`INSERT INTO t VALUES (1)`)
		b.sentinel()
		b.exec(`INSERT INTO t VALUES (2)`)
		frames := b.sentinel()
		b.reports(3)
		if lsn := b.confirmed(); lsn != begin {
			t.Errorf("slot is confirmed up to %X before anything is durable", lsn)
		}
		half := len(frames) / 2
		b.pub.settle(uint64(half))
		b.awaitConfirmed(frames[half-1].ResumeLSN)
		b.deletes.mu.Lock()
		b.deletes.hold = frames[len(frames)-1].ResumeLSN - 1
		b.deletes.mu.Unlock()
		b.pub.settle(uint64(len(frames)))
		b.awaitConfirmed(frames[len(frames)-1].ResumeLSN - 2)
		b.reports(3)
		if lsn := b.confirmed(); lsn != frames[len(frames)-1].ResumeLSN-2 {
			t.Errorf("slot is confirmed up to %X, held is %X", lsn, b.deletes.hold)
		}
		b.deletes.mu.Lock()
		b.deletes.hold = 0
		b.deletes.mu.Unlock()
		b.awaitConfirmed(frames[len(frames)-1].ResumeLSN)
	})
}

func (b *bench) confirmed() uint64 {
	b.t.Helper()
	info, err := readSlotOf(b.t, b.db.DSN, b.opts.Slot)
	if err != nil {
		b.t.Fatal(err)
	}
	return info.ConfirmedLSN
}

// awaitConfirmed waits until the slot is confirmed up to exactly lsn.
func (b *bench) awaitConfirmed(lsn uint64) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	conn := b.db.Connect(b.t)
	var got uint64
	for got != lsn {
		err := conn.QueryRow(ctx, `SELECT (confirmed_flush_lsn - '0/0')::int8 FROM pg_replication_slots, pg_sleep(0.01) WHERE slot_name = $1`, b.opts.Slot).Scan(&got)
		if err != nil {
			b.t.Fatalf("slot is confirmed up to %X, waited for %X: %v", got, lsn, err)
		}
		if got > lsn {
			b.t.Fatalf("slot is confirmed up to %X, beyond %X", got, lsn)
		}
	}
}

// reports waits until the server has heard n times of capture.
func (b *bench) reports(n int) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	conn := b.db.Connect(b.t)
	seen := map[string]bool{}
	for len(seen) < n {
		var at *string
		err := conn.QueryRow(ctx, `SELECT max(reply_time)::text FROM pg_stat_replication r, pg_sleep(0.01)
			WHERE pid = (SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1)`, b.opts.Slot).Scan(&at)
		if err != nil {
			b.t.Fatal(err)
		}
		if at != nil {
			seen[*at] = true
		}
	}
}

// TestIdleWALIsConfirmed: WAL without anything of ours does not pile up behind the slot, and a frame says so
// before the slot does.
func TestIdleWALIsConfirmed(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		b := newBench(t, s.NewDatabase(t), "")
		b.opts.StatusInterval = 100 * time.Millisecond
		b.start(nil)
		frames := b.sentinel()
		before := frames[len(frames)-1].ResumeLSN
		b.exec(`CREATE TABLE other AS SELECT i, repeat('x', 100) FROM generate_series(1, 20000) i`)
		frames = b.pub.await(t, "an idle advance", func(f []*wire.Frame) bool {
			return f[len(f)-1].ResumeLSN > before+idleAdvance
		})
		last := frames[len(frames)-1]
		if len(last.Body) != 0 || last.LastSeq != 1 {
			t.Errorf("frame with %d bytes and seq %d", len(last.Body), last.LastSeq)
		}
		b.awaitAtLeast(last.ResumeLSN)
		b.end()
		b.start(last)
		b.sentinel()
	})
}

func (b *bench) awaitAtLeast(lsn uint64) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	conn := b.db.Connect(b.t)
	for ok := false; !ok; {
		err := conn.QueryRow(ctx, `SELECT confirmed_flush_lsn - '0/0' >= $2 FROM pg_replication_slots, pg_sleep(0.01) WHERE slot_name = $1`,
			b.opts.Slot, int64(lsn)).Scan(&ok)
		if err != nil {
			b.t.Fatal(err)
		}
	}
}

// TestStartIsRefused: what would lose transactions in silence ends Run, with the thing, the fault and the
// mend.
func TestStartIsRefused(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		b := newBench(t, s.NewDatabase(t), "")
		b.start(nil)
		frames := b.sentinel()
		b.awaitConfirmed(frames[len(frames)-1].ResumeLSN)
		b.end()
		tail := *frames[len(frames)-1]
		refused := func(name, code string, change func(*Options, *wire.Frame)) {
			t.Helper()
			o, f := b.opts, tail
			change(&o, &f)
			c, err := New(o, b.pub, b.deletes, &f)
			if err == nil {
				err = b.fails(c)
			}
			var check *CheckError
			if !errors.As(err, &check) || !check.Has(code) {
				t.Errorf("%s: run ended with %v", name, err)
			}
		}
		refused("rewound stream", CodeSlotAhead, func(o *Options, f *wire.Frame) { f.ResumeLSN = frames[0].ResumeLSN - 100 })
		refused("older server", CodeServerBehind, func(o *Options, f *wire.Frame) { f.ResumeLSN += 1 << 40 })
		refused("another server", CodeServerOther, func(o *Options, f *wire.Frame) { o.SystemID++ })
		refused("another origin's stream", CodeStreamOther, func(o *Options, f *wire.Frame) { f.Origin.Node = "b" })
		refused("another cluster's stream", CodeStreamOther, func(o *Options, f *wire.Frame) { f.Cluster = "x" })
		refused("wrong database", CodeConnect, func(o *Options, f *wire.Frame) {
			o.DSN = strings.Replace(o.DSN, b.db.Name, "nowhere", 1)
		})
		b.exec(`SELECT pg_drop_replication_slot('` + b.opts.Slot + `')`)
		refused("dropped slot", CodeSlotMissing, func(o *Options, f *wire.Frame) {})
		b.exec(`SELECT pg_create_logical_replication_slot('` + b.opts.Slot + `', 'test_decoding')`)
		refused("another plugin's slot", CodeSlotKind, func(o *Options, f *wire.Frame) {})
		b.exec(`SELECT pg_drop_replication_slot('` + b.opts.Slot + `')`)
		if err := Setup(t.Context(), b.checkOptions()); err != nil {
			t.Fatal(err)
		}
		refused("slot made anew", CodeSlotAhead, func(o *Options, f *wire.Frame) {})
	})
}

// TestDroppedUnderway: PostgreSQL has one code for a slot and for a publication that is not there. Which it is
// decides what a person has to do. From 18 on it says nothing of a publication: see TableWatch.
func TestDroppedUnderway(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		b := newBench(t, s.NewDatabase(t), "")
		wants := func(err error, code string) {
			t.Helper()
			var check *CheckError
			if !errors.As(err, &check) || !check.Has(code) {
				t.Errorf("want %s: %v", code, err)
			}
		}
		name := ident(b.opts.Publication)
		c, err := New(b.opts, b.pub, b.deletes, nil)
		if err != nil {
			t.Fatal(err)
		}
		b.exec(`DROP PUBLICATION ` + name + `;
INSERT INTO sentinel VALUES (-1)`)
		if s.Major < 18 {
			wants(b.fails(c), CodePublicationMissing)
		}
		b.exec(`CREATE PUBLICATION ` + name + ` FOR TABLE sentinel`)
		if c, err = New(b.opts, b.pub, b.deletes, nil); err != nil {
			t.Fatal(err)
		}
		if s.Major < 18 {
			wants(b.fails(c), CodePublicationMissing) // the change is still decoded as of then
		}
		session := newSession(c, nil)
		if err := session.undefined(t.Context(), &pgconn.PgError{Message: "type 5 does not exist"}); err != nil {
			t.Errorf("of something else: %v", err)
		}
		b.exec(`SELECT pg_drop_replication_slot('` + b.opts.Slot + `')`)
		wants(session.undefined(t.Context(), &pgconn.PgError{Message: "words"}), CodeSlotMissing)
	})
}

// TestInvalidatedSlot: a slot whose WAL was removed ends a running Capture, and a new one does not start.
func TestInvalidatedSlot(t *testing.T) {
	t.Parallel()
	for _, major := range pgtest.Versions(t) {
		t.Run(fmt.Sprintf("pg%d", major), func(t *testing.T) {
			t.Parallel()
			cluster := pgtest.NewCluster(t, major, map[string]string{"max_slot_wal_keep_size": "1MB", "wal_keep_size": "0", "max_wal_size": "64MB", "min_wal_size": "32MB"})
			db := &pgtest.Database{Name: "lost", Major: major, DSN: cluster.SocketDSN("postgres")}
			b := newBench(t, db, "")
			b.start(nil)
			frames := b.sentinel()
			b.end()
			for range 6 {
				b.exec(`SELECT pg_switch_wal();
CREATE TABLE filler AS SELECT repeat('x', 100) FROM generate_series(1, 10000);
DROP TABLE filler`)
			}
			b.exec(`CHECKPOINT`)
			c, err := New(b.opts, b.pub, b.deletes, frames[len(frames)-1])
			if err != nil {
				t.Fatal(err)
			}
			var found *CheckError
			if err := b.fails(c); !errors.As(err, &found) || !found.Has(CodeSlotInvalidated) {
				t.Errorf("run ended with %v", err)
			}
			if err := Check(t.Context(), b.checkOptions()); !errors.As(err, &found) || !found.Has(CodeSlotInvalidated) {
				t.Errorf("check found %v", err)
			}
			if err := Setup(t.Context(), b.checkOptions()); !errors.As(err, &found) || !found.Has(CodeSlotInvalidated) {
				t.Errorf("setup found %v", err)
			}
			if info, err := readSlotOf(t, db.DSN, b.opts.Slot); err != nil || info.State != SlotInvalidated {
				t.Errorf("slot %+v, %v", info, err)
			}
		})
	}
}

// TestWaitsForTheServer: a server that is away is waited for, and Status says so.
func TestWaitsForTheServer(t *testing.T) {
	t.Parallel()
	cluster := pgtest.NewCluster(t, pgtest.Newest(t), nil)
	db := &pgtest.Database{Name: "away", Major: pgtest.Newest(t), DSN: cluster.SocketDSN("postgres")}
	b := newBench(t, db, "")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	b.start(nil)
	b.sentinel()
	if st := b.capture.Status(); st.State != StateStreaming || st.Waiting != "" {
		t.Errorf("status %q %q while it streams", st.State, st.Waiting)
	}
	if err := cluster.Kill(); err != nil {
		t.Fatal(err)
	}
	for st := b.capture.Status(); st.State != StateConnecting || st.Waiting == ""; st = b.capture.Status() {
		if ctx.Err() != nil {
			t.Fatalf("status %q %q while the server is away", st.State, st.Waiting)
		}
	}
	if err := cluster.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	frames := b.sentinel()
	if done := read(t, frames).done; !slices.IsSortedFunc(done, func(x, y captured) int { return int(x.Seq) - int(y.Seq) }) || len(done) != 2 {
		t.Errorf("captured %v", done)
	}
}

// TestLoopWaitsForTheReason: the receiver closes its channel before the session hears why.
func TestLoopWaitsForTheReason(t *testing.T) {
	w := newWorkbench(t, MinFrameBytes)
	w.wire.full = make(chan []byte)
	close(w.wire.full)
	w.life, w.end = context.WithCancelCause(t.Context())
	why := &lostError{io.EOF}
	time.AfterFunc(20*time.Millisecond, func() { w.end(why) })
	if err := w.loop(t.Context()); err != why {
		t.Errorf("the loop ended with %v", err)
	}
}
