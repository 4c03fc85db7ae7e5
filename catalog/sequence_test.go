package catalog

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

// sequenceOf is a sequence whose last value was taken.
func sequenceOf(last, increment int64) Sequence {
	return Sequence{Name: "s", Table: "t", Column: "id", ColumnType: "bigint", Start: 1, Least: 1, Most: math.MaxInt64, Increment: increment, Last: &last, Taken: true, owned: true}
}

// TestMeet: the first value that two sequences both give is the one that counting finds.
func TestMeet(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		a, b := sequenceOf(r.Int64N(60), 1+r.Int64N(12)), sequenceOf(r.Int64N(60), 1+r.Int64N(12))
		a.Most, b.Most = 40+r.Int64N(200), 40+r.Int64N(200)
		a.Taken, b.Taken = r.IntN(2) == 0, r.IntN(2) == 0
		gives := map[int64]bool{}
		for v, ok := a.next(); ok && v <= a.Most; v += a.Increment {
			gives[v] = true
		}
		want, found := int64(0), false
		for v, ok := b.next(); ok && v <= b.Most && !found; v += b.Increment {
			want, found = v, gives[v]
		}
		if got, ok := meet(&a, &b); ok != found || ok && got != want {
			t.Fatalf("from %d by %d to %d (%t) and from %d by %d to %d (%t): %d, %t; counting finds %d, %t",
				*a.Last, a.Increment, a.Most, a.Taken, *b.Last, b.Increment, b.Most, b.Taken, got, ok, want, found)
		}
	}
}

// TestMeetOfLargeNumbers: nothing overflows where values are large.
func TestMeetOfLargeNumbers(t *testing.T) {
	for _, c := range []struct {
		a, b int64 // last values
		i, j int64 // increments
		want int64
		ok   bool
	}{
		{math.MaxInt64 - 100, math.MaxInt64 - 90, 16, 16, 0, false},
		{math.MaxInt64 - 100, math.MaxInt64 - 84, 16, 16, math.MaxInt64 - 68, true},
		{math.MaxInt64 - 1, 5, 1, 1, 0, false}, // the very last value is not told, which is the one that means none
		{math.MaxInt64, 5, 1, 1, 0, false},
		{1, 2, 1 << 61, 1 << 61, 0, false},
		{1, 1, 1 << 40, 1<<40 + 1, 0, false},
	} {
		a, b := sequenceOf(c.a, c.i), sequenceOf(c.b, c.j)
		if got, ok := meet(&a, &b); ok != c.ok || ok && got != c.want {
			t.Errorf("%+v: %d, %t", c, got, ok)
		}
	}
}

func TestNumbers(t *testing.T) {
	for _, c := range []struct {
		nodes   string
		claimed map[string]int64
		want    map[string]int64
	}{
		{"a b c", nil, map[string]int64{"a": 0, "b": 1, "c": 2}},
		// b comes between two that are planned: they keep theirs.
		{"a b c", map[string]int64{"a": 0, "c": 1}, map[string]int64{"a": 0, "b": 2, "c": 1}},
		// Two that come at once.
		{"a b c d", map[string]int64{"a": 0, "c": 1}, map[string]int64{"a": 0, "b": 2, "c": 1, "d": 3}},
		{"a b d e f", map[string]int64{"a": 0, "d": 1, "e": 2}, map[string]int64{"a": 0, "b": 3, "d": 1, "e": 2, "f": 4}},
		// Two have the same.
		{"a b", map[string]int64{"a": 1, "b": 1}, map[string]int64{"a": 1, "b": 0}},
	} {
		if got := Numbers(strings.Fields(c.nodes), c.claimed); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s with %v: %v, not %v", c.nodes, c.claimed, got, c.want)
		}
	}
}

// TestPlannedSequencesNeverMeet: nodes are planned one after the other, while all go on giving values, also beyond the gap, and
// nodes come that stand anywhere in the order of names. As soon as every node says that it is planned, no value is given that
// was given before, by any.
func TestPlannedSequencesNeverMeet(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := &world{r: r, given: map[int64]string{}, nodes: map[string]*Summary{}}
		for range 2 + r.IntN(4) {
			w.join()
		}
		for range 1 + r.IntN(3) {
			passes := 0
			for again := true; again; passes++ {
				again = false
				for _, i := range r.Perm(len(w.names)) {
					w.use(r.IntN(100))
					again = !w.plan(t, w.names[i]).Planned || again
				}
			}
			if passes > len(w.names)+2 {
				t.Errorf("seed %d: it took %d passes to plan %d nodes", seed, passes, len(w.names))
			}
			w.whole = true
			w.use(400)
			if w.twice != "" {
				t.Fatalf("seed %d: %s", seed, w.twice)
			}
			w.whole = false
			w.join()
		}
	}
}

// world is nodes that fill one column.
type world struct {
	r     *rand.Rand
	nodes map[string]*Summary
	names []string
	given map[int64]string
	whole bool   // every node is planned
	twice string // a value that was given twice then
}

// join adds a node with a fresh sequence.
func (w *world) join() {
	name := fmt.Sprintf("n%02d", w.r.IntN(100))
	if w.nodes[name] != nil {
		return
	}
	q := sequenceOf(1, 1)
	q.Taken = false
	w.nodes[name] = &Summary{Node: name, Sequences: []Sequence{q}}
	w.names = w.names[:0]
	for i := range 100 {
		if n := fmt.Sprintf("n%02d", i); w.nodes[n] != nil {
			w.names = append(w.names, n)
		}
	}
}

// use takes values at nodes, most of them at one.
func (w *world) use(times int) {
	busy := w.names[w.r.IntN(len(w.names))]
	for range times {
		n := busy
		if w.r.IntN(10) == 0 {
			n = w.names[w.r.IntN(len(w.names))]
		}
		q := &w.nodes[n].Sequences[0]
		v, _ := q.next()
		*q.Last, q.Taken = v, true
		if by := w.given[v]; by != "" && w.whole {
			w.twice = fmt.Sprintf("%d is given by %s and by %s", v, by, n)
		}
		w.given[v] = n
		for _, s := range w.nodes { // rows are replicated
			if h := s.Sequences[0].Highest; h == nil || *h < v {
				s.Sequences[0].Highest = &v
			}
		}
	}
}

// plan plans a node's sequence and changes it.
func (w *world) plan(t *testing.T, name string) Step {
	t.Helper()
	var others []*Summary
	for _, n := range w.names {
		if n != name {
			others = append(others, w.nodes[n])
		}
	}
	q := &w.nodes[name].Sequences[0]
	q.InUse = nil
	if next, ok := q.next(); ok && q.Highest != nil {
		for v := next; v <= *q.Highest && q.InUse == nil; v += q.Increment {
			if w.given[v] != "" {
				q.InUse = &v
			}
		}
	}
	steps, err := Plan(w.nodes[name], others, PlanOptions{Nodes: w.names, Gap: 1})
	if err != nil || len(steps) != 1 || steps[0].Refused != "" {
		t.Fatal(steps, err)
	}
	if s := steps[0]; !s.Planned {
		*q.Last, q.Taken, q.Increment = s.Next, false, s.Modulus
	}
	return steps[0]
}

// TestPlanGoesBehindAll: what any node has given, or any row has, is not given again.
func TestPlanGoesBehindAll(t *testing.T) {
	const far = 1_000_000
	high := int64(far)
	for name, change := range map[string]func(own, other *Sequence){
		"own":           func(own, _ *Sequence) { *own.Last = far },
		"own row":       func(own, _ *Sequence) { own.Highest = &high },
		"another's":     func(_, other *Sequence) { *other.Last = far },
		"another's row": func(_, other *Sequence) { other.Highest = &high },
	} {
		own, other := sequenceOf(10, 1), sequenceOf(10, 1)
		change(&own, &other)
		steps, err := Plan(&Summary{Node: "b", Sequences: []Sequence{own}}, []*Summary{{Node: "a", Sequences: []Sequence{other}}}, PlanOptions{Nodes: []string{"a", "b"}})
		if err != nil || steps[0].Next <= far || steps[0].Next%16 != 1 {
			t.Errorf("%s: %+v, %v", name, steps, err)
		}
	}
}

// TestPlanOfEqualNumbers: of two nodes with one number, as after a setval, the second by name is given another one.
func TestPlanOfEqualNumbers(t *testing.T) {
	a, b := sequenceOf(16*1000+1, 16), sequenceOf(16*2000+1, 16)
	nodes := PlanOptions{Nodes: []string{"a", "b"}}
	here, there := &Summary{Node: "a", Sequences: []Sequence{a}}, &Summary{Node: "b", Sequences: []Sequence{b}}
	if steps, err := Plan(here, []*Summary{there}, nodes); err != nil || !steps[0].Planned {
		t.Errorf("the first: %+v, %v", steps, err)
	}
	if steps, err := Plan(there, []*Summary{here}, nodes); err != nil || steps[0].Planned || steps[0].Number != 0 || steps[0].Next%16 != 0 {
		t.Errorf("the second: %+v, %v", steps, err)
	}
}

// TestPlanWhenOvertaken: a node whose sequence is not planned has come to where this one goes on, which nothing else tells.
func TestPlanWhenOvertaken(t *testing.T) {
	a, b := sequenceOf(16*1000, 16), sequenceOf(20_000, 1)
	steps, err := Plan(&Summary{Node: "a", Sequences: []Sequence{a}}, []*Summary{{Node: "b", Sequences: []Sequence{b}}}, PlanOptions{Nodes: []string{"a", "b"}})
	if err != nil || steps[0].Planned || steps[0].Next <= 20_000 {
		t.Errorf("%+v, %v", steps, err)
	}
}

func TestPlanRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Sequence)
		want   string
	}{
		"unseen":  {func(q *Sequence) { q.Last = nil }, "run GRANT SELECT ON SEQUENCE s"},
		"down":    {func(q *Sequence) { q.Increment = -1 }, "it goes down"},
		"cycle":   {func(q *Sequence) { q.Cycle = true }, "run ALTER SEQUENCE s NO CYCLE first"},
		"blocks":  {func(q *Sequence) { q.Increment = 50 }, "its increment is 50"},
		"no room": {func(q *Sequence) { q.Most = math.MaxInt16; *q.Last = 32760 }, "make the column bigint"},
	} {
		q := sequenceOf(10, 1)
		c.change(&q)
		steps, err := Plan(&Summary{Node: "a", Sequences: []Sequence{q}}, nil, PlanOptions{Nodes: []string{"a", "b"}})
		if err != nil || !strings.Contains(steps[0].Refused, c.want) || steps[0].SQL != "" {
			t.Errorf("%s: %+v, %v", name, steps, err)
		}
	}
	for _, m := range []int64{1, -3, MostModulus + 1} {
		if _, err := Plan(&Summary{}, nil, PlanOptions{Nodes: []string{"a", "b"}, Modulus: m}); err == nil || !strings.Contains(err.Error(), "use 2, the number of nodes, to 4096") {
			t.Errorf("modulus %d: %v", m, err)
		}
	}
}

// TestPlanOfSmallColumns: the gap for nodes that are planned later does not use a small column up.
func TestPlanOfSmallColumns(t *testing.T) {
	q := sequenceOf(100, 1)
	q.Most = math.MaxInt16
	steps, err := Plan(&Summary{Node: "b", Sequences: []Sequence{q}}, nil, PlanOptions{Nodes: []string{"a", "b"}})
	if err != nil || steps[0].SQL != "ALTER SEQUENCE s INCREMENT BY 16 START WITH 17 RESTART WITH 433" {
		t.Errorf("%+v, %v", steps, err)
	}
}

func TestExhausted(t *testing.T) {
	for _, c := range []struct {
		last, most, increment int64
		found, urgent         bool
		left                  int64
	}{
		{1000, math.MaxInt32, 1, false, false, 0},
		{79, 100, 1, false, false, 0},
		{85, 100, 1, true, false, 15},
		{85, 100, 4, true, false, 3},
		{98, 100, 1, true, true, 2},
		{100, 100, 1, true, true, 0},
		{math.MaxInt64, math.MaxInt64, 1, true, true, 0},
	} {
		q := sequenceOf(c.last, c.increment)
		q.Most = c.most
		got := Exhausted(&Summary{Sequences: []Sequence{q}})
		if len(got) == 1 != c.found || c.found && (got[0].Urgent != c.urgent || got[0].Left != c.left) {
			t.Errorf("%+v: %+v", c, got)
		}
	}
}
