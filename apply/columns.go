package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/wire"
)

// Of some columns of merged tables only some nodes have the values. Such a column belongs to a unit of which that is so of all columns: a unit is
// decided by its own writes alone, so that all else comes out alike where these are not known, and where it is NULL in all rows. What users write
// into it at a node that is not to have it stays there: all nodes, that one among them, take it for NULL.

// ColumnPlaces says which nodes have the values of columns.
type ColumnPlaces struct {
	Setting string                                        // as an operator wrote it
	Of      func(schema, table string) []wire.ColumnNodes // of which not all nodes have the values; nil: there are none
}

func (p *ColumnPlaces) of(schema, table string) []wire.ColumnNodes {
	if p.Of == nil {
		return nil
	}
	return p.Of(schema, table)
}

// placedUnit is a unit of whose columns only some nodes have the values.
type placedUnit struct {
	name    string
	columns []int // as the rules count them
	nodes   []string
}

// place finds out which units are placed; own is this node.
func (m *merge) place(t *table, columns []wire.ColumnNodes, own string) error {
	for u := range m.rules.Units {
		var placed *wire.ColumnNodes
		for n, at := range m.rules.Units[u].Columns {
			name := t.cols[m.cols[at]].name
			i := slices.IndexFunc(columns, func(c wire.ColumnNodes) bool { return c.Name == name })
			switch {
			case i < 0 && placed == nil:
			case i >= 0 && (n == 0 || placed != nil && sameNames(placed.Nodes, columns[i].Nodes)):
				placed = &columns[i]
			default:
				return blocked("column %q of table %s is merged together with columns that are on other nodes (topology.columns); give it a rule of its own in conflict.tables", name, t.quoted)
			}
		}
		if placed == nil {
			continue
		}
		m.placed = append(m.placed, placedUnit{name: m.units[u], columns: m.rules.Units[u].Columns, nodes: placed.Nodes})
		if !placed.At(own) {
			m.absent = append(m.absent, m.rules.Units[u].Columns...)
		}
	}
	return nil
}

func sameNames(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// isPlaced reports whether a column is one of which only some nodes have the values.
func (m *merge) isPlaced(at int) bool {
	return slices.ContainsFunc(m.placed, func(u placedUnit) bool { return slices.Contains(u.columns, at) })
}

// withheld is what a node may not have of a table's rows.
type withheld struct {
	columns, units []string
}

// withheldFrom finds it out; nil: nothing.
func (t *table) withheldFrom(node string) *withheld {
	if t.merge == nil {
		return nil
	}
	var w *withheld
	for _, u := range t.merge.placed {
		if slices.Contains(u.nodes, node) {
			continue
		}
		if w == nil {
			w = &withheld{}
		}
		w.units = append(w.units, u.name)
		for _, at := range u.columns {
			w.columns = append(w.columns, t.cols[t.merge.cols[at]].name)
		}
	}
	return w
}

// hide makes NULL of what is withheld of a row.
func (w *withheld) hide(r *wire.Relation, tuple []wire.Value) {
	for i := range tuple {
		if w != nil && slices.Contains(w.columns, r.Columns[i].Name) {
			tuple[i] = wire.Value{Format: wire.Null}
		}
	}
}

// ops leaves out of what encodeOps wrote.
func (w *withheld) ops(b []byte) ([]byte, error) {
	if w == nil {
		return b, nil
	}
	var left []byte
	err := eachOp(b, func(unit, op []byte) {
		if !slices.Contains(w.units, string(unit)) {
			left = appendBytes(appendBytes(left, unit), op)
		}
	})
	return left, err
}

// cells leaves out of what encodeCells wrote.
func (w *withheld) cells(b []byte) ([]byte, error) {
	if w == nil || b == nil {
		return b, nil
	}
	left := []byte{} // a row without columns is one
	err := eachCell(b, func(column []byte, c conflict.Cell) {
		if !slices.Contains(w.columns, string(column)) {
			left = appendCell(left, column, c)
		}
	})
	return left, err
}

// withheldOf is what the other node may not have of a table.
func (x *donor) withheldOf(ctx context.Context, n tableName) (*withheld, error) {
	if x.opts.Columns.of(n.schema, n.name) == nil {
		return nil, nil
	}
	t, err := x.catalog.table(ctx, n.schema, n.name)
	if err != nil {
		return nil, err
	}
	return t.withheldFrom(x.asker), nil
}

// placedSift is what a sifter does with the values of a relation's columns.
type placedSift struct {
	hide []int // places of those that this node, or who has written them, is not to have
	open []int // of those that both have
}

// columnsOf finds it out; nil: no column of the relation is placed.
func (r *resident) columnsOf(rel *wire.Relation, author string) *placedSift {
	var s *placedSift
	all := r.columns.of(rel.Schema, rel.Name)
	for i := range all {
		at := all[i].In(rel)
		if at < 0 {
			continue // it has come since
		}
		if s == nil {
			s = &placedSift{}
		}
		if all[i].At(r.node) && all[i].At(author) {
			s.open = append(s.open, at)
		} else {
			s.hide = append(s.hide, at)
		}
	}
	return s
}

// values is sift of a row of whose columns some are placed.
func (s *sifter) values(rec wire.Record, id uint32, tuples []byte) (wire.Record, error) {
	changed := false
	made, err := wire.AppendValues(nil, tuples, func(at int, v wire.Value) (wire.Value, error) {
		switch {
		case slices.Contains(s.placedColumns.hide, at) && v.Format != wire.Null:
			changed = true
			return wire.Value{Format: wire.Null}, nil
		case v.Format == wire.Sealed && slices.Contains(s.placedColumns.open, at):
			changed = true
			return s.opener.Value(s.author, v)
		}
		return v, nil
	})
	if errors.Is(err, wire.ErrSealed) {
		err = &Blocked{Reason: fmt.Sprintf("values of table %s.%s cannot be read here (topology.columns); run pgbridge keys, and bring the new files here", s.last.Schema, s.last.Name), Err: err}
	}
	if err != nil || !changed {
		return rec, err
	}
	recs := wire.NewRecords(wire.AppendChange(nil, rec.Kind, id, made)) // memory of its own: plans keep what they read
	return recs.Next()
}
