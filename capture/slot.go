package capture

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/origin"
)

// SlotInfo is what a server says of itself and of the bridge's slot.
type SlotInfo struct {
	SystemID     uint64
	Timeline     uint32
	State        string // one of the Slot constants
	ConfirmedLSN uint64 // the server has been told that everything below is safe; 0 if the slot is missing
	HeldBytes    int64  // WAL that the slot keeps the server from removing
}

// The states of a slot.
const (
	SlotActive      = "active"   // a walsender reads it
	SlotInactive    = "inactive" // nobody does
	SlotInvalidated = "invalidated"
	SlotMissing     = "missing"
)

// ReadSlot reads the identity of the server and how the slot is. That it is missing or invalidated is no
// error; Check makes findings of it.
func ReadSlot(ctx context.Context, p *Primary, slot string) (info SlotInfo, err error) {
	err = p.Ask(ctx, func(conn *pgx.Conn) error {
		info, err = slotInfo(ctx, conn, slot)
		return err
	})
	return info, err
}

func slotInfo(ctx context.Context, conn *pgx.Conn, slot string) (SlotInfo, error) {
	var info SlotInfo
	var id int64
	err := conn.QueryRow(ctx, `
		SELECT (SELECT system_identifier FROM pg_control_system()),
		       CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
		            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END`).
		Scan(&id, &info.Timeline)
	if err != nil {
		return info, classify(err, "read the server's identity")
	}
	info.SystemID = uint64(id)
	s, err := readSlot(ctx, conn, slot)
	if err != nil {
		return info, err
	}
	info.ConfirmedLSN, info.HeldBytes, info.State = s.confirmed, s.held, s.state()
	return info, nil
}

// KnowsCommit reports whether the transaction with that id was committed at that time in the server's history:
// false if it shows another time for it, or has not given that id out yet. What it has forgotten it knows.
func KnowsCommit(ctx context.Context, p *Primary, xid uint32, at origin.Stamp) (bool, error) {
	var committed *time.Time
	var next int64
	err := p.Ask(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT pg_xact_commit_timestamp($1::text::xid), pg_snapshot_xmax(pg_current_snapshot())::text::int8`,
			fmt.Sprint(xid)).Scan(&committed, &next)
	})
	if err != nil {
		return false, classify(err, "read the commit time of a transaction")
	}
	if committed == nil {
		return int32(uint32(next)-xid) > 0, nil // ids wrap around
	}
	return committed.Equal(at.Time()), nil
}

// Commit is what a frame says of a transaction by which a server can tell whether it knows it.
type Commit struct {
	XID uint32
	At  origin.Stamp // its commit time
}

// KnownCommits reports which of the transactions were committed in the server's history: it must show their very commit time. What
// it has forgotten it knows if the id lies before all that it remembers.
func KnownCommits(ctx context.Context, dsn string, commits []Commit) ([]bool, error) {
	conn, err := connectPlain(ctx, dsn)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	var known []bool
	for part := range slices.Chunk(commits, 10_000) {
		xids, times := make([]string, len(part)), make([]time.Time, len(part))
		for i, c := range part {
			xids[i], times[i] = fmt.Sprint(c.XID), c.At.Time()
		}
		// The status of an id that was not given out yet cannot be asked.
		rows, err := conn.Query(ctx, `SELECT CASE WHEN age(c.xid) <= 0 THEN false ELSE COALESCE(pg_xact_commit_timestamp(c.xid) = c.at, age(c.xid) > age(o.oldest_commit_ts_xid)) END
			FROM pg_control_checkpoint() o, unnest($1::text[], $2::timestamptz[]) WITH ORDINALITY u(x, at, n), LATERAL (SELECT u.x::xid AS xid, u.at) c ORDER BY u.n`, xids, times)
		if err != nil {
			return nil, classify(err, "read commit times")
		}
		one, err := pgx.CollectRows(rows, pgx.RowTo[bool])
		if err != nil {
			return nil, classify(err, "read commit times")
		}
		known = append(known, one...)
	}
	return known, nil
}

// RemakeSlot makes the slot, and the publication, of a node whose data were set back, or whose slot is of no use any more. It keeps a
// slot that can be read.
func RemakeSlot(ctx context.Context, o SetupOptions) error {
	o = o.withDefaults()
	return o.ask(ctx, func(conn *pgx.Conn) error { return remakeSlot(ctx, conn, o) })
}

func remakeSlot(ctx context.Context, conn *pgx.Conn, o SetupOptions) error {
	s, err := readSlot(ctx, conn, o.Slot)
	if err != nil {
		return err
	}
	if s.exists && s.active {
		return finding(CodeSlotKind, fmt.Sprintf("slot %q", s.name), "is being read: a bridge runs", "stop it first")
	}
	if s.exists && s.invalidated() {
		if _, err := conn.Exec(ctx, "SELECT pg_drop_replication_slot($1)", o.Slot); err != nil {
			return classify(err, fmt.Sprintf("drop slot %q", o.Slot))
		}
	}
	o.HasRun = false
	return setup(ctx, conn, o)
}

// slot is a row of pg_replication_slots.
type slot struct {
	name         string
	exists       bool
	plugin, kind string
	database     string
	here         bool // it is this database's
	confirmed    uint64
	walStatus    string
	invalidation string // 17 and later
	active       bool
	failover     bool  // standbys have it, too; 17 and later
	held         int64 // bytes of WAL
}

// slotSQL goes through jsonb for a column that older servers don't have.
const slotSQL = `
SELECT coalesce(plugin, '')::text, slot_type, coalesce(database, '')::text, coalesce(database = current_database(), false),
       coalesce((confirmed_flush_lsn - '0/0')::int8, 0), coalesce(wal_status, ''),
       coalesce(to_jsonb(s) ->> 'invalidation_reason', ''), active, coalesce((to_jsonb(s) ->> 'failover')::bool, false),
       CASE WHEN pg_is_in_recovery() THEN 0 ELSE coalesce(pg_current_wal_lsn() - restart_lsn, 0)::int8 END
FROM pg_replication_slots s WHERE slot_name = $1`

func readSlot(ctx context.Context, conn *pgx.Conn, name string) (*slot, error) {
	s := &slot{name: name}
	err := conn.QueryRow(ctx, slotSQL, name).Scan(&s.plugin, &s.kind, &s.database, &s.here,
		&s.confirmed, &s.walStatus, &s.invalidation, &s.active, &s.failover, &s.held)
	if errors.Is(err, pgx.ErrNoRows) {
		return s, nil
	}
	if err != nil {
		return nil, classify(err, fmt.Sprintf("read slot %q", name))
	}
	s.exists = true
	return s, nil
}

func (s *slot) invalidated() bool { return s.walStatus == "lost" || s.invalidation != "" }

func (s *slot) state() string {
	switch {
	case !s.exists:
		return SlotMissing
	case s.invalidated():
		return SlotInvalidated
	case s.active:
		return SlotActive
	}
	return SlotInactive
}

// check finds what makes the slot useless by itself.
func (s *slot) check() error {
	thing := fmt.Sprintf("slot %q", s.name)
	switch {
	case !s.exists:
		return finding(CodeSlotMissing, thing, "is not there",
			"run pgbridge setup on a node that has not replicated yet; if the slot was dropped, the server restored from a backup, or a standby promoted without the slot, run pgbridge node restored (docs/restore.md)")
	case s.kind != "logical" || s.plugin != "pgoutput":
		return finding(CodeSlotKind, thing, fmt.Sprintf("is a %s slot of plugin %q, not one of pgoutput", s.kind, s.plugin),
			"drop it if nobody needs it and run pgbridge setup, or rename the node")
	case !s.here:
		return finding(CodeSlotKind, thing, fmt.Sprintf("belongs to database %q", s.database),
			"point postgres.dsn at that database, or rename the node")
	case s.invalidated():
		reason := ""
		if s.invalidation != "" {
			reason = " (" + s.invalidation + ")"
		}
		return finding(CodeSlotInvalidated, thing, "was invalidated by the server"+reason+": changes are missing from it",
			"run pgbridge node restored (docs/restore.md), and raise max_slot_wal_keep_size")
	case s.confirmed == 0:
		return finding(CodeSlotKind, thing, "has no confirmed position yet: it is still being made",
			"end the long transactions that its creation waits for, or drop it and run pgbridge setup")
	}
	return nil
}

// server is what capture needs to know of the server before it starts.
type server struct {
	version  int // server_version_num
	flushLSN uint64
	standby  bool
}

func readServer(ctx context.Context, conn *pgx.Conn) (server, error) {
	var s server
	err := conn.QueryRow(ctx, `
		SELECT current_setting('server_version_num')::int, pg_is_in_recovery(),
		       CASE WHEN pg_is_in_recovery() THEN 0 ELSE (pg_current_wal_flush_lsn() - '0/0')::int8 END`).
		Scan(&s.version, &s.standby, &s.flushLSN)
	if err != nil {
		return s, classify(err, "read the server's state")
	}
	return s, nil
}

func (s server) check() error {
	switch {
	case s.version < minVersion:
		return finding(CodeVersion, "postgresql", fmt.Sprintf("is version %d, at least 14 is needed", s.version/10000),
			"upgrade the server")
	case s.standby:
		return finding(CodeStandby, "postgresql", "is a standby, which commits nothing by itself",
			"point postgres.dsn at the primary")
	}
	return nil
}

// checkFailover finds a version whose standbys cannot take over.
func (s server) checkFailover(o SetupOptions) error {
	if !o.Failover || s.version >= minFailover {
		return nil
	}
	return finding(CodeFailover, "setting postgres.failover", fmt.Sprintf("is on, and postgresql is version %d: before 17 a standby that is promoted has no logical slot", s.version/10000),
		"upgrade the server, or switch the setting off: pgbridge node restored brings the node back when its primary is lost")
}

// withoutSlot is the mend of a slot that is gone.
func (s server) withoutSlot() string {
	if s.version < minFailover {
		return "a new one would leave that out: point postgres.dsn at the server that has it (before PostgreSQL 17 a promoted standby never does), or, before users write, run pgbridge node restored (docs/restore.md)"
	}
	return "a new one would leave that out: point postgres.dsn at the server that has it (a promoted standby does if it synced slots: docs/failover.md), or, before users write, run pgbridge node restored (docs/restore.md)"
}

// checkStart checks that reading may begin at from: that nothing between the stream's tail and the slot is
// missing, and that the server is not older than the stream. stream says that there is a tail.
func (s *slot) checkStart(from uint64, stream bool, flushLSN uint64) error {
	if !stream {
		return nil
	}
	if s.confirmed > from {
		return finding(CodeSlotAhead, fmt.Sprintf("slot %q", s.name),
			fmt.Sprintf("is confirmed up to %s, the own stream ends at %s: what lies between is in neither",
				pglogrepl.LSN(s.confirmed), pglogrepl.LSN(from)),
			"restore the stream that this node wrote last, or run pgbridge node restored (docs/restore.md)")
	}
	if from > flushLSN {
		return finding(CodeServerBehind, "postgresql",
			fmt.Sprintf("has WAL up to %s, the own stream ends at %s: the server was restored from an older state",
				pglogrepl.LSN(flushLSN), pglogrepl.LSN(from)),
			"run pgbridge node restored (docs/restore.md)")
	}
	return nil
}
