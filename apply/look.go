package apply

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
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
	// kept is set if the row's version is kept out of the table (quarantine.go): the key.
	kept *wire.KeyHash
}

// The transaction's own rows have no stamp yet and an id that is not below its own: that of a subtransaction if
// a trigger wrote them.
const (
	lookColumns = `t.xmin::text, c.timestamp IS NULL,
		COALESCE((extract(epoch FROM c.timestamp) * 1000000)::int8, 0), COALESCE(c.roident, 0),
		c.timestamp IS NULL AND age(t.xmin) BETWEEN -1000000 AND 0,
		COALESCE(` + genuine + `, true), `
	lookPlace   = `t.tableoid::text || t.ctid::text`
	lookVersion = `LATERAL pg_xact_commit_timestamp_origin(t.xmin) c`
)

// lookSQL is what a look asks of each row; lo is an expression for Lo of its key's hash. What is before the last column
// tells how far a row's own stamp is below its commit's, if it was written by a bundle: -1 if the bundle does not know
// the key.
func lookSQL(lo string) string {
	return lookColumns + "(SELECT COALESCE(b.behind[array_position(b.keys, " + lo + ")], -1) FROM pgbridge.bundle b " +
		"WHERE b.id = c.roident::int AND b.at = c.timestamp), " + returnedAs(lo) + ", " + lookPlace
}

// lookAtSQL is lookSQL for one key.
func lookAtSQL(k wire.KeyHash) string { return lookSQL(fmt.Sprintf("(%d)::int8", int64(k.Lo))) }

// lookAll locks the rows of all keys in pending that the transaction has not lost before, and finds out their
// versions; it reports whether capture must read on before something can be decided.
func (c *carefulRun) lookAll(ctx context.Context, pending []step) (unknown bool, err error) {
	groups := map[*mapping]*keyGroup{}
	var order []*mapping
	want := func(m *mapping, tuple []wire.Value, k wire.KeyHash, inserts bool) {
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
		g.hashes, g.tuples, g.inserts = append(g.hashes, k), append(g.tuples, tuple), append(g.inserts, inserts)
		c.rows[k] = &rowState{}
	}
	for i := range pending {
		s := &pending[i]
		want(s.m, s.before(), s.from, s.ch.Kind == wire.KindInsert)
		if s.to != s.from {
			want(s.m, s.ch.New, s.to, true)
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
			l, err := c.judge(m, k, g.found[i], g.inserts[i])
			if err == nil {
				l = c.meetKept(m, k, l)
			}
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

func (c *carefulRun) judge(m *mapping, k wire.KeyHash, row [][]byte, inserts bool) (look, error) {
	if m.local.merge != nil {
		return c.judgeMerged(m, k, row, inserts)
	}
	if row == nil {
		return c.absent(m, k)
	}
	return c.present(m, row, k)
}

// keyGroup are the keys of one table that a window touches.
type keyGroup struct {
	hashes  []wire.KeyHash
	tuples  [][]wire.Value
	inserts []bool           // it is there to be inserted, not to be changed
	found   map[int][][]byte // by place, what stands there
}

// fetch asks for the rows of a group, whose answers come with the next flush. First the lock, then a
// look with a new snapshot: what a locking query itself returns of functions may belong to the version
// before the lock wait.
func (c *carefulRun) fetch(ctx context.Context, m *mapping, g *keyGroup) error {
	g.found = map[int][][]byte{}
	if !m.runs(nil) || !g.binary(m) {
		return c.fetchSingly(ctx, m, g)
	}
	ps, err := g.params(m)
	if err != nil {
		return err
	}
	lock := m.statement("kl", func() (string, []uint32) { return m.keysSQL("SELECT 1 FROM ", "", " ORDER BY v.n FOR UPDATE OF t") })
	c.push("lock rows of "+m.local.quoted, lock, ps)
	c.pushLook(m, g, ps)
	return nil
}

// pushLook asks for rows by arrays of their keys.
func (c *carefulRun) pushLook(m *mapping, g *keyGroup, ps []param) {
	at := m.statement("kv", func() (string, []uint32) {
		return m.keysSQL("SELECT v.n, "+lookSQL("v.lo")+" FROM ", ", "+lookVersion, "")
	})
	c.queue = append(c.queue, queued{what: "look at rows of " + m.local.quoted, s: at, ps: ps, take: func(rows [][][]byte) {
		for _, r := range rows {
			n, _ := strconv.Atoi(string(r[0])) // the server's own count
			g.found[n-1] = r[1:]
		}
	}})
}

// fetchOnly asks for the rows of a group without locking them, and waits for the answer.
func (c *carefulRun) fetchOnly(ctx context.Context, m *mapping, g *keyGroup) error {
	g.found = map[int][][]byte{}
	if m.runs(nil) && g.binary(m) {
		ps, err := g.params(m)
		if err != nil {
			return err
		}
		c.pushLook(m, g, ps)
		return c.flush(ctx)
	}
	for i, tuple := range g.tuples {
		where, types, ps, err := m.keyCondition(tuple)
		if err != nil {
			return err
		}
		if err := c.lookAt(ctx, m, g, i, where, types, ps); err != nil {
			return err
		}
	}
	return nil
}

// lookAt asks for one row of a group.
func (c *carefulRun) lookAt(ctx context.Context, m *mapping, g *keyGroup, i int, where string, types []uint32, ps []param) error {
	rows, err := c.exec(ctx, "SELECT "+lookAtSQL(g.hashes[i])+" FROM "+m.local.rows+" t, "+lookVersion+" WHERE "+where, types, ps)
	if err != nil {
		return fmt.Errorf("look at row of %s: %w", m.local.quoted, err)
	}
	if len(rows) > 0 {
		g.found[i] = rows[0]
	}
	return nil
}

// keysSQL builds a query over the rows t whose keys are given as arrays, then Lo of their hashes, with their place v.n
// in them.
func (m *mapping) keysSQL(query, from, end string) (string, []uint32) {
	var types []uint32
	var args, names, where []string
	for n, k := range m.local.key {
		col := &m.local.cols[k]
		types = append(types, col.typ.root().array)
		args, names = append(args, fmt.Sprintf("$%d", n+1)), append(names, fmt.Sprintf("k%d", n+1))
		where = append(where, fmt.Sprintf("%s %s v.k%d", col.compared(), col.equals, n+1))
	}
	types = append(types, oidInt8Array)
	args, names = append(args, fmt.Sprintf("$%d", len(types))), append(names, "lo")
	return fmt.Sprintf("%sunnest(%s) WITH ORDINALITY v(%s, n), %s t%s WHERE %s%s", query,
		strings.Join(args, ", "), strings.Join(names, ", "), m.local.rows, from, strings.Join(where, " AND "), end), types
}

// params are the parameters of keysSQL.
func (g *keyGroup) params(m *mapping) ([]param, error) {
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
	var lows array
	lows.reset()
	for _, k := range g.hashes {
		lows.add(binary.BigEndian.AppendUint64(nil, k.Lo), false)
	}
	return append(ps, binaryParam(lows.value(oidInt8))), nil
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
		if err := c.lookAt(ctx, m, g, i, where, types, ps); err != nil {
			return err
		}
	}
	return nil
}

func (m *mapping) keyCondition(tuple []wire.Value) (string, []uint32, []param, error) {
	var where strings.Builder
	types := m.local.whereKey(&where, nil)
	ps, err := m.params(nil, tuple, m.key)
	return where.String(), types, ps, err
}

// keyed is keyCondition for a key as capture tells it, in this node's own spelling; without one it finds every row.
func (t *table) keyed(key []wire.Value) (string, []uint32, []param) {
	if key == nil {
		return "true", nil, nil
	}
	var where strings.Builder
	types := t.whereKey(&where, nil)
	return where.String(), types, t.keyParams(key)
}

// keyParams are the parameters for a key as capture tells it. It may have been read before the table was rewritten, with
// narrower integers.
func (t *table) keyParams(key []wire.Value) []param {
	var ps []param
	for i, v := range key {
		if v.Format == wire.Binary {
			ps = append(ps, binaryParam(widened(v.Data, width(t.cols[t.key[i]].param()))))
		} else {
			ps = append(ps, param{value: v.Data})
		}
	}
	return ps
}

// absent concludes from "no row" only after capture has read every local delete that could be the
// reason (R13, R14); then the tombstones know (R17).
func (c *carefulRun) absent(m *mapping, k wire.KeyHash) (look, error) {
	if c.buried.has(k) {
		return look{local: conflict.Local{Absent: true}, mine: true}, nil
	}
	if c.comeback != nil {
		return look{local: conflict.Local{Absent: true}}, nil
	}
	if !c.waited {
		return look{}, errUnknown
	}
	d, ok := c.absence.tombstone(m.name(), k)
	if slices.Contains(c.wiped, m.name()) && !(ok && d.Later(c.t.version())) { // its own TRUNCATE counts
		return look{local: conflict.Local{Absent: true}, mine: true}, nil
	}
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
	w, id, known, err := c.writerOf(row, k)
	if err != nil {
		return l, err
	}
	if !known {
		return c.forgotten(l, m, w)
	}
	if id == c.kept.back {
		l, err := c.returned(l, row, w)
		l.seen = l.seen && !(c.comeback != nil && c.comeback.has(k))
		return l, err
	}
	if behind := row[6]; behind != nil { // null: no bundle wrote it
		n, err := strconv.ParseInt(string(behind), 10, 64)
		if err != nil {
			return l, fmt.Errorf("read row version: %w", err)
		}
		if n < 0 && id != c.id { // the key has changed since
			w.genuine = false
			return c.hidden(l, m, w)
		}
		w.stamp -= origin.Stamp(max(n, 0))
	}
	l, err = c.signed(l, m, w, id)
	if c.doubtful(l, w, err) {
		w.genuine = false
		return c.hidden(look{found: true}, m, w)
	}
	return l, err
}

// writerOf reads who wrote a row and under which replication origin; known: the server remembers the stamp.
func (c *carefulRun) writerOf(row [][]byte, k wire.KeyHash) (w writer, id uint32, known bool, err error) {
	w = writer{genuine: string(row[5]) == "t", key: k}
	var unknown string
	var micros int64
	if _, err := fmt.Sscan(fmt.Sprintf("%s %s %s %s", row[0], row[1], row[2], row[3]), &w.xmin, &unknown, &micros, &id); err != nil {
		return w, id, false, fmt.Errorf("read row version: %w", err)
	}
	w.stamp = origin.StampOf(time.UnixMicro(micros))
	w.id = c.xmax + uint64(int64(int32(w.xmin-uint32(c.xmax)))) // of all that end in xmin, the nearest
	return w, id, unknown != "t", nil
}

// writer is who wrote a row last, as its xmin tells.
type writer struct {
	xmin    uint32
	id      uint64 // xmin with its epoch, which may be an earlier one if ids have come round
	stamp   origin.Stamp
	genuine bool // it did not rewrite the table
	key     wire.KeyHash
}

// signed finds the version of a row that bears a stamp and the number of a replication origin.
func (c *carefulRun) signed(l look, m *mapping, w writer, id uint32) (look, error) {
	if id == 0 {
		return c.local(l, m, w)
	}
	o, ok := c.originOf(id)
	if !ok {
		return l, blocked("a row was written under replication origin %d, which is not pgbridge's; "+
			"replicate the table by pgbridge or by another system, not by both", id)
	}
	l.local.Version = origin.Version{Stamp: w.stamp, Origin: o}
	l.own = id == c.id
	l.seen = l.own || w.stamp <= c.t.up.Get(o).Stamp && c.t.up.Seq(o) > 0
	return l, nil
}

// forgotten finds the version of a row whose stamp the server has forgotten (R11). It is no reason to take it
// for one that everybody has seen: a node may have been away for longer than the server remembers.
func (c *carefulRun) forgotten(l look, m *mapping, w writer) (look, error) {
	const firstNormal = 3 // src/include/access/transam.h; below it are what initdb and old servers froze
	if w.id >= c.xmax {
		w.id -= 1 << 32 // who began since bears a stamp: this was before ids came round
	}
	if w.id < c.opts.FirstXID || w.xmin < firstNormal {
		l.local.Ancient = true // before there was a slot: never captured
		return l, nil
	}
	w.genuine = false
	return c.hidden(l, m, w)
}

// doubtful reports whether a row may bear the id of a transaction that did not write it: xmin of a frozen row
// stays, and names another transaction when 2^32 ids later it is given out again (F9). The transaction may lose
// only to one whose stream says that it wrote the key (R12). A row that was written since it was in doubt tells
// the truth.
func (c *carefulRun) doubtful(l look, w writer, err error) bool {
	if w.id < 1<<32 || errors.Is(err, errUnknown) || err == nil && (l.local.Ancient || c.t.version().Later(l.local.Version)) {
		return false
	}
	before, ok := c.doubted[w.key]
	if !ok {
		c.doubted[w.key] = w.xmin
	}
	return !ok || before == w.xmin
}

// local finds the version of a row whose last writer is a local session (R15).
func (c *carefulRun) local(l look, m *mapping, w writer) (look, error) {
	if c.comeback != nil {
		l.local.Version = origin.Version{Stamp: w.stamp, Origin: c.own}
		l.seen = !c.comeback.has(w.key)
		return l, nil
	}
	if w.id < max(c.opts.FirstXID, c.opts.localXID) {
		l.local.Ancient = true // before there was a slot: never captured; or every node has seen it
		return l, nil
	}
	l.local.Version.Origin = c.own
	if w.genuine && w.id >= c.xmax {
		// Its transaction began behind the marker that announced t: whatever its stamp will be, it
		// lies above t's (R5), and its author cannot have been seen by t's.
		l.local.Version.Stamp = max(w.stamp, c.final().Stamp+1)
		return l, nil
	}
	newest, ok := c.wal.MarkFor(math.MaxUint64)
	if !c.caughtUp && !c.known[w.xmin] && !(ok && w.id < newest) {
		c.unsure[w.xmin] = true
		return l, errUnknown
	}
	if !w.genuine || !c.wal.Wrote(w.stamp) {
		return c.hidden(l, m, w)
	}
	l.local.Version.Stamp = c.wal.LocalStamp(w.stamp, w.key)
	e := c.t.up.Get(c.own)
	l.seen = e.Seq > 0 && l.local.Version.Stamp <= e.Stamp
	return l, nil
}

// hidden finds the version of a row that does not tell its author: who wrote it last rewrote the table, was never
// captured, bears no stamp any more, or is not who wrote it. It is sought by low, which says what t's author
// certainly had seen: what is found nowhere may be kept as a base (R16), too.
func (c *carefulRun) hidden(l look, m *mapping, w writer) (look, error) {
	if c.comeback != nil { // the donor has seen all that was captured here
		l.local = conflict.Local{Ancient: true}
		return l, nil
	}
	mark, ok := c.wal.MarkWithin(c.t.low, c.origin)
	if w.genuine { // not known any more: it is stable
		mark, ok = c.wal.MarkFor(c.t.low.Seq(c.own))
	}
	if ok && w.id < mark || w.genuine && c.wal.Before(w.stamp, w.id, c.t.low.Seq(c.own)) {
		l.local = conflict.Local{Ancient: true}
		return l, nil
	}
	p := c.pasts[m.name()]
	if p == nil || !p.tells(c.t, m, w.id) {
		if c.recalls[m] == nil {
			c.recalls[m] = map[uint64]bool{}
		}
		c.recalls[m][w.id] = true
		return l, errUnknown
	}
	v, seq, ok := p.version(w.key)
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
