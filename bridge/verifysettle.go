package bridge

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/pgbridge/pgbridge/apply"
)

// Rows that seem to differ are looked at again and again, at the lead and at the others in turn. Before each look a node has seen
// all that the looks before it may have come from. So if one node has the same version of a row in two looks, whoever was looked at
// in between has seen that version and nothing later, and must have it, too: what a node has is the latest of all that it has seen
// (PROOF.md section 7). That must happen twice in a row, and with the same row at the other node, before it counts as a difference.
// Equal rows are settled by the first look that shows them. A row that is written all the time is settled by versions: where both
// nodes have shown one and the same, that is what they are compared by.

const (
	// settleLooks bounds the looks at a row that never stands still.
	settleLooks = 60
	// Where nodes are behind, each look takes as long as they need to catch up with the look before, and so many would take hours: after
	// settleLong and settleFew looks, only rows are looked at that stand still, which take a few more looks only.
	settleLong = 30 * time.Second
	settleFew  = 2 * sureLooks
	// lookKeys is how many rows are looked at in one question.
	lookKeys = 200
	// sureLooks are the looks in which a node must have the same version of a row.
	sureLooks = 3
	// After so many looks there is a pause before each, longer and longer.
	settleAtOnce   = 8
	settlePause    = 20 * time.Millisecond
	settlePauseMax = 500 * time.Millisecond
	// explainedTold bounds the rows that are told of, for each reason to tell of them.
	explainedTold = 100
)

// verdict is what is known of a row at the lead and at another node.
type verdict int

const (
	open verdict = iota
	equal
	differs
)

// candidate is a row that seems to differ.
type candidate struct {
	table *tableAsked
	key   [][]byte
	looks []*sightings // by place of the node
	pairs []verdict    // of the lead and another node
}

// sightings are what a node has shown of a row.
type sightings struct {
	last     []apply.VerifyLooked // the last ones, sureLooks at most
	versions map[apply.VerifyVersion][]byte
}

func newCandidate(t *tableAsked, key [][]byte) *candidate { return &candidate{table: t, key: key} }

// settle finds out which rows differ, and which never stood still.
func (c *verifyRun) settle(ctx context.Context, cs candidates) (differing, restless []*candidate, err error) {
	left := cs.sorted()
	for _, k := range left {
		k.looks, k.pairs = make([]*sightings, len(c.nodes)), make([]verdict, len(c.nodes))
		for i := range c.nodes {
			k.looks[i] = &sightings{versions: map[apply.VerifyVersion][]byte{}}
		}
		k.table.at.Looked++
	}
	begun := time.Now()
	for turn := 0; len(left) > 0; turn++ {
		if err := c.turn(ctx, left, turn); err != nil {
			return nil, nil, err
		}
		last, long := turn+1 == settleLooks, turn+1 >= settleFew && time.Since(begun) > settleLong
		left = slices.DeleteFunc(left, func(k *candidate) bool {
			settled := k.judge(turn%2 == 0, !k.table.Merged)
			switch givenUp := last || long && !k.stands(); {
			case !settled && !givenUp:
				return false
			case k.differs(): // from one node for sure
				differing = append(differing, k)
			case !settled:
				restless = append(restless, k)
			}
			return true
		})
		if len(left) == 0 {
			break
		}
		t := left[0].table
		c.tell(VerifyProgress{Table: t.String(), Rows: t.at.Rows, Doing: fmt.Sprintf("%d rows are looked at again", len(left))})
		if pause := time.Duration(turn-settleAtOnce) * settlePause; pause > 0 {
			if err := rest(ctx, min(pause, settlePauseMax)); err != nil {
				return nil, nil, err
			}
		}
	}
	slices.SortFunc(differing, compareRows)
	slices.SortFunc(restless, compareRows)
	return differing, restless, nil
}

// rest waits.
func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// settled takes what settle has found into the report; errVerifyFull if there is too much of it.
func (c *verifyRun) settled(ctx context.Context, cs candidates) error {
	differing, restless, err := c.settle(ctx, cs)
	if err != nil {
		return err
	}
	for _, k := range restless {
		reason := "it changed each time that it was looked at"
		if why, passing := k.reason(); passing {
			reason = why
		}
		note(&c.report.Unsettled, RowReason{k.table.String(), keyText(k.table, k.key), reason})
	}
	for _, k := range differing {
		if err := c.differs(k); err != nil {
			return err
		}
	}
	return nil
}

func note(list *[]RowReason, r RowReason) {
	if len(*list) < explainedTold {
		*list = append(*list, r)
	}
}

// turn looks at rows: at the lead in every second turn, beginning with the first, else at the others.
func (c *verifyRun) turn(ctx context.Context, left []*candidate, turn int) error {
	first, nodes := 0, c.nodes[:1]
	if turn%2 == 1 {
		first, nodes = 1, c.nodes[1:]
	}
	after := c.after.Clone()
	for some := range ofOneTable(left, lookKeys, func(k *candidate) *tableAsked { return k.table }) {
		t := some[0].table
		q := &apply.VerifyQuestion{Kind: apply.VerifyLook, Table: t.VerifyTable, After: after}
		for _, k := range some {
			q.Keys = append(q.Keys, k.key)
		}
		answers, err := c.each(ctx, nodes, q)
		if err != nil {
			return fmt.Errorf("compare table %s: %w", t, err)
		}
		for n, a := range answers {
			if len(a.Looks) != len(some) {
				return fmt.Errorf("compare table %s: node %s has looked at %d rows instead of %d", t, nodes[n], len(a.Looks), len(some))
			}
			c.after.Merge(a.Seen)
			for i, k := range some {
				k.looks[first+n].add(a.Looks[i])
			}
		}
		if err := c.pace.wait(ctx, len(some)); err != nil {
			return err
		}
	}
	return nil
}

// ofOneTable yields rows in their order, as many at a time as are of one table, up to n.
func ofOneTable[T any](rows []T, n int, of func(T) *tableAsked) iter.Seq[[]T] {
	return func(yield func([]T) bool) {
		for len(rows) > 0 {
			end := 1
			for end < min(n, len(rows)) && of(rows[end]) == of(rows[0]) {
				end++
			}
			if !yield(rows[:end]) {
				return
			}
			rows = rows[end:]
		}
	}
}

func (h *sightings) add(l apply.VerifyLooked) {
	if len(h.last) == sureLooks {
		h.last = slices.Delete(h.last, 0, 1)
	}
	h.last = append(h.last, l)
	if l.Found && l.Version.Known == apply.VerifyKnownBy && l.Reason == "" {
		h.versions[l.Version] = l.Hash
	}
}

// judge compares the lead with each other node, and reports whether all is known. leads: the lead was looked at last.
func (k *candidate) judge(leads, versions bool) (settled bool) {
	settled = true
	for i := 1; i < len(k.pairs); i++ {
		if k.pairs[i] == open {
			k.pairs[i] = judge(k.looks[0], k.looks[i], leads, versions)
		}
		settled = settled && k.pairs[i] != open
	}
	return settled
}

// differs reports whether the row is another one at a node than at the lead.
func (k *candidate) differs() bool { return slices.Contains(k.pairs, differs) }

// stands reports whether no node of which it is not known yet whether it has the same row has shown a change in its last two looks,
// nor the lead.
func (k *candidate) stands() bool {
	for i, h := range k.looks {
		if n := min(len(h.last), 2); (i == 0 || k.pairs[i] == open) && n > 0 && !h.stands(n, false) {
			return false
		}
	}
	return true
}

// judge compares what the lead and another node have shown of a row. leads says that the lead was looked at last; versions, that
// one version is one row.
func judge(lead, other *sightings, leads, versions bool) verdict {
	if len(lead.last) == 0 || len(other.last) == 0 {
		return open
	}
	if same(lead.lastOne(), other.lastOne()) {
		return equal
	}
	if versions {
		for v, hash := range lead.versions {
			if h, ok := other.versions[v]; ok {
				if bytes.Equal(h, hash) {
					return equal
				}
				return differs
			}
		}
	}
	around, between := lead, other
	if !leads {
		around, between = other, lead
	}
	if len(around.last) < sureLooks || len(between.last) < sureLooks-1 || !around.stands(sureLooks, true) || !between.stands(sureLooks-1, false) {
		return open
	}
	return differs
}

func (h *sightings) lastOne() *apply.VerifyLooked { return &h.last[len(h.last)-1] }

// stands reports whether the last n looks have shown one row, or none unless it must be there, and nothing that passes.
func (h *sightings) stands(n int, there bool) bool {
	last := h.lastOne()
	for i := range h.last[len(h.last)-n:] {
		l := &h.last[len(h.last)-1-i]
		if l.Passing || l.Found != last.Found || l.Writer != last.Writer || !bytes.Equal(l.Hash, last.Hash) {
			return false
		}
	}
	return last.Found || !there
}

// same reports whether two nodes have the same of a row.
func same(a, b *apply.VerifyLooked) bool {
	return a.Found == b.Found && bytes.Equal(a.Hash, b.Hash)
}

// reason is why nodes may have different rows, of those that know.
func (k *candidate) reason() (text string, passing bool) {
	for _, h := range k.looks {
		if len(h.last) > 0 && h.lastOne().Reason != "" {
			return h.lastOne().Reason, h.lastOne().Passing
		}
	}
	return "", false
}

// differs takes in a row that differs; errVerifyFull if there are too many.
func (c *verifyRun) differs(k *candidate) error {
	t := k.table
	for i, h := range k.looks {
		if l := h.last; len(l) > 0 && l[len(l)-1].Reason != "" {
			note(&c.report.Explained, RowReason{t.String(), keyText(t, k.key), "at node " + c.nodes[i] + ": " + l[len(l)-1].Reason})
			return nil
		}
	}
	if c.told[rowName(t, k.key)] {
		return nil
	}
	if len(c.found) >= verifyRemembered {
		return errVerifyFull
	}
	if c.told != nil {
		c.told[rowName(t, k.key)] = true
	}
	t.at.Differences++
	c.found = append(c.found, &RowDifference{Table: t.String(), Key: keyText(t, k.key), Columns: []string{}, Nodes: []RowOfNode{}, key: k.key, table: t})
	return nil
}

// keyText writes a key for a person.
func keyText(t *tableAsked, key [][]byte) string {
	var b bytes.Buffer
	for i, v := range key {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s=%s", t.Key[i], v)
	}
	return b.String()
}
