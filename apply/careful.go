package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	lost   map[wire.KeyHash]bool
	buried []wire.KeyHash
	wiped  []tableName
	parts  int
	losses int
}

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
	c.lost, c.unsure = map[wire.KeyHash]bool{}, map[uint32]bool{}
	c.buried, c.wiped, c.parts, c.losses = nil, nil, 0, 0
	tx, err := c.conn.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	if err := c.rows(ctx); err != nil {
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
	c.say("")
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

// rows does all the transaction's changes within the open transaction, then the position.
func (c *carefulRun) rows(ctx context.Context) error {
	var xmax int64
	if err := c.conn.QueryRow(ctx, `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8`).Scan(&xmax); err != nil {
		return fmt.Errorf("read snapshot: %w", err)
	}
	c.xmax = uint32(xmax)
	unknown := false
	note := func(err error) error { // find out everything that is unknown in one attempt
		if errors.Is(err, errUnknown) {
			unknown = true
			return nil
		}
		return err
	}
	err := c.each(func(rec wire.Record, m *mapping, ch *wire.Change) error {
		return note(c.row(ctx, m, ch))
	}, func(ms []*mapping) error {
		for _, m := range ms {
			if err := note(c.truncate(ctx, m)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if unknown {
		return errUnknown
	}
	if err := c.bury(ctx); err != nil {
		return err
	}
	t := c.t
	_, err = c.exec(ctx, c.positionStatement.sql, c.positionStatement.types, []param{
		int64Param(int64(t.Seq)), int64Param(int64(t.Stamp)), int64Param(int64(t.resume)), int64Param(int64(t.Stamp))})
	if err != nil {
		return fmt.Errorf("move position to %d: %w", t.Seq, err)
	}
	return nil
}

// row does one change. A changed key is a delete of the old one and an insert of the new one (R31).
func (c *carefulRun) row(ctx context.Context, m *mapping, ch *wire.Change) error {
	old := ch.New
	if len(ch.Old) > 0 {
		old = ch.Old
	}
	if ch.Kind != wire.KindInsert && !m.usable {
		return m.needsKey()
	}
	if ch.Kind == wire.KindUpdate {
		fillUnchanged(ch)
	}
	k, err := c.planner.hash(m, old)
	if err != nil {
		return err
	}
	switch ch.Kind {
	case wire.KindInsert:
		return c.write(ctx, m, ch.New, k, conflict.Insert)
	case wire.KindDelete:
		return c.remove(ctx, m, ch.Old, k)
	}
	to, err := c.planner.hash(m, ch.New)
	if err != nil {
		return err
	}
	if to == k {
		return c.write(ctx, m, ch.New, k, conflict.Update)
	}
	if err := c.move(ctx, m, ch, k); err != nil {
		return err
	}
	return c.write(ctx, m, ch.New, to, conflict.Insert)
}

// move deletes the row of an old key; the values that the new row leaves unchanged come from it.
func (c *carefulRun) move(ctx context.Context, m *mapping, ch *wire.Change, k wire.KeyHash) error {
	l, err := c.look(ctx, m, ch.Old, k)
	if err != nil {
		return err
	}
	if l.found && c.trueBase(m, l, k) == nil {
		if err := c.fillFrom(ctx, m, ch); err != nil {
			return err
		}
	}
	return c.remove(ctx, m, ch.Old, k)
}

// write lets the transaction's version of a row meet what is there.
func (c *carefulRun) write(ctx context.Context, m *mapping, tuple []wire.Value, k wire.KeyHash, kind conflict.Write) error {
	if c.lost[k] {
		return nil
	}
	n := tableName{m.local.schema, m.local.name}
	c.absence.create(n, k, registration{c.origin, c.t.Seq}, c.t.version()) // first register, then look (R18)
	l, err := c.look(ctx, m, tuple, k)
	if err != nil {
		return err
	}
	d := c.policy(conflict.Case{Write: kind, Remote: c.t.version(), Local: l.local, Seen: l.seen})
	if !d.RemoteWins {
		c.lost[k] = true
		return c.record(ctx, m, tuple, l, d)
	}
	if hasUnchanged(tuple) {
		if err := c.trueBase(m, l, k); err != nil {
			return err
		}
	}
	if d.Conflict {
		if err := c.record(ctx, m, tuple, l, d); err != nil {
			return err
		}
	}
	if l.found {
		return c.overwrite(ctx, m, tuple)
	}
	sql, types := m.insertSQL()
	return c.change(ctx, m, sql, types, tuple, m.insertSet(), nil)
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
func (c *carefulRun) trueBase(m *mapping, l look, k wire.KeyHash) error {
	if c.unsettled(m, k, c.t) {
		return errUnknown
	}
	if l.found && (l.local.Ancient || l.own || c.t.low.Get(l.local.Version.Origin).Stamp >= l.local.Version.Stamp) {
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

func (c *carefulRun) overwrite(ctx context.Context, m *mapping, tuple []wire.Value) error {
	set := m.set(nil, tuple, false)
	sql, types := m.updateSQL(set, nil)
	return c.change(ctx, m, sql, types, tuple, set, tuple)
}

// remove lets the transaction's delete meet what is there.
func (c *carefulRun) remove(ctx context.Context, m *mapping, old []wire.Value, k wire.KeyHash) error {
	if c.lost[k] {
		return nil
	}
	l, err := c.look(ctx, m, old, k)
	if err != nil {
		return err
	}
	d := c.policy(conflict.Case{Write: conflict.Delete, Remote: c.t.version(), Local: l.local, Seen: l.seen})
	if !d.RemoteWins {
		c.lost[k] = true
		return c.record(ctx, m, nil, l, d)
	}
	c.buried = append(c.buried, k)
	if !l.found {
		return nil
	}
	if d.Conflict {
		if err := c.record(ctx, m, nil, l, d); err != nil {
			return err
		}
	}
	sql, types := m.deleteSQL(nil)
	return c.change(ctx, m, sql, types, nil, nil, old)
}

// change executes a statement for one row: the columns of set from tuple, then the key from old.
func (c *carefulRun) change(ctx context.Context, m *mapping, sql string, types []uint32, tuple []wire.Value, set []int, old []wire.Value) error {
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
	if _, err := c.exec(ctx, sql, types, ps); err != nil {
		return fmt.Errorf("table %s: %w", m.local.quoted, err)
	}
	return nil
}

// exec runs one statement with parameters as they are and returns its rows as text.
func (w *worker) exec(ctx context.Context, sql string, types []uint32, ps []param) ([][][]byte, error) {
	values := make([][]byte, len(ps))
	formats := make([]int16, len(ps))
	for i, p := range ps {
		formats[i] = int16(p.format)
		if !p.null {
			values[i] = p.value
			if values[i] == nil {
				values[i] = []byte{}
			}
		}
	}
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
	lookColumns = `SELECT t.xmin::text, c.timestamp IS NULL,
		COALESCE((extract(epoch FROM c.timestamp) * 1000000)::int8, 0), COALESCE(c.roident, 0), to_jsonb(t.*) FROM `
	lookFrom = ` t, LATERAL pg_xact_commit_timestamp_origin(t.xmin) c WHERE `
)

// look locks the row, if there is one, and finds out its version; errUnknown if capture must read on
// first.
func (c *carefulRun) look(ctx context.Context, m *mapping, tuple []wire.Value, k wire.KeyHash) (look, error) {
	where, types, ps, err := m.keyCondition(tuple)
	if err != nil {
		return look{}, err
	}
	// First the lock, then a look with a new snapshot: what a locking query itself returns of other
	// relations and functions may belong to the version before the lock wait.
	if _, err := c.exec(ctx, "SELECT 1 FROM "+m.local.quoted+" t WHERE "+where+" FOR UPDATE", types, ps); err != nil {
		return look{}, fmt.Errorf("lock row of %s: %w", m.local.quoted, err)
	}
	rows, err := c.exec(ctx, lookColumns+m.local.quoted+lookFrom+where, types, ps)
	if err != nil {
		return look{}, fmt.Errorf("look at row of %s: %w", m.local.quoted, err)
	}
	if len(rows) == 0 {
		return c.absent(m, k)
	}
	return c.present(rows[0], k)
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
		where += fmt.Sprintf("t.%s %s $%d", c.quoted, c.equals, n+1)
	}
	return where, types, ps, nil
}

// absent concludes from "no row" only after capture has read every local delete that could be the
// reason (R13, R14); then the tombstones know (R17).
func (c *carefulRun) absent(m *mapping, k wire.KeyHash) (look, error) {
	if !c.waited {
		return look{}, errUnknown
	}
	d, ok := c.absence.tombstone(tableName{m.local.schema, m.local.name}, k)
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

// bury writes the transaction's tombstones (they go into the index when it has landed).
func (c *carefulRun) bury(ctx context.Context) error {
	for rest := c.buried; len(rest) > 0; {
		n := min(len(rest), tombstoneRow)
		if _, err := c.exec(ctx, c.tombstoneStatement.sql, c.tombstoneStatement.types, c.tombstoneParams(c.t, c.parts, rest[:n])); err != nil {
			return fmt.Errorf("write tombstones: %w", err)
		}
		c.parts++
		rest = rest[n:]
	}
	for i, n := range c.wiped {
		ps := c.tombstoneParams(c.t, -1-i, nil)
		ps[len(ps)-1] = binaryParam([]byte(n.schema + "\x00" + n.name))
		if _, err := c.exec(ctx, c.tombstoneStatement.sql, c.tombstoneStatement.types, ps); err != nil {
			return fmt.Errorf("write tombstones: %w", err)
		}
	}
	return nil
}

// fillFrom takes the values that an update of the key leaves unchanged from the row of the old key.
func (c *carefulRun) fillFrom(ctx context.Context, m *mapping, ch *wire.Change) error {
	where, types, ps, err := m.keyCondition(ch.Old)
	if err != nil {
		return err
	}
	for i := range ch.New {
		if ch.New[i].Format != wire.Unchanged || m.cols[i] < 0 {
			continue
		}
		sql := "SELECT t." + m.local.cols[m.cols[i]].quoted + " FROM " + m.local.quoted + " t WHERE " + where
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
