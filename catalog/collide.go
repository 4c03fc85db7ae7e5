package catalog

import (
	"fmt"
	"math"
)

// Collision is a column that two nodes fill with values of which some are the same.
type Collision struct {
	Sequence *Sequence // this node's
	Node     string    // the other one
	Value    int64     // the first that both may give
	Text     string
}

// Collisions says which sequences of this node will give values that the other node's give, too.
func Collisions(here, there *Summary) []Collision {
	var all []Collision
	for i := range here.Sequences {
		q := &here.Sequences[i]
		o := there.sequence(q.Table, q.Column)
		if o == nil {
			continue
		}
		if v, ok := meet(q, o); ok {
			all = append(all, Collision{q, there.Node, v, fmt.Sprintf(
				"column %s of table %s is filled by sequence %s, which goes on %s here and %s on node %s: both will give %d",
				quote(q.Column), q.Table, q.Name, q.way(), o.way(), there.Node, v)})
		}
	}
	return all
}

// way says where a sequence goes on, and how.
func (s *Sequence) way() string {
	if next, ok := s.next(); ok {
		return fmt.Sprintf("from %d by %d", next, s.Increment)
	}
	return fmt.Sprintf("by %d", s.Increment)
}

// meet returns the first value that both sequences will give. Where it is not known how far one is, it counts from where it
// started: that says at least which values it gives.
func meet(a, b *Sequence) (int64, bool) {
	if a.Increment <= 0 || b.Increment <= 0 {
		// One that goes down meets what it does not know; that both are in use at the same end is all that can be told.
		return a.Start, a.Increment < 0 && b.Increment < 0
	}
	from, to := a.from(), b.from()
	if from == math.MaxInt64 || to == math.MaxInt64 {
		return 0, false
	}
	g, x := euclid(a.Increment%b.Increment, b.Increment)
	diff := mod(mod(to, b.Increment)-mod(from, b.Increment), b.Increment)
	if diff%g != 0 {
		return 0, false
	}
	// from + k * a.Increment is one of b's values for k = diff/g * x, modulo b.Increment/g.
	step := b.Increment / g
	k := mulmod(diff/g, mod(x, step), step)
	first := add(from, mul(k, a.Increment))
	common := mul(a.Increment, step) // from one common value to the next
	if low := max(from, to); first < low {
		first = add(first, mul((low-first+common-1)/common, common))
	}
	return first, first <= min(a.Most, b.Most) && first != math.MaxInt64
}

// from is where the values that a sequence will give begin; beyond all, if there are none any more.
func (s *Sequence) from() int64 {
	if next, ok := s.next(); ok {
		return next
	}
	if s.Last != nil {
		return math.MaxInt64
	}
	return s.Start
}

// euclid returns the greatest common divisor of a and m, and x with a * x = g modulo m.
func euclid(a, m int64) (g, x int64) {
	r, next := m, a
	x, y := int64(0), int64(1)
	for next != 0 {
		q := r / next
		r, next = next, r-q*next
		x, y = y, x-q*y
	}
	return r, x
}

// mod is the remainder that is not negative.
func mod(a, m int64) int64 { return (a%m + m) % m }

// mul and add stop at the highest number; what they are given is not negative, but for one that is below zero by less than the
// other is above.
func mul(a, b int64) int64 {
	if a != 0 && b > math.MaxInt64/a {
		return math.MaxInt64
	}
	return a * b
}

func add(a, b int64) int64 {
	if a > 0 && b > math.MaxInt64-a {
		return math.MaxInt64
	}
	return a + b
}

// mulmod is a * b modulo m, without overflow: numbers of sequences may be large.
func mulmod(a, b, m int64) int64 {
	var sum uint64
	for x := uint64(a); b > 0; b >>= 1 {
		if b&1 == 1 {
			sum = (sum + x) % uint64(m)
		}
		x = x * 2 % uint64(m)
	}
	return int64(sum)
}

// The parts of its values that a sequence may have given before it is said that they come to an end.
const (
	soon     = 0.8
	verySoon = 0.95
)

// Exhaustion is how far a sequence is from its end.
type Exhaustion struct {
	Sequence *Sequence
	Used     float64 // 0 to 1
	Left     int64   // values that it can give
	Urgent   bool
}

// Exhausted returns the sequences that are about to have no values any more. One that begins again where it started gives
// values twice, which an index refuses.
func Exhausted(s *Summary) []Exhaustion {
	var all []Exhaustion
	for i := range s.Sequences {
		q := &s.Sequences[i]
		if q.Last == nil || q.Increment <= 0 || q.Most <= q.Least {
			continue
		}
		used := (float64(*q.Last) - float64(q.Least)) / (float64(q.Most) - float64(q.Least))
		if used >= soon {
			left := int64(0)
			if next, ok := q.next(); ok && next <= q.Most {
				left = (q.Most-next)/q.Increment + 1
			}
			all = append(all, Exhaustion{q, used, left, used >= verySoon})
		}
	}
	return all
}
