package apply

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// resident says what of a transaction is for this node: of its tables, and of the rows of tables that only some nodes have in part. nil: all.
type resident struct {
	node      string
	elsewhere func(schema, table string) bool         // tables that are not here; nil: there are none
	rows      func(schema, table string) *wire.Places // of tables whose rows only some nodes have, else nil; nil: there are none
	columns   *ColumnPlaces
	opener    *wire.Opener // opens single values
}

func (o *Options) resident() *resident {
	if o.Elsewhere == nil && o.Rows == nil && o.Columns.Of == nil {
		return nil
	}
	return &resident{node: o.Node, elsewhere: o.Elsewhere, rows: o.Rows, columns: &o.Columns, opener: o.Open}
}

// places are those of a table's rows; nil: its rows are where it is.
func (o *Options) places(schema, table string) *wire.Places {
	if o.Rows == nil {
		return nil
	}
	return o.Rows(schema, table)
}

// lacks reports whether a table is not here.
func (r *resident) lacks(rel *wire.Relation) bool {
	return r.elsewhere != nil && r.elsewhere(rel.Schema, rel.Name)
}

// sifter leaves out of changes what is not for this node. What there is to know of a relation it finds out once while its rows follow
// each other.
type sifter struct {
	*resident
	author origin.Origin  // who has written the changes
	last   *wire.Relation // whose row came last
	away   bool           // it is not here
	placed *wire.PlacedRows
	moved  []byte // the old tuple of the update before, if that took a row from some nodes to others

	placedColumns *placedSift
}

// sift returns a change as it is for this node; false if nothing of it is.
func (s *sifter) sift(rec wire.Record, relations map[uint32]*wire.Relation) (wire.Record, bool, error) {
	if rec.Kind == wire.KindTruncate || rec.Kind == wire.KindSchema {
		return without(rec, relations, s.lacks)
	}
	id, tuples, err := wire.ParseChange(rec.Payload)
	r := relations[id]
	if err != nil || r == nil {
		return rec, true, err
	}
	if r != s.last {
		s.away, s.placed, s.placedColumns = s.lacks(r), nil, s.columnsOf(r, s.author.Node)
		if s.rows != nil && !s.away {
			if p := s.rows(r.Schema, r.Name); p != nil {
				if s.placed, err = p.In(r); err != nil {
					return rec, true, blocked("%v", err)
				}
			}
		}
		s.last, s.moved = r, s.moved[:0]
	}
	switch {
	case s.away:
		return rec, false, nil
	case s.placedColumns != nil:
		rec, err = s.values(rec, id, tuples)
		return rec, true, err
	case s.placed == nil:
		return rec, true, nil
	}
	return s.row(rec, id, tuples)
}

// row is sift of a row whose place its key tells. One that an update takes from nodes that have it to others is deleted here, or inserted;
// a value that the update has left unchanged is missing then, and is asked for (owed.go). If it is sealed it comes twice, as an update for
// those who are to have it, and, behind that, as a delete for those who had it.
func (s *sifter) row(rec wire.Record, id uint32, tuples []byte) (wire.Record, bool, error) {
	before, after, err := s.placed.Values(tuples)
	if err != nil {
		return rec, true, err
	}
	if len(s.moved) > 0 {
		again := rec.Kind == wire.KindDelete && bytes.Equal(s.moved, tuples)
		if s.moved = s.moved[:0]; again {
			return rec, false, nil
		}
	}
	var made []byte // memory of its own: plans keep what they read
	// What users write of others' rows stays with them. Of such a row, which is theirs alone, they may make one of their node's; and the other
	// way round what they make of one of their node's is for those who are to have it.
	own := s.placed.At(s.author.Node, before)
	was := own && s.placed.At(s.node, before)
	is := (own || s.placed.At(s.author.Node, after)) && s.placed.At(s.node, after)
	switch {
	case was && is:
		if !bytes.Equal(before, after) {
			s.moved = append(s.moved, tuples[:s.placed.OldBytes]...)
		}
		return rec, true, nil
	case was:
		made = wire.AppendChange(nil, wire.KindDelete, id, tuples[:s.placed.OldBytes])
	case is:
		var c wire.Change
		if err := c.Parse(rec); err != nil {
			return rec, true, err
		}
		fillUnchanged(&c)
		made = wire.AppendChange(nil, wire.KindInsert, id, wire.AppendTuple([]byte{'N'}, c.New))
	default:
		return rec, false, nil
	}
	recs := wire.NewRecords(made)
	rec, err = recs.Next()
	return rec, true, err
}

// residesSQL is the condition that a node has a row of a table, with alias t.
func (o *Options) residesSQL(node string, t *table) (string, error) {
	p := o.places(t.schema, t.name)
	if p == nil {
		return "true", nil
	}
	return placesSQL(p, node, t)
}

// placesSQL is residesSQL of a table's places.
func placesSQL(p *wire.Places, node string, t *table) (string, error) {
	is, err := t.placeSQL(p)
	if err != nil {
		return "", err
	}
	var here, away []string
	for _, value := range p.Values() {
		if p.At(node, []byte(value)) {
			here = append(here, value)
		} else {
			away = append(away, value)
		}
	}
	if others := p.Nodes[wire.OtherValues]; others == nil || slices.Contains(others, node) {
		return "NOT " + is(away), nil
	}
	return is(here), nil
}

// valuesSQL is the condition that a row, of alias t, is among some.
func (t *table) valuesSQL(p *wire.Places, rows *VerifyRows) (string, error) {
	is, err := t.placeSQL(p)
	if err == nil && rows.Others {
		return "(" + is(rows.Values) + " OR NOT " + is(p.Values()) + ")", nil
	}
	if err != nil {
		return "", err
	}
	return is(rows.Values), nil
}

// placeSQL returns the condition that a row, of alias t, has one of some values.
func (t *table) placeSQL(p *wire.Places) (is func(values []string) string, err error) {
	i := slices.IndexFunc(t.cols, func(c column) bool { return c.name == p.Column })
	if i < 0 {
		return nil, blocked("table %s has no column %s, by which topology.rows says where its rows are", t.quoted, p.Column)
	}
	return func(values []string) string {
		all := make([]string, len(values))
		for n, v := range values {
			all[n] = literal(v)
		}
		return fmt.Sprintf("t.%s::text COLLATE \"C\" = ANY (ARRAY[%s]::text[])", t.cols[i].quoted, strings.Join(all, ", "))
	}, nil
}
