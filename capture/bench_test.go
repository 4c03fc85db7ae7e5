package capture

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/wire"
)

// benchTable is a workbench whose frames go nowhere and which knows the table.
func benchTable(tb testing.TB) *workbench {
	w := newWorkbench(tb, 64<<10)
	w.tagger.pub = &sinkhole{recorder{first: 1, maxBody: 1 << 20, changed: make(chan struct{})}}
	w.ledger.pub = w.tagger.pub
	if err := w.play((&script{}).table(5, nil), 1<<20); err != nil {
		tb.Fatal(err)
	}
	w.tagger.del = nobody{}
	return w
}

// rowKinds are what a row's message holds behind the relation's id, by the message's letter.
func rowKinds(i uint32) map[rune][]any {
	text := strings.Repeat("x", 32)
	return map[rune][]any{'I': {'N', tuple(i, text)}, 'U': {'N', tuple(i, text)}, 'D': {'K', keyTuple(i)}}
}

// oneByOne is that many rows in transactions of so many.
func oneByOne(kind rune, rows, each int) []byte {
	s := &script{}
	for i := range rows {
		lsn := uint64(1000 + 16*(i/each))
		if i%each == 0 {
			s.begin(lsn, lsn, 7)
		}
		s.add(append([]any{kind, uint32(5)}, rowKinds(uint32(i))[kind]...)...)
		if i%each == each-1 {
			s.commit(lsn, lsn)
		}
	}
	return s.b
}

// rise gives the transactions of a script the positions and times that follow those of its last run: what comes again
// is passed over, and a time that comes again is lifted.
func rise(b []byte, by uint64) {
	const header = 1 + 4 + 1 + 24 // 'd', length, 'w' and its three positions
	for len(b) > 0 {
		n := 1 + int(binary.BigEndian.Uint32(b[1:]))
		m, numbers := b[header:n], []int(nil)
		switch m[0] {
		case msgBegin:
			numbers = []int{1, 9} // commit LSN, time
		case msgCommit:
			numbers = []int{2, 10, 18} // behind the flags: LSN, end, time
		}
		for _, at := range numbers {
			binary.BigEndian.PutUint64(m[at:], binary.BigEndian.Uint64(m[at:])+by)
		}
		b = b[n:]
	}
}

// TestWhatTransactionsAllocate: a row nothing, a commit as much as it tells about itself, with little for frames and
// buffers that grow.
func TestWhatTransactionsAllocate(t *testing.T) {
	const rows, slack = 1000, 20
	for kind, commit := range map[rune]int{'I': 2, 'U': 2, 'D': 3} {
		for _, each := range []int{1, rows} {
			w, b := benchTable(t), oneByOne(kind, rows, each)
			n := testing.AllocsPerRun(20, func() {
				if err := w.stitch.feed(context.Background(), b, w.session); err != nil {
					t.Fatal(err)
				}
				rise(b, 16*rows)
			})
			if most := float64(commit*rows/each + slack); n > most {
				t.Errorf("%d rows of kind %c, %d in a transaction: %v allocations, at most %v are allowed", rows, kind, each, n, most)
			}
		}
	}
}

// BenchmarkRows/kind/each=n: 1 000 rows from the walsender's bytes to a frame's, so many in a transaction.
func BenchmarkRows(b *testing.B) {
	const rows = 1000
	for _, kind := range []wire.Kind{wire.KindInsert, wire.KindUpdate, wire.KindDelete} {
		for _, each := range []int{1, rows} {
			b.Run(fmt.Sprintf("%c/each=%d", kind, each), func(b *testing.B) {
				w, data := benchTable(b), oneByOne(rune(kind), rows, each)
				b.ReportAllocs()
				b.SetBytes(int64(len(data)))
				for b.Loop() {
					if err := w.stitch.feed(context.Background(), data, w.session); err != nil {
						b.Fatal(err)
					}
					rise(data, 16*rows)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/rows, "ns/row")
			})
		}
	}
}
