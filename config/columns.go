package config

import (
	"slices"
	"strings"
)

// PlacedColumn is an element of Topology.Columns, taken apart.
type PlacedColumn struct {
	Schema, Table, Column string
	Nodes                 []string
}

// Name is the table's name with its schema.
func (p *PlacedColumn) Name() string { return p.Schema + "." + p.Table }

// SplitColumn takes an element of Topology.Columns apart; false if it is not written as one.
func SplitColumn(s string) (p PlacedColumn, ok bool) {
	name, nodes, _ := strings.Cut(s, "=")
	parts := strings.Split(strings.TrimSpace(name), ".")
	if len(parts) != 3 {
		return p, false
	}
	p = PlacedColumn{Schema: parts[0], Table: parts[1], Column: parts[2], Nodes: strings.Fields(nodes)}
	return p, p.Schema != "" && p.Table != "" && p.Column != "" && len(p.Nodes) > 0 && !strings.ContainsAny(name, "*?!")
}

func (c *Config) checkColumns(ps *problems) {
	places := map[string][]string{} // the nodes, sorted, by column with its table
	var all []PlacedColumn
	for _, s := range c.Topology.Columns {
		p, ok := SplitColumn(s)
		if !ok {
			ps.add(columnsKey, "%q is not schema.table.column=nodes; write it like %q", s, "shop.customers.email=a b")
			continue
		}
		column := p.Name() + "." + p.Column
		if places[column] != nil {
			ps.add(columnsKey, "%s is given twice; keep one", column)
			continue
		}
		places[column] = slices.Sorted(slices.Values(p.Nodes))
		all = append(all, p)
		if len(p.Nodes) == 1 {
			ps.add(columnsKey, "%q names one node, and what only one has is not replicated; name two at least", s)
		}
		c.checkNamedNodes(ps, columnsKey, s, p.Nodes)
	}
	for i := range all {
		c.checkPlacedColumn(ps, &all[i], places)
	}
}

// checkPlacedColumn refuses a column that is not decided by itself: nodes that lack its values could then not decide alike.
func (c *Config) checkPlacedColumn(ps *problems, p *PlacedColumn, places map[string][]string) {
	for _, s := range c.Topology.Residency {
		if pattern, _ := SplitTableNodes(s); matches(pattern, p.Schema, p.Table) {
			ps.add(columnsKey, "table %s is in %s, too (%q); take it out of one of the two", p.Name(), residencyKey, s)
		}
	}
	for _, s := range c.Conflict.Home {
		if pattern, column := SplitHome(s); column == p.Column && matches(pattern, p.Schema, p.Table) {
			ps.add(columnsKey, "column %s of table %s names the home of its rows (conflict.home, %q), which all nodes must know; take it out of one of the two", p.Column, p.Name(), s)
		}
	}
	at := slices.IndexFunc(c.Conflict.Tables, func(t TablePolicy) bool { return matches(t.Match, p.Schema, p.Table) })
	if at < 0 {
		ps.add(columnsKey, "table %s is not merged, so that the later write of a row wins as a whole, and nodes without column %s could not decide alike; "+
			"give the table an entry in conflict.tables with a rule for the column, such as last_writer_wins", p.Name(), p.Column)
		return
	}
	group, alone := c.Conflict.Tables[at].unitOf(p.Column)
	if group == nil && !alone {
		ps.add(columnsKey, "column %s of table %s has no rule of its own in conflict.tables (%q), so that it is decided together with columns that all nodes have; "+
			"give it one there, such as last_writer_wins", p.Column, p.Name(), c.Conflict.Tables[at].Match)
	}
	for _, other := range group {
		if !slices.Equal(places[p.Name()+"."+other], places[p.Name()+"."+p.Column]) {
			ps.add(columnsKey, "column %s of table %s is decided together with column %s (conflict.tables, %q), which is on other nodes; name the same ones for both, or let each have a rule of its own",
				p.Column, p.Name(), other, c.Conflict.Tables[at].Match)
		}
	}
}

// unitOf returns the columns that a column is decided with, itself among them, or whether it is decided alone; neither is so of one without a rule
// of its own.
func (t *TablePolicy) unitOf(column string) (group []string, alone bool) {
	for _, c := range t.Columns {
		switch {
		case slices.Contains(c.Names, column):
			return c.Names, len(c.Names) == 1
		case len(c.Names) == 1 && c.Names[0] == "*":
			alone = true
		}
	}
	return nil, alone
}
