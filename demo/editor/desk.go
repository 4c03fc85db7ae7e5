package editor

import (
	"errors"
	"fmt"
	"sync"
)

// TextLimit is how long the text may be, in code points.
const TextLimit = 100_000

// errStale means that a page's text is not known any more: it will be told the present one.
var errStale = errors.New("the page has to begin anew")

// desk is a node's text and what each open page shows of it. It is safe for concurrent use; the row's lock is taken before its own.
type desk struct {
	mu    sync.Mutex
	text  []rune // of the row, when last looked at
	lives int    // how many texts pages have begun with
	pages map[string]*pane
}

// pane is what one page shows.
type pane struct {
	life   int // numbers what it began with
	length int // of the text that it shows, which is text but for unseen
	edits  int // how many of its splices are in text
	seen   int // how many changes of others it has made
	unseen []change
	told   bool // of all of this
	wake   chan<- struct{}
}

// delivery tells a page what others have changed, or, with Text, what it is to begin with.
type delivery struct {
	Node  string   `json:"node"`
	Life  int      `json:"life"`
	Text  *string  `json:"text,omitempty"`
	Edits int      `json:"edits"` // how many splices of the page it is worked out for
	From  int      `json:"from"`  // the number of the first change
	Then  []change `json:"then,omitempty"`
}

// batch is what a page has typed since the last one.
type batch struct {
	Page    string   `json:"page"`
	Node    string   `json:"node"`
	Life    int      `json:"life"`
	Seen    int      `json:"seen"`  // the number of the last change that it had made before
	First   int      `json:"first"` // how many splices came before these
	Splices []splice `json:"splices"`
}

// open begins a page; wake is filled when there is something to tell it.
func (d *desk) open(page string, wake chan<- struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pages[page] = &pane{wake: wake}
}

// close ends what open with this wake has begun.
func (d *desk) close(page string, wake chan<- struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.pages[page]; p != nil && p.wake == wake {
		delete(d.pages, page)
	}
}

// next is what a page is to be told; false: nothing.
func (d *desk) next(page string) (delivery, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.pages[page]
	if p == nil || p.told {
		return delivery{}, false
	}
	p.told = true
	if p.life == 0 {
		d.lives++
		*p = pane{life: d.lives, length: len(d.text), told: true, wake: p.wake}
		text := string(d.text)
		return delivery{Life: p.life, Text: &text}, true
	}
	return delivery{Life: p.life, Edits: p.edits, From: p.seen + 1, Then: p.unseen}, true
}

// look takes over what the row's text has become.
func (d *desk) look(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.become([]rune(text))
}

// become is look's, and edit's.
func (d *desk) become(text []rune) {
	c := between(d.text, text)
	if d.text = text; c.idle() {
		return
	}
	for _, p := range d.pages {
		p.add(c)
	}
}

// add has others' change come to what the page has not seen.
func (p *pane) add(c change) {
	if p.life != 0 {
		p.unseen = append(p.unseen, c)
	}
	p.tell()
}

func (p *pane) tell() {
	p.told = false
	select {
	case p.wake <- struct{}{}:
	default: // it is going to look
	}
}

// edit makes of the row's text what it is with a page's splices. Whoever cannot write that calls forget.
func (d *desk) edit(b *batch, row string) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.pages[b.Page]
	if p == nil || p.life == 0 || p.life != b.Life {
		return "", errStale
	}
	if b.Seen > p.seen+len(p.unseen) || b.First > p.edits {
		return "", fmt.Errorf("page %s has seen %d changes of %d, and sends splice %d behind %d", b.Page, b.Seen, p.seen+len(p.unseen), b.First, p.edits)
	}
	d.become([]rune(row))
	for p.seen < b.Seen {
		_, p.length = p.unseen[0].lengths()
		p.seen, p.unseen = p.seen+1, p.unseen[1:]
	}
	for i, s := range b.Splices {
		if b.First+i < p.edits {
			continue // sent again, since the answer was lost
		}
		if err := d.splice(p, s); err != nil {
			return "", err
		}
	}
	if len(p.unseen) > 0 {
		p.tell()
	}
	return string(d.text), nil
}

// splice moves one behind what its page has not seen, and that behind it.
func (d *desk) splice(p *pane, s splice) error {
	c, err := s.change(p.length)
	if err != nil {
		return err
	}
	_, length := c.lengths()
	unseen := make([]change, len(p.unseen)) // the old ones may be on their way to the page
	for i := range unseen {
		c, unseen[i] = pass(c, p.unseen[i])
	}
	text := c.apply(d.text)
	if len(text) > TextLimit {
		return fmt.Errorf("the text has room for %d characters", TextLimit)
	}
	d.text, p.length, p.unseen = text, length, unseen
	p.edits++
	for _, other := range d.pages {
		if other != p {
			other.add(c)
		}
	}
	return nil
}

// forget has all pages begin anew with text: what they sent may be in it or not.
func (d *desk) forget(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.text = []rune(text)
	for _, p := range d.pages {
		p.life = 0
		p.tell()
	}
}
