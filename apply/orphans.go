package apply

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Foreign keys are not checked when remote rows are written, so that a child that was inserted beside the delete of its
// parent has none, on every node. It is no child whose parent is still on its way: a parent that the child's author had seen
// comes before it. What is found here is mended by an ordinary write of this node, like an undo.

// OrphanKind is the kind under which a mended orphan stands in the history: as it was is what lost.
const OrphanKind = "orphan"

// The ways to mend an orphan.
const (
	OrphanDelete  = "delete"  // the row goes
	OrphanNull    = "null"    // the columns that refer to the parent become NULL
	OrphanRestore = "restore" // the parent comes back; only by policy (mender.go)
)

// OrphanOptions say which orphans are meant, and what becomes of them.
type OrphanOptions struct {
	Table  string // a pattern over schema.table of the child: * for any characters, ? for one; empty: all
	Limit  int    // how many keys are told of each foreign key; 10 if zero
	Fix    string // OrphanDelete or OrphanNull; empty: none
	DryRun bool   // tell the statements and write nothing
}

// Orphans are the rows that one foreign key does not allow.
type Orphans struct {
	Table      string        `json:"table"` // the child
	Constraint string        `json:"constraint"`
	Parent     string        `json:"parent"`
	Columns    []string      `json:"columns"`
	Orphans    int64         `json:"orphans"`
	Keys       []ConflictKey `json:"keys"` // of the first ones; null for a table whose key is not known
	Mended     int64         `json:"mended"`
	Statement  string        `json:"statement,omitempty"` // what mends them
	// Refused is why they were not mended.
	Refused string `json:"refused,omitempty"`
}

// Validate checks the options. Its error asks for the exit code of wrong usage.
func (o *OrphanOptions) Validate() error {
	if err := (&ConflictFilter{Table: o.Table}).Validate(); err != nil {
		return err
	}
	switch {
	case o.Fix != "" && o.Fix != OrphanDelete && o.Fix != OrphanNull:
		return &refusal{fmt.Errorf("orphans cannot be mended by %q", o.Fix), "use delete or null"}
	case o.Limit < 0:
		return &refusal{fmt.Errorf("limit %d is out of range", o.Limit), "use 1 or more"}
	}
	return nil
}

// reference is one foreign key.
type reference struct {
	schema, table, name   string
	parentSchema, parent  string
	childRows, parentRows string // ready for SQL
	full                  bool   // MATCH FULL
	columns               []string
	equal                 []string // conditions on p and f, one for each column
}

// foreignKeysSQL finds foreign keys, those of partitioned tables once. One with PERIOD asks for another condition, and one
// that is NOT ENFORCED allows orphans.
const foreignKeysSQL = `
SELECT n.nspname::text, c.relname::text, k.conname::text, pn.nspname::text, p.relname::text,
	CASE c.relkind WHEN 'r' THEN 'ONLY ' ELSE '' END || quote_ident(n.nspname) || '.' || quote_ident(c.relname),
	CASE p.relkind WHEN 'r' THEN 'ONLY ' ELSE '' END || quote_ident(pn.nspname) || '.' || quote_ident(p.relname),
	k.confmatchtype = 'f', cols.names, cols.equal
FROM pg_constraint k
JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class p ON p.oid = k.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace,
LATERAL (SELECT array_agg(fa.attname::text ORDER BY u.n) AS names, array_agg(
		format('p.%I OPERATOR(%I.%s) f.%I', pa.attname, opn.nspname, op.oprname, fa.attname) ||
		CASE WHEN fa.attcollation <> pa.attcollation AND pa.attcollation <> 0 THEN format(' COLLATE %I.%I', con.nspname, co.collname) ELSE '' END ORDER BY u.n) AS equal
	FROM unnest(k.conkey, k.confkey, k.conpfeqop) WITH ORDINALITY u(f, p, op, n)
	JOIN pg_attribute fa ON fa.attrelid = k.conrelid AND fa.attnum = u.f
	JOIN pg_attribute pa ON pa.attrelid = k.confrelid AND pa.attnum = u.p
	JOIN pg_operator op ON op.oid = u.op JOIN pg_namespace opn ON opn.oid = op.oprnamespace
	LEFT JOIN pg_collation co ON co.oid = pa.attcollation LEFT JOIN pg_namespace con ON con.oid = co.collnamespace) cols
WHERE k.contype = 'f' AND k.conparentid = 0
	AND COALESCE(to_jsonb(k) ->> 'conperiod', 'false') = 'false' AND COALESCE(to_jsonb(k) ->> 'conenforced', 'true') = 'true'`

// referencesSQL finds those of published tables.
const referencesSQL = foreignKeysSQL + `
	AND EXISTS (SELECT FROM pg_publication_tables t WHERE t.pubname = $1 AND
		to_regclass(quote_ident(t.schemaname) || '.' || quote_ident(t.tablename)) IN (SELECT c.oid UNION ALL SELECT relid FROM pg_partition_ancestors(c.oid)))
	AND ($2 = '' OR n.nspname || '.' || c.relname LIKE $2)
ORDER BY n.nspname, c.relname, k.conname`

// orphaned is the condition on alias f that a row has no parent.
func (r *reference) orphaned() string {
	var null, there []string
	for _, c := range r.columns {
		col := "f." + pgx.Identifier{c}.Sanitize()
		null, there = append(null, col+" IS NULL"), append(there, col+" IS NOT NULL")
	}
	missing := fmt.Sprintf("NOT EXISTS (SELECT FROM %s p WHERE %s)", r.parentRows, strings.Join(r.equal, " AND "))
	if r.full {
		return "NOT (" + strings.Join(null, " AND ") + ") AND " + missing
	}
	return strings.Join(there, " AND ") + " AND " + missing
}

// mendSQL mends the orphans that the condition which on alias f finds, and puts what they were into the history, where the other side, what they are now, has won.
func (r *reference) mendSQL(fix, which, node string) string {
	var rows, now string
	if fix == OrphanDelete {
		rows = fmt.Sprintf("WITH m AS (DELETE FROM %s f WHERE %s RETURNING pg_catalog.row_to_json(f.*) AS was)", r.childRows, which)
		now = "NULL"
	} else {
		var set []string
		for _, c := range r.columns {
			set = append(set, pgx.Identifier{c}.Sanitize()+" = NULL")
		}
		rows = fmt.Sprintf("WITH o AS (SELECT f.tableoid AS at, f.ctid AS place, pg_catalog.row_to_json(f.*) AS was FROM %[1]s f WHERE %[2]s FOR UPDATE OF f),\n"+
			"m AS (UPDATE %[1]s f SET %[3]s FROM o WHERE f.tableoid OPERATOR(pg_catalog.=) o.at AND f.ctid OPERATOR(pg_catalog.=) o.place RETURNING o.was, pg_catalog.row_to_json(f.*) AS now)",
			r.childRows, which, strings.Join(set, ", "))
		now = "now"
	}
	return rows + mendedSQL(r.schema+"."+r.table, node, "was", now)
}

// mendedSQL puts into the history what rows m were, and what they are now.
func mendedSQL(table, node, was, now string) string {
	const stamp = "(extract(epoch FROM pg_catalog.now()) * 1000000)::bigint - 946684800000000" // microseconds since 2000
	return fmt.Sprintf("\nINSERT INTO pgbridge.conflict (relation, kind, outcome, remote_origin, remote_seq, remote_stamp, local_origin, local_stamp, local_row, remote_row)\n"+
		"SELECT %s, '%s', '%s', %s, 0, %s, %[4]s, %[5]s, %[6]s, %[7]s FROM m",
		literal(table), OrphanKind, remoteWins, literal(node), stamp, was, now)
}

// Orphans looks for rows that a foreign key of the published tables does not allow, and mends them if o.Fix says so: one
// transaction for each foreign key, and what the server refuses of one does not hold up the others. Only foreign keys
// with orphans are returned.
func (h *History) Orphans(ctx context.Context, o OrphanOptions) ([]Orphans, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	refs, err := h.references(ctx, o.Table)
	if err != nil {
		return nil, err
	}
	found := []Orphans{}
	for i := range refs {
		f, err := h.orphans(ctx, &refs[i], o)
		if err != nil {
			return nil, err
		}
		if f.Orphans > 0 {
			found = append(found, *f)
		}
	}
	return found, nil
}

func (h *History) references(ctx context.Context, pattern string) ([]reference, error) {
	rows, err := h.conn.Query(ctx, referencesSQL, h.publication, likePattern(pattern))
	if err != nil {
		return nil, fmt.Errorf("read foreign keys: %w", err)
	}
	refs, err := pgx.CollectRows(rows, scanReference)
	if err != nil {
		return nil, fmt.Errorf("read foreign keys: %w", err)
	}
	return refs, nil
}

func scanReference(row pgx.CollectableRow) (r reference, err error) {
	return r, row.Scan(&r.schema, &r.table, &r.name, &r.parentSchema, &r.parent, &r.childRows, &r.parentRows, &r.full, &r.columns, &r.equal)
}

// orphans looks for those of one foreign key, and mends them.
func (h *History) orphans(ctx context.Context, r *reference, o OrphanOptions) (*Orphans, error) {
	f := &Orphans{Table: r.schema + "." + r.table, Constraint: r.name, Parent: r.parentSchema + "." + r.parent, Columns: r.columns}
	err := h.conn.QueryRow(ctx, fmt.Sprintf(`SELECT count(*) FROM %s f WHERE %s`, r.childRows, r.orphaned())).Scan(&f.Orphans)
	if err == nil && f.Orphans > 0 {
		f.Keys, err = h.orphanKeys(ctx, r, o)
	}
	if err != nil {
		return nil, fmt.Errorf("look for orphans of foreign key %s of %s: %w", r.name, f.Table, h.explainReading(err, r))
	}
	if f.Orphans == 0 || o.Fix == "" {
		return f, nil
	}
	f.Statement = r.mendSQL(o.Fix, r.orphaned(), h.node)
	if o.DryRun {
		return f, nil
	}
	err = pgx.BeginFunc(ctx, h.conn, func(tx pgx.Tx) error {
		if err := h.asUser(ctx, tx); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, f.Statement)
		f.Mended = tag.RowsAffected()
		return err
	})
	if err != nil {
		f.Mended = 0
		if ctx.Err() != nil {
			return nil, err
		}
		f.Refused = h.explain(err).Error()
	}
	return f, nil
}

func (h *History) orphanKeys(ctx context.Context, r *reference, o OrphanOptions) ([]ConflictKey, error) {
	t, err := h.known(ctx, r.schema+"."+r.table)
	if err != nil || t == nil {
		return nil, err
	}
	var cols, values, order []string
	for _, k := range t.key {
		c := &t.cols[k]
		cols, order = append(cols, c.name), append(order, "f."+c.quoted)
		values = append(values, "to_json(f."+c.quoted+")::text")
	}
	limit := o.Limit
	if limit == 0 {
		limit = 10
	}
	rows, err := h.conn.Query(ctx, fmt.Sprintf("SELECT ARRAY[%s] FROM %s f WHERE %s ORDER BY %s LIMIT %d",
		strings.Join(values, ", "), r.childRows, r.orphaned(), strings.Join(order, ", "), limit))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (ConflictKey, error) {
		var values []*string
		err := row.Scan(&values)
		return keyOf(cols, values), err
	})
}

// explainReading adds the mend where the role may not read the tables.
func (h *History) explainReading(err error, r *reference) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != "42501" {
		return err
	}
	return &refusal{pg, fmt.Sprintf("run GRANT USAGE ON SCHEMA %s, %s TO %s; GRANT SELECT ON %s, %s TO %[3]s; or name the bridge's own role in postgres.dsn",
		pgx.Identifier{r.schema}.Sanitize(), pgx.Identifier{r.parentSchema}.Sanitize(), h.role, strings.TrimPrefix(r.childRows, "ONLY "), strings.TrimPrefix(r.parentRows, "ONLY "))}
}
