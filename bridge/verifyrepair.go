package bridge

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/pgbridge/pgbridge/apply"
)

const (
	// repairTries bounds how often a row is mended that is written meanwhile.
	repairTries = 3
	// yieldKeys and yieldBytes bound the rows of one question.
	yieldKeys, yieldBytes = 50, 192 << 10
)

// see looks at the rows that differ, to show them or to mend them.
func (c *verifyRun) see(ctx context.Context) error {
	rows, shown := c.found, min(len(c.found), c.o.Limit)
	if !c.o.Repair {
		rows = rows[:shown]
	}
	for some := range slices.Chunk(rows, lookKeys) {
		for rows := range byTable(some) {
			if err := c.seeAll(ctx, rows[0].table, rows); err != nil {
				return fmt.Errorf("compare table %s: %w", rows[0].table, err)
			}
		}
		for _, d := range some {
			d.decide(c.nodes, c.o.From)
			if shown--; shown >= 0 {
				d.describe(c.nodes)
			}
		}
		if c.o.Repair {
			if err := c.repair(ctx, some); err != nil {
				return err
			}
		}
		for _, d := range some {
			d.looks = nil // rows may be large, and many
		}
	}
	return nil
}

// byTable yields rows of one table at a time.
func byTable(rows []*RowDifference) iter.Seq[[]*RowDifference] {
	return ofOneTable(rows, len(rows), func(d *RowDifference) *tableAsked { return d.table })
}

// seeAll looks at rows with their values; at those again of which the values did not fit the answer.
func (c *verifyRun) seeAll(ctx context.Context, t *tableAsked, rows []*RowDifference) error {
	for len(rows) > 0 {
		q := &apply.VerifyQuestion{Kind: apply.VerifyLook, Table: t.VerifyTable, Cells: true}
		for _, d := range rows {
			q.Keys, d.looks = append(q.Keys, d.key), map[string]*apply.VerifyLooked{}
		}
		answers, err := c.each(ctx, c.nodes, q)
		if err != nil {
			return err
		}
		var left []*RowDifference
		for i, d := range rows {
			whole := true
			for n, a := range answers {
				if len(a.Looks) != len(rows) {
					return fmt.Errorf("node %s has looked at %d rows instead of %d", c.nodes[n], len(a.Looks), len(rows))
				}
				d.looks[c.nodes[n]] = &a.Looks[i]
				whole = whole && !a.Looks[i].Left
			}
			if !whole {
				left = append(left, d)
			}
		}
		if rows = left; len(rows) > 1 {
			for _, d := range rows { // they come in no order: one by one, all of them come through
				if err := c.seeAll(ctx, t, []*RowDifference{d}); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return nil
}

// describe tells what the nodes have.
func (d *RowDifference) describe(nodes []string) {
	d.Nodes, d.Columns = []RowOfNode{}, []string{}
	var have []*apply.VerifyLooked
	for _, node := range nodes {
		if l := d.looks[node]; l.Found {
			have = append(have, l)
		}
	}
	lacking := len(have) < len(nodes)
	shown := make([]bool, len(d.table.Columns))
	for i, col := range d.table.Columns {
		differ := slices.ContainsFunc(have, func(l *apply.VerifyLooked) bool { return l.Cells[i].Hash != have[0].Cells[i].Hash })
		if differ {
			d.Columns = append(d.Columns, col)
		}
		shown[i] = differ || lacking || slices.Contains(d.table.Key, col)
	}
	for _, node := range nodes {
		l := d.looks[node]
		r := RowOfNode{Node: node, Found: l.Found, Version: l.Version.String()}
		for i, col := range d.table.Columns {
			if l.Found && shown[i] {
				if r.Values == nil {
					r.Values = map[string]*string{}
				}
				r.Values[col] = l.Cells[i].Text
			}
		}
		d.Nodes = append(d.Nodes, r)
	}
}

// decide finds out which node is right: the one that was named, or the one with the version that counts most. Of nodes that have the
// same version and not the same row, the one that wrote it is right.
func (d *RowDifference) decide(nodes []string, from string) {
	d.Right, d.Refused = from, ""
	if from != "" {
		return
	}
	best := nodes[0]
	for _, node := range nodes[1:] {
		if d.looks[node].Version.Later(d.looks[best].Version) {
			best = node
		}
	}
	v := d.looks[best].Version
	alike := true
	for _, node := range nodes {
		if l := d.looks[node]; !v.Later(l.Version) && !same(l, d.looks[best]) {
			alike = false
		}
	}
	author := d.looks[v.Origin.Node]
	switch {
	case alike:
		d.Right = best
	case v.Known == apply.VerifyKnownBy && author != nil && author.Version == v:
		d.Right = v.Origin.Node
	default:
		d.Refused = "no version tells which row is right; name a node whose rows are, with --from"
	}
}

// repair mends rows, as many as one question may name, until they are the same everywhere, or cannot be mended.
func (c *verifyRun) repair(ctx context.Context, rows []*RowDifference) error {
	for _, d := range rows {
		if d.table.Merged {
			d.Refused = "the table is merged (conflict.tables): a write is one more to be merged, and would not make the rows the same; write the row by hand (docs/verify.md)"
		}
	}
	rows = slices.Clone(rows)
	for range repairTries {
		rows = slices.DeleteFunc(rows, func(d *RowDifference) bool { return d.Right == "" || d.Mended || d.table.Merged })
		if len(rows) == 0 {
			return nil
		}
		cs := candidates{}
		for some := range byTable(rows) {
			t := some[0].table
			for _, d := range some {
				d.Refused = ""
				cs.add(t, d.key)
			}
			c.tell(VerifyProgress{Table: t.String(), Rows: t.at.Rows, Doing: fmt.Sprintf("%d of %d rows that differ are mended", t.at.Mended, t.at.Differences)})
			if err := c.mend(ctx, t, some); err != nil {
				return fmt.Errorf("mend table %s: %w", t, err)
			}
		}
		differing, restless, err := c.settle(ctx, cs)
		if err != nil {
			return err
		}
		open := candidates{}
		for _, k := range slices.Concat(differing, restless) {
			open[rowName(k.table, k.key)] = k
		}
		for _, d := range rows {
			if open[rowName(d.table, d.key)] == nil {
				d.Mended, d.Refused = true, ""
				d.table.at.Mended++
				continue
			}
			if d.Refused == "" {
				d.Refused = "it is written all the time; mend it when it is not"
			}
			refused := d.Refused
			if err := c.seeAll(ctx, d.table, []*RowDifference{d}); err != nil {
				return fmt.Errorf("compare table %s: %w", d.table, err)
			}
			if d.decide(c.nodes, c.o.From); d.Right != "" {
				d.Refused = refused
			}
		}
	}
	return nil
}

// mend lets the wrong rows give way, and then has the right ones written again.
func (c *verifyRun) mend(ctx context.Context, t *tableAsked, rows []*RowDifference) error {
	for _, node := range c.nodes {
		wrong := slices.DeleteFunc(slices.Clone(rows), func(d *RowDifference) bool { return same(d.looks[node], d.looks[d.Right]) })
		for len(wrong) > 0 {
			n := fits(wrong)
			if err := c.yield(ctx, t, node, wrong[:n]); err != nil {
				return err
			}
			wrong = wrong[n:]
		}
	}
	for _, node := range c.nodes {
		if err := c.write(ctx, t, node, apply.VerifyWrite, rows, func(d *RowDifference) bool { return d.Right == node && d.looks[node].Found }); err != nil {
			return err
		}
		if err := c.write(ctx, t, node, apply.VerifyDelete, rows, func(d *RowDifference) bool { return d.deletedBy(c.nodes) == node }); err != nil {
			return err
		}
	}
	return nil
}

// fits is how many rows fit one question.
func fits(rows []*RowDifference) int {
	size := 0
	for i, d := range rows {
		if size += len(d.looks[d.Right].Row); i > 0 && (i == yieldKeys || size > yieldBytes) {
			return i
		}
	}
	return len(rows)
}

// deletedBy is the node that is to delete the row; empty if it is not to be deleted.
func (d *RowDifference) deletedBy(nodes []string) string {
	if d.looks[d.Right].Found {
		return ""
	}
	for _, node := range nodes {
		if d.looks[node].Found {
			return node
		}
	}
	return ""
}

// yield has a node record rows that are wrong there, and let them give way.
func (c *verifyRun) yield(ctx context.Context, t *tableAsked, node string, rows []*RowDifference) error {
	for by, some := range byRight(rows) {
		q := &apply.VerifyQuestion{Kind: apply.VerifyYield, Table: t.VerifyTable, By: by}
		for _, d := range some {
			l := d.looks[node]
			q.Keys, q.Writers, q.Versions, q.Right = append(q.Keys, d.key), append(q.Writers, l.Writer), append(q.Versions, l.Version), append(q.Right, d.looks[by].Row)
		}
		if err := c.change(ctx, node, q, some); err != nil {
			return err
		}
	}
	return nil
}

func byRight(rows []*RowDifference) map[string][]*RowDifference {
	all := map[string][]*RowDifference{}
	for _, d := range rows {
		all[d.Right] = append(all[d.Right], d)
	}
	return all
}

// write has a node write rows again, or delete them.
func (c *verifyRun) write(ctx context.Context, t *tableAsked, node string, kind apply.VerifyKind, rows []*RowDifference, which func(*RowDifference) bool) error {
	rows = slices.DeleteFunc(slices.Clone(rows), func(d *RowDifference) bool { return d.Refused != "" || !which(d) })
	if len(rows) == 0 {
		return nil
	}
	q := &apply.VerifyQuestion{Kind: kind, Table: t.VerifyTable}
	for _, d := range rows {
		q.Keys, q.Writers = append(q.Keys, d.key), append(q.Writers, d.looks[node].Writer)
	}
	return c.change(ctx, node, q, rows)
}

// change has a node change rows, and notes what became of each.
func (c *verifyRun) change(ctx context.Context, node string, q *apply.VerifyQuestion, rows []*RowDifference) error {
	answers, err := c.each(ctx, []string{node}, q)
	if err != nil {
		return err
	}
	if len(answers[0].Looks) != len(rows) {
		return fmt.Errorf("node %s has changed %d rows instead of %d", node, len(answers[0].Looks), len(rows))
	}
	for i, d := range rows {
		l := answers[0].Looks[i]
		d.looks[node].Writer = l.Writer
		switch {
		case l.Error != "":
			d.Refused = "node " + node + ": " + l.Error
		case l.Changed:
			d.Refused = "it was written at node " + node + " meanwhile"
		}
	}
	return nil
}
