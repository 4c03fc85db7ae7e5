package editor

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/sergi/go-diff/diffmatchpatch"
)

// change is how one text becomes another, from its beginning to its end. Lengths are in code points.
type change []part

// part is one of keep, cut, put; the others are zero.
type part struct {
	keep, cut int
	put       []rune
}

// splice is one change in one place: at At, Cut code points go and Put comes.
type splice struct {
	At  int    `json:"at"`
	Cut int    `json:"cut"`
	Put string `json:"put"`
}

// change makes it one of a text of that length.
func (s splice) change(length int) (change, error) {
	if s.At < 0 || s.Cut < 0 || s.At > length || s.Cut > length-s.At {
		return nil, fmt.Errorf("%d characters at %d cannot be cut out of a text of %d", s.Cut, s.At, length)
	}
	var c change
	return c.keep(s.At).cut(s.Cut).put([]rune(s.Put)).keep(length - s.At - s.Cut), nil
}

func (c change) keep(n int) change      { return c.add(part{keep: n}) }
func (c change) cut(n int) change       { return c.add(part{cut: n}) }
func (c change) put(text []rune) change { return c.add(part{put: text}) }

// add makes it longer by a part, which goes on with the last one if that is of its kind.
func (c change) add(p part) change {
	if p.keep+p.cut+len(p.put) == 0 {
		return c
	}
	if n := len(c); n > 0 {
		last := &c[n-1]
		if last.keep > 0 == (p.keep > 0) && last.cut > 0 == (p.cut > 0) {
			*last = part{last.keep + p.keep, last.cut + p.cut, slices.Concat(last.put, p.put)}
			return c
		}
	}
	return append(c, p)
}

// idle reports whether it changes nothing.
func (c change) idle() bool { return !slices.ContainsFunc(c, func(p part) bool { return p.keep == 0 }) }

// lengths are those of the text before and behind it.
func (c change) lengths() (before, after int) {
	for _, p := range c {
		before += p.keep + p.cut
		after += p.keep + len(p.put)
	}
	return before, after
}

// apply makes it. The text is left as it is.
func (c change) apply(text []rune) []rune {
	_, after := c.lengths()
	out := make([]rune, 0, after)
	for _, p := range c {
		out = append(append(out, text[:p.keep]...), p.put...)
		text = text[p.keep+p.cut:]
	}
	return out
}

// pass makes of two changes of one text the two that are made behind the other one: theirs and then own gives the same text
// as own and then theirs. Where both put something, theirs stands first.
func pass(own, theirs change) (ownThen, theirsThen change) {
	a, b := cursor{rest: own}, cursor{rest: theirs}
	for {
		p, q := a.part(), b.part()
		switch {
		case len(q.put) > 0:
			ownThen, theirsThen = ownThen.keep(len(q.put)), theirsThen.put(q.put)
			b.take(0)
		case len(p.put) > 0:
			ownThen, theirsThen = ownThen.put(p.put), theirsThen.keep(len(p.put))
			a.take(0)
		case p.keep+p.cut == 0 || q.keep+q.cut == 0:
			return ownThen, theirsThen
		default:
			n := min(p.keep+p.cut, q.keep+q.cut)
			switch {
			case p.keep > 0 && q.keep > 0:
				ownThen, theirsThen = ownThen.keep(n), theirsThen.keep(n)
			case p.cut > 0 && q.keep > 0:
				ownThen = ownThen.cut(n)
			case p.keep > 0 && q.cut > 0:
				theirsThen = theirsThen.cut(n)
			}
			a.take(n)
			b.take(n)
		}
	}
}

// cursor goes through a change piece by piece.
type cursor struct {
	rest change
	used int // of the first part
}

// part is what comes next; zero at the end.
func (c *cursor) part() part {
	if len(c.rest) == 0 {
		return part{}
	}
	p := c.rest[0]
	if p.keep > 0 {
		p.keep -= c.used
	} else if p.cut > 0 {
		p.cut -= c.used
	}
	return p
}

// take goes n on in what is kept or cut, or past what is put.
func (c *cursor) take(n int) {
	p := c.part()
	if c.used += n; n == p.keep+p.cut {
		c.rest, c.used = c.rest[1:], 0
	}
}

// between finds the change that makes one text the other.
func between(from, to []rune) change {
	var c change
	d := diffmatchpatch.New()
	d.DiffTimeout = 0 // exact: both are short, or almost the same
	for _, p := range d.DiffMainRunes(from, to, false) {
		text := []rune(p.Text)
		switch p.Type {
		case diffmatchpatch.DiffEqual:
			c = c.keep(len(text))
		case diffmatchpatch.DiffDelete:
			c = c.cut(len(text))
		case diffmatchpatch.DiffInsert:
			c = c.put(text)
		}
	}
	return c
}

// MarshalJSON writes it as static/pane.js reads it: n keeps n, -n cuts n, a text is put.
func (c change) MarshalJSON() ([]byte, error) {
	all := make([]any, len(c))
	for i, p := range c {
		switch {
		case p.keep > 0:
			all[i] = p.keep
		case p.cut > 0:
			all[i] = -p.cut
		default:
			all[i] = string(p.put)
		}
	}
	return json.Marshal(all)
}
