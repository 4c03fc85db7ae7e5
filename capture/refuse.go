package capture

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Users of a reader do not write to tables that are replicated, and those of other nodes not to tables that only some nodes write. A
// trigger refuses that, which fires for each statement of a user and not in apply's sessions, whose session_replication_role is replica. Whoever gets past it, as a superuser can, has written as on
// any other node: nothing is lost, no rows differ, and there is an alarm.

// refusing is the name of the trigger, and refuseFunction that of what it calls.
const (
	refusing       = "pgbridge_reader"
	refuseFunction = "pgbridge.refuse_write()"
)

// refuseFunctionSQL creates it. TG_ARGV has the node, and, unless it is a reader, which setting says so.
const refuseFunctionSQL = `CREATE OR REPLACE FUNCTION ` + refuseFunction + ` RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION USING ERRCODE = 'read_only_sql_transaction',
    MESSAGE = pg_catalog.format('table %I.%I cannot be written on node %s, %s', TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_ARGV[0],
      CASE WHEN TG_NARGS > 1 THEN 'since ' || TG_ARGV[1] || ' names others' ELSE 'which is a reader' END),
    HINT = pg_catalog.format('Write on another node: it is replicated to here. To write here, change %s on every node.',
      CASE WHEN TG_NARGS > 1 THEN TG_ARGV[1] ELSE 'topology.roles' END);
END $$`

// openSQL lists the tables among those of $1, and their partitions, that users can write, or that tell them another reason: one with
// another number of arguments than $2.
const openSQL = `
SELECT n.nspname::text, c.relname::text
FROM (SELECT DISTINCT coalesce(p.relid, t) AS oid FROM unnest($1::oid[]) t LEFT JOIN LATERAL pg_partition_tree(t) p ON true) x
     JOIN pg_class c ON c.oid = x.oid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p')
  AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgname = '` + refusing + `' AND g.tgenabled = 'O' AND g.tgnargs = $2)
ORDER BY 1, 2`

// closedSQL lists the tables that have the trigger, and are not among those of $1 and their partitions.
const closedSQL = `
SELECT n.nspname::text, c.relname::text
FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE g.tgname = '` + refusing + `' AND g.tgparentid = 0
  AND NOT EXISTS (SELECT FROM unnest($1::oid[]) t LEFT JOIN LATERAL pg_partition_tree(t) p ON true WHERE coalesce(p.relid, t) = c.oid)
ORDER BY 1, 2`

// guarded is a table that has the trigger, or should.
type guarded struct{ TableName }

// listOpen lists what openSQL does.
func listOpen(ctx context.Context, conn *pgx.Conn, o *SetupOptions, tables []candidate) ([]guarded, error) {
	return listGuarded(ctx, conn, openSQL, o.refused(tables), len(o.reason()))
}

func listGuarded(ctx context.Context, conn *pgx.Conn, sql string, args ...any) ([]guarded, error) {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, classify(err, "list triggers")
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (g guarded, err error) {
		return g, row.Scan(&g.Schema, &g.Name)
	})
	return all, classify(err, "list triggers")
}

// reason is what the trigger is told of why it refuses: its arguments.
func (o *SetupOptions) reason() []string {
	if o.Reader {
		return []string{literal(o.Node)}
	}
	return []string{literal(o.Node), "'topology.writers'"}
}

// closeSQL returns what makes users unable to write a table, whatever somebody has made of the trigger.
func (g guarded) closeSQL(o *SetupOptions) string {
	return fmt.Sprintf("CREATE OR REPLACE TRIGGER %s BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s\nFOR EACH STATEMENT EXECUTE FUNCTION %s",
		refusing, g, strings.Replace(refuseFunction, "()", "("+strings.Join(o.reason(), ", ")+")", 1))
}

// closeInPlaceSQL is closeSQL for a role that may call pgbridge's functions. The first trigger of a table changes its row in pg_class, by
// which apply would take the table's own rows for rewritten ones (PROOF.md F8).
func (g guarded) closeInPlaceSQL(o *SetupOptions) string {
	return fmt.Sprintf(`DO $do$ DECLARE was jsonb; BEGIN
LOCK TABLE %[1]s IN SHARE ROW EXCLUSIVE MODE;
SELECT jsonb_build_object(oid, jsonb_build_object('file', relfilenode, 'xmin', xmin)) INTO was FROM pg_catalog.pg_class WHERE oid = %[2]s::regclass;
%[3]s;
IF has_function_privilege(to_regprocedure('pgbridge.left_in_place(jsonb)'), 'EXECUTE') THEN PERFORM pgbridge.left_in_place(was); END IF;
END $do$`, g, literal(g.String()), g.closeSQL(o))
}

// refuses reports whether there are tables that users do not write.
func (o *SetupOptions) refuses() bool { return o.Reader || o.MayWrite != nil }

// refused lists, of tables that are replicated if their rows can be told apart, those that users do not write.
func (o *SetupOptions) refused(tables []candidate) (oids []uint32) {
	for _, t := range tables {
		if t.usable() && (o.Reader || o.MayWrite != nil && !o.MayWrite(t.Schema, t.Name)) {
			oids = append(oids, t.oid)
		}
	}
	return oids
}

// refuseSQL returns what lets users write exactly the tables that they may.
func refuseSQL(ctx context.Context, conn *pgx.Conn, o SetupOptions, tables []candidate) (sql []string, err error) {
	open, err := listOpen(ctx, conn, &o, tables)
	if err != nil {
		return nil, err
	}
	if len(open) > 0 {
		var there bool
		if err := conn.QueryRow(ctx, `SELECT to_regprocedure($1) IS NOT NULL`, refuseFunction).Scan(&there); err != nil {
			return nil, classify(err, "look for "+refuseFunction)
		}
		if !there {
			sql = append(sql, refuseFunctionSQL)
		}
	}
	for _, g := range open {
		sql = append(sql, g.closeInPlaceSQL(&o))
	}
	closed, err := listGuarded(ctx, conn, closedSQL, o.refused(tables))
	for _, g := range closed {
		sql = append(sql, fmt.Sprintf("DROP TRIGGER %s ON %s", refusing, g))
	}
	return sql, err
}

// writable is what to say of a table that users can write and should not; err is why that could not be mended.
func writable(g guarded, o *SetupOptions, err error) Finding {
	fault := "can be written by users, though this node is a reader"
	if !o.Reader {
		fault = "can be written by users, though topology.writers names other nodes"
	}
	if err != nil {
		fault += " (" + oneLine(err) + ")"
	}
	return Finding{CodeReaderWritable, "table " + g.String(), fault,
		"run pgbridge setup, or as the table's owner " + strings.ReplaceAll(g.closeSQL(o), "\n", " ")}
}

// refuse has users refused what a reader's users cannot do, in tables that came or were changed since Setup, and returns where that
// cannot be done.
func (w *TableWatch) refuse(ctx context.Context, conn *pgx.Conn) (found []Finding, err error) {
	if !w.opts.refuses() {
		return nil, nil
	}
	tables, err := listTables(ctx, conn, w.opts.Tables)
	if err != nil {
		return nil, err
	}
	open, err := listOpen(ctx, conn, &w.opts, tables)
	for _, g := range open {
		err := errNotAsked
		if w.publish {
			_, err = conn.Exec(ctx, g.closeInPlaceSQL(&w.opts))
		}
		if isLost(err) {
			return nil, err
		}
		if err != nil {
			found = append(found, writable(g, &w.opts, err))
			continue
		}
		w.log.Warn("table could be written by users until now, which is for other nodes", "table", g.String())
	}
	return found, err
}
