package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"

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
	if node.RestoredLSN != 0 {
		return l.beginAnew(ctx, node, info, o)
	}
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
		if setBack(tail, node, info) {
			return nil, named("own stream", l.remake(ctx, tail, node, info, o))
		}
		if err := l.checkTimeline(ctx, seq, tail, node, info); err != nil {
			return nil, err
		}
		if err := l.checkHistory(ctx, seq, node); err != nil {
			return nil, err
		}
		if tail == nil {
			tail = beginning(node)
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

// beginning is the frame behind which the own stream begins anew, if the broker has lost it before anything is known to have been
// published: other nodes may have transactions of it, and get them again as they were. nil: the node is new.
func beginning(node apply.Node) *wire.Frame {
	if node.Published > 0 || node.Beginning == nil {
		return nil
	}
	return &wire.Frame{Header: *node.Beginning}
}

func (l *life) fenceFrame(tail *wire.Frame, node apply.Node, info capture.SlotInfo, o origin.Origin) *wire.Frame {
	fence := &wire.Frame{Header: wire.Header{Fence: true, Cluster: l.cfg.Cluster, Sender: l.cfg.Node, Origin: o,
		WriterEpoch: node.WriterEpoch, SystemID: info.SystemID, Timeline: info.Timeline, ResumeLSN: info.ConfirmedLSN}}
	if tail != nil {
		t := tail.Header
		t.Fence, t.WriterEpoch, t.Back, t.FirstSeq = true, node.WriterEpoch, 0, 0
		t.Signature, t.Claim = nil, nil
		if t.Timeline != info.Timeline {
			t.Timeline, t.Standbys = info.Timeline, "" // this server's standbys need not have what its WAL has to this point
		}
		fence.Header = t
	}
	return fence
}

func (l *life) checkTail(tail *wire.Frame, node apply.Node, slot capture.SlotInfo) error {
	switch {
	case tail != nil && tail.SystemID != 0 && tail.SystemID != slot.SystemID:
		return &configError{fmt.Sprintf("stream of node %s was written by another PostgreSQL cluster (system identifier %d, here %d); "+
			"give this node another name or point postgres.dsn at the right server", node.Name, tail.SystemID, slot.SystemID)}
	case node.Timeline != slot.Timeline:
		return fmt.Errorf("postgres.dsn led to a server on timeline %d, and then to one on timeline %d", node.Timeline, slot.Timeline)
	}
	return nil
}

// checkTimeline lets the bridge go on behind the own stream on a server that has taken over from the one that it was written
// from, if that server has all that other nodes have of this one: what is in the stream, and what they were shown ahead of it.
func (l *life) checkTimeline(ctx context.Context, seq uint64, tail *wire.Frame, node apply.Node, slot capture.SlotInfo) error {
	if tail == nil || tail.Timeline == 0 || tail.Timeline == slot.Timeline {
		return nil
	}
	fork, err := capture.ReadFork(ctx, l.cfg.Postgres.DSN, tail.Timeline, slot.Timeline)
	if err != nil {
		return err
	}
	if fault := foreignTimeline(tail, fork); fault != "" {
		missing, err := l.firstBeyond(ctx, seq, fork.LSN)
		if err != nil {
			return named("read own stream", err)
		}
		if fork.LSN != 0 && missing != 0 {
			fault += fmt.Sprintf("; of its transactions, %d to %d are missing here", missing, tail.LastSeq)
		}
		return &configError{fmt.Sprintf("stream of node %s was written from timeline %d, the server is on timeline %d: a standby was promoted or a backup restored, and %s; "+
			"point postgres.dsn at a server that has all (docs/failover.md), or, before users write, run pgbridge node restored (docs/restore.md)", node.Name, tail.Timeline, slot.Timeline, fault)}
	}
	l.log.Warn("a standby has taken over, which has all that others have", "seq", tail.LastSeq, "from_timeline", tail.Timeline, "timeline", slot.Timeline,
		"resume_lsn", pglogrepl.LSN(tail.ResumeLSN).String(), "fork_lsn", pglogrepl.LSN(fork.LSN).String())
	return nil
}

// foreignTimeline says why a server must not go on from a tail that was written from an older timeline; empty if it may.
func foreignTimeline(tail *wire.Frame, fork capture.Fork) string {
	switch {
	case fork.LSN == 0:
		return "it does not come from that timeline"
	case tail.ResumeLSN > fork.LSN:
		return fmt.Sprintf("it has the WAL of that timeline up to %s only, while the stream holds what was read up to %s",
			pglogrepl.LSN(fork.LSN), pglogrepl.LSN(tail.ResumeLSN))
	case tail.Standbys == "":
		return "transactions that others have may be missing here: PostgreSQL was not told by synchronized_standby_slots to let no one have them before the standby"
	case fork.Slot != "" && !slices.Contains(strings.Split(tail.Standbys, ","), fork.Slot):
		return fmt.Sprintf("transactions that others have may be missing here: its slot %s was not in synchronized_standby_slots, which named %s", fork.Slot, tail.Standbys)
	}
	return ""
}

// firstBeyond returns the first own transaction in the stream's last frames that committed at lsn or later; 0 if there is none.
func (l *life) firstBeyond(ctx context.Context, tail, lsn uint64) (first uint64, err error) {
	err = l.eachPublished(ctx, tail, func(b wire.Begin) {
		if b.CommitLSN >= lsn && (first == 0 || b.Seq < first) {
			first = b.Seq
		}
	})
	return first, err
}

// deletesFrom is the commit LSN from which own deletes are checked in the database. Below what the slot is confirmed for the
// rows that they take back are gone, but on the server of that time: another one that has taken over need not have all that was
// flushed there, so that as long as frames of that time are kept, all deletes in them are checked.
func (l *life) deletesFrom(ctx context.Context, slot capture.SlotInfo) (uint64, error) {
	info, err := l.publisher.Info(ctx)
	if err != nil || info.Last < info.First {
		return slot.ConfirmedLSN, err
	}
	from := slot.ConfirmedLSN
	err = l.publisher.Scan(ctx, info.First, info.First, func(_ uint64, f *wire.Frame) error {
		if f.Timeline != slot.Timeline {
			from = 0
		}
		return nil
	})
	return from, named("read own stream", err)
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
	known, err := capture.KnowsCommit(ctx, l.primary, last.XID, last.CommitTime)
	if err == nil && !known {
		err = &configError{fmt.Sprintf("this server does not know transaction %d of node %s (id %d, committed at %s), which is in its stream: "+
			"it was restored from an older state, and transactions that others have are missing here; before users write, run pgbridge node restored (docs/restore.md)",
			last.Seq, node.Name, last.XID, last.CommitTime.Time().Format(time.RFC3339Nano))}
	}
	return err
}

// lastPublished returns the last own transaction that ends in the stream's last frames; seq 0 if there is none.
func (l *life) lastPublished(ctx context.Context, tail uint64) (last wire.Begin, err error) {
	err = l.eachPublished(ctx, tail, func(b wire.Begin) { last = b })
	return last, err
}

// eachPublished calls fn for the own transactions that end in the stream's last frames, in order. Frames may be purged
// meanwhile, by a bridge that has not met the fence yet: then it begins again.
func (l *life) eachPublished(ctx context.Context, tail uint64, fn func(wire.Begin)) error {
	for first := uint64(0); ; {
		info, err := l.publisher.Info(ctx)
		if err != nil {
			return err
		}
		from := max(info.First, 1)
		if tail > historyFrames {
			from = max(from, tail-historyFrames)
		}
		err = l.publisher.Scan(ctx, from, tail, func(_ uint64, f *wire.Frame) error { return eachTransaction(f, fn) })
		if !errors.Is(err, stream.ErrGap) || from == first {
			return err
		}
		first = from
	}
}

// eachTransaction calls fn for those that the frame commits.
func eachTransaction(f *wire.Frame, fn func(wire.Begin)) error {
	for recs := wire.NewRecords(f.Body); ; {
		rec, err := recs.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch rec.Kind {
		case wire.KindBegin:
			b, err := wire.ParseBegin(rec.Payload)
			if err != nil {
				return err
			}
			fn(b)
		case wire.KindLargeCommit:
			l, err := wire.ParseLargeCommit(rec.Payload)
			if err != nil {
				return err
			}
			fn(l.Begin)
		}
	}
}

// configError is an error that only a person can mend.
type configError struct{ text string }

func (e *configError) Error() string { return e.text }

// ExitCode is that of a wrong configuration.
func (e *configError) ExitCode() int { return 2 }
