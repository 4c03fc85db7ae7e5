package bridge

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/wire"
)

// sameNodes are the subject of one comparison: tables, or some rows or columns of one, at the nodes that have them.
type sameNodes struct {
	at     []string // of the nodes that are asked about, in their order
	tables map[string]bool
	rows   *apply.VerifyRows        // nil: all
	cells  func(column string) bool // which columns beside the key; nil: all
	again  bool                     // its rows are compared without these columns, too
	why    string                   // some others have them
}

// compare compares each table, and of a table of whose rows or columns only some nodes have some those that are on the same ones, at those of
// the nodes, the lead first, that have them. What the lead has not is left out.
func (r residency) compare(ctx context.Context, p placed, cols columns, ask rowAsker, nodes []string, o VerifyOptions, tell func(VerifyProgress)) (*VerifyReport, error) {
	if len(r) == 0 && len(p) == 0 && len(cols) == 0 {
		return newVerifyRun(ask, nodes, o, tell).run(ctx)
	}
	a, err := ask(ctx, nodes[0], &apply.VerifyQuestion{Kind: apply.VerifyTables})
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", nodes[0], err)
	}
	all, fits := map[string]*sameNodes{}, false
	for _, t := range a.Tables {
		if o.Table != "" && !capture.Matches(o.Table, t.Schema, t.Name) {
			continue
		}
		fits = true
		if places := p.of(t.Schema, t.Name); places != nil {
			for k, c := range comparedRows(places, nodes) {
				c.tables = map[string]bool{t.String(): true}
				all[k+"\x00"+t.String()] = c
			}
			continue
		}
		if placed := cols.of(t.Schema, t.Name); placed != nil {
			for k, c := range comparedColumns(placed, nodes) {
				c.tables = map[string]bool{t.String(): true}
				all[strings.Join(nodes, " ")+"\x00"+t.String()+k] = c
			}
			continue
		}
		at := slices.DeleteFunc(slices.Clone(nodes), func(node string) bool { return !r.at(node, t.Schema, t.Name) })
		k := strings.Join(at, " ")
		if all[k] == nil {
			all[k] = &sameNodes{at: at, tables: map[string]bool{}, why: "topology.residency has it on other nodes than those that are asked about"}
		}
		all[k].tables[t.String()] = true
	}
	if o.Table != "" && !fits {
		return nil, noSuchTable(o.Table)
	}
	report, found := newVerifyRun(ask, nodes, o, tell).report, map[string]bool{}
	for _, k := range slices.Sorted(maps.Keys(all)) {
		one := all[k]
		if len(one.at) < 2 || o.From != "" && !slices.Contains(one.at, o.From) {
			for _, name := range slices.Sorted(maps.Keys(one.tables)) {
				report.Skipped = append(report.Skipped, VerifySkipped{name, one.why})
			}
			continue
		}
		c := newVerifyRun(ask, one.at, o, tell)
		c.only, c.rows, c.cells, c.told = one.tables, one.rows, one.cells, found
		got, err := c.run(ctx)
		if err != nil {
			return nil, err
		}
		if one.again {
			got.sameRows(report)
		}
		report.add(got, o.Limit)
	}
	report.Seconds = time.Since(report.At).Seconds()
	return report, nil
}

// comparedRows are those of a table that the lead has, by the nodes that have them.
func comparedRows(p *wire.Places, nodes []string) map[string]*sameNodes {
	all := map[string]*sameNodes{}
	of := func(value string) *sameNodes {
		have := p.Of([]byte(value))
		at := slices.DeleteFunc(slices.Clone(nodes), func(node string) bool { return have != nil && !slices.Contains(have, node) })
		k := strings.Join(at, " ")
		switch {
		case !slices.Contains(at, nodes[0]):
			return &sameNodes{rows: &apply.VerifyRows{}} // which nobody compares
		case all[k] == nil:
			all[k] = &sameNodes{at: at, rows: &apply.VerifyRows{}}
		}
		return all[k]
	}
	for _, value := range p.Values() {
		c := of(value)
		c.rows.Values = append(c.rows.Values, value)
		c.why = fmt.Sprintf("topology.rows has its rows with %s=%s on other nodes than those that are asked about", p.Column, value)
	}
	c := of(wire.OtherValues)
	if c.rows.Others = true; c.why == "" {
		c.why = "topology.rows has its rows with other values on other nodes than those that are asked about"
	}
	return all
}

// comparedColumns are those of a table that all nodes have, and those that only some have, the lead among them, by these. The key of the first is empty.
func comparedColumns(placed []wire.ColumnNodes, nodes []string) map[string]*sameNodes {
	of := func(column string) (at string) {
		have := slices.Clone(nodes)
		if i := slices.IndexFunc(placed, func(c wire.ColumnNodes) bool { return c.Name == column }); i >= 0 {
			have = slices.DeleteFunc(have, func(node string) bool { return !placed[i].At(node) })
		}
		return strings.Join(have, " ")
	}
	everywhere := strings.Join(nodes, " ")
	all := map[string]*sameNodes{"": {at: nodes, cells: func(column string) bool { return of(column) == everywhere }}}
	for _, c := range placed {
		if at := of(c.Name); at != everywhere && c.At(nodes[0]) {
			all["\x00"+at] = &sameNodes{at: strings.Fields(at), cells: func(column string) bool { return of(column) == at }, again: true,
				why: fmt.Sprintf("topology.columns has column %s on other nodes than those that are asked about", c.Name)}
		}
	}
	return all
}

// sameRows leaves out of a report what another one tells of the same rows.
func (r *VerifyReport) sameRows(of *VerifyReport) {
	r.Rows = 0
	for i := range r.Tables {
		r.Tables[i].Rows = 0
	}
	r.Explained = slices.DeleteFunc(r.Explained, func(x RowReason) bool { return slices.Contains(of.Explained, x) })
	r.Unsettled = slices.DeleteFunc(r.Unsettled, func(x RowReason) bool { return slices.Contains(of.Unsettled, x) })
	r.Skipped = slices.DeleteFunc(r.Skipped, func(x VerifySkipped) bool { return slices.Contains(of.Skipped, x) })
}

// add takes the report of a comparison of other tables, rows or columns in; limit is how many rows are shown.
func (r *VerifyReport) add(o *VerifyReport, limit int) {
	for _, t := range o.Tables {
		i := slices.IndexFunc(r.Tables, func(x VerifiedTable) bool { return x.Table == t.Table })
		if i < 0 {
			r.Tables = append(r.Tables, t)
			continue
		}
		x := &r.Tables[i] // other rows of it, or columns
		x.Looked += t.Looked
		x.Rows, x.Segments, x.Seconds = x.Rows+t.Rows, x.Segments+t.Segments, x.Seconds+t.Seconds
		x.Differences, x.Mended = x.Differences+t.Differences, x.Mended+t.Mended
	}
	r.Rows += o.Rows
	r.Differences += o.Differences
	r.Found = append(r.Found, o.Found[:max(0, min(len(o.Found), limit-len(r.Found)))]...)
	r.Mended += o.Mended
	r.Explained = append(r.Explained, o.Explained...)
	r.Unsettled = append(r.Unsettled, o.Unsettled...)
	r.Skipped = append(r.Skipped, o.Skipped...)
	r.Partial = r.Partial || o.Partial
}
