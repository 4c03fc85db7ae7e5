package capture

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/wire"
)

// FuzzMessages feeds arbitrary bytes to everything between the socket and the publisher: it must refuse or
// make frames that can be taken apart.
func FuzzMessages(f *testing.F) {
	f.Add(exampleScript(10).b, uint16(1000))
	f.Add(exampleScript(MinFrameBytes).b, uint16(100))
	f.Add((&script{}).table(5, nil).begin(1, 1, 1).add('U', uint32(5), 'O', tuple(1, "a"), 'N', tuple(2, "b")).commit(1, 1).b, uint16(3))
	f.Fuzz(func(t *testing.T, data []byte, piece uint16) {
		w := newWorkbench(t, MinFrameBytes)
		err := w.play(&script{b: bytes.Clone(data)}, max(1, int(piece)))
		w.tagger.interrupted()
		if perr := w.tagger.publish(context.Background()); perr != nil {
			t.Fatal(perr)
		}
		checkFrames(t, w.pub.all())
		var check *CheckError
		if err != nil && !errors.Is(err, ErrProtocol) && !errors.Is(err, wire.ErrCorrupt) && !errors.As(err, &check) &&
			!strings.Contains(err.Error(), "replicat") && !strings.Contains(err.Error(), "key of a deleted row") {
			t.Fatalf("an error of no kind: %v", err)
		}
	})
}

// checkFrames checks what holds of all frames, whatever the rows in them are.
func checkFrames(t *testing.T, frames []*wire.Frame) {
	t.Helper()
	var seq uint64
	lengths := map[uint64]uint64{}
	for _, f := range frames {
		recs := wire.NewRecords(f.Body)
		open := false
		for {
			rec, err := recs.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			switch rec.Kind {
			case wire.KindBegin:
				b, err := wire.ParseBegin(rec.Payload)
				if err != nil || open || b.Seq != seq+1 {
					t.Fatalf("begin %+v behind %d, %v", b, seq, err)
				}
				open, seq = true, b.Seq
			case wire.KindCommit:
				open = false
			case wire.KindChunk:
				run, offset, b, err := wire.ParseChunk(rec.Payload)
				if err != nil || offset != lengths[run] {
					t.Fatalf("chunk of run %d at %d instead of %d, %v", run, offset, lengths[run], err)
				}
				lengths[run] += uint64(len(b))
			case wire.KindLargeCommit:
				l, err := wire.ParseLargeCommit(rec.Payload)
				if err != nil || l.Seq != seq+1 || l.Length != lengths[l.Run] {
					t.Fatalf("%+v behind %d, length %d, %v", l, seq, lengths[l.Run], err)
				}
				seq = l.Seq
			}
		}
		if open || f.LastSeq != seq {
			t.Fatalf("frame ends in a transaction (%t) or says %d instead of %d", open, f.LastSeq, seq)
		}
	}
}
