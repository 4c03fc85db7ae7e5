package capture

import (
	"sync"
	"time"
)

// ledgerLimit bounds the frames that wait to become durable, 16 bytes each. Above it every second one is
// forgotten, which makes what is confirmed coarser and never more.
const ledgerLimit = 1 << 17

// ledger knows which frame makes which LSN safe. It is what the slot is confirmed by (PROOF.md R6, R20): never
// beyond the state that a durable frame holds, and never at or beyond a local delete whose take-back is not
// flushed. Safe for concurrent use.
type ledger struct {
	pub   Publisher
	del   Deletes
	after time.Duration // Options.ConfirmAfter

	mu        sync.Mutex
	waiting   []ledgerEntry // oldest first; guarded by mu, as are the others
	durable   uint64        // what durable frames make safe
	confirmed uint64        // what the server may be told; only rises
	// pending could be told at since, and settled is what can be told now.
	pending, settled uint64
	since            time.Time
}

// ledgerEntry says that all that committed below lsn is in frames up to stream.
type ledgerEntry struct{ stream, lsn uint64 }

func (l *ledger) push(stream, lsn uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) >= ledgerLimit {
		keep := l.waiting[:0]
		for i := 1; i < len(l.waiting); i += 2 {
			keep = append(keep, l.waiting[i])
		}
		l.waiting = keep
	}
	l.waiting = append(l.waiting, ledgerEntry{stream, lsn})
}

// begin takes over what the slot is confirmed up to already.
func (l *ledger) begin(confirmed uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.confirmed = max(l.confirmed, confirmed)
	l.settled = max(l.settled, confirmed)
}

// tell returns what to tell the server now: what confirm returned l.after ago or before.
func (l *ledger) tell(now time.Time) uint64 {
	lsn := l.confirm()
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.since) >= l.after {
		l.settled = max(l.settled, l.pending)
		l.pending, l.since = lsn, now
	}
	return l.settled
}

// confirm returns the LSN up to which the server need not keep WAL for us.
func (l *ledger) confirm() uint64 {
	// In this order: what lies in a frame that is durable by now was told to Deletes before that frame was
	// published, so that hold knows of it.
	durable := l.pub.Durable()
	hold := l.del.HoldLSN()
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for ; n < len(l.waiting) && l.waiting[n].stream <= durable; n++ {
		l.durable = max(l.durable, l.waiting[n].lsn)
	}
	l.waiting = l.waiting[n:]
	lsn := l.durable
	if hold != 0 && lsn >= hold {
		lsn = hold - 1
	}
	l.confirmed = max(l.confirmed, lsn)
	return l.confirmed
}
