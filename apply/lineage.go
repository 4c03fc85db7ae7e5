package apply

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// lineage is what a merged row is worked out of: the row before the writes that the journal holds, and these writes. The
// zero value is that of a row of which the journal holds none.
type lineage struct {
	based  bool // the journal has base
	base   []conflict.Cell
	writes []conflict.Logged
	lows   []origin.Vector   // of each write, what its author certainly had seen
	images [][]conflict.Cell // of each write the row as its author left it, if the table has CHECK constraints
	// truncates are those of the table. They take every row with them that is older, seen or not: whoever truncates means
	// the table, and the rows' old values are not told.
	truncates []conflict.Logged
	// whole: some of them are of the whole table. The others stand among the row's own writes, since the table's are
	// forgotten (journal.forgetTruncate).
	whole bool
}

func (l *lineage) add(w conflict.Logged, low origin.Vector, image []conflict.Cell) {
	l.writes, l.lows, l.images = append(l.writes, w), append(l.lows, low), append(l.images, image)
}

// later orders writes as the rules do.
func later(a, b *conflict.Logged) int {
	return cmp.Or(cmp.Compare(a.Stamp, b.Stamp), a.Origin.Compare(b.Origin), cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.Part, b.Part))
}

// wholeTable stands in the journal for the keys of all rows of a table.
func wholeTable(t *table) wire.KeyHash {
	return wire.KeyHash{Hi: wire.TableHash(t.schema, t.name)}
}

// rowWrite is what a change does to one row.
type rowWrite struct {
	key      wire.KeyHash
	kind     wire.Kind
	old, new []conflict.Cell
	ops      []conflict.Op
}

// rowWrites are what one change of the origin's does to rows: a changed key deletes one row and makes another (R31).
func (m *mapping) rowWrites(c *wire.Change, hash func(*mapping, []wire.Value) (wire.KeyHash, error)) ([]rowWrite, error) {
	if m.remote.ReplicaIdentity != 'f' {
		return nil, m.local.needsFull()
	}
	if !m.usable {
		return nil, m.needsKey()
	}
	gone, made := rowWrite{kind: wire.KindDelete}, rowWrite{kind: wire.KindInsert}
	var err error
	if c.Kind != wire.KindInsert {
		if gone.old, err = m.cells(c.Old); err == nil {
			gone.key, err = hash(m, c.Old)
		}
	}
	if c.Kind != wire.KindDelete && err == nil {
		fillUnchanged(c)
		if made.new, err = m.cells(c.New); err == nil {
			made.key, err = hash(m, c.New)
		}
	}
	if err != nil || made.new == nil {
		return []rowWrite{gone}, err
	}
	rows := []rowWrite{made}
	if gone.old != nil && gone.key == made.key {
		rows[0].kind, rows[0].old = wire.KindUpdate, gone.old
	} else if gone.old != nil {
		rows = []rowWrite{gone, made}
	}
	made = rows[len(rows)-1]
	if rows[len(rows)-1].ops, err = m.local.merge.rules.Diff(made.old, made.new); err != nil {
		err = fmt.Errorf("merge %s: %w", m.local.quoted, err)
	}
	return rows, err
}

// logged is a write of t as the rules have it: its place in t tells those of one row apart.
func (t *txn) logged(kind wire.Kind, part conflict.Part, ops []conflict.Op) *conflict.Logged {
	what, _ := writeOf(kind) // only kinds that there are
	return &conflict.Logged{Origin: t.origin, Seq: t.Seq, Part: part, Stamp: t.Stamp, Up: t.up, Kind: what, Ops: ops}
}

// journaled is one write on its way into the journal.
type journaled struct {
	key    wire.KeyHash
	origin int32 // as in pgbridge.position; 0: this node
	write  *conflict.Logged
	low    origin.Vector
	image  []conflict.Cell // as in lineage
	local  *table
}

// journalSQL puts writes into the journal; those that are there already stay.
const journalSQL = `INSERT INTO pgbridge.journal (hi, lo, origin, seq, part, stamp, kind, seen, ops, image)
SELECT * FROM unnest($1::int8[], $2::int8[], $3::int4[], $4::int8[], $5::int4[], $6::int8[], $7::"char"[], $8::bytea[], $9::bytea[], $10::bytea[])
ON CONFLICT DO NOTHING`

// Object ids of array types and elements that no other statement needs (pg_type.dat).
const (
	oidChar       = 18
	oidCharArray  = 1002
	oidByteaArray = 1001
)

var journalTypes = []uint32{oidInt8Array, oidInt8Array, oidInt4Array, oidInt8Array, oidInt4Array, oidInt8Array, oidCharArray, oidByteaArray, oidByteaArray, oidByteaArray}

// journalParams are the parameters of journalSQL.
func journalParams(writes []journaled) []param {
	elements := []uint32{oidInt8, oidInt8, oidInt4, oidInt8, oidInt4, oidInt8, oidChar, oidBytea, oidBytea, oidBytea}
	cols := make([]array, len(elements))
	for i := range cols {
		cols[i].reset()
	}
	int8 := func(i int, v uint64) { cols[i].add(binary.BigEndian.AppendUint64(nil, v), false) }
	int4 := func(i int, v uint32) { cols[i].add(binary.BigEndian.AppendUint32(nil, v), false) }
	for i := range writes {
		w := &writes[i]
		int8(0, w.key.Hi)
		int8(1, w.key.Lo)
		int4(2, uint32(w.origin))
		int8(3, w.write.Seq)
		int4(4, uint32(w.write.Part))
		int8(5, uint64(w.write.Stamp))
		cols[6].add([]byte{byte(kindOf(w.write.Kind))}, false)
		cols[7].add(wire.AppendVector(wire.AppendVector(nil, w.write.Up), w.low), false)
		cols[8].add(w.local.merge.encodeOps(w.write.Ops), false)
		cols[9].add(w.local.encodeCells(w.image), w.image == nil)
	}
	ps := make([]param, len(cols))
	for i := range cols {
		ps[i] = binaryParam(cols[i].value(elements[i]))
	}
	return ps
}

// journalBase is a row as it was before the first of its writes that the journal holds.
type journalBase struct {
	key   wire.KeyHash
	local *table
	cells []conflict.Cell
}

// baseSQL gives rows their base; those that have one keep it.
const baseSQL = `INSERT INTO pgbridge.journal_base (hi, lo, schema, name, cells)
SELECT * FROM unnest($1::int8[], $2::int8[], $3::text[], $4::text[], $5::bytea[]) ON CONFLICT DO NOTHING`

// ownBaseSQL is baseSQL for own writes, which come late. That there was no row, though nobody inserted one since, is what a
// remote delete found which came behind a local one that capture had not read: what the local one found counts.
const ownBaseSQL = `INSERT INTO pgbridge.journal_base AS b (hi, lo, schema, name, cells)
SELECT * FROM unnest($1::int8[], $2::int8[], $3::text[], $4::text[], $5::bytea[])
ON CONFLICT (hi, lo) DO UPDATE SET cells = EXCLUDED.cells WHERE b.cells IS NULL AND EXCLUDED.cells IS NOT NULL
	AND NOT EXISTS (SELECT FROM pgbridge.journal j WHERE j.hi = EXCLUDED.hi AND j.lo = EXCLUDED.lo AND j.kind = 'I')`

var baseTypes = []uint32{oidInt8Array, oidInt8Array, oidTextArray, oidTextArray, oidByteaArray}

// baseParams are the parameters of baseSQL.
func baseParams(rows []journalBase) []param {
	ps := keyParams(len(rows), func(i int) wire.KeyHash { return rows[i].key })
	var schemas, names, cells array
	schemas.reset()
	names.reset()
	cells.reset()
	for i := range rows {
		schemas.add([]byte(rows[i].local.schema), false)
		names.add([]byte(rows[i].local.name), false)
		cells.add(rows[i].local.encodeCells(rows[i].cells), rows[i].cells == nil)
	}
	return append(ps, binaryParam(schemas.value(oidText)), binaryParam(names.value(oidText)), binaryParam(cells.value(oidBytea)))
}

// keyParams are keys as two arrays.
func keyParams(n int, key func(i int) wire.KeyHash) []param {
	var hi, lo array
	hi.reset()
	lo.reset()
	for i := range n {
		k := key(i)
		hi.add(binary.BigEndian.AppendUint64(nil, k.Hi), false)
		lo.add(binary.BigEndian.AppendUint64(nil, k.Lo), false)
	}
	return []param{binaryParam(hi.value(oidInt8)), binaryParam(lo.value(oidInt8))}
}

// encodeOps writes the ops with the names of their units, which outlive a change of the columns' order.
func (m *merge) encodeOps(ops []conflict.Op) []byte {
	var b []byte
	for u, op := range ops {
		if len(op) > 0 {
			b = appendBytes(appendBytes(b, []byte(m.units[u])), op)
		}
	}
	return b
}

// decodeOps reads what encodeOps wrote. What it says of units that are not there any more is dropped.
func (m *merge) decodeOps(b []byte) ([]conflict.Op, error) {
	ops := make([]conflict.Op, len(m.units))
	err := eachOp(b, func(unit, op []byte) {
		if u := slices.Index(m.units, string(unit)); u >= 0 {
			ops[u] = bytes.Clone(op)
		}
	})
	return ops, err
}

// eachOp calls f for what encodeOps wrote.
func eachOp(b []byte, f func(unit, op []byte)) error {
	for len(b) > 0 {
		unit, rest, ok := cutBytes(b)
		op, rest, ok2 := cutBytes(rest)
		if !ok || !ok2 {
			return fmt.Errorf("%w: ops of a write in the journal", wire.ErrCorrupt)
		}
		f(unit, op)
		b = rest
	}
	return nil
}

// encodeCells writes a row with the names of its columns.
func (t *table) encodeCells(row []conflict.Cell) []byte {
	var b []byte
	for i, c := range row {
		b = appendCell(b, []byte(t.cols[t.merge.cols[i]].name), c)
	}
	return b
}

func appendCell(b, column []byte, c conflict.Cell) []byte {
	if b = appendBytes(b, column); c.Null {
		return append(b, 0)
	}
	return appendBytes(append(b, 1), c.Data)
}

// decodeCells reads what encodeCells wrote; a column that has come since is NULL.
func (t *table) decodeCells(b []byte) ([]conflict.Cell, error) {
	row := make([]conflict.Cell, len(t.merge.cols))
	for i := range row {
		row[i].Null = true
	}
	if err := eachCell(b, func(column []byte, c conflict.Cell) {
		at := slices.IndexFunc(t.merge.cols, func(li int) bool { return t.cols[li].name == string(column) })
		if at >= 0 && !c.Null {
			row[at] = conflict.Cell{Data: bytes.Clone(c.Data)}
		}
	}); err != nil {
		return nil, fmt.Errorf("%w of %s", err, t.quoted)
	}
	return row, nil
}

// eachCell calls f for what encodeCells wrote.
func eachCell(b []byte, f func(column []byte, c conflict.Cell)) error {
	corrupt := fmt.Errorf("%w: row in the journal", wire.ErrCorrupt)
	for len(b) > 0 {
		column, rest, ok := cutBytes(b)
		if !ok || len(rest) == 0 {
			return corrupt
		}
		c := conflict.Cell{Null: rest[0] != 1}
		if b = rest[1:]; !c.Null {
			if c.Data, b, ok = cutBytes(b); !ok {
				return corrupt
			}
		}
		f(column, c)
	}
	return nil
}

func appendBytes(b, v []byte) []byte { return append(binary.AppendUvarint(b, uint64(len(v))), v...) }

func cutBytes(b []byte) (v, rest []byte, ok bool) {
	n, k := binary.Uvarint(b)
	if k <= 0 || n > uint64(len(b)-k) {
		return nil, nil, false
	}
	return b[k : k+int(n)], b[k+int(n):], true
}

// lineageSQL reads what the journal holds of keys.
const (
	lineageSQL = `SELECT k.n::int8, j.origin, j.seq, j.part, j.stamp, j.kind, j.seen, j.ops, j.image
FROM unnest($1::int8[], $2::int8[]) WITH ORDINALITY k(hi, lo, n) JOIN pgbridge.journal j ON j.hi = k.hi AND j.lo = k.lo`
	lineageBaseSQL = `SELECT k.n::int8, b.cells
FROM unnest($1::int8[], $2::int8[]) WITH ORDINALITY k(hi, lo, n) JOIN pgbridge.journal_base b ON b.hi = k.hi AND b.lo = k.lo`
)

// lineages reads what the journal holds of a table's keys, in their order.
func (j *journal) lineages(ctx context.Context, conn *pgconn.PgConn, t *table, keys []wire.KeyHash) ([]lineage, error) {
	out := make([]lineage, len(keys))
	var whole []conflict.Logged
	asked := append(slices.Clone(keys), wholeTable(t))
	values, formats := raw(keyParams(len(asked), func(i int) wire.KeyHash { return asked[i] }))
	ask := func(sql string) ([][][]byte, error) {
		r := conn.ExecParams(ctx, sql, values, []uint32{oidInt8Array, oidInt8Array}, formats, []int16{1}).Read()
		if r.Err != nil {
			return nil, fmt.Errorf("read journal of %s: %w", t.quoted, r.Err)
		}
		return r.Rows, nil
	}
	rows, err := ask(lineageSQL)
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		w, low, err := j.logged(t, r)
		if err != nil {
			return nil, err
		}
		var image []conflict.Cell
		if r[8] != nil {
			if image, err = t.decodeCells(r[8]); err != nil {
				return nil, err
			}
		}
		if n := int(binary.BigEndian.Uint64(r[0])) - 1; n < len(keys) {
			if w.Kind == conflict.Truncate {
				out[n].truncates = append(out[n].truncates, w)
				continue
			}
			out[n].add(w, low, image)
		} else {
			whole = append(whole, w)
		}
	}
	if rows, err = ask(lineageBaseSQL); err != nil {
		return nil, err
	}
	for _, r := range rows {
		n := int(binary.BigEndian.Uint64(r[0])) - 1
		if n == len(keys) {
			continue
		}
		out[n].based = true
		if r[1] != nil {
			if out[n].base, err = t.decodeCells(r[1]); err != nil {
				return nil, err
			}
		}
	}
	for n := range out {
		out[n].truncates, out[n].whole = append(out[n].truncates, whole...), len(whole) > 0
	}
	return out, nil
}

// logged reads one row of lineageSQL.
func (j *journal) logged(t *table, r [][]byte) (conflict.Logged, origin.Vector, error) {
	w := conflict.Logged{
		Seq: binary.BigEndian.Uint64(r[2]), Part: conflict.Part(binary.BigEndian.Uint32(r[3])), Stamp: origin.Stamp(binary.BigEndian.Uint64(r[4])),
	}
	var ok bool
	if w.Origin, ok = j.origins[int32(binary.BigEndian.Uint32(r[1]))]; !ok {
		return w, nil, fmt.Errorf("the journal names origin %d, which is not in pgbridge.position", int32(binary.BigEndian.Uint32(r[1])))
	}
	seen, err := wire.ParseVectors(r[6], 2)
	if err != nil {
		return w, nil, fmt.Errorf("read journal of %s: %w", t.quoted, err)
	}
	w.Up = seen[0]
	if w.Kind, err = writeOf(wire.Kind(r[5][0])); err != nil {
		return w, nil, err
	}
	w.Ops, err = t.merge.decodeOps(r[7])
	return w, seen[1], err
}

// journalKinds are the kinds of changes, by what the rules call them.
var journalKinds = map[conflict.Write]wire.Kind{conflict.Insert: wire.KindInsert, conflict.Update: wire.KindUpdate,
	conflict.Delete: wire.KindDelete, conflict.Truncate: wire.KindTruncate}

func kindOf(w conflict.Write) wire.Kind { return journalKinds[w] }

// writeOf is what the rules call a kind of change.
func writeOf(k wire.Kind) (conflict.Write, error) {
	for w, kind := range journalKinds {
		if kind == k {
			return w, nil
		}
	}
	return 0, fmt.Errorf("%w: change of kind %q in the journal", wire.ErrCorrupt, byte(k))
}
