package demo

import (
	"sync"
	"time"
)

// tally counts rows by what happened to them.
type tally struct {
	inserts, updates, deletes int
}

func (t tally) rows() int { return t.inserts + t.updates + t.deletes }

// ledger is what the demonstration itself has committed on one node. A node numbers its transactions from
// 1 in commit order, so that the n-th entry is transaction n, but for sessions that heard of their
// commits in the other order. It is safe for concurrent use.
type ledger struct {
	mu      sync.Mutex
	commits []time.Time // when the writer heard of it
	rows    tally
}

// note enters a transaction that has just been committed. One without rows has no number.
func (l *ledger) note(t tally) {
	if t.rows() == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.commits = append(l.commits, time.Now())
	l.rows.inserts += t.inserts
	l.rows.updates += t.updates
	l.rows.deletes += t.deletes
}

// count returns the number of transactions.
func (l *ledger) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.commits)
}

// tally returns what they did.
func (l *ledger) tally() tally {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rows
}

// at returns when the transaction of that number, from 1, was committed.
func (l *ledger) at(number int) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.commits[number-1]
}
