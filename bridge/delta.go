package bridge

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/wire"
)

// A node that lacks what no stream has any more asks the node that it reads from for a delta (apply/delta.go), over that
// node's broker: it begins one, and reads it piece by piece. The delta is written to a file first, so that the snapshot is not
// held for longer than the server takes.
//
//	question = 'b' vector                  begin, for somebody who has seen so much
//	         | 'w' origin:uint8 vector keys  begin, for the node whose data were set back (comeback.go): its name with its length,
//	                                       what it certainly has, and the hashes of rows that must be in it, 16 bytes each
//	         | 'j' vector                  begin, for a node that joins and has seen so much, but nothing of merged tables
//	         | 's' name                    how far is it that a node's transactions are known?
//	         | 'r' id:uint64 offset:uint64 read on
//	answer   = 'i' id:uint64               it has begun
//	         | 'k' seq:uint64 vector       the last transaction of that node that is here in whatever way, and all that has been applied
//	         | 'w'                         wait: there is no more yet
//	         | 'd' bytes                   what stands at that offset
//	         | 'e'                         the end
//	         | 'x' text                    why there is none
const (
	askBegin, askJoin, askWhole, askKnown, askRead                         = 'b', 'j', 'w', 's', 'r'
	answerID, answerKnown, answerWait, answerData, answerEnd, answerRefuse = 'i', 'k', 'w', 'd', 'e', 'x'
)

const (
	// deltaPiece is how much one answer holds.
	deltaPiece = 256 << 10
	// deltaIdle is how long a delta is kept that nobody reads.
	deltaIdle = time.Minute
	// deltaPause is the time from one question to the next while there is no more yet.
	deltaPause = 100 * time.Millisecond
	// deltaPatience is how long one answer may take.
	deltaPatience = 10 * time.Second
)

// deltas are those that this node gives.
type deltas struct {
	*life
	ctx  context.Context
	mu   sync.Mutex // guards what follows
	open map[uint64]*delta
	last uint64
	wg   sync.WaitGroup
}

// delta is one that is being given.
type delta struct {
	asker  string // who may read it
	file   *os.File
	cancel context.CancelFunc
	idle   *time.Timer
	mu     sync.Mutex // guards what follows
	size   int64      // of what has been written
	done   bool
	err    error
}

// Write implements io.Writer.
func (d *delta) Write(b []byte) (int, error) {
	n, err := d.file.Write(b)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.size += int64(n)
	return n, err
}

// giveDeltas answers others until ctx ends.
func (l *life) giveDeltas(ctx context.Context) error {
	g := &deltas{life: l, ctx: ctx, open: map[uint64]*delta{}, last: uint64(time.Now().UnixNano())}
	stop, err := stream.Answer(l.conns[0], stream.DeltaSubject(l.cfg.Cluster, l.cfg.Node), g.answer)
	if err != nil {
		return err
	}
	<-ctx.Done()
	stop()
	g.mu.Lock()
	for id := range g.open {
		g.drop(id)
	}
	g.mu.Unlock()
	g.wg.Wait()
	return nil
}

// drop needs mu held.
func (g *deltas) drop(id uint64) {
	if d := g.open[id]; d != nil {
		d.idle.Stop()
		d.cancel()
		delete(g.open, id)
	}
}

func (g *deltas) answer(asker string, q []byte) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.ctx.Err() != nil:
	case len(q) > 0 && (q[0] == askBegin || q[0] == askJoin):
		have, err := wire.ParseVectors(q[1:], 1)
		if err == nil {
			err = g.begin(asker, apply.Donation{Have: have[0], Merged: q[0] == askJoin})
		}
		if err != nil {
			return refuse(err)
		}
		return binary.BigEndian.AppendUint64([]byte{answerID}, g.last)
	case len(q) > 0 && q[0] == askWhole:
		have, whole, err := parseWhole(q[1:])
		if err == nil {
			err = g.begin(asker, apply.Donation{Have: have, Whole: whole})
		}
		if err != nil {
			return refuse(err)
		}
		return binary.BigEndian.AppendUint64([]byte{answerID}, g.last)
	case len(q) > 0 && q[0] == askKnown:
		return g.known(origin.Origin{Node: string(q[1:]), Epoch: 1})
	case len(q) == 17 && q[0] == askRead:
		if d := g.open[binary.BigEndian.Uint64(q[1:])]; d != nil && d.asker == asker {
			d.idle.Reset(deltaIdle)
			return d.read(int64(binary.BigEndian.Uint64(q[9:]) & math.MaxInt64))
		}
	}
	return refuse(errors.New("it does not know of this delta; its bridge may have started anew"))
}

func refuse(err error) []byte { return append([]byte{answerRefuse}, err.Error()...) }

// begin has a delta written; mu is held.
func (g *deltas) begin(asker string, gift apply.Donation) error {
	if what, setting := lacks(g.cfg, g.cfg.Node, asker); what != "" {
		return fmt.Errorf("node %s has %s, which are not here (%s): a node that has them must be asked", asker, what, setting)
	}
	file, err := deltaFile(g.life)
	if err != nil {
		return err
	}
	g.last++
	id := g.last
	ctx, cancel := context.WithCancel(g.ctx)
	d := &delta{asker: asker, file: file, cancel: cancel}
	d.idle = time.AfterFunc(deltaIdle, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.drop(id)
	})
	g.open[id] = d
	why := "that was away for too long"
	switch {
	case gift.Whole != nil:
		why = "whose data were set back"
	case gift.Merged:
		why = "that joins"
	}
	g.log.Info("gives a delta to a node "+why, "have", gift.Have.String())
	gift.For, gift.Without = asker, residencyOf(g.cfg).without(asker)
	g.wg.Go(func() {
		err := g.write(ctx, gift, d)
		d.mu.Lock()
		d.done, d.err = true, err
		d.mu.Unlock()
		if err != nil {
			g.log.Warn("delta cannot be given", "err", err.Error())
		}
		<-ctx.Done()
		file.Close()
	})
	return nil
}

// deltaFile makes a file without a name.
func deltaFile(l *life) (*os.File, error) {
	file, err := os.CreateTemp(filepath.Join(l.cfg.DataDir, "spool"), "delta-*.run")
	if err != nil {
		return nil, fmt.Errorf("spool a delta: %w; make room in data_dir or make it writable", err)
	}
	return file, os.Remove(file.Name())
}

func (d *delta) read(offset int64) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.err != nil:
		return refuse(d.err)
	case offset < d.size:
		b := make([]byte, 1+min(deltaPiece, d.size-offset))
		b[0] = answerData
		if _, err := d.file.ReadAt(b[1:], offset); err != nil {
			return refuse(err)
		}
		return b
	case d.done:
		return []byte{answerEnd}
	}
	return []byte{answerWait}
}

func (g *deltas) write(ctx context.Context, gift apply.Donation, d *delta) error {
	if gift.Whole != nil {
		gift.Whole.Settled = g.applier.SettledBut(gift.Whole.For)
	}
	if gift.Whole != nil || gift.Merged {
		settled, release, err := g.applier.HoldJournal(ctx)
		if err != nil {
			return err
		}
		defer release()
		gift.Settled = settled
	}
	s, err := capture.ExportSnapshot(ctx, g.cfg.Postgres.DSN)
	if err != nil {
		return err
	}
	defer s.Close()
	gift.Snapshot, gift.Taken, gift.Publication = s.Name, s.Close, slotName(g.cfg)
	gift.Own = func(ctx context.Context) (origin.Entry, error) { return g.ownAt(ctx, s.LSN) }
	return g.applier.Delta(ctx, gift, d)
}

// errBehind ends a scan.
var errBehind = errors.New("behind the place")

// ownAt finds the last own transaction whose commit record begins below lsn, which capture has passed.
func (l *life) ownAt(ctx context.Context, lsn uint64) (e origin.Entry, err error) {
	captured := l.capture.Captured()
	for l.outbox.durableSeq() < captured {
		changed := l.publisher.Changed()
		if l.outbox.durableSeq() >= captured {
			break
		}
		l.capture.Hasten()
		select {
		case <-changed:
		case <-ctx.Done():
			return e, context.Cause(ctx)
		}
	}
	info, err := l.publisher.Info(ctx)
	if err != nil {
		return e, err
	}
	advance := func(b wire.Begin) error {
		if b.CommitLSN >= lsn {
			return errBehind
		}
		e = origin.Entry{Seq: b.Seq, Stamp: b.Stamp}
		return nil
	}
	err = l.publisher.Scan(ctx, max(info.First, l.outbox.beforeLSN(lsn)), info.Last, func(_ uint64, f *wire.Frame) error {
		if f.ResumeLSN <= lsn {
			e = origin.Entry{Seq: f.LastSeq, Stamp: f.LastStamp}
			return nil
		}
		recs := wire.NewRecords(f.Body)
		for {
			rec, err := recs.Next()
			if err == io.EOF {
				return nil
			}
			if err == nil && rec.Kind == wire.KindBegin {
				var b wire.Begin
				if b, err = wire.ParseBegin(rec.Payload); err == nil {
					err = advance(b)
				}
			}
			if err == nil && rec.Kind == wire.KindLargeCommit {
				var c wire.LargeCommit
				if c, err = wire.ParseLargeCommit(rec.Payload); err == nil {
					err = advance(c.Begin)
				}
			}
			if err != nil {
				return err
			}
		}
	})
	if errors.Is(err, errBehind) {
		err = nil
	}
	return e, named("find the last transaction of a snapshot", err)
}

// ask asks another node a question of those above.
func (l *life) ask(ctx context.Context, node string, nc *nats.Conn, question []byte) (kind byte, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, deltaPatience)
	defer cancel()
	a, err := stream.Ask(ctx, nc, stream.DeltaSubject(l.cfg.Cluster, node), question)
	switch {
	case err != nil:
		return 0, nil, err
	case len(a) == 0:
		return 0, nil, errors.New("its answer is empty")
	case a[0] == answerRefuse:
		return 0, nil, errors.New(string(a[1:]))
	}
	return a[0], a[1:], nil
}

// fetchDelta has a node give a delta, as question says, and writes it to a file.
func (l *life) fetchDelta(ctx context.Context, from string, nc *nats.Conn, question []byte) (*os.File, int64, error) {
	ask := func(q []byte) (byte, []byte, error) { return l.ask(ctx, from, nc, q) }
	kind, id, err := ask(question)
	if err == nil && (kind != answerID || len(id) != 8) {
		err = fmt.Errorf("its answer %q cannot be understood", kind)
	}
	if err != nil {
		return nil, 0, err
	}
	file, err := deltaFile(l)
	if err != nil {
		return nil, 0, err
	}
	size := int64(0)
	for {
		kind, data, err := ask(binary.BigEndian.AppendUint64(append([]byte{askRead}, id...), uint64(size)))
		switch {
		case err != nil:
		case kind == answerData:
			if _, err = file.Write(data); err != nil {
				err = fmt.Errorf("spool a delta: %w; make room in data_dir", err)
			}
			size += int64(len(data))
		case kind == answerEnd:
			return file, size, nil
		case kind == answerWait:
			select {
			case <-time.After(deltaPause):
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
		default:
			err = fmt.Errorf("its answer %q cannot be understood", kind)
		}
		if err != nil {
			file.Close()
			return nil, 0, err
		}
	}
}

// lack is what a node lacks that no stream has any more. It is fetched while the node goes on as before, and serves others: two that
// lack something of each other would else each find the other one between two lives. What was fetched the next life takes in. It may
// have read more by then, of other nodes, which does not matter: rows and deletes are a join of states.
type lack struct {
	mu      sync.Mutex // guards what follows
	fetched *fetched   // nil: nothing
	from    string     // of whom it is being fetched; empty: of nobody
	failed  time.Time  // when that failed last
	why     string     // it failed; empty: it did not, or has succeeded since
}

// fetched is a delta that is here.
type fetched struct {
	file *os.File
	from string
	size int64
	took time.Duration
}

// resyncPause is the time from one resync that failed to the next.
const resyncPause = 10 * time.Second

// errLacks ends a life so that the next one takes a delta in, before it reads anything.
var errLacks = errors.New("transactions are gone that this node has not read, and what came of them is here")

// errResynced ends the life that has taken a delta in.
var errResynced = errors.New("a delta was taken in")

// begin says that a delta is to be fetched from a node. An error says why not.
func (k *lack) begin(from string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.from != "":
		return fmt.Errorf("what came of them is fetched from node %s", k.from)
	case time.Since(k.failed) < resyncPause:
		return errors.New(k.why)
	}
	k.from = from
	return nil
}

// ended says how fetching ended, or taking in.
func (k *lack) ended(got *fetched, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.from, k.why, k.fetched = "", "", got
	if err != nil {
		k.failed, k.why = time.Now(), err.Error()
	}
}

// takes returns what is to be taken in, nil if nothing is.
func (k *lack) takes() *fetched {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fetched
}

// rest returns why what is here is not to be taken in right now; nil if it is, or nothing is here.
func (k *lack) rest() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.why != "" && time.Since(k.failed) < resyncPause {
		return errors.New(k.why)
	}
	return nil
}

// fetch fetches a delta from the node that is read from, unless one is here already.
func (l *life) fetch(ctx context.Context, u *upstream) error {
	if l.lack.takes() != nil {
		return l.lack.rest()
	}
	if err := l.lack.begin(u.name); err != nil {
		return err
	}
	begun := time.Now()
	from, file, size, err := l.fetchFrom(ctx, u)
	if err != nil && ctx.Err() != nil {
		l.lack.ended(nil, nil) // the way has changed
		return err
	}
	if err != nil {
		err = fmt.Errorf("what came of them cannot be had from node %s: %w", from, err)
		l.lack.ended(nil, err)
		return err
	}
	l.lack.ended(&fetched{file, from, size, time.Since(begun)}, nil)
	return nil
}

// fetchFrom fetches a delta from the node that is read from or, if that does not have all tables that this one has, from the first that has
// and gives it: frames go only when all other nodes have applied them, so that any of these will do.
func (l *life) fetchFrom(ctx context.Context, u *upstream) (from string, file *os.File, size int64, err error) {
	kind := byte(askBegin)
	if l.takesMerged() {
		kind = askJoin
	}
	question := wire.AppendVector([]byte{kind}, l.applier.Have())
	lacking, setting := lacks(l.cfg, u.name, l.cfg.Node)
	if lacking == "" {
		file, size, err = l.fetchDelta(ctx, u.name, u.nc, question)
		return u.name, file, size, err
	}
	err = fmt.Errorf("it does not have %s (%s), and no other node that has what this one has can be reached from here", lacking, setting)
	for _, o := range l.others() {
		if what, _ := lacks(l.cfg, o.Node, l.cfg.Node); what != "" {
			continue
		}
		nc, late := l.reach(o.Node)
		if late == nil {
			if late = connected(ctx, nc); late == nil { // it takes a while to an edge
				file, size, late = l.fetchDelta(ctx, o.Node, nc, question)
			}
			nc.Close()
		}
		if late == nil {
			return o.Node, file, size, nil
		}
		from, err = o.Node, late
	}
	return cmp.Or(from, u.name), nil, 0, err
}

// takesMerged reports whether this node joins where tables are merged, of which it has nothing yet.
func (l *life) takesMerged() bool { return l.joins() && len(l.cfg.Conflict.Tables) > 0 }

// connected waits for a connection.
func connected(ctx context.Context, nc *nats.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, connectPatience)
	defer cancel()
	return stream.AwaitConnected(ctx, nc)
}

// resync takes a delta in. It always ends the life: it was begun for that.
func (l *life) resync(ctx context.Context) error {
	f := l.lack.takes()
	begun := time.Now()
	got, err := l.applier.Resync(ctx, f.file, l.takesMerged())
	if ctx.Err() != nil {
		return nil // the next life takes it in
	}
	if err != nil {
		err = fmt.Errorf("take in what node %s has given: %w", f.from, err)
	}
	if errors.Is(err, apply.ErrCaptureBehind) {
		l.lack.ended(f, err) // later: others are read first
		return err
	}
	f.file.Close()
	message := "this node was away for too long and has taken in what came meanwhile"
	if err == nil && l.joins() {
		message = "this node has joined and has taken in what came while rows were copied"
		err = l.applier.HasJoined(ctx)
	}
	if err != nil {
		l.lack.ended(nil, err)
		return err
	}
	l.lack.ended(nil, nil)
	l.log.Warn(message, "from", f.from, "bytes", f.size, "rows", got.Rows, "deletes", got.Deletes,
		"conflicts", got.Conflicts, "fetched", f.took.Round(time.Millisecond), "took", (f.took + time.Since(begun)).Round(time.Millisecond))
	return errResynced
}
