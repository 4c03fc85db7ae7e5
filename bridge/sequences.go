package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/catalog"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/doctor"
)

// SequenceStep is what becomes of one sequence.
type SequenceStep = catalog.Step

// SequenceOptions say how sequences are planned, and which.
type SequenceOptions struct {
	Modulus int64  // the step of all nodes; 0: as the others have it, or enough for twice the nodes
	Table   string // a pattern over schema.table; empty: all
	IDs     string // instead of sequences: "time" or "uuid"; empty: none
}

// SequencePlan is what becomes of the sequences of a node's tables, so that no other node gives the same values.
type SequencePlan struct {
	Cluster string         `json:"cluster"`
	Node    string         `json:"node"`
	Steps   []SequenceStep `json:"steps"`
	// SQL are the statements for identifiers that need no sequences, if these were asked for.
	SQL []string `json:"sql,omitempty"`
}

// usageError is an error in what the caller gave.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

// ExitCode is that of wrong usage.
func (e *usageError) ExitCode() int { return 2 }

// validate checks the options.
func (o *SequenceOptions) validate() error {
	if err := (&apply.ConflictFilter{Table: o.Table}).Validate(); err != nil {
		return err
	}
	switch catalog.IDKind(o.IDs) {
	case "", catalog.TimeIDs, catalog.UUIDs:
		return nil
	}
	return &usageError{fmt.Sprintf("identifiers of kind %q are not known; use %s or %s", o.IDs, catalog.TimeIDs, catalog.UUIDs)}
}

// PlanSequences says what becomes of this node's sequences. Every other node is asked how far its own are: its bridge must run.
func PlanSequences(ctx context.Context, cfg *config.Config, o SequenceOptions) (*SequencePlan, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	here, err := readCatalog(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if o.Table != "" {
		here = here.Only(func(schema, table string) bool { return capture.Matches(o.Table, schema, table) })
		if len(here.Tables) == 0 {
			return nil, &usageError{fmt.Sprintf("no replicated table fits %q; \\dt in psql shows tables, and tables in the configuration which of them are replicated", o.Table)}
		}
	}
	others, err := askCatalogs(ctx, cfg)
	if err != nil {
		return nil, err
	}
	p := &SequencePlan{Cluster: cfg.Cluster, Node: cfg.Node, Steps: []SequenceStep{}}
	nodes := slices.Sorted(maps.Keys(cfg.Topology.Nodes))
	if o.IDs != "" {
		p.SQL = catalog.IDs(catalog.IDKind(o.IDs), here, others, nodes)
		return p, nil
	}
	if p.Steps, err = catalog.Plan(here, others, catalog.PlanOptions{Nodes: nodes, Modulus: o.Modulus}); err != nil {
		return nil, &usageError{err.Error()}
	}
	return p, nil
}

// ApplySequences plans, and changes this node's sequences accordingly: all that can be changed, or none.
func ApplySequences(ctx context.Context, cfg *config.Config, o SequenceOptions) (*SequencePlan, error) {
	if o.IDs != "" {
		return nil, &usageError{"identifiers without sequences change the defaults of columns; have pgbridge sequences plan print the statements, and run them"}
	}
	p, err := PlanSequences(ctx, cfg, o)
	if err != nil {
		return nil, err
	}
	conn, err := capture.Connect(ctx, cfg.Postgres.DSN)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	p.Steps, err = catalog.Apply(ctx, conn, p.Steps)
	return p, err
}

// askCatalogs asks every other node what its tables look like. All must answer.
func askCatalogs(ctx context.Context, cfg *config.Config) ([]*catalog.Summary, error) {
	b := &bridge{cfg: cfg, log: slog.New(slog.DiscardHandler)}
	var mu sync.Mutex
	var all []*catalog.Summary
	failed := map[string]error{}
	err := b.askOthers(ctx, func(ctx context.Context, node string, k *catalogAsker, err error) {
		var a *nodeAnswer
		if err == nil {
			a, err = k.ask(ctx, askCatalog)
		}
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err != nil:
			failed[node] = err
		case a.Tables != nil:
			all = append(all, a.Tables)
		}
	})
	if err != nil || len(failed) == 0 {
		return all, err
	}
	var text []string
	for _, node := range slices.Sorted(maps.Keys(failed)) {
		text = append(text, fmt.Sprintf("node %s could not be asked: %v", node, failed[node]))
	}
	return nil, errors.New(strings.Join(text, "; ") + "; let its bridge run and be reached at its entry in topology.nodes, since what it gives must be known; nothing was changed")
}

// sequenceWatch looks now and then how far sequences are from their end.
type sequenceWatch struct {
	mu    sync.Mutex
	found []doctor.Finding // guarded by mu
}

// sequencePause is the time from one look to the next.
const sequencePause = time.Minute

// watchSequences looks until ctx ends. A catalog that cannot be read is for others to tell.
func (l *life) watchSequences(ctx context.Context) error {
	tick := time.NewTicker(sequencePause)
	defer tick.Stop()
	for {
		l.lookAtSequences(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (l *life) lookAtSequences(ctx context.Context) {
	var s *catalog.Summary
	if err := l.primary.Ask(ctx, func(conn *pgx.Conn) (err error) {
		s, err = catalog.ReadSequences(ctx, conn, l.cfg.Node, l.cfg.Tables)
		return err
	}); err != nil {
		return
	}
	var found []doctor.Finding
	for _, x := range catalog.Exhausted(s) {
		found = append(found, doctor.Exhausting(x))
	}
	l.sequences.mu.Lock()
	defer l.sequences.mu.Unlock()
	l.sequences.found = found
}

func (w *sequenceWatch) alarms() (all []Alarm) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.found {
		all = append(all, Alarm{Code: f.Code, Severity: Severity(f.Severity), Text: f.Text, Mend: f.Mend})
	}
	return all
}
