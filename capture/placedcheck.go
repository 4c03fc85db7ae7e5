package capture

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/wire"
)

// columnSQL tells of a column by which topology.rows says where rows are, of a collation that tells equal texts apart, and of the table: whether
// old rows come whole, whether a value may be stored out of line outside of the key, and which unique indexes leave the column out.
const columnSQL = `
SELECT a.atttypid, t.typtype = 'e', COALESCE(NOT l.collisdeterministic, false),
       NOT EXISTS (SELECT FROM pg_class p WHERE p.relreplident <> 'f' AND p.relkind = 'r'
                   AND p.oid IN (SELECT a.attrelid UNION ALL SELECT relid FROM pg_partition_tree(a.attrelid))),
       EXISTS (SELECT FROM pg_attribute w WHERE w.attrelid = a.attrelid AND w.attnum > 0 AND NOT w.attisdropped AND w.attlen = -1 AND w.attstorage <> 'p'
               AND w.attname <> ALL ($3::text[])),
       ARRAY(SELECT i.indexrelid::regclass::text FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisunique
             AND a.attnum <> ALL (i.indkey[0:i.indnkeyatts-1]) ORDER BY 1)
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_collation l ON l.oid = a.attcollation
WHERE a.attrelid = $1 AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped`

// unplaced tells of tables of which topology.rows speaks, and that are not replicated here: a name that is written wrong would let rows go to
// all nodes.
func (c *check) unplaced(chosen []candidate) {
	for _, name := range slices.SortedFunc(maps.Keys(c.opts.Rows), func(a, b TableName) int { return strings.Compare(a.String(), b.String()) }) {
		if !slices.ContainsFunc(chosen, func(t candidate) bool { return t.TableName == name }) {
			c.add(CodeTableRows, "table "+name.String(), "is in topology.rows, and is not there, or not replicated here (tables)",
				"create it, write its name as the server does, or take it out of topology.rows, on all nodes")
		}
	}
}

// placed looks at a table of which only some nodes have some rows.
func (c *check) placed(ctx context.Context, t *candidate, key []keyColumn, p *wire.Places) error {
	thing := "table " + t.String()
	names := make([]string, len(key))
	for i := range key {
		names[i] = key[i].name
	}
	rows, err := c.conn.Query(ctx, columnSQL, t.oid, p.Column, names)
	if err != nil {
		return classify(err, "read the column that says where rows are")
	}
	var typ uint32
	var enum, vague, full, wide, there bool
	var unique []string
	if _, err := pgx.ForEachRow(rows, []any{&typ, &enum, &vague, &full, &wide, &unique}, func() error {
		there = true
		return nil
	}); err != nil {
		return classify(err, "read the column that says where rows are")
	}
	column := "column " + ident(p.Column)
	const elsewhere = "name another column in topology.rows, on all nodes"
	switch {
	case !there:
		c.add(CodeTableRows, thing, "has no "+column+", by which topology.rows says where its rows are", elsewhere)
		return nil
	case !slices.Contains(names, p.Column):
		c.add(CodeTableRows, thing, fmt.Sprintf("has %s, by which topology.rows says where its rows are, outside of its key (%s)", column, strings.Join(names, ", ")),
			"make it part of the primary key, or "+elsewhere)
		return nil
	case vague:
		c.add(CodeTableRows, thing, "has "+column+", by which topology.rows says where its rows are, under a collation that takes different texts for equal",
			"give it a deterministic collation, or "+elsewhere)
	}
	says := "has " + column + ", by which topology.rows says where its rows are"
	if !wire.Placeable(typ, enum) {
		c.add(CodeTableRows, thing, says+", of a type whose values have no text of their own",
			"let it be text, varchar, char, uuid, boolean, smallint, integer, bigint or an enum, or "+elsewhere)
		return nil
	}
	for _, value := range p.Values() {
		if why := wire.CheckValue(typ, value); why != "" {
			c.add(CodeTableRows, thing, says+": "+why, "write the value as the server does, on all nodes")
		}
	}
	if wide && !full {
		c.add(CodeTableRows, thing, "has rows that an update may take to other nodes (topology.rows), and large values that this leaves out of the WAL",
			fmt.Sprintf("run ALTER TABLE %s REPLICA IDENTITY FULL, on every node (for a partitioned table, of each partition, too)", t))
	}
	for _, index := range unique {
		c.add(CodeTableRows, thing, fmt.Sprintf("has the unique index %s without %s, so that a node which has all rows would decide otherwise than one that has some (topology.rows)", index, column),
			"add the column to the index, or drop the index")
	}
	return nil
}
