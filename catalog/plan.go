package catalog

import (
	"cmp"
	"fmt"
)

// Sequences of several nodes give different values when each has a number of its own and goes on by steps of one modulus: the
// values of node n are those with remainder n. The modulus is larger than the number of nodes, so that more can come.

// PlanOptions say how sequences are planned.
type PlanOptions struct {
	Nodes []string // all nodes of the cluster, sorted
	// Modulus is the step; 0: that of the others, or at least twice the number of nodes.
	Modulus int64
	// Gap is how many values of each node are left out, so that nodes whose sequences are changed later do not get there
	// meanwhile; 0: 1000.
	Gap int64
}

// leastModulus is the step of small clusters.
const leastModulus = 16

// MostModulus bounds the step: beyond, an integer column would last for too short.
const MostModulus = 4096

// defaultGap is PlanOptions.Gap unless that is given.
const defaultGap = 1000

// Step is what becomes of one sequence.
type Step struct {
	Sequence string `json:"sequence"`
	Table    string `json:"table"`
	Column   string `json:"column"`
	Number   int64  `json:"number"`  // of this node
	Modulus  int64  `json:"modulus"` // of all nodes
	Next     int64  `json:"next"`    // the first value that it will give
	SQL      string `json:"sql,omitempty"`
	// Planned: it is as it should be.
	Planned bool `json:"planned,omitempty"`
	// Refused is why it stays as it is, with the mend.
	Refused string `json:"refused,omitempty"`

	start, most int64
	owned       bool
}

// Plan says what becomes of this node's sequences, so that they give other values than those of the others.
func Plan(here *Summary, others []*Summary, o PlanOptions) ([]Step, error) {
	if o.Gap == 0 {
		o.Gap = defaultGap
	}
	if n := int64(len(o.Nodes)); o.Modulus != 0 && (o.Modulus < n || o.Modulus > MostModulus) {
		return nil, fmt.Errorf("a modulus of %d cannot be; use %d, the number of nodes, to %d", o.Modulus, n, MostModulus)
	}
	steps := []Step{}
	for i := range here.Sequences {
		steps = append(steps, plan(here, &here.Sequences[i], others, o))
	}
	return steps, nil
}

// theirs is a sequence as another node has it.
type theirs struct {
	node string
	*Sequence
}

func plan(here *Summary, q *Sequence, others []*Summary, o PlanOptions) Step {
	var all []theirs
	for _, s := range others {
		if t := s.sequence(q.Table, q.Column); t != nil {
			all = append(all, theirs{s.Node, t})
		}
	}
	m := modulus(q, all, o)
	s := Step{Sequence: q.Name, Table: q.Table, Column: q.Column, Modulus: m, most: q.Most, owned: q.owned}
	numbers := Numbers(o.Nodes, claims(here.Node, q, all, m))
	s.Number = numbers[here.Node]
	s.start = congruent(max(q.Least, 1), s.Number, m)
	switch {
	case q.Last == nil:
		s.Refused = fmt.Sprintf("this role may not see how far it is; run GRANT SELECT ON SEQUENCE %s TO it", q.Name)
		return s
	case q.Increment < 0:
		s.Refused = "it goes down; give each node a part of its values by hand"
		return s
	case q.Cycle:
		s.Refused = fmt.Sprintf("it begins again when it is at its end; run ALTER SEQUENCE %s NO CYCLE first", q.Name)
		return s
	case q.Increment != 1 && !stepOf(q.Increment, m):
		s.Refused = fmt.Sprintf("its increment is %d, which whoever takes blocks of values relies on; give each node a part of its values by hand, or, if it is the modulus of a plan, give that", q.Increment)
		return s
	}
	s.decide(q, all, o.Gap)
	return s
}

// stepOf reports whether an increment is one of a plan: the modulus, or what was worked out for fewer nodes or for more.
func stepOf(increment, m int64) bool { return increment == m || workedOut(increment) && workedOut(m) }

// workedOut reports whether a step may have been worked out: it is then a power of two. Others are taken for those of applications
// that take values in blocks.
func workedOut(step int64) bool {
	return step >= leastModulus && step <= MostModulus && step&(step-1) == 0
}

// decide says whether the sequence can stay, and else where it goes on.
func (s *Step) decide(q *Sequence, all []theirs, gap int64) {
	high, behind := *q.Last, q.InUse != nil
	next, ok := q.next()
	for _, t := range all {
		if t.Last != nil {
			high = max(high, *t.Last)
			behind = behind || t.Increment != s.Modulus && *t.Last >= next
		}
		if t.Highest != nil {
			high = max(high, *t.Highest)
		}
	}
	if q.Highest != nil {
		high = max(high, *q.Highest)
	}
	if ok && q.Increment == s.Modulus && mod(next, s.Modulus) == s.Number && !behind {
		s.Planned, s.Next = true, next
		return
	}
	left := max(s.most-high, 0)
	s.Next = congruent(add(high, min(mul(gap, s.Modulus), left/100)), s.Number, s.Modulus)
	if s.Next >= s.most-s.Modulus {
		s.Refused = fmt.Sprintf("it would have no values left: %d is in use, and %d is the highest that the column and the sequence can hold; make the column bigint, or use a smaller modulus", high, s.most)
		s.Next = 0
		return
	}
	s.SQL = s.statement()
}

// statement is what makes the sequence as planned. TRUNCATE with RESTART IDENTITY goes back to START, which must fit, too.
func (s *Step) statement() string {
	return fmt.Sprintf("ALTER SEQUENCE %s INCREMENT BY %d START WITH %d RESTART WITH %d", s.Sequence, s.Modulus, s.start, s.Next)
}

// congruent is the first number above from with that remainder. Beyond the highest number it is that.
func congruent(from, number, m int64) int64 {
	return add(from, mod(number-from-1, m)+1)
}

// modulus is the step of a sequence: what was asked for, or the largest that a node has already, or enough for twice the nodes.
func modulus(q *Sequence, all []theirs, o PlanOptions) int64 {
	if o.Modulus != 0 {
		return o.Modulus
	}
	m := int64(leastModulus)
	for m < 2*int64(len(o.Nodes)) {
		m *= 2
	}
	planned := int64(0)
	for _, t := range append(all, theirs{"", q}) {
		if workedOut(t.Increment) && t.Increment >= int64(len(o.Nodes)) {
			planned = max(planned, t.Increment)
		}
	}
	return cmp.Or(planned, m)
}

// claims are the numbers that sequences which are planned already give their nodes.
func claims(own string, q *Sequence, all []theirs, m int64) map[string]int64 {
	claimed := map[string]int64{}
	for _, t := range append(all, theirs{own, q}) {
		if t.Last != nil && t.Increment > 1 && stepOf(t.Increment, m) {
			claimed[t.node] = mod(*t.Last, min(t.Increment, m))
		}
	}
	return claimed
}

// Numbers gives each node a number of its own. Those that nodes have already stay; if two have the same, the first by name keeps
// it. The others get their place in the order of names, if that is free, else the lowest that is. Who knows the same numbers all
// nodes alike.
func Numbers(nodes []string, claimed map[string]int64) map[string]int64 {
	numbers, taken := map[string]int64{}, map[int64]bool{}
	give := func(node string, n int64) bool {
		if _, has := numbers[node]; has || taken[n] {
			return false
		}
		numbers[node], taken[n] = n, true
		return true
	}
	for _, node := range nodes {
		if n, ok := claimed[node]; ok {
			give(node, n)
		}
	}
	for i, node := range nodes {
		give(node, int64(i))
	}
	for _, node := range nodes {
		if _, has := numbers[node]; !has {
			n := int64(0)
			for taken[n] {
				n++
			}
			give(node, n)
		}
	}
	return numbers
}
