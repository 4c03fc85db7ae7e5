package bridge

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
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
	ran       time.Time // since when all parts run; zero: they never did
	own       origin.Origin
	applier   *apply.Applier
	node      apply.Node // as the applier found it; its own goes on changing
	capture   *capture.Capture
	tables    *capture.TableWatch
	publisher *stream.Publisher
	outbox    *outbox
	// neighbours are asked from whom to read.
	neighbours *neighbours
	peers      []*peer
	relays     []*relay
	conns      []*nats.Conn    // the publisher's to the own broker first
	visits     *nats.Conn      // through which edges are reached; nil: there are none, or this is one
	lacking    map[string]bool // nodes that are known to lack what is gone; retain's
	firstOwn   uint64          // the last own transaction before this life
	sequences  sequenceWatch
	conflicts  minute
	seals      *seals
	signing    signing
	forgets    chan error     // of capacity 1: a node is gone, and the next life does without it
	joining    *apply.Joining // nil: this node did not join with rows of another one
}

// run builds the parts in the order in which they need each other, and runs them.
func (l *life) run(ctx context.Context) (err error) {
	defer l.close()
	if err := l.reviveServer(); err != nil {
		return err
	}
	if err := copying(ctx, l.cfg, l.primary); err != nil {
		return err
	}
	if err := l.checkGone(ctx); err != nil {
		return err
	}
	if err := l.prepare(ctx); err != nil {
		return err
	}
	if err := l.openApplier(ctx); err != nil {
		return err
	}
	if err := l.checkMembership(ctx); err != nil {
		return err
	}
	if err := l.openPublisher(ctx); err != nil {
		return err
	}
	if l.node.Restoring {
		return named("node is brought back", l.comeBack(ctx))
	}
	if err := l.openCapture(ctx); err != nil {
		return err
	}
	if err := l.openRelays(ctx); err != nil {
		return err
	}
	l.openNeighbours()
	if err := l.openPeers(); err != nil {
		return err
	}
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
	// The applier closes its connections when it ends, so those who ask it end before it.
	applying, endApplying := context.WithCancel(context.WithoutCancel(s.working))
	var askers sync.WaitGroup
	asks := func(run func(context.Context) error) func(context.Context) error {
		askers.Add(1)
		return func(ctx context.Context) error {
			defer askers.Done()
			return run(ctx)
		}
	}
	part(s.working, g, "publish", l.publisher.Run)
	part(applying, g, "apply", func(ctx context.Context) error { return l.applier.Run(ctx, l.capture, streams{l}) })
	part(s.capturing, g, "capture", l.runCapture)
	part(s.working, g, "retention", asks(l.retain))
	part(s.working, g, "tables", l.tables.Run)
	part(s.working, g, "sequences", l.watchSequences)
	if l.traces != nil {
		part(s.working, g, "traces", asks(func(ctx context.Context) error { return l.traces.run(ctx, l.own, l.applier, l.publisher) }))
	}
	part(s.reading, g, "neighbours", asks(l.neighbours.run))
	part(s.reading, g, "deltas", asks(l.giveDeltas))
	part(s.reading, g, "answers", asks(l.answerNodes))
	part(s.reading, g, "verify", asks(l.runVerify))
	part(s.reading, g, "members", asks(l.answerMembers))
	peers := l.peers
	switch {
	case l.lack.takes() != nil && l.lack.rest() == nil:
		part(s.reading, g, "resync", asks(l.resync))
		peers = nil
	case l.joins():
		part(s.reading, g, "join", asks(l.fetchJoin))
		peers = nil
	}
	for _, p := range peers {
		part(s.reading, g, "read what "+p.origin.Node+" writes", asks(p.run))
	}
	for _, r := range l.relays {
		part(s.working, g, "publish frames of "+r.origin.Node, r.publish)
		part(s.working, g, "hand on frames of "+r.origin.Node, asks(r.run))
		part(s.working, g, "retention of frames of "+r.origin.Node, r.retain)
	}
	g.Go(func() error {
		<-s.working.Done()
		askers.Wait()
		endApplying()
		return nil
	})
	if l.server != nil {
		part(s.working, g, "embedded broker", l.watchServer)
	}
	l.ran, l.everRan = time.Now(), true
	l.current.set(l)
	l.limit()
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

// errEnded is what a part ended with that gave no error, though nobody had told it to end.
var errEnded = errors.New("it ended without an error")

// part starts one part of a life. None may end before its stage does: the bridge would go on without it.
func part(ctx context.Context, g *errgroup.Group, what string, run func(context.Context) error) {
	g.Go(func() error {
		err := run(ctx)
		if err == nil && ctx.Err() == nil {
			err = errEnded
		}
		return named(what, err)
	})
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
	if l.capture != nil {
		l.capture.Close()
	}
	if l.publisher != nil {
		l.publisher.Close()
	}
	for _, r := range l.relays {
		r.pub.Close()
	}
	for _, nc := range l.conns {
		nc.Close()
	}
}

// prepare checks the server and, if the configuration lets it, creates what is missing there.
func (l *life) prepare(ctx context.Context) error {
	if l.cfg.Postgres.AutoSetup {
		if err := setUp(ctx, l.cfg, l.primary, func(text string) { l.log.Warn(text) }); err != nil {
			return err
		}
	}
	o := checkOptions(l.cfg, l.primary)
	o.Running = l.everRan // what came since it began must not end a bridge that ran
	l.tables = capture.NewTableWatch(o, l.cfg.Postgres.AutoSetup, l.log)
	return capture.Check(ctx, o)
}

func (l *life) openApplier(ctx context.Context) error {
	chosen, excluded, err := capture.Regexps(l.cfg.Tables)
	if err != nil {
		return err
	}
	merged, _, err := capture.Regexps(checkOptions(l.cfg, nil).Merged)
	if err != nil {
		return err
	}
	if len(l.cfg.Conflict.Tables) == 0 {
		merged = ""
	}
	if l.signing, err = readSigning(l.cfg); err != nil {
		return err
	}
	if l.seals, err = readSeals(l.cfg, originOf(l.cfg.Node)); err != nil {
		return err
	}
	a, err := apply.Open(ctx, apply.Options{
		Open:   l.seals.open,
		Chosen: chosen, Excluded: excluded, Merged: merged,
		DSN: l.cfg.Postgres.DSN, Cluster: l.cfg.Cluster, Node: l.cfg.Node, Peers: peerNames(l.cfg),
		SpoolDir: filepath.Join(l.cfg.DataDir, "spool"), Policy: l.cfg.Conflict.Default,
		BatchTransactions: l.cfg.Apply.BatchTransactions, BatchBytes: int(l.cfg.Apply.BatchBytes), Rate: int64(l.cfg.Apply.Rate), YieldAt: l.cfg.Apply.YieldAt,
		MaxClockSkew: l.cfg.Apply.MaxClockSkew, ConflictRetention: bound(l.cfg.Apply.ConflictRetention),
		Writers: writersOf(l.cfg), Elsewhere: residencyOf(l.cfg).without(l.cfg.Node), Rows: placedOf(l.cfg).byTable(), Columns: columnPlaces(l.cfg), Merge: mergePolicies(l.cfg), Priority: l.cfg.Conflict.Priority, ForeignKeys: foreignKeyPolicies(l.cfg),
		ConflictRows: bound(l.cfg.Apply.ConflictRows), SpoolLimit: bound(int64(l.cfg.Apply.SpoolLimit)),
		Logger: l.log, NoHold: l.opts.NoHold, Running: l.everRan,
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

// ownConn returns a connection to the own broker.
func (b *bridge) ownConn() (*nats.Conn, error) {
	if b.server != nil {
		return b.server.Connect()
	}
	return b.connect(b.cfg.NATS.URL, b.cfg.Node)
}

func (l *life) connectOwn(ctx context.Context) (*nats.Conn, error) {
	nc, err := l.ownConn()
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
	if err := l.openVisits(); err != nil {
		return err
	}
	if l.node.RestoredLSN != 0 {
		if err := stream.Delete(ctx, nc, l.cfg.Cluster, l.cfg.Node); err != nil {
			return named("begin the own stream anew", err)
		}
	}
	if l.server != nil { // a shadow that was killed has left it there
		if err := stream.DeleteShadow(ctx, nc, l.cfg.Cluster, l.cfg.Node); err != nil {
			return err
		}
	}
	l.publisher, err = stream.OpenPublisher(ctx, nc, stream.PublisherOptions{
		Cluster: l.cfg.Cluster, Node: l.cfg.Node, MaxBytes: int64(l.cfg.Stream.MaxBytes), Replicas: l.cfg.Stream.Replicas,
		Zstd: l.cfg.Stream.Compression == "zstd", Notes: l.notes(), Logger: l.log, FirstSeq: l.firstSeq(), Signer: l.signing.signer,
	})
	return err
}

// openCapture fences the stream, so that an earlier bridge cannot write to it any more, then lets
// capture and apply learn what the retained own frames say.
func (l *life) openCapture(ctx context.Context) error {
	node := l.node
	o := origin.Origin{Node: node.Name, Epoch: node.Epoch}
	l.own = o
	info, err := capture.ReadSlot(ctx, l.primary, slotName(l.cfg))
	if err != nil {
		return err
	}
	fence, err := l.fence(ctx, node, info, o)
	if err != nil {
		return err
	}
	l.firstOwn = fence.LastSeq
	from, err := l.deletesFrom(ctx, info)
	if err != nil {
		return err
	}
	if err := l.applier.CheckDeletesFrom(ctx, from); err != nil {
		return err
	}
	l.outbox = &outbox{Publisher: l.publisher, published: l.applier.Published, traces: l.traces}
	if fence.LastSeq == 0 {
		l.outbox.before = &fence.Header
	}
	column, at := homes(l.cfg)
	l.capture, err = capture.New(capture.Options{
		Seal: l.seals.byTable(), Open: l.seals.open, Rows: placedOf(l.cfg).byTable(), Columns: columnsOf(l.cfg).byTable(), SealRow: l.seals.byRow(),
		HomeColumn: column, AtHome: func(value []byte) bool { return at(l.cfg.Node, value) },
		DSN: l.cfg.Postgres.DSN, Cluster: l.cfg.Cluster, Node: l.cfg.Node, Origin: o, WriterEpoch: node.WriterEpoch,
		SystemID: info.SystemID, Timeline: info.Timeline, Slot: slotName(l.cfg), Publication: slotName(l.cfg),
		FrameBytes: int(l.cfg.Capture.FrameBytes), Linger: l.cfg.Capture.Linger, StatusInterval: l.cfg.Capture.StatusInterval,
		SpoolDir: filepath.Join(l.cfg.DataDir, "spool"), AgainLSN: l.applier.Node().AgainLSN, StartXID: l.applier.Node().NextXID, Logger: l.log, Secret: l.node.Secret,
	}, l.outbox, deletes{l.applier, l.outbox}, fence)
	if err != nil {
		return err
	}
	return l.restore(ctx)
}

func (l *life) restore(ctx context.Context) error {
	if err := l.applier.Gists(ctx, l.capture.RestoreGist); err != nil {
		return err
	}
	info, err := l.publisher.Info(ctx)
	if err != nil {
		return err
	}
	if info.Last < info.First {
		return nil
	}
	gone, _ := l.applier.Gone() // by the gists, if they have not come to go
	err = l.publisher.Scan(ctx, max(info.First, gone), info.Last, func(seq uint64, f *wire.Frame) error {
		l.outbox.note(seq, f)
		return l.capture.Restore(f)
	})
	return named("read own stream back", err)
}

// others are the other nodes, as origins, by name, without those that are gone.
func (l *life) others() (all []origin.Origin) {
	for _, name := range l.cfg.Graph().Nodes() {
		if name != l.cfg.Node && !l.applier.IsGone(name) {
			all = append(all, origin.Origin{Node: name, Epoch: 1})
		}
	}
	return all
}

// openRelays lets this node hand on what others write, where a neighbour gets that from here, or may if a node dies; and keep what
// it does not get from its author, who alone keeps it for all (streams.Reread).
func (l *life) openRelays(ctx context.Context) error {
	g := l.cfg.Graph()
	for _, o := range l.others() {
		if !l.rerouted() && !g.HandsOn(l.cfg.Node, o.Node) && g.Next(l.cfg.Node, o.Node) == o.Node {
			continue
		}
		r, err := l.openRelay(ctx, l.conns[0], o)
		if err != nil {
			return err
		}
		l.relays = append(l.relays, r)
	}
	return nil
}

// openPeers makes a reader of each other node's transactions.
func (l *life) openPeers() error {
	g := l.cfg.Graph()
	for _, o := range l.others() {
		if g.Next(l.cfg.Node, o.Node) == "" {
			return &configError{fmt.Sprintf("no way leads from %s to %s; correct topology.links", l.cfg.Node, o.Node)}
		}
		p := &peer{life: l, origin: o}
		for _, r := range l.relays {
			if r.origin == o {
				p.relay = r
			}
		}
		l.peers = append(l.peers, p)
	}
	return nil
}

// reviveServer starts the embedded server again if it is down or frozen: that watchServer tried to, as a full disk
// let it fail, is no reason to leave it so.
func (b *bridge) reviveServer() error {
	if b.server == nil {
		return nil
	}
	err := b.server.Healthy()
	if err == nil {
		return nil
	}
	b.log.Warn("embedded broker starts anew", "err", err.Error())
	return named("embedded broker", b.server.Restart())
}

// watchServer ends the life when the embedded server's store has failed, and starts the server anew.
func (b *bridge) watchServer(ctx context.Context) error {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := b.server.Healthy(); err != nil {
				return errors.Join(err, b.server.Restart())
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// retain purges the own stream up to what every peer has seen and flushed (PROOF.md R22). That they have seen it
// is known from transactions that were applied here asynchronously: those are flushed before anything goes. A
// crash would otherwise take them back, and bring older ones again that an own delete beats which then stands
// nowhere (R20). Nor does anything go before the standbys have that, without which nothing is shown to others: the one that
// takes over would take it back just so. Beyond stream.absent_bytes it does not wait for nodes that are away.
func (l *life) retain(ctx context.Context) error {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	var still standstill
	var due, letGo purge
	l.lacking = names(l.applier.Lacking())
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		l.capture.Forget(l.applier.Stable())
		l.conflicts.note(time.Now(), l.conflictCount())
		away := l.away()
		seq, low := l.outbox.lastTold()
		l.applier.Turn(seq, low, away)
		if err := l.purge(ctx, &due); err != nil {
			return err
		}
		l.letGo(ctx, away, &letGo)
		l.relieve(ctx, &still, l.applier.StableEverywhere())
		published, stamp := l.outbox.durableLast()
		if err := l.applier.NotePublished(ctx, published, stamp); err != nil {
			return err
		}
		if err := l.noteBeginning(ctx); err != nil {
			return err
		}
	}
}

// noteBeginning notes with which state the own stream begins anew, as long as nothing is known to be published.
func (l *life) noteBeginning(ctx context.Context) error {
	n := l.applier.Node()
	if n.Published > 0 {
		return nil
	}
	h := l.outbox.beginning(n.Beginning)
	if h == nil {
		return nil
	}
	return l.applier.NoteBeginning(ctx, h)
}

// purge is what of the own stream goes when the standbys have the WAL up to lsn.
type purge struct{ below, lsn uint64 }

// purge purges what is due, or puts it off until the standbys have what it rests on.
func (l *life) purge(ctx context.Context, due *purge) error {
	if due.below == 0 {
		below := l.outbox.below(l.applier.StableEverywhere(), l.applier.HoldLSN())
		if below == 0 {
			return nil
		}
		lsn, err := l.applier.Flush(ctx)
		if err != nil {
			return err
		}
		*due = purge{below, lsn}
	}
	if _, err := l.purgeDue(ctx, due); err != nil && ctx.Err() == nil {
		l.log.Warn("own stream cannot be purged", "err", err.Error())
	}
	return nil
}

// purgeDue reports whether the standbys have what is wanted; then what is due is purged.
func (l *life) purgeDue(ctx context.Context, due *purge) (bool, error) {
	if s := l.capture.Standbys(); s.Failover && s.Names != "" && s.LSN < due.lsn {
		return false, nil
	}
	below := due.below
	*due = purge{}
	return true, l.publisher.Purge(ctx, below)
}
