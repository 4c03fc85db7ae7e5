package capture

import (
	"context"
	"encoding/binary"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// script builds what a walsender sends.
type script struct{ b []byte }

func (s *script) add(m ...any) *script {
	body := []byte{'w'}
	body = append(body, make([]byte, 24)...)
	for _, x := range m {
		switch x := x.(type) {
		case rune:
			body = append(body, byte(x))
		case byte:
			body = append(body, x)
		case uint16:
			body = binary.BigEndian.AppendUint16(body, x)
		case uint32:
			body = binary.BigEndian.AppendUint32(body, x)
		case uint64:
			body = binary.BigEndian.AppendUint64(body, x)
		case string:
			body = append(append(body, x...), 0)
		case []byte:
			body = append(body, x...)
		default:
			panic(x)
		}
	}
	s.b = binary.BigEndian.AppendUint32(append(s.b, 'd'), uint32(len(body)+4))
	s.b = append(s.b, body...)
	return s
}

func (s *script) keepalive(end uint64, reply byte) *script {
	body := binary.BigEndian.AppendUint64([]byte{'k'}, end)
	body = append(binary.BigEndian.AppendUint64(body, 0), reply)
	s.b = append(binary.BigEndian.AppendUint32(append(s.b, 'd'), uint32(len(body)+4)), body...)
	return s
}

// table announces public.t(id int4 key, x text) with that object id; xid is nil outside of a stream.
func (s *script) table(id uint32, xid []byte) *script {
	return s.add('R', xid, id, "public", "t", 'd', uint16(2),
		byte(1), "id", uint32(23), uint32(1<<32-1), byte(0), "x", uint32(25), uint32(1<<32-1))
}

func (s *script) begin(lsn, at uint64, xid uint32) *script { return s.add('B', lsn, at, xid) }

func (s *script) commit(lsn, at uint64) *script { return s.add('C', byte(0), lsn, lsn+8, at) }

func (s *script) marker(lsn uint64, up, done origin.Vector, xmin uint64) *script {
	c := binary.BigEndian.AppendUint64(wire.AppendMarker(nil, up, done, nil), xmin)
	return s.add('M', byte(0), lsn, wire.MarkerPrefix, uint32(len(c)), c)
}

func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// tuple is a tuple of (int4, text).
func tuple(id uint32, x string) []byte {
	return appendTuple(nil, []wire.Value{{Format: wire.Binary, Data: be32(id)}, {Format: wire.Binary, Data: []byte(x)}})
}

// keyTuple is the key of one.
func keyTuple(id uint32) []byte {
	return appendTuple(nil, []wire.Value{{Format: wire.Binary, Data: be32(id)}, {Format: wire.Null}})
}

// workbench is a session without a server.
type workbench struct {
	*session
	pub     *recorder
	deletes *buried
}

func newWorkbench(t testing.TB, frameBytes int) *workbench {
	t.Helper()
	w := &workbench{pub: newRecorder(), deletes: &buried{}}
	c, err := New(Options{
		DSN: "none", Cluster: "x", Node: "a", Origin: origin.Origin{Node: "a", Epoch: 1}, WriterEpoch: 1,
		Slot: "s", Publication: "p", FrameBytes: frameBytes, SpoolDir: filepath.Join(os.TempDir(), "pgbridge-capture-test"), Logger: slog.New(slog.DiscardHandler),
	}, w.pub, w.deletes, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.tagger.lookUp = func(context.Context, uint32) ([]keyColumn, error) { return nil, nil }
	c.tagger.crowded = func() {}
	c.tagger.draft.begin(c.tagger.target())
	w.session = newSession(c, &wireConn{asked: make(chan struct{}, 1)})
	return w
}

// play feeds the script in pieces of at most n bytes, then lets go what may go.
func (w *workbench) play(s *script, n int) error {
	for b := s.b; len(b) > 0; {
		k := min(n, len(b))
		if err := w.stitch.feed(context.Background(), b[:k], w.session); err != nil {
			return err
		}
		b = b[k:]
	}
	// Once for the draft's time to begin, once for it to be over.
	if _, err := w.tagger.tend(context.Background(), time.Now(), true); err != nil {
		return err
	}
	_, err := w.tagger.tend(context.Background(), time.Now().Add(time.Hour), true)
	return err
}
