package editor

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/dop251/goja"
)

// script is a page's pane.js in an interpreter.
type script struct {
	t    *testing.T
	vm   *goja.Runtime
	id   string
	wake chan struct{}
	sent []sending // what the server has not answered; one at most
}

// sending is a batch on its way.
type sending struct {
	b      batch
	answer func()
}

func newScript(t *testing.T, d *desk, id string) *script {
	t.Helper()
	s := &script{t: t, vm: goja.New(), id: id, wake: make(chan struct{}, 1)}
	source, err := os.ReadFile("static/pane.js")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.vm.RunScript("pane.js", string(source)); err != nil {
		t.Fatal(err)
	}
	err = s.vm.Set("post", func(v goja.Value) *goja.Promise {
		promise, resolve, _ := s.vm.NewPromise()
		b := batch{Page: id}
		text, err := json.Marshal(v.Export())
		if err == nil {
			err = json.Unmarshal(text, &b)
		}
		if err != nil {
			t.Errorf("batch %s: %v", text, err)
		}
		s.sent = append(s.sent, sending{b, func() {
			if err := resolve(nil); err != nil {
				t.Error(err)
			}
			s.run("") // what waits for it
		}})
		if len(s.sent) > 1 {
			t.Errorf("page %s sends while it waits for an answer", id)
		}
		return promise
	})
	if err != nil {
		t.Fatal(err)
	}
	s.run("const pane = new Pane(post)")
	d.open(id, s.wake)
	return s
}

func (s *script) run(js string, args ...any) goja.Value {
	s.t.Helper()
	for i, a := range args {
		text, err := json.Marshal(a)
		if err != nil {
			s.t.Fatal(err)
		}
		js = strings.ReplaceAll(js, fmt.Sprintf("$%d", i+1), string(text))
	}
	v, err := s.vm.RunString(js)
	if err != nil {
		s.t.Fatalf("%s: %v", js, err)
	}
	return v
}

func (s *script) text() []rune { return []rune(s.run("(pane.text || []).join('')").String()) }

// hear takes what the server has to tell.
func (s *script) hear(d *desk) {
	s.t.Helper()
	told, ok := d.next(s.id)
	if !ok {
		return
	}
	if told.Text != nil {
		s.run("pane.begin($1)", told)
	} else {
		s.run("pane.deliver($1)", told)
	}
}

// typist knows which characters there have to be: each is typed once.
type typist struct {
	rng   *rand.Rand
	next  rune
	typed map[rune]bool // false: somebody has deleted it
}

// change cuts and puts somewhere in a text.
func (y *typist) change(text []rune) []rune {
	at := y.rng.IntN(len(text) + 1)
	cut := min(len(text)-at, max(0, y.rng.IntN(5)-2))
	for _, c := range text[at : at+cut] {
		y.typed[c] = false
	}
	put := []rune{}
	for range y.rng.IntN(4) {
		if y.next++; y.next == 0xD800 {
			y.next = 0x10000 // two units of UTF-16
		}
		put = append(put, y.next)
		y.typed[y.next] = true
	}
	return slices.Concat(text[:at], put, text[at+cut:])
}

func (y *typist) require(t *testing.T, text string) {
	t.Helper()
	count := map[rune]int{}
	for _, c := range text {
		count[c]++
	}
	for c, there := range y.typed {
		if want := map[bool]int{true: 1}[there]; count[c] != want {
			t.Errorf("character %U stands %d times in the text, and not %d times", c, count[c], want)
		}
		delete(count, c)
	}
	if len(count) > 0 {
		t.Errorf("nobody has typed %v", count)
	}
}

// TestNoCharacterIsLost: three pages of one node type while other nodes' changes come, and answers and deliveries are late.
func TestNoCharacterIsLost(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			y := &typist{rng: rand.New(rand.NewPCG(seed, 1)), next: 0xD700, typed: map[rune]bool{}}
			d := &desk{pages: map[string]*pane{}}
			row := ""
			var pages []*script
			for i := range 3 {
				pages = append(pages, newScript(t, d, fmt.Sprint(i)))
			}
			write := func(s *script, again bool) {
				now := s.sent[0]
				text, err := d.edit(&now.b, row)
				if errors.Is(err, errStale) && now.b.Life == 0 {
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				row = text
				if again { // the answer is lost
					return
				}
				s.sent = s.sent[1:]
				now.answer()
			}
			for range 400 {
				s := pages[y.rng.IntN(len(pages))]
				switch y.rng.IntN(7) {
				case 0:
					row = string(y.change([]rune(row))) // another node's
				case 1:
					d.look(row)
				case 2, 3:
					s.hear(d)
				case 4, 5:
					if s.run("pane.life").ToInteger() != 0 {
						s.run("pane.typed($1)", string(y.change(s.text())))
					}
				case 6:
					if len(s.sent) > 0 {
						write(s, y.rng.IntN(4) == 0)
					}
				}
			}
			for _, s := range pages {
				for s.hear(d); len(s.sent) > 0; {
					write(s, false)
				}
			}
			d.look(row)
			for _, s := range pages {
				s.hear(d)
				if got := string(s.text()); got != row {
					t.Errorf("page %s shows %q, and the row has %q", s.id, got, row)
				}
			}
			y.require(t, row)
		})
	}
}

// TestPagesBeginAnew: behind a commit that failed nobody knows what stands in the row but the row.
func TestPagesBeginAnew(t *testing.T) {
	d := &desk{pages: map[string]*pane{}, text: []rune("old")}
	a, b := newScript(t, d, "a"), newScript(t, d, "b")
	a.hear(d)
	b.hear(d)
	a.run("pane.typed('older')")
	if _, err := d.edit(&a.sent[0].b, "old"); err != nil {
		t.Fatal(err)
	}
	d.forget("old")
	if _, err := d.edit(&a.sent[0].b, "old"); !errors.Is(err, errStale) {
		t.Errorf("what was typed before: %v", err)
	}
	for _, s := range []*script{a, b} {
		s.hear(d)
		if got := string(s.text()); got != "old" {
			t.Errorf("page %s shows %q", s.id, got)
		}
	}
	a.sent[0].answer() // late: it belongs to what was before
	a.sent = nil
	a.run("pane.typed('bold')")
	row, err := d.edit(&a.sent[0].b, "old!")
	if err != nil || row != "bold!" {
		t.Errorf("the row becomes %q, %v", row, err)
	}
	b.hear(d)
	a.sent[0].answer()
	a.hear(d)
	if string(a.text()) != row || string(b.text()) != row {
		t.Errorf("pages show %q and %q", string(a.text()), string(b.text()))
	}
}

// TestPagesAreRefused: what no page of ours would send.
func TestPagesAreRefused(t *testing.T) {
	d := &desk{pages: map[string]*pane{}, text: []rune("text")}
	s := newScript(t, d, "a")
	s.hear(d)
	for name, c := range map[string]struct {
		b    batch
		want string
	}{
		"a place that is not":   {batch{Splices: []splice{{At: 5}}}, "0 characters at 5 cannot be cut out of a text of 4"},
		"too much":              {batch{Splices: []splice{{At: 1, Cut: 4}}}, "4 characters at 1 cannot be cut"},
		"less than nothing":     {batch{Splices: []splice{{At: -1}}}, "0 characters at -1 cannot be cut"},
		"what it cannot have":   {batch{Seen: 1}, "has seen 1 changes of 0"},
		"a hole":                {batch{First: 1}, "sends splice 1 behind 0"},
		"more than there is of": {batch{Splices: []splice{{Put: strings.Repeat("x", TextLimit)}}}, "has room for 100000 characters"},
	} {
		c.b.Page, c.b.Life = "a", 1
		if _, err := d.edit(&c.b, "text"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := d.edit(&batch{Page: "b", Life: 1}, "text"); !errors.Is(err, errStale) {
		t.Errorf("a stranger: %v", err)
	}
}

// TestCursorsMove: where a cursor is behind others' changes.
func TestCursorsMove(t *testing.T) {
	d := &desk{pages: map[string]*pane{}}
	s := newScript(t, d, "a")
	for _, c := range []struct {
		from, to    string
		place, want int64
	}{
		{"abc", "abcd", 1, 1},
		{"abc", "xabc", 1, 2},
		{"abc", "axbc", 1, 1}, // just there: it stands behind the cursor
		{"abc", "c", 1, 0},
		{"abc", "c", 3, 1},
		{"\U0001F600c", "\U0001F600\U0001F601c", 2, 3},
		{"", "abc", 0, 0},
	} {
		got := s.run("moved($1, $2)", c.place, between([]rune(c.from), []rune(c.to))).ToInteger()
		if got != c.want {
			t.Errorf("%q becomes %q: place %d goes to %d, and not to %d", c.from, c.to, c.place, got, c.want)
		}
	}
}

// FuzzChanges: two changes of one text give one text in either order, and a change that is found makes what it is to make.
func FuzzChanges(f *testing.F) {
	f.Add("The brown fox", "The quick brown fox", "The fox")
	f.Add("", "a", "b")
	f.Fuzz(func(t *testing.T, text, own, theirs string) {
		from := []rune(text)
		a, b := between(from, []rune(own)), between(from, []rune(theirs))
		if got := string(a.apply(from)); got != string([]rune(own)) {
			t.Fatalf("%q becomes %q, and not %q", text, got, own)
		}
		ownThen, theirsThen := pass(a, b)
		one, other := string(ownThen.apply(b.apply(from))), string(theirsThen.apply(a.apply(from)))
		if one != other {
			t.Fatalf("%q becomes %q or %q", text, one, other)
		}
	})
}
