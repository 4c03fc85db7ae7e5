package apply

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/pgbridge/pgbridge/wire"
)

// copies takes the rows of each COPY out of messages for the server, all of which have three columns; so many statements stand between them.
func copies(t *testing.T, out []byte) (rows [][]uint64, statements int) {
	t.Helper()
	var data []byte
	for len(out) > 0 {
		kind, size := out[0], binary.BigEndian.Uint32(out[1:])
		body := out[5 : 1+size]
		out = out[1+size:]
		switch kind {
		case 'B':
			statements++
		case 'd':
			data = append(data, body...)
		case 'c':
			var ids []uint64
			whole, ok := bytes.CutPrefix(data, copyHeader)
			if !ok {
				t.Fatalf("a COPY begins with %x", data)
			}
			for !bytes.Equal(whole, copyTrailer) {
				whole = whole[2:]
				ids = append(ids, binary.BigEndian.Uint64(whole[4:]))
				for range 3 {
					whole = whole[4+binary.BigEndian.Uint32(whole):]
				}
			}
			rows, data = append(rows, ids), nil
		}
	}
	return rows, statements
}

// TestInsertsAreCutIntoCopies: rows go out in their order, all of them, in COPYs that are short first, and then in a single one.
func TestInsertsAreCutIntoCopies(t *testing.T) {
	for n, want := range map[int][]int{
		runMin:                       {runMin},
		copyRows:                     {copyRows},
		copyRows + runMin:            {copyRows, runMin},
		copyRows + 1:                 {copyRows}, // and one by itself
		2*copyRows + 50:              {copyRows, copyRows, 50},
		shortCopies + 3*copyRows + 7: append(slices.Repeat([]int{copyRows}, shortCopies/copyRows), 3*copyRows+7),
	} {
		p := newBenchPlanner(t)
		p.replan(t, benchTxn(wire.KindInsert, 1, 0, n, benchRelation()))
		rows, statements := copies(t, p.out)
		var sizes []int
		next := uint64(0)
		for _, ids := range rows {
			sizes = append(sizes, len(ids))
			for _, id := range ids {
				if id != next {
					t.Fatalf("%d rows: row %d stands where %d should", n, id, next)
				}
				next++
			}
		}
		alone := statements - len(rows) - 1 // the last one moves the position
		if fmt.Sprint(sizes) != fmt.Sprint(want) || int(next)+alone != n {
			t.Errorf("%d rows go out as COPYs of %v and %d by themselves, want %v", n, sizes, alone, want)
		}
	}
}
