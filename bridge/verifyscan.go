package bridge

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"

	"github.com/pgbridge/pgbridge/apply"
)

const (
	// A segment begins with so many rows, and has more or fewer then, by the size of rows.
	segmentRows, segmentRowsMin, segmentRowsMax = 1000, 100, 10_000
	segmentBytes                                = 4 << 20
	// settleAt is how many rows that seem to differ are looked at together.
	settleAt = 500
)

// candidates are the rows that seem to differ, by table and key.
type candidates map[string]*candidate

func (cs candidates) add(t *tableAsked, key [][]byte) {
	name := rowName(t, key)
	if cs[name] == nil {
		cs[name] = newCandidate(t, key)
	}
}

// sorted lists them by table and key, so that what is told of them does not depend on chance.
func (cs candidates) sorted() []*candidate { return slices.SortedFunc(maps.Values(cs), compareRows) }

func compareRows(a, b *candidate) int {
	return cmp.Or(strings.Compare(a.table.String(), b.table.String()), slices.CompareFunc(a.key, b.key, compareText))
}

// compareText orders shorter texts first, so that numbers come in their order; the servers may have another one.
func compareText(a, b []byte) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), bytes.Compare(a, b))
}

// rowName makes one text of a row's table and key, another one for each.
func rowName(t *tableAsked, key [][]byte) string { return t.String() + keyName(key) }

// keyName makes one text of a key, another one for each.
func keyName(key [][]byte) string { return fmt.Sprintf("%q", key) }

// segment is a part of a table, by key: to is nil at the end of the table.
type segment struct {
	from, to [][]byte
	limit    int
	answers  []*apply.VerifyAnswer // of all nodes
}

// table compares one table, segment by segment, and leaves in cs the rows that are still to be looked at.
func (c *verifyRun) table(ctx context.Context, t *tableAsked, cs candidates) error {
	for s := (&segment{limit: segmentRows}); ; {
		err := c.segment(ctx, t, s)
		if err == nil {
			err = c.differing(ctx, t, s, cs)
		}
		if err != nil {
			return fmt.Errorf("compare table %s: %w", t, err)
		}
		lead := s.answers[0]
		t.at.Rows += int64(lead.Rows)
		t.at.Segments++
		c.tell(VerifyProgress{Table: t.String(), Rows: t.at.Rows, Doing: "compared"})
		if len(cs) >= settleAt {
			if err := c.settled(ctx, cs); err != nil {
				return err
			}
			clear(cs)
		}
		if s.to == nil {
			break
		}
		most := 0
		for _, a := range s.answers {
			most = max(most, a.Rows)
		}
		if err := c.pace.wait(ctx, most); err != nil {
			return err
		}
		s = &segment{from: s.to, limit: nextLimit(lead)}
	}
	return nil
}

// nextLimit is how many rows the next segment has, by what the last one was like.
func nextLimit(a *apply.VerifyAnswer) int {
	if a.Rows == 0 {
		return segmentRows
	}
	size := max(a.Bytes/int64(a.Rows), 1)
	return int(min(max(segmentBytes/size, segmentRowsMin), segmentRowsMax))
}

// errOrders ends a comparison of nodes whose orders have nothing in common.
var errOrders = errors.New("its key has such another order on the nodes that segments cannot be found; give the key's columns the same collation")

// segment finds the end of a segment and has its digests from all nodes. Where one of them has many more rows in it than the lead,
// it ends earlier.
func (c *verifyRun) segment(ctx context.Context, t *tableAsked, s *segment) error {
	q := &apply.VerifyQuestion{Kind: apply.VerifyDigest, Table: t.VerifyTable, From: s.from, Limit: s.limit}
	a, err := c.each(ctx, c.nodes[:1], q)
	if err != nil {
		return err
	}
	s.answers = a
	if a[0].Cut {
		s.to = a[0].Last
	}
	const tries = 10
	for range tries {
		q := &apply.VerifyQuestion{Kind: apply.VerifyDigest, Table: t.VerifyTable, From: s.from, To: s.to, Limit: 2 * s.limit}
		nodes := c.nodes
		if len(s.answers) == 1 {
			nodes = c.nodes[1:] // the lead has just answered for these
		}
		a, err := c.each(ctx, nodes, q)
		if err != nil {
			return err
		}
		if len(nodes) < len(c.nodes) {
			a = append(s.answers, a...)
			a[0].Cut = false
		}
		s.answers = a
		cut := false
		for _, one := range a {
			if one.Cut {
				cut, s.to = true, one.Last
				break
			}
		}
		if !cut {
			return nil
		}
	}
	return errOrders
}

// differing finds the rows in the parts of a segment in which the nodes differ.
func (c *verifyRun) differing(ctx context.Context, t *tableAsked, s *segment, cs candidates) error {
	lead := s.answers[0]
	var asked uint64
	masks := make([]uint64, len(c.nodes))
	for i, a := range s.answers[1:] {
		masks[i+1] = lead.Differing(a)
		asked |= masks[i+1]
	}
	if asked == 0 {
		return nil
	}
	masks[0] = asked
	lists := make([]map[string]*apply.VerifiedEntry, len(c.nodes))
	for i, node := range c.nodes {
		if masks[i] == 0 {
			continue
		}
		lists[i] = map[string]*apply.VerifiedEntry{}
		if err := c.list(ctx, node, t, s, masks[i], lists[i]); err != nil {
			return err
		}
	}
	for i := range c.nodes[1:] {
		other := lists[i+1]
		if other == nil {
			continue
		}
		for name, e := range lists[0] {
			if apply.InParts(e.Key, masks[i+1]) && (other[name] == nil || !bytes.Equal(e.Hash, other[name].Hash)) {
				cs.add(t, e.Key)
			}
		}
		for name, e := range other {
			if lists[0][name] == nil {
				cs.add(t, e.Key)
			}
		}
	}
	return nil
}

// list has the hashes of the rows in some parts; where they do not fit one answer, of half of the parts at a time.
func (c *verifyRun) list(ctx context.Context, node string, t *tableAsked, s *segment, parts uint64, into map[string]*apply.VerifiedEntry) error {
	q := &apply.VerifyQuestion{Kind: apply.VerifyList, Table: t.VerifyTable, From: s.from, To: s.to, Parts: parts}
	a, err := c.each(ctx, []string{node}, q)
	if err != nil {
		return err
	}
	n := bits.OnesCount64(parts)
	if !a[0].Cut {
		for i := range a[0].Hashes {
			e := &a[0].Hashes[i]
			into[keyName(e.Key)] = e
		}
		return nil
	}
	if n == 1 {
		return fmt.Errorf("node %s: so many rows came into one segment while it was compared that their keys fit no message; compare it again", node)
	}
	var half uint64
	for rest := parts; bits.OnesCount64(half) < n/2; rest &= rest - 1 {
		half |= rest & -rest
	}
	if err := c.list(ctx, node, t, s, half, into); err != nil {
		return err
	}
	return c.list(ctx, node, t, s, parts&^half, into)
}
