package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// errUnknown means that a decision needs what capture has not read yet: roll back, wait for it, look
// again (PROOF.md R4, R13).
var errUnknown = errors.New("capture has not read this yet")

// carefulTries bounds how often a transaction is run again before its origin is said to wait. Each time
// something that was unknown has become known, so that the bound is met only by a server error that
// comes back.
const carefulTries = 8

// carefulRun is one transaction on the careful path.
type carefulRun struct {
	*worker
	t *txn
	// waited: capture has passed a point of the WAL that lies behind the first look, and everything
	// that it has read is visible here.
	waited bool
	known  map[uint32]bool // local writers seen before the last wait: capture has read them
	unsure map[uint32]bool // local writers seen since
	// Of one attempt:
	xmax   uint32 // ids from here on began behind the transaction's marker
	rows   map[wire.KeyHash]*rowState
	queue  []queued
	buried []wire.KeyHash
	wiped  []tableName
	parts  int
	losses int
}

// rowState is what an attempt knows of one key: first what the server shows, then what the attempt has
// decided and queued.
type rowState struct {
	look
	lost bool // the transaction's writes of this key have lost
	mine bool // the row, or its absence, is the transaction's own work
}

// queued is a statement that an attempt will execute, in order, when its window is full.
type queued struct {
	what string
	s    *statement
	ps   []param
}

// window is how many changes of a transaction are looked at and written in one go.
const window = 500

// carefully applies t row by row: it locks each row, looks at what is there, decides by the policy and
// records who lost. Only here does a conflict cost anything.
func (w *worker) carefully(ctx context.Context, t *txn) error {
	c := &carefulRun{worker: w, t: t, known: map[uint32]bool{}}
	var err error
	for range carefulTries {
		if err = c.attempt(ctx); err == nil {
			w.careful.Add(1)
			return nil
		}
		var pg *pgconn.PgError
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errUnknown):
		case errors.As(err, &pg) && !lost(err):
			clear(w.mappings) // the table may have changed under us
			if !passing(pg.Code) {
				return &Blocked{Reason: fmt.Sprintf("transaction %d of %s is refused by the server", t.Seq, w.origin), Err: err}
			}
		default:
			return err
		}
		if err := c.wait(ctx); err != nil {
			return err
		}
	}
	return &Blocked{Reason: fmt.Sprintf("transaction %d of %s is refused again and again", t.Seq, w.origin), Err: err}
}

// passing reports whether an error may go away by trying again: unique violation (a concurrent insert),
// division by zero (an assertion), serialization failure, deadlock, lock not available, and the ones
// that tell of a table that has just changed.
func passing(code string) bool {
	switch code {
	case "23505", "22012", "40001", "40P01", "55P03", "0A000", "42703", "42P01":
		return true
	}
	return false
}

// wait lets capture read everything that this server has committed so far, and that become visible.
func (c *carefulRun) wait(ctx context.Context) error {
	lsn, err := c.markers.flush(ctx)
	if err != nil {
		return err
	}
	if err := c.wal.WaitPassed(ctx, lsn); err != nil {
		return err
	}
	for x := range c.unsure {
		c.known[x] = true
	}
	c.waited = true
	return c.visible(ctx)
}

// visible waits until every local transaction that capture has read is visible here: one that waits for
// a synchronous standby may be on every other node already (PROOF.md F2, R14).
func (c *carefulRun) visible(ctx context.Context) error {
	ids := c.wal.RecentXIDs()
	if len(ids) == 0 {
		return nil
	}
	running := make([]int64, len(ids))
	for i, x := range ids {
		running[i] = int64(x)
	}
	for {
		var hidden int
		err := c.conn.QueryRow(ctx, `
			WITH s AS MATERIALIZED (SELECT pg_current_snapshot() AS s),
			     r AS (SELECT (x::text::numeric % 4294967296)::int8 AS id FROM s, pg_snapshot_xip(s) x)
			SELECT count(*) FROM r WHERE id = ANY ($1::int8[])`, running).Scan(&hidden)
		if err != nil {
			return fmt.Errorf("read snapshot: %w", err)
		}
		if hidden == 0 {
			return nil
		}
		c.say(fmt.Sprintf("transaction %d waits for %d local commits that wait for a synchronous standby", c.t.Seq, hidden))
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// attempt runs the whole transaction once. Unless it returns nil, nothing of it is left.
func (c *carefulRun) attempt(ctx context.Context) (err error) {
	h, err := c.claim()
	if err != nil {
		return err
	}
	if err := c.locks.lock(ctx, h); err != nil {
		return err
	}
	marked, err := c.markers.announce(ctx, c.t.entry())
	if err != nil {
		return err
	}
	select {
	case r := <-marked:
		if r.err != nil {
			return r.err
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() {
		if err != nil {
			c.locks.release(h)
			c.absence.withdraw(c.origin, c.t.Seq)
		}
	}()
	c.rows, c.unsure, c.queue = map[wire.KeyHash]*rowState{}, map[uint32]bool{}, c.queue[:0]
	c.buried, c.wiped, c.parts, c.losses = nil, nil, 0, 0
	tx, err := c.conn.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	if err := c.changes(ctx); err != nil {
		if rerr := tx.Rollback(ctx); rerr != nil {
			return errors.Join(err, rerr)
		}
		return err
	}
	c.inbox.take()
	if err := tx.Commit(ctx); err != nil {
		c.inbox.rewind()
		return fmt.Errorf("commit: %w", err)
	}
	for _, n := range c.wiped {
		c.absence.truncate(tombstone{c.t.version(), c.t.Seq}, n)
	}
	c.conflicts.Add(uint64(c.losses))
	c.land(&landing{t: c.t, held: h, tomb: tombstone{c.t.version(), c.t.Seq}, buried: c.buried})
	return nil
}

// claim lists every key that the transaction touches (PROOF.md R21). A large one takes them all.
func (c *carefulRun) claim() (*held, error) {
	h := &held{origin: c.origin, whole: c.t.run != nil}
	if h.whole {
		return h, nil
	}
	err := c.each(func(rec wire.Record, m *mapping, ch *wire.Change) error {
		if m == nil {
			h.whole, h.keys = true, nil
			return nil
		}
		for _, tuple := range [][]wire.Value{ch.Old, ch.New} {
			if len(tuple) > 0 && !h.whole {
				k, err := c.planner.hash(m, tuple)
				if err != nil {
					return err
				}
				h.keys = append(h.keys, k)
			}
		}
		return nil
	}, func([]*mapping) error { h.whole, h.keys = true, nil; return nil })
	return h, err
}

// each walks the transaction's changes; the change is valid during the call only.
func (c *carefulRun) each(row func(wire.Record, *mapping, *wire.Change) error, truncate func([]*mapping) error) error {
	changes, err := newChanges(c.t)
	if err != nil {
		return err
	}
	var ch wire.Change
	for {
		rec, relations, err := changes.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if rec.Kind == wire.KindTruncate {
			_, ids, err := wire.ParseTruncate(rec.Payload)
			if err != nil {
				return err
			}
			var ms []*mapping
			for _, id := range ids {
				m, err := c.mapping(relations[id], id)
				if err != nil {
					return err
				}
				ms = append(ms, m)
			}
			if err := truncate(ms); err != nil {
				return err
			}
			continue
		}
		if err := ch.Parse(rec); err != nil {
			return err
		}
		m, err := c.mapping(relations[ch.Relation], ch.Relation)
		if err != nil {
			return err
		}
		m.readable(&ch)
		if err := row(rec, m, &ch); err != nil {
			return err
		}
	}
}

// changes does all the transaction's changes within the open transaction, then the position.
func (c *carefulRun) changes(ctx context.Context) error {
	var xmax int64
	if err := c.conn.QueryRow(ctx, `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8`).Scan(&xmax); err != nil {
		return fmt.Errorf("read snapshot: %w", err)
	}
	c.xmax = uint32(xmax)
	var pending []step
	err := c.each(func(_ wire.Record, m *mapping, ch *wire.Change) error {
		pending = append(pending, copyStep(m, ch))
		if len(pending) < window {
			return nil
		}
		defer func() { pending = pending[:0] }()
		return c.steps(ctx, pending)
	}, func(ms []*mapping) error {
		if err := c.steps(ctx, pending); err != nil {
			return err
		}
		pending = pending[:0]
		for _, m := range ms {
			if err := c.truncate(ctx, m); err != nil {
				return err
			}
		}
		clear(c.rows)
		return nil
	})
	if err == nil {
		err = c.steps(ctx, pending)
	}
	if err != nil {
		return err
	}
	c.bury()
	t := c.t
	c.push("move position", c.positionStatement, []param{
		int64Param(int64(t.Seq)), int64Param(int64(t.Stamp)), int64Param(int64(t.resume)), int64Param(int64(t.Stamp))})
	return c.flush(ctx)
}

// step is one change with its keys, in memory of its own.
type step struct {
	m        *mapping
	ch       wire.Change
	from, to wire.KeyHash // the key before and after; equal unless an update moves the row
}

func copyStep(m *mapping, ch *wire.Change) step {
	clone := func(t []wire.Value) []wire.Value {
		out := make([]wire.Value, len(t))
		for i, v := range t {
			out[i] = wire.Value{Format: v.Format, Data: append([]byte(nil), v.Data...)}
		}
		return out
	}
	return step{m: m, ch: wire.Change{Kind: ch.Kind, Relation: ch.Relation, OldFull: ch.OldFull, Old: clone(ch.Old), New: clone(ch.New)}}
}

// before is the tuple that holds the row's key before the change.
func (s *step) before() []wire.Value {
	if len(s.ch.Old) > 0 {
		return s.ch.Old
	}
	return s.ch.New
}

// steps looks at the rows of a window's changes, all at once, then decides one after the other.
func (c *carefulRun) steps(ctx context.Context, pending []step) error {
	for i := range pending {
		s := &pending[i]
		if s.ch.Kind != wire.KindInsert && !s.m.usable {
			return s.m.needsKey()
		}
		if s.ch.Kind == wire.KindUpdate {
			fillUnchanged(&s.ch)
		}
		var err error
		if s.from, err = c.planner.hash(s.m, s.before()); err != nil {
			return err
		}
		s.to = s.from
		if s.ch.Kind == wire.KindUpdate {
			if s.to, err = c.planner.hash(s.m, s.ch.New); err != nil {
				return err
			}
		}
	}
	c.register(pending)
	unknown, err := c.lookAll(ctx, pending)
	if err != nil {
		return err
	}
	if unknown {
		return errUnknown
	}
	for i := range pending {
		if err := c.step(ctx, &pending[i]); err != nil {
			return err
		}
	}
	return c.flush(ctx)
}

// register says which rows the transaction may create, before it looks at anything (R18).
func (c *carefulRun) register(pending []step) {
	for i := range pending {
		s := &pending[i]
		if s.ch.Kind != wire.KindDelete {
			c.absence.create(s.m.name(), s.to, registration{c.origin, c.t.Seq}, c.t.version())
		}
	}
}

func (m *mapping) name() tableName { return tableName{m.local.schema, m.local.name} }

// step does one change. A changed key is a delete of the old one and an insert of the new one (R31).
func (c *carefulRun) step(ctx context.Context, s *step) error {
	switch {
	case s.ch.Kind == wire.KindInsert:
		return c.write(s.m, s.ch.New, s.to, conflict.Insert)
	case s.ch.Kind == wire.KindDelete:
		return c.remove(s.m, s.ch.Old, s.from)
	case c.rows[s.from] == c.rows[s.to]:
		return c.write(s.m, s.ch.New, s.to, conflict.Update)
	}
	if hasUnchanged(s.ch.New) && c.rows[s.from].found {
		if err := c.trueBase(s.m, c.rows[s.from], s.from); errors.Is(err, errUnknown) {
			return err
		} else if err == nil {
			if err := c.fillFrom(ctx, s.m, &s.ch); err != nil {
				return err
			}
		}
	}
	if err := c.remove(s.m, s.ch.Old, s.from); err != nil {
		return err
	}
	return c.write(s.m, s.ch.New, s.to, conflict.Insert)
}

// write lets the transaction's version of a row meet what is there.
func (c *carefulRun) write(m *mapping, tuple []wire.Value, k wire.KeyHash, kind conflict.Write) error {
	r := c.rows[k]
	if r.lost {
		return nil
	}
	d := conflict.Decision{RemoteWins: true}
	if !r.mine {
		d = c.policy(conflict.Case{Write: kind, Remote: c.t.version(), Local: r.local, Seen: r.seen})
	}
	if !d.RemoteWins {
		r.lost = true
		return c.record(m, tuple, r.look, d)
	}
	if hasUnchanged(tuple) {
		if err := c.trueBase(m, r, k); err != nil {
			return err
		}
	}
	if err := c.record(m, tuple, r.look, d); err != nil {
		return err
	}
	found := r.found
	r.found, r.mine = true, true
	if found {
		return c.overwrite(m, tuple)
	}
	return c.change(m, m.statement("ki", m.insertSQL), tuple, m.insertSet(), nil)
}

// overwrite queues the statement that makes the row of tuple's key look like tuple; the key too, since a
// key may be equal and look different.
func (c *carefulRun) overwrite(m *mapping, tuple []wire.Value) error {
	set := m.set(nil, tuple, true)
	if len(m.always) == 0 && m.writable(set, false) {
		s := m.statement("ku"+shape(set), func() (string, []uint32) { return m.updateSQL(set, nil) })
		return c.change(m, s, tuple, set, tuple)
	}
	set = slices.DeleteFunc(m.insertSet(), func(i int) bool { return tuple[i].Format == wire.Unchanged })
	s := m.statement("kr"+shape(set), func() (string, []uint32) { return m.replaceSQL(set) })
	return c.change(m, s, tuple, set, tuple)
}

func hasUnchanged(tuple []wire.Value) bool {
	for _, v := range tuple {
		if v.Format == wire.Unchanged {
			return true
		}
	}
	return false
}

// trueBase checks that the row's unchanged TOAST values are those of the transaction's author (R16).
func (c *carefulRun) trueBase(m *mapping, r *rowState, k wire.KeyHash) error {
	if r.mine && r.found {
		return nil
	}
	if c.unsettled(m, k, c.t) {
		return errUnknown
	}
	if r.found && (r.local.Ancient || r.own || c.t.low.Get(r.local.Version.Origin).Stamp >= r.local.Version.Stamp) {
		return nil
	}
	return blocked("transaction %d leaves a large value of table %s unchanged that another node has changed at the same time; "+
		"such values only come along with ALTER TABLE %s REPLICA IDENTITY FULL", c.t.Seq, m.local.quoted, m.local.quoted)
}

// insertSet lists the remote columns that an insert writes.
func (m *mapping) insertSet() []int {
	var set []int
	for i, li := range m.cols {
		if li >= 0 {
			set = append(set, i)
		}
	}
	return set
}

// remove lets the transaction's delete meet what is there.
func (c *carefulRun) remove(m *mapping, old []wire.Value, k wire.KeyHash) error {
	r := c.rows[k]
	if r.lost {
		return nil
	}
	d := conflict.Decision{RemoteWins: true}
	if !r.mine {
		d = c.policy(conflict.Case{Write: conflict.Delete, Remote: c.t.version(), Local: r.local, Seen: r.seen})
	}
	if err := c.record(m, nil, r.look, d); err != nil {
		return err
	}
	if !d.RemoteWins {
		r.lost = true
		return nil
	}
	c.buried = append(c.buried, k)
	found := r.found
	r.found, r.mine = false, true
	if !found {
		return nil
	}
	s := m.statement("kd", func() (string, []uint32) { return m.deleteSQL(nil) })
	return c.change(m, s, nil, nil, old)
}

// change queues a statement for one row: the columns of set from tuple, then the key from old.
func (c *carefulRun) change(m *mapping, s *statement, tuple []wire.Value, set []int, old []wire.Value) error {
	var ps []param
	for _, i := range set {
		p, err := m.param(i, tuple[i])
		if err != nil {
			return err
		}
		ps = append(ps, p)
	}
	if old != nil {
		for _, i := range m.key {
			p, err := m.param(i, old[i])
			if err != nil {
				return err
			}
			ps = append(ps, p)
		}
	}
	c.push("table "+m.local.quoted, s, ps)
	return nil
}

func (c *carefulRun) push(what string, s *statement, ps []param) {
	c.queue = append(c.queue, queued{what, s, ps})
}

// ready prepares a statement of the careful path, if it is not yet.
func (w *worker) prepared(ctx context.Context, s *statement) error {
	if s.ready {
		return nil
	}
	w.named++
	s.name = fmt.Sprintf("k%d", w.named)
	if _, err := w.conn.PgConn().Prepare(ctx, s.name, s.sql, s.types); err != nil {
		return err
	}
	s.sent, s.ready = true, true
	return nil
}

// query runs a prepared statement and returns its rows as text.
func (w *worker) query(ctx context.Context, s *statement, ps []param) ([][][]byte, error) {
	if err := w.prepared(ctx, s); err != nil {
		return nil, err
	}
	values, formats := raw(ps)
	r := w.conn.PgConn().ExecPrepared(ctx, s.name, values, formats, nil).Read()
	return r.Rows, r.Err
}

// flush executes what is queued, in one round trip.
func (c *carefulRun) flush(ctx context.Context) error {
	if len(c.queue) == 0 {
		return nil
	}
	batch := &pgconn.Batch{}
	for _, q := range c.queue {
		if err := c.prepared(ctx, q.s); err != nil {
			return fmt.Errorf("%s: %w", q.what, err)
		}
		values, formats := raw(q.ps)
		batch.ExecPrepared(q.s.name, values, formats, nil)
	}
	r := c.conn.PgConn().ExecBatch(ctx, batch)
	n := 0
	for r.NextResult() {
		if _, err := r.ResultReader().Close(); err != nil {
			break
		}
		n++
	}
	if err := r.Close(); err != nil {
		return fmt.Errorf("%s: %w", c.queue[min(n, len(c.queue)-1)].what, err)
	}
	c.queue = c.queue[:0]
	return nil
}

func raw(ps []param) (values [][]byte, formats []int16) {
	values, formats = make([][]byte, len(ps)), make([]int16, len(ps))
	for i, p := range ps {
		formats[i] = int16(p.format)
		if !p.null {
			if values[i] = p.value; values[i] == nil {
				values[i] = []byte{}
			}
		}
	}
	return values, formats
}

// exec runs one statement with parameters as they are and returns its rows as text.
func (w *worker) exec(ctx context.Context, sql string, types []uint32, ps []param) ([][][]byte, error) {
	values, formats := raw(ps)
	r := w.conn.PgConn().ExecParams(ctx, sql, values, types, formats, nil).Read()
	return r.Rows, r.Err
}

// look is what stands at this node for one key.
type look struct {
	local conflict.Local
	found bool
	seen  bool   // the transaction's author had, or may have had, seen it
	own   bool   // written by the transaction's own origin
	image []byte // the row as JSON, if found
}

const (
	lookColumns = `t.xmin::text, c.timestamp IS NULL,
		COALESCE((extract(epoch FROM c.timestamp) * 1000000)::int8, 0), COALESCE(c.roident, 0), to_jsonb(t.*), t.tableoid::text || t.ctid::text`
	lookVersion = `LATERAL pg_xact_commit_timestamp_origin(t.xmin) c`
)

// lookAll locks the rows of all keys in pending that were not looked at before, and finds out their
// versions; it reports whether capture must read on before something can be decided.
func (c *carefulRun) lookAll(ctx context.Context, pending []step) (unknown bool, err error) {
	groups := map[*mapping]*keyGroup{}
	var order []*mapping
	want := func(m *mapping, tuple []wire.Value, k wire.KeyHash) {
		if c.rows[k] != nil {
			return
		}
		g := groups[m]
		if g == nil {
			g = &keyGroup{}
			groups[m], order = g, append(order, m)
		}
		g.hashes, g.tuples = append(g.hashes, k), append(g.tuples, tuple)
		c.rows[k] = &rowState{}
	}
	for i := range pending {
		s := &pending[i]
		want(s.m, s.before(), s.from)
		if s.to != s.from {
			want(s.m, s.ch.New, s.to)
		}
	}
	for _, m := range order {
		g := groups[m]
		found, err := c.fetch(ctx, m, g)
		if err != nil {
			return false, err
		}
		places := map[string]*rowState{}
		for i, k := range g.hashes {
			l, err := c.judge(m, k, found[i])
			if errors.Is(err, errUnknown) {
				unknown = true
			} else if err != nil {
				return false, err
			}
			c.rows[k].look = l
			if place := string(last(found[i])); l.found && places[place] != nil {
				c.rows[k] = places[place] // equal keys that do not look the same: citext, a collation
			} else {
				places[place] = c.rows[k]
			}
		}
	}
	return unknown, nil
}

func last(row [][]byte) []byte {
	if len(row) == 0 {
		return nil
	}
	return row[len(row)-1]
}

func (c *carefulRun) judge(m *mapping, k wire.KeyHash, row [][]byte) (look, error) {
	if row == nil {
		return c.absent(m, k)
	}
	return c.present(row, k)
}

// keyGroup are the keys of one table that a window touches.
type keyGroup struct {
	hashes []wire.KeyHash
	tuples [][]wire.Value
}

// fetch locks the rows of a group and returns, by place in it, what stands there. First the lock, then a
// look with a new snapshot: what a locking query itself returns of functions may belong to the version
// before the lock wait.
func (c *carefulRun) fetch(ctx context.Context, m *mapping, g *keyGroup) (map[int][][]byte, error) {
	found := map[int][][]byte{}
	if !m.runs(nil) || !g.binary(m) {
		return found, c.fetchSingly(ctx, m, g, found)
	}
	var ps []param
	for _, i := range m.key {
		var a array
		a.reset()
		for _, t := range g.tuples {
			p, err := m.param(i, t[i])
			if err != nil {
				return nil, err
			}
			a.add(p.value, p.null)
		}
		ps = append(ps, binaryParam(a.value(m.local.cols[m.cols[i]].param())))
	}
	lock := m.statement("kl", func() (string, []uint32) { return m.keysSQL("SELECT 1 FROM ", "", " ORDER BY v.n FOR UPDATE OF t") })
	if _, err := c.query(ctx, lock, ps); err != nil {
		return nil, fmt.Errorf("lock rows of %s: %w", m.local.quoted, err)
	}
	at := m.statement("kv", func() (string, []uint32) { return m.keysSQL("SELECT v.n, "+lookColumns+" FROM ", ", "+lookVersion, "") })
	rows, err := c.query(ctx, at, ps)
	if err != nil {
		return nil, fmt.Errorf("look at rows of %s: %w", m.local.quoted, err)
	}
	for _, r := range rows {
		n, err := strconv.Atoi(string(r[0]))
		if err != nil {
			return nil, fmt.Errorf("look at rows of %s: %w", m.local.quoted, err)
		}
		found[n-1] = r[1:]
	}
	return found, nil
}

// keysSQL builds a query over the rows t whose keys are given as arrays, with their place v.n in them.
func (m *mapping) keysSQL(query, from, end string) (string, []uint32) {
	var types []uint32
	var args, names, where []string
	for n, k := range m.local.key {
		col := &m.local.cols[k]
		types = append(types, col.typ.root().array)
		args, names = append(args, fmt.Sprintf("$%d", n+1)), append(names, fmt.Sprintf("k%d", n+1))
		where = append(where, fmt.Sprintf("%s %s v.k%d", col.compared(), col.equals, n+1))
	}
	return fmt.Sprintf("%sunnest(%s) WITH ORDINALITY v(%s, n), %s t%s WHERE %s%s", query,
		strings.Join(args, ", "), strings.Join(names, ", "), m.local.quoted, from, strings.Join(where, " AND "), end), types
}

func (g *keyGroup) binary(m *mapping) bool {
	for _, t := range g.tuples {
		if !allBinary(t, m.key) {
			return false
		}
	}
	return true
}

// fetchSingly is fetch for keys whose type cannot travel in arrays.
func (c *carefulRun) fetchSingly(ctx context.Context, m *mapping, g *keyGroup, found map[int][][]byte) error {
	for i, tuple := range g.tuples {
		where, types, ps, err := m.keyCondition(tuple)
		if err != nil {
			return err
		}
		if _, err := c.exec(ctx, "SELECT 1 FROM "+m.local.rows+" t WHERE "+where+" FOR UPDATE", types, ps); err != nil {
			return fmt.Errorf("lock row of %s: %w", m.local.quoted, err)
		}
		rows, err := c.exec(ctx, "SELECT "+lookColumns+" FROM "+m.local.rows+" t, "+lookVersion+" WHERE "+where, types, ps)
		if err != nil {
			return fmt.Errorf("look at row of %s: %w", m.local.quoted, err)
		}
		if len(rows) > 0 {
			found[i] = rows[0]
		}
	}
	return nil
}

func (m *mapping) keyCondition(tuple []wire.Value) (string, []uint32, []param, error) {
	var types []uint32
	var ps []param
	where := ""
	for n, i := range m.key {
		p, err := m.param(i, tuple[i])
		if err != nil {
			return "", nil, nil, err
		}
		c := &m.local.cols[m.cols[i]]
		ps, types = append(ps, p), append(types, c.param())
		if n > 0 {
			where += " AND "
		}
		where += fmt.Sprintf("%s %s $%d", c.compared(), c.equals, n+1)
	}
	return where, types, ps, nil
}

// absent concludes from "no row" only after capture has read every local delete that could be the
// reason (R13, R14); then the tombstones know (R17).
func (c *carefulRun) absent(m *mapping, k wire.KeyHash) (look, error) {
	if !c.waited {
		return look{}, errUnknown
	}
	d, ok := c.absence.tombstone(m.name(), k)
	if !ok {
		return look{local: conflict.Local{Absent: true}}, nil
	}
	return look{local: conflict.Local{Version: d.Version, Deleted: true}, seen: c.t.up.Covers(d.Origin, d.seq)}, nil
}

func (c *carefulRun) present(row [][]byte, k wire.KeyHash) (look, error) {
	l := look{found: true, image: append([]byte(nil), row[4]...)}
	var xmin, id uint32
	var unknown string
	var micros int64
	if _, err := fmt.Sscan(fmt.Sprintf("%s %s %s %s", row[0], row[1], row[2], row[3]), &xmin, &unknown, &micros, &id); err != nil {
		return l, fmt.Errorf("read row version: %w", err)
	}
	stamp := origin.StampOf(time.UnixMicro(micros))
	switch {
	case unknown == "t":
		l.local.Ancient = true
		return l, nil
	case id == 0:
		return c.local(l, xmin, stamp, k)
	}
	o, ok := c.originOf(id)
	if !ok {
		return l, blocked("a row was written under replication origin %d, which is not pgbridge's; "+
			"replicate the table by pgbridge or by another system, not by both", id)
	}
	l.local.Version = origin.Version{Stamp: stamp, Origin: o}
	l.own = id == c.id
	l.seen = l.own || stamp <= c.t.up.Get(o).Stamp && c.t.up.Seq(o) > 0
	return l, nil
}

// local finds the version of a row whose last writer is a local session (R15).
func (c *carefulRun) local(l look, xmin uint32, stamp origin.Stamp, k wire.KeyHash) (look, error) {
	if first := uint32(c.opts.FirstXID); int32(xmin-first) < 0 && c.xmax-first < 1<<31 {
		l.local.Ancient = true // before there was a slot: never captured
		return l, nil
	}
	l.local.Version.Origin = c.own
	if int32(xmin-c.xmax) >= 0 {
		// Its transaction began behind the marker that announced t: whatever its stamp will be, it
		// lies above t's (R5), and its author cannot have been seen by t's.
		l.local.Version.Stamp = max(stamp, c.t.Stamp+1)
		return l, nil
	}
	newest, ok := c.wal.MarkFor(1<<64 - 1)
	if !c.known[xmin] && !(ok && int32(xmin-uint32(newest)) < 0) {
		c.unsure[xmin] = true
		return l, errUnknown
	}
	l.local.Version.Stamp = c.wal.LocalStamp(stamp, k)
	e := c.t.up.Get(c.own)
	l.seen = e.Seq > 0 && l.local.Version.Stamp <= e.Stamp
	return l, nil
}

func (w *worker) originOf(id uint32) (origin.Origin, bool) {
	if id == w.id {
		return w.origin, true
	}
	for i, o := range w.guard.ids {
		if o == id {
			return w.guard.others[i], true
		}
	}
	return origin.Origin{}, false
}

// bury queues the transaction's tombstones (they go into the index when it has landed).
func (c *carefulRun) bury() {
	for rest := c.buried; len(rest) > 0; {
		n := min(len(rest), tombstoneRow)
		c.push("write tombstones", c.tombstoneStatement, c.tombstoneParams(c.t, c.parts, rest[:n]))
		c.parts++
		rest = rest[n:]
	}
	for i, n := range c.wiped {
		ps := c.tombstoneParams(c.t, -1-i, nil)
		ps[len(ps)-1] = binaryParam([]byte(n.schema + "\x00" + n.name))
		c.push("write tombstones", c.tombstoneStatement, ps)
	}
}

// fillFrom takes the values that an update of the key leaves unchanged from the row of the old key.
func (c *carefulRun) fillFrom(ctx context.Context, m *mapping, ch *wire.Change) error {
	if err := c.flush(ctx); err != nil {
		return err
	}
	where, types, ps, err := m.keyCondition(ch.Old)
	if err != nil {
		return err
	}
	for i := range ch.New {
		if ch.New[i].Format != wire.Unchanged || m.cols[i] < 0 {
			continue
		}
		sql := "SELECT t." + m.local.cols[m.cols[i]].quoted + " FROM " + m.local.rows + " t WHERE " + where
		rows, err := c.exec(ctx, sql, types, ps)
		if err != nil {
			return fmt.Errorf("read unchanged value of %s: %w", m.local.quoted, err)
		}
		if len(rows) == 1 {
			ch.New[i] = wire.Value{Format: wire.Text, Data: rows[0][0]}
			if rows[0][0] == nil {
				ch.New[i] = wire.Value{Format: wire.Null}
			}
		}
	}
	return nil
}
