package bridge

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/console"
)

// newConsole makes the console of a bridge whose configuration has it.
func newConsole(b *bridge) *console.Console {
	s := &consoleSide{bridge: b}
	return console.New(console.Options{Cluster: b.cfg.Cluster, Node: b.cfg.Node, ViewerToken: b.cfg.HTTP.ViewerToken, OperatorToken: b.cfg.HTTP.OperatorToken,
		Local: b.cfg.LocalHTTP(), Log: b.log, Now: time.Now, Status: s, Conflicts: s, Parked: s, Pauses: s, Rows: s})
}

// consoleSide tells the console what the commands of the same names tell, and does what they do.
type consoleSide struct {
	*bridge
	mu    sync.Mutex // guards what follows
	heard []consoleOther
	at    time.Time // when that was heard
}

// consoleStatus is what the console draws: the report, the graph to draw it in, and what is paused.
type consoleStatus struct {
	Report *Report       `json:"report"`
	Kind   string        `json:"kind"` // of the topology
	Nodes  []consoleNode `json:"nodes"`
	Links  [][2]string   `json:"links"` // each once, in both directions
	Paused []Pause       `json:"paused"`
}

// consoleNode is a node of the graph.
type consoleNode struct {
	Node string `json:"node"`
	Role string `json:"role,omitempty"`
}

// Status implements console.Node.
func (s *consoleSide) Status(ctx context.Context) any {
	x := consoleStatus{Report: s.report(ctx), Kind: s.cfg.Topology.Kind, Nodes: []consoleNode{}, Links: [][2]string{}, Paused: []Pause{}}
	g := s.cfg.Graph()
	for _, node := range g.Nodes() {
		x.Nodes = append(x.Nodes, consoleNode{node, s.cfg.Topology.Roles[node]})
		for _, other := range g.Neighbours(node) {
			if node < other {
				x.Links = append(x.Links, [2]string{node, other})
			}
		}
	}
	if l, _ := s.current.get(); l != nil {
		x.Paused = append(x.Paused, l.applier.Paused()...)
	}
	return x
}

// consoleOther is what another node says of itself, or why it does not.
type consoleOther struct {
	Node   string  `json:"node"`
	Report *Report `json:"report,omitempty"`
	Error  string  `json:"error,omitempty"`
}

const (
	// othersEach is for how long what the other nodes say is told again: all who look at the console see one answer.
	othersEach = 3 * time.Second
	// othersPatience is how long those who look wait for it.
	othersPatience = 8 * time.Second
)

// Others implements console.Node. It asks all at once, and again only if somebody looks.
func (s *consoleSide) Others(ctx context.Context) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.heard != nil && time.Since(s.at) < othersEach {
		return s.heard
	}
	asked, cancel := context.WithTimeout(ctx, othersPatience)
	defer cancel()
	heard := s.askReports(asked)
	if ctx.Err() == nil { // else who asked has gone
		s.heard, s.at = heard, time.Now()
	}
	return heard
}

// askReports asks the other nodes' bridges for their reports.
func (b *bridge) askReports(ctx context.Context) []consoleOther {
	names := peerNames(b.cfg)
	all := make([]consoleOther, len(names))
	at := map[string]*consoleOther{}
	for i, node := range names {
		all[i].Node, at[node] = node, &all[i]
	}
	// Nothing that it could fail for is left to it: each node's error is told with the node.
	_ = b.askOthers(ctx, func(ctx context.Context, node string, k *catalogAsker, err error) {
		var a *nodeAnswer
		if err == nil {
			a, err = k.ask(ctx, askReport)
		}
		if err != nil {
			at[node].Error = err.Error()
			return
		}
		at[node].Report = a.Report
	})
	return all
}

// Settings implements console.Node.
func (s *consoleSide) Settings() any { return s.settings.now().Settings() }

// Conflicts implements console.Conflicts.
func (s *consoleSide) Conflicts(ctx context.Context, f console.ConflictFilter) (x any, err error) {
	err = s.withHistory(ctx, func(h *History) error {
		p, err := h.List(ctx, ConflictFilter{Table: f.Table, Kind: f.Kind, Origin: f.Origin, Before: f.Before, Limit: f.Limit})
		if err == nil {
			x = consolePage(p)
		}
		return err
	})
	return x, err
}

// Conflict implements console.Conflicts.
func (s *consoleSide) Conflict(ctx context.Context, id int64) (x any, err error) {
	err = s.withHistory(ctx, func(h *History) error {
		d, err := h.Show(ctx, id)
		if err == nil {
			x = consoleVersions(d)
		}
		return err
	})
	return x, err
}

// Undo implements console.Conflicts.
func (s *consoleSide) Undo(ctx context.Context, id int64, o console.UndoOptions) (x any, err error) {
	err = s.withHistory(ctx, func(h *History) error {
		_, err := h.Undo(ctx, id, UndoOptions{Force: o.Force, By: o.By})
		x = struct{}{} // the page asks for the conflict again
		return err
	})
	return x, err
}

// withHistory opens the history for as long as use runs.
func (s *consoleSide) withHistory(ctx context.Context, use func(*History) error) error {
	h, err := OpenHistory(ctx, s.cfg, 0)
	if err != nil {
		return consoleProblem(err)
	}
	defer h.Close(context.WithoutCancel(ctx)) // the server is to hear of the end
	return consoleProblem(use(h))
}

// Parked implements console.Parked.
func (s *consoleSide) Parked(ctx context.Context) (any, error) {
	all, err := ParkedList(ctx, s.cfg)
	named := []consoleTransaction{}
	for i := range all {
		named = append(named, consoleName(&all[i]))
	}
	return named, consoleProblem(err)
}

// parkedShown is how many changes of a parked transaction the console shows.
const parkedShown = 200

// ParkedChanges implements console.Parked.
func (s *consoleSide) ParkedChanges(ctx context.Context, name string) (any, error) {
	p, changes, err := ParkedShow(ctx, s.cfg, name, parkedShown)
	if err != nil {
		return nil, consoleProblem(err)
	}
	return consoleChanges(p, changes)
}

// RequestParked implements console.Parked.
func (s *consoleSide) RequestParked(ctx context.Context, name string, r console.ParkedRequest) (any, error) {
	o, err := RequestParked(ctx, s.cfg, name, ParkedRequest(r))
	return o, consoleProblem(err)
}

// Pause implements console.Pauses.
func (s *consoleSide) Pause(ctx context.Context, p console.Pause) error {
	return consoleProblem(SetPause(ctx, s.cfg, Pause{Origin: p.Origin, Table: p.Table, Reason: p.Reason}))
}

// Resume implements console.Pauses.
func (s *consoleSide) Resume(ctx context.Context, p console.Pause) error {
	return consoleProblem(Resume(ctx, s.cfg, p.Origin, p.Table))
}

// consoleRows is how many rows that differ the console shows.
const consoleRows = 100

// Verify implements console.Rows.
func (s *consoleSide) Verify(ctx context.Context, o console.VerifyOptions, tell func(any)) (any, error) {
	r, err := s.compare(ctx, VerifyOptions{Table: o.Table, Nodes: o.Nodes, Repair: o.Repair, From: o.From, Rate: VerifyRate, Limit: consoleRows}, true,
		nowAndThen(func(p VerifyProgress) { tell(p) }))
	if err != nil {
		return nil, err
	}
	return r, nil
}

// consoleProblem says of which kind an error is.
func consoleProblem(err error) error {
	var exit interface{ ExitCode() int }
	switch {
	case err == nil:
		return nil
	case errors.Is(err, apply.ErrNoConflict), errors.Is(err, apply.ErrNotParked):
		return &console.Problem{Status: http.StatusNotFound, Err: err}
	case errors.As(err, &exit) && exit.ExitCode() == 2:
		return &console.Problem{Status: http.StatusBadRequest, Err: err}
	}
	return err
}
