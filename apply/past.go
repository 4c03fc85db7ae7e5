package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// pastLimit bounds the keys of a table whose past is known, some 60 bytes each.
const pastLimit = 4 << 20

// past is what the streams say of the rows of one table, whose versions here do not tell any more who wrote
// them: an ALTER TABLE that rewrites it gives every row a new local version that nobody wrote (PROOF.md F10,
// R28), the server forgets stamps (R11), and ids come round (R12). The state of a row is always the latest of all writes
// that were applied or committed here (section 7), so the row's true version is the latest write of its key
// that stands in a stream: the own one, and those of the other origins but the worker's, whose own
// transactions come in order. Only what the worker's transactions do not cover is needed, and that has not
// been purged anywhere (hearsay.everywhereSeq, turn), but for a node that was away for too long (letgo.go).
type past struct {
	local *table
	// It tells of the transactions behind from, up to to; own ones are among them.
	from, to origin.Vector
	// Of which transactions here: those that had ended before to was read. All of an id below horizon had,
	// and those whose rows had been seen.
	horizon uint64
	writers map[uint64]bool
	origins []origin.Origin
	rows    map[wire.KeyHash]pastWrite
	emptied pastWrite // the latest TRUNCATE; seq 0: there is none
}

// pastWrite is the latest write of a key.
type pastWrite struct {
	stamp  origin.Stamp
	seq    uint64
	origin uint16 // its place in origins
	gone   bool   // the row was deleted
}

// tells reports whether p knows the true version of rows of m's table that the transaction id wrote here.
func (p *past) tells(t *txn, m *mapping, id uint64) bool {
	return (id < p.horizon || p.writers[id]) && t.low.Includes(p.from) && p.local.keyedAs(m.local)
}

// keyedAs reports whether the same bytes make the same key in both.
func (t *table) keyedAs(u *table) bool {
	return t == u || slices.EqualFunc(t.key, u.key, func(i, j int) bool {
		return t.cols[i].name == u.cols[j].name && sameKeyType(t.cols[i].oid, u.cols[j].oid)
	})
}

// sameKeyType reports whether equal values of two types hash alike: integers do, whatever their width.
func sameKeyType(a, b uint32) bool {
	return a == b || width(a) != 0 && width(b) != 0
}

// version returns the version of the row with key k; none if all transactions that p was read for cover it.
func (p *past) version(k wire.KeyHash) (origin.Version, uint64, bool) {
	w, ok := p.rows[k]
	if !ok || w.gone || p.emptied.seq != 0 && p.later(p.emptied, w) {
		// The row is there, so that whoever wrote it is later than any delete.
		return origin.Version{}, 0, false
	}
	return p.of(w), w.seq, true
}

func (p *past) of(w pastWrite) origin.Version {
	return origin.Version{Stamp: w.stamp, Origin: p.origins[w.origin]}
}

func (p *past) later(a, b pastWrite) bool { return p.of(a).Later(p.of(b)) }

// release gives the memory back when no transaction from t on can ask any more. All in front of t must have been applied.
func (p *past) release(t *txn) {
	if p.rows != nil && t.low.Includes(p.to) {
		p.rows, p.emptied = nil, pastWrite{} // what is left says: covered
	}
}

// recall reads the past of a table, outside of any transaction, for rows that writers have left.
func (c *carefulRun) recall(ctx context.Context, m *mapping, writers map[uint64]bool) error {
	p := &past{local: m.local, from: c.t.low.Clone(), rows: map[wire.KeyHash]pastWrite{}, writers: maps.Clone(writers)}
	if old := c.pasts[m.name()]; old != nil {
		maps.Copy(p.writers, old.writers)
	}
	// One snapshot: what was applied here before one of these transactions ended is in its positions.
	rows, err := c.exec(ctx, `SELECT pg_snapshot_xmin(pg_current_snapshot())::text, origin, epoch::text, seq::text
		FROM pgbridge.position`, nil, nil)
	if err != nil {
		return fmt.Errorf("read positions: %w", err)
	}
	for _, r := range rows {
		var xmin, seq uint64
		var e origin.Entry
		if _, err := fmt.Sscan(fmt.Sprintf("%s %s %s", r[0], r[2], r[3]), &xmin, &e.Origin.Epoch, &seq); err != nil {
			return fmt.Errorf("read positions: %w", err)
		}
		p.horizon, e.Origin.Node, e.Seq = xmin, string(r[1]), seq
		if e.Origin != c.origin {
			p.to.Advance(e)
		}
	}
	lsn, err := c.markers.flush(ctx)
	if err != nil {
		return err
	}
	if err := c.wal.WaitPassed(ctx, lsn); err != nil {
		return err
	}
	p.to.Advance(origin.Entry{Origin: c.own, Seq: c.wal.Captured()})
	for _, e := range p.to {
		if err := c.recallOrigin(ctx, p, m, e); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			mend := "bring that stream back, or UPDATE the table's rows here, so that they are the latest"
			if errors.Is(err, ErrGap) {
				mend = "they are gone from the streams, which nodes that are away were not to fill: UPDATE the table's rows here, so that they are the latest"
			}
			return &Blocked{Reason: fmt.Sprintf("who wrote rows of table %s is not known here any more (it was rewritten, their commit timestamps "+
				"are gone, or transaction ids have come round), and transactions of %s must be read again to tell what transaction %d meets; %s",
				m.local.quoted, e.Origin, c.t.Seq, mend), Err: err}
		}
	}
	c.pasts[m.name()] = p
	c.log.Info("past of a table read", "origin", c.origin.String(), "table", m.local.quoted, "keys", strconv.Itoa(len(p.rows)))
	return nil
}

// recallOrigin takes in the transactions of one origin, up to e.
func (c *carefulRun) recallOrigin(ctx context.Context, p *past, m *mapping, e origin.Entry) error {
	after := p.from.Seq(e.Origin)
	if after >= e.Seq {
		return nil
	}
	c.say(fmt.Sprintf("transaction %d waits until transactions of %s are read again, which say who wrote rows of table %s",
		c.t.Seq, e.Origin, m.local.quoted))
	b := newInbox(e.Origin, c.opts, after)
	defer b.restart()
	r := recaller{p: p, m: m, planner: &c.planner, origin: uint16(len(p.origins)), after: after, upTo: e.Seq}
	p.origins = append(p.origins, e.Origin)
	return c.streams.Reread(ctx, e.Origin, after, e.Seq, func(f *wire.Frame) error {
		txns, err := b.open(0, f)
		for _, t := range txns {
			if err == nil && !t.vectorOnly {
				err = r.txn(t)
			}
			if t.run != nil {
				t.run.remove()
			}
		}
		return err
	})
}

// recaller takes the transactions of one origin in, in order.
type recaller struct {
	p           *past
	m           *mapping // whose local table it is about
	planner     *planner // hashes keys
	origin      uint16
	after, upTo uint64

	relation *wire.Relation // that keys belongs to
	keys     *mapping       // of the key's columns alone; nil: another table
	change   wire.Change
}

func (r *recaller) txn(t *txn) error {
	if t.Seq <= r.after || t.Seq > r.upTo || r.planner.w.parked.has(t.origin, t.Seq) {
		return nil
	}
	changes, err := newChanges(t)
	if err != nil {
		return err
	}
	w := pastWrite{stamp: t.Stamp, seq: t.Seq, origin: r.origin}
	for {
		rec, relations, err := changes.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := r.record(rec, relations, w); err != nil {
			return err
		}
	}
}

func (r *recaller) record(rec wire.Record, relations map[uint32]*wire.Relation, w pastWrite) error {
	if rec.Kind == wire.KindTruncate {
		_, ids, err := wire.ParseTruncate(rec.Payload)
		for _, id := range ids {
			if rel := relations[id]; rel != nil && r.about(rel) && (r.p.emptied.seq == 0 || r.p.later(w, r.p.emptied)) {
				r.p.emptied = w
			}
		}
		return err
	}
	id, _, err := wire.ParseChange(rec.Payload)
	if err != nil {
		return err
	}
	rel := relations[id]
	switch {
	case rel == nil:
		return fmt.Errorf("%w: relation %d is not described", wire.ErrCorrupt, id)
	case !r.about(rel):
		return nil
	case rel != r.relation:
		if r.keys, err = keysOf(rel, r.m.local); err != nil {
			return err
		}
		r.relation = rel
	}
	if err := r.change.Parse(rec); err != nil {
		return err
	}
	return r.row(w)
}

func (r *recaller) about(rel *wire.Relation) bool {
	return rel.Schema == r.m.local.schema && rel.Name == r.m.local.name
}

// row takes one change in. A changed key is a delete of the old one.
func (r *recaller) row(w pastWrite) error {
	c := &r.change
	if c.Kind == wire.KindUpdate {
		fillUnchanged(c)
	}
	if len(c.Old) > 0 {
		if !r.keys.usable {
			return r.keys.needsKey()
		}
		gone := w
		gone.gone = true
		if err := r.wrote(c.Old, gone); err != nil {
			return err
		}
	}
	if len(c.New) > 0 {
		return r.wrote(c.New, w)
	}
	return nil
}

func (r *recaller) wrote(tuple []wire.Value, w pastWrite) error {
	k, err := r.planner.hash(r.keys, tuple)
	if err != nil {
		return err
	}
	if old, ok := r.p.rows[k]; !ok || !r.p.later(old, w) { // of one transaction, the last counts
		r.p.rows[k] = w
	}
	if len(r.p.rows) > pastLimit {
		return fmt.Errorf("more than %d of its rows were written; that is too many to remember", pastLimit)
	}
	return nil
}

// keysOf fits a relation, as it was when its rows were written, to the local table's key. What its other
// columns were does not matter.
func keysOf(rel *wire.Relation, t *table) (*mapping, error) {
	m := &mapping{remote: rel, local: t, cols: make([]int, len(rel.Columns)), usable: true}
	for i := range m.cols {
		m.cols[i] = -1
	}
	for _, k := range t.key {
		i := slices.IndexFunc(rel.Columns, func(c wire.Column) bool { return c.Name == t.cols[k].name })
		if i < 0 {
			return nil, blocked("rows of %s were written when it had no column %s", t.quoted, t.cols[k].quoted)
		}
		if !sameKeyType(t.cols[k].oid, rel.Columns[i].TypeOID) {
			if err := sameType(t, &t.cols[k], &rel.Columns[i]); err != nil {
				return nil, err
			}
		}
		m.cols[i], m.key = k, append(m.key, i)
		m.usable = m.usable && (rel.Columns[i].Key || rel.ReplicaIdentity == 'f')
	}
	return m, nil
}
