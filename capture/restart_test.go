package capture

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// TestRestartGivesTheSame is the law of PROOF.md R5 and R6: whoever goes on behind any frame of the stream
// gives the same seq, stamp and dependencies to the same transactions.
func TestRestartGivesTheSame(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		r := rand.New(rand.NewPCG(seed, 1))
		b := newBench(t, s.NewDatabase(t), `
			CREATE TABLE t (id int PRIMARY KEY, x text);
			CREATE TABLE f (id int PRIMARY KEY, x text);
			ALTER TABLE f REPLICA IDENTITY FULL`)
		smallMemory(b)
		b.opts.FrameBytes = MinFrameBytes
		b.pub.lazy = true // the slot stays where it is, so that all can be read again
		b.start(nil)
		b.history(r)
		frames := b.sentinel()
		b.end()
		want := read(t, frames).done
		b.checkRestore()
		info, err := readSlotOf(t, b.db.DSN, b.opts.Slot)
		if err != nil || info.ConfirmedLSN > frames[0].ResumeLSN {
			t.Fatalf("slot is confirmed up to %X, nothing is durable: %v", info.ConfirmedLSN, err)
		}
		large := slices.ContainsFunc(want, func(x captured) bool { return x.large })
		lifted := slices.ContainsFunc(want, func(x captured) bool { return x.Stamp > x.CommitTime })
		if !large || !lifted {
			t.Fatalf("history without a large (%t) or a lifted (%t) transaction proves less", large, lifted)
		}
		cuts := make([]int, 6)
		for i := range cuts {
			cuts[i] = r.IntN(len(frames))
		}
		slices.Sort(cuts) // the slot follows the tail
		for _, cut := range cuts {
			b.again(frames, cut, want)
		}
	})
}

// again captures anew behind frames[:cut].
func (b *bench) again(frames []*wire.Frame, cut int, want []captured) {
	b.t.Helper()
	var tail *wire.Frame
	if cut > 0 {
		tail = frames[cut-1]
	}
	b.pub = newRecorder()
	b.pub.lazy = true
	b.pub.first = uint64(cut) + 1
	b.deletes = &buried{}
	b.opts.WriterEpoch++
	if tail != nil && tail.LastSeq == want[len(want)-1].Seq {
		return // nothing is behind it
	}
	b.start(tail)
	rest := b.pub.await(b.t, fmt.Sprintf("%d transactions behind frame %d", len(want), cut), func(f []*wire.Frame) bool {
		return len(f) > 0 && f[len(f)-1].LastSeq >= want[len(want)-1].Seq
	})
	b.end()
	var before uint64
	if tail != nil {
		before = tail.LastSeq
	}
	got := read(b.t, rest).done
	for i, x := range got[:min(len(got), len(want)-int(before))] {
		w := want[int(before)+i]
		if x.Begin != w.Begin || !x.up.Equal(w.up) || !x.low.Equal(w.low) {
			b.t.Fatalf("behind frame %d:\n%+v up %v low %v, before it was\n%+v up %v low %v", cut, x.Begin, x.up, x.low, w.Begin, w.up, w.low)
		}
		if !slices.Equal(x.rows, w.rows) {
			b.t.Fatalf("behind frame %d: transaction %d has\n%s\nbefore it had\n%s", cut, x.Seq, strings.Join(x.rows, "\n"), strings.Join(w.rows, "\n"))
		}
	}
	if len(got) < len(want)-int(before) {
		b.t.Fatalf("%d transactions behind frame %d, want %d", len(got), cut, len(want)-int(before))
	}
}

// history writes concurrently from several sessions, with markers in between.
func (b *bench) history(r *rand.Rand) {
	b.t.Helper()
	conns := make([]*pgx.Conn, 3)
	open := make([]pgx.Tx, len(conns))
	for i := range conns {
		conns[i] = b.db.Connect(b.t)
	}
	ctx := b.t.Context()
	seq, next := 0, 0
	for range 120 {
		i := r.IntN(len(conns))
		if r.IntN(6) == 0 {
			seq++
			up := origin.Vector{{Origin: origin.Origin{Node: "b", Epoch: 1}, Seq: uint64(seq), Stamp: b.now() + origin.Stamp(r.IntN(3)*1_000_000)}}
			var done origin.Vector
			if r.IntN(2) == 0 {
				done = up
			}
			b.mark(up, done)
		}
		if open[i] == nil {
			tx, err := conns[i].Begin(ctx)
			if err != nil {
				b.t.Fatal(err)
			}
			open[i] = tx
		}
		rows := 1
		if r.IntN(8) == 0 {
			rows = 400
		}
		b.change(ctx, open[i], r, &next, rows)
		switch r.IntN(4) {
		case 0:
			b.must(open[i].Rollback(ctx))
			open[i] = nil
		case 1, 2:
			b.must(open[i].Commit(ctx))
			open[i] = nil
		}
	}
	for _, tx := range open {
		if tx != nil {
			b.must(tx.Commit(ctx))
		}
	}
}

// change writes some rows within a transaction, at times in a subtransaction that is rolled back.
func (b *bench) change(ctx context.Context, tx pgx.Tx, r *rand.Rand, next *int, rows int) {
	b.t.Helper()
	sub := r.IntN(3) == 0
	exec := func(sql string) {
		b.t.Helper()
		_, err := tx.Exec(ctx, sql)
		b.must(err)
	}
	if sub {
		exec("SAVEPOINT s")
	}
	table := []string{"t", "f"}[r.IntN(2)]
	*next += rows
	exec(fmt.Sprintf("INSERT INTO %s SELECT i, repeat('x', 200) FROM generate_series(%d, %d) i", table, *next-rows+1, *next))
	switch r.IntN(3) {
	case 0:
		exec(fmt.Sprintf("UPDATE %s SET id = -id WHERE id = %d", table, *next))
	case 1:
		exec(fmt.Sprintf("DELETE FROM %s WHERE id BETWEEN %d AND %d", table, *next-rows/2, *next))
	}
	if sub && r.IntN(2) == 0 {
		exec("ROLLBACK TO s")
	}
}

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) now() origin.Stamp {
	var us int64
	fmt.Sscan(b.db.Value(b.t, "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8 - 946684800000000"), &us)
	return origin.Stamp(us)
}
