package main

import (
	"context"
	"io"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/demo"
)

// backend is what the verbs call: package bridge, or a test's own functions.
type backend struct {
	// run runs the bridge until ctx ends, and returns nil when that is why it ended.
	run func(ctx context.Context, cfg *config.Config, opts bridge.Options) error
	// setup creates on the primary what the bridge needs; it may be run again.
	setup func(ctx context.Context, cfg *config.Config, tell func(text string)) error
	// setupSQL returns the statements that setup would run.
	setupSQL func(ctx context.Context, cfg *config.Config) ([]string, error)
	// restored says that the node's data were set back, and has its next bridge bring it back.
	restored func(ctx context.Context, cfg *config.Config, tell func(text string)) error
	// status asks the bridge that runs with this configuration. If none does, it may return what the
	// database says together with the error.
	status func(ctx context.Context, cfg *config.Config) (*bridge.Report, error)
	// token asks the bridge that runs with this configuration for a token of what its node has.
	token func(ctx context.Context, cfg *config.Config) (string, error)
	// wait waits until the node has what a token stands for.
	wait func(ctx context.Context, cfg *config.Config, token string, timeout time.Duration) error
	// history opens the conflict history of the primary, which needs no bridge.
	history func(ctx context.Context, cfg *config.Config, clockError time.Duration) (history, error)
	// now is the wall clock.
	now func() time.Time
	// parked lists what is parked at the node of this configuration.
	parked func(ctx context.Context, cfg *config.Config) ([]bridge.ParkedTransaction, error)
	// showParked returns one parked transaction with its first changes.
	showParked func(ctx context.Context, cfg *config.Config, name string, limit int) (*bridge.ParkedTransaction, []bridge.ParkedChange, error)
	// requestParked has parked transactions tried again or discarded; all of them if name is empty.
	requestParked func(ctx context.Context, cfg *config.Config, name string, request bridge.ParkedRequest) (*bridge.ParkedOutcome, error)
	// paused lists what is paused at the node of this configuration.
	paused func(ctx context.Context, cfg *config.Config) ([]bridge.Pause, error)
	// setPause pauses a node or a table there.
	setPause func(ctx context.Context, cfg *config.Config, p bridge.Pause) error
	// resume ends a pause of a node or a table, or all if both are empty.
	resume func(ctx context.Context, cfg *config.Config, node, table string) error
	// reload has the bridge that runs with this configuration read its file again.
	reload func(ctx context.Context, cfg *config.Config, file string) (*bridge.Reloaded, error)
	// makeKeys makes certificates and keys for all nodes in a directory.
	makeKeys func(cfg *config.Config, dir string, tell func(text string)) error
	// doctor looks for what is wrong at the node of this configuration.
	doctor func(ctx context.Context, cfg *config.Config) (*bridge.Examination, error)
	// planSequences says what is to become of the node's sequences, and applySequences does it.
	planSequences, applySequences func(ctx context.Context, cfg *config.Config, o bridge.SequenceOptions) (*bridge.SequencePlan, error)
	// window is the size of the terminal behind a writer; ok is false if it is none.
	window func(w io.Writer) (columns, rows int, ok bool)
	// every ticks, until stop is called.
	every func(d time.Duration) (tick <-chan time.Time, stop func())
	// verify has the bridge that runs with this configuration compare its node with others.
	verify func(ctx context.Context, cfg *config.Config, o bridge.VerifyOptions, tell func(bridge.VerifyProgress)) (*bridge.VerifyReport, error)
	// join makes the node of this configuration one of the cluster.
	join func(ctx context.Context, cfg *config.Config, o bridge.JoinOptions) error
	// leave has the node of this configuration leave, and remove has all forget another one.
	leave  func(ctx context.Context, cfg *config.Config, o bridge.MemberOptions) error
	remove func(ctx context.Context, cfg *config.Config, node string, o bridge.MemberOptions) error
	// changeSchema makes a schema change here and on all other nodes, and returns its number here.
	changeSchema func(ctx context.Context, cfg *config.Config, sql string, o bridge.SchemaOptions) (int64, error)
	// schemaChanges lists the schema changes that are made here.
	schemaChanges func(ctx context.Context, cfg *config.Config) ([]bridge.SchemaChange, error)
	// automaticSchema has schema changes travel by themselves, or not any more.
	automaticSchema func(ctx context.Context, cfg *config.Config, on bool) error
	// schemaDone has a schema change of another node count as made here.
	schemaDone func(ctx context.Context, cfg *config.Config, name string) error
	// demo runs a whole cluster for a while.
	demo func(ctx context.Context, opts demo.Options) error
}

// history is what orphans and the verbs of conflicts ask, each for one open session.
type history interface {
	List(ctx context.Context, f bridge.ConflictFilter) (*bridge.ConflictPage, error)
	Show(ctx context.Context, id int64) (*bridge.ConflictDetail, error)
	Undo(ctx context.Context, id int64, o bridge.UndoOptions) (*bridge.Undone, error)
	Stats(ctx context.Context, f bridge.ConflictFilter) ([]bridge.ConflictCount, error)
	Orphans(ctx context.Context, o bridge.OrphanOptions) ([]bridge.Orphans, error)
	ClockError() (time.Duration, bridge.ClockSource)
	Close(ctx context.Context)
}

func realBackend() backend {
	return backend{
		run:      bridge.Run,
		setup:    bridge.Setup,
		setupSQL: bridge.SetupSQL,
		restored: bridge.Restored,
		status:   bridge.Status,
		token:    bridge.Token,
		wait:     bridge.Wait,
		history: func(ctx context.Context, cfg *config.Config, clockError time.Duration) (history, error) {
			h, err := bridge.OpenHistory(ctx, cfg, clockError)
			if err != nil {
				return nil, err // a nil *History would not be a nil history
			}
			return h, nil
		},
		now: time.Now,

		parked:        bridge.ParkedList,
		showParked:    bridge.ParkedShow,
		requestParked: bridge.RequestParked,

		paused:         bridge.Paused,
		setPause:       bridge.SetPause,
		resume:         bridge.Resume,
		reload:         bridge.Reload,
		makeKeys:       bridge.MakeKeys,
		doctor:         bridge.Doctor,
		planSequences:  bridge.PlanSequences,
		applySequences: bridge.ApplySequences,
		window:         window,
		every: func(d time.Duration) (<-chan time.Time, func()) {
			t := time.NewTicker(d)
			return t.C, t.Stop
		},
		verify: bridge.Verify,

		join:   bridge.Join,
		leave:  bridge.Leave,
		remove: bridge.RemoveNode,

		changeSchema:    bridge.ChangeSchema,
		schemaChanges:   bridge.SchemaChanges,
		schemaDone:      bridge.SchemaDone,
		automaticSchema: bridge.AutomaticSchema,

		demo: demo.Run,
	}
}
