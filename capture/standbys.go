package capture

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// A standby that takes over must have whatever other nodes were told of. From PostgreSQL 17 on the server sees to that: the
// walsender of a failover slot sends nothing before the standbys have it whose slots synchronized_standby_slots names
// (walsender.c, NeedToWaitForStandbys). Frames say so, as long as it is so (wire.Header.Standbys); only then may a later start
// go on from the stream on another timeline. What they must not say is that of a time when frames were shown ahead of the
// stream that no standby had: so they begin to when the standbys have all that was flushed by then, and when the setting goes
// nothing is shown before a frame that does not say it any more is stored.

// minFailover is the first version whose standbys have logical slots, as server_version_num.
const minFailover = 170000

// standbysInterval is how often the server is asked. So long it may take to notice that the setting is gone.
const standbysInterval = time.Second

// Standbys is what the server says of the standbys that can take over from it.
type Standbys struct {
	Failover bool     // the bridge's slot is one that standbys have, too
	Names    string   // of the slots whose standbys are waited for, sorted, with commas; empty: nobody is
	Away     []string // those of Names that no standby reads
	LSN      uint64   // what all of them have on disk
	Held     string   // slots as in Names: their standbys have all that others were shown, as the next frame says
	flush    uint64   // and the server
}

// standbysSQL asks what walsenders look at, too: the restart_lsn of a physical slot is what its standby has flushed.
const standbysSQL = `
SELECT coalesce((SELECT failover FROM pg_replication_slots WHERE slot_name = $1), false),
       coalesce(string_agg(n.name, ',' ORDER BY n.name), ''),
       coalesce(array_agg(n.name ORDER BY n.name) FILTER (WHERE s.slot_type IS DISTINCT FROM 'physical' OR NOT s.active), '{}'),
       coalesce((min(coalesce(s.restart_lsn, '0/0')) - '0/0')::int8, 0),
       (pg_current_wal_flush_lsn() - '0/0')::int8
FROM (SELECT trim(BOTH ' "' FROM x) AS name FROM unnest(string_to_array(current_setting('synchronized_standby_slots'), ',')) x) n
     LEFT JOIN pg_replication_slots s ON s.slot_name = n.name
WHERE n.name <> ''`

func readStandbys(ctx context.Context, conn *pgx.Conn, slot string) (s Standbys, err error) {
	err = conn.QueryRow(ctx, standbysSQL, slot).Scan(&s.Failover, &s.Names, &s.Away, &s.LSN, &s.flush)
	if err != nil {
		return s, classify(err, "read synchronized_standby_slots")
	}
	return s, nil
}

// guard knows which standbys have all that was ever shown to anybody.
type guard struct {
	held atomic.Pointer[string] // their slots' names; nil or empty: none are known to

	mu     sync.Mutex // guards what follows
	last   Standbys
	wanted string // held as soon as their standbys have the WAL up to from
	from   uint64 // 0: not settled yet
}

// resume takes over what the last frame says.
func (g *guard) resume(names string) {
	g.last.Failover, g.last.Names = names != "", names // nobody has been asked yet who has what
	g.held.Store(&names)
}

// names are those of the slots whose standbys have all that was shown.
func (g *guard) names() string {
	if p := g.held.Load(); p != nil {
		return *p
	}
	return ""
}

// status is what was found last.
func (g *guard) status() Standbys {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.last
	s.Held = g.names()
	return s
}

// look takes in what the server says now. A walsender that is about to begin heeds that; one that runs will by the next look.
func (g *guard) look(s Standbys, begins bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last = s
	names := s.Names
	if !s.Failover {
		names = ""
	}
	if names == g.names() {
		return
	}
	none := ""
	g.held.Store(&none)
	switch {
	case names == "" || names != g.wanted && !begins:
		g.wanted, g.from = names, 0
	case begins || g.from == 0:
		g.wanted, g.from = names, s.flush
	case s.LSN >= g.from:
		g.held.Store(&names)
	}
}

// Standbys returns what the server has said last.
func (c *Capture) Standbys() Standbys { return c.state.guard.status() }

// watchStandbys asks the server until ctx ends. Before 17 there is nothing to ask.
func (s *session) watchStandbys(ctx context.Context) error {
	if s.version < minFailover {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	tick := time.NewTicker(standbysInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		err := s.catalog.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
			st, err := readStandbys(ctx, conn, s.opts.Slot)
			if err == nil {
				s.state.guard.look(st, false)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
}
