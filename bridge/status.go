package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
)

// current is the life that runs, if one does, and why the last one ended.
type current struct {
	mu   sync.Mutex
	life *life
	err  error
}

func (c *current) set(l *life) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.life = l
	if l != nil {
		c.err = nil
	}
}

func (c *current) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

func (c *current) get() (*life, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.life, c.err
}

// ErrNotRunning means that no bridge runs for the node on this machine.
var ErrNotRunning = errors.New("no bridge runs for this node here; start it with pgbridge run")

// Status asks the running bridge of this configuration for its report. If none runs, the report holds
// what the database says, and the error is ErrNotRunning.
func Status(ctx context.Context, cfg *config.Config) (*Report, error) {
	resp, err := ask(ctx, cfg, "/status")
	if err != nil {
		b := &bridge{cfg: cfg, primary: capture.NewPrimary(cfg.Postgres.DSN)}
		defer b.primary.Close()
		r := b.report(ctx)
		r.Waiting = ErrNotRunning.Error()
		return r, ErrNotRunning
	}
	defer resp.Body.Close()
	r := &Report{}
	if err := json.NewDecoder(resp.Body).Decode(r); err != nil {
		return nil, fmt.Errorf("read status from %s: %w", socketPath(cfg.DataDir), err)
	}
	return r, nil
}

// ask sends a question to the bridge that runs with this configuration; ErrNotRunning if none does.
func ask(ctx context.Context, cfg *config.Config, path string) (*http.Response, error) {
	return send(ctx, cfg, http.MethodGet, path)
}

func send(ctx context.Context, cfg *config.Config, method, path string) (*http.Response, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socketPath(cfg.DataDir))
	}}}
	req, err := http.NewRequestWithContext(ctx, method, "http://bridge"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil && ctx.Err() == nil {
		return nil, ErrNotRunning
	}
	return resp, err
}

// owedPatience is how long a row may be owed before that is an alarm.
const owedPatience = time.Minute

const starting = "the bridge is starting"

func (b *bridge) report(ctx context.Context) *Report {
	r := &Report{Cluster: b.cfg.Cluster, Node: b.cfg.Node, At: time.Now().UTC(), Alarms: []Alarm{}, Links: []LinkReport{}, Nodes: []NodeReport{}}
	defer r.judge()
	r.Stream.Stream = fmt.Sprintf("PGB_%s_%s", b.cfg.Cluster, b.cfg.Node)
	r.Slot.Slot = slotName(b.cfg)
	b.reportSlot(ctx, r)
	if b.server != nil {
		refused := b.server.Refusals()
		r.BrokerRefused = &refused
	}
	if b.console != nil {
		r.SignInsRefused = b.console.Refused()
	}
	if b.settings != nil { // else nothing runs
		if a := b.settings.alarm(); a != nil {
			r.Alarms = append(r.Alarms, *a)
		}
	}
	compared, differ := b.verify.reportRows()
	if r.Compared = compared; differ != nil {
		r.Alarms = append(r.Alarms, *differ)
	}
	l, err := b.current.get()
	if l == nil || l.joins() {
		b.reportJoining(ctx, r)
	}
	if s := b.shadow.Load(); s != nil {
		s.report(r)
		return r
	}
	if l == nil {
		if r.Waiting = starting; err != nil {
			r.Waiting = err.Error()
		}
		return r
	}
	r.Epoch, r.WriterEpoch = l.node.Epoch, l.node.WriterEpoch
	s := l.capture.Status()
	r.Capture = CaptureReport{State: s.State, Waiting: s.Waiting}
	if s.State != capture.StateStreaming && s.Waiting != "" {
		r.Alarms = append(r.Alarms, Alarm{Code: "capture-waits", Severity: SeverityError,
			Text: fmt.Sprintf("local changes are not read: %s; the slot holds %d bytes of WAL", s.Waiting, r.Slot.WALHeldBytes),
			Mend: "let the bridge's walsender connect again: a free one, pg_hba.conf, nobody else on the slot; nothing is lost meanwhile, but the WAL grows"})
	}
	r.Seq = s.Seq
	if s.Seq > 0 {
		r.Stamp = s.Stamp.Time()
	}
	r.Slot.CapturedLSN = pglogrepl.LSN(s.PassedLSN).String()
	r.Slot.ConfirmedLSN = pglogrepl.LSN(s.ConfirmedLSN).String()
	standbys := l.capture.Standbys()
	r.Slot.Standbys = standbys.Held
	r.Alarms = append(r.Alarms, standbyAlarms(standbys, l.cfg.Postgres.Failover)...)
	l.reportPublisher(ctx, r)
	for _, f := range l.tables.Findings() {
		r.Alarms = append(r.Alarms, Alarm{Code: f.Code, Severity: SeverityError, Text: f.Thing + " " + f.Fault, Mend: f.Mend})
	}
	for _, p := range l.applier.Paused() {
		r.Alarms = append(r.Alarms, pauseAlarm(p))
	}
	r.Alarms = append(r.Alarms, yieldAlarms(l.applier.Yields())...)
	r.Conflicts = l.applier.ConflictKinds()
	for _, x := range l.applier.Clocks() {
		r.Clocks = append(r.Clocks, ClockReport{Node: x.Node, AheadSeconds: x.Ahead.Seconds(), WithinSeconds: x.Within.Seconds()})
	}
	r.Alarms = append(r.Alarms, l.sequences.alarms()...)
	r.Quarantined = l.applier.Quarantined()
	if n, why := l.applier.OrphansRefused(); n > 0 {
		r.Alarms = append(r.Alarms, Alarm{Code: "orphan-refused", Severity: SeverityError,
			Text: fmt.Sprintf("rows without a parent cannot be mended as conflict.foreign_keys says, for %d deleted rows: %s", n, why),
			Mend: "mend the cause, which is tried again each minute, or give the foreign key another policy; SELECT * FROM pgbridge.bereaved shows them"})
	}
	if n, node, since := l.applier.Owed(); n > 0 {
		if r.Owed = n; node != "" && time.Since(since) > owedPatience {
			r.Alarms = append(r.Alarms, Alarm{Code: "rows-owed", Severity: SeverityWarning,
				Text: fmt.Sprintf("%d rows wait for the node that wrote them to write them again in full, one of %s since %s", n, node, since.UTC().Format(time.RFC3339)),
				Mend: "let that node's bridge run and be reached; SELECT * FROM pgbridge.owed shows the rows, and that node's log what is in the way there"})
		}
	}
	r.Alarms = append(r.Alarms, l.topologyAlarms()...)
	r.Alarms = append(r.Alarms, l.roleAlarms(s.Seq)...)
	r.Alarms = append(r.Alarms, l.neighbours.alarms()...)
	r.WrittenAway = s.Counters.Away
	r.ConflictsPerMinute = l.conflicts.lastMinute(time.Now(), l.conflictCount())
	r.Nodes = l.reportNodes()
	r.Alarms = append(r.Alarms, l.goneAlarms()...)
	r.LetGo = l.reportLetGo()
	for i := range r.LetGo {
		r.Alarms = append(r.Alarms, letGoAlarm(&r.LetGo[i]))
	}
	for _, x := range l.relays {
		if a := x.alarm(); a != nil {
			r.Alarms = append(r.Alarms, *a)
		}
	}
	for _, o := range l.applier.Status() {
		r.Links = append(r.Links, l.reportLink(o))
		if link := &r.Links[len(r.Links)-1]; link.Disagrees {
			r.Alarms = append(r.Alarms, Alarm{Code: "policies-differ", Severity: SeverityError, Text: link.Waiting,
				Mend: "correct the conflict section of one configuration and start that node's bridge again; nothing is lost meanwhile"})
		}
		if p := l.peerOf(o.Origin); p != nil && p.newer.Load() {
			r.Alarms = append(r.Alarms, newerAlarm(p))
		} else if p != nil && p.forged.Load() {
			r.Alarms = append(r.Alarms, forgedAlarm(p))
		}
		if o.Parked > 0 {
			r.Alarms = append(r.Alarms, parkedAlarm(o))
		}
	}
	return r
}

func (b *bridge) reportJoining(ctx context.Context, r *Report) {
	j, err := readJoining(ctx, b.primary)
	if err != nil || j == nil || j.State == apply.Joined {
		return
	}
	r.Joining = &JoiningReport{From: j.Donor, State: j.State, Rows: j.Rows, About: j.About, Bytes: j.Bytes}
}

// standbyAlarms tells of standbys that capture waits for, and if wanted of what keeps one from taking over.
func standbyAlarms(s capture.Standbys, wanted bool) (all []Alarm) {
	if s.Failover && len(s.Away) > 0 {
		all = append(all, Alarm{Code: "standby-away", Severity: SeverityError,
			Text: fmt.Sprintf("local changes go to no other node before a standby has them, and none reads slot %s of synchronized_standby_slots", strings.Join(s.Away, ", ")),
			Mend: "bring the standby back, or take its slot out of synchronized_standby_slots and reload; nothing is lost meanwhile, but the WAL grows"})
	}
	switch {
	case !wanted:
	case !s.Failover:
		all = append(all, Alarm{Code: "failover-slot", Severity: SeverityWarning,
			Text: "postgres.failover is on, and the slot is none that a standby syncs: a standby cannot take over",
			Mend: "run pgbridge setup while the bridge is stopped"})
	case s.Names == "":
		all = append(all, Alarm{Code: "failover-unguarded", Severity: SeverityWarning,
			Text: "postgres.failover is on, and synchronized_standby_slots names no slot: others may have what the standby lacks, and then it cannot take over",
			Mend: "set synchronized_standby_slots to the physical slots of the standbys that may take over, and reload (docs/failover.md)"})
	}
	return all
}

// topologyAlarms tells of neighbours that were given another graph.
func (l *life) topologyAlarms() (all []Alarm) {
	told := map[string]bool{}
	for _, p := range l.peers {
		if d := p.graph.Load(); d != nil && !told[d.node] {
			told[d.node] = true
			all = append(all, Alarm{Code: "topology-differs", Severity: SeverityError,
				Text: fmt.Sprintf("the topology of node %s is not this one's: %s", d.node, d.text),
				Mend: "give all nodes the same topology, and start their bridges again; what has no way meanwhile waits"})
		}
	}
	return all
}

func (b *bridge) reportSlot(ctx context.Context, r *Report) {
	slot, err := capture.ReadSlot(ctx, b.primary, r.Slot.Slot)
	if err != nil {
		r.Slot.State = "unknown"
		r.Alarms = append(r.Alarms, Alarm{Code: "postgres-away", Severity: SeverityError, Text: err.Error(),
			Mend: "start PostgreSQL, or correct postgres.dsn"})
		return
	}
	r.Slot.State, r.Slot.WALHeldBytes = slot.State, slot.HeldBytes
	r.Slot.ConfirmedLSN = pglogrepl.LSN(slot.ConfirmedLSN).String()
	if slot.State == "missing" || slot.State == "invalidated" {
		r.Alarms = append(r.Alarms, Alarm{Code: "slot-" + slot.State, Severity: SeverityError,
			Text: fmt.Sprintf("replication slot %s is %s", r.Slot.Slot, slot.State),
			Mend: "local changes since then were not captured; stop the bridge and run pgbridge node restored (docs/restore.md)"})
	}
}

func (l *life) reportPublisher(ctx context.Context, r *Report) {
	p := &r.Publisher
	var err error
	if p.State, err = l.publisher.State(); err != nil {
		p.Waiting = err.Error()
	}
	p.FramesInFlight, p.DurableSeq = l.publisher.InFlight(), l.outbox.durableSeq()
	r.Stream.LimitBytes = uint64(l.cfg.Stream.MaxBytes)
	if p.State == stream.StateFull {
		r.Alarms = append(r.Alarms, l.fullAlarm(p.Waiting, r.Slot.WALHeldBytes))
	} else if p.Waiting != "" {
		r.Alarms = append(r.Alarms, Alarm{Code: "broker-away", Severity: SeverityError,
			Text: fmt.Sprintf("own stream cannot be written: %s; the slot holds %d bytes of WAL", p.Waiting, r.Slot.WALHeldBytes),
			Mend: "bring the NATS server back; nothing is lost meanwhile, but the WAL grows"})
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if info, err := l.publisher.Info(ctx); err == nil {
		r.Stream.LimitBytes = uint64(max(info.MaxBytes, 0))
		r.Stream.Bytes, r.Stream.FirstStreamSeq, r.Stream.LastStreamSeq = info.Bytes, info.First, info.Last
	}
}

func (l *life) reportLink(o apply.OriginStatus) LinkReport {
	r := LinkReport{Link: o.Origin.Node, Origin: o.Origin.String(), State: "connected", Waiting: o.Waiting,
		AppliedSeq: o.Seq, ReceivedSeq: o.Received, LagSeconds: o.Lag.Seconds(), Conflicts: o.Conflicts, Parked: o.Parked, Again: o.Again,
		Queued: o.Queued, QueuedBytes: o.Bytes}
	if o.Seq > 0 {
		r.AppliedStamp = o.Stamp.Time()
	}
	if o.Waiting != "" {
		r.State = "waiting"
	}
	for _, p := range l.peers {
		if p.origin != o.Origin {
			continue
		}
		w, _ := p.neighbours.way(p.origin.Node)
		r.Link = w.From
		r.URL = p.cfg.Redacted().Topology.Nodes[r.Link]
		r.Disagrees, r.Refused = p.disagrees.Load(), p.refused.Load()
		if state, err := p.state(); err != nil {
			r.State, r.Waiting = state, err.Error()
			if fault := l.linkFault(r.Link); fault != "" {
				r.Waiting = fault
			}
		}
	}
	return r
}

// newerAlarm says that this pgbridge is too old for what another node writes.
func newerAlarm(p *peer) Alarm {
	text := "a newer pgbridge has written what comes next of node " + p.origin.Node
	if reason := p.problem.Load(); reason != nil {
		text += ": " + *reason
	}
	return Alarm{Code: "frames-newer", Severity: SeverityError, Text: text,
		Mend: "upgrade pgbridge on this node; nothing is lost meanwhile, the stream keeps what waits, and all else goes on"}
}

// forgedAlarm says that somebody has changed what another node has written, or writes in its name.
func forgedAlarm(p *peer) Alarm {
	text := "what comes next of node " + p.origin.Node + " is refused"
	if at := p.at.Load(); at != nil {
		text += ", and comes from node " + at.name
	}
	if reason := p.problem.Load(); reason != nil {
		text += ": " + *reason
	}
	return Alarm{Code: "frames-forged", Severity: SeverityError, Text: text,
		Mend: "see who has changed it on the way, and take that node out of topology.links; if frames were written before stream.signatures was set there, set write here until they are applied. Nothing of it is applied meanwhile (docs/security.md)"}
}

// peerOf returns who reads what an origin writes; nil if nobody does.
func (l *life) peerOf(o origin.Origin) *peer {
	i := slices.IndexFunc(l.peers, func(p *peer) bool { return p.origin == o })
	if i < 0 {
		return nil
	}
	return l.peers[i]
}

// state is how the link to the peer is, and why it is not connected.
func (p *peer) state() (string, error) {
	if reason := p.problem.Load(); reason != nil {
		return "waiting", errors.New(*reason)
	}
	if at := p.at.Load(); at != nil {
		return at.reader.State()
	}
	return "away", errors.New("not connected yet")
}
