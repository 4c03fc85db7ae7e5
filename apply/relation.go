package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/rowkey"
	"github.com/pgbridge/pgbridge/wire"
)

// column is one column of a local table.
type column struct {
	name      string
	quoted    string
	oid       uint32 // declared type
	collation uint32
	typ       *pgType
	generated bool
	long      bool // its values may be stored out of line
	// always: GENERATED ALWAYS AS IDENTITY, which an INSERT may be told to write, but no UPDATE.
	always bool
	// equals is the operator by which the key's index compares, with its schema: the session's
	// search_path does not have those of extensions.
	equals string
}

// compared is the column of alias t as its key is compared: as what a domain is made of, since the server
// finds no operator for a domain over an enum, and the index takes both.
func (c *column) compared() string { return c.comparedIn("t") }

// comparedIn is compared for another alias.
func (c *column) comparedIn(alias string) string {
	if c.typ.base == nil {
		return alias + "." + c.quoted
	}
	r := c.typ.root()
	return fmt.Sprintf("(%s.%s)::%s", alias, c.quoted, pgx.Identifier{r.schema, r.name}.Sanitize())
}

// sameKey is the condition that rows of two aliases have the same key.
func (t *table) sameKey(a, b string) string {
	var same []string
	for _, k := range t.key {
		c := &t.cols[k]
		same = append(same, fmt.Sprintf("%s %s %s", c.comparedIn(a), c.equals, c.comparedIn(b)))
	}
	return strings.Join(same, " AND ")
}

// param is the type object id under which the column's values are sent.
func (c *column) param() uint32 { return c.typ.root().oid }

// table is a local table, found by the name under which an origin published it.
type table struct {
	oid          uint32
	schema, name string
	quoted       string // schema and name, ready for SQL
	rows         string // the same where its rows are meant, without those of tables that inherit from it
	cols         []column
	key          []int // columns of the key, in column-name order
	hasher       *wire.KeyHasher
	// respells: one key can be written in more than one way. A transaction that declares a row's last version may not
	// have seen it (PROOF.md R8, R9), and so may have the key in another spelling than the row, which it must write, too.
	respells bool
	// unique: there are unique constraints besides the key, so that rows of one statement could be
	// in each other's way (PROOF.md R34).
	unique bool
	// large: it, or a partition of it, may have values out of line (TOAST).
	large bool
	// ordered: triggers that fire on applied rows, or rules, could see in which order changes come.
	ordered bool
	// full: the old values of all its rows are logged (REPLICA IDENTITY FULL).
	full bool
	// merge is how concurrent writes of its rows become one row; nil: the later row wins.
	merge *merge
	// children are the foreign keys that refer to it and have a policy for orphans.
	children []child
	// uniques are what its rows may collide on besides the key; unchecked: the server does not check all of them for
	// applied rows. computed are the expressions of generated columns, by name.
	uniques   []unique
	unchecked bool
	computed  map[string]string
}

// mapping is how one origin's relation fits a local table.
type mapping struct {
	id     uint64 // of the worker's mappings
	remote *wire.Relation
	local  *table
	// cols gives for each remote column the local one, -1 for one that is generated here.
	cols []int
	// key gives for each key column, in the table's key order, the remote column.
	key        []int
	statements map[string]*statement
	// given is the relation as the origin wrote it; of one whose author lacked schema changes, lag, remote is how it would be with
	// them, and fills are the values of its last columns.
	given  *wire.Relation
	barred bool // the origin does not write the table (barred.go)
	lag    lag
	fills  []wire.Value
	usable bool  // a key that the origin's old images carry
	always []int // remote columns, but not those of the key, that no UPDATE can write here
	oneWay []int // remote columns of types in oneWayTypes
}

// oneWayTypes are types whose receive function refuses what their send function makes of the empty value
// (tsqueryrecv wants an operand, int2vectorrecv and oidvectorrecv a dimension, as of PostgreSQL 18), with
// that form. Their empty values travel as text.
var oneWayTypes = map[uint32]string{
	3615: "\x00\x00\x00\x00",                                                                 // tsquery: no items
	22:   "\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x15\x00\x00\x00\x00\x00\x00\x00\x00", // int2vector: array of length 0
	30:   "\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x1a\x00\x00\x00\x00\x00\x00\x00\x00", // oidvector
}

// readable completes a change with what its author lacked, and turns values that this server would not take in binary into text.
func (m *mapping) readable(c *wire.Change) {
	m.fill(c)
	for _, i := range m.oneWay {
		empty := oneWayTypes[m.local.cols[m.cols[i]].param()]
		for _, tuple := range [][]wire.Value{c.Old, c.New} {
			if i < len(tuple) && tuple[i].Format == wire.Binary && string(tuple[i].Data) == empty {
				tuple[i] = wire.Value{Format: wire.Text}
			}
		}
	}
}

// Blocked means that a transaction cannot be applied here for now: its origin waits, nothing is lost,
// and it goes on when the reason has gone.
type Blocked struct {
	Reason string // what is wrong, with the mend
	Err    error  // the server's error, if there is one
}

// Error gives the reason, and the server's error if there is one.
func (b *Blocked) Error() string {
	if b.Err != nil {
		return fmt.Sprintf("%s: %v", b.Reason, b.Err)
	}
	return b.Reason
}

// Unwrap returns the server's error, if there is one.
func (b *Blocked) Unwrap() error { return b.Err }

func isBlocked(err error) bool {
	var b *Blocked
	return errors.As(err, &b)
}

func blocked(format string, args ...any) error { return &Blocked{Reason: fmt.Sprintf(format, args...)} }

const tableSQL = `
SELECT c.oid, c.relreplident::text, NOT EXISTS (SELECT FROM pg_class p WHERE p.relreplident <> 'f'
           AND p.oid IN (SELECT c.oid UNION ALL SELECT relid FROM pg_partition_tree(c.oid))), c.relkind = 'r', c.relkind <> 'r' OR c.reltoastrelid <> 0,
       c.relhasrules OR EXISTS (SELECT FROM pg_trigger g WHERE g.tgenabled IN ('A', 'R') AND NOT g.tgisinternal
           AND g.tgrelid IN (SELECT c.oid UNION ALL SELECT relid FROM pg_partition_tree(c.oid)))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')`

const columnsSQL = `
SELECT attnum, attname, atttypid, attcollation, attgenerated <> '', attidentity = 'a', attlen = -1 FROM pg_attribute
WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum`

// keySQL lists the unique indexes that could be a key, the best one first: the replica identity's own,
// the primary key, any other. Capture chooses by the same rule, since both must hash a key alike.
const keySQL = `
SELECT i.indisreplident AND $2 = 'i', i.indisprimary,
       i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
       AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = i.indrelid
                       AND a.attnum = ANY (i.indkey[0:i.indnkeyatts-1]) AND NOT a.attnotnull),
       (i.indkey[0:i.indnkeyatts-1])::int2[],
       ARRAY(SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname)
             FROM unnest(i.indclass[0:i.indnkeyatts-1]) WITH ORDINALITY u(class, at)
             JOIN pg_opclass c ON c.oid = u.class
             JOIN pg_am m ON m.oid = c.opcmethod
             JOIN pg_amop a ON a.amopfamily = c.opcfamily AND a.amoplefttype = c.opcintype AND a.amoprighttype = c.opcintype
             JOIN pg_operator o ON o.oid = a.amopopr JOIN pg_namespace n ON n.oid = o.oprnamespace
             WHERE CASE WHEN m.amname = 'btree' THEN a.amopstrategy = 3 ELSE o.oprname = '=' END
             ORDER BY u.at)
FROM pg_index i WHERE i.indrelid = $1 AND i.indisunique
ORDER BY 1 DESC, 2 DESC, i.indexrelid`

// loadTable reads a table from the local catalog; a Blocked error if it is not there.
func loadTable(ctx context.Context, cat *catalog, schema, name string) (*table, error) {
	t := &table{schema: schema, name: name, quoted: pgx.Identifier{schema, name}.Sanitize()}
	var identity string
	var plain bool
	err := cat.conn.QueryRow(ctx, tableSQL, schema, name).Scan(&t.oid, &identity, &t.full, &plain, &t.large, &t.ordered)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, blocked("table %s is not here; create it, and its changes follow by themselves", t.quoted)
	}
	if err != nil {
		return nil, fmt.Errorf("read table %s: %w", t.quoted, err)
	}
	t.rows = t.quoted
	if plain { // a partitioned table's rows are those of its partitions
		t.rows = "ONLY " + t.quoted
	}
	rows, err := cat.conn.Query(ctx, columnsSQL, t.oid)
	if err != nil {
		return nil, fmt.Errorf("read columns of %s: %w", t.quoted, err)
	}
	byNumber := map[int16]int{}
	var num int16
	var c column
	if _, err = pgx.ForEachRow(rows, []any{&num, &c.name, &c.oid, &c.collation, &c.generated, &c.always, &c.long}, func() error {
		c.quoted = pgx.Identifier{c.name}.Sanitize()
		byNumber[num] = len(t.cols)
		t.cols = append(t.cols, c)
		return nil
	}); err != nil {
		return nil, fmt.Errorf("read columns of %s: %w", t.quoted, err)
	}
	for i := range t.cols {
		if t.cols[i].typ, err = cat.load(ctx, t.cols[i].oid); err != nil {
			return nil, fmt.Errorf("column %s of %s: %w", t.cols[i].quoted, t.quoted, err)
		}
	}
	if err := t.loadKey(ctx, cat.conn, identity, byNumber); err != nil {
		return nil, err
	}
	if err := t.loadChildren(ctx, cat.conn, cat.foreign); err != nil {
		return nil, err
	}
	if t.merge, err = newMerge(t, cat.merges, cat.priority); err != nil {
		return nil, err
	}
	if t.merge != nil && cat.columns != nil {
		if err := t.merge.place(t, cat.columns.of(t.schema, t.name), cat.node); err != nil {
			return nil, err
		}
	}
	if t.merge != nil {
		return t, t.loadMerge(ctx, cat.conn)
	}
	return t, t.loadUniques(ctx, cat.conn, byNumber)
}

func (t *table) loadKey(ctx context.Context, conn *pgx.Conn, identity string, byNumber map[int16]int) error {
	rows, err := conn.Query(ctx, keySQL, t.oid, identity)
	if err != nil {
		return fmt.Errorf("read keys of %s: %w", t.quoted, err)
	}
	var chosen, primary, fit bool
	var nums []int16
	var equals []string
	if _, err = pgx.ForEachRow(rows, []any{&chosen, &primary, &fit, &nums, &equals}, func() error {
		if t.key != nil || !fit {
			t.unique = true
			return nil
		}
		for i, n := range nums {
			t.key = append(t.key, byNumber[n])
			t.cols[byNumber[n]].equals = "="
			if i < len(equals) {
				t.cols[byNumber[n]].equals = equals[i]
			}
		}
		return nil
	}); err != nil {
		return fmt.Errorf("read keys of %s: %w", t.quoted, err)
	}
	if t.key == nil {
		return blocked("table %s has no usable key here; run ALTER TABLE %s ADD PRIMARY KEY (...)", t.quoted, t.quoted)
	}
	slices.SortFunc(t.key, func(a, b int) int { return strings.Compare(t.cols[a].name, t.cols[b].name) })
	return t.loadHasher(ctx, rowkey.NewTypes(conn))
}

// loadHasher finds out which keys are equal; a Blocked error if that cannot be known.
func (t *table) loadHasher(ctx context.Context, types *rowkey.Types) error {
	hashed := make([]*wire.KeyType, len(t.key))
	for i, k := range t.key {
		c := &t.cols[k]
		var err error
		var no *rowkey.NoHash
		if hashed[i], err = types.Key(ctx, c.oid, c.collation); errors.As(err, &no) {
			return blocked("table %s has column %s in its key: %v; %s", t.quoted, c.quoted, no, no.Mend())
		} else if err != nil {
			return fmt.Errorf("key column %s of %s: %w", c.quoted, t.quoted, err)
		}
	}
	t.hasher = wire.NewKeyHasher(t.schema, t.name, hashed)
	t.respells = slices.ContainsFunc(hashed, (*wire.KeyType).Respells)
	return nil
}

// newMapping fits the origin's relation to the local table, by names; a Blocked error says what does not
// fit and how to mend it.
func newMapping(r *wire.Relation, t *table) (*mapping, error) {
	m := &mapping{given: r, remote: r, local: t, statements: map[string]*statement{}, usable: true}
	at := map[string]int{}
	for i := range r.Columns {
		rc := &r.Columns[i]
		if rc.Name == "" { // dropped since
			m.cols = append(m.cols, -1)
			continue
		}
		at[rc.Name] = i
		li := slices.IndexFunc(t.cols, func(c column) bool { return c.name == rc.Name })
		if li < 0 {
			return nil, blocked("table %s has no column %q here; run ALTER TABLE %s ADD COLUMN %s ...",
				t.quoted, rc.Name, t.quoted, pgx.Identifier{rc.Name}.Sanitize())
		}
		lc := &t.cols[li]
		if err := sameType(t, lc, rc); err != nil {
			return nil, err
		}
		if lc.generated {
			li = -1
		} else if _, ok := oneWayTypes[lc.param()]; ok {
			m.oneWay = append(m.oneWay, i)
		}
		m.cols = append(m.cols, li)
	}
	keys := 0
	for _, k := range t.key {
		i, ok := at[t.cols[k].name]
		if !ok {
			return nil, blocked("key column %s of %s does not come from the origin; give the table the same key on all nodes",
				t.cols[k].quoted, t.quoted)
		}
		m.usable = m.usable && r.Columns[i].Key
		m.key = append(m.key, i)
		keys++
	}
	for i := range r.Columns {
		if r.ReplicaIdentity != 'f' && r.Columns[i].Key {
			keys--
		}
	}
	m.usable = m.usable && (keys == 0 || r.ReplicaIdentity == 'f')
	for i, li := range m.cols {
		if li >= 0 && t.cols[li].always && !m.isKey(i) {
			m.always = append(m.always, i)
		}
	}
	return m, nil
}

// width is the number of bytes of an integer type, 0 for any other.
func width(oid uint32) int {
	switch oid {
	case 20:
		return 8
	case 21:
		return 2
	case 23:
		return 4
	}
	return 0
}

// widened gives a binary integer the width that the column has here.
func widened(b []byte, to int) []byte {
	if to == 0 || len(b) >= to || len(b) == 0 {
		return b
	}
	out := make([]byte, to)
	copy(out[to-len(b):], b)
	if b[0]&0x80 != 0 {
		for i := range to - len(b) {
			out[i] = 0xff
		}
	}
	return out
}

// sameType compares what a column's values are made of: a Type message names the type below a domain
// (logicalrep_write_typ in src/backend/replication/logical/proto.c), and a domain adds nothing to a value.
// An integer may be wider here: when a column is widened on all nodes, older transactions are still on their
// way.
func sameType(t *table, lc *column, rc *wire.Column) error {
	root := lc.typ.root()
	schema, name := rc.TypeSchema, rc.TypeName
	same := rc.TypeOID == root.oid
	if name != "" {
		if schema == "" {
			schema = "pg_catalog" // as the Type message says it
		}
		same = name == root.name && schema == root.schema
	}
	if same || name == "" && width(rc.TypeOID) != 0 && width(rc.TypeOID) < width(root.oid) {
		return nil
	}
	origin := fmt.Sprintf("%s.%s", schema, name)
	if name == "" {
		origin = fmt.Sprintf("the type with object id %d", rc.TypeOID)
	}
	return blocked("column %s of %s is of type %s.%s here and of %s at the origin; give it the same type on both nodes",
		lc.quoted, t.quoted, root.schema, root.name, origin)
}

// needsKey is the error for an update or a delete whose old image does not carry this node's key.
func (m *mapping) needsKey() error {
	return blocked("table %s has another key here than its replica identity at the origin; give it the same primary key on both nodes",
		m.local.quoted)
}

// keyOf collects the key's values out of a tuple in the origin's column order, with this node's object
// ids in them and in the format in which this node sends them: their hash must be that of the same key read
// by this node's capture.
func (m *mapping) keyOf(dst []wire.Value, tuple []wire.Value) ([]wire.Value, error) {
	dst = dst[:0]
	for _, i := range m.key {
		if i >= len(tuple) {
			return nil, fmt.Errorf("%w: tuple of %s has %d columns", wire.ErrCorrupt, m.local.quoted, len(tuple))
		}
		v := tuple[i]
		if li := m.cols[i]; v.Format == wire.Binary && li >= 0 && m.local.cols[li].typ.rewrite {
			b, err := m.local.cols[li].typ.localize(v.Data)
			if err != nil {
				return nil, err
			}
			v.Data = b
		} else if v.Format == wire.Text && len(v.Data) == 0 && slices.Contains(m.oneWay, i) {
			v = wire.Value{Format: wire.Binary, Data: []byte(oneWayTypes[m.local.cols[li].param()])}
		}
		dst = append(dst, v)
	}
	return dst, nil
}

// param turns a value of the remote column i into a statement's parameter.
func (m *mapping) param(i int, v wire.Value) (param, error) {
	switch v.Format {
	case wire.Null:
		return param{null: true}, nil
	case wire.Text:
		return param{value: v.Data}, nil
	case wire.Binary:
		t := m.local.cols[m.cols[i]].typ
		if !t.rewrite {
			return binaryParam(widened(v.Data, width(t.root().oid))), nil
		}
		b, err := t.localize(v.Data)
		return binaryParam(b), err
	case wire.Sealed:
		return param{}, blocked("column %q of table %s came with values for some nodes alone, and topology.columns does not name it here; let it do so until all of them have been applied",
			m.remote.Columns[i].Name, m.local.quoted)
	}
	return param{}, fmt.Errorf("%w: value of format %q where one is needed", wire.ErrCorrupt, v.Format)
}

// params appends the parameters for columns of a tuple.
func (m *mapping) params(ps []param, tuple []wire.Value, cols []int) ([]param, error) {
	for _, i := range cols {
		p, err := m.param(i, tuple[i])
		if err != nil {
			return nil, err
		}
		ps = append(ps, p)
	}
	return ps, nil
}

// ownMappings are how relations of own frames fit their tables, by the relation's R record.
type ownMappings map[string]*mapping

// of returns one; a Blocked error if the table does not fit any more. read is how it is read: catalog.table or tableNow.
func (o ownMappings) of(ctx context.Context, read func(ctx context.Context, schema, name string) (*table, error), r *wire.Relation) (*mapping, error) {
	name := string(wire.AppendRelation(nil, r))
	if m := o[name]; m != nil {
		return m, nil
	}
	t, err := read(ctx, r.Schema, r.Name)
	if err != nil {
		return nil, err
	}
	m, err := newMapping(r, t)
	if err != nil {
		return nil, err
	}
	o[name] = m
	return m, nil
}
