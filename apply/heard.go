package apply

import (
	"context"
	"fmt"
	"time"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// A transaction's `low` says what its author certainly had seen, and lags behind by a batch: an author who
// updates a row as soon as another node's version of it is there may only declare that version (`up`). An
// update that leaves a large value unchanged needs to know more (PROOF.md R16): was that version the row
// that the author changed, or did it come to his node only afterwards?
//
// In the second case it lost there: to the author's own update, whose stamp is above all that it declares,
// or to something later still. So each node tells, before the COMMIT, of every row on which a transaction
// loses (wire.KindLost), and what is not among these when the node has it in `low` was there first.

// heard is what an origin's stream has told so far, ahead of what is applied of it. The inbox's mutex guards
// it.
type heard struct {
	low       origin.Vector
	lost      map[origin.Version]lostRows
	forgotten origin.Vector // what forget was last told
}

// lostRows are the rows on which one transaction loses: by table, as wire.TableHash gives it, their keys, nil for
// all rows. Too many of a table count as all.
type lostRows map[uint64]map[uint64]struct{}

// lostKeysLimit bounds the keys of one table and transaction that are told one by one.
const lostKeysLimit = 100

// add takes in a row's key, as wire.KeyHasher.Shared gives it; 0 stands for all rows of the table.
func (l lostRows) add(table, key uint64) {
	keys, ok := l[table]
	switch {
	case ok && keys == nil:
		return
	case key == 0 || len(keys) >= lostKeysLimit:
		l[table] = nil
		return
	case !ok:
		keys = map[uint64]struct{}{}
		l[table] = keys
	}
	keys[key] = struct{}{}
}

// has reports whether the row may be among them.
func (l lostRows) has(table, key uint64) bool {
	keys, ok := l[table]
	if !ok || keys == nil || key == 0 {
		return ok
	}
	_, ok = keys[key]
	return ok
}

// losses are the rows as a marker tells of them.
func (l lostRows) losses(v origin.Version) []wire.Loss {
	var all []wire.Loss
	for table, keys := range l {
		if keys == nil {
			all = append(all, wire.Loss{Version: v, Table: table})
		}
		for k := range keys {
			all = append(all, wire.Loss{Version: v, Table: table, Key: k})
		}
	}
	return all
}

// unheardError means that a decision needs what the origin has not told yet.
type unheardError struct{ version origin.Version }

func (e *unheardError) Error() string {
	return fmt.Sprintf("the transaction's origin has not told yet whether %s at %d was there first", e.version.Origin, e.version.Stamp)
}

// hearLost takes in a Y record.
func (b *inbox) hearLost(lost []wire.Loss) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.heard.forgotten = nil
	if b.heard.lost == nil {
		b.heard.lost = map[origin.Version]lostRows{}
	}
	for _, l := range lost {
		if b.heard.lost[l.Version] == nil {
			b.heard.lost[l.Version] = lostRows{}
		}
		b.heard.lost[l.Version].add(l.Table, l.Key)
	}
}

// hearLow takes in low of a frame, after the records of that frame.
func (b *inbox) hearLow(low origin.Vector) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !low.Includes(b.heard.low) || low.Equal(b.heard.low) { // what is read again may be older
		return
	}
	b.heard.low = low
	b.signal()
}

// forget drops what nobody can ask for any more: low is that of a transaction that is applied, and so those of
// all later ones include it.
func (h *heard) forget(low origin.Vector) {
	if low.Equal(h.forgotten) { // as for most transactions
		return
	}
	h.forgotten = low
	for v := range h.lost {
		if low.Get(v.Origin).Stamp >= v.Stamp {
			delete(h.lost, v)
		}
	}
}

// saw reports whether version v of a row, which transactions of the origin declare, had won there before any of
// them changed the row; an unheardError if the origin has not told yet.
func (b *inbox) saw(v origin.Version, table, key uint64) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if lost := b.heard.lost[v]; key != 0 && lost.has(table, key) {
		return false, nil
	}
	if b.heard.low.Get(v.Origin).Stamp < v.Stamp {
		return false, &unheardError{v}
	}
	return !b.heard.lost[v].has(table, key), nil
}

// listenPatience is how long a transaction waits to hear from its origin, which may be unable to tell.
const listenPatience = 5 * time.Second

// listen waits until the origin has told about v. It tells soon, unless it cannot apply v, or is owed rows itself; what
// is behind in its stream must have room here meanwhile. Otherwise the transaction goes on as if its author had not seen v.
func (c *carefulRun) listen(ctx context.Context, v origin.Version) error {
	late := time.NewTimer(listenPatience)
	defer late.Stop()
	for {
		full, changed := c.inbox.full()
		if _, err := c.inbox.saw(v, 0, 0); err == nil {
			return nil
		}
		if full {
			c.deaf = true
			return nil
		}
		c.say(fmt.Sprintf("transaction %d waits to hear from %s whether %s was there first", c.t.Seq, c.origin.Node, v.Origin))
		select {
		case <-changed:
		case <-late.C:
			c.deaf = true
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
