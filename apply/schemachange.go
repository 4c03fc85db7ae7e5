package apply

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// A schema change reaches the nodes at different times, and transactions whose authors did not have it yet come after it. Which
// they are is exact, as long as the change was made through pgbridge.ddl: it holds its tables' locks when it commits, at the node
// where it was made first and, with its marker in the WAL, everywhere else (ddl.go). So a transaction wrote a table as it was before
// the change if and only if it does not declare the change in up, or comes before it in its own origin. There is one exception: a
// node whose server or bridge ends between that marker and the COMMIT makes the change again later, and declares it before. As long
// as an author declares a change and is not known to have it (low), the columns of what he wrote are looked at, too. What rows mean
// under the schema of now, lag says.

// schemaChange is a change of the schema that was made here.
type schemaChange struct {
	id     int64
	origin origin.Origin
	seq    atomic.Uint64 // 0: made here, and not published yet, so that nobody else has it
	xid    uint32        // of the transaction here
	tables []tableChange
}

// tableChange is what a schema change did to one table.
type tableChange struct {
	Schema  string             `json:"schema"`
	Name    string             `json:"name"`
	Dropped bool               `json:"dropped"`
	Renamed map[string]*string `json:"renamed"` // nil: dropped
	Added   map[string]*string `json:"added"`   // with the text of what rows have there that were there before
}

// schemaChanges are those that were made here, shared by the workers.
type schemaChanges struct {
	mu  sync.Mutex
	own origin.Origin
	all []*schemaChange // by id
	// told are own transactions, by their ids, that capture has met and that are not noted in the table yet.
	told map[uint32]uint64
}

// generationSQL is the number of the last change. A position may move only under the generation under which the transaction was
// planned: whatever it has written was written before a later change, which waits for its locks, or else is looked at again.
const generationSQL = "(SELECT coalesce(max(d.id), 0) FROM pgbridge.ddl d)"

// read takes in the changes that were committed behind the last that is known, and returns the number of the last one.
func (s *schemaChanges) read(ctx context.Context, conn *pgx.Conn) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := int64(0)
	if n := len(s.all); n > 0 {
		last = s.all[n-1].id
	}
	rows, err := conn.Query(ctx, `SELECT id, origin, epoch, coalesce(seq, 0), (xid::text::bigint & 4294967295), changes::text FROM pgbridge.ddl WHERE id > $1 ORDER BY id`, last)
	if err != nil {
		return 0, fmt.Errorf("read schema changes: %w", explain(err))
	}
	var id, epoch, seq, xid int64
	var node, changes string
	_, err = pgx.ForEachRow(rows, []any{&id, &node, &epoch, &seq, &xid, &changes}, func() error {
		c := &schemaChange{id: id, origin: origin.Origin{Node: node, Epoch: uint32(epoch)}, xid: uint32(xid)}
		if c.seq.Store(uint64(seq)); seq == 0 && c.origin == s.own {
			c.seq.Store(s.told[c.xid])
		}
		if err := json.Unmarshal([]byte(changes), &c.tables); err != nil {
			return fmt.Errorf("changes of number %d: %w", id, err)
		}
		s.all = append(s.all, c)
		last = id
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read schema changes: %w", explain(err))
	}
	return last, nil
}

// meet notes the seq of an own transaction that changed the schema.
func (s *schemaChanges) meet(seq uint64, xid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told[xid] = seq
	for _, c := range s.all {
		if c.origin == s.own && c.xid == xid && c.seq.Load() == 0 {
			c.seq.Store(seq)
		}
	}
}

// bound keeps seq below own schema changes that are not noted in the table yet: their frames must be there after a restart.
func (s *schemaChanges) bound(seq uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, told := range s.told {
		seq = min(seq, told-1)
	}
	return seq
}

// note writes the seqs of own schema changes down. Another time, if somebody is just making a change: others wait for conn.
func (s *schemaChanges) note(ctx context.Context, conn *pgx.Conn) error {
	s.mu.Lock()
	told := maps.Clone(s.told)
	s.mu.Unlock()
	for xid, seq := range told {
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `LOCK TABLE pgbridge.ddl IN ROW EXCLUSIVE MODE NOWAIT`)
			if err == nil {
				_, err = tx.Exec(ctx, `UPDATE pgbridge.ddl SET seq = $1 WHERE seq IS NULL AND origin = $2 AND epoch = $3
					AND (xid::text::bigint & 4294967295) = $4`, int64(seq), s.own.Node, int64(s.own.Epoch), int64(xid))
			}
			return err
		})
		if hasCode(err, "55P03") {
			return nil
		}
		if err != nil {
			return fmt.Errorf("note schema changes: %w", err)
		}
		s.mu.Lock()
		delete(s.told, xid)
		s.mu.Unlock()
	}
	return nil
}

// since returns the changes behind the first n.
func (s *schemaChanges) since(n int) []*schemaChange {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.all[n:])
}

// seenBy reports whether the author of t had the change.
func (c *schemaChange) seenBy(t *txn) bool {
	seq := c.seq.Load()
	if c.origin == t.origin {
		return t.Seq >= seq
	}
	return seq != 0 && t.up.Covers(c.origin, seq)
}

// sameSchema is the condition that the schema is that under which was planned.
func (w *worker) sameSchema() string {
	return fmt.Sprintf(" AND %s = %d", generationSQL, w.generation)
}

// refresh takes in schema changes that were made since, if there may be some.
func (w *worker) refresh(ctx context.Context) error {
	if !w.stale || w.schema == nil {
		return nil
	}
	w.catalog.mu.Lock()
	generation, err := w.schema.read(ctx, w.catalog.conn)
	w.catalog.mu.Unlock()
	if err != nil {
		return err
	}
	if w.stale = false; generation != w.generation {
		w.adopt(generation)
	}
	return nil
}

// adopt has everything planned under another generation.
func (w *worker) adopt(generation int64) {
	fresh := w.schema.since(w.known)
	w.generation, w.known, w.lacking = generation, w.known+len(fresh), append(w.lacking, fresh...)
	w.forgetMappings()
	w.stale = false
	if w.positionStatement != nil {
		w.retired.combined = append(w.retired.combined, w.positionStatement, w.bundleStatement)
	}
	w.movingStatements()
}

// schemaChanged reports whether the schema has changed since the worker planned last.
func (w *worker) schemaChanged(ctx context.Context) (bool, error) {
	before := w.generation
	w.stale = true
	err := w.refresh(ctx)
	return err == nil && w.generation != before, err
}

// lag are the schema changes that were made here and that the author of a transaction did not have, or may not have had, in the
// order in which they were made here.
type lag []lacked

type lacked struct {
	*schemaChange
	maybe bool // he declares it
}

// lagOf returns what the author of t did not have.
func (w *worker) lagOf(t *txn) lag {
	if w.schema == nil {
		return nil
	}
	list := w.lacking
	if t.parked != 0 { // an old one
		list = w.schema.since(0)
	}
	var l lag
	for _, c := range list {
		if !c.certainFor(t) {
			l = append(l, lacked{c, c.seenBy(t)})
		}
	}
	return l
}

// outgrow forgets the changes that t's author certainly had: his later transactions have them, too. All in front of t have landed;
// what is planned ahead may have to be planned again.
func (w *worker) outgrow(t *txn) {
	w.lacking = slices.DeleteFunc(w.lacking, func(c *schemaChange) bool { return c.certainFor(t) })
}

// certainFor reports whether the author of t certainly had the change.
func (c *schemaChange) certainFor(t *txn) bool {
	seq := c.seq.Load()
	if c.origin == t.origin {
		return t.Seq >= seq
	}
	return seq != 0 && t.low.Covers(c.origin, seq)
}

// about returns what of the changes concerns one table.
func (l lag) about(schema, name string) lag {
	var some lag
	for _, c := range l {
		if slices.ContainsFunc(c.tables, func(t tableChange) bool { return t.Schema == schema && t.Name == name }) {
			some = append(some, c)
		}
	}
	return some
}

// drops reports whether the table that the author knew is gone; there may be another one of its name.
func (l lag) drops(r *wire.Relation) bool {
	for _, c := range l {
		for _, t := range c.tables {
			if !c.maybe && t.Dropped && t.Schema == r.Schema && t.Name == r.Name {
				return true
			}
		}
	}
	return false
}

// adapted is a relation as the local schema has it: columns bear the names of now, those that are gone none, and those that
// the author lacks follow, with the values that its rows have there.
func (l lag) adapted(r *wire.Relation, local *table) (*wire.Relation, []wire.Value) {
	a := *r
	a.Columns = slices.Clone(r.Columns)
	var fills []wire.Value
	for n, c := range l {
		for _, t := range c.tables {
			if t.Schema == r.Schema && t.Name == r.Name && (!c.maybe || t.lackedBy(r, l[n+1:])) {
				fills = t.adapt(&a, fills)
			}
		}
	}
	// What was added and is gone again is no value.
	kept := a.Columns[:len(r.Columns)]
	values := fills[:0]
	for i, col := range a.Columns[len(r.Columns):] {
		at := slices.IndexFunc(local.cols, func(c column) bool { return c.name == col.Name })
		if at < 0 || local.cols[at].generated {
			continue
		}
		root := local.cols[at].typ.root()
		col.TypeOID, col.TypeSchema, col.TypeName = root.oid, root.schema, root.name
		kept, values = append(kept, col), append(values, fills[i])
	}
	a.Columns = kept
	return &a, values
}

// lackedBy reports whether a relation looks as if its author had not had the change: it has what the change takes away, or lacks
// what it adds. What later changes do to these names is left to what the author declares.
func (t *tableChange) lackedBy(r *wire.Relation, later lag) bool {
	has := func(name string) bool {
		return slices.ContainsFunc(r.Columns, func(c wire.Column) bool { return c.Name == name })
	}
	for _, c := range later {
		for _, x := range c.tables {
			for name := range x.Added {
				if _, again := t.Renamed[name]; again {
					return false
				}
			}
			for name := range x.Renamed {
				if _, gone := t.Added[name]; gone {
					return false
				}
			}
		}
	}
	for name := range t.Renamed {
		if has(name) {
			return true
		}
	}
	for name := range t.Added {
		if !has(name) {
			return true
		}
	}
	return false
}

// adapt applies one change to the columns; fills are the values of those that the author lacked.
func (t *tableChange) adapt(r *wire.Relation, fills []wire.Value) []wire.Value {
	for i := range r.Columns {
		name, ok := t.Renamed[r.Columns[i].Name]
		switch {
		case !ok:
		case name == nil:
			r.Columns[i].Name = ""
		default:
			r.Columns[i].Name = *name
		}
	}
	names := make([]string, 0, len(t.Added))
	for name := range t.Added {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if slices.ContainsFunc(r.Columns, func(c wire.Column) bool { return c.Name == name }) {
			continue // it was added on both nodes
		}
		v := wire.Value{Format: wire.Null}
		if text := t.Added[name]; text != nil {
			v = wire.Value{Format: wire.Text, Data: []byte(*text)}
		}
		r.Columns, fills = append(r.Columns, wire.Column{Name: name, Typmod: -1}), append(fills, v)
	}
	return fills
}

// fill completes a new row with what its author lacked.
func (m *mapping) fill(c *wire.Change) {
	if len(m.fills) > 0 && len(c.New) > 0 {
		c.New = append(c.New, m.fills...)
	}
}

// withoutDropped leaves out of a change what is of tables that are gone since its author wrote it; false if nothing is left.
func (l lag) withoutDropped(rec wire.Record, relations map[uint32]*wire.Relation) (wire.Record, bool, error) {
	return without(rec, relations, l.drops)
}
