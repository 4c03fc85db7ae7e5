package apply

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/wire"
)

// rowKey is a row that a statement writes: tuple holds its key.
type rowKey struct {
	m     *mapping
	tuple []wire.Value
}

// refusedError is the server's refusal of a statement of the careful path.
type refusedError struct {
	what string
	row  rowKey
	err  error
}

// Error says what was attempted, and what the server said.
func (e *refusedError) Error() string { return e.what + ": " + e.err.Error() }

// Unwrap returns the server's error.
func (e *refusedError) Unwrap() error { return e.err }

// dependsError means that a transaction must be parked because of others that are.
type dependsError struct{ on []string }

// Error names those others.
func (e *dependsError) Error() string { return "depends on parked " + strings.Join(e.on, ", ") }

// moved is what moves the position. That it fails is nobody's data.
const moved = "move position"

// orPark parks t if err says that the server refuses it for good, or that it depends on one that is parked; any other
// error is returned as it is. Nothing is in flight.
func (w *worker) orPark(ctx context.Context, t *txn, err error) error {
	var depends *dependsError
	if errors.As(err, &depends) {
		return w.park(ctx, t, err)
	}
	var refused *refusedError
	if t.parked != 0 || poison(err) == nil || errors.As(err, &refused) && refused.what == moved {
		return err
	}
	return w.park(ctx, t, err)
}

// depends returns on what parked transactions t depends, nil if on none. keys are those of the rows that it touches, if
// they are known; whoever asks holds their locks, so that none is being parked meanwhile.
func (w *worker) depends(t *txn, keys []wire.KeyHash) (*dependsError, error) {
	if w.parked.empty() || t.parked != 0 {
		return nil, nil
	}
	r := &reach{keys: keys}
	if keys == nil || w.parked.wide() {
		var err error
		if r, _, err = w.reach(t, false); err != nil {
			return nil, err
		}
	}
	var d *dependsError
	for _, e := range w.parked.before(t, r) {
		if d == nil {
			d = &dependsError{}
		}
		d.on = append(d.on, label(e.Entry))
	}
	return d, nil
}

// free is an error if t depends on a parked transaction.
func (w *worker) free(t *txn, keys []wire.KeyHash) error {
	d, err := w.depends(t, keys)
	if err != nil || d == nil {
		return err
	}
	return d
}

// independent is an error if one of the transactions depends on a parked one.
func (c *carefulRun) independent(h *held) error {
	keys := h.keys
	if h.whole || len(c.all) > 1 { // those of all are not those of each
		keys = nil
	}
	for _, t := range c.all {
		if err := c.free(t, keys); err != nil {
			return err
		}
	}
	return nil
}

// errTooLarge ends a walk through a transaction that is too large to be parked.
var errTooLarge = errors.New("too large")

// packed are a transaction's changes as they are parked: records R, I, U, D and T, as in a frame.
type packed struct {
	body    []byte
	changes int64
}

// reach walks through t and returns what it touches, and its changes if they are to be packed: errTooLarge if they are too
// many for that.
func (w *worker) reach(t *txn, pack bool) (*reach, *packed, error) {
	changes, err := newForeseen(w, t)
	if err != nil {
		return nil, nil, err
	}
	r, p := &reach{}, &packed{}
	told := map[uint32]*wire.Relation{}
	tell := func(rel *wire.Relation) {
		if pack && rel != nil && told[rel.ID] != rel {
			told[rel.ID] = rel
			p.body = wire.AppendRelation(p.body, rel)
		}
	}
	err = eachChange(&changes, func(rec wire.Record, rels []*wire.Relation, ch *wire.Change) error {
		for _, rel := range rels {
			m, err := w.mappingOf(rel, rel.ID)
			if err != nil {
				return err
			}
			tell(m.given)
			if err := w.touches(r, m, rec.Kind, ch); err != nil {
				return err
			}
		}
		if !pack {
			return nil
		}
		p.changes++
		p.body = append(binary.AppendUvarint(append(p.body, byte(rec.Kind)), uint64(len(rec.Payload))), rec.Payload...)
		if len(p.body) > parkedTxnBytes {
			return errTooLarge
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	return r, p, nil
}

// touches adds one change to what a transaction reaches.
func (w *worker) touches(r *reach, m *mapping, kind wire.Kind, ch *wire.Change) error {
	if n := m.name(); !slices.Contains(r.tables, n) {
		r.tables = append(r.tables, n)
	}
	if kind == wire.KindTruncate {
		r.wiped = append(r.wiped, m.name())
		return nil
	}
	m.readable(ch)
	if kind == wire.KindUpdate {
		fillUnchanged(ch)
	}
	for _, tuple := range [][]wire.Value{ch.Old, ch.New} {
		if len(tuple) == 0 {
			continue
		}
		if !m.usable && kind != wire.KindInsert {
			return m.needsKey()
		}
		k, err := w.planner.hash(m, tuple)
		if err != nil {
			return err
		}
		if n := len(r.keys); n == 0 || r.keys[n-1] != k {
			r.keys = append(r.keys, k)
		}
	}
	return nil
}

// park puts t aside for why, whole: the position moves behind it in the transaction that stores it. It is announced, as if
// it were applied: whoever writes here from now on is later than it (PROOF.md R23).
func (w *worker) park(ctx context.Context, t *txn, why error) error {
	r, p, err := w.reach(t, true)
	if errors.Is(err, errTooLarge) {
		return &Blocked{Reason: fmt.Sprintf("transaction %d of %s cannot be applied here, and has more than the %d bytes of changes with which it "+
			"could be parked; mend the cause", t.Seq, w.origin, parkedTxnBytes), Err: why}
	}
	if err != nil {
		return err
	}
	slices.SortFunc(r.keys, compareHash)
	r.keys = slices.Compact(r.keys)
	if err := w.parked.room(t, len(r.keys), int64(len(p.body)), why); err != nil {
		return err
	}
	h := &held{origin: w.origin, keys: r.keys, whole: len(r.wiped) > 0 || t.run != nil}
	if err := w.locks.lock(ctx, h); err != nil {
		return err
	}
	defer w.locks.release(h)
	e := &parkedTxn{Entry: t.entry(), before: w.progress.vector().Get(w.origin), low: t.low.Clone(), bytes: int64(len(p.body)), reach: *r,
		due: w.opts.Now().Add(retryPause), pause: retryPause}
	var on []string
	for _, x := range w.parked.before(t, r) {
		on = append(on, label(x.Entry))
	}
	c := newCarefulRun(w, []*txn{t})
	if err := w.markers.announced(ctx, t.entry()); err != nil {
		return err
	}
	if err := w.prepareParking(ctx); err != nil {
		return err
	}
	c.push("begin", c.beginStatement, nil)
	c.queue = append(c.queue, queued{what: "park", s: w.parking.insert, ps: parkedParams(t, e, p, on, w.reason(ctx, why)), take: func(rows [][][]byte) {
		_, _ = fmt.Sscan(string(rows[0][0]), &e.id) // the server's own number
	}})
	c.push(moved, c.positionStatement, []param{
		int64Param(int64(t.Seq)), int64Param(int64(t.Stamp)), int64Param(int64(t.resume)), int64Param(int64(t.Stamp))})
	c.push("commit", c.commitStatement, nil)
	w.inbox.takeMany(1)
	if err := c.flush(ctx); err != nil {
		w.inbox.rewind()
		if !lost(err) {
			err = &Blocked{Reason: fmt.Sprintf("transaction %d of %s cannot be parked", t.Seq, w.origin), Err: err}
		}
		return errors.Join(err, w.rollBack(ctx, w.conn.PgConn().TxStatus()))
	}
	w.parked.add(e)
	level := slog.LevelWarn
	if sqlstate(why) == "" { // it follows from another one, and may have many like it
		level = slog.LevelDebug
	}
	w.log.Log(ctx, level, "transaction parked", "origin", w.origin.String(), "seq", t.Seq, "id", e.id, "sqlstate", sqlstate(why),
		"depends", strings.Join(on, " "))
	w.land([]landing{{t: t}})
	return nil
}

func sqlstate(err error) string {
	if pg := poison(err); pg != nil {
		return pg.Code
	}
	return ""
}

// parkingStatements are those of park and what follows it, which most workers never need.
type parkingStatements struct{ insert, remove, note, bare *statement }

// The reason's parameters of both are the last five.
const (
	parkSQL = `INSERT INTO pgbridge.parked (origin, epoch, seq, stamp, before_stamp, deps, body, changes, keys, tables, wiped, depends_on,
		sqlstate, message, constraint_name, relation, key)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17) RETURNING id`
	noteSQL = `UPDATE pgbridge.parked SET attempts = attempts + 1, tried_at = clock_timestamp(), request = NULL,
		sqlstate = $2, message = $3, constraint_name = $4, relation = $5, key = $6 WHERE id = $1`
	// The assertion is for a row that somebody has deleted by hand.
	unparkSQL = `WITH p AS (DELETE FROM pgbridge.parked WHERE id = $1 RETURNING 1)
		SELECT 1/count(*), pg_replication_origin_xact_setup('0/0', $2) FROM p`
)

func (w *worker) prepareParking(ctx context.Context) error {
	if w.parking.insert != nil {
		return nil
	}
	reason := []uint32{oidText, oidText, oidText, oidText, oidJSON}
	s := parkingStatements{
		insert: &statement{sql: parkSQL, types: append([]uint32{oidText, oidInt4, oidInt8, oidInt8, oidInt8, oidBytea, oidBytea, oidInt8, oidBytea,
			oidTextArray, oidTextArray, oidTextArray}, reason...)},
		note:   &statement{sql: noteSQL, types: append([]uint32{oidInt8}, reason...)},
		remove: &statement{sql: unparkSQL, types: []uint32{oidInt8, oidTimestamptz}},
	}
	for _, s := range []*statement{s.insert, s.note, s.remove} {
		if err := w.prepared(ctx, s); err != nil {
			return fmt.Errorf("prepare parking: %w", err)
		}
	}
	w.parking = s
	return nil
}

func textsParam(texts []string) param {
	var a array
	a.reset()
	for _, s := range texts {
		a.add([]byte(s), false)
	}
	return binaryParam(a.value(oidText))
}

func parkedParams(t *txn, e *parkedTxn, p *packed, on []string, reason []param) []param {
	return append([]param{textParam(t.origin.Node), binaryParam(binary.BigEndian.AppendUint32(nil, t.origin.Epoch)), int64Param(int64(t.Seq)),
		int64Param(int64(t.Stamp)), int64Param(int64(e.before.Stamp)), binaryParam(wire.AppendVector(wire.AppendVector(nil, t.up), t.low)),
		binaryParam(p.body), int64Param(p.changes), binaryParam(packKeys(e.reach.keys)), textsParam(packTables(e.tables)),
		textsParam(packTables(e.wiped)), textsParam(on)}, reason...)
}

// reason gives SQLSTATE, message, constraint, table and key of a refusal, as parameters; all are NULL of a transaction that
// was not tried.
func (w *worker) reason(ctx context.Context, why error) []param {
	none := param{null: true}
	var depends *dependsError
	if errors.As(why, &depends) {
		return []param{none, none, none, none, none}
	}
	var pg *pgconn.PgError
	if !errors.As(why, &pg) {
		return []param{none, textParam(storable(why.Error())), none, none, none}
	}
	message := pg.Message
	if pg.Detail != "" {
		message += "; " + pg.Detail
	}
	ps := []param{textParam(pg.Code), textParam(storable(message)), none, none, none}
	if pg.ConstraintName != "" {
		ps[2] = textParam(pg.ConstraintName)
	}
	var refused *refusedError
	switch {
	case errors.As(why, &refused) && refused.row.m != nil:
		m := refused.row.m
		ps[3] = textParam(m.local.schema + "." + m.local.name)
		if b := w.keyImage(ctx, m, refused.row.tuple); b != nil {
			ps[4] = param{value: b}
		}
	case pg.TableName != "":
		ps[3] = textParam(pg.SchemaName + "." + pg.TableName)
	}
	return ps
}

// storable is a text without what the server does not take.
func storable(s string) string { return strings.ReplaceAll(strings.ToValidUTF8(s, "�"), "\x00", "") }

// keyImage is the key of a tuple as JSON; nil if the server cannot make it.
func (w *worker) keyImage(ctx context.Context, m *mapping, tuple []wire.Value) []byte {
	b, err := tupleImage(ctx, w.conn, m, m.keyOnly(tuple))
	if err != nil {
		return nil // the error itself is told all the same
	}
	return b
}

// keyOnly is tuple with nothing but its key.
func (m *mapping) keyOnly(tuple []wire.Value) []wire.Value {
	out := make([]wire.Value, len(tuple))
	for i := range out {
		if out[i].Format = wire.Unchanged; m.isKey(i) {
			out[i] = tuple[i]
		}
	}
	return out
}
