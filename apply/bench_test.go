package apply

import (
	"encoding/binary"
	"fmt"
	"math"
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
	opts := Options{}.withDefaults()
	w := &worker{origin: nodeA, own: origin.Origin{Node: "b", Epoch: 1}, id: 1, opts: &opts, wal: &fakeWAL{}, kept: newQuarantine(),
		absence: newAbsence(), progress: newProgress(), locks: newKeyLocks(2), inbox: newInbox(nodeA, &opts, 0),
		ctx: tb.Context(), mappings: map[uint32]*mapping{r.ID: m}, digests: rowkey.NewDigests(nil),
		combined: map[string]*combination{}, current: &batch{}, atOnce: opts.BatchTransactions, bundled: opts.BatchTransactions}
	w.guard.self = w.id
	w.positionStatement = &statement{name: "position", sent: true, ready: true, types: []uint32{oidInt8, oidInt8, oidInt8, oidTimestamptz}}
	w.tombstoneStatement = &statement{name: "tombstone", sent: true, ready: true, types: []uint32{oidInt8, 23, oidInt8, 17}}
	w.bundleStatement = &statement{name: "bundle", sent: true, ready: true,
		types: []uint32{oidInt8, oidInt8, oidInt8, oidTimestamptz, oidInt8, oidInt8Array, oidInt4Array}}
	w.beginMessages, w.patientMessages = appendRun(nil, "begin", nil), appendRun(nil, "patient", nil)
	w.planner.w = w
	return &w.planner
}

// benchTxn changes that many rows of the table, from the id first on, all in one way.
func benchTxn(kind wire.Kind, seq uint64, first, rows int, r *wire.Relation) *txn {
	t := &txn{origin: nodeA, relations: map[uint32]*wire.Relation{r.ID: r}, Begin: wire.Begin{Seq: seq, Stamp: origin.Stamp(seq)}}
	field := func(b []byte, v []byte) []byte {
		return append(binary.BigEndian.AppendUint32(append(b, 'b'), uint32(len(v))), v...)
	}
	for i := first; i < first+rows; i++ {
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
		one, many := benchTxn(kind, 1, 0, 1, benchRelation()), benchTxn(kind, 1, 0, rows, benchRelation())
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
				p, t := newBenchPlanner(b), benchTxn(kind, 1, 0, rows, benchRelation())
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

// benchBundle is what waits in a planner's inbox: so many transactions, each of which changes so many rows of its own, or
// all the same rows.
type benchBundle struct {
	kind       wire.Kind
	txns, rows int
	same       bool
}

func (c benchBundle) String() string {
	name := fmt.Sprintf("%c/txns=%d/rows=%d", c.kind, c.txns, c.rows)
	if c.same {
		name += "/same"
	}
	return name
}

// changes is how many all of them make.
func (c benchBundle) changes() int { return c.txns * c.rows }

// waiting returns the planner, and the bytes that wait.
func (c benchBundle) waiting(tb testing.TB) (p *planner, bytes int64) {
	tb.Helper()
	p = newBenchPlanner(tb)
	r := benchRelation()
	var txns []*txn
	for i := range c.txns {
		first := i * c.rows
		if c.same {
			first = 0
		}
		t := benchTxn(c.kind, uint64(i+1), first, c.rows, r)
		txns, bytes = append(txns, t), bytes+int64(len(t.body))
	}
	if err := p.w.inbox.add(tb.Context(), txns); err != nil {
		tb.Fatal(err)
	}
	return p, bytes
}

// rebundle plans what waits again as a bundle of that many transactions, into the buffers of the last time, and gives
// back what that took.
func (c benchBundle) rebundle(tb testing.TB, p *planner) {
	w := p.w
	p.out = p.out[:0]
	w.current.txns, w.current.commits = w.current.txns[:0], w.current.commits[:0]
	if n, err := w.addBundle(); err != nil || n != c.txns {
		tb.Fatalf("a bundle of %d transactions, want %d: %v", n, c.txns, err)
	}
	w.giveBack(w.current)
	w.absence.withdraw(w.origin, 1)
	w.inbox.rewind()
}

// TestBundlesArePlannedWithoutAllocating: a transaction costs what it holds until it lands, and its tombstones, a bundle
// as such its runs, and a row nothing.
func TestBundlesArePlannedWithoutAllocating(t *testing.T) {
	const rows, perBundle, perRow = 10, 24, 0.1
	for _, c := range []struct {
		benchBundle
		perTransaction float64
	}{
		{benchBundle{kind: wire.KindInsert}, 5},
		{benchBundle{kind: wire.KindUpdate}, 5},
		{benchBundle{kind: wire.KindUpdate, same: true}, 6},
		{benchBundle{kind: wire.KindDelete}, 11},
	} {
		allocs := func(txns, rows int) float64 {
			c.txns, c.rows = txns, rows
			p, _ := c.waiting(t)
			least := math.Inf(1) // now and then a map makes room
			for range 3 {
				least = min(least, testing.AllocsPerRun(20, func() { c.rebundle(t, p) }))
			}
			return least
		}
		few, many, wide := allocs(bundleFrom, 1), allocs(10*bundleFrom, 1), allocs(10*bundleFrom, rows)
		each := (many - few) / (9 * bundleFrom)
		if each > c.perTransaction {
			t.Errorf("%s: %v allocations for each transaction, at most %v are allowed", c, each, c.perTransaction)
		}
		if n := few - bundleFrom*each; n > perBundle {
			t.Errorf("%s: %v allocations for a bundle as such, at most %v are allowed", c, n, perBundle)
		}
		if n := (wide - many) / (10 * bundleFrom * (rows - 1)); n > perRow {
			t.Errorf("%s: %v allocations for each row, at most %v are allowed", c, n, perRow)
		}
	}
}

// BenchmarkBundle/kind/txns=n/rows=n: waiting transactions from their frames' bytes to the messages of one local
// transaction, with locks and registrations.
func BenchmarkBundle(b *testing.B) {
	for _, kind := range []wire.Kind{wire.KindInsert, wire.KindUpdate, wire.KindDelete} {
		for _, c := range []benchBundle{{kind: kind, txns: 100, rows: 1}, {kind: kind, txns: 10, rows: 100}, {kind: kind, txns: 100, rows: 1, same: true}} {
			if c.same && kind != wire.KindUpdate {
				continue // a row comes or goes once in a bundle
			}
			b.Run(c.String(), func(b *testing.B) {
				p, bytes := c.waiting(b)
				b.ReportAllocs()
				b.SetBytes(bytes)
				for b.Loop() {
					c.rebundle(b, p)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(c.changes()), "ns/row")
			})
		}
	}
}
