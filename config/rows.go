package config

import "strings"

// PlacedRows is an element of Topology.Rows, taken apart.
type PlacedRows struct {
	Schema, Table, Column string
	Value                 string // "*": all values that no other element of the table names
	Nodes                 []string
}

// Name is the table's name with its schema.
func (r *PlacedRows) Name() string { return r.Schema + "." + r.Table }

// SplitRows takes an element of Topology.Rows apart; false if it is not written as one.
func SplitRows(s string) (r PlacedRows, ok bool) {
	name, places, _ := strings.Cut(s, "=")
	parts := strings.Split(strings.TrimSpace(name), ".")
	at := strings.LastIndexByte(places, ':')
	if len(parts) != 3 || at < 0 {
		return r, false
	}
	r = PlacedRows{Schema: parts[0], Table: parts[1], Column: parts[2], Value: strings.TrimSpace(places[:at]), Nodes: strings.Fields(places[at+1:])}
	return r, r.Schema != "" && r.Table != "" && r.Column != "" && len(r.Nodes) > 0 && !strings.ContainsAny(name, "*?!")
}

func (c *Config) checkRows(ps *problems) {
	columns, seen := map[string]string{}, map[string]bool{}
	for _, s := range c.Topology.Rows {
		r, ok := SplitRows(s)
		if !ok {
			ps.add(rowsKey, "%q is not schema.table.column=value:nodes; write it like %q", s, "shop.orders.region=eu:a b")
			continue
		}
		first := columns[r.Name()] == ""
		switch {
		case first:
			columns[r.Name()] = r.Column
		case columns[r.Name()] != r.Column:
			ps.add(rowsKey, "%q goes by column %s, and another line for table %s by %s; one column decides where a row is", s, r.Column, r.Name(), columns[r.Name()])
		}
		if value := r.Name() + "=" + r.Value; seen[value] {
			ps.add(rowsKey, "value %q of %s.%s is given twice; keep one", r.Value, r.Name(), r.Column)
		} else {
			seen[value] = true
		}
		if len(r.Nodes) == 1 {
			ps.add(rowsKey, "%q names one node, and what only one has is not replicated; name two at least", s)
		}
		c.checkNamedNodes(ps, rowsKey, s, r.Nodes)
		if first {
			c.checkPlacedTable(ps, &r)
		}
	}
}

// checkPlacedTable refuses what does not go together with rows that only some nodes have.
func (c *Config) checkPlacedTable(ps *problems, r *PlacedRows) {
	for _, s := range c.Topology.Residency {
		if pattern, _ := SplitTableNodes(s); matches(pattern, r.Schema, r.Table) {
			ps.add(rowsKey, "table %s is in %s, too (%q); leave it out there, and say here which nodes have its rows, with * for other values", r.Name(), residencyKey, s)
		}
	}
	for _, t := range c.Conflict.Tables {
		if matches(t.Match, r.Schema, r.Table) {
			ps.add(rowsKey, "table %s is merged (conflict.tables, %q), which only nodes can do that have all of its rows; take it out of one of the two", r.Name(), t.Match)
		}
	}
	for _, s := range c.Conflict.ForeignKeys {
		pattern, policy := SplitForeignKey(s)
		if at := strings.LastIndexByte(pattern, '.'); at > 0 && policy != "keep" && matches(pattern[:at], r.Schema, r.Table) {
			ps.add(rowsKey, "table %s has a policy for orphans (conflict.foreign_keys, %q), which only a node can follow that has all of its rows; take it out of one of the two",
				r.Name(), s)
		}
	}
}

// matches reports whether a pattern over schema.table, with * for any characters and ? for one, is for a table.
func matches(pattern, schema, table string) bool {
	s, t, ok := strings.Cut(pattern, ".")
	return ok && glob([]rune(s), []rune(schema)) && glob([]rune(t), []rune(table))
}

func glob(pattern, s []rune) bool {
	switch {
	case len(pattern) == 0:
		return len(s) == 0
	case pattern[0] == '*':
		return glob(pattern[1:], s) || len(s) > 0 && glob(pattern, s[1:])
	}
	return len(s) > 0 && (pattern[0] == '?' || pattern[0] == s[0]) && glob(pattern[1:], s[1:])
}
