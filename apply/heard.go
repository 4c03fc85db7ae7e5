package apply

import (
	"context"
	"fmt"

	"github.com/pgbridge/pgbridge/origin"
)

// A transaction's `low` says what its author certainly had seen, and lags behind by a batch: an author who
// updates a row as soon as another node's version of it is there may only declare that version (`up`). An
// update that leaves a large value unchanged needs to know more (PROOF.md R16): was that version the row
// that the author changed, or did it come to his node only afterwards?
//
// In the second case it lost there: to the author's own update, whose stamp is above all that it declares,
// or to something later still. So each node tells, before the COMMIT, of every transaction that loses on
// some row (wire.KindLost), and what is not among these when the node has it in `low` was there first.

// heard is what an origin's stream has told so far, ahead of what is applied of it. The inbox's mutex guards
// it.
type heard struct {
	low  origin.Vector
	lost map[origin.Version]struct{}
}

// unheardError means that a decision needs what the origin has not told yet.
type unheardError struct{ version origin.Version }

func (e *unheardError) Error() string {
	return fmt.Sprintf("the transaction's origin has not told yet whether %s at %d was there first", e.version.Origin, e.version.Stamp)
}

// hearLost takes in a Y record.
func (b *inbox) hearLost(lost []origin.Version) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.heard.lost == nil {
		b.heard.lost = map[origin.Version]struct{}{}
	}
	for _, v := range lost {
		b.heard.lost[v] = struct{}{}
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
	for v := range h.lost {
		if low.Get(v.Origin).Stamp >= v.Stamp {
			delete(h.lost, v)
		}
	}
}

// saw reports whether version v, which transactions of the origin declare, had won on every row there before
// any of them changed such a row; an unheardError if the origin has not told yet.
func (b *inbox) saw(v origin.Version) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.heard.low.Get(v.Origin).Stamp < v.Stamp {
		return false, &unheardError{v}
	}
	_, lost := b.heard.lost[v]
	return !lost, nil
}

// listen waits until the origin has told about v. It tells soon, unless it cannot apply v; what is behind in
// its stream must have room here meanwhile.
func (c *carefulRun) listen(ctx context.Context, v origin.Version) error {
	for {
		full, changed := c.inbox.full()
		if _, err := c.inbox.saw(v); err == nil {
			return nil
		}
		if full {
			return blocked("transaction %d leaves a large value unchanged, and %s has not told yet whether its author had seen the row "+
				"as it is here; such values come along with ALTER TABLE ... REPLICA IDENTITY FULL", c.t.Seq, c.origin.Node)
		}
		c.say(fmt.Sprintf("transaction %d waits to hear from %s whether %s was there first", c.t.Seq, c.origin.Node, v.Origin))
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
