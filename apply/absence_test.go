package apply

import (
	"strconv"
	"testing"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

var (
	nodeC  = origin.Origin{Node: "c", Epoch: 1}
	tableX = tableName{"public", "x"}
	tableY = tableName{"public", "y"}
)

func seqs(a, c uint64) origin.Vector {
	return origin.Vector{{Origin: nodeA, Seq: a}, {Origin: nodeC, Seq: c}}
}

func hashOf(n uint64) wire.KeyHash { return wire.KeyHash{Lo: n} }

func dueAt(a *absence, applied origin.Vector) int { return len(a.due(applied, 100)) }

// TestTakeBackWaitsForAllThatMayMakeTheRow: whichever transaction ends last may be the one that makes it.
func TestTakeBackWaitsForAllThatMayMakeTheRow(t *testing.T) {
	for name, begin := range map[string]func(a *absence){
		"tables": func(a *absence) {
			a.createMany(tableX, registration{nodeA, 5})
			a.createMany(tableX, registration{nodeC, 7})
			a.createMany(tableX, registration{nodeA, 6})
		},
		"a key and a table": func(a *absence) {
			a.createMany(tableX, registration{nodeC, 7})
			a.create(registration{nodeA, 6}, origin.Version{}, nil, created{tableX, hashOf(1)})
		},
		"a table and a key": func(a *absence) {
			a.createMany(tableX, registration{nodeA, 6})
			a.create(registration{nodeC, 7}, origin.Version{}, nil, created{tableX, hashOf(1)})
		},
		"a key twice": func(a *absence) {
			a.create(registration{nodeA, 6}, origin.Version{}, nil, created{tableX, hashOf(1)})
			a.create(registration{nodeC, 7}, origin.Version{}, nil, created{tableX, hashOf(1)})
		},
	} {
		for what, remove := range map[string]func(a *absence){
			"DELETE":   func(a *absence) { a.deleted(tableX, nil, hashOf(1), tombstone{}, 100, true) },
			"TRUNCATE": func(a *absence) { a.truncatedHere(tableX, tombstone{}, 100, true) },
		} {
			t.Run(name+"/"+what, func(t *testing.T) {
				a := newAbsence()
				begin(a)
				remove(a)
				for _, early := range []origin.Vector{seqs(5, 6), seqs(6, 6), seqs(5, 7)} {
					if n := dueAt(a, early); n != 0 {
						t.Errorf("%d due at %v", n, early)
					}
				}
				if n := dueAt(a, seqs(6, 7)); n != 1 {
					t.Errorf("%d due when all have ended", n)
				}
			})
		}
	}
}

// TestUnsettledIsNotTold: what has made rows of a merged table is told others when no local delete may take them back any more.
func TestUnsettledIsNotTold(t *testing.T) {
	for name, c := range map[string]struct {
		merged bool
		remove func(a *absence)
		want   origin.Vector
	}{
		"delete":        {true, func(a *absence) { a.deleted(tableX, nil, hashOf(1), tombstone{}, 100, true) }, seqs(3, 9)},
		"truncate":      {true, func(a *absence) { a.truncatedHere(tableX, tombstone{}, 100, true) }, seqs(3, 9)},
		"another row":   {true, func(a *absence) { a.deleted(tableX, nil, hashOf(2), tombstone{}, 100, true) }, seqs(8, 9)},
		"not merged":    {false, func(a *absence) { a.deleted(tableX, nil, hashOf(1), tombstone{}, 100, true) }, seqs(8, 9)},
		"after a start": {true, func(a *absence) { a.rescan = 200; a.deleted(tableX, nil, hashOf(2), tombstone{}, 100, false) }, seqs(3, 4)},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAbsence()
			a.merged = func(n tableName) bool { return c.merged && n == tableX }
			a.create(registration{nodeA, 5}, origin.Version{}, nil, created{tableX, hashOf(1)})
			c.remove(a)
			if got := a.told(seqs(3, 4), seqs(8, 9)); !got.Equal(c.want) {
				t.Errorf("told %v, want %v", got, c.want)
			}
			a.done(a.due(seqs(8, 9), 1), nil)
			if got := a.told(seqs(3, 4), seqs(8, 9)); !got.Equal(seqs(8, 9)) {
				t.Errorf("told %v when all is done", got)
			}
		})
	}
}

// TestTruncateWaitsForEveryRegisteredKey, of which there may be many of any table.
func TestTruncateWaitsForEveryRegisteredKey(t *testing.T) {
	a := newAbsence()
	for i := range uint64(50) {
		a.create(registration{nodeA, i + 1}, origin.Version{}, nil, created{tableY, hashOf(i)})
		a.create(registration{nodeC, i + 1}, origin.Version{}, nil, created{tableX, hashOf(100 + i)})
	}
	a.truncatedHere(tableX, tombstone{}, 100, true)
	if dueAt(a, seqs(50, 49)) != 0 || dueAt(a, seqs(49, 50)) != 0 || dueAt(a, seqs(50, 50)) != 1 {
		t.Error("due too early or not at all")
	}
}

// TestTakeBackDoesNotWaitForWhatWasRolledBack, but for what is in front of it.
func TestTakeBackDoesNotWaitForWhatWasRolledBack(t *testing.T) {
	a := newAbsence()
	for seq := uint64(4); seq <= 10; seq++ {
		a.createMany(tableX, registration{nodeA, seq})
	}
	a.withdraw(nodeA, 6) // 4 and 5 are in flight still
	a.deleted(tableX, nil, hashOf(1), tombstone{}, 100, true)
	if dueAt(a, seqs(4, 0)) != 0 {
		t.Error("due while 5 is in flight")
	}
	if dueAt(a, seqs(5, 0)) != 1 {
		t.Error("not due although 6 was rolled back")
	}
	a.createMany(tableX, registration{nodeA, 6})
	a.done(a.due(seqs(5, 0), 1), nil)
	a.deleted(tableX, nil, hashOf(2), tombstone{}, 101, true)
	if dueAt(a, seqs(5, 0)) != 0 {
		t.Error("due while 6 is in flight again")
	}
}

// TestUnsettledBy: what makes a key unsettled for transaction 6 of a.
func TestUnsettledBy(t *testing.T) {
	key := func(o origin.Origin, seq uint64) func(a *absence) {
		return func(a *absence) { a.create(registration{o, seq}, origin.Version{}, nil, created{tableX, hashOf(1)}) }
	}
	wide := func(o origin.Origin, seq uint64) func(a *absence) {
		return func(a *absence) { a.createMany(tableX, registration{o, seq}) }
	}
	back := func(o origin.Origin, seq uint64) func(a *absence) {
		return func(a *absence) { a.withdraw(o, seq) }
	}
	for _, c := range []struct {
		name string
		does []func(a *absence)
		low  origin.Vector
		want bool
	}{
		{"nothing", nil, seqs(0, 0), false},
		{"itself", []func(a *absence){key(nodeA, 6)}, seqs(5, 0), false},
		{"an earlier one", []func(a *absence){key(nodeA, 5)}, seqs(4, 0), true},
		{"an earlier one that capture has passed", []func(a *absence){key(nodeA, 5)}, seqs(5, 0), false},
		{"one behind it, rolled back", []func(a *absence){key(nodeA, 7), back(nodeA, 6)}, seqs(5, 0), false},
		{"one behind it, which hides an earlier one", []func(a *absence){key(nodeA, 5), key(nodeA, 7), back(nodeA, 6)}, seqs(4, 0), true},
		{"table: itself and an earlier one", []func(a *absence){wide(nodeA, 5), wide(nodeA, 6)}, seqs(4, 0), true},
		{"table: itself", []func(a *absence){wide(nodeA, 6)}, seqs(5, 0), false},
		{"another origin's", []func(a *absence){key(nodeC, 3)}, seqs(5, 2), true},
		{"another origin's, hidden by itself", []func(a *absence){key(nodeC, 3), key(nodeA, 6)}, seqs(5, 2), true},
		{"another origin's, rolled back", []func(a *absence){key(nodeC, 3), back(nodeC, 3)}, seqs(5, 2), false},
		{"another origin's, rolled back, which hides one of its own", []func(a *absence){key(nodeC, 2), key(nodeC, 3), back(nodeC, 3)}, seqs(5, 1), true},
		{"table: another origin's", []func(a *absence){wide(nodeC, 3), wide(nodeA, 6)}, seqs(5, 2), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newAbsence()
			for _, do := range c.does {
				do(a)
			}
			a.settle(c.low)
			if got := a.unsettled(tableX, hashOf(1), registration{nodeA, 6}, 1); got != c.want {
				t.Errorf("unsettled %v", got)
			}
		})
	}
}

func TestRegistrationsAreForgotten(t *testing.T) {
	a := newAbsence()
	for i := range uint64(1000) {
		if i == 500 && len(a.concerned(tableX, hashOf(0))) != 2 { // what came before is in the index, the rest is not
			t.Errorf("registered are %v and %v", a.registered, a.others)
		}
		a.createMany(tableX, registration{nodeA, i + 1})
		a.create(registration{nodeA, i + 1}, origin.Version{}, nil, created{tableX, hashOf(i % 10)})
		a.create(registration{nodeC, i + 1}, origin.Version{}, nil, created{tableX, hashOf(i % 10)})
	}
	if n := len(a.wide[tableX]); n != 1 {
		t.Errorf("%d entries for the table", n)
	}
	if len(a.fresh) != 1000 || a.freshKeys != 1000 {
		t.Errorf("%d registrations of %d keys are not in the index", len(a.fresh), a.freshKeys)
	}
	a.settle(seqs(1000, 1000))
	if len(a.registered)+len(a.others)+len(a.wide)+len(a.order[nodeA])+len(a.order[nodeC])+len(a.fresh)+a.freshKeys != 0 {
		t.Errorf("left: %v %v %v, %d of %d keys not in the index", a.registered, a.others, a.wide, len(a.fresh), a.freshKeys)
	}
}

// TestTakesComeInOrder, are kept until they are done, and hold the slot at the lowest.
func TestTakesComeInOrder(t *testing.T) {
	a := newAbsence()
	const n = 100
	for i := range uint64(n) {
		a.create(registration{nodeA, i + 1}, origin.Version{}, nil, created{tableX, hashOf(i)})
	}
	for i := range uint64(n) { // the first deleted is the last to end
		a.deleted(tableX, nil, hashOf(n-1-i), tombstone{}, 100+i, true)
	}
	for ended := uint64(0); ended < n; ended++ {
		if due := a.due(seqs(ended, 0), n); len(due) != 0 {
			t.Fatalf("%d due when %d have ended", len(due), ended)
		}
		due := a.due(seqs(ended+1, 0), n)
		if len(due) != 1 || due[0].hash != hashOf(ended) || a.holdLSN() != 100 {
			t.Fatalf("%d due, held at %d", len(due), a.holdLSN())
		}
		if ended == n/2 {
			a.done(due, due)
			if due = a.due(seqs(ended+1, 0), n); len(due) != 1 {
				t.Fatal("what failed does not come again")
			}
		}
		if !a.unsettled(tableX, due[0].hash, registration{nodeC, 1}, 1) {
			t.Error("settled too early")
		}
		a.done(due, nil)
	}
	if a.holdLSN() != 0 || len(a.takes.keys) != 0 || a.takesWait() {
		t.Error("something is left")
	}
}

// BenchmarkTakes/n: a local DELETE of n rows, each of which another transaction had made; half of these have
// not ended when capture tells of the deletes, and the take-back worker looks after each.
func BenchmarkTakes(b *testing.B) {
	for _, n := range []uint64{10_000, 100_000, 1_000_000} {
		b.Run(strconv.FormatUint(n, 10), func(b *testing.B) {
			for range b.N {
				a := newAbsence()
				a.begins(registration{nodeA, n})
				for i := range n {
					a.push(take{table: tableX, key: intKey(int(i)), hash: hashOf(i), commitLSN: 100, after: seqs(i+1, 0)}, false)
					a.done(a.due(seqs(n/2, 0), 1), nil)
					a.holdLSN()
				}
				for left := n / 2; left > 0; {
					due := a.due(seqs(n, 0), takesAtOnce)
					a.done(due, nil)
					left -= uint64(len(due))
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/take")
		})
	}
}
