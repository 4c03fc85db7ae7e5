package apply

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/rowkey"
	"github.com/pgbridge/pgbridge/wire"
)

// benchRelation is public.t (id int8 PRIMARY KEY, n int4, note text) as its origin describes it.
func benchRelation() *wire.Relation {
	return &wire.Relation{ID: 5, Schema: "public", Name: "t", ReplicaIdentity: 'd', Columns: []wire.Column{
		{Name: "id", TypeOID: 20, Typmod: -1, Key: true}, {Name: "n", TypeOID: 23, Typmod: -1}, {Name: "note", TypeOID: 25, Typmod: -1}}}
}

// newBenchPlanner is a planner without a server, which knows that table.
func newBenchPlanner(tb testing.TB) *planner {
	tb.Helper()
	r := benchRelation()
	local := &table{oid: 16400, schema: r.Schema, name: r.Name, quoted: `"public"."t"`, rows: `ONLY "public"."t"`, key: []int{0},
		hasher: wire.NewKeyHasher(r.Schema, r.Name, []*wire.KeyType{nil})}
	for i, typ := range []*pgType{{oid: 20, schema: "pg_catalog", name: "int8", kind: 'b', array: 1016},
		{oid: 23, schema: "pg_catalog", name: "int4", kind: 'b', array: 1007}, {oid: 25, schema: "pg_catalog", name: "text", kind: 'b', array: 1009}} {
		name := r.Columns[i].Name
		local.cols = append(local.cols, column{name: name, quoted: `"` + name + `"`, oid: typ.oid, typ: typ, equals: `OPERATOR("pg_catalog".=)`})
	}
	m, err := newMapping(r, local)
	if err != nil {
		tb.Fatal(err)
	}
	w := &worker{origin: nodeA, own: origin.Origin{Node: "b", Epoch: 1}, id: 1, opts: &Options{}, wal: &fakeWAL{},
		absence: newAbsence(), ctx: tb.Context(), mappings: map[uint32]*mapping{r.ID: m}, digests: rowkey.NewDigests(nil),
		combined: map[string]*combination{}, current: &batch{}}
	w.guard.self = w.id
	w.positionStatement = &statement{name: "position", sent: true, ready: true, types: []uint32{oidInt8, oidInt8, oidInt8, oidTimestamptz}}
	w.tombstoneStatement = &statement{name: "tombstone", sent: true, ready: true, types: []uint32{oidInt8, 23, oidInt8, 17}}
	w.planner.w = w
	return &w.planner
}

// benchTxn changes that many rows of the table, all in one way.
func benchTxn(kind wire.Kind, rows int, r *wire.Relation) *txn {
	t := &txn{origin: nodeA, relations: map[uint32]*wire.Relation{r.ID: r}, Begin: wire.Begin{Seq: 1, Stamp: 1}}
	field := func(b []byte, v []byte) []byte {
		return append(binary.BigEndian.AppendUint32(append(b, 'b'), uint32(len(v))), v...)
	}
	for i := range rows {
		id := binary.BigEndian.AppendUint64(nil, uint64(i))
		row := field([]byte{'N', 0, 3}, id)
		row = field(field(row, binary.BigEndian.AppendUint32(nil, uint32(i))), []byte(strings.Repeat("x", 32)))
		if kind == wire.KindDelete {
			row = append(field([]byte{'K', 0, 3}, id), 'n', 'n')
		}
		t.body = wire.AppendChange(t.body, kind, r.ID, row)
	}
	return t
}

// replan plans the transaction again into the buffers of the last time.
func (p *planner) replan(tb testing.TB, t *txn) {
	p.out = p.out[:0]
	if err := p.plan(t); err != nil {
		tb.Fatal(err)
	}
}

// TestRowsArePlannedWithoutAllocating: a row of a run is bytes in a buffer that is there; only a run as such, and the
// transaction, cost a few allocations.
func TestRowsArePlannedWithoutAllocating(t *testing.T) {
	const rows, perTransaction, perRow = 500, 12, 0.1
	for _, kind := range []wire.Kind{wire.KindInsert, wire.KindUpdate, wire.KindDelete} {
		p := newBenchPlanner(t)
		one, many := benchTxn(kind, 1, benchRelation()), benchTxn(kind, rows, benchRelation())
		few := testing.AllocsPerRun(50, func() { p.replan(t, one) })
		all := testing.AllocsPerRun(50, func() { p.replan(t, many) })
		if few > perTransaction {
			t.Errorf("a transaction of one %c: %v allocations, at most %v are allowed", kind, few, perTransaction)
		}
		if n := (all - few) / rows; n > perRow {
			t.Errorf("%d rows of kind %c in a transaction: %v allocations for each, at most %v are allowed", rows, kind, n, perRow)
		}
	}
}

// BenchmarkPlan/kind/rows=n: a transaction from its frame's bytes to the messages for the server.
func BenchmarkPlan(b *testing.B) {
	for _, kind := range []wire.Kind{wire.KindInsert, wire.KindUpdate, wire.KindDelete} {
		for _, rows := range []int{1, 1000} {
			b.Run(fmt.Sprintf("%c/rows=%d", kind, rows), func(b *testing.B) {
				p, t := newBenchPlanner(b), benchTxn(kind, rows, benchRelation())
				b.ReportAllocs()
				b.SetBytes(int64(len(t.body)))
				for b.Loop() {
					p.replan(b, t)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(rows), "ns/row")
			})
		}
	}
}
