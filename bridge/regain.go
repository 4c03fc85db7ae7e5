package bridge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/wire"
)

// A broker that has lost its disk has lost this node's stream, and with it capture's state. What stood there and not every node
// has stands in the streams of those who hand it on. Is the last of these frames behind whatever the slot was confirmed for,
// nothing is missing: later transactions come out of the WAL again, as they were. So the stream is made anew out of them, before
// anything else runs, and the next life goes on from there.

// regainPatience bounds how long one node is asked.
const regainPatience = 10 * time.Second

// regained is where the sequences of streams begin that were made again by the bridge of a writer epoch, from 1 on: beyond all of
// those before.
func regained(writerEpoch uint64) uint64 { return writerEpoch<<40 + 1 }

// firstSeq is where a new own stream begins.
func (l *life) firstSeq() uint64 {
	if l.node.Published == 0 {
		return 1
	}
	return regained(l.node.WriterEpoch)
}

// errRegained ends the life that has made the own stream again.
var errRegained = errors.New("the own stream was made again")

// wiped reports whether the own stream lacks frames, as one that is new, or that an earlier bridge has not come to the end of
// making again.
func (l *life) wiped(ctx context.Context, tail *wire.Frame, node apply.Node, slot capture.SlotInfo) (bool, error) {
	if tail == nil {
		return node.Published > 0, nil
	}
	info, err := l.publisher.Info(ctx)
	return info.First >= regained(1) && (tail.LastSeq < node.Published || tail.ResumeLSN < slot.ConfirmedLSN), err
}

// donor is a node that hands this one's frames on.
type donor struct {
	name   string
	nc     *nats.Conn
	reader *stream.Reader
	first  uint64 // of its stream, and the last one
	last   uint64
	tail   *wire.Frame
}

// regain makes the own stream again. It returns errRegained when that is done, and an error that wraps ErrStreamLost if nobody
// has all of it.
func (l *life) regain(ctx context.Context, tail *wire.Frame, node apply.Node, slot capture.SlotInfo, own origin.Origin) error {
	best, away := l.bestDonor(ctx, own)
	if best != nil {
		defer best.nc.Close()
	}
	if !best.hasAll(node, slot) {
		return notRegained("is gone", best, away, node, slot)
	}
	begun := time.Now()
	n, err := l.copyFrames(ctx, best, tail, node, own)
	if err != nil {
		return fmt.Errorf("make the own stream again from what %s has: %w", best.name, err)
	}
	l.log.Warn("own stream was lost and is made again", "from", best.name, "frames", n, "seq", best.tail.LastSeq, "took", time.Since(begun).Round(time.Millisecond))
	return errRegained
}

// hasAll reports whether later transactions than a node hands on come out of the WAL again; nil hands on nothing.
func (k *donor) hasAll(node apply.Node, slot capture.SlotInfo) bool {
	return k != nil && k.tail.LastSeq >= node.Published && k.tail.ResumeLSN >= slot.ConfirmedLSN
}

// setBack reports whether the own stream lacks frames at its end, as that of a broker whose data were restored from an old copy.
func setBack(tail *wire.Frame, node apply.Node, slot capture.SlotInfo) bool {
	return tail != nil && (tail.LastSeq < node.Published || tail.Timeline == slot.Timeline && tail.ResumeLSN < slot.ConfirmedLSN)
}

// errDeleted ends the life that has deleted the own stream, so that the next one makes it again.
var errDeleted = errors.New("the own stream was set back, and is deleted to be made again")

// remake has the own stream made again that was set back. Its frames stand where others have read later ones, so that it begins anew.
func (l *life) remake(ctx context.Context, tail *wire.Frame, node apply.Node, slot capture.SlotInfo, own origin.Origin) error {
	best, away := l.bestDonor(ctx, own)
	if best != nil {
		defer best.nc.Close()
	}
	if !best.hasAll(node, slot) {
		return notRegained(fmt.Sprintf("ends with transaction %d, from WAL up to %s", tail.LastSeq, pglogrepl.LSN(tail.ResumeLSN)), best, away, node, slot)
	}
	l.publisher.Close()
	if err := stream.Delete(ctx, l.conns[0], l.cfg.Cluster, l.cfg.Node); err != nil {
		return err
	}
	l.log.Warn("own stream was set back and is deleted", "seq", tail.LastSeq, "published", node.Published, "from", best.name)
	return errDeleted
}

// notRegained says what is missing: for good, or until somebody is back.
func notRegained(what string, best *donor, away error, node apply.Node, slot capture.SlotInfo) error {
	has := "no other node that can be reached hands it on"
	if best != nil {
		has = fmt.Sprintf("node %s has it up to transaction %d, from WAL up to %s", best.name, best.tail.LastSeq, pglogrepl.LSN(best.tail.ResumeLSN))
	}
	text := fmt.Sprintf("the stream of node %s %s: transaction %d was published before, the slot is confirmed up to %s, and %s",
		node.Name, what, node.Published, pglogrepl.LSN(slot.ConfirmedLSN), has)
	if away != nil {
		return fmt.Errorf("%s; bring back those that cannot be asked, or restore the broker's data: %w", text, away)
	}
	return fmt.Errorf("%w: %s; restore the broker's data, or run pgbridge node restored (docs/restore.md)", stream.ErrStreamLost, text)
}

// bestDonor finds who has most of this node's frames; nil if nobody has any. away is why others could not be asked.
func (l *life) bestDonor(ctx context.Context, own origin.Origin) (best *donor, away error) {
	for _, o := range l.others() {
		k, err := l.askDonor(ctx, o.Node, own)
		switch {
		case err != nil:
			away = errors.Join(away, fmt.Errorf("node %s: %w", o.Node, err))
		case k == nil:
		case best == nil || k.tail.LastSeq > best.tail.LastSeq || k.tail.LastSeq == best.tail.LastSeq && k.tail.ResumeLSN > best.tail.ResumeLSN:
			if best != nil {
				best.nc.Close()
			}
			best = k
		default:
			k.nc.Close()
		}
	}
	return best, away
}

// askDonor looks at what a node hands on of this one; nil: nothing.
func (l *life) askDonor(ctx context.Context, name string, own origin.Origin) (_ *donor, err error) {
	ctx, cancel := context.WithTimeout(ctx, regainPatience)
	defer cancel()
	k := &donor{name: name}
	if k.nc, err = l.reach(name); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil || k.tail == nil {
			k.nc.Close()
		}
	}()
	k.reader, err = stream.NewReader(k.nc, stream.ReaderOptions{Cluster: l.cfg.Cluster, Sender: name, Origin: own.Node, Verifier: l.signing.verifier, Logger: l.log})
	if err != nil {
		return nil, err
	}
	if k.first, k.last, _, err = k.reader.Info(ctx); err != nil {
		if stream.IsNoStream(err) {
			return nil, nil
		}
		return nil, err
	}
	if k.last < k.first {
		return nil, nil
	}
	if k.tail, err = k.reader.Get(ctx, k.last); err != nil {
		return nil, err
	}
	if k.tail.Origin != own {
		k.tail = nil
		return nil, nil
	}
	return k, nil
}

// errCopied ends the reading of frames that are copied.
var errCopied = errors.New("all is copied")

// copyFrames publishes what a node has as this one's own frames, from behind tail on, and waits until they are durable.
func (l *life) copyFrames(ctx context.Context, k *donor, tail *wire.Frame, node apply.Node, own origin.Origin) (n int, err error) {
	from := k.first
	fence := &wire.Frame{Header: wire.Header{Fence: true, Cluster: l.cfg.Cluster, Sender: l.cfg.Node, Origin: own, WriterEpoch: node.WriterEpoch}}
	if tail != nil {
		if from, err = k.reader.Find(ctx, own, tail.LastSeq+1); err != nil {
			return 0, err
		}
		fence.Header = tail.Header
		fence.Fence, fence.WriterEpoch, fence.Back, fence.FirstSeq = true, node.WriterEpoch, 0, 0
		fence.Signature, fence.Claim = nil, nil
	}
	if _, err := l.publisher.Fence(ctx, fence); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	ran := make(chan error, 1)
	go func() {
		err := l.publisher.Run(ctx)
		ran <- err
		cancel(err)
	}()
	defer func() {
		cancel(nil)
		<-ran
	}()
	var places places
	last, head := uint64(0), fence.Header
	err = k.reader.Run(ctx, from, func(ctx context.Context, m stream.Message) error {
		if !m.Frame.Fence {
			f := *m.Frame
			if err := f.GoOn(&head); err != nil {
				return err
			}
			f.OriginWriter = m.Frame.RunWriter()
			f.Sender, f.WriterEpoch, f.Hops = l.cfg.Node, node.WriterEpoch, nil
			f.Back = places.handedOn(m.Seq, l.publisher.Next(), m.Frame.Back)
			if last, err = l.publisher.Publish(ctx, &f); err != nil {
				return err
			}
			n, head = n+1, f.Header
		}
		if m.Seq >= k.last {
			return errCopied
		}
		return nil
	})
	if !errors.Is(err, errCopied) {
		return n, err
	}
	for changed := l.publisher.Changed(); l.publisher.Durable() < last; changed = l.publisher.Changed() {
		select {
		case <-changed:
		case <-ctx.Done():
			return n, context.Cause(ctx)
		}
	}
	return n, nil
}
