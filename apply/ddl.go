package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/rowkey"
	"github.com/pgbridge/pgbridge/wire"
)

// A transaction that changes the schema is applied alone, on the careful path, and in its own order: rows before and behind a change
// meet the tables as they are there. It is neither parked nor skipped; whatever is in the way makes its origin wait. Its marker is
// written when it holds all locks, and not before: schemachange.go rests on that.

// unannounced is more than how many transactions begin while one is applied, and far less than half of all 32-bit ids.
const unannounced = 1 << 24

// openSchema reads which schema changes were made here, and tells pgbridge.ddl which tables are replicated.
func (a *Applier) openSchema(ctx context.Context) error {
	a.schema = &schemaChanges{own: a.own, told: map[uint32]uint64{}}
	err := a.catalog.conn.QueryRow(ctx, `UPDATE pgbridge.node SET chosen = $1, excluded = $2, merged = $3 RETURNING secret`,
		orPattern(a.opts.Chosen, ".*"), orPattern(a.opts.Excluded, "(?!)"), orPattern(a.opts.Merged, "(?!)")).Scan(&a.node.Secret)
	if err == nil {
		_, err = a.schema.read(ctx, a.catalog.conn)
	}
	if hasCode(err, "42P01", "42703") { // a version before this one has set it up
		err = ErrNotSetUp
	}
	if err != nil {
		return fmt.Errorf("read schema changes: %w", explain(err))
	}
	return nil
}

func orPattern(pattern, def string) string {
	if pattern == "" {
		return def
	}
	return pattern
}

// LocalSchema is told by capture that the own transaction seq, whose id is xid, changed the schema.
func (a *Applier) LocalSchema(seq uint64, xid uint32) { a.schema.meet(seq, xid) }

// changeSchema applies a transaction that changes the schema.
func (w *worker) changeSchema(ctx context.Context, t *txn) error {
	if ok, err := w.alone(ctx, t); !ok {
		return err
	}
	if w.opts.Writers.Bar(w.origin.Node) {
		return blocked("transaction %d changes the schema, and node %s does not write all tables (topology.writers): its SQL is not run here; make the change by hand and run pgbridge ddl --done, or let that node write them", t.Seq, w.origin.Node)
	}
	if err := w.beforeParked(t); err != nil {
		return err
	}
	if err := newCarefulRun(w, []*txn{t}).try(ctx); err != nil {
		return err
	}
	w.stale = true
	w.log.Info("schema changed", "origin", w.origin.String(), "seq", t.Seq)
	return w.resetSession(ctx)
}

// beforeParked is an error if parked transactions have tables in common with t, which they would have to be parked behind.
func (w *worker) beforeParked(t *txn) error {
	if w.parked.empty() {
		return nil
	}
	changes, err := newChanges(t)
	if err != nil {
		return err
	}
	r := &reach{}
	err = eachChange(changes, func(_ wire.Record, rels []*wire.Relation, _ *wire.Change) error {
		for _, rel := range rels {
			if n := (tableName{rel.Schema, rel.Name}); !slices.Contains(r.tables, n) {
				r.tables = append(r.tables, n)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.wiped = r.tables
	if on := w.parked.before(t, r); len(on) > 0 {
		return blocked("transaction %d changes the schema, and has tables in common with parked %s; see to that (pgbridge parked)", t.Seq, label(on[0].Entry))
	}
	return nil
}

// ownCatalog has tables read over the transaction's own session, until the function that it returns is called. It alone sees what it
// has changed; and whoever reads the same tables over the shared one may wait for the transaction's locks.
func (c *carefulRun) ownCatalog() func() {
	shared, digests := c.catalog, c.digests
	c.made = 0
	c.catalog = &catalog{conn: c.conn, types: map[uint32]*pgType{}, merges: shared.merges, priority: shared.priority, foreign: shared.foreign, node: shared.node, columns: shared.columns}
	c.digests = rowkey.NewDigests(c.catalog.ask)
	c.forgetMappings()
	return func() {
		c.catalog, c.digests = shared, digests
		c.forgetMappings()
	}
}

// lockedOut is the error of a transaction that waits for somebody or something else.
func (c *carefulRun) lockedOut(err error) error {
	if isBlocked(err) {
		c.forgetMappings()
		return err
	}
	return &Blocked{Reason: fmt.Sprintf("transaction %d changes the schema, and waits for sessions that use its tables; it does not hold up others meanwhile. "+
		"End long transactions", c.t.Seq), Err: err}
}

const (
	// beSQL lets the session be who made the change; restSQL ends that.
	beSQL   = `SELECT set_config('search_path', $1, true), set_config('role', $2, true)`
	restSQL = `SELECT set_config('role', 'none', true), set_config('search_path', 'pg_catalog', true)`
	noteDDL = `SELECT n.id, n.before FROM pgbridge.ddl_compare($1::jsonb, pgbridge.ddl_shape()) c,
		LATERAL pgbridge.ddl_note($1::jsonb, c.changes, c.summary, c.fresh, $2, $3, $4, $5, $6, $7) n`
	doneSQL = `SELECT EXISTS (SELECT FROM pgbridge.ddl_done WHERE origin = $1 AND epoch = $2 AND seq = $3), pgbridge.ddl_shape()::text`
)

// makeChange executes one schema change in the open transaction. What is in the way is a Blocked error.
func (c *carefulRun) makeChange(ctx context.Context, s *wire.Schema) error {
	if err := c.flush(ctx); err != nil {
		return err
	}
	t := c.t
	var done bool
	var shape string
	if err := c.conn.QueryRow(ctx, doneSQL, t.origin.Node, int64(t.origin.Epoch), int64(t.Seq)).Scan(&done, &shape); err != nil {
		return fmt.Errorf("read the schema: %w", err)
	}
	if !done {
		if err := c.execute(ctx, s); err != nil {
			return err
		}
	}
	var id, before int64
	err := c.conn.QueryRow(ctx, noteDDL, shape, t.origin.Node, int64(t.origin.Epoch), int64(t.Seq), s.Role, s.SearchPath, s.SQL).Scan(&id, &before)
	if err != nil {
		return c.refused(s, err)
	}
	c.forgetMappings()
	if c.made == 0 && before != c.generation || c.made != 0 && before != c.made { // another change was made since this one was planned
		return errUnknown
	}
	c.made = id
	return nil
}

// execute runs the statements as who made them. plpgsql keeps them from ending the transaction.
func (c *carefulRun) execute(ctx context.Context, s *wire.Schema) error {
	_, err := c.conn.Exec(ctx, beSQL, s.SearchPath, s.Role)
	if err == nil {
		_, err = c.conn.Exec(ctx, "DO "+dollars("BEGIN EXECUTE "+dollars(s.SQL)+"; END"), pgx.QueryExecModeSimpleProtocol)
	}
	if err == nil {
		_, err = c.conn.Exec(ctx, restSQL)
	}
	if err != nil {
		return c.refused(s, err)
	}
	return nil
}

// dollars quotes a text for SQL by a tag that does not stand in it.
func dollars(text string) string {
	tag := "$pgbridge$"
	for n := 0; strings.Contains(text, tag); n++ {
		tag = fmt.Sprintf("$pgbridge%d$", n)
	}
	return tag + text + tag
}

// refused makes of the server's refusal of a schema change what the origin waits for, with the mend.
func (c *carefulRun) refused(s *wire.Schema, err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || lost(err) || slices.Contains([]string{"40001", "40P01", "55P03"}, pg.Code) {
		return fmt.Errorf("change the schema: %w", err)
	}
	name := label(c.t.entry())
	mend := "mend the cause here; it is tried again by itself"
	switch {
	case pg.Code == "42501", pg.Code == "22023" && strings.Contains(pg.Message, "role"), pg.Code == "42704" && strings.Contains(pg.Message, "role"):
		mend = fmt.Sprintf("run CREATE ROLE %s if it is not here, GRANT %s TO the role in postgres.dsn, and grant it what it lacks",
			pgx.Identifier{s.Role}.Sanitize(), pgx.Identifier{s.Role}.Sanitize())
	case slices.Contains([]string{"42701", "42P07", "42P06", "42710", "42723", "42704", "42P01", "42703"}, pg.Code):
		mend = fmt.Sprintf("make the schema here as it was at the origin before; or, if this node has the change already and exactly so, run pgbridge ddl --done %s here", name)
	case strings.HasPrefix(pg.Code, "23"):
		mend = "correct the rows here that violate it; it is tried again by itself"
	}
	return &Blocked{Reason: fmt.Sprintf("schema change %s is refused here (%s); %s", name, brief(s.SQL), mend), Err: err}
}

// brief is the beginning of a text, in one line.
func brief(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if r := []rune(text); len(r) > 100 {
		return string(r[:100]) + "…"
	}
	return text
}

// underNewSchema is the statement that moves the position of a transaction that has changed the schema.
func (c *carefulRun) underNewSchema() *statement {
	if c.made == 0 {
		return c.positionStatement // all its changes were rolled back
	}
	s := &statement{types: c.positionStatement.types, sql: c.positionSQL(c.made)}
	c.retired.combined = append(c.retired.combined, s)
	return s
}

// announceChange writes the marker of a transaction that has changed the schema. It holds the locks of all that it has changed, and
// nothing is left but the COMMIT.
func (c *carefulRun) announceChange(ctx context.Context) error {
	if err := c.flush(ctx); err != nil {
		return err
	}
	return c.markers.announced(ctx, c.t.entry())
}

// resetSession gives the session its settings back, which a schema change may have set.
func (w *worker) resetSession(ctx context.Context) error {
	var names, values []string
	for name, value := range sessionSettings {
		names, values = append(names, name), append(values, value)
	}
	if _, err := w.conn.Exec(ctx, `SELECT set_config(n, v, false) FROM unnest($1::text[], $2::text[]) s(n, v)`, names, values); err != nil {
		return fmt.Errorf("reset session: %w", err)
	}
	if _, err := w.conn.Exec(ctx, giveWaySQL); err != nil {
		return fmt.Errorf("set lock_timeout: %w", err)
	}
	return nil
}

// MarkDone has a schema change of another node, named as origin:seq, count as made here: an operator has made it by hand.
func MarkDone(ctx context.Context, dsn, name string) error {
	node, number, ok := strings.Cut(name, ":")
	node, epochText, _ := strings.Cut(node, "/")
	epoch := uint64(1)
	seq, err := strconv.ParseUint(number, 10, 63)
	if err == nil && epochText != "" {
		epoch, err = strconv.ParseUint(epochText, 10, 31)
	}
	if !ok || err != nil || node == "" {
		return &refusal{fmt.Errorf("%q is not a transaction", name), "name it as origin:seq, as status does"}
	}
	conn, err := connectPlain(ctx, dsn, "pgbridge ddl")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var applied int64
	err = conn.QueryRow(ctx, `SELECT seq FROM pgbridge.position WHERE origin = $1 AND epoch = $2
		UNION ALL SELECT 0 FROM pgbridge.node WHERE node = $1 AND epoch = $2`, node, int64(epoch)).Scan(&applied)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return &refusal{fmt.Errorf("this node knows no node %q", node), "name the transaction as status does"}
	case hasCode(err, "42P01", "3F000"):
		return ErrNotSetUp
	case err != nil:
		return fmt.Errorf("read positions: %w", explain(err))
	case applied >= int64(seq):
		return fmt.Errorf("transaction %s is applied here already", name)
	}
	if _, err := conn.Exec(ctx, `INSERT INTO pgbridge.ddl_done VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, node, int64(epoch), int64(seq)); err != nil {
		return fmt.Errorf("note a schema change: %w", explain(err))
	}
	return nil
}
