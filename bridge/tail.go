package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/wire"
)

// fenceRound is how long a fence may be under way before status says what it waits for.
const fenceRound = 3 * time.Second

// fence takes the own stream over and returns the state from which capture goes on.
func (l *life) fence(ctx context.Context, node apply.Node, info capture.SlotInfo, o origin.Origin) (*wire.Frame, error) {
	for {
		seq, tail := l.publisher.Tail()
		if wiped, err := l.wiped(ctx, tail, node, info); err != nil || wiped {
			if err == nil {
				err = l.regain(ctx, tail, node, info, o)
			}
			return nil, named("own stream", err)
		}
		if err := l.checkTail(tail, node, info); err != nil {
			return nil, err
		}
		if err := l.checkHistory(ctx, seq, node); err != nil {
			return nil, err
		}
		f := l.fenceFrame(tail, node, info, o)
		round, cancel := context.WithTimeout(ctx, fenceRound)
		_, err := l.publisher.Fence(round, f)
		late := round.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case errors.Is(err, stream.ErrTailMoved): // an older bridge wrote to the last
		case err != nil && late:
			_, cause := l.publisher.State()
			l.current.fail(named("fence own stream", cause))
		default:
			return f, named("fence own stream", err)
		}
	}
}

func (l *life) fenceFrame(tail *wire.Frame, node apply.Node, info capture.SlotInfo, o origin.Origin) *wire.Frame {
	fence := &wire.Frame{Header: wire.Header{Fence: true, Cluster: l.cfg.Cluster, Sender: l.cfg.Node, Origin: o,
		WriterEpoch: node.WriterEpoch, SystemID: info.SystemID, Timeline: info.Timeline, ResumeLSN: info.ConfirmedLSN}}
	if tail != nil {
		t := tail.Header
		t.Fence, t.WriterEpoch, t.Back, t.FirstSeq = true, node.WriterEpoch, 0, 0
		fence.Header = t
	}
	return fence
}

func (l *life) checkTail(tail *wire.Frame, node apply.Node, slot capture.SlotInfo) error {
	switch {
	case tail != nil && tail.LastSeq < node.Published:
		return fmt.Errorf("%w: stream of node %s ends with transaction %d, transaction %d was published before; restore the broker's data or join the node anew",
			stream.ErrStreamLost, node.Name, tail.LastSeq, node.Published)
	case tail != nil && tail.SystemID != 0 && tail.SystemID != slot.SystemID:
		return &configError{fmt.Sprintf("stream of node %s was written by another PostgreSQL cluster (system identifier %d, here %d); "+
			"give this node another name or point postgres.dsn at the right server", node.Name, tail.SystemID, slot.SystemID)}
	case tail != nil && tail.Timeline != 0 && tail.Timeline != slot.Timeline:
		return &configError{fmt.Sprintf("stream of node %s was written from timeline %d, the server is on timeline %d: a standby was promoted or a backup restored, "+
			"and transactions that others have may be missing here; let the node join anew", node.Name, tail.Timeline, slot.Timeline)}
	}
	return nil
}

// historyFrames is how many of the last own frames are looked through for a transaction: those of an idle node
// hold none.
const historyFrames = 100

// checkHistory refuses a server that does not know the last own transaction in the stream: it was set back,
// without a new timeline, to a time before that.
func (l *life) checkHistory(ctx context.Context, tail uint64, node apply.Node) error {
	last, err := l.lastPublished(ctx, tail)
	if err != nil || last.Seq == 0 {
		return named("read own stream", err)
	}
	known, err := capture.KnowsCommit(ctx, l.cfg.Postgres.DSN, last.XID, last.CommitTime)
	if err == nil && !known {
		err = &configError{fmt.Sprintf("this server does not know transaction %d of node %s (id %d, committed at %s), which is in its stream: "+
			"it was restored from an older state, and transactions that others have are missing here; let the node join anew",
			last.Seq, node.Name, last.XID, last.CommitTime.Time().Format(time.RFC3339Nano))}
	}
	return err
}

// lastPublished returns the last own transaction that ends in the stream's last frames; seq 0 if there is none.
// Frames may be purged meanwhile, by a bridge that has not met the fence yet: then it looks again.
func (l *life) lastPublished(ctx context.Context, tail uint64) (last wire.Begin, err error) {
	for first := uint64(0); ; {
		info, err := l.publisher.Info(ctx)
		if err != nil {
			return last, err
		}
		from := max(info.First, 1)
		if tail > historyFrames {
			from = max(from, tail-historyFrames)
		}
		err = l.publisher.Scan(ctx, from, tail, func(_ uint64, f *wire.Frame) error {
			begin, err := lastTransaction(f)
			if begin.Seq != 0 {
				last = begin
			}
			return err
		})
		if !errors.Is(err, stream.ErrGap) || from == first {
			return last, err
		}
		first = from
	}
}

// lastTransaction returns the last one that the frame commits; seq 0 if there is none.
func lastTransaction(f *wire.Frame) (last wire.Begin, err error) {
	for recs := wire.NewRecords(f.Body); ; {
		rec, err := recs.Next()
		if errors.Is(err, io.EOF) {
			return last, nil
		}
		if err != nil {
			return last, err
		}
		switch rec.Kind {
		case wire.KindBegin:
			last, err = wire.ParseBegin(rec.Payload)
		case wire.KindLargeCommit:
			var l wire.LargeCommit
			l, err = wire.ParseLargeCommit(rec.Payload)
			last = l.Begin
		}
		if err != nil {
			return last, err
		}
	}
}

// configError is an error that only a person can mend.
type configError struct{ text string }

func (e *configError) Error() string { return e.text }

// ExitCode is that of a wrong configuration.
func (e *configError) ExitCode() int { return 2 }
