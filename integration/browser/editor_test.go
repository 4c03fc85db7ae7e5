package browser

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// recorder notes in a tab what somebody types and deletes there, character by character.
const recorder = `(() => {
	const typed = Pane.prototype.typed;
	window.added = []; window.deleted = [];
	Pane.prototype.typed = function (value) {
		const before = new Set(this.text), now = new Set(Array.from(value));
		for (const c of now) if (!before.has(c)) added.push(c);
		for (const c of before) if (!now.has(c)) deleted.push(c);
		typed.call(this, value);
	};
})()`

// typist is somebody who types into one pane.
type typist struct {
	node string
	tab  context.Context
	rng  *rand.Rand
	next rune // each character is typed once
	keys int
}

// sitDown opens a tab with the pane of one node alone.
func sitDown(t *testing.T, browser context.Context, url, node string, first rune, rng *rand.Rand) *typist {
	t.Helper()
	y := &typist{node: node, tab: tab(t, browser), rng: rng, next: first}
	call(t, y.tab, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true})
	do(t, y.tab, chromedp.Navigate(url+"/?node="+node), chromedp.WaitEnabled(chromedp.CSS("textarea")))
	eval[any](t, y.tab, recorder)
	do(t, y.tab, chromedp.Focus(chromedp.CSS("textarea")))
	return y
}

// key does one thing that somebody at a keyboard does.
func (y *typist) key() error {
	y.keys++
	switch n := y.rng.IntN(10); {
	case n == 0: // a click somewhere in the text
		_, err := chromedp.Run(y.tab, chromedp.Evaluate[any](fmt.Sprintf(
			`(() => { const a = document.querySelector('textarea'), at = Math.floor(%v * (a.value.length + 1)); a.setSelectionRange(at, at); })()`, y.rng.Float64())))
		return err
	case n < 3:
		return chromedp.Do(y.tab, chromedp.KeyEvent(kb.Backspace))
	}
	_, err := chromedp.Call(y.tab, input.InsertText, input.InsertTextParams{Text: string(y.next)})
	y.next++
	return err
}

// typeUntil types as fast as the browser takes it, with the pauses of a person.
func (y *typist) typeUntil(end time.Time) error {
	for time.Now().Before(end) {
		if err := y.key(); err != nil {
			return fmt.Errorf("node %s: %w", y.node, err)
		}
		// Part of the load, and nothing is waited for: without it a browser types hundreds of keys a second, which nobody does.
		time.Sleep(time.Duration(y.rng.IntN(60)) * time.Millisecond)
	}
	return nil
}

// duration is how long is typed.
func duration(t *testing.T) time.Duration {
	t.Helper()
	if text := os.Getenv("PGBRIDGE_TEST_SECONDS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(n) * time.Second
	}
	return 30 * time.Second
}

// TestEditor: two and three people type at once, each on a node of their own, and one node is cut off in the middle. In the end all show one
// text, with each character that was typed and not deleted, once.
func TestEditor(t *testing.T) {
	for _, nodes := range []int{2, 3} {
		t.Run(fmt.Sprintf("%d panes", nodes), func(t *testing.T) { editTogether(t, nodes, rand.Uint64()) })
	}
}

func editTogether(t *testing.T, nodes int, seed uint64) {
	t.Logf("seed %d", seed)
	demo := start(t, "demo", "--scenario", "editor", "--nodes", fmt.Sprint(nodes))
	url := demo.await(t, `http://[\d.:]+`)
	browser := open(t)
	do(t, browser, chromedp.EmulateViewport(1200, 620), chromedp.Navigate(url))
	await(t, browser, `document.querySelector('#verdict').className === 'same'`)
	var typists []*typist
	for i := range nodes {
		typists = append(typists, sitDown(t, browser, url, string(rune('a'+i)), rune(0x4E00+0x1000*i), rand.New(rand.NewPCG(seed, uint64(i)))))
	}
	before := text(t, typists[0].tab)

	length := duration(t)
	begun := time.Now()
	failed := make(chan error, nodes)
	for _, y := range typists {
		go func() { failed <- y.typeUntil(begun.Add(length)) }()
	}
	third := func() {
		select {
		case <-time.After(length / 3):
		case err := <-failed:
			if err != nil {
				t.Fatalf("typing ended early: %v", err)
			}
			failed <- nil // a machine that is slow has taken all of the time to get here
		}
	}
	third()
	cutOff(t, browser, "b", true)
	third()
	cutOff(t, browser, "b", false)
	for range typists {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}

	for _, y := range typists {
		await(t, y.tab, `[...panes.values()].every(b => !b.pane.sending && b.pane.unsent.length === 0)`)
	}
	ended := time.Now()
	await(t, browser, `document.querySelector('#verdict').className === 'same'`)
	judge(t, typists, before)
	keys := 0
	for _, y := range typists {
		keys += y.keys
	}
	t.Logf("%d keys in %s; all were equal %s later", keys, length, time.Since(ended).Round(time.Millisecond))
}

// cutOff uses a pane's switch.
func cutOff(t *testing.T, page context.Context, node string, off bool) {
	t.Helper()
	do(t, page, chromedp.Click(chromedp.Search(`//section[.//h2[text()="node `+node+`"]]//input`)))
	await(t, page, fmt.Sprintf(`document.querySelectorAll('.pane.off').length === %d`, map[bool]int{true: 1}[off]))
}

func text(t *testing.T, ctx context.Context) string {
	t.Helper()
	return eval[string](t, ctx, `document.querySelector('textarea').value`)
}

// judge waits until all show the same text as the first, and looks for each character.
func judge(t *testing.T, typists []*typist, before string) {
	t.Helper()
	want := map[rune]bool{}
	var deleted []string
	for _, y := range typists {
		added, gone := eval[[]string](t, y.tab, "added"), eval[[]string](t, y.tab, "deleted")
		for _, c := range added {
			want[[]rune(c)[0]] = true
		}
		deleted = append(deleted, gone...)
		if n := len(added); n < y.keys/2 {
			t.Errorf("on node %s %d characters were typed with %d keys", y.node, n, y.keys)
		}
	}
	for _, c := range deleted {
		delete(want, []rune(c)[0])
	}
	final := text(t, typists[0].tab)
	for _, y := range typists[1:] {
		await(t, y.tab, fmt.Sprintf(`document.querySelector('textarea').value === %q`, final))
	}
	stands := map[rune]int{}
	for _, c := range final {
		stands[c]++
	}
	for c := range want {
		if stands[c] != 1 {
			t.Errorf("%c, which was typed and not deleted, stands %d times in the text", c, stands[c])
		}
	}
	first := map[rune]bool{}
	for _, c := range before {
		first[c] = true
	}
	for c := range stands {
		if !want[c] && !first[c] {
			t.Errorf("%c stands in the text, though it was deleted or nobody has typed it", c)
		}
	}
	t.Logf("%d characters were typed and not deleted", len(want))
}
