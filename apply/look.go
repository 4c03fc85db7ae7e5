package apply

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// look is what stands at this node for one key.
type look struct {
	local conflict.Local
	found bool
	seen  bool // the transaction's author had, or may have had, seen it
	own   bool // written by the transaction's own origin
	mine  bool // the row, or its absence, is the transaction's own work
}

const (
	lookColumns = `t.xmin::text, c.timestamp IS NULL,
		COALESCE((extract(epoch FROM c.timestamp) * 1000000)::int8, 0), COALESCE(c.roident, 0), t.xmin = pg_current_xact_id_if_assigned()::xid,
		COALESCE(` + genuine + `, true), t.tableoid::text || t.ctid::text`
	lookVersion = `LATERAL pg_xact_commit_timestamp_origin(t.xmin) c`
)

// lookAll locks the rows of all keys in pending that the transaction has not lost before, and finds out their
// versions; it reports whether capture must read on before something can be decided.
func (c *carefulRun) lookAll(ctx context.Context, pending []step) (unknown bool, err error) {
	groups := map[*mapping]*keyGroup{}
	var order []*mapping
	want := func(m *mapping, tuple []wire.Value, k wire.KeyHash) {
		if c.rows[k] != nil {
			return
		}
		if c.lost.has(k) {
			c.rows[k] = &rowState{lost: true}
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
		if err := c.fetch(ctx, m, groups[m]); err != nil {
			return false, err
		}
	}
	if err := c.flush(ctx); err != nil {
		return false, err
	}
	for _, m := range order {
		g := groups[m]
		places := map[string]*rowState{}
		for i, k := range g.hashes {
			l, err := c.judge(m, k, g.found[i])
			if errors.Is(err, errUnknown) {
				unknown = true
			} else if err != nil {
				return false, err
			}
			c.rows[k].look = l
			if place := string(last(g.found[i])); l.found && places[place] != nil {
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
	return c.present(m, row, k)
}

// keyGroup are the keys of one table that a window touches.
type keyGroup struct {
	hashes []wire.KeyHash
	tuples [][]wire.Value
	found  map[int][][]byte // by place, what stands there
}

// fetch asks for the rows of a group, whose answers come with the next flush. First the lock, then a
// look with a new snapshot: what a locking query itself returns of functions may belong to the version
// before the lock wait.
func (c *carefulRun) fetch(ctx context.Context, m *mapping, g *keyGroup) error {
	g.found = map[int][][]byte{}
	if !m.runs(nil) || !g.binary(m) {
		return c.fetchSingly(ctx, m, g)
	}
	var ps []param
	for _, i := range m.key {
		var a array
		a.reset()
		for _, t := range g.tuples {
			p, err := m.param(i, t[i])
			if err != nil {
				return err
			}
			a.add(p.value, p.null)
		}
		ps = append(ps, binaryParam(a.value(m.local.cols[m.cols[i]].param())))
	}
	lock := m.statement("kl", func() (string, []uint32) { return m.keysSQL("SELECT 1 FROM ", "", " ORDER BY v.n FOR UPDATE OF t") })
	c.push("lock rows of "+m.local.quoted, lock, ps)
	at := m.statement("kv", func() (string, []uint32) { return m.keysSQL("SELECT v.n, "+lookColumns+" FROM ", ", "+lookVersion, "") })
	c.queue = append(c.queue, queued{what: "look at rows of " + m.local.quoted, s: at, ps: ps, take: func(rows [][][]byte) {
		for _, r := range rows {
			n, _ := strconv.Atoi(string(r[0])) // the server's own count
			g.found[n-1] = r[1:]
		}
	}})
	return nil
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
		strings.Join(args, ", "), strings.Join(names, ", "), m.local.rows, from, strings.Join(where, " AND "), end), types
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
func (c *carefulRun) fetchSingly(ctx context.Context, m *mapping, g *keyGroup) error {
	if err := c.flush(ctx); err != nil { // the transaction may not be open yet
		return err
	}
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
			g.found[i] = rows[0]
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
	if c.buried.has(k) {
		return look{local: conflict.Local{Absent: true}, mine: true}, nil
	}
	if !c.waited {
		return look{}, errUnknown
	}
	d, ok := c.absence.tombstone(m.name(), k)
	if !ok {
		return look{local: conflict.Local{Absent: true}}, nil
	}
	own := d.Origin == c.origin // its transactions come in order, and up does not name them
	return look{local: conflict.Local{Version: d.Version, Deleted: true}, seen: own || c.t.up.Covers(d.Origin, d.seq)}, nil
}

func (c *carefulRun) present(m *mapping, row [][]byte, k wire.KeyHash) (look, error) {
	l := look{found: true, mine: string(row[4]) == "t"}
	if l.mine {
		return l, nil
	}
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
		return c.local(l, m, localRow{xmin, stamp, string(row[5]) == "t", k})
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

// localRow is a row whose last writer is a local session.
type localRow struct {
	xmin    uint32
	stamp   origin.Stamp
	genuine bool // the writer did not rewrite the table
	key     wire.KeyHash
}

// local finds the version of a row whose last writer is a local session (R15).
func (c *carefulRun) local(l look, m *mapping, r localRow) (look, error) {
	if first := uint32(c.opts.FirstXID); int32(r.xmin-first) < 0 && c.xmax-first < 1<<31 {
		l.local.Ancient = true // before there was a slot: never captured
		return l, nil
	}
	l.local.Version.Origin = c.own
	if r.genuine && int32(r.xmin-c.xmax) >= 0 {
		// Its transaction began behind the marker that announced t: whatever its stamp will be, it
		// lies above t's (R5), and its author cannot have been seen by t's.
		l.local.Version.Stamp = max(r.stamp, c.t.Stamp+1)
		return l, nil
	}
	newest, ok := c.wal.MarkFor(1<<64 - 1)
	if !c.known[r.xmin] && !(ok && int32(r.xmin-uint32(newest)) < 0) {
		c.unsure[r.xmin] = true
		return l, errUnknown
	}
	if !r.genuine || !c.wal.Wrote(r.stamp) {
		return c.hidden(l, m, r)
	}
	l.local.Version.Stamp = c.wal.LocalStamp(r.stamp, r.key)
	e := c.t.up.Get(c.own)
	l.seen = e.Seq > 0 && l.local.Version.Stamp <= e.Stamp
	return l, nil
}

// hidden finds the version of a row whose last local writer is not, or may not be, its author: it rewrote the
// table, or it was never captured. It is sought by low, which says what t's author certainly had seen: what is
// found nowhere may be kept as a base (R16), too.
func (c *carefulRun) hidden(l look, m *mapping, r localRow) (look, error) {
	mark, ok := c.wal.MarkWithin(c.t.low, c.origin)
	if r.genuine { // not known any more: it is stable
		mark, ok = c.wal.MarkFor(c.t.low.Seq(c.own))
	}
	if ok && int32(r.xmin-uint32(mark)) < 0 {
		l.local = conflict.Local{Ancient: true}
		return l, nil
	}
	p := c.pasts[m.name()]
	if p == nil || !p.tells(c.t, m, r.xmin) {
		if c.recalls[m] == nil {
			c.recalls[m] = map[uint32]bool{}
		}
		c.recalls[m][r.xmin] = true
		return l, errUnknown
	}
	v, seq, ok := p.version(r.key)
	if !ok {
		l.local = conflict.Local{Ancient: true}
		return l, nil
	}
	l.local.Version, l.seen = v, c.t.up.Covers(v.Origin, seq)
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
