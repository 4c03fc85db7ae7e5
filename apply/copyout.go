package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// A node that joins is given the rows of a table page by page (since.go), in the order of the key, as COPY writes them: text means the
// same on servers of different versions. A page is read in a snapshot of its own, so that nothing is held for longer.

// CopyTable is a table that a node which joins is given.
type CopyTable struct {
	Schema   string `json:"schema"`
	Name     string `json:"name"`
	Relation []byte `json:"relation"` // its columns, as a record
	Rows     int64  `json:"rows"`     // about so many, by the last ANALYZE
	Merged   bool   `json:"merged"`   // it is given when the node is one, whole (Donation.Merged)
	Bytes    int64  `json:"bytes"`    // of the table, with large values and without indexes
}

// CopyPage asks for rows of a table behind one key, up to another one. Keys are what the columns of the table's key read as text, in
// the order of its index; nil is before the first or behind the last.
type CopyPage struct {
	Schema  string   `json:"schema"`
	Name    string   `json:"name"`
	Columns []string `json:"columns"`
	After   []string `json:"after"`
	UpTo    []string `json:"up_to"`
	Rows    int      `json:"rows"`           // at most
	Have    []byte   `json:"have,omitempty"` // hashes of rows that need not be given (sieve)
}

// CopyEnd is how a page ended.
type CopyEnd struct {
	Last []string `json:"last"`           // the next page begins behind this key; nil: there is none
	Rows int64    `json:"rows"`           // in the page; those that come later are not
	Kept []byte   `json:"kept,omitempty"` // a bit for each of the hashes, the lowest first: the row belongs to the page
}

// copier gives pages. It has one session and one snapshot.
type copier struct {
	*carefulRun // of no transaction; its up and low are what all nodes have seen
	first       uint32
}

// openCopier connects and takes a snapshot. The caller closes conn.
func (a *Applier) openCopier(ctx context.Context, since origin.Vector) (*copier, error) {
	wal := a.wal.Load()
	if wal == nil {
		return nil, &NotYet{"the bridge does not run yet"}
	}
	conn, err := connect(ctx, a.opts.DSN, fmt.Sprintf("pgbridge %s copy", a.opts.Node), map[string]string{"standard_conforming_strings": "on",
		"default_transaction_isolation": "repeatable read", "default_transaction_read_only": "on"})
	if err != nil {
		return nil, err
	}
	run, err := a.sideRun(ctx, conn)
	if err != nil {
		conn.Close(context.WithoutCancel(ctx))
		return nil, err
	}
	x := &copier{carefulRun: run}
	x.wal, x.t.up, x.t.low = *wal, since, since
	var xmax int64
	if _, err = conn.Exec(ctx, "BEGIN"); err == nil {
		err = conn.QueryRow(ctx, `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8`).Scan(&xmax)
	}
	x.xmax = uint64(xmax)
	if err != nil {
		conn.Close(context.WithoutCancel(ctx))
		return nil, fmt.Errorf("take a snapshot: %w", explain(err))
	}
	if x.xmax-x.opts.FirstXID < 1<<31 {
		x.first = uint32(x.opts.FirstXID)
	}
	return x, nil
}

func (x *copier) close(ctx context.Context) { x.conn.Close(context.WithoutCancel(ctx)) }

// sizeSQL sums over partitions; a table that was never analyzed has a negative number of rows.
const sizeSQL = `SELECT COALESCE(sum(greatest(c.reltuples, 0)), 0)::int8, COALESCE(sum(pg_table_size(c.oid)), 0)::int8
FROM (SELECT $1::oid AS oid UNION SELECT relid::oid FROM pg_partition_tree($1::oid::regclass)) p JOIN pg_class c ON c.oid = p.oid`

// CopyTables returns the tables of a publication, by name, but for those that without names; nil names none. The error is a NoDelta if they
// cannot be copied.
func (a *Applier) CopyTables(ctx context.Context, publication string, without func(schema, table string) bool) ([]CopyTable, error) {
	x, err := a.openCopier(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer x.close(ctx)
	tables, err := (&donor{carefulRun: x.carefulRun, not: without}).tables(ctx, publication)
	if err != nil {
		return nil, err
	}
	var all []CopyTable
	for _, t := range tables {
		c := CopyTable{Schema: t.schema, Name: t.name, Relation: wire.AppendRelation(nil, t.relation(t.oid)), Merged: t.merge != nil}
		if err := x.conn.QueryRow(ctx, sizeSQL, t.oid).Scan(&c.Rows, &c.Bytes); err != nil {
			return nil, fmt.Errorf("read size of %s: %w", t.quoted, err)
		}
		all = append(all, c)
	}
	return all, nil
}

// order is the key of a table as its index orders it.
type order struct {
	columns []string // to compare by, of alias t
	types   []string
	path    []string // where their operators are
}

// text is the key of a row as an array of texts.
func (o *order) text() string {
	return "ARRAY[" + strings.Join(o.columns, "::text, ") + "::text]"
}

// is is the condition that rows stand in this relation to a key.
func (o *order) is(relation string, key []string) string {
	values := make([]string, len(key))
	for i := range key {
		values[i] = literal(key[i]) + "::" + o.types[i]
	}
	return fmt.Sprintf("ROW(%s) %s ROW(%s)", strings.Join(o.columns, ", "), relation, strings.Join(values, ", "))
}

// between is the condition that rows are behind one key and not behind another.
func (o *order) between(after, upTo []string) string {
	conditions := []string{"true"}
	if after != nil {
		conditions = append(conditions, o.is(">", after))
	}
	if upTo != nil {
		conditions = append(conditions, o.is("<=", upTo))
	}
	return strings.Join(conditions, " AND ")
}

// fits reports whether a key has as many columns.
func (o *order) fits(key []string) bool { return key == nil || len(key) == len(o.columns) }

// findOrder finds it out, and lets the transaction find its operators: for rows they are sought by name.
func findOrder(ctx context.Context, conn *pgx.Conn, t *table) (*order, error) {
	var identity string
	if err := conn.QueryRow(ctx, `SELECT relreplident::text FROM pg_class WHERE oid = $1`, t.oid).Scan(&identity); err != nil {
		return nil, fmt.Errorf("read keys of %s: %w", t.quoted, err)
	}
	rows, err := conn.Query(ctx, `SELECT ARRAY(SELECT a.attname::text FROM unnest(k.nums) WITH ORDINALITY u(num, at)
			JOIN pg_attribute a ON a.attrelid = $1 AND a.attnum = u.num ORDER BY u.at)
		FROM (`+keySQL+`) k(chosen, main, fit, nums, equals) WHERE fit`, t.oid, identity)
	if err != nil {
		return nil, fmt.Errorf("read keys of %s: %w", t.quoted, err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[[]string])
	if err != nil || len(all) == 0 {
		return nil, fmt.Errorf("read keys of %s: %w", t.quoted, err)
	}
	o := &order{path: []string{"pg_catalog"}}
	for _, name := range all[0] {
		c := &t.cols[slices.IndexFunc(t.cols, func(c column) bool { return c.name == name })]
		root := c.typ.root()
		o.columns, o.types = append(o.columns, "("+c.compared()+")"), append(o.types, pgx.Identifier{root.schema, root.name}.Sanitize())
		if schema := (pgx.Identifier{root.schema}).Sanitize(); root.schema != "pg_catalog" && !slices.Contains(o.path, schema) {
			o.path = append(o.path, schema)
		}
	}
	return o, o.use(ctx, conn)
}

// use lets the transaction that is open find the operators.
func (o *order) use(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, "SET LOCAL search_path TO "+strings.Join(o.path, ", ")); err != nil {
		return fmt.Errorf("set search_path: %w", err)
	}
	return nil
}

// atPlaces is the condition that a row of alias t is at one of these places of a table, which is given by its object id.
func atPlaces(relation string, places []string) string {
	return fmt.Sprintf(`t.tableoid = %s AND t.ctid = ANY ('{"%s"}'::tid[])`, relation, strings.Join(places, `","`))
}

// CopyParts cuts the rows of a table that a node has into so many parts of about the same size, by a sample of their keys: it returns the last key of each but the last.
func (a *Applier) CopyParts(ctx context.Context, node, schema, name string, parts int, rows int64) ([][]string, error) {
	x, err := a.openCopier(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer x.close(ctx)
	t, err := x.catalog.table(ctx, schema, name)
	if err != nil {
		return nil, err
	}
	o, err := findOrder(ctx, x.conn, t)
	if err != nil {
		return nil, err
	}
	resides, err := a.opts.residesSQL(node, t)
	if err != nil {
		return nil, err
	}
	const wanted = 10_000
	share := min(100, 100*wanted/float64(max(rows, 1)))
	keys := strings.Join(o.columns, ", ")
	sample, err := x.conn.Query(ctx, fmt.Sprintf(`SELECT key FROM (SELECT %s AS key, row_number() OVER (ORDER BY %s) AS n, count(*) OVER () AS count
		FROM %s t TABLESAMPLE SYSTEM (%g) WHERE %s) s WHERE n * %d / count > (n - 1) * %[6]d / count AND n < count ORDER BY n`, o.text(), keys, t.rows, share, resides, parts))
	if err != nil {
		return nil, fmt.Errorf("cut %s into parts: %w", t.quoted, err)
	}
	all, err := pgx.CollectRows(sample, pgx.RowTo[[]string])
	if err != nil {
		return nil, fmt.Errorf("cut %s into parts: %w", t.quoted, err)
	}
	return all, nil
}

// CopyPage writes a page to out, of the rows that a node has. since is what all nodes have seen (Knows). The error is a NoDelta if who wrote some of the rows is not
// known.
func (a *Applier) CopyPage(ctx context.Context, node string, q CopyPage, since origin.Vector, out io.Writer) (*CopyEnd, error) {
	x, err := a.openCopier(ctx, since)
	if err != nil {
		return nil, err
	}
	defer x.close(ctx)
	t, err := x.catalog.table(ctx, q.Schema, q.Name)
	if err == nil && t.merge != nil {
		err = &NoDelta{fmt.Sprintf("table %s is merged (conflict.tables) and not copied by pages; let the node that joins have the same version of pgbridge", t.quoted)}
	}
	if err == nil {
		err = x.noneKept(ctx, t)
	}
	if err != nil {
		return nil, err
	}
	o, err := findOrder(ctx, x.conn, t)
	if err != nil {
		return nil, err
	}
	if !o.fits(q.After) || !o.fits(q.UpTo) || q.Rows < 1 {
		return nil, fmt.Errorf("the page that is wanted of %s does not fit its key, which has %d columns; was the table changed?", t.quoted, len(o.columns))
	}
	resides, err := a.opts.residesSQL(node, t)
	if err != nil {
		return nil, err
	}
	end := &CopyEnd{}
	where := o.between(q.After, q.UpTo) + " AND " + resides
	err = x.conn.QueryRow(ctx, fmt.Sprintf("SELECT %s FROM %s t WHERE %s ORDER BY %s OFFSET %d LIMIT 1", o.text(), t.rows, where,
		strings.Join(o.columns, ", "), q.Rows-1)).Scan(&end.Last)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return nil, fmt.Errorf("read keys of %s: %w", t.quoted, err)
	default:
		where = o.between(q.After, end.Last) + " AND " + resides
	}
	if len(q.Have) == 0 {
		return end, x.page(ctx, t, q.Columns, where, out, end)
	}
	s, err := newSieve(q.Have, out)
	if err == nil {
		err = x.page(ctx, t, q.Columns, where, s, end)
	}
	if err != nil {
		return nil, err
	}
	end.Rows, end.Kept = end.Rows-s.hits, s.kept
	return end, nil
}

// page writes the old rows of which a condition holds.
func (x *copier) page(ctx context.Context, t *table, names []string, where string, out io.Writer, end *CopyEnd) error {
	var columns []string
	for _, name := range names {
		if !slices.ContainsFunc(t.cols, func(c column) bool { return c.name == name }) {
			return fmt.Errorf("table %s has no column %q any more", t.quoted, name)
		}
		columns = append(columns, "t."+pgx.Identifier{name}.Sanitize())
	}
	write := func(where string) error {
		tag, err := x.conn.PgConn().CopyTo(ctx, out, fmt.Sprintf("COPY (SELECT %s FROM %s t WHERE %s) TO STDOUT", strings.Join(columns, ", "), t.rows, where))
		if err != nil {
			return fmt.Errorf("read rows of %s: %w", t.quoted, err)
		}
		end.Rows += tag.RowsAffected()
		return nil
	}
	old := x.old()
	if err := write(where + " AND " + old); err != nil {
		return err
	}
	places, err := x.oldPlaces(ctx, t, where+" AND ("+old+") IS NOT TRUE")
	if err != nil {
		return err
	}
	for relation, at := range places {
		for part := range slices.Chunk(at, deltaBatch) {
			if err := write(atPlaces(relation, part)); err != nil {
				return err
			}
		}
	}
	return nil
}

// old is the condition that a row's last writer is covered, as far as SQL can tell, with the same terms as donor.rowsSQL.
func (x *copier) old() string {
	within, _ := x.wal.MarkWithin(x.t.low, x.origin)
	mark, _ := x.wal.MarkFor(x.t.low.Seq(x.own))
	older := func(id uint32) string { return fmt.Sprintf("age(t.xmin) > age('%d'::xid)", id) } // the age of id 0 is infinite
	var b strings.Builder
	fmt.Fprintf(&b, "(%s OR %s OR (SELECT CASE c.roident WHEN 0 THEN %s AND %s", older(uint32(within)), older(x.first), older(uint32(mark)), genuine)
	for i, o := range x.guard.others {
		if e := x.t.up.Get(o); e.Seq > 0 {
			fmt.Fprintf(&b, " WHEN %d THEN c.timestamp <= %s::timestamptz", x.guard.ids[i], literal(e.Stamp.Time().Format("2006-01-02 15:04:05.999999")+"+00"))
		}
	}
	b.WriteString(" ELSE false END FROM pg_xact_commit_timestamp_origin(t.xmin) c))")
	return b.String()
}

// oldPlaces looks at who wrote rows of which SQL does not know it, and returns where the old ones are, by table.
func (x *copier) oldPlaces(ctx context.Context, t *table, where string) (map[string][]string, error) {
	m, err := x.selfMapping(t)
	if err != nil {
		return nil, err
	}
	cols, formats := t.keyColumns()
	r := x.conn.PgConn().ExecParams(ctx, fmt.Sprintf("SELECT t.tableoid, t.ctid, %s FROM %s t WHERE %s", cols, t.rows, where), nil, nil, nil,
		append([]int16{0, 0}, formats...)).Read()
	if r.Err != nil {
		return nil, fmt.Errorf("read rows of %s: %w", t.quoted, r.Err)
	}
	if len(r.Rows) == 0 {
		return nil, nil
	}
	// All commits that the snapshot shows are below this.
	lsn, err := x.markers.flush(ctx)
	if err == nil {
		// Whoever changes the schema waits meanwhile, for the lock of the table.
		short, cancel := context.WithTimeoutCause(ctx, captureWait, ErrCaptureBehind)
		defer cancel()
		err = x.wal.WaitPassed(short, lsn)
	}
	if err != nil {
		return nil, err
	}
	x.caughtUp, x.waited = true, true
	places := map[string][]string{}
	for rows := range slices.Chunk(r.Rows, deltaBatch) {
		g := &keyGroup{}
		for _, row := range rows {
			tuple := make([]wire.Value, len(m.cols))
			for n, v := range keyValues(row[2:], formats) {
				tuple[m.key[n]] = v
			}
			k, err := x.planner.hash(m, tuple)
			if err != nil {
				return nil, err
			}
			g.tuples, g.hashes = append(g.tuples, tuple), append(g.hashes, k)
		}
		if err := x.fetchOnly(ctx, m, g); err != nil {
			return nil, err
		}
		for i, k := range g.hashes {
			old, err := x.isOld(m, g.found[i], k)
			if err != nil {
				return nil, err
			}
			if relation := string(rows[i][0]); old {
				places[relation] = append(places[relation], string(rows[i][1]))
			}
		}
	}
	return places, nil
}

func (x *copier) isOld(m *mapping, row [][]byte, k wire.KeyHash) (bool, error) {
	if row == nil {
		return false, fmt.Errorf("a row of %s is not found by its key; is its index corrupt?", m.local.quoted)
	}
	l, err := x.present(m, row, k)
	if errors.Is(err, errUnknown) {
		return false, &NoDelta{fmt.Sprintf("who wrote rows of table %s is not known there any more (it was rewritten, or their commit timestamps are gone); "+
			"UPDATE its rows there, so that they are the latest", m.local.quoted)}
	}
	return l.seen || l.local.Ancient, err
}

// noneKept refuses a table while rows of it that all nodes know are kept out of it: they might come back between two pages.
func (x *copier) noneKept(ctx context.Context, t *table) error {
	rows, err := x.conn.Query(ctx, `SELECT origin, epoch, stamp FROM pgbridge.quarantine WHERE schema = $1 AND name = $2`, t.schema, t.name)
	if err != nil {
		return fmt.Errorf("read quarantine: %w", err)
	}
	var v origin.Version
	kept := 0
	_, err = pgx.ForEachRow(rows, []any{&v.Origin.Node, &v.Origin.Epoch, (*int64)(&v.Stamp)}, func() error {
		if e := x.t.up.Get(v.Origin); v.Origin.Node == "" || e.Seq > 0 && v.Stamp <= e.Stamp {
			kept++
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read quarantine: %w", err)
	}
	if kept > 0 {
		return &NoDelta{fmt.Sprintf("%d rows of table %s are kept out of it there, since later ones have a value that must be unique; "+
			"change or delete those (docs/unique.md), and go on", kept, t.quoted)}
	}
	return nil
}
