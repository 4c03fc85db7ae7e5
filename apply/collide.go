package apply

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// collisions is what a run on the careful path knows of kept rows, and of those that it is about to keep.
type collisions struct {
	// exposed are the tables with unique indexes that the transaction touches, guarded those whose rows are looked at for
	// collisions, and intents end what the run has announced.
	exposed map[tableName]bool
	guarded map[tableName]bool
	intents map[tableName]func()
	// Of one attempt: kept rows as they will be when it commits, nil for what is not kept any more; the keys of guarded
	// tables whose rows it changes; and its own rows that it keeps, which may find a place behind its later changes.
	keeps   map[wire.KeyHash]*keptRow
	touched map[wire.KeyHash]struct{}
	ownKept []ownKept
	// wholly are tables of which anything may have changed.
	wholly []tableName
	// onTheWay are its collisions with rows that its author had seen.
	onTheWay []collision
	// rank finds a rival's version instead of present.
	rank func(v *rival) (look, error)
}

// ownKept is a row of the transaction itself that is kept.
type ownKept struct {
	m     *mapping
	tuple []wire.Value
	key   wire.KeyHash
}

// rival is a visible row that another one collides with.
type rival struct {
	tableoid, ctid string
	key            wire.KeyHash
	unique         *unique
	row            [][]byte // as lookSQL gives it
	look           look
}

// collision is one of a row that the transaction wants with a visible one; wins: the visible one was kept for it.
type collision struct {
	m     *mapping
	tuple []wire.Value
	key   wire.KeyHash
	rival rival
	wins  bool
}

// collided reports whether an error tells of a collision that is not between rows of one key, as far as that is known,
// and has the next attempt look for such ones.
func (c *carefulRun) collided(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != "23505" && pg.Code != "23P01" {
		return false
	}
	news := false
	for n := range c.exposed {
		if !c.guarded[n] {
			if c.intents == nil {
				c.intents = map[tableName]func(){}
			}
			c.intents[n], news = c.kept.intend(n), true
		}
	}
	return news
}

// unguard ends what the run has announced.
func (c *carefulRun) unguard() {
	for _, done := range c.intents {
		done()
	}
}

// touchesTable notes a table that the transaction touches.
func (c *carefulRun) touchesTable(m *mapping) {
	if len(m.local.uniques) == 0 || m.local.merge != nil {
		return
	}
	if c.exposed == nil {
		c.exposed, c.guarded = map[tableName]bool{}, map[tableName]bool{}
	}
	c.exposed[m.name()] = true
	c.guarded[m.name()] = c.kept.concerns(m.local)
}

// exclude claims the transaction's keys and, if some of its tables are guarded, the turn, which done gives back.
func (c *carefulRun) exclude(ctx context.Context) (h *held, done func(), err error) {
	for {
		epoch := c.kept.epoch.Load()
		if h, err = c.claim(); err != nil {
			return nil, nil, err
		}
		h.whole = h.whole || len(c.intents) > 0 // nothing may be under way that was planned without care
		if err := c.locks.lock(ctx, h); err != nil {
			return nil, nil, err
		}
		if c.kept.epoch.Load() == epoch {
			break
		}
		c.locks.release(h)
	}
	c.keeps, c.touched, c.ownKept, c.wholly, c.onTheWay = map[wire.KeyHash]*keptRow{}, map[wire.KeyHash]struct{}{}, nil, nil, nil
	if !c.guards() && !c.t.schema {
		return h, func() {}, nil
	}
	if len(c.all) > 1 { // a bundle has no version of its own
		c.locks.release(h)
		return nil, nil, errSurprise
	}
	if done, err = c.kept.take(ctx); err != nil {
		c.locks.release(h)
		return nil, nil, err
	}
	return h, done, nil
}

// guards reports whether any of the transaction's tables is guarded.
func (c *carefulRun) guards() bool {
	for _, g := range c.guarded {
		if g {
			return true
		}
	}
	return false
}

// entry returns the kept row of a key as the attempt leaves it so far.
func (c *carefulRun) entry(k wire.KeyHash) *keptRow {
	if e, ok := c.keeps[k]; ok {
		return e
	}
	return c.kept.get(k)
}

// meetKept lets what was found for a key meet its kept row, if there is one: that is the key's version unless something
// later is in the table, which only a local session can have put there.
func (c *carefulRun) meetKept(m *mapping, k wire.KeyHash, l look) look {
	if !c.guarded[m.name()] {
		return l
	}
	e := c.entry(k)
	if e == nil {
		return l
	}
	if l.found || l.local.Deleted && l.local.Version.Later(e.version) {
		c.unkeep(k)
		return l
	}
	return c.keptLook(e)
}

// place writes the transaction's version of a row, which has won over what was there for its key, unless a later row is
// in its way.
func (c *carefulRun) place(ctx context.Context, m *mapping, tuple []wire.Value, k wire.KeyHash) error {
	r := c.rows[k]
	c.touched[k] = struct{}{}
	if err := c.complete(ctx, m, tuple, k, r); err != nil {
		return err
	}
	rivals, err := c.rivals(ctx, m, tuple)
	if err != nil {
		return err
	}
	if b := c.blocker(rivals); b != nil {
		if err := c.met(collision{m, tuple, k, *b, false}); err != nil {
			return err
		}
		if r.found {
			if err := c.change(m, m.statement("kd", func() (string, []uint32) { return m.deleteSQL(nil) }), nil, nil, tuple); err != nil {
				return err
			}
		}
		if err := c.keep(m, tuple, k, b); err != nil {
			return err
		}
		c.ownKept = append(c.ownKept, ownKept{m, tuple, k})
		r.look = look{kept: &k, mine: true}
		return nil
	}
	for i := range rivals {
		if err := c.met(collision{m, tuple, k, rivals[i], true}); err != nil {
			return err
		}
	}
	if err := c.hideAll(ctx, m, rivals, k); err != nil {
		return err
	}
	c.unkeep(k)
	if c.wrote != nil {
		c.wrote[k] = c.t
	}
	found := r.found
	r.look = look{found: true, mine: true}
	if found {
		return c.overwrite(m, tuple, k)
	}
	return c.change(m, m.statement("ki", m.insertSQL), tuple, m.insertSet(nil), nil)
}

// blocker returns the latest of the rivals that the transaction's row must give way to, nil if there is none. What the
// transaction wrote itself it does not move: later changes of it will.
func (c *carefulRun) blocker(rivals []rival) *rival {
	var latest *rival
	for i := range rivals {
		v := &rivals[i]
		if v.look.mine {
			return v
		}
		if v.look.local.Ancient || c.t.version().Later(v.look.local.Version) {
			continue
		}
		if latest == nil || v.look.local.Version.Later(latest.look.local.Version) {
			latest = v
		}
	}
	return latest
}

// settleOwn finds places for the transaction's own rows that were kept, now that all its changes are done: what they
// collided with may have been one of its rows on the way.
func (c *carefulRun) settleOwn(ctx context.Context) error {
	for again := true; again; {
		again = false
		for _, o := range c.ownKept {
			e := c.keeps[o.key]
			if e == nil || e.version != c.t.version() {
				continue
			}
			if _, moved := c.touched[e.blocker]; !moved {
				continue
			}
			rivals, err := c.rivals(ctx, o.m, o.tuple)
			if err != nil {
				return err
			}
			if b := c.blocker(rivals); b != nil {
				if e.blocker != b.key {
					if err := c.keep(o.m, o.tuple, o.key, b); err != nil {
						return err
					}
				}
				continue
			}
			if err := c.hideAll(ctx, o.m, rivals, o.key); err != nil {
				return err
			}
			c.unkeep(o.key)
			if err := c.change(o.m, o.m.statement("ki", o.m.insertSQL), o.tuple, o.m.insertSet(nil), nil); err != nil {
				return err
			}
			again = true
		}
	}
	return nil
}

// complete gives a tuple the values that the transaction leaves unchanged.
func (c *carefulRun) complete(ctx context.Context, m *mapping, tuple []wire.Value, k wire.KeyHash, r *rowState) error {
	if !hasUnchanged(tuple) {
		return nil
	}
	if r.kept != nil {
		return c.fillKept(ctx, m, tuple, k)
	}
	return c.fill(ctx, m, tuple, tuple)
}

// fillKept takes unchanged values from the kept row of key k.
func (c *carefulRun) fillKept(ctx context.Context, m *mapping, tuple []wire.Value, k wire.KeyHash) error {
	values, err := c.image(ctx, k)
	if err != nil {
		return err
	}
	for i, li := range m.cols {
		if tuple[i].Format != wire.Unchanged || li < 0 {
			continue
		}
		tuple[i] = values[m.local.cols[li].name]
		if tuple[i].Format == 0 {
			tuple[i] = wire.Value{Format: wire.Null}
		}
	}
	return nil
}

// image reads the values of a kept row, by column.
func (c *carefulRun) image(ctx context.Context, k wire.KeyHash) (map[string]wire.Value, error) {
	if err := c.flush(ctx); err != nil {
		return nil, err
	}
	rows, err := c.exec(ctx, `SELECT u.c, u.v FROM pgbridge.quarantine q, unnest(q.columns, q.image) u(c, v) WHERE q.hi = $1 AND q.lo = $2`,
		[]uint32{oidInt8, oidInt8}, hashParams(k))
	if err != nil {
		return nil, fmt.Errorf("read kept row: %w", err)
	}
	values := map[string]wire.Value{}
	for _, r := range rows {
		v := wire.Value{Format: wire.Text, Data: r[1]}
		if r[1] == nil {
			v = wire.Value{Format: wire.Null}
		}
		values[string(r[0])] = v
	}
	return values, nil
}

func hashParams(k wire.KeyHash) []param {
	return []param{int64Param(int64(k.Hi)), int64Param(int64(k.Lo))}
}

// rivals finds and locks the visible rows of other keys that a complete row collides with, and their versions.
func (c *carefulRun) rivals(ctx context.Context, m *mapping, tuple []wire.Value) ([]rival, error) {
	ps, err := m.params(nil, tuple, m.insertSet(nil))
	if err != nil {
		return nil, err
	}
	for range rivalTries {
		var found []rival
		c.queue = append(c.queue, queued{what: "look for rows that collide in " + m.local.quoted, s: m.statement("kq", m.rivalsSQL), ps: ps, take: func(rows [][][]byte) {
			for _, r := range rows {
				n, _ := strconv.Atoi(string(r[0])) // the server's own count
				v := rival{tableoid: string(r[1]), ctid: string(r[2]), unique: &m.local.uniques[n]}
				if !slices.ContainsFunc(found, func(o rival) bool { return o.tableoid == v.tableoid && o.ctid == v.ctid }) {
					found = append(found, v)
				}
			}
		}})
		if err := c.flush(ctx); err != nil {
			return nil, err
		}
		same, err := c.lockRivals(ctx, m, found)
		if err != nil {
			return nil, err
		}
		if same {
			return found, c.judgeRivals(m, found)
		}
	}
	return nil, errUnknown
}

// rivalTries bounds how often rows are looked for again because users have changed them before they were locked.
const rivalTries = 10

// lockRivals locks rows and reads who wrote them; it reports whether all were still there.
func (c *carefulRun) lockRivals(ctx context.Context, m *mapping, found []rival) (bool, error) {
	for i := range found {
		v := &found[i]
		where, types, ps, err := rowAt(v.tableoid, v.ctid)()
		if err != nil {
			return false, err
		}
		rows, err := c.exec(ctx, "SELECT 1 FROM "+m.local.rows+" t WHERE "+where+" FOR UPDATE", types, ps)
		if err != nil {
			return false, fmt.Errorf("lock row of %s: %w", m.local.quoted, err)
		}
		if len(rows) == 0 {
			return false, nil
		}
		k, there, err := c.keyHashOf(ctx, m, where, ps)
		if err != nil || !there {
			return false, err
		}
		v.key = k
		if rows, err = c.exec(ctx, "SELECT "+lookAtSQL(k)+" FROM "+m.local.rows+" t, "+lookVersion+" WHERE "+where, types, ps); err != nil {
			return false, fmt.Errorf("look at row of %s: %w", m.local.quoted, err)
		}
		if len(rows) == 0 {
			return false, nil
		}
		v.row = rows[0]
	}
	return true, nil
}

// judgeRivals finds out the rows' versions; errUnknown if capture must read on for any of them.
func (c *carefulRun) judgeRivals(m *mapping, found []rival) error {
	unknown := false
	for i := range found {
		v := &found[i]
		var err error
		if c.rank != nil {
			v.look, err = c.rank(v)
		} else {
			v.look, err = c.present(m, v.row, v.key)
		}
		if c.comeback != nil {
			c.comeback.outrank(v)
		}
		if errors.Is(err, errUnknown) {
			unknown = true
		} else if err != nil {
			return err
		}
	}
	if unknown {
		return errUnknown
	}
	return nil
}

// hideAll moves rows that key's row is in the way of into the quarantine.
func (c *carefulRun) hideAll(ctx context.Context, m *mapping, rivals []rival, key wire.KeyHash) error {
	for i := range rivals {
		if err := c.hide(m, &rivals[i], key); err != nil {
			return err
		}
	}
	return c.flush(ctx)
}

// hide queues what moves one row.
func (c *carefulRun) hide(m *mapping, v *rival, blocker wire.KeyHash) error {
	e := &keptRow{table: m.name(), key: v.key, version: c.versionOf(v), xid: c.xmax, blocker: blocker, constraint: v.unique.name}
	where, types, ps, err := rowAt(v.tableoid, v.ctid)()
	if err != nil {
		return err
	}
	place := slices.Clip(ps)
	c.push("keep row of "+m.local.quoted, m.statement("kh", func() (string, []uint32) {
		var names, values []string
		for i := range m.local.cols {
			if col := &m.local.cols[i]; !col.generated {
				names = append(names, literal(col.name))
				values = append(values, asText("t."+col.quoted))
			}
		}
		sql, all := keepSQL(types, names, values)
		return sql + " FROM " + m.local.rows + " t WHERE " + where + keepAgain, all
	}), append(place, e.params()...))
	c.push("table "+m.local.quoted, m.statement("kg", func() (string, []uint32) {
		return "WITH d AS (DELETE FROM " + m.local.rows + " t WHERE " + where + " RETURNING 1) SELECT 1/count(*) FROM d", types
	}), place)
	c.keeps[v.key] = e
	c.touched[v.key] = struct{}{}
	if r := c.rows[v.key]; r != nil {
		r.found, r.kept = false, &e.key
	}
	return nil
}

// keep queues what keeps a row that is not in the table, or is not there any more.
func (c *carefulRun) keep(m *mapping, tuple []wire.Value, k wire.KeyHash, b *rival) error {
	e := &keptRow{table: m.name(), key: k, version: c.t.version(), xid: c.xmax, blocker: b.key, constraint: b.unique.name}
	set := m.insertSet(nil)
	ps, err := m.params(nil, tuple, set)
	if err != nil {
		return err
	}
	c.push("keep row of "+m.local.quoted, m.statement("kk", func() (string, []uint32) {
		var names, values []string
		var types []uint32
		for _, i := range set {
			col := &m.local.cols[m.cols[i]]
			types = append(types, col.param())
			names = append(names, literal(col.name))
			values = append(values, asText(fmt.Sprintf("$%d", len(types))))
		}
		sql, all := keepSQL(types, names, values)
		return sql + keepAgain, all
	}), append(ps, e.params()...))
	c.keeps[k] = e
	return nil
}

// keepSQL is an INSERT into the quarantine whose own parameters come behind those of types.
func keepSQL(types []uint32, names, values []string) (string, []uint32) {
	var args []string
	first := len(types)
	types = append(slices.Clip(types), oidInt8, oidInt8, oidText, oidText, oidText, oidInt4, oidInt8, oidInt8, oidText, oidInt8, oidInt8)
	for n := first; n < len(types); n++ {
		args = append(args, fmt.Sprintf("$%d", n+1))
	}
	return "INSERT INTO pgbridge.quarantine (hi, lo, schema, name, origin, epoch, stamp, xid, constraint_name, blocker_hi, blocker_lo, columns, image) SELECT " +
		strings.Join(args, ", ") + ", ARRAY[" + strings.Join(names, ", ") + "], ARRAY[" + strings.Join(values, ", ") + "]", types
}

// unkeepSQL forgets a kept row.
const unkeepSQL = `DELETE FROM pgbridge.quarantine WHERE hi = $1 AND lo = $2`

// keepAgain ends a keepSQL: a later version of a kept row takes its place.
const keepAgain = ` ON CONFLICT (hi, lo) DO UPDATE SET origin = EXCLUDED.origin, epoch = EXCLUDED.epoch, stamp = EXCLUDED.stamp, xid = EXCLUDED.xid,
	constraint_name = EXCLUDED.constraint_name, blocker_hi = EXCLUDED.blocker_hi, blocker_lo = EXCLUDED.blocker_lo, since = EXCLUDED.since,
	columns = EXCLUDED.columns, image = EXCLUDED.image`

// params are those of keepSQL.
func (e *keptRow) params() []param {
	return append(hashParams(e.key), textParam(e.table.schema), textParam(e.table.name), textParam(e.version.Origin.Node),
		binaryParam(binary.BigEndian.AppendUint32(nil, e.version.Origin.Epoch)), int64Param(int64(e.version.Stamp)), int64Param(int64(e.xid)), textParam(e.constraint),
		int64Param(int64(e.blocker.Hi)), int64Param(int64(e.blocker.Lo)))
}

// unkeep queues that the row of a key is not kept any more, if it is.
func (c *carefulRun) unkeep(k wire.KeyHash) {
	if c.entry(k) == nil {
		return
	}
	c.keeps[k] = nil
	c.push("forget kept row", c.unkeepStatement, hashParams(k))
}

// versionOf is the version under which a row is kept. The stamp of one that every node has seen is that of its commit: if
// a local session wrote it, that may be a little below the one that other nodes know.
func (c *carefulRun) versionOf(v *rival) origin.Version {
	if !v.look.local.Ancient {
		return v.look.local.Version
	}
	w, id, known, err := c.writerOf(v.row, v.key)
	if err != nil || !known || !w.genuine || w.id < c.opts.FirstXID {
		return ancient
	}
	o := c.own
	if id != 0 {
		var ok bool
		if o, ok = c.originOf(id); !ok {
			return ancient
		}
	}
	return origin.Version{Stamp: w.stamp, Origin: o}
}

// met records a collision. With a row that the author had seen, it is mostly one on the way only, which his server has found
// gone at the COMMIT: a later change of the transaction will do the same here.
func (c *carefulRun) met(x collision) error {
	if l := &x.rival.look; l.mine || l.seen || l.local.Ancient {
		c.onTheWay = append(c.onTheWay, x)
		return nil
	}
	return c.recordUnique(x, look{found: true})
}

// recordLasting records the collisions that were met on the way and are there still, now that all changes are done: the
// constraint is one that the author's server does not have.
func (c *carefulRun) recordLasting() error {
	for _, x := range c.onTheWay {
		loser, winner, l := x.rival.key, x.key, look{kept: &x.rival.key}
		if !x.wins {
			loser, winner, l = x.key, x.rival.key, look{found: true}
		}
		if e := c.keeps[loser]; e == nil || e.blocker != winner {
			continue
		}
		if err := c.recordUnique(x, l); err != nil {
			return err
		}
	}
	return nil
}

// recordUnique records that two rows of different keys met: what the transaction wants, and the row that was visible here, which
// is now where l says.
func (c *carefulRun) recordUnique(x collision, l look) error {
	m, v := x.m, &x.rival
	outcome := localWins
	if x.wins {
		outcome = remoteWins
	}
	c.losses = append(c.losses, string(conflict.Unique))
	i := images{}
	if c.bare != "" {
		i.mark(c.bare, true, true)
	} else if err := i.make(m, x.tuple, rowAt(v.tableoid, v.ctid), l); err != nil {
		return err
	}
	version := c.versionOf(v)
	if v.look.mine {
		version = c.t.version()
	}
	c.pushRecord(m, "kx", uniqueInto, i, string(conflict.Unique), outcome, version, v.unique.name)
	return nil
}

// uniqueInto is conflictInto for conflicts of kind unique.
const uniqueInto = `
INSERT INTO pgbridge.conflict (relation, kind, outcome, remote_origin, remote_seq, remote_stamp,
    local_origin, local_stamp, constraint_name, local_row, remote_row)`

// truncateKept takes the kept rows of a table that are older than the TRUNCATE.
func (c *carefulRun) truncateKept(m *mapping) {
	if !c.guarded[m.name()] {
		return
	}
	for _, e := range c.kept.of(m.name()) {
		if c.t.version().Later(e.version) {
			c.unkeep(e.key)
		}
	}
	for k, e := range c.keeps {
		if e != nil && e.table == m.name() {
			c.unkeep(k)
		}
	}
	c.wholly = append(c.wholly, m.name())
}

// committed tells the quarantine what the attempt has changed.
func (c *carefulRun) committed() {
	c.kept.committed(c.keeps, c.touched)
	for _, n := range c.wholly {
		c.kept.touchAll(&n)
	}
}
