package capture

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/pgbridge/pgbridge/wire"
)

// placedColumn is a column of which only some nodes have the values.
type placedColumn struct {
	*wire.ColumnNodes
	at      int          // in the relation; -1: it is not there
	seal    *wire.Sealer // what its values are sealed by; nil: by nothing
	strange bool         // that values of others were written was logged
}

// columnsOf finds out, when a relation is announced, of which of its columns only some nodes have the values; old is the table as it was announced
// before. A column that is not there may be added later. But where one is gone, nobody knows under which name its values stand now.
func (r *relation) columnsOf(o *Options, old *relation) {
	if o.Columns == nil {
		return
	}
	all := o.Columns(r.Schema, r.Name)
	for i := range all {
		c := placedColumn{ColumnNodes: &all[i], at: all[i].In(&r.Relation)}
		if c.at < 0 && old != nil && old.hasColumn(c.Name) {
			r.unplaced = fmt.Errorf("table %s.%s has column %s no more, whose values only some nodes have (topology.columns); put the column back, or change topology.columns on all nodes",
				r.Schema, r.Name, c.Name)
		}
		if o.SealRow != nil {
			c.seal = o.SealRow(c.Nodes)
		}
		r.columns = append(r.columns, c)
	}
}

func (r *relation) hasColumn(name string) bool {
	return slices.ContainsFunc(r.columns, func(c placedColumn) bool { return c.Name == name && c.at >= 0 })
}

// sealsValues reports whether single values of the relation's rows are sealed.
func (r *relation) sealsValues() bool {
	return slices.ContainsFunc(r.columns, func(c placedColumn) bool { return c.seal != nil })
}

// sealValues returns a change's tuples with the values sealed that only some nodes have.
func (t *tagger) sealValues(r *relation, tuples []byte) ([]byte, error) {
	if err := t.watchColumns(r, tuples); err != nil || !r.sealsValues() {
		return tuples, err
	}
	var err error
	t.values, err = wire.AppendValues(t.values[:0], tuples, func(at int, v wire.Value) (wire.Value, error) {
		for i := range r.columns {
			if c := &r.columns[i]; c.at == at && c.seal != nil {
				return c.seal.Value(v), nil
			}
		}
		return v, nil
	})
	return t.values, err
}

// watchColumns tells the log, once for each column, that users have written a value into one whose values are not to be on this node. It goes into
// frames as any other does: see watch.
func (t *tagger) watchColumns(r *relation, tuples []byte) error {
	var c *placedColumn
	for i := range r.columns {
		if x := &r.columns[i]; x.at >= 0 && !x.strange && !x.At(t.opts.Node) {
			c = x
		}
	}
	if c == nil {
		return nil
	}
	was := wire.Value{Format: wire.Null}
	for len(tuples) > 0 {
		tag := tuples[0]
		var tuple []wire.Value
		var err error
		if tuple, tuples, err = wire.ParseTuple(nil, tuples[1:]); err != nil || c.at >= len(tuple) {
			return err
		}
		v := tuple[c.at]
		if written := v.Format == wire.Text || v.Format == wire.Binary; tag == 'N' && written && !(v.Format == was.Format && bytes.Equal(v.Data, was.Data)) {
			c.strange = true
			t.opts.Logger.Warn("a value is written here into a column whose values are for other nodes (topology.columns): it stays here",
				"table", r.Schema+"."+r.Name, "column", c.Name)
		}
		was = v
	}
	return nil
}

// wholeRow is a row that arrives in parts and is held until all of it is here, since single values of it are sealed. Those who apply it
// hold it, too: rows of merged tables are merged as a whole.
type wholeRow struct {
	kind    wire.Kind
	xid, id uint32
	tuples  []byte
}

// holdWhole takes the next part of a row.
func (t *tagger) holdWhole(ctx context.Context, b []byte, last bool) error {
	w := t.big.whole
	if w.tuples = append(w.tuples, b...); !last {
		return nil
	}
	r, err := t.bigRun(ctx, w.id)
	if r == nil || err != nil {
		return err
	}
	if err = t.runRow(ctx, r, w.xid, w.kind, w.id, w.tuples); err == nil {
		err = t.flushChunk(ctx, r)
	}
	t.chunk, t.values = nil, nil // not to be kept at that size
	return err
}
