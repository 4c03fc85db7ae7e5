package bridge

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sort"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/wire"
)

// life is one run of all parts, from connecting to the first loss.
type life struct {
	*bridge
	ran       bool
	applier   *apply.Applier
	node      apply.Node // as the applier found it; its own goes on changing
	capture   *capture.Capture
	tables    *capture.TableWatch
	publisher *stream.Publisher
	outbox    *outbox
	peers     []*peer
	conns     []*nats.Conn
}

// run builds the parts in the order in which they need each other, and runs them.
func (l *life) run(ctx context.Context) (err error) {
	defer l.close()
	if err := l.prepare(ctx); err != nil {
		return err
	}
	if err := l.openApplier(ctx); err != nil {
		return err
	}
	if err := l.openPublisher(ctx); err != nil {
		return err
	}
	if err := l.openCapture(ctx); err != nil {
		return err
	}
	l.openPeers()
	working, endWorking := context.WithCancel(context.WithoutCancel(ctx))
	defer endWorking()
	g, working := errgroup.WithContext(working)
	capturing, endCapturing := context.WithCancel(working)
	defer endCapturing()
	reading, endReading := context.WithCancel(working)
	defer endReading()
	s := stages{reading, capturing, working}
	l.start(s, g)
	g.Go(func() error {
		l.drain(ctx, s, endReading, endCapturing, endWorking)
		return nil
	})
	return g.Wait()
}

func (l *life) start(s stages, g *errgroup.Group) {
	ctx := s.working
	// The applier closes its connections when it ends, so those who ask it end before it.
	applying, endApplying := context.WithCancel(context.WithoutCancel(ctx))
	var askers sync.WaitGroup
	asks := func(part func() error) {
		askers.Add(1)
		g.Go(func() error {
			defer askers.Done()
			return part()
		})
	}
	g.Go(func() error { return named("publish", l.publisher.Run(ctx)) })
	g.Go(func() error { return named("apply", l.applier.Run(applying, l.capture)) })
	g.Go(func() error { return named("capture", l.runCapture(s.capturing)) })
	asks(func() error { return named("retention", l.retain(ctx)) })
	g.Go(func() error { return named("tables", l.tables.Run(ctx)) })
	for _, p := range l.peers {
		asks(func() error { return named("read from "+p.name, p.run(s.reading)) })
	}
	g.Go(func() error {
		<-ctx.Done()
		askers.Wait()
		endApplying()
		return nil
	})
	if l.server != nil {
		g.Go(func() error { return named("embedded broker", l.watchServer(ctx)) })
	}
	l.ran, l.everRan = true, true
	l.current.set(l)
	l.log.Info("bridge runs", "cluster", l.cfg.Cluster, "node", l.cfg.Node, "writer_epoch", l.node.WriterEpoch)
	if l.opts.Ready != nil {
		l.opts.Ready()
		l.opts.Ready = nil
	}
}

// runCapture ends without an error when a stop has ended it: the others go on then.
func (l *life) runCapture(ctx context.Context) error {
	if err := l.capture.Run(ctx); ctx.Err() == nil {
		return err
	}
	return nil
}

func named(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// close gives up what a life that did not come to run has opened.
func (l *life) close() {
	l.current.set(nil)
	if l.applier != nil {
		l.applier.Close()
	}
	if l.publisher != nil {
		l.publisher.Close()
	}
	for _, nc := range l.conns {
		nc.Close()
	}
}

// prepare checks the server and, if the configuration lets it, creates what is missing there.
func (l *life) prepare(ctx context.Context) error {
	if l.cfg.Postgres.AutoSetup {
		if err := Setup(ctx, l.cfg); err != nil {
			return err
		}
	}
	o := checkOptions(l.cfg)
	o.Running = l.everRan // what came since it began must not end a bridge that ran
	l.tables = capture.NewTableWatch(o, l.cfg.Postgres.AutoSetup, l.log)
	return capture.Check(ctx, o)
}

func (l *life) openApplier(ctx context.Context) error {
	a, err := apply.Open(ctx, apply.Options{
		DSN: l.cfg.Postgres.DSN, Cluster: l.cfg.Cluster, Node: l.cfg.Node, Peers: peerNames(l.cfg),
		SpoolDir: filepath.Join(l.cfg.DataDir, "spool"), Policy: l.cfg.Conflict.Default,
		BatchTransactions: l.cfg.Apply.BatchTransactions, BatchBytes: int(l.cfg.Apply.BatchBytes),
		MaxClockSkew: l.cfg.Apply.MaxClockSkew, ConflictRetention: bound(l.cfg.Apply.ConflictRetention),
		ConflictRows: bound(l.cfg.Apply.ConflictRows), SpoolLimit: bound(int64(l.cfg.Apply.SpoolLimit)),
		Logger: l.log, NoHold: l.opts.NoHold,
	})
	if l.applier = a; a != nil {
		l.node = a.Node()
	}
	return err
}

// bound turns the configuration's "0 is no bound" into the options' "negative is no bound".
func bound[T int | int64 | time.Duration](v T) T {
	if v == 0 {
		return -1
	}
	return v
}

func (l *life) connectOwn(ctx context.Context) (*nats.Conn, error) {
	var nc *nats.Conn
	var err error
	if l.server != nil {
		nc, err = l.server.Connect()
	} else {
		nc, err = l.connect(l.cfg.NATS.URL, "its own stream")
	}
	if err != nil {
		return nil, err
	}
	l.conns = append(l.conns, nc)
	_, err = stream.CheckBroker(ctx, nc, "")
	return nc, err
}

func (l *life) openPublisher(ctx context.Context) error {
	nc, err := l.connectOwn(ctx)
	if err != nil {
		return err
	}
	l.publisher, err = stream.OpenPublisher(ctx, nc, stream.PublisherOptions{
		Cluster: l.cfg.Cluster, Node: l.cfg.Node, MaxBytes: int64(l.cfg.Stream.MaxBytes),
		Zstd: l.cfg.Stream.Compression == "zstd", Logger: l.log,
	})
	return err
}

// openCapture fences the stream, so that an earlier bridge cannot write to it any more, then lets
// capture and apply learn what the retained own frames say.
func (l *life) openCapture(ctx context.Context) error {
	node := l.node
	o := origin.Origin{Node: node.Name, Epoch: node.Epoch}
	info, err := capture.ReadSlot(ctx, l.cfg.Postgres.DSN, slotName(l.cfg))
	if err != nil {
		return err
	}
	fence, err := l.fence(ctx, node, info, o)
	if err != nil {
		return err
	}
	if err := l.applier.CheckDeletesFrom(ctx, info.ConfirmedLSN); err != nil {
		return err
	}
	l.outbox = &outbox{Publisher: l.publisher}
	l.capture, err = capture.New(capture.Options{
		DSN: l.cfg.Postgres.DSN, Cluster: l.cfg.Cluster, Node: l.cfg.Node, Origin: o, WriterEpoch: node.WriterEpoch,
		SystemID: info.SystemID, Timeline: info.Timeline, Slot: slotName(l.cfg), Publication: slotName(l.cfg),
		FrameBytes: int(l.cfg.Capture.FrameBytes), Linger: l.cfg.Capture.Linger, StatusInterval: l.cfg.Capture.StatusInterval,
		SpoolDir: filepath.Join(l.cfg.DataDir, "spool"), Logger: l.log,
	}, l.outbox, deletes{l.applier}, fence)
	if err != nil {
		return err
	}
	return l.restore(ctx)
}

func (l *life) restore(ctx context.Context) error {
	info, err := l.publisher.Info(ctx)
	if err != nil {
		return err
	}
	if info.Last < info.First {
		return nil
	}
	err = l.publisher.Scan(ctx, info.First, info.Last, func(seq uint64, f *wire.Frame) error {
		l.outbox.note(seq, f)
		return l.capture.Restore(f)
	})
	return named("read own stream back", err)
}

func (l *life) openPeers() {
	for name, url := range l.cfg.Topology.Nodes {
		if name != l.cfg.Node {
			l.peers = append(l.peers, &peer{life: l, name: name, url: url, origin: origin.Origin{Node: name, Epoch: 1}})
		}
	}
	sort.Slice(l.peers, func(i, j int) bool { return l.peers[i].name < l.peers[j].name })
}

// watchServer ends the life when the embedded server's store has failed, and starts the server anew.
func (l *life) watchServer(ctx context.Context) error {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := l.server.Healthy(); err != nil {
				return errors.Join(err, l.server.Restart())
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// retain purges the own stream up to what every peer has seen and flushed (PROOF.md R22). That they have seen it
// is known from transactions that were applied here asynchronously: those are flushed before anything goes. A
// crash would otherwise take them back, and bring older ones again that an own delete beats which then stands
// nowhere (R20).
func (l *life) retain(ctx context.Context) error {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		stable := l.applier.StableSeq()
		if below := l.outbox.below(stable, l.applier.HoldLSN()); below > 0 {
			if err := l.applier.Flush(ctx); err != nil {
				return err
			}
			l.capture.Forget(stable)
			if err := l.publisher.Purge(ctx, below); err != nil && ctx.Err() == nil {
				l.log.Warn("own stream cannot be purged", "err", err.Error())
			}
		}
		if err := l.applier.NotePublished(ctx, l.outbox.durableSeq()); err != nil {
			return err
		}
	}
}
