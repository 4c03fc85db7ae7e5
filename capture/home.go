package capture

import (
	"slices"

	"github.com/pgbridge/pgbridge/wire"
)

// lookHome counts a changed row whose home is another node; tuples is what stands behind the relation in pgoutput's message. A deleted
// row counts if its old image has the column.
func (t *tagger) lookHome(r *relation, tuples []byte) error {
	if t.opts.HomeColumn == nil {
		return nil
	}
	if r.home == homeUnknown {
		column := t.opts.HomeColumn(r.Schema, r.Name)
		r.home = 1 + slices.IndexFunc(r.Columns, func(c wire.Column) bool { return column != "" && c.Name == column })
	}
	if r.home == homeNone {
		return nil
	}
	var err error
	row := t.homeRow[:0]
	for len(tuples) > 0 && err == nil { // the new image comes last
		row, tuples, err = wire.ParseTuple(row[:0], tuples[1:])
	}
	if err != nil {
		return protocolError("row of %s: %v", r.Name, err)
	}
	t.homeRow = row
	if len(row) < r.home || row[r.home-1].Data == nil {
		return nil
	}
	if v := row[r.home-1].Data; !t.opts.AtHome(v) {
		t.counters.Away++
		if !r.strayed {
			r.strayed = true
			t.opts.Logger.Warn("a row is written here whose home is another node", "table", r.Schema+"."+r.Name, "home", string(v))
		}
	}
	return nil
}

// What relation.home is, if not the place of the column, counted from 1.
const (
	homeUnknown = -1
	homeNone    = 0
)
