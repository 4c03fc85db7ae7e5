package cluster

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// convergeTime is how long nothing may move before all nodes are equal: how long they take as long as it does is the machine's affair.
const convergeTime = 3 * time.Minute

// mostTimes is how often convergeTime may pass while something moves: what still does then comes to no end.
const mostTimes = 5

// patience returns a context that ends when nothing has moved on any node for convergeTime, or has for mostTimes as long.
func (c *Cluster) patience() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		seen := c.moved(ctx)
		for range mostTimes {
			select {
			case <-time.After(convergeTime):
			case <-ctx.Done():
				return
			}
			last := seen
			if seen = c.moved(ctx); seen == last {
				return
			}
		}
	}()
	return ctx, cancel
}

// moved is another text when transactions of others were applied meanwhile, or rows written.
func (c *Cluster) moved(ctx context.Context) (all string) {
	for _, n := range c.Nodes {
		var text string
		conn, err := pgx.Connect(ctx, n.DSN)
		if err == nil {
			err = conn.QueryRow(ctx, `SELECT concat_ws(' ', (SELECT sum(seq) FROM pgbridge.position), (SELECT count(*) FROM pgbridge.parked),
				(SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables WHERE schemaname <> 'pgbridge'))`).Scan(&text)
			conn.Close(ctx)
		}
		all += fmt.Sprintln(n.Name, text, err)
	}
	return all
}

// WaitConverged waits until everything that was committed before on any node is applied on all of them,
// and then requires that all tables hold the same rows. It judges from outside: it knows nothing of
// positions or vectors.
func (c *Cluster) WaitConverged() {
	c.t.Helper()
	ctx, cancel := c.patience()
	defer cancel()
	c.awaitSentinels(ctx)
	var diff string
	for ctx.Err() == nil {
		switch d := c.difference(ctx); {
		case d == "":
			return
		case ctx.Err() == nil: // else it tells of the time that is over
			diff = d
		}
		pause(ctx)
	}
	c.t.Fatalf("nodes differ: %s", diff)
}

// AwaitSent waits until every node has what all have written by now. It does not compare them.
func (c *Cluster) AwaitSent() {
	c.t.Helper()
	ctx, cancel := c.patience()
	defer cancel()
	c.awaitSentinels(ctx)
}

// awaitSentinels writes a row on each node but readers, behind everything else, and waits until every node has all
// of them: an origin's transactions are applied in order.
func (c *Cluster) awaitSentinels(ctx context.Context) {
	c.t.Helper()
	c.round++
	writers := 0
	for _, n := range c.Nodes {
		if n.Reader() {
			continue
		}
		writers++
		n.rounds++
		n.Exec(`INSERT INTO pgb_sentinel VALUES ($1, $2) ON CONFLICT (node) DO UPDATE SET round = EXCLUDED.round`, n.Name, c.round)
	}
	for _, n := range c.Nodes {
		for n.Value(`SELECT count(*) FROM pgb_sentinel WHERE round = $1`, c.round) != fmt.Sprint(writers) {
			if ctx.Err() != nil {
				for _, m := range c.Nodes {
					c.t.Logf("node %s has %v\n%s\n%s", m.Name, m.Query(`SELECT node, round FROM pgb_sentinel ORDER BY 1`), m.statusText(), m.LogTail())
				}
				c.t.Fatalf("node %s has not received everything", n.Name)
			}
			pause(ctx)
		}
	}
}

// pause waits between two looks at what no event tells of.
func pause(ctx context.Context) {
	select {
	case <-time.After(20 * time.Millisecond):
	case <-ctx.Done():
	}
}

// tablesSQL lists tables, and for each what makes a row of it, as t, into text: columns by name, and of bytes no more than their hash,
// since tests fill disks with them.
const tablesSQL = `
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname),
       COALESCE((SELECT 'jsonb_build_object(' || string_agg(quote_literal(a.attname) || ', ' ||
                        format(CASE a.atttypid WHEN 'bytea'::regtype THEN 'md5(t.%I)' ELSE 't.%I' END, a.attname), ', ' ORDER BY a.attname) || ')::text'
                 FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                 HAVING bool_or(a.atttypid = 'bytea'::regtype) AND count(*) <= 50), 'to_jsonb(t)::text')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgbridge') AND n.nspname NOT LIKE 'pg_toast%'
ORDER BY 1`

// difference describes the first rows that are not on all nodes, "" if there are none.
func (c *Cluster) difference(ctx context.Context) string {
	c.t.Helper()
	groups := map[string][]comparedTable{} // by the nodes that have them
	for _, t := range c.Nodes[0].tables() {
		for _, part := range c.parts(t) {
			for _, part := range c.columns(part) {
				at := c.at(part)
				groups[at] = append(groups[at], part)
			}
		}
	}
	for at, tables := range groups {
		if d := c.differenceAt(ctx, at, tables); d != "" {
			return d
		}
	}
	return ""
}

// parts are a table, or, if topology.rows names values of it, its rows with each of these values, and those with others.
func (c *Cluster) parts(t comparedTable) (all []comparedTable) {
	var column string
	var named []string
	others := t
	for _, s := range strings.Split(c.opts.Config["topology.rows"], ",") {
		r, ok := config.SplitRows(strings.TrimSpace(s))
		if !ok || r.Name() != t.name {
			continue
		}
		if column = r.Column; r.Value == "*" {
			others.nodes = r.Nodes
			continue
		}
		value := "'" + strings.ReplaceAll(r.Value, "'", "''") + "'"
		named = append(named, value)
		all = append(all, comparedTable{name: t.name, text: t.text, where: fmt.Sprintf(" WHERE t.%s::text = %s", column, value), nodes: r.Nodes})
	}
	if named != nil {
		others.where = fmt.Sprintf(" WHERE t.%s::text NOT IN (%s)", column, strings.Join(named, ", "))
	}
	return append(all, others)
}

// columns are a part without the columns of which topology.columns says that only some nodes have the values, and for each of these with it.
func (c *Cluster) columns(t comparedTable) []comparedTable {
	placed := map[string][]string{}
	for _, s := range strings.Split(c.opts.Config["topology.columns"], ",") {
		if p, ok := config.SplitColumn(strings.TrimSpace(s)); ok && p.Name() == t.name {
			placed[p.Column] = p.Nodes
		}
	}
	but := func(column string, nodes []string) comparedTable {
		one := t
		one.text, one.nodes = "("+strings.TrimSuffix(t.text, "::text"), nodes
		for name := range placed {
			if name != column {
				one.text += " - '" + name + "'"
			}
		}
		one.text += ")::text"
		return one
	}
	all := []comparedTable{but("", t.nodes)}
	for column, nodes := range placed {
		all = append(all, but(column, nodes))
	}
	return all
}

// at is the names of the nodes that have rows: all, unless topology.residency, topology.rows or topology.columns say otherwise.
func (c *Cluster) at(t comparedTable) (names string) {
	schema, table, _ := strings.Cut(t.name, ".")
	for _, n := range c.Nodes {
		there := t.nodes == nil || slices.Contains(t.nodes, n.Name)
		for _, s := range strings.Split(c.opts.Config["topology.residency"], ",") {
			pattern, nodes := config.SplitTableNodes(s)
			there = there && (!capture.Matches(pattern, schema, table) || slices.Contains(nodes, n.Name))
		}
		if there {
			names += n.Name
		}
	}
	return names
}

// differenceAt is difference of tables that only the nodes of these names, of one letter each, have.
func (c *Cluster) differenceAt(ctx context.Context, names string, tables []comparedTable) string {
	var nodes []*Node
	for _, n := range c.Nodes {
		if strings.Contains(names, n.Name) {
			nodes = append(nodes, n)
		}
	}
	if c.alike(ctx, nodes, tables) {
		return ""
	}
	first := nodes[0]
	for _, t := range tables {
		want := first.rows(ctx, t.digest(), t.from())
		for _, n := range nodes[1:] {
			if got := n.rows(ctx, t.digest(), t.from()); strings.Join(got, "") != strings.Join(want, "") {
				return fmt.Sprintf("table %s, nodes %s and %s:\n%s", t.name, first.Name, n.Name,
					firstDifferences(first.rows(ctx, t.text, t.from()), n.rows(ctx, t.text, t.from())))
			}
		}
	}
	return ""
}

// comparedTable is a table of tablesSQL, or some rows of one.
type comparedTable struct {
	name, text string
	where      string   // which rows; empty: all
	nodes      []string // that have them; nil: those that have the table
}

// from is what stands behind FROM, with alias t.
func (t comparedTable) from() string { return t.name + " t" + t.where }

// tables lists the node's tables, by name.
func (n *Node) tables() (all []comparedTable) {
	n.t.Helper()
	for _, line := range n.Query(tablesSQL) {
		i := strings.LastIndex(line, "|")
		all = append(all, comparedTable{name: line[:i], text: line[i+1:]})
	}
	return all
}

// digest is the number of the rows and a digest of them.
func (t comparedTable) digest() string {
	return fmt.Sprintf(`count(*) || ' ' || COALESCE(sum(('x' || substr(md5(%s), 1, 15))::bit(60)::int8), 0)`, t.text)
}

// alike reports whether nodes are known to hold the same rows: one question to each node, where difference asks for
// every table.
func (c *Cluster) alike(ctx context.Context, nodes []*Node, tables []comparedTable) bool {
	var parts []string
	for _, t := range tables {
		parts = append(parts, fmt.Sprintf("SELECT '%s' AS name, %s AS rows FROM %s", strings.ReplaceAll(t.name, "'", "''"), t.digest(), t.from()))
	}
	var want string
	for i, n := range nodes {
		conn, giveBack, err := pgtest.Borrow(ctx, n.DSN)
		if err != nil {
			return false
		}
		var got string
		err = conn.QueryRow(ctx, `SELECT string_agg(name || ' ' || rows, ', ' ORDER BY name COLLATE "C") FROM (`+strings.Join(parts, " UNION ALL ")+`) t`).Scan(&got)
		giveBack()
		if err != nil || i > 0 && got != want {
			return false
		}
		want = got
	}
	return true
}

// rows returns an expression of a table's rows, t, sorted.
func (n *Node) rows(ctx context.Context, expression, from string) []string {
	n.t.Helper()
	conn, giveBack, err := pgtest.Borrow(ctx, n.DSN)
	if err != nil {
		return []string{n.Name + ": " + err.Error()} // never equal to another node's
	}
	defer giveBack()
	rows, err := conn.Query(ctx, fmt.Sprintf(`SELECT %s FROM %s`, expression, from))
	if err != nil {
		return []string{n.Name + ": " + err.Error()}
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return []string{n.Name + ": " + err.Error()}
	}
	sort.Strings(all)
	return all
}

func firstDifferences(a, b []string) string {
	count := map[string]int{}
	for _, r := range a {
		count[r]++
	}
	for _, r := range b {
		count[r]--
	}
	var lines []string
	for r, n := range count {
		if n != 0 {
			lines = append(lines, fmt.Sprintf("%+d %s", n, r))
		}
	}
	sort.Strings(lines)
	if len(lines) > 12 {
		lines = append(lines[:12], fmt.Sprintf("... and %d more", len(lines)-12))
	}
	return strings.Join(lines, "\n")
}
