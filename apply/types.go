package apply

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/wire"
)

// firstOwnOID is PostgreSQL's FirstGenbkiObjectId (access/transam.h): object ids from here on are given
// out by each server, or by each release, and differ between nodes; those below are the same everywhere.
const firstOwnOID = 10000

// pgType is one type of the local catalog, as far as apply must know it.
type pgType struct {
	oid          uint32
	schema, name string
	kind         byte // pg_type.typtype: b, c, d, e, r, m
	array        uint32
	base         *pgType   // of a domain
	elem         *pgType   // of an array
	fields       []*pgType // of a composite type, without dropped columns
	subtype      *pgType   // of a range or multirange
	text         bool      // it has no binary form, and travels as text
	// rewrite: the binary form holds object ids that differ between nodes.
	rewrite bool
}

// root strips domains.
func (t *pgType) root() *pgType {
	for t.base != nil {
		t = t.base
	}
	return t
}

// format is the format code in which capture gets the type's values.
func (t *pgType) format() int16 {
	if t.text {
		return 0
	}
	return 1
}

// runs reports whether values of the type can travel as elements of an array parameter to unnest:
// unnest would take an array apart further, and spread a composite over several columns.
func (t *pgType) runs() bool {
	r := t.root()
	return r.array != 0 && r.elem == nil && r.kind != 'c'
}

// catalog reads tables and types over a connection of its own, for all workers: theirs may have
// transactions in flight.
type catalog struct {
	mu    sync.Mutex // guards all below
	conn  *pgx.Conn
	types map[uint32]*pgType
	// How tables are merged, and whose writes come first where that matters; never changed.
	merges   []MergePolicy
	priority []string
	node     string             // this one
	columns  *ColumnPlaces      // nil: of none
	foreign  []ForeignKeyPolicy // what becomes of orphans; never changed
}

// ask implements rowkey.Ask.
func (c *catalog) ask(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return f(ctx, c.conn)
}

// catalogLockTimeout, in milliseconds, is for how long a table that is read may be locked: by what changes its schema, or waits to.
const catalogLockTimeout = "200"

// lockedPause is how long who holds nothing leaves such a table alone.
const lockedPause = 100 * time.Millisecond

// table reads a table afresh, types included. It waits for whoever changes its schema, so that the caller may hold no lock of a table:
// what changes the schema may wait for that, and the server knows nothing of it.
func (c *catalog) table(ctx context.Context, schema, name string) (*table, error) {
	for {
		t, err := c.tableNow(ctx, schema, name)
		if !isLocked(err) {
			return t, err
		}
		select {
		case <-time.After(lockedPause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// tableNow is table for a caller that holds locks, and is to give them up if the error is of code 55P03.
func (c *catalog) tableNow(ctx context.Context, schema, name string) (t *table, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.types)
	if c.conn.PgConn().TxStatus() != 'I' { // the session is not shared, and that transaction has a lock_timeout of its own
		return loadTable(ctx, c, schema, name)
	}
	err = pgx.BeginFunc(ctx, c.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = "+catalogLockTimeout); err != nil {
			return err
		}
		t, err = loadTable(ctx, c, schema, name)
		return err
	})
	if hasCode(err, "55P03") {
		err = &lockedError{pgx.Identifier{schema, name}.Sanitize(), err}
	}
	return t, err
}

// lockedError is that of a table which cannot be read before somebody has given up its lock. It says nothing of the table.
type lockedError struct {
	table string
	err   error
}

func (e *lockedError) Error() string {
	return fmt.Sprintf("table %s is locked by a session that changes its schema, or waits to: %v", e.table, e.err)
}

func (e *lockedError) Unwrap() error { return e.err }

func isLocked(err error) bool {
	var l *lockedError
	return errors.As(err, &l)
}

const typeSQL = `
SELECT n.nspname, t.typname, t.typtype::text, t.typarray, t.typbasetype,
       CASE WHEN t.typlen = -1 AND t.typsubscript = 'pg_catalog.array_subscript_handler'::regproc THEN t.typelem ELSE 0 END,
       t.typsend = 0, COALESCE((SELECT rngsubtype FROM pg_range WHERE rngtypid = t.oid OR rngmultitypid = t.oid), 0),
       ARRAY(SELECT a.atttypid FROM pg_attribute a
             WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum)
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE t.oid = $1`

func (c *catalog) load(ctx context.Context, oid uint32) (*pgType, error) {
	if t := c.types[oid]; t != nil {
		return t, nil
	}
	t := &pgType{oid: oid}
	var kind string
	var base, elem, sub uint32
	var fields []uint32
	err := c.conn.QueryRow(ctx, typeSQL, oid).Scan(&t.schema, &t.name, &kind, &t.array, &base, &elem, &t.text, &sub, &fields)
	if err != nil {
		return nil, fmt.Errorf("read type %d: %w", oid, err)
	}
	t.kind = kind[0]
	c.types[oid] = t
	follow := func(oid uint32) *pgType {
		if oid == 0 || err != nil {
			return nil
		}
		var u *pgType
		u, err = c.load(ctx, oid)
		return u
	}
	t.base, t.elem, t.subtype = follow(base), follow(elem), follow(sub)
	for _, f := range fields {
		t.fields = append(t.fields, follow(f))
	}
	if err != nil {
		delete(c.types, oid)
		return nil, err
	}
	t.rewrite = t.holdsOIDs()
	return t, nil
}

func (t *pgType) holdsOIDs() bool {
	inner := func(u *pgType) bool { return u != nil && (u.oid >= firstOwnOID || u.rewrite) }
	if inner(t.elem) {
		return true
	}
	for _, f := range t.fields {
		if inner(f) {
			return true
		}
	}
	return t.base != nil && t.base.rewrite || t.subtype != nil && t.subtype.rewrite
}

// localize returns b, a binary value of the type from another node, with that node's object ids replaced
// by this node's. The structure of the type must be the same on both; names were compared before. It
// follows array_send, record_send, range_send and multirange_send.
func (t *pgType) localize(b []byte) ([]byte, error) {
	if !t.rewrite {
		return b, nil
	}
	p := rewriter{out: make([]byte, 0, len(b)), in: b}
	p.value(t)
	if p.bad || len(p.in) != 0 {
		return nil, fmt.Errorf("%w: value of type %s.%s is not built as the type is here; make the type equal on both nodes",
			wire.ErrCorrupt, t.schema, t.name)
	}
	return p.out, nil
}

// rewriter copies in to out, changing object ids on the way.
type rewriter struct {
	out, in []byte
	bad     bool
}

func (p *rewriter) take(n int) []byte {
	if n < 0 || n > len(p.in) {
		p.bad, p.in = true, nil
		return nil
	}
	b := p.in[:n]
	p.in = p.in[n:]
	p.out = append(p.out, b...)
	return b
}

func (p *rewriter) int32() int {
	if b := p.take(4); b != nil {
		return int(int32(binary.BigEndian.Uint32(b)))
	}
	return 0
}

// oid replaces the object id at the front by that of t. One that is the same on all nodes must be t's.
func (p *rewriter) oid(t *pgType) {
	b := p.take(4)
	if b == nil {
		return
	}
	if remote := binary.BigEndian.Uint32(b); remote != t.oid && (remote < firstOwnOID || t.oid < firstOwnOID) {
		p.bad = true
		return
	}
	binary.BigEndian.PutUint32(p.out[len(p.out)-4:], t.oid)
}

// sized copies a length and a value of that length; -1 is NULL.
func (p *rewriter) sized(t *pgType) {
	n := p.int32()
	if n < 0 || p.bad {
		return
	}
	if n > len(p.in) {
		p.bad = true
		return
	}
	rest := p.in[n:]
	p.in = p.in[:n]
	p.value(t)
	p.bad = p.bad || len(p.in) != 0
	p.in = rest
}

func (p *rewriter) value(t *pgType) {
	t = t.root()
	switch {
	case !t.rewrite:
		p.take(len(p.in))
	case t.elem != nil:
		dims := p.int32()
		p.take(4)
		p.oid(t.elem)
		count := 1
		for range dims {
			count *= p.int32()
			p.take(4)
			if p.bad {
				return
			}
		}
		for i := 0; dims > 0 && i < count && !p.bad; i++ {
			p.sized(t.elem)
		}
	case t.kind == 'c':
		if p.int32() != len(t.fields) {
			p.bad = true
		}
		for _, f := range t.fields {
			if p.bad {
				return
			}
			p.oid(f)
			p.sized(f)
		}
	case t.kind == 'r':
		p.boundaries(t)
	case t.kind == 'm':
		for n := p.int32(); n > 0 && !p.bad; n-- {
			size := p.int32()
			if size < 0 || size > len(p.in) {
				p.bad = true
				return
			}
			rest := p.in[size:]
			p.in = p.in[:size]
			p.boundaries(t)
			p.in = rest
		}
	default:
		p.take(len(p.in))
	}
}

// boundaries copies one range: flags, then the bounds that they say are there (rangetypes.h).
func (p *rewriter) boundaries(t *pgType) {
	f := p.take(1)
	if f == nil {
		return
	}
	const empty, lowerInf, upperInf = 0x01, 0x08, 0x10
	if f[0]&empty != 0 {
		return
	}
	if f[0]&lowerInf == 0 {
		p.sized(t.subtype)
	}
	if f[0]&upperInf == 0 && !p.bad {
		p.sized(t.subtype)
	}
}
