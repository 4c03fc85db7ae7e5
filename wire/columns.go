package wire

import "slices"

// ColumnNodes says which nodes have the values of a column; to others it is NULL in all rows.
type ColumnNodes struct {
	Name  string
	Nodes []string
}

// At reports whether a node has the values.
func (c *ColumnNodes) At(node string) bool { return slices.Contains(c.Nodes, node) }

// In is the column's place in a relation; -1 if the relation lacks it.
func (c *ColumnNodes) In(r *Relation) int {
	return slices.IndexFunc(r.Columns, func(x Column) bool { return x.Name == c.Name })
}
