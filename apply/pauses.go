package apply

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/origin"
)

// What operators have paused stands in pgbridge.paused, so that it holds for bridges that start, too, and can be asked for when
// none runs.

// Pause is something that an operator has paused at a node: what another node writes, or transactions that touch a table. Its JSON is
// that of "pgbridge pause --list --json".
type Pause struct {
	Origin string    `json:"origin,omitempty"` // the node whose transactions wait here; empty: those of all that touch Table
	Table  string    `json:"table,omitempty"`  // as schema.table
	Since  time.Time `json:"since"`
	Reason string    `json:"reason,omitempty"`
}

// String says what is paused.
func (p Pause) String() string {
	what, flag := "node "+p.Origin+" is paused here", "--origin "+p.Origin
	if p.Table != "" {
		what, flag = "table "+p.Table+" is paused here", "--table "+p.Table
	}
	if p.Reason != "" {
		what += " (" + p.Reason + ")"
	}
	return fmt.Sprintf("%s since %s; pgbridge resume %s ends that", what, p.Since.Format(time.RFC3339), flag)
}

// pauses are those in force.
type pauses struct {
	mu      sync.Mutex // guards what follows
	origins map[string]Pause
	tables  map[string]Pause
	text    string        // as read
	changed chan struct{} // closed with the next change
}

func newPauses() *pauses { return &pauses{changed: make(chan struct{})} }

// of returns the reason why an origin's transactions wait, empty if they do not, and what is closed when that may have changed.
func (p *pauses) of(o origin.Origin) (why string, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if x, ok := p.origins[o.Node]; ok {
		why = x.String()
	}
	return why, p.changed
}

// table is an error while a table is paused.
func (p *pauses) table(schema, name string) error {
	if p == nil { // what the bridge does on its own behalf goes on
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if x, ok := p.tables[schema+"."+name]; ok {
		return &Blocked{Reason: x.String()}
	}
	return nil
}

// set takes over what is paused now, and wakes those who wait if it is something else.
func (p *pauses) set(all []Pause) {
	text := fmt.Sprint(all)
	p.mu.Lock()
	defer p.mu.Unlock()
	if text == p.text {
		return
	}
	p.text, p.origins, p.tables = text, map[string]Pause{}, map[string]Pause{}
	for _, x := range all {
		if x.Table != "" {
			p.tables[x.Table] = x
		} else {
			p.origins[x.Origin] = x
		}
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// Paused returns what is paused, by name. It is safe for concurrent use.
func (a *Applier) Paused() []Pause {
	a.pauses.mu.Lock()
	defer a.pauses.mu.Unlock()
	all := slices.AppendSeq(slices.Collect(maps.Values(a.pauses.origins)), maps.Values(a.pauses.tables))
	slices.SortFunc(all, func(a, b Pause) int { return cmp.Or(cmp.Compare(a.Origin, b.Origin), cmp.Compare(a.Table, b.Table)) })
	return all
}

// pausesPoll is the time from one look at pgbridge.paused to the next.
const pausesPoll = 500 * time.Millisecond

// watchPauses keeps pauses as pgbridge.paused says until ctx ends.
func (a *Applier) watchPauses(ctx context.Context) error {
	tick := time.NewTicker(pausesPoll)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := a.loadPauses(ctx); err != nil {
			return err
		}
	}
}

func (a *Applier) loadPauses(ctx context.Context) error {
	a.catalog.mu.Lock()
	defer a.catalog.mu.Unlock()
	all, err := readPauses(ctx, a.catalog.conn)
	if err == nil {
		a.pauses.set(all)
	}
	return err
}

func readPauses(ctx context.Context, conn *pgx.Conn) ([]Pause, error) {
	rows, err := conn.Query(ctx, `SELECT origin, relation, since, reason FROM pgbridge.paused ORDER BY since, origin, relation`)
	if err == nil {
		var all []Pause
		if all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (p Pause, err error) {
			err = row.Scan(&p.Origin, &p.Table, &p.Since, &p.Reason)
			p.Since = p.Since.UTC()
			return p, err
		}); err == nil {
			return all, nil
		}
	}
	if hasCode(err, "42P01", "3F000") {
		return nil, ErrNotSetUp
	}
	return nil, fmt.Errorf("read pgbridge.paused: %w", explain(err))
}

// paused waits, with nothing in flight, while an operator has paused the origin; it returns early when a parked transaction of it may
// be due. It reports whether it has waited.
func (w *worker) paused(ctx context.Context) (bool, error) {
	why, changed := w.pauses.of(w.origin)
	if changed != w.pausesSeen { // tables are asked about when their mappings are made
		w.forgetMappings()
		w.pausesSeen = changed
	}
	if why == "" {
		return false, nil
	}
	if err := w.reap(ctx, 0); err != nil {
		return true, err
	}
	if w.say(why) {
		w.log.Info("origin is paused", "origin", w.origin.String())
	}
	select {
	case <-changed:
		if why, _ := w.pauses.of(w.origin); why == "" {
			w.say("")
		}
		return true, nil
	case <-w.parked.wake(w.origin):
		w.parkedDue = true
		return true, nil
	case <-ctx.Done():
		return true, context.Cause(ctx)
	}
}

// ErrNotPaused means that what is to be resumed is not paused.
var ErrNotPaused = errors.New("that is not paused; pgbridge pause --list shows what is")

// Paused returns what is paused at the node of this database, the oldest first. ErrNotSetUp if it is not set up.
func Paused(ctx context.Context, dsn string) (all []Pause, err error) {
	err = onPaused(ctx, dsn, func(conn *pgx.Conn) error {
		all, err = readPauses(ctx, conn)
		return err
	})
	return all, err
}

// SetPause pauses an origin or a table; one that is paused gets the new reason.
func SetPause(ctx context.Context, dsn string, p Pause) error {
	return onPaused(ctx, dsn, func(conn *pgx.Conn) error {
		if p.Table != "" {
			var there bool
			schema, name, _ := strings.Cut(p.Table, ".")
			err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
				WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p'))`, schema, name).Scan(&there)
			if err == nil && !there {
				err = fmt.Errorf("there is no table %s here; give it as schema.table", p.Table)
			}
			if err != nil {
				return err
			}
		}
		_, err := conn.Exec(ctx, `INSERT INTO pgbridge.paused (origin, relation, reason) VALUES ($1, $2, $3)
			ON CONFLICT (origin, relation) DO UPDATE SET reason = EXCLUDED.reason`, p.Origin, p.Table, p.Reason)
		return err
	})
}

// Resume ends a pause of an origin or a table, or all of them if both are empty. ErrNotPaused if there is none.
func Resume(ctx context.Context, dsn, originNode, table string) error {
	return onPaused(ctx, dsn, func(conn *pgx.Conn) error {
		tag, err := conn.Exec(ctx, `DELETE FROM pgbridge.paused WHERE $1 = '' AND $2 = '' OR origin = $1 AND relation = $2`, originNode, table)
		if err == nil && tag.RowsAffected() == 0 {
			err = ErrNotPaused
		}
		return err
	})
}

func onPaused(ctx context.Context, dsn string, do func(*pgx.Conn) error) error {
	conn, err := connectPlain(ctx, dsn, "pgbridge pause")
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if err = do(conn); hasCode(err, "42P01", "3F000") {
		return ErrNotSetUp
	}
	if err != nil {
		return explain(err)
	}
	return nil
}
