package capture

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// TestMarkersBecomeDependencies: transactions carry the vectors of the markers that stand before them in the
// WAL (PROOF.md R7), marks tell which ids had ended (R11), and the header holds the state (R6).
func TestMarkersBecomeDependencies(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		// A server of its own: a snapshot's xmin depends on what runs in all databases.
		db := &pgtest.Database{Name: "marks", Major: s.Major, DSN: pgtest.NewCluster(t, s.Major, nil).SocketDSN("postgres")}
		b := newBench(t, db, `CREATE TABLE t (id int PRIMARY KEY)`)
		b.start(nil)
		if _, ok := b.capture.MarkFor(1 << 60); ok {
			t.Error("there is a mark before the first marker")
		}
		b.exec(`INSERT INTO t VALUES (1)`)
		b.mark(vector("b", 3), nil)
		b.exec(`INSERT INTO t VALUES (2)`)
		b.exec(`INSERT INTO t VALUES (3)`)
		b.mark(vector("b", 3, "c", 1), vector("b", 3))
		b.mark(vector("b", 2), vector("b", 1)) // an older one lowers nothing
		b.exec(`INSERT INTO t VALUES (4)`)
		var got strings.Builder
		frames := b.sentinel()
		for _, x := range b.transactions(frames) {
			fmt.Fprintf(&got, "%d up {%s} low {%s}\n", x.Seq, x.up, x.low)
		}
		want := "1 up {} low {}\n2 up {b:3} low {}\n3 up {b:3} low {}\n4 up {b:3 c:1} low {b:3}\n"
		if got.String() != want {
			t.Errorf("got\n%swant\n%s", got.String(), want)
		}
		if up, low := b.capture.Vectors(); !up.Equal(vector("b", 3, "c", 1)) || !low.Equal(vector("b", 3)) {
			t.Errorf("vectors %v, %v", up, low)
		}
		last := frames[len(frames)-1]
		if !last.Up.Equal(vector("b", 3, "c", 1)) || !last.Low.Equal(vector("b", 3)) || last.Mark.Seq != 3 {
			t.Errorf("last header: up %v low %v mark %+v", last.Up, last.Low, last.Mark)
		}
		b.checkMarks()
	})
}

// TestCommitRightBehindAMarker: a commit record that begins where a marker's ends is read, also when the connection is lost in
// between: PostgreSQL gives a message's end as its position (decode.c, logicalmsg_decode).
func TestCommitRightBehindAMarker(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		// A server of its own, on which nobody else writes WAL.
		server := pgtest.NewCluster(t, s.Major, map[string]string{"autovacuum": "off"})
		db := &pgtest.Database{Name: "behind", Major: s.Major, DSN: server.SocketDSN("postgres")}
		b := newBench(t, db, `CREATE TABLE t (id int PRIMARY KEY)`)
		b.start(nil)
		b.sentinel()
		writer, marker := db.Connect(t), db.Connect(t)
		for id := 1; ; id++ {
			if id == 20 {
				t.Fatal("no commit record begins where a marker's ends")
			}
			tx, err := writer.Begin(t.Context())
			b.must(err)
			_, err = tx.Exec(t.Context(), `INSERT INTO t VALUES ($1)`, id)
			b.must(err)
			var end uint64
			b.must(marker.QueryRow(t.Context(), `SELECT (pg_logical_emit_message(false, 'pgbridge',
				$1::bytea || int8send(pg_snapshot_xmin(pg_current_snapshot())::text::int8)) - '0/0')::int8`, wire.AppendMarker(nil, nil, nil, nil)).Scan(&end))
			b.must(b.capture.WaitPassed(t.Context(), end))
			_, err = marker.Exec(t.Context(), `SELECT pg_terminate_backend($1, 5000)`, b.walsender())
			b.must(err)
			b.must(tx.Commit(t.Context()))
			all := b.transactions(b.sentinel())
			if len(all) != id {
				t.Fatalf("%d of %d transactions were captured", len(all), id)
			}
			if all[id-1].CommitLSN == end {
				return
			}
		}
	})
}

// checkMarks asks for the mark of each seq: ids below it belong to transactions up to that seq.
func (b *bench) checkMarks() {
	b.t.Helper()
	known := read(b.t, b.pub.all()).done
	first, ok := b.capture.FirstMark()
	if !ok || first.Seq != 1 {
		b.t.Errorf("first mark %+v, %t", first, ok)
	}
	if _, ok := b.capture.MarkFor(0); ok {
		b.t.Error("a mark for what lies before the first marker")
	}
	for seq := uint64(1); seq <= 4; seq++ {
		xid, ok := b.capture.MarkFor(seq)
		if !ok {
			b.t.Fatalf("no mark for %d", seq)
		}
		for _, x := range known {
			if below := uint64(x.XID) < xid; below && x.Seq > seq {
				b.t.Errorf("mark %d for seq %d lies above transaction id %d of seq %d", xid, seq, x.XID, x.Seq)
			}
		}
	}
	one, _ := b.capture.MarkFor(2)
	three, _ := b.capture.MarkFor(3)
	if one != first.XID || three <= one {
		b.t.Errorf("marks for 2 and 3: %d, %d", one, three)
	}
}

// TestVectorsWithoutTransactions: vectors that no local transaction carries travel in frames of their own,
// not more of them than there is something new to say, and are durable before the slot is confirmed.
func TestVectorsWithoutTransactions(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		b := newBench(t, s.NewDatabase(t), "")
		b.start(nil)
		const n = 40
		var sql strings.Builder
		for i := 1; i <= n; i++ {
			fmt.Fprintf(&sql, "SELECT pg_logical_emit_message(false, 'pgbridge', '\\x%x'::bytea || int8send(1));\n",
				wire.AppendMarker(nil, vector("b", i), vector("b", i), nil))
		}
		b.exec(sql.String())
		frames := b.pub.await(t, "the last vector", func(f []*wire.Frame) bool {
			return len(f) > 0 && f[len(f)-1].Low.Equal(vector("b", n))
		})
		if len(frames) > n/2 {
			t.Errorf("%d frames for %d markers", len(frames), n)
		}
		for _, f := range frames {
			if len(f.Body) != 0 || f.LastSeq != 0 {
				t.Errorf("frame with %d bytes, seq %d", len(f.Body), f.LastSeq)
			}
		}
		b.mark(vector("b", n), vector("b", n)) // says nothing new
		b.sentinel()
		if got := b.pub.all(); len(got[len(frames)].Body) == 0 {
			t.Error("a frame without anything new")
		}
	})
}

// TestLowIsHeldBack: what may yet be taken back is not told others, though it is known here; they hear of it at a later marker,
// that has nothing else to say.
func TestLowIsHeldBack(t *testing.T) {
	t.Parallel()
	b := newBench(t, pgtest.SharedServer(t, pgtest.Newest(t)).NewDatabase(t), `CREATE TABLE t (id int PRIMARY KEY)`)
	b.start(nil)
	n := 0
	low := func() string {
		n++
		b.exec(fmt.Sprintf(`INSERT INTO t VALUES (%d)`, n))
		frames := b.sentinel()
		all := b.transactions(frames)
		return fmt.Sprintf("transaction {%s} frame {%s}", all[len(all)-1].low, frames[len(frames)-1].Low)
	}
	b.deletes.holdBack(true)
	b.mark(vector("b", 3), vector("b", 3))
	if got := low(); got != "transaction {} frame {}" {
		t.Errorf("held back: %s", got)
	}
	if _, known := b.capture.Vectors(); !known.Equal(vector("b", 3)) {
		t.Errorf("known here: %v", known)
	}
	b.deletes.holdBack(false)
	b.mark(vector("b", 3), vector("b", 3))
	if got := low(); got != "transaction {b:3} frame {b:3}" {
		t.Errorf("let go: %s", got)
	}
}

// TestWaitPassed: what was written before a flushed LSN has been told when WaitPassed returns (PROOF.md R13),
// even if nothing is written behind it.
func TestWaitPassed(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		b := newBench(t, s.NewDatabase(t), `CREATE TABLE t (id int PRIMARY KEY)`)
		b.exec(`INSERT INTO t SELECT generate_series(1, 20)`)
		b.start(nil)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		for i := 1; i <= 10; i++ {
			b.exec(fmt.Sprintf(`DELETE FROM t WHERE id = %d`, i))
			b.mark(vector("b", i), nil)
			var lsn int64
			fmt.Sscan(b.db.Value(t, `WITH x AS MATERIALIZED (SELECT pg_current_xact_id()) SELECT (pg_current_wal_insert_lsn() - '0/0')::int8 FROM x`), &lsn)
			if err := b.capture.WaitPassed(ctx, uint64(lsn)); err != nil {
				t.Fatal(err)
			}
			if told := b.deletes.told(); len(told) != i {
				t.Fatalf("%d deletes were told, %d were made", len(told), i)
			}
			if up, _ := b.capture.Vectors(); !up.Equal(vector("b", i)) {
				t.Fatalf("up %v after marker %d", up, i)
			}
			if b.capture.Passed() < uint64(lsn) {
				t.Fatal("passed is below what was waited for")
			}
		}
	})
}

// TestRecentXIDs: a commit that waits for its synchronous standby is captured before it is visible at home
// (PROOF.md F2, R14), and is recent until then.
func TestRecentXIDs(t *testing.T) {
	t.Parallel()
	cluster := pgtest.NewCluster(t, pgtest.Newest(t), nil)
	db := &pgtest.Database{Name: "recent", Major: pgtest.Newest(t), DSN: cluster.SocketDSN("postgres")}
	b := newBench(t, db, `CREATE TABLE t (id int PRIMARY KEY)`)
	b.start(nil)
	b.exec(`INSERT INTO t VALUES (1)`)
	pgtest.HoldCommits(t, db.DSN)
	waits := db.Connect(t)
	committed := make(chan error, 1)
	go func() {
		_, err := waits.Exec(context.Background(), `INSERT INTO t VALUES (2)`)
		committed <- err
	}()
	got := b.pub.await(t, "the commit that waits", func(f []*wire.Frame) bool { return len(read(t, f).done) == 2 })
	xid := read(t, got).done[1].XID
	if n := db.Value(t, `SELECT count(*) FROM t`); n != "1" {
		t.Fatalf("%s rows are visible: nothing waits", n)
	}
	b.mark(vector("b", 1), vector("b", 1)) // its xmin is that transaction's id, which still runs
	b.pub.await(t, "the marker", func(f []*wire.Frame) bool { return f[len(f)-1].Mark.XID > 0 })
	if recent := b.capture.RecentXIDs(); !slices.Equal(recent, []uint32{xid}) {
		t.Errorf("recent %v while %d waits", recent, xid)
	}
	pgtest.ReleaseCommits(t, db.DSN)
	if err := <-committed; err != nil {
		t.Fatal(err)
	}
	b.mark(vector("b", 2), vector("b", 2))
	b.pub.await(t, "the second marker", func(f []*wire.Frame) bool { return f[len(f)-1].Low.Equal(vector("b", 2)) })
	if recent := b.capture.RecentXIDs(); len(recent) != 0 {
		t.Errorf("recent %v when all is visible", recent)
	}
}

// TestLiftedStamps: a stamp above the commit time is found by commit time and key (PROOF.md R15), also by a
// Capture that learns of it from the stream.
func TestLiftedStamps(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		b := newBench(t, s.NewDatabase(t), `CREATE TABLE t (id int PRIMARY KEY, x text)`)
		b.pub.lazy = true
		b.start(nil)
		b.exec(`INSERT INTO t VALUES (1)`)
		b.mark(origin.Vector{{Origin: origin.Origin{Node: "b", Epoch: 1}, Seq: 1, Stamp: b.now() + 3_600_000_000}}, nil)
		b.exec(`INSERT INTO t VALUES (2);
UPDATE t SET x = 'x' WHERE id = 1;
INSERT INTO t SELECT generate_series(100, 300);
UPDATE t SET id = 3 WHERE id = 2;
DELETE FROM t WHERE id = 1`)
		frames := b.sentinel()
		b.end()
		check := func() {
			t.Helper()
			got := b.transactions(frames)
			for i, c := range []struct{ key, other int }{{1, 0}, {2, 1}, {1, 2}, {0, 0}, {3, 2}, {0, 1}} {
				x := got[i]
				if lifted := x.Stamp > x.CommitTime; lifted != (i > 0) {
					t.Errorf("transaction %d: stamp %d, commit time %d", x.Seq, x.Stamp, x.CommitTime)
				}
				if c.key != 0 && b.capture.LocalStamp(x.CommitTime, b.hash(c.key)) != x.Stamp {
					t.Errorf("transaction %d wrote key %d at stamp %d, not found", x.Seq, c.key, x.Stamp)
				}
				if c.other != 0 && b.capture.LocalStamp(x.CommitTime, b.hash(c.other)) != x.CommitTime {
					t.Errorf("transaction %d did not write key %d", x.Seq, c.other)
				}
			}
			many := got[3]
			if b.capture.LocalStamp(many.CommitTime, b.hash(77)) != many.Stamp {
				t.Error("a transaction with many keys counts as having written each")
			}
		}
		check()
		c, err := New(b.opts, b.pub, &buried{}, frames[len(frames)-1])
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range frames {
			if err := c.Restore(f); err != nil {
				t.Fatal(err)
			}
		}
		b.capture = c
		check()
		c.Forget(origin.Vector{{Origin: b.opts.Origin, Seq: b.transactions(frames)[1].Seq}})
		two, three := b.transactions(frames)[1], b.transactions(frames)[2]
		if c.LocalStamp(two.CommitTime, b.hash(2)) != two.CommitTime || c.LocalStamp(three.CommitTime, b.hash(1)) != three.Stamp {
			t.Error("exactly what is stable is forgotten")
		}
	})
}

// hash is the hash of a key of public.t.
func (b *bench) hash(id int) wire.KeyHash {
	v := wire.Value{Format: wire.Binary, Data: []byte{byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)}}
	return wire.NewKeyHasher("public", "t", []*wire.KeyType{{Form: wire.FormInteger}}).Hash([]wire.Value{v}, nil)
}
