package capture

import (
	"slices"
	"strings"

	"github.com/pgbridge/pgbridge/rowkey"
	"github.com/pgbridge/pgbridge/wire"
)

// relation is a table as a Relation message announced it.
type relation struct {
	wire.Relation

	table    *Table // its key, once it was needed; nil before
	arrival  uint64 // counts Relation messages: the later of two is the newer
	declared uint64 // serial of the draft that holds its R record
	usedBy   uint64 // serial of the transaction that lists it
	home     int    // which column names a row's home (home.go)
	strayed  bool   // that rows were written away from home was logged
	seal     *wire.Sealer
	plain    []byte // scratch of sealed
	// Of a table of which only some nodes have some rows (placed.go):
	places   *wire.PlacedRows        // nil of others
	unplaced error                   // why it cannot be said where its rows are
	seals    map[string]*wire.Sealer // of rows, by value
	strange  bool                    // that rows of others were written was logged
	columns  []placedColumn          // of which only some nodes have the values (columns.go)
}

// Table is a published table with its key. Two nodes' Tables of one name give equal hashes to equal keys of
// their own rows; hashes of different nodes are never compared. It does not change once built.
type Table struct {
	OID          uint32
	Schema, Name string
	Columns      []wire.Column // in the order of the tuples that capture reads
	// Key holds the indexes of the key's columns, sorted by column name; empty if the table has no
	// usable key.
	Key []int

	keyAt  []int // for each column its place in Key, -1 for none
	hasher *wire.KeyHasher
	hashes *hashes // for what the server hashes
}

// keyColumn is one column of the key that the catalog chose.
type keyColumn struct {
	name           string
	typ, collation uint32
	hashed         *wire.KeyType
	refused        *rowkey.NoHash // why hashed says too little, nil if it does not
}

// newTable joins a relation with the key that the catalog names. If that key is not in the relation, or
// the old images of its rows do not carry it (it was changed since these rows were written), the columns
// of the replica identity are the key. Values of a type that the column does not have any more are hashed by
// their bytes: no other node's rows have them.
func newTable(r *wire.Relation, key []keyColumn, h *hashes) *Table {
	t := &Table{OID: r.ID, Schema: r.Schema, Name: r.Name, Columns: r.Columns, hashes: h}
	for _, k := range key {
		i := slices.IndexFunc(r.Columns, func(c wire.Column) bool { return c.Name == k.name })
		if i < 0 || !r.Columns[i].Key && carriesKey(r) {
			t.Key = nil
			break
		}
		t.Key = append(t.Key, i)
	}
	if t.Key == nil && r.ReplicaIdentity != 'f' {
		for i := range r.Columns {
			if r.Columns[i].Key {
				t.Key = append(t.Key, i)
			}
		}
	}
	slices.SortFunc(t.Key, func(a, b int) int { return strings.Compare(r.Columns[a].Name, r.Columns[b].Name) })
	t.keyAt = make([]int, len(r.Columns))
	for i := range t.keyAt {
		t.keyAt[i] = slices.Index(t.Key, i)
	}
	types := make([]*wire.KeyType, len(t.Key))
	for i, at := range t.Key {
		c := &r.Columns[at]
		k := slices.IndexFunc(key, func(k keyColumn) bool { return k.name == c.Name && k.typ == c.TypeOID })
		if k >= 0 {
			types[i] = key[k].hashed
		}
	}
	t.hasher = wire.NewKeyHasher(t.Schema, t.Name, types)
	return t
}

// carriesKey reports whether old images of the relation's rows hold a key at all.
func carriesKey(r *wire.Relation) bool {
	return slices.ContainsFunc(r.Columns, func(c wire.Column) bool { return c.Key })
}

// keyOf collects the key's values out of a tuple; false if the tuple lacks one, as that of an update does
// for an unchanged TOAST value.
func (t *Table) keyOf(dst, tuple []wire.Value) ([]wire.Value, bool) {
	dst = dst[:0]
	for _, i := range t.Key {
		if i >= len(tuple) || tuple[i].Format == wire.Unchanged {
			return dst, false
		}
		dst = append(dst, tuple[i])
	}
	return dst, len(dst) > 0
}
