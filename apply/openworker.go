package apply

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/rowkey"
	"github.com/pgbridge/pgbridge/wire"
)

// setOrigin makes conn's session that of a replication origin, after an earlier bridge's has ended.
func setOrigin(ctx context.Context, conn *pgx.Conn, name string) error {
	late := fmt.Errorf("replication origin %s is still in use by another session: %w", name, ErrFenced)
	return patiently(ctx, late, func() (bool, error) {
		_, err := conn.Exec(ctx, `SELECT pg_replication_origin_session_setup($1)`, name)
		if hasCode(err, "55006") {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("set replication origin %s: %w", name, explain(err))
		}
		return true, nil
	})
}

func (a *Applier) openWorker(ctx context.Context, ids *remotes, i int, policy conflict.Policy, locks *keyLocks) (*worker, error) {
	o := ids.origins[i]
	conn, err := a.connect(ctx, "apply "+o.String(), nil)
	if err != nil {
		return nil, err
	}
	if err := setOrigin(ctx, conn, OriginName(a.opts.Cluster, a.opts.Node, o)); err != nil {
		return nil, err
	}
	w := &worker{
		origin: o, own: a.own, id: ids.ids[i], opts: &a.opts, log: a.opts.Logger,
		progress: a.progress, markers: a.markers, absence: a.absence, locks: locks, kept: a.kept, heard: a.heard, parked: a.parked, pauses: a.pauses, kinds: &a.kinds, pace: a.pace, yields: a.yields, owed: a.owed, policy: policy,
		conn: conn, socket: conn.PgConn().Conn(), catalog: a.catalog, mappings: map[uint32]*mapping{}, combined: map[string]*combination{},
		digests: rowkey.NewDigests(a.catalog.ask),
		pasts:   map[tableName]*past{},
	}
	w.guard.self = w.id
	for j, other := range ids.origins {
		if j != i {
			w.guard.others, w.guard.ids = append(w.guard.others, other), append(w.guard.ids, ids.ids[j])
		}
	}
	w.planner.w = w
	w.schema, w.stale = a.schema, true
	if err := w.refresh(ctx); err != nil {
		return nil, err
	}
	if err := w.prepareFixed(ctx); err != nil {
		return nil, err
	}
	// Only now: the session that held the replication origin before has ended, and with it its last
	// COMMIT.
	var seq, stamp int64
	if err := conn.QueryRow(ctx, `SELECT seq, stamp FROM pgbridge.position WHERE id = $1`, w.id).Scan(&seq, &stamp); err != nil {
		return nil, fmt.Errorf("read position of %s: %w", o, err)
	}
	a.progress.advance(origin.Entry{Origin: o, Seq: uint64(seq), Stamp: origin.Stamp(stamp)})
	w.inbox = newInbox(o, &a.opts, uint64(seq))
	return w, nil
}

// keepMemorySQL has the session's process allocate and free a large piece of memory. From then on glibc gives memory back
// to the system only above twice that size (its dynamic mmap threshold: man mallopt, M_MMAP_THRESHOLD), instead of after
// each COPY, to fetch it again page by page for the next one.
const keepMemorySQL = "SELECT octet_length(repeat(repeat('x', 1 << 16), 1 << 8))"

// prepareFixed prepares the statements that every transaction needs.
func (w *worker) prepareFixed(ctx context.Context) error {
	w.movingStatements()
	w.positionStatement.name, w.positionStatement.sent, w.positionStatement.ready = "position", true, true
	w.bundleStatement.name, w.bundleStatement.sent, w.bundleStatement.ready = "bundle", true, true
	w.tombstoneStatement = &statement{
		name: "tombstone", sent: true, ready: true, types: []uint32{oidInt8, oidInt4, oidInt8, oidBytea},
		sql: fmt.Sprintf(`INSERT INTO pgbridge.tombstone (origin, epoch, seq, part, stamp, keys) VALUES (%s, %d, $1, $2, $3, $4)`,
			literal(w.origin.Node), w.origin.Epoch),
	}
	if err := w.prepareMark(ctx); err != nil {
		return err
	}
	if _, err := w.conn.Exec(ctx, giveWaySQL); err != nil {
		return fmt.Errorf("set lock_timeout: %w", err)
	}
	if _, err := w.conn.Exec(ctx, keepMemorySQL); err != nil {
		return fmt.Errorf("prepare session: %w", explain(err))
	}
	fixed := func(name, sql string) *statement { return &statement{name: name, sql: sql, sent: true, ready: true} }
	w.beginStatement, w.commitStatement = fixed("begin", "BEGIN"), fixed("commit", "COMMIT")
	w.journalStatement = &statement{sql: journalSQL, types: journalTypes}
	w.journalBaseStatement = &statement{sql: baseSQL, types: baseTypes}
	w.payStatement = &statement{sql: paySQL, types: []uint32{oidInt8Array}}
	w.unkeepStatement = &statement{sql: unkeepSQL, types: []uint32{oidInt8, oidInt8}}
	w.patientStatement = fixed("patient", "SET LOCAL lock_timeout = 0")
	w.xidStatement = fixed("xid", "SELECT pg_current_xact_id()")
	for _, s := range []*statement{w.positionStatement, w.tombstoneStatement, w.bundleStatement, w.beginStatement, w.commitStatement, w.xidStatement,
		fixed("chain", "COMMIT AND CHAIN"), w.patientStatement} {
		if _, err := w.conn.PgConn().Prepare(ctx, s.name, s.sql, s.types); err != nil {
			if hasCode(err, "42P01") { // a version before this one has set it up
				err = ErrNotSetUp
			}
			return fmt.Errorf("prepare %s: %w", s.name, explain(err))
		}
	}
	w.beginMessages = appendRun(nil, "begin", nil)
	w.chainMessages = appendRun(nil, "chain", nil)
	w.commitMessages = appendRun(nil, "commit", nil)
	w.patientMessages = appendRun(nil, "patient", nil)
	return nil
}

// movingStatements makes the statements that move the position, under the present generation of the schema.
func (w *worker) movingStatements() {
	w.positionStatement = &statement{types: []uint32{oidInt8, oidInt8, oidInt8, oidTimestamptz}, sql: w.positionSQL(w.generation)}
	w.bundleStatement = &statement{
		types: []uint32{oidInt8, oidInt8, oidInt8, oidTimestamptz, oidInt8, oidInt8Array, oidInt4Array},
		sql: fmt.Sprintf(`WITH p AS (UPDATE pgbridge.position SET seq = $1, stamp = $2, stream_seq = $3
			WHERE id = %d AND seq = $5 AND %s = %d RETURNING 1), b AS (INSERT INTO pgbridge.bundle (id, at, seq, keys, behind)
			VALUES (%[1]d, $4, $1, $6, $7))
			SELECT 1/count(*), pg_replication_origin_xact_setup('0/0', $4) FROM p`, w.id, generationSQL, w.generation),
	}
}

func (w *worker) positionSQL(generation int64) string {
	return fmt.Sprintf(`WITH p AS (UPDATE pgbridge.position SET seq = $1, stamp = $2, stream_seq = $3
		WHERE id = %d AND seq = $1 - 1 AND %s = %d RETURNING 1)
		SELECT 1/count(*), pg_replication_origin_xact_setup('0/0', $4) FROM p`, w.id, generationSQL, generation)
}

// prepareMark prepares a marker that the worker's session itself writes. Capture reads none that has an origin, so that
// this session lays its own down for it; what stands in a SELECT is done from left to right. If the last part fails, the
// session would be a user's, but then no position can move either: pg_replication_origin_xact_setup refuses.
func (w *worker) prepareMark(ctx context.Context) error {
	var may bool
	err := w.conn.QueryRow(ctx, `SELECT has_function_privilege('pg_replication_origin_session_reset()', 'EXECUTE')`).Scan(&may)
	if err != nil {
		return fmt.Errorf("prepare marker: %w", err)
	}
	if !may {
		return nil
	}
	s := &statement{name: "mark", sent: true, ready: true, types: []uint32{oidBytea},
		sql: `SELECT pg_replication_origin_session_reset(), pg_logical_emit_message(false, '` + wire.MarkerPrefix + `', ` + markContent + `),
			pg_replication_origin_session_setup(` + literal(OriginName(w.opts.Cluster, w.own.Node, w.origin)) + `)`}
	if _, err := w.conn.PgConn().Prepare(ctx, s.name, s.sql, s.types); err != nil {
		return fmt.Errorf("prepare marker: %w", explain(err))
	}
	w.markStatement = s
	return nil
}

func (w *worker) tombstoneParams(t *txn, part int, keys []wire.KeyHash) []param {
	return []param{int64Param(int64(t.Seq)), binaryParam([]byte{byte(part >> 24), byte(part >> 16), byte(part >> 8), byte(part)}),
		int64Param(int64(t.Stamp)), binaryParam(packKeys(keys))}
}
