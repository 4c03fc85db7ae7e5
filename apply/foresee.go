package apply

import (
	"errors"
	"io"

	"github.com/pgbridge/pgbridge/wire"
)

// foreseenChanges is how many changes are looked at in advance for keys that the server is to hash.
const foreseenChanges = 1000

// foreseen walks a transaction's changes like changes, and has the server hash the keys of those to come
// in few round trips instead of one each. Where no table needs that it costs nothing.
type foreseen struct {
	*changes
	w     *worker
	t     *txn
	lag   lag
	left  int      // changes that were looked at, or are let pass, before the next look
	at    int      // changes that next has returned
	ahead *changes // nil before it was needed
	been  int      // changes that ahead has returned
	walk  wire.Change
	key   []wire.Value
}

func newForeseen(w *worker, t *txn) (foreseen, error) {
	c, err := newChanges(t)
	w.lag = w.lagOf(t)
	return foreseen{changes: c, w: w, t: t, lag: w.lag}, err
}

func (f *foreseen) next() (wire.Record, map[uint32]*wire.Relation, error) {
	for {
		rec, relations, err := f.one()
		if len(f.lag) == 0 || err != nil {
			return rec, relations, err
		}
		rec, left, err := f.lag.withoutDropped(rec, relations)
		if left || err != nil {
			return rec, relations, err
		}
	}
}

func (f *foreseen) one() (wire.Record, map[uint32]*wire.Relation, error) {
	if f.left == 0 {
		if f.w.served && !f.t.schema { // what is to come may be of tables that are not here yet
			if err := f.look(); err != nil {
				return wire.Record{}, nil, err
			}
		}
		f.left = foreseenChanges
	}
	f.left--
	f.at++
	return f.changes.next()
}

// look learns the digests of the next changes' keys. What cannot be read or hashed is left to whoever needs
// it, who can say more.
func (f *foreseen) look() error {
	if f.ahead == nil {
		c, err := newChanges(f.t)
		if err != nil {
			return err
		}
		f.ahead = c
	}
	for f.been < f.at+foreseenChanges {
		rec, relations, err := f.ahead.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if f.been++; f.been <= f.at || rec.Kind == wire.KindTruncate {
			continue
		}
		if err := f.want(rec, relations); err != nil {
			return err
		}
	}
	return f.w.digests.Learn(f.w.ctx)
}

func (f *foreseen) want(rec wire.Record, relations map[uint32]*wire.Relation) error {
	id, _, err := wire.ParseChange(rec.Payload)
	if err != nil {
		return err
	}
	m, err := f.w.mappingOf(relations[id], id)
	if isBlocked(err) || isLocked(err) || err == nil && !m.local.hasher.Served() {
		return nil
	}
	if err != nil {
		return err
	}
	if err := f.walk.Parse(rec); err != nil {
		return err
	}
	for _, tuple := range [][]wire.Value{f.walk.Old, f.walk.New} {
		if len(tuple) == 0 {
			continue
		}
		if f.key, err = m.keyOf(f.key, tuple); err != nil {
			return nil
		}
		if f.w.digests.Want(m.local.hasher, f.key) {
			if err := f.w.digests.Learn(f.w.ctx); err != nil {
				return err
			}
		}
	}
	return nil
}
