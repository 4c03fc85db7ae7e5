package apply

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/wire"
)

// A parent that one node deletes beside the insert of a child on another leaves an orphan, the same on all nodes. Where its
// foreign key has a policy, one node mends it, by an ordinary write that replicates: the one whose users wrote the child
// last. It meets the delete of the parent with the child already there, and so has the parent's row, too: it is put into
// pgbridge.bereaved in the transaction that deletes it, on the careful path, where the parent is locked first, so that no
// local session can refer to it any more. What is to be done is decided when that has been committed: the transaction may
// delete the children itself, as a cascade does.

// OrphanKeep leaves orphans to pgbridge orphans.
const OrphanKeep = "keep"

// ForeignKeyPolicy says what becomes of rows whose parent another node has deleted without having seen them.
type ForeignKeyPolicy struct {
	// Match reports whether a foreign key, a constraint of the table that refers, is meant.
	Match func(schema, table, constraint string) bool
	// Orphans is OrphanKeep, OrphanRestore, OrphanDelete or OrphanNull.
	Orphans string
}

// child is a foreign key that refers to a table, with what becomes of its orphans.
type child struct {
	reference
	fix string
}

// childrenSQL finds the foreign keys that refer to a table.
const childrenSQL = foreignKeysSQL + ` AND k.confrelid = $1 ORDER BY n.nspname, c.relname, k.conname`

// loadChildren reads the foreign keys that refer to the table and have a policy.
func (t *table) loadChildren(ctx context.Context, conn *pgx.Conn, policies []ForeignKeyPolicy) error {
	if len(policies) == 0 {
		return nil
	}
	rows, err := conn.Query(ctx, childrenSQL, t.oid)
	var refs []reference
	if err == nil {
		refs, err = pgx.CollectRows(rows, scanReference)
	}
	if err != nil {
		return fmt.Errorf("read foreign keys that refer to %s: %w", t.quoted, err)
	}
	for _, r := range refs {
		at := slices.IndexFunc(policies, func(p ForeignKeyPolicy) bool { return p.Match(r.schema, r.table, r.name) })
		if at >= 0 && policies[at].Orphans != OrphanKeep {
			t.children = append(t.children, child{r, policies[at].Orphans})
		}
	}
	return nil
}

// bereaves reports whether a change takes a row away to which others may refer under a policy.
func (m *mapping) bereaves(kind wire.Kind, c *wire.Change) bool {
	return len(m.local.children) > 0 && (kind == wire.KindDelete || kind == wire.KindUpdate && m.rekeyed(c))
}

// bereave notes the row that is about to be deleted if others refer to it.
func (c *carefulRun) bereave(m *mapping, tuple []wire.Value) error {
	for i := range m.local.children {
		f := &m.local.children[i]
		ps, err := m.params(nil, tuple, m.key)
		if err != nil {
			return err
		}
		c.push("note what refers to a row of "+m.local.quoted, m.statement(fmt.Sprintf("kb%d", i), func() (string, []uint32) {
			var where strings.Builder
			types := m.local.whereKey(&where, nil)
			return fmt.Sprintf("INSERT INTO pgbridge.bereaved (schema, name, constraint_name, fix, parent) "+
				"SELECT %s, %s, %s, %s, row_to_json(p.*) FROM (SELECT t.* FROM %s t WHERE %s) p WHERE EXISTS (SELECT FROM %s f WHERE %s)",
				literal(f.schema), literal(f.table), literal(f.name), literal(f.fix), m.local.rows, where.String(),
				f.childRows, strings.Join(f.equal, " AND ")), types
		}), ps)
		c.bereaved = true
	}
	return nil
}

// mender mends what pgbridge.bereaved names, in a session without a replication origin.
type mender struct {
	opts *Options
	log  *slog.Logger
	woke chan struct{} // of capacity 1

	mu      sync.Mutex
	refused int    // notes, when it last looked
	why     string // the last one
}

// mendAgain is how long the mender leaves alone what was refused.
const mendAgain = time.Minute

func (a *Applier) openMender() {
	if len(a.opts.ForeignKeys) == 0 {
		return
	}
	a.mender = &mender{opts: &a.opts, log: a.opts.Logger, woke: make(chan struct{}, 1)}
	for _, w := range a.workers {
		w.mender = a.mender
	}
}

// wake has the mender look at what was noted.
func (d *mender) wake() {
	select {
	case d.woke <- struct{}{}:
	default:
	}
}

// run mends until ctx ends or the connection is lost. What an earlier life has noted comes first.
func (d *mender) run(ctx context.Context) error {
	h, err := OpenHistory(ctx, HistoryOptions{DSN: d.opts.DSN, Cluster: d.opts.Cluster, Node: d.opts.Node, session: "pgbridge mender"})
	if err != nil {
		return fmt.Errorf("mend orphans: %w", err)
	}
	defer h.Close(context.WithoutCancel(ctx))
	tick := time.NewTicker(mendAgain)
	defer tick.Stop()
	for {
		if err := d.mendAll(ctx, h); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("mend orphans: %w", err)
		}
		select {
		case <-d.woke:
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// mendAll mends all that was noted.
func (d *mender) mendAll(ctx context.Context, h *History) error {
	rows, err := h.conn.Query(ctx, `SELECT id FROM pgbridge.bereaved ORDER BY id`)
	if err != nil {
		return err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return err
	}
	refused, why := 0, ""
	for _, id := range ids {
		err := pgx.BeginFunc(ctx, h.conn, func(tx pgx.Tx) error { return d.mend(ctx, h, tx, id) })
		var pg *pgconn.PgError
		if err == nil {
			continue
		}
		if !errors.As(err, &pg) && !isRefusal(err) && !isBlocked(err) || lost(err) || ctx.Err() != nil {
			return err
		}
		d.log.Warn("orphans cannot be mended", "id", id, "err", err.Error())
		if _, lateErr := h.conn.Exec(ctx, `UPDATE pgbridge.bereaved SET refused = $2 WHERE id = $1`, id, storable(err.Error())); lateErr != nil {
			return lateErr
		}
		refused, why = refused+1, err.Error()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refused, d.why = refused, why
	return nil
}

// isRefusal reports whether an error is one that a person can mend.
func isRefusal(err error) bool {
	var r *refusal
	return errors.As(err, &r)
}

// mend does what one note asks for, if it is still to be done, and by this node.
func (d *mender) mend(ctx context.Context, h *History, tx pgx.Tx, id int64) error {
	var schema, name, constraint, fix string
	err := tx.QueryRow(ctx, `SELECT schema, name, constraint_name, fix FROM pgbridge.bereaved WHERE id = $1 FOR UPDATE`, id).Scan(&schema, &name, &constraint, &fix)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil // somebody has deleted it by hand
	}
	if err != nil {
		return err
	}
	f, err := h.reference(ctx, schema, name, constraint)
	if err != nil {
		return err
	}
	mended := int64(0)
	if f != nil {
		if err := h.asUser(ctx, tx); err != nil {
			return err
		}
		if mended, err = d.mendOne(ctx, h, tx, f, fix, id); err != nil {
			return err
		}
	}
	if _, err := tx.Exec(ctx, `DELETE FROM pgbridge.bereaved WHERE id = $1`, id); err != nil {
		return err
	}
	if mended > 0 {
		d.log.Info("orphans mended", "table", schema+"."+name, "constraint", constraint, "by", fix, "rows", mended)
	}
	return nil
}

// mendOne mends the orphans of one parent if a local session has written one of them last. It returns how many rows it wrote.
func (d *mender) mendOne(ctx context.Context, h *History, tx pgx.Tx, f *reference, fix string, id int64) (int64, error) {
	parent := pgx.Identifier{f.parentSchema, f.parent}.Sanitize()
	image := fmt.Sprintf("(SELECT q.* FROM pgbridge.bereaved b, pg_catalog.json_populate_record(NULL::%s, b.parent) q WHERE b.id = %d)", parent, id)
	which := fmt.Sprintf("%s AND EXISTS (SELECT FROM %s p WHERE %s)", f.orphaned(), image, strings.Join(f.equal, " AND "))
	var here bool
	if err := tx.QueryRow(ctx, fmt.Sprintf("SELECT EXISTS (SELECT FROM %s f WHERE %s AND (pg_catalog.pg_xact_commit_timestamp_origin(f.xmin)).roident = 0)",
		f.childRows, which)).Scan(&here); err != nil || !here {
		return 0, err
	}
	sql := f.mendSQL(fix, which, h.node)
	if fix == OrphanRestore {
		t, err := h.load(ctx, f.parentSchema+"."+f.parent)
		if err != nil {
			return 0, err
		}
		var cols []string
		for i := range t.cols {
			if !t.cols[i].generated {
				cols = append(cols, t.cols[i].quoted)
			}
		}
		names := strings.Join(cols, ", ")
		sql = fmt.Sprintf("WITH m AS (INSERT INTO %s AS t (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM %s p RETURNING pg_catalog.row_to_json(t.*) AS now)",
			parent, names, names, image) + mendedSQL(f.parentSchema+"."+f.parent, h.node, "NULL::json", "now")
	}
	tag, err := tx.Exec(ctx, sql)
	return tag.RowsAffected(), err
}

// reference finds a foreign key; nil if it is not there any more.
func (h *History) reference(ctx context.Context, schema, table, constraint string) (*reference, error) {
	rows, err := h.conn.Query(ctx, foreignKeysSQL+` AND n.nspname = $1 AND c.relname = $2 AND k.conname = $3`, schema, table, constraint)
	var refs []reference
	if err == nil {
		refs, err = pgx.CollectRows(rows, scanReference)
	}
	if err != nil || len(refs) == 0 {
		return nil, err
	}
	return &refs[0], nil
}

// OrphansRefused returns how many deleted rows have orphans whose mending the server has refused, and why it did so last.
func (a *Applier) OrphansRefused() (rows int, why string) {
	if a.mender == nil {
		return 0, ""
	}
	a.mender.mu.Lock()
	defer a.mender.mu.Unlock()
	return a.mender.refused, a.mender.why
}
