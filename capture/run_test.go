package capture

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// smallMemory makes the server stream transactions of more than 64 kB.
func smallMemory(b *bench) {
	b.t.Helper()
	b.db.Exec(b.t, "ALTER DATABASE "+b.db.Name+" SET logical_decoding_work_mem = '64kB'")
}

// TestStreamedTransactions: transactions that pgoutput streams while they are in progress arrive whole, at
// the place of their commit, without what their subtransactions rolled back.
func TestStreamedTransactions(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		b := newBench(t, s.NewDatabase(t), `CREATE TABLE t (id int PRIMARY KEY, x text)`)
		smallMemory(b)
		b.opts.FrameBytes = 16 << 10
		b.start(nil)
		x, y := b.db.Connect(t), b.db.Connect(t)
		run := func(sql string) {
			t.Helper()
			if _, err := y.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		begin, err := x.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		must := func(sql string) {
			t.Helper()
			if _, err := begin.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		must(`INSERT INTO t SELECT i, repeat('a', 50) FROM generate_series(1, 2000) i`)
		must(`SAVEPOINT s1`)
		must(`INSERT INTO t SELECT i, repeat('b', 50) FROM generate_series(10001, 12000) i`)
		must(`DELETE FROM t WHERE id BETWEEN 1 AND 1500`)
		b.awaitRuns(1)
		run(`INSERT INTO t VALUES (-1, 'between')`) // commits first, so it gets the lower seq
		must(`ROLLBACK TO s1`)
		must(`SAVEPOINT s2`)
		must(`DELETE FROM t WHERE id BETWEEN 1 AND 10`)
		must(`INSERT INTO t SELECT i, repeat('c', 50) FROM generate_series(20001, 22000) i`)
		must(`RELEASE s2`)
		must(`UPDATE t SET id = 11011 WHERE id = 11`)
		if err := begin.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		run(`BEGIN; INSERT INTO t SELECT i, repeat('d', 50) FROM generate_series(30001, 32000) i; ROLLBACK`)
		run(`BEGIN; SAVEPOINT s; INSERT INTO t SELECT i, repeat('e', 50) FROM generate_series(40001, 42000) i; ROLLBACK TO s; COMMIT`)
		run(`INSERT INTO t VALUES (-2, 'after')`)
		got := b.transactions(b.sentinel())
		if len(got) != 3 {
			t.Fatalf("%d transactions", len(got))
		}
		if got[0].Seq != 1 || got[1].Seq != 2 || got[2].Seq != 3 || !got[1].large || got[0].large {
			t.Errorf("seqs %d %d %d, large %t %t", got[0].Seq, got[1].Seq, got[2].Seq, got[0].large, got[1].large)
		}
		count := func(part string) (n int) {
			for _, r := range got[1].rows {
				if strings.Contains(r, part) {
					n++
				}
			}
			return n
		}
		for part, want := range map[string]int{"x=aa": 2001, "x=bb": 0, "x=cc": 2000, "delete": 10, "update": 1} {
			if n := count(part); n != want {
				t.Errorf("%d rows with %q, want %d", n, part, want)
			}
		}
		var want []string
		for i := 1; i <= 11; i++ {
			want = append(want, fmt.Sprintf("2 delete public.t id=%d", i))
		}
		told := b.deletes.told()
		if !slices.Equal(told[:min(len(told), 11)], want) {
			t.Errorf("told %q", told)
		}
		if st := b.capture.Status(); st.OpenRuns != 0 {
			t.Errorf("%d runs are open", st.OpenRuns)
		}
		b.checkBack()
		b.checkRestore()
	})
}

// awaitRuns waits until n runs have chunks in the stream.
func (b *bench) awaitRuns(n int) {
	b.t.Helper()
	deadline := b.t.Context()
	for {
		changed := b.pub.Changed()
		if len(openRuns(b.t, b.pub)) >= n {
			return
		}
		select {
		case <-changed:
		case <-deadline.Done():
			b.t.Fatal("no run begins")
		}
	}
}

func openRuns(t testing.TB, pub *recorder) []uint64 {
	r := read(t, pub.all())
	var ids []uint64
	for id := range r.runs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// checkBack checks each frame's Back against where the chunks of open runs really begin.
func (b *bench) checkBack() {
	b.t.Helper()
	begins := map[uint64]uint64{}
	r := &reader{t: b.t, runs: nil}
	r.runs = read(b.t, nil).runs
	for i, f := range b.pub.all() {
		r.frame(f)
		seq := b.pub.first + uint64(i)
		want := uint64(0)
		for id := range begins {
			if r.runs[id] == nil {
				delete(begins, id)
			}
		}
		for id := range r.runs {
			if begins[id] == 0 {
				begins[id] = seq
			}
			if want == 0 || begins[id] < want {
				want = begins[id]
			}
		}
		if f.Back != want {
			b.t.Errorf("frame %d says back %d, its oldest open run begins in %d", seq, f.Back, want)
		}
	}
}

// TestLargeRows: a row may be larger than a frame, than the stitcher's limit, and than what is held.
func TestLargeRows(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		t.Parallel()
		for _, streaming := range []bool{false, true} {
			t.Run(fmt.Sprintf("streaming=%t", streaming), func(t *testing.T) {
				largeRows(t, s, streaming)
			})
		}
	})
}

func largeRows(t *testing.T, s *pgtest.Server, streaming bool) {
	b := newBench(t, s.NewDatabase(t), `
		CREATE TABLE t (x text, id int PRIMARY KEY, y text);
		CREATE TABLE f (x text, id int PRIMARY KEY, y text);
		ALTER TABLE f REPLICA IDENTITY FULL`)
	if streaming {
		smallMemory(b)
	}
	b.opts.FrameBytes = 64 << 10
	b.start(nil)
	b.exec(`INSERT INTO t VALUES ('small', 1, 'one');
INSERT INTO t VALUES (repeat('x', 70000), 2, 'frame');
INSERT INTO t VALUES (repeat('x', 3000000), 3, repeat('y', 2000000));
INSERT INTO f VALUES (repeat('x', 3000000), 1, 'f'), ('small', 2, 'f');
UPDATE f SET id = 3 WHERE id = 1;
UPDATE f SET y = 'g' WHERE id = 3;
DELETE FROM f WHERE id = 3;
BEGIN;
INSERT INTO t VALUES ('a', 10, 'a');
INSERT INTO t VALUES (repeat('z', 5000000), 11, NULL);
UPDATE t SET id = 12 WHERE id = 10;
COMMIT`)
	got := b.transactions(b.sentinel())
	var text strings.Builder
	for _, x := range got {
		text.WriteString(x.String())
	}
	want := `1 up {} low {}
  insert public.t x=small id=1 y=one
2 large up {} low {}
  insert public.t x=<70000 bytes> id=2 y=frame
3 large up {} low {}
  insert public.t x=<3000000 bytes> id=3 y=<2000000 bytes>
4 large up {} low {}
  insert public.f x=<3000000 bytes> id=1 y=f
  insert public.f x=small id=2 y=f
5 large up {} low {}
  update public.f whole x=<3000000 bytes> id=1 y=f to x=UNCHANGED id=3 y=f
6 large up {} low {}
  update public.f whole x=<3000000 bytes> id=3 y=f to x=UNCHANGED id=3 y=g
7 large up {} low {}
  delete public.f whole x=<3000000 bytes> id=3 y=g
8 large up {} low {}
  insert public.t x=a id=10 y=a
  insert public.t x=<5000000 bytes> id=11 y=NULL
  update public.t key x=NULL id=10 y=NULL to x=a id=12 y=a
`
	if text.String() != want {
		t.Errorf("got\n%swant\n%s", text.String(), want)
	}
	told := strings.Join(b.deletes.told(), "\n")
	if want := "5 delete public.f id=1\n7 delete public.f id=3\n8 delete public.t id=10"; told != want {
		t.Errorf("told\n%s", told)
	}
	b.checkBack()
	b.checkRestore()
}
