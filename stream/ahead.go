package stream

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgbridge/pgbridge/wire"
)

// A broker hands a frame on when it has stored it: a sync of its disk, or a round of its cluster, which on one disk
// is longer than all the rest of a change's way. Nobody needs to wait for that. The transaction is durable in its
// author's WAL, the slot keeps it until the frame is stored, and if the frame is lost the same transaction gets the
// same seq and the same stamp again (PROOF.md R5, R6). So a small frame goes out twice: on AheadSubject, of which
// nothing is stored and anything may be lost, and on the stream's own. Readers take from the first one what goes
// on exactly where they are, know it again by its seqs when it comes from the stream, and begin there after a
// restart.

// partHeader marks a message of what a frame holds so far, whose body is of so many bytes: more may come in it.
// wholeHeader says instead that with the part of so many bytes it is whole; nothing else comes with that.
const (
	partHeader  = "Pgbridge-Part"
	wholeHeader = "Pgbridge-Whole"
)

// aheadRoom is how many messages may wait for a Reader; what is beyond comes from the stream.
const aheadRoom = 256

// ahead is what Publisher.Ahead needs, guarded by Publisher.publishing.
type ahead struct {
	encoder wire.Encoder // small bodies only: no compression
	buf     []byte
	message nats.Msg
	refused bool   // the broker does not let us
	seq     uint64 // the frame of which a part went out last, whose body was of size bytes
	size    int
}

func newAhead(subject string, signer *wire.Signer) ahead {
	return ahead{encoder: wire.Encoder{Signer: signer}, message: nats.Msg{Subject: subject, Header: nats.Header{}}}
}

// Ahead shows readers the frame that Publish will be given next: as it is now if more may come in it, or whole. It
// waits for nothing. Whether anybody gets it is not known, and nothing may depend on it.
func (p *Publisher) Ahead(f *wire.Frame, whole bool) {
	p.publishing.Lock()
	defer p.publishing.Unlock()
	p.mu.Lock()
	live, next := p.live, p.window.next
	p.mu.Unlock()
	a := &p.ahead
	if !live || a.refused || f.WriterEpoch != p.epoch {
		return
	}
	// It comes back on no call (logAsync says it), and would come for each message.
	if err := p.api.nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), a.message.Subject) {
		a.refused = true
		return
	}
	clear(a.message.Header)
	a.message.Data = nil
	known := whole && a.seq == next && a.size == len(f.Body)
	if !known {
		data, err := a.encoder.Append(a.buf[:0], f)
		if err != nil {
			return // Publish will say it
		}
		a.buf, a.message.Data = data, data
	}
	a.set(jetstream.ExpectedLastSeqHeader, next-1)
	switch {
	case known:
		a.set(wholeHeader, uint64(a.size))
	case !whole:
		a.set(partHeader, uint64(len(f.Body)))
		a.seq, a.size = next, len(f.Body)
	}
	_ = p.api.nc.PublishMsg(&a.message) // a connection that is lost is noticed by Publish
}

func (a *ahead) set(header string, n uint64) {
	a.message.Header[header] = []string{strconv.FormatUint(n, 10)}
}

// part is how much of a frame a reader has.
type part struct {
	seq  uint64 // of the frame; 0: nothing of any
	size string // of the body, as partHeader has it
}

// ahead takes a message from AheadSubject, if it goes on exactly where reading is. What cannot be used is left for
// the stream to bring, and faults for it to tell.
func (w *walk) ahead(ctx context.Context, m *nats.Msg) error {
	last, err := strconv.ParseUint(m.Header.Get(jetstream.ExpectedLastSeqHeader), 10, 64)
	seq := last + 1
	if err != nil || !w.settled || seq != max(w.next, w.whole+1) {
		return nil
	}
	if size := m.Header.Get(wholeHeader); size != "" {
		if w.part == (part{seq, size}) {
			w.whole = seq
		}
		return nil
	}
	f, err := w.decode(seq, m.Data)
	if err == nil {
		err = w.r.o.Verifier.Check(f)
	}
	if err != nil || f.Fence || f.WriterEpoch != w.epoch {
		return nil
	}
	w.r.aheads.Add(1)
	if err := w.fn(ctx, Message{Seq: w.next, Frame: f, Size: len(m.Data), Ahead: true}); err != nil {
		return err
	}
	if size := m.Header.Get(partHeader); size != "" {
		w.part = part{seq, size}
	} else {
		w.whole = seq
	}
	return nil
}
