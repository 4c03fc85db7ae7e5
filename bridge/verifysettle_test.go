package bridge

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/origin"
)

// lagging are two nodes, a and b, that have rows by table and key and see each other's transactions late: what a look asks for that
// its node has not seen yet takes so long.
type lagging struct {
	rows  map[string]map[string][2]string // as shown has them; "*": another one each time, or in the first looks only
	lag   time.Duration
	seen  [2]uint64 // how far a has seen what b does, and b what a does
	done  [2]uint64 // transactions of a and b
	waits int
	mu    sync.Mutex     // guards looks
	looks map[string]int // by key
}

func (n *lagging) ask(_ context.Context, node string, q *apply.VerifyQuestion) (*apply.VerifyAnswer, error) {
	me := slices.Index([]string{"a", "b"}, node)
	a := &apply.VerifyAnswer{}
	switch q.Kind {
	case apply.VerifyTables:
		for name := range n.rows {
			a.Tables = append(a.Tables, &apply.VerifyTable{Schema: "s", Name: name, Columns: []string{"id"}, Key: []string{"id"}})
		}
	case apply.VerifyDigest:
		a.Rows = len(n.rows[q.Table.Name])
	case apply.VerifyList:
		for key := range n.rows[q.Table.Name] {
			a.Hashes = append(a.Hashes, apply.VerifiedEntry{Key: [][]byte{[]byte(key)}, Hash: []byte(node)})
		}
	case apply.VerifyLook:
		others := originAt(1 - me)
		if seq := q.After.Seq(others); seq > n.seen[me] {
			n.seen[me] = seq
			n.waits++
			<-time.After(n.lag) // in the time of synctest, which is not waited for
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, key := range q.Keys {
			text := n.rows[q.Table.Name][string(key[0])][me]
			text, changes := strings.CutPrefix(text, "*")
			if n.done[me]++; changes && (text == "" || n.looks[string(key[0])] < 2) {
				text = fmt.Sprintf("w%d %s%d", n.done[me], node, n.done[me])
			}
			l := shown(text)
			l.Cells = []apply.VerifyCell{{Hash: uint64(me)}}
			a.Looks = append(a.Looks, l)
			n.looks[string(key[0])]++
		}
		a.Seen.Advance(origin.Entry{Origin: originAt(me), Seq: n.done[me]})
		a.Seen.Advance(origin.Entry{Origin: others, Seq: n.seen[me]})
	}
	return a, nil
}

func originAt(i int) origin.Origin { return origin.Origin{Node: []string{"a", "b"}[i], Epoch: 1} }

func (n *lagging) compare(t *testing.T, o VerifyOptions) *VerifyReport {
	t.Helper()
	n.looks = map[string]int{}
	ask := func(ctx context.Context, node string, q *apply.VerifyQuestion) (*apply.VerifyAnswer, error) {
		return n.ask(ctx, node, q)
	}
	r, err := newVerifyRun(ask, []string{"a", "b"}, o, func(VerifyProgress) {}).run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func foundRows(r *VerifyReport) (rows []string) {
	for _, d := range r.Found {
		rows = append(rows, d.Table+" "+d.Key)
	}
	return rows
}

// TestNodesThatAreBehindAreWaitedForOnce: however many tables have rows that differ, as many looks wait as for one.
func TestNodesThatAreBehindAreWaitedForOnce(t *testing.T) {
	n := &lagging{rows: map[string]map[string][2]string{}}
	for i := range 7 {
		n.rows[fmt.Sprint("t", i)] = map[string][2]string{"1": {"w1 x", "v1 y"}}
	}
	if r := n.compare(t, VerifyOptions{}); r.Differences != 7 || n.waits != 2*sureLooks-2 {
		t.Errorf("%d rows differ, and nodes were waited for %d times", r.Differences, n.waits)
	}
}

// TestARowThatNeverStandsIsGivenUpWhereNodesAreBehind: it would be looked at for hours; rows that stand still, or come to, are found
// all the same.
func TestARowThatNeverStandsIsGivenUpWhereNodesAreBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &lagging{lag: settleLong / 2, rows: map[string]map[string][2]string{"t": {"1": {"*", "*"}, "2": {"w1 x", "v1 y"}, "3": {"", "v1 y"}, "4": {"*w1 x", "*v1 y"}}}}
		r := n.compare(t, VerifyOptions{Limit: 9})
		if got := fmt.Sprint(foundRows(r), r.Unsettled, n.looks["1"]); got != "[s.t id=2 s.t id=3 s.t id=4] [{s.t id=1 it changed each time that it was looked at}] 6" {
			t.Error(got)
		}
	})
	synctest.Test(t, func(t *testing.T) { // where they are not, it is worth more looks
		n := &lagging{rows: map[string]map[string][2]string{"t": {"1": {"*", "*"}}}}
		if n.compare(t, VerifyOptions{}); n.looks["1"] != settleLooks {
			t.Errorf("%d looks", n.looks["1"])
		}
	})
}

// TestFoundRowsAreInOrder: of tables and keys, whatever they were settled by.
func TestFoundRowsAreInOrder(t *testing.T) {
	n := &lagging{rows: map[string]map[string][2]string{"t": {}, "u": {"z": {"w1 x", "v1 y"}, "Z": {"w1 x", "v1 y"}}}}
	var want []string
	for i := range 12 {
		n.rows["t"][fmt.Sprint(i)] = [2]string{"w1 x", "v1 y"}
		want = append(want, fmt.Sprint("s.t id=", i))
	}
	n.rows["t"]["0"] = [2]string{"", "v1 y"} // takes a look more
	want = append(want, "s.u id=Z", "s.u id=z")
	if got := foundRows(n.compare(t, VerifyOptions{Limit: 100})); !slices.Equal(got, want) {
		t.Errorf("found %q", got)
	}
	if got := foundRows(n.compare(t, VerifyOptions{Limit: 5})); !slices.Equal(got, want[:5]) {
		t.Errorf("shown are %q", got)
	}
}
