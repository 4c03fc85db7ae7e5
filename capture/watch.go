package capture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// TableWatch looks for tables that came after Setup: a publication is a fixed list, and what it leaves out
// is in no frame. NewTableWatch makes it, Run runs it; Findings may be asked at any time.
type TableWatch struct {
	opts    SetupOptions
	publish bool
	log     *slog.Logger
	told    map[string]bool // what the log has said of findings; Run's

	mu       sync.Mutex
	findings []Finding // guarded by mu
}

// NewTableWatch returns a watch over the tables that o's patterns choose. With publish it adds a new table to
// the publication as soon as it sees it; else, and where it may not, that is a finding.
func NewTableWatch(o SetupOptions, publish bool, log *slog.Logger) *TableWatch {
	return &TableWatch{opts: o.withDefaults(), publish: publish, log: log, told: map[string]bool{}}
}

// watchInterval is how long a new table may wait, and with it what is written to it and not captured.
const watchInterval = 5 * time.Second

// Run looks every few seconds until ctx ends. It ends with nil: a table is no reason to stop capture, and a
// server that is away is for the others to tell.
func (w *TableWatch) Run(ctx context.Context) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		w.opts.ask(ctx, func(conn *pgx.Conn) error {
			if err := w.look(ctx, conn); err != nil && ctx.Err() == nil && !isLost(err) {
				w.say("tables cannot be watched", slog.String("err", err.Error()))
			}
			return nil
		})
	}
}

// Findings returns what was found at the last look.
func (w *TableWatch) Findings() []Finding {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.findings)
}

// look compares the patterns with the publication, and publishes what can be.
func (w *TableWatch) look(ctx context.Context, conn *pgx.Conn) error {
	tables, err := listUnpublished(ctx, conn, w.opts.Tables, w.opts.Publication)
	if err != nil {
		return err
	}
	var found []Finding
	if len(tables) > 0 {
		p, err := readPublication(ctx, conn, w.opts.Publication, 0)
		if err != nil {
			return err
		}
		if !p.exists {
			found, tables = append(found, publicationGone(w.opts.Publication)), nil
		}
	}
	for _, t := range tables {
		if !t.usable() {
			fault, mend := t.unusable()
			found = append(found, Finding{CodeTableUnusable, "table " + t.String(), fault + "; it is not replicated", mend})
			continue
		}
		err := errNotAsked
		if w.publish {
			err = w.add(ctx, conn, t.TableName)
		}
		if isLost(err) {
			return err
		}
		if err != nil {
			found = append(found, w.unpublished(t.TableName, err))
		}
	}
	open, err := w.refuse(ctx, conn)
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.findings = append(slices.Clone(found), open...)
	w.mu.Unlock()
	for _, f := range open {
		w.say("table of a reader can be written by users", slog.String("code", f.Code), slog.String("table", f.Thing), slog.String("err", f.Fault), slog.String("mend", f.Mend))
	}
	for _, f := range found {
		w.say("table is not replicated", slog.String("code", f.Code), slog.String("table", f.Thing), slog.String("err", f.Fault), slog.String("mend", f.Mend))
	}
	return nil
}

var errNotAsked = errors.New("postgres.auto_setup is off")

// add publishes a table. The lock that this takes lets writers of the table go on.
func (w *TableWatch) add(ctx context.Context, conn *pgx.Conn, t TableName) error {
	_, err := conn.Exec(ctx, w.addSQL(t))
	var pg *pgconn.PgError
	switch {
	case err == nil:
		w.log.Warn("new table is replicated from now on; rows that were written to it before are not",
			"table", t.String(), "publication", w.opts.Publication)
		return nil
	case errors.As(err, &pg) && !passing(pg.Code):
		return err // as the server says it: what may be missing is ownership, not REPLICATION
	}
	return classify(err, "publish table "+t.String())
}

func (w *TableWatch) addSQL(t TableName) string {
	return fmt.Sprintf("ALTER PUBLICATION %s ADD TABLE %s", ident(w.opts.Publication), t)
}

func (w *TableWatch) unpublished(t TableName, err error) Finding {
	return Finding{CodeTableUnpublished, "table " + t.String(),
		fmt.Sprintf("is not in publication %s (%s): rows that are written to it here reach no other node, also not later", ident(w.opts.Publication), oneLine(err)),
		fmt.Sprintf("run %s as the table's owner, or exclude it under tables (\"!%s.%s\")", w.addSQL(t), t.Schema, t.Name)}
}

// say logs a thing once.
func (w *TableWatch) say(what string, attrs ...slog.Attr) {
	key := fmt.Sprint(what, attrs)
	if w.told[key] {
		return
	}
	w.told[key] = true
	w.log.LogAttrs(context.Background(), slog.LevelWarn, what, attrs...)
}
