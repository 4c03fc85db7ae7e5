package bridge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/wire"
)

// A node whose data were set back is given back what it lacks (apply/comeback.go), when an operator says that it was: Restored. Its
// bridge then begins with a life that does only that. It shuts out whoever may still write the own stream, asks all other nodes up to
// where they have this one's transactions, waits until one of them has applied all of these and all that is applied here, and has it
// give a whole delta. All nodes must answer: one that has more than the donor would take what this node writes next for what it has
// already.

// comeBackPause is the time from one look at the other nodes to the next.
const comeBackPause = time.Second

// wholeKeys bounds the rows that are asked for by name: they must fit a message.
const wholeKeys = 50_000

// errCameBack ends the life in which a node was given back what it lacked.
var errCameBack = errors.New("the node has been given what it lacked")

// Restored says that the node's data were set back, or that its slot or its stream are of no use any more: its bridge is to bring it
// back when it starts. It makes the slot if that is missing; from then on nothing that users write is lost. No bridge may run. tell gets,
// now and then, for whom the creation of the slot waits.
func Restored(ctx context.Context, cfg *config.Config, tell func(text string)) error {
	p := capture.NewPrimary(cfg.Postgres.DSN)
	defer p.Close()
	ran, err := hasRun(ctx, p)
	if err != nil {
		return err
	}
	if !ran {
		return &configError{"no bridge has ever run for this database, so that there is nothing to bring back; run pgbridge setup"}
	}
	if len(peerNames(cfg)) == 0 {
		return &configError{"topology.nodes names no other node, which could give anything back"}
	}
	o := checkOptions(cfg, p)
	o.Waits = tell
	if err := capture.CheckServer(ctx, o); err != nil {
		return err
	}
	if err := setUpApply(ctx, p, applySetup(cfg)); err != nil {
		return err
	}
	if err := capture.RemakeSlot(ctx, o); err != nil {
		return err
	}
	return apply.Restore(ctx, cfg.Postgres.DSN)
}

// comeBack takes back in what this node lacks. It always ends the life.
func (l *life) comeBack(ctx context.Context) error {
	own := origin.Origin{Node: l.node.Name, Epoch: l.node.Epoch}
	said := ""
	wait := func(err error) error {
		if text := err.Error(); text != said {
			said = text
			l.log.Warn("node waits to be brought back", "err", text)
		}
		l.current.fail(fmt.Errorf("node is brought back: %w", err))
		select {
		case <-time.After(comeBackPause):
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	best, away := l.bestDonor(ctx, own)
	for away != nil {
		if best != nil {
			best.nc.Close()
		}
		if err := wait(away); err != nil {
			return err
		}
		best, away = l.bestDonor(ctx, own)
	}
	x, tail, err := l.lookBack(ctx, best)
	if err != nil {
		return err
	}
	x.Asked = map[wire.KeyHash]bool{}
	for {
		err := l.comeBackOnce(ctx, x, tail)
		var lacks *apply.LacksRows
		var failed *tookNothing
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errCameBack):
			return err
		case errors.As(err, &lacks):
			for k := range lacks.Keys {
				x.Asked[k] = true
			}
			if len(x.Asked) > wholeKeys {
				return &configError{fmt.Sprintf("%d rows are missing here that other nodes have, and that this node had: more than %d, which cannot be told from deletes; let the node join anew", len(x.Asked), wholeKeys)}
			}
			continue
		case errors.As(err, &failed):
			return err
		}
		if err := wait(err); err != nil {
			return err
		}
	}
}

// known is what another node has of this one.
type known struct {
	node    string
	nc      *nats.Conn
	seq     uint64        // the last transaction that is there in whatever way
	applied origin.Vector // and whatever is applied there
}

// comeBackOnce asks around, and takes in what it is given. An error that is not errCameBack may go away.
func (l *life) comeBackOnce(ctx context.Context, x apply.Comeback, tail uint64) error {
	own := origin.Origin{Node: l.node.Name, Epoch: l.node.Epoch}
	all, err := l.askAround(ctx)
	defer func() {
		for _, k := range all {
			k.nc.Close()
		}
	}()
	if err != nil {
		return err
	}
	x.Seq = most(all, tail)
	err = fmt.Errorf("no node has applied yet all that others have of this one, up to transaction %d, and all that is applied here", x.Seq)
	for _, k := range all {
		if !k.applied.Covers(own, x.Seq) || !k.applied.Includes(l.applier.Positions()) {
			continue
		}
		begun := time.Now()
		file, size, late := l.fetchDelta(ctx, k.node, k.nc, wholeQuestion(own, l.applier.Proved(), x.Asked))
		if late != nil { // another one may give it
			err = fmt.Errorf("what is missing cannot be had from node %s: %w", k.node, late)
			continue
		}
		defer file.Close()
		if len(x.Known) == 0 && x.Since == 0 { // no frame is left
			x.Since = k.applied.Get(own).Stamp
		}
		return l.takeBack(ctx, x, file, k.node, size, begun)
	}
	return err
}

// takeBack takes a delta in, if nobody has got more meanwhile.
func (l *life) takeBack(ctx context.Context, x apply.Comeback, file *os.File, from string, size int64, begun time.Time) error {
	again, err := l.askAround(ctx)
	for _, k := range again {
		k.nc.Close()
	}
	if err == nil && most(again, x.Seq) != x.Seq {
		err = errors.New("the other nodes have got more of this one meanwhile")
	}
	if err != nil {
		return err
	}
	got, err := l.applier.ComeBack(ctx, file, x)
	if err != nil {
		return &tookNothing{fmt.Errorf("take in what node %s has given: %w", from, err)}
	}
	l.log.Warn("this node's data were set back, and it has taken in what it lacked", "from", from, "bytes", size, "rows", got.Rows, "deletes", got.Deletes,
		"conflicts", got.Conflicts, "seq", got.Seq, "written_again", got.Again, "merged_rows_given_up", got.Counted, "took", time.Since(begun).Round(time.Millisecond))
	return errCameBack
}

// tookNothing is the error of a delta that could not be taken in: the database may be lost.
type tookNothing struct{ err error }

func (e *tookNothing) Error() string { return e.err.Error() }
func (e *tookNothing) Unwrap() error { return e.err }

// most is the last transaction of this node that anybody has.
func most(all []known, tail uint64) uint64 {
	for _, k := range all {
		tail = max(tail, k.seq)
	}
	return tail
}

// askAround asks all other nodes. An error names those that do not answer.
func (l *life) askAround(ctx context.Context) (all []known, err error) {
	var silent []string
	for _, o := range l.others() {
		k, err := l.askKnown(ctx, o.Node)
		if err != nil {
			silent = append(silent, fmt.Sprintf("node %s cannot be asked: %v", o.Node, err))
			continue
		}
		all = append(all, k)
	}
	if len(silent) > 0 {
		return all, fmt.Errorf("%s; bring it back, or take it out of topology.nodes everywhere if it is gone for good", strings.Join(silent, "; "))
	}
	return all, nil
}

func (l *life) askKnown(ctx context.Context, node string) (k known, err error) {
	k.node = node
	if k.nc, err = l.reach(node); err != nil {
		return k, err
	}
	if k.seq, k.applied, err = l.askHas(ctx, node, k.nc); err != nil {
		k.nc.Close()
	}
	return k, err
}

// askHas asks another node how far this node's transactions are known there, and for all that it has applied.
func (l *life) askHas(ctx context.Context, node string, nc *nats.Conn) (seq uint64, applied origin.Vector, err error) {
	kind, answer, err := l.ask(ctx, node, nc, append([]byte{askKnown}, l.node.Name...))
	if err == nil && (kind != answerKnown || len(answer) < 8) {
		err = fmt.Errorf("its answer %q cannot be understood", kind)
	}
	if err != nil {
		return 0, nil, err
	}
	v, err := wire.ParseVectors(answer[8:], 1)
	if err != nil {
		return 0, nil, err
	}
	return binary.BigEndian.Uint64(answer), v[0], nil
}

// known answers how far another node's transactions have come here: received, or handed on, which outlives a crash of the server.
func (g *deltas) known(o origin.Origin) []byte {
	seq := g.applier.Received(o)
	for _, r := range g.relays {
		if r.origin == o {
			seq = max(seq, r.upTo())
		}
	}
	applied := g.applier.Have()
	return wire.AppendVector(binary.BigEndian.AppendUint64([]byte{answerKnown}, max(seq, applied.Seq(o))), applied)
}

func wholeQuestion(own origin.Origin, have origin.Vector, keys map[wire.KeyHash]bool) []byte {
	q := append([]byte{askWhole, byte(len(own.Node))}, own.Node...)
	v := wire.AppendVector(nil, have)
	q = append(binary.BigEndian.AppendUint32(q, uint32(len(v))), v...)
	for k := range keys {
		q = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(q, k.Hi), k.Lo)
	}
	return q
}

func parseWhole(q []byte) (origin.Vector, *apply.Whole, error) {
	bad := fmt.Errorf("%w: question for a whole delta", wire.ErrCorrupt)
	if len(q) == 0 || len(q) < 1+int(q[0])+4 {
		return nil, nil, bad
	}
	w := &apply.Whole{For: origin.Origin{Node: string(q[1 : 1+q[0]]), Epoch: 1}, Keys: map[wire.KeyHash]bool{}}
	q = q[1+int(q[0]):]
	n := uint64(binary.BigEndian.Uint32(q))
	if q = q[4:]; uint64(len(q)) < n || (uint64(len(q))-n)%16 != 0 {
		return nil, nil, bad
	}
	have, err := wire.ParseVectors(q[:n], 1)
	if err != nil {
		return nil, nil, err
	}
	for q = q[n:]; len(q) > 0; q = q[16:] {
		w.Keys[wire.KeyHash{Hi: binary.BigEndian.Uint64(q), Lo: binary.BigEndian.Uint64(q[8:])}] = true
	}
	return have[0], w, nil
}

// lookBack shuts out whoever writes the own stream, and finds out from its frames, or from those that best hands on, which own
// transactions this server has; last is the last one in the own stream.
func (l *life) lookBack(ctx context.Context, best *donor) (x apply.Comeback, last uint64, err error) {
	_, tail := l.publisher.Tail()
	x.WriterEpoch = l.node.WriterEpoch
	if tail != nil {
		x.WriterEpoch = max(x.WriterEpoch, tail.WriterEpoch)
	}
	if best != nil {
		defer best.nc.Close()
		x.WriterEpoch = max(x.WriterEpoch, best.tail.OriginWriter)
	}
	if err := l.applier.StartComeback(ctx, x.WriterEpoch); err != nil {
		return x, 0, err
	}
	l.node = l.applier.Node()
	for tail != nil {
		f := *tail
		f.Body = nil
		f.Fence, f.WriterEpoch, f.Back, f.FirstSeq = true, l.node.WriterEpoch, 0, 0
		if _, err = l.publisher.Fence(ctx, &f); !errors.Is(err, stream.ErrTailMoved) {
			break
		}
		_, tail = l.publisher.Tail()
	}
	if err != nil {
		return x, 0, named("fence own stream", err)
	}
	var h history
	switch {
	case tail != nil && (best == nil || tail.LastSeq >= best.tail.LastSeq):
		err = h.ofOwn(ctx, l.publisher)
	case best != nil:
		err = h.of(ctx, best)
	}
	if err == nil {
		err = l.judge(ctx, &h, tail, &x)
	}
	if tail != nil {
		last = tail.LastSeq
	}
	return x, last, named("read own frames", err)
}

// history is what frames tell of own transactions, oldest first.
type history struct {
	commits []capture.Commit
	seqs    []uint64
	stamps  []origin.Stamp
	frames  []framed
}

// framed is what one frame says.
type framed struct {
	last, resume, mark uint64
	timeline           uint32
	at                 origin.Stamp // the last commit in it
}

func (h *history) add(f *wire.Frame) error {
	h.frames = append(h.frames, framed{f.LastSeq, f.ResumeLSN, f.Mark.XID, f.Timeline, f.LastCommitTime})
	return eachTransaction(f, func(b wire.Begin) {
		h.commits, h.seqs, h.stamps = append(h.commits, capture.Commit{XID: b.XID, At: b.CommitTime}), append(h.seqs, b.Seq), append(h.stamps, b.Stamp)
	})
}

func (h *history) ofOwn(ctx context.Context, p *stream.Publisher) error {
	info, err := p.Info(ctx)
	if err != nil || info.Last < info.First {
		return err
	}
	return p.Scan(ctx, info.First, info.Last, func(_ uint64, f *wire.Frame) error { return h.add(f) })
}

func (h *history) of(ctx context.Context, k *donor) error {
	err := k.reader.Run(ctx, k.first, func(_ context.Context, m stream.Message) error {
		if !m.Ahead {
			if err := h.add(m.Frame); err != nil {
				return err
			}
		}
		if m.Seq >= k.last {
			return errCopied
		}
		return nil
	})
	if errors.Is(err, errCopied) {
		return nil
	}
	return err
}

// clockSlack is by how much commit times may be out of order, from one session to another.
const clockSlack = origin.Stamp(time.Minute / time.Microsecond)

// judge finds out which of the transactions this server has, and so which rows nobody has got: those that no marker in front of the
// last known one, and no known transaction, accounts for.
func (l *life) judge(ctx context.Context, h *history, tail *wire.Frame, x *apply.Comeback) error {
	x.XID = max(l.node.FirstXID, l.node.LocalXID)
	x.Own = l.applier.Proved().Get(origin.Origin{Node: l.node.Name, Epoch: l.node.Epoch})
	if len(h.frames) == 0 {
		return nil
	}
	known, err := capture.KnownCommits(ctx, l.cfg.Postgres.DSN, h.commits)
	if err != nil {
		return err
	}
	x.Known = map[origin.Stamp]bool{}
	for i, ok := range known {
		if ok {
			x.Known[h.commits[i].At] = true
			if h.seqs[i] > x.Own.Seq {
				x.Own = origin.Entry{Origin: x.Own.Origin, Seq: h.seqs[i], Stamp: h.stamps[i]}
			}
		}
	}
	newest := h.frames[len(h.frames)-1]
	fork := uint64(0)
	if newest.timeline != 0 && newest.timeline != l.node.Timeline {
		f, err := capture.ReadFork(ctx, l.cfg.Postgres.DSN, newest.timeline, l.node.Timeline)
		if err != nil {
			return err
		}
		fork = f.LSN
	}
	switch {
	case len(x.Known) > 0:
		x.Since = h.commits[0].At - clockSlack
	case len(h.commits) > 0:
		x.Since = h.commits[len(h.commits)-1].At // all that is here of before is older
	default:
		x.Since = newest.at
	}
	x.XID = max(x.XID, h.marked(x.Own.Seq, l.node.RestoredSeq, fork))
	return nil
}

// marked is the newest marker that this server has itself, which has own transactions up to own, and its WAL of the newest frame's
// timeline up to fork. Markers of another history say nothing, since their ids were given out anew: they stand behind that, or in
// front of the transaction up to which the node was given its own back the last time.
func (h *history) marked(own, restored, fork uint64) (xid uint64) {
	newest := h.frames[len(h.frames)-1]
	for _, f := range h.frames {
		if f.last > restored && (f.last < own || f.timeline == newest.timeline && f.resume <= fork) {
			xid = max(xid, f.mark)
		}
	}
	return xid
}

// beginAnew begins the own stream behind the last transaction that anybody had of a node whose data were set back.
func (l *life) beginAnew(ctx context.Context, node apply.Node, info capture.SlotInfo, o origin.Origin) (*wire.Frame, error) {
	at := l.applier.Positions()
	f := &wire.Frame{Header: wire.Header{Fence: true, Cluster: l.cfg.Cluster, Sender: l.cfg.Node, Origin: o, WriterEpoch: node.WriterEpoch,
		LastSeq: node.Published, LastStamp: node.PublishedStamp, Up: at, Low: at, ResumeLSN: node.RestoredLSN,
		Mark: wire.Mark{XID: node.LocalXID, Seq: node.Published}, SystemID: info.SystemID, Timeline: info.Timeline}}
	if _, err := l.publisher.Fence(ctx, f); err != nil {
		return nil, named("fence own stream", err)
	}
	l.log.Warn("own stream begins anew", "seq", node.Published)
	return f, l.applier.Restored(ctx)
}
