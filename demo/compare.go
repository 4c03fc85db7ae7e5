package demo

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// settleTimeout is how long rows may differ after everything has arrived: a row that was inserted by
// another node and deleted by this one at once is taken back a moment later.
const settleTimeout = 5 * time.Second

// compared is one table, as each node has it, in the order of the nodes.
type compared struct {
	name   string
	prints []fingerprint
}

// fingerprint is the same for two tables if they hold the same rows.
type fingerprint struct {
	rows   int
	digest string // over all columns by name, whatever the order of the rows
}

// settledTables compares until all is equal or the time is over.
func (d *demo) settledTables(ctx context.Context) ([]compared, error) {
	var tables []compared
	err := await(ctx, settleTimeout, func(ctx context.Context) (string, error) {
		seen, err := compareTables(ctx, d.nodes)
		if err != nil {
			return "", err
		}
		tables = seen
		for _, t := range tables {
			if t.differ() {
				return t.name + " differs", nil
			}
		}
		return "", nil
	})
	if tables != nil && ctx.Err() == nil {
		return tables, nil // what differs is the caller's to tell
	}
	return nil, err
}

func (t compared) differ() bool {
	return slices.ContainsFunc(t.prints, func(p fingerprint) bool { return p != t.prints[0] })
}

const tablesSQL = `
SELECT format('%I.%I', n.nspname, c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgbridge')
ORDER BY 1`

// compareTables takes the fingerprints of every table that the first node has.
func compareTables(ctx context.Context, nodes []*node) ([]compared, error) {
	names, err := texts(ctx, nodes[0], tablesSQL)
	if err != nil {
		return nil, err
	}
	var tables []compared
	for _, name := range names {
		t := compared{name: name}
		for _, n := range nodes {
			var p fingerprint
			err := n.conn.QueryRow(ctx, `SELECT count(*), COALESCE(md5(string_agg(h, '' ORDER BY h)), '')
				FROM (SELECT md5(to_jsonb(t)::text) AS h FROM `+name+` t) rows`).Scan(&p.rows, &p.digest)
			if err != nil {
				return nil, fmt.Errorf("compare table %s on node %s: %w", name, n.name, err)
			}
			t.prints = append(t.prints, p)
		}
		tables = append(tables, t)
	}
	return tables, nil
}

// texts runs a query of one text column.
func texts(ctx context.Context, n *node, sql string) ([]string, error) {
	rows, err := n.conn.Query(ctx, sql)
	if err != nil {
		return nil, fmt.Errorf("query node %s: %w", n.name, err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("query node %s: %w", n.name, err)
	}
	return all, nil
}

// differences shows the first rows of a table that only one of two nodes has.
func differences(ctx context.Context, table string, a, b *node) (string, error) {
	sql := "SELECT to_jsonb(t)::text FROM " + table + " t ORDER BY 1"
	left, err := texts(ctx, a, sql)
	if err != nil {
		return "", err
	}
	right, err := texts(ctx, b, sql)
	if err != nil {
		return "", err
	}
	lines := append(onlyIn(a.name, left, right), onlyIn(b.name, right, left)...)
	return strings.Join(lines, "\n"), nil
}

// onlyIn gives the first of the rows that the other node lacks, one line each.
func onlyIn(name string, rows, others []string) []string {
	const most = 5
	has := map[string]bool{}
	for _, row := range others {
		has[row] = true
	}
	var lines []string
	for _, row := range rows {
		if !has[row] {
			lines = append(lines, fmt.Sprintf("  only on %s: %s", name, row))
		}
	}
	if len(lines) > most {
		lines = append(lines[:most], fmt.Sprintf("  and %s more on %s", grouped(len(lines)-most), name))
	}
	return lines
}
