package apply

import (
	"encoding/binary"
	"fmt"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/integration/sim"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// simCatalog is what the workers of simulated nodes read from the catalog. Simulations that run one after the other
// share it.
type simCatalog struct {
	tables   map[string]*simTable
	combined map[string]*combination
}

// simTable is a table as the worker knows it, and as its origin describes it.
type simTable struct {
	*sim.Table
	mapping  *mapping
	relation *wire.Relation
	record   []byte // R record of relation
	keys     []wire.KeyHash
}

func newSimCatalog() *simCatalog {
	return &simCatalog{tables: map[string]*simTable{}, combined: map[string]*combination{}}
}

var simTypes = map[uint32]*pgType{
	20:   {oid: 20, schema: "pg_catalog", name: "int8", kind: 'b', array: 1016},
	23:   {oid: 23, schema: "pg_catalog", name: "int4", kind: 'b', array: 1007},
	25:   {oid: 25, schema: "pg_catalog", name: "text", kind: 'b', array: 1009},
	1007: {oid: 1007, schema: "pg_catalog", name: "_int4", kind: 'b', elem: &pgType{oid: 23, schema: "pg_catalog", name: "int4", kind: 'b', array: 1007}},
	3802: {oid: 3802, schema: "pg_catalog", name: "jsonb", kind: 'b', array: 3807},
}

// simPolicies are the merge policies of all simulated tables.
func simPolicies() []MergePolicy {
	var all []MergePolicy
	for _, t := range sim.AllTables() {
		if !t.Merged {
			continue
		}
		p := MergePolicy{Pattern: t.Name, Match: func(_, name string) bool { return name == t.Name }, Deletes: t.Deletes}
		for _, c := range t.Columns[1:] {
			p.Columns = append(p.Columns, MergeColumns{Names: []string{c.Name}, Rule: c.Rule})
		}
		all = append(all, p)
	}
	return all
}

// table returns a table of the catalog; full is for the replica identity of a plain one.
func (c *simCatalog) table(t *sim.Table, full bool) (*simTable, error) {
	full = full || t.Merged
	name := fmt.Sprint(t.Name, full)
	if s := c.tables[name]; s != nil {
		return s, nil
	}
	id := uint32(len(c.tables) + 1)
	s := &simTable{Table: t, relation: &wire.Relation{ID: id, Schema: "public", Name: t.Name, ReplicaIdentity: 'd'}}
	if full {
		s.relation.ReplicaIdentity = 'f'
	}
	local := &table{oid: 16400 + id, schema: "public", name: t.Name, quoted: `"public"."` + t.Name + `"`, rows: `ONLY "public"."` + t.Name + `"`,
		key: []int{0}, hasher: wire.NewKeyHasher("public", t.Name, []*wire.KeyType{nil}), large: true, full: full}
	for i, col := range t.Columns {
		s.relation.Columns = append(s.relation.Columns, wire.Column{Name: col.Name, TypeOID: col.OID, Typmod: -1, Key: i == 0 || full})
		local.cols = append(local.cols, column{name: col.Name, quoted: `"` + col.Name + `"`, oid: col.OID, typ: simTypes[col.OID], equals: "="})
	}
	var err error
	if local.merge, err = newMerge(local, simPolicies(), sim.Priority()); err != nil {
		return nil, err
	}
	if s.mapping, err = newMapping(s.relation, local); err != nil {
		return nil, err
	}
	s.mapping.id = uint64(id)
	s.record = wire.AppendRelation(nil, s.relation)
	c.tables[name] = s
	return s, nil
}

// hash is that of a key.
func (t *simTable) hash(id int) wire.KeyHash {
	for len(t.keys) <= id {
		t.keys = append(t.keys, t.mapping.local.hasher.Hash(values([]conflict.Cell{sim.Key(len(t.keys))}), nil))
	}
	return t.keys[id]
}

// simChange is one change of a user's transaction.
type simChange struct {
	kind     wire.Kind
	table    int
	from, to int // keys; from only of an insert's opposite
	old, new []conflict.Cell
	keeps    bool // the large value was not touched
}

// append appends the change as capture would. A whole one carries the large value though it was not touched.
func (c *simChange) append(b []byte, t *simTable, whole bool) []byte {
	if c.kind == wire.KindTruncate {
		return wire.AppendTruncate(b, 0, []uint32{t.relation.ID})
	}
	var tuples []byte
	if c.kind != wire.KindInsert {
		switch {
		case t.relation.ReplicaIdentity == 'f':
			tuples = appendCells(append(tuples, 'O'), c.old, 0, false)
		case c.kind == wire.KindDelete || c.from != c.to:
			tuples = appendCells(append(tuples, 'K'), c.old, len(c.old)-1, false)
		}
	}
	if c.kind != wire.KindDelete {
		tuples = appendCells(append(tuples, 'N'), c.new, 0, c.keeps && !whole)
	}
	return wire.AppendChange(b, c.kind, t.relation.ID, tuples)
}

// appendCells appends a tuple whose last so many columns are NULL, or whose last one is unchanged.
func appendCells(b []byte, row []conflict.Cell, without int, unchanged bool) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(row)))
	for i, c := range row {
		switch {
		case i >= len(row)-without || c.Null:
			b = append(b, byte(wire.Null))
		case unchanged && i == len(row)-1:
			b = append(b, byte(wire.Unchanged))
		default:
			b = append(binary.BigEndian.AppendUint32(append(b, byte(wire.Binary)), uint32(len(c.Data))), c.Data...)
		}
	}
	return b
}

func values(row []conflict.Cell) []wire.Value {
	v := make([]wire.Value, len(row))
	for i, c := range row {
		v[i] = wire.Value{Format: wire.Binary, Data: c.Data}
		if c.Null {
			v[i] = wire.Value{Format: wire.Null}
		}
	}
	return v
}

// simTxn is a user's transaction. What stands behind published is what capture has made of it.
type simTxn struct {
	node       int
	xid        uint32
	commitTime origin.Stamp
	changes    []simChange
	seen       []uint64 // by node: what its author had really seen
	published  bool
	origin.Entry
	up, low origin.Vector
}

func (t *simTxn) version() origin.Version {
	return origin.Version{Stamp: t.Stamp, Origin: t.Origin}
}

// writes reports whether it leaves a row at a key.
func (t *simTxn) writes(table, key int) bool {
	for i := range t.changes {
		if c := &t.changes[i]; c.table == table && c.to == key && c.new != nil {
			return true
		}
	}
	return false
}

func (t *simTxn) String() string {
	s := fmt.Sprintf("%s:%d@%d up %s low %s", sim.NodeName(t.node), t.Seq, t.Stamp, t.up, t.low)
	for i := range t.changes {
		c := &t.changes[i]
		s += fmt.Sprintf(" %c(%d:%d>%d %s)", c.kind, c.table, c.from, c.to, cellsText(c.new))
	}
	return s
}

func cellsText(row []conflict.Cell) string {
	if row == nil {
		return "no row"
	}
	s := ""
	for i, c := range row {
		if i > 0 {
			s += ", "
		}
		if c.Null {
			s += "NULL"
		} else {
			s += fmt.Sprintf("%q", c.Data)
		}
	}
	return s
}

// body appends the transaction's records.
func (t *simTxn) body(b []byte, tables [2]*simTable, whole bool) []byte {
	for i := range t.changes {
		b = t.changes[i].append(b, tables[t.changes[i].table], whole)
	}
	return b
}
