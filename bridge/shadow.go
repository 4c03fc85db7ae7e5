package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/wire"
)

// A node in shadow mode reads its WAL and the others' streams, and says which conflicts it would meet (apply/shadow.go). It
// writes nothing into its database: it needs the slot that setup has made, and never confirms it, so that the first live run
// begins where the shadow did. Others that are in shadow mode, too, get its frames in a stream of their own; those that are live
// hear nothing of it, as if it did not run: no hello, no frame, nothing for which they keep less or more than for a node that has
// not started yet.

// ShadowReport is what a node in shadow mode would meet.
type ShadowReport = apply.ShadowReport

// ShadowOrigin is how far it has compared a node's transactions.
type ShadowOrigin = apply.ShadowOrigin

// ShadowConflicts counts the conflicts of a kind.
type ShadowConflicts = apply.ShadowConflicts

// ShadowRow is a row that would meet something.
type ShadowRow = apply.ShadowRow

// shadow is one run of a node in shadow mode, from connecting to the first loss. What it knows it begins anew each time: the slot and
// the streams still have it.
type shadow struct {
	*bridge
	ran     time.Time
	found   *apply.Shadow
	capture *capture.Capture
	pub     *stream.Publisher
	sources []*shadowSource
	seals   *seals
}

// shadowEpoch is the writer epoch of all shadow streams: each begins anew, and no live one is as low.
const shadowEpoch = 1

var errShadow = errors.New("this node is in shadow mode, and takes no part: set mode: live, and start it again")

func (s *shadow) run(ctx context.Context) (err error) {
	if err := s.reviveServer(); err != nil {
		return err
	}
	if err := copying(ctx, s.cfg, s.primary); err != nil {
		return err
	}
	if err := capture.Check(ctx, checkOptions(s.cfg, s.primary)); err != nil {
		return err
	}
	if s.seals, err = readSeals(s.cfg, originOf(s.cfg.Node)); err != nil {
		return err
	}
	if s.found, err = apply.OpenShadow(ctx, s.options()); err != nil {
		return err
	}
	defer s.found.Close()
	nc, err := s.ownConn()
	if err != nil {
		return err
	}
	defer nc.Close()
	if _, err := stream.CheckBroker(ctx, nc, ""); err != nil {
		return err
	}
	fence, err := s.openPublisher(ctx, nc)
	if err != nil {
		return err
	}
	defer s.leave(nc)
	defer s.pub.Close()
	if err := s.openCapture(ctx, fence); err != nil {
		return err
	}
	defer s.capture.Close()
	s.openSources()
	g, ctx := errgroup.WithContext(ctx)
	part(ctx, g, "publish for others in shadow mode", s.pub.Run)
	part(ctx, g, "capture", func(ctx context.Context) error { return unlessOver(ctx, s.capture.Run(ctx)) })
	part(ctx, g, "session", s.watchSession)
	part(ctx, g, "report", s.tell)
	for _, x := range s.sources {
		part(ctx, g, "read what "+x.node+" writes", x.run)
	}
	if s.server != nil {
		part(ctx, g, "embedded broker", s.watchServer)
	}
	s.ran, s.everRan = time.Now(), true
	s.bridge.shadow.Store(s)
	defer s.bridge.shadow.Store(nil)
	s.log.Info("bridge runs in shadow mode: nothing is applied, and nothing of this node is told to nodes that are live", "cluster", s.cfg.Cluster, "node", s.cfg.Node)
	if s.opts.Ready != nil {
		s.opts.Ready()
		s.opts.Ready = nil
	}
	return g.Wait()
}

// unlessOver is err, or nil if ctx has ended.
func unlessOver(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *shadow) options() apply.Options {
	return apply.Options{DSN: s.cfg.Postgres.DSN, Cluster: s.cfg.Cluster, Node: s.cfg.Node, SpoolDir: filepath.Join(s.cfg.DataDir, "spool"),
		Policy: s.cfg.Conflict.Default, Merge: mergePolicies(s.cfg), Priority: s.cfg.Conflict.Priority,
		Elsewhere: residencyOf(s.cfg).without(s.cfg.Node), Rows: placedOf(s.cfg).byTable(), Columns: columnPlaces(s.cfg), Open: s.seals.open, SpoolLimit: bound(int64(s.cfg.Apply.SpoolLimit)), Logger: s.log}
}

func (s *shadow) openPublisher(ctx context.Context, nc *nats.Conn) (*wire.Frame, error) {
	if err := stream.DeleteShadow(ctx, nc, s.cfg.Cluster, s.cfg.Node); err != nil {
		return nil, err
	}
	slot, err := capture.ReadSlot(ctx, s.primary, slotName(s.cfg))
	if err != nil {
		return nil, err
	}
	s.pub, err = stream.OpenPublisher(ctx, nc, stream.PublisherOptions{Cluster: s.cfg.Cluster, Node: s.cfg.Node, Shadow: true,
		MaxBytes: int64(s.cfg.Stream.MaxBytes), Replicas: s.cfg.Stream.Replicas, Zstd: s.cfg.Stream.Compression == "zstd", Logger: s.log})
	if err != nil {
		return nil, err
	}
	fence := &wire.Frame{Header: wire.Header{Fence: true, Cluster: s.cfg.Cluster, Sender: s.cfg.Node, Origin: s.found.Origin(),
		WriterEpoch: shadowEpoch, SystemID: slot.SystemID, Timeline: slot.Timeline, ResumeLSN: slot.ConfirmedLSN}}
	_, err = s.pub.Fence(ctx, fence)
	if err != nil {
		s.pub.Close()
	}
	return fence, named("begin the stream for others in shadow mode", err)
}

func (s *shadow) openCapture(ctx context.Context, fence *wire.Frame) (err error) {
	s.capture, err = capture.New(capture.Options{
		DSN: s.cfg.Postgres.DSN, Cluster: s.cfg.Cluster, Node: s.cfg.Node, Origin: s.found.Origin(), WriterEpoch: shadowEpoch,
		SystemID: fence.SystemID, Timeline: fence.Timeline, Slot: slotName(s.cfg), Publication: slotName(s.cfg),
		FrameBytes: int(s.cfg.Capture.FrameBytes), Linger: s.cfg.Capture.Linger, StatusInterval: s.cfg.Capture.StatusInterval,
		SpoolDir: filepath.Join(s.cfg.DataDir, "spool"), Logger: s.log, Seal: s.seals.byTable(), Open: s.seals.open, Rows: placedOf(s.cfg).byTable(), Columns: columnsOf(s.cfg).byTable(), SealRow: s.seals.byRow(),
	}, &shadowOutbox{s.pub, s.found.Source(s.found.Origin())}, unheard{}, fence)
	return err
}

// shadowOutbox has own frames compared before they go to others.
type shadowOutbox struct {
	*stream.Publisher
	own *apply.ShadowSource
}

// Publish implements capture.Publisher.
func (o *shadowOutbox) Publish(ctx context.Context, f *wire.Frame) (uint64, error) {
	if err := o.own.Feed(ctx, f); err != nil {
		return 0, err
	}
	return o.Publisher.Publish(ctx, f)
}

// Ahead implements capture.Publisher: nobody reads ahead.
func (o *shadowOutbox) Ahead(*wire.Frame, bool) {}

// unheard implements capture.Deletes for a node that applies nothing.
type unheard struct{}

func (unheard) LocalDelete(capture.Delete)     {}
func (unheard) LocalTruncate(capture.Truncate) {}
func (unheard) LocalSchema(uint64, uint32)     {}

// HoldLSN keeps the slot where it is.
func (unheard) HoldLSN() uint64 { return 1 }

// Told is nothing.
func (unheard) Told(before, _ origin.Vector) origin.Vector { return before }

// leave removes the stream: the others have read it, or read it again when this node is a shadow again.
func (s *shadow) leave(nc *nats.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := stream.DeleteShadow(ctx, nc, s.cfg.Cluster, s.cfg.Node); err != nil {
		s.log.Warn("the stream of shadow mode is left at the broker", "err", err.Error())
	}
}

// sessionEvery is how often it is made sure that the session with the node's lock is there.
const sessionEvery = 5 * time.Second

func (s *shadow) watchSession(ctx context.Context) error {
	tick := time.NewTicker(sessionEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := s.found.Ping(ctx); err != nil {
				return unlessOver(ctx, err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// tellEvery is how often the log says how many conflicts there would be, if their number has changed.
const tellEvery = time.Minute

func (s *shadow) tell(ctx context.Context) error {
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	last := uint64(0)
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		r := s.found.Report()
		if n := r.Total(); n != last {
			last = n
			s.log.Info("conflicts that there would be", "conflicts", n, "seq", s.found.Reached(s.found.Origin()))
		}
		if r.Full {
			s.log.Warn("no more writes are compared: there is no room to remember more", "limit", apply.ShadowLimit)
		}
	}
}

// openSources reads each other node that can be dialled twice: what it writes when it is live, and in shadow mode. Only one of the
// streams is there, most often, and the other one is waited for.
func (s *shadow) openSources() {
	for _, node := range s.peers() {
		for _, shadows := range []bool{false, true} {
			s.sources = append(s.sources, &shadowSource{shadow: s, node: node, shadows: shadows})
		}
	}
}

func (s *shadow) peers() []string {
	return slices.DeleteFunc(peerNames(s.cfg), s.cfg.Edge)
}

// shadowSource reads one stream of another node.
type shadowSource struct {
	*shadow
	node    string
	shadows bool
	reader  atomic.Pointer[stream.Reader]
	problem atomic.Pointer[string]
	seen    atomic.Uint64 // highest seq that has come
}

func (x *shadowSource) run(ctx context.Context) error {
	nc, err := x.connect(x.cfg.Topology.Nodes[x.node], x.node)
	if err != nil {
		return err
	}
	defer nc.Close()
	o := origin.Origin{Node: x.node, Epoch: 1}
	r, err := stream.NewReader(nc, stream.ReaderOptions{Cluster: x.cfg.Cluster, Sender: x.node, Origin: x.node, Shadow: x.shadows, Logger: x.log})
	if err != nil {
		return err
	}
	x.reader.Store(r)
	source := x.found.Source(o)
	defer source.Close()
	pauses, find := pauses{}, false
	for {
		from, before := uint64(1), x.seen.Load()
		var err error
		if find {
			from, err = r.Find(ctx, o, x.found.Reached(o)+1)
		}
		if err == nil {
			source.Restart()
			err = r.Run(ctx, from, func(ctx context.Context, m stream.Message) error { return x.take(ctx, source, m.Frame) })
		}
		if ctx.Err() != nil {
			return nil
		}
		if err := x.found.Failed(); err != nil {
			return err
		}
		find = errors.Is(err, stream.ErrGap) || errors.Is(err, stream.ErrStreamChanged) || errors.Is(err, apply.ErrGap)
		text := err.Error()
		x.problem.Store(&text)
		select {
		case <-time.After(pauses.next(x.seen.Load() > before)):
		case <-ctx.Done():
			return nil
		}
	}
}

func (x *shadowSource) take(ctx context.Context, source *apply.ShadowSource, f *wire.Frame) error {
	if err := source.Feed(ctx, f); err != nil {
		return err
	}
	x.problem.Store(nil)
	x.seen.Store(max(x.seen.Load(), f.LastSeq))
	return nil
}

// report tells of a node in shadow mode.
func (s *shadow) report(r *Report) {
	c := s.capture.Status()
	r.Epoch, r.Seq, r.Capture = s.found.Origin().Epoch, c.Seq, CaptureReport{State: c.State, Waiting: c.Waiting}
	if c.Seq > 0 {
		r.Stamp = c.Stamp.Time()
	}
	r.Slot.CapturedLSN, r.Slot.ConfirmedLSN = pglogrepl.LSN(c.PassedLSN).String(), pglogrepl.LSN(c.ConfirmedLSN).String()
	r.Shadow = s.found.Report()
	for _, node := range slices.Sorted(maps.Keys(s.cfg.Topology.Nodes)) {
		if node != s.cfg.Node && s.cfg.Edge(node) {
			r.Shadow.Undecided = append(r.Shadow.Undecided, fmt.Sprintf("what node %s writes: it is an edge, which nobody can dial", node))
		}
	}
	if state, err := s.pub.State(); err != nil {
		r.Publisher = PublisherReport{State: state, Waiting: err.Error()}
		r.Shadow.Undecided = append(r.Shadow.Undecided, "what is written here since the broker takes no more: "+err.Error())
	} else {
		r.Publisher.State = state
	}
	for _, node := range s.peers() {
		r.Links = append(r.Links, s.reportLink(node))
	}
	text := fmt.Sprintf("nothing is applied here and no live node hears of this one; there would be %s; the slot holds %d bytes of WAL", count(int(r.Shadow.Total()), "conflict", "conflicts"), r.Slot.WALHeldBytes)
	if r.Shadow.Full {
		text += "; no more writes are compared since there is no room to remember more"
	}
	r.Alarms = append(r.Alarms, Alarm{Code: "shadow", Severity: SeverityWarning, Text: text,
		Mend: "set mode: live when it has been looked at, and start the bridge again: it goes on from where the slot stands"})
}

// reportLink tells how far one other node is read: by the stream that has come further.
func (s *shadow) reportLink(node string) LinkReport {
	o := origin.Origin{Node: node, Epoch: 1}
	r := LinkReport{Link: node, URL: s.cfg.Redacted().Topology.Nodes[node], Origin: o.String(), State: "away", ReceivedSeq: s.found.Reached(o)}
	var why []string
	for _, x := range s.sources {
		if x.node != node {
			continue
		}
		if p := x.problem.Load(); p != nil {
			why = append(why, *p)
		} else if reader := x.reader.Load(); reader != nil {
			state, err := reader.State()
			if state == stream.StateReading {
				r.State = "connected"
			} else if err != nil {
				why = append(why, err.Error())
			}
		}
	}
	if r.State != "connected" {
		r.Waiting = strings.Join(slices.Compact(why), "; ")
	}
	return r
}
