package capture

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/pgbridge/pgbridge/wire"
)

// placedColumnSQL tells of a column, of a table and of its partitions, whose values only some nodes have, what hangs on them: what would be other on
// nodes where it is NULL, or refuses to be so there.
const placedColumnSQL = `
WITH c AS (SELECT a.attrelid, a.attnum, a.attnotnull, a.attgenerated, t.typtype FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
           WHERE a.attrelid IN (SELECT $1::oid UNION SELECT relid FROM pg_partition_tree($1::oid)) AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped)
SELECT EXISTS (SELECT FROM c), COALESCE((SELECT bool_or(attnotnull) FROM c), false), COALESCE((SELECT bool_or(attgenerated <> '') FROM c), false),
       COALESCE((SELECT bool_or(typtype = 'd') FROM c), false),
       EXISTS (SELECT FROM c JOIN pg_partitioned_table p ON p.partrelid = c.attrelid AND c.attnum = ANY (p.partattrs::int2[])),
       ARRAY(SELECT DISTINCT i.indexrelid::regclass::text FROM c JOIN pg_index i ON i.indrelid = c.attrelid AND (i.indisunique OR i.indisexclusion)
             WHERE c.attnum = ANY (i.indkey::int2[]) OR EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
                   AND d.refclassid = 'pg_class'::regclass AND d.refobjid = c.attrelid AND d.refobjsubid = c.attnum) ORDER BY 1),
       ARRAY(SELECT DISTINCT k.conname::text FROM c JOIN pg_constraint k ON k.conrelid = c.attrelid AND k.contype IN ('c', 'f')
             AND (c.attnum = ANY (k.conkey) OR 0 = ANY (k.conkey)) ORDER BY 1),
       ARRAY(SELECT DISTINCT g.attname::text FROM c JOIN pg_attrdef f ON f.adrelid = c.attrelid AND f.adnum <> c.attnum
             JOIN pg_attribute g ON g.attrelid = f.adrelid AND g.attnum = f.adnum AND g.attgenerated <> ''
             JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = c.attrelid AND d.refobjsubid = c.attnum
              AND (d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid OR d.classid = 'pg_class'::regclass AND d.objid = c.attrelid AND d.objsubid = f.adnum)
             ORDER BY 1)`

// unplacedColumns tells of tables of which topology.columns speaks, and that are not replicated here: a name that is written wrong would let values
// go to all nodes.
func (c *check) unplacedColumns(chosen []candidate) {
	for _, name := range slices.SortedFunc(maps.Keys(c.opts.Columns), func(a, b TableName) int { return cmp.Compare(a.String(), b.String()) }) {
		if !slices.ContainsFunc(chosen, func(t candidate) bool { return t.TableName == name }) {
			c.add(CodeTableColumns, "table "+name.String(), "is in topology.columns, and is not there, or not replicated here (tables)",
				"create it, write its name as the server does, or take it out of topology.columns, on all nodes")
		}
	}
}

// placedColumn looks at a column of which only some nodes have the values.
func (c *check) placedColumn(ctx context.Context, t *candidate, key []keyColumn, p *wire.ColumnNodes) error {
	var there, notNull, generated, domain, partitions bool
	var indexes, constraints, from []string
	err := c.conn.QueryRow(ctx, placedColumnSQL, t.oid, p.Name).Scan(&there, &notNull, &generated, &domain, &partitions, &indexes, &constraints, &from)
	if err != nil {
		return classify(err, "read a column whose values only some nodes have")
	}
	thing, column := "table "+t.String(), "column "+ident(p.Name)
	add := func(says, mend string) {
		if mend != "" {
			mend += ", or "
		}
		c.add(CodeTableColumns, thing, says, mend+"take the column out of topology.columns, on all nodes")
	}
	has := "has " + column + ", whose values only some nodes have (topology.columns), "
	switch {
	case !there:
		c.add(CodeTableColumns, thing, "has no "+column+", of which topology.columns says which nodes have its values", "write its name as the server does, or add it, on all nodes")
		return nil
	case slices.ContainsFunc(key, func(k keyColumn) bool { return k.name == p.Name }) || partitions:
		add(has+"in its key, by which all nodes know a row", "")
		return nil // which is NOT NULL, and in an index
	case generated:
		add(has+"that is generated", "let it be an ordinary one")
		return nil
	case notNull:
		add(has+"that is NOT NULL, and to be NULL on others", fmt.Sprintf("run ALTER TABLE %s ALTER %s DROP NOT NULL, on every node", t, ident(p.Name)))
	}
	if domain {
		add(has+"of a domain, which may refuse to be NULL", "let it have the domain's own type")
	}
	for _, index := range indexes {
		add(fmt.Sprintf("%sin the index %s: nodes that have the values would decide otherwise than those that have not", has, index), "drop the index")
	}
	for _, constraint := range constraints {
		add(fmt.Sprintf("%sin the constraint %s: nodes that have the values would decide otherwise than those that have not", has, constraint), "drop the constraint")
	}
	for _, column := range from {
		add(fmt.Sprintf("%sfrom which the generated column %s is made, so that nodes would have other values there", has, ident(column)),
			"drop "+ident(column))
	}
	return nil
}
