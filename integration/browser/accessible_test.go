package browser

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// rules are the parts of WCAG that pages are held to, as axe calls them.
const rules = `["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]`

// examine has axe look at a page as it is now, in both schemes of colours, and sees to it that no token is in it.
func examine(t *testing.T, page context.Context, what string) {
	t.Helper()
	tells(t, page)
	if eval[bool](t, page, `window.axe === undefined`) {
		name := os.Getenv("PGBRIDGE_TEST_AXE")
		script, err := os.ReadFile(name)
		if err != nil {
			t.Fatalf("PGBRIDGE_TEST_AXE does not name axe's script: %v; run make browser", err)
		}
		eval[any](t, page, string(script)+"; undefined")
	}
	for _, scheme := range []string{"light", "dark"} {
		call(t, page, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
		found, err := chromedp.Run(page, chromedp.Evaluate[struct {
			Passes     int
			Violations []string
		}](`axe.run({ runOnly: { type: 'tag', values: `+rules+` } }).then((r) => ({ Passes: r.passes.length, Violations: r.violations.flatMap((v) =>
			v.nodes.map((node) => v.id + ' at ' + node.target.join(' ') + ': ' + node.html + '\n' + node.failureSummary)) }))`, chromedp.EvalAwaitPromise))
		if err != nil {
			t.Fatalf("%s, %s: %v", what, scheme, err)
		}
		for _, violation := range found.Violations {
			t.Errorf("%s, %s: %s", what, scheme, violation)
		}
		if found.Passes < 8 {
			t.Errorf("%s, %s: axe has looked for %d rules only", what, scheme, found.Passes)
		}
	}
}

// accessible goes through all that the console shows: labels, contrast and roles are as WCAG wants them.
func (c *console) accessible(t *testing.T) {
	page := c.visit(t)
	examine(t, page, "sign-in")
	signIn(t, page, "no token of this node")
	sees(t, page, "this is not a token of this node")
	examine(t, page, "sign-in, refused")
	signIn(t, page, operatorToken)
	sees(t, page, "Node a: all is well")
	await(t, page, `document.querySelector('svg.chart polyline').getAttribute('points').includes(' ')`)
	examine(t, page, "overview")
	c.withTrouble(t, page)
	c.withConflicts(t, page)
	c.withDifferences(t, page)
	goTo(t, page, "Configuration", "Configuration")
	sees(t, page, "http.operator_token")
	examine(t, page, "configuration")
	eval[any](t, page, `location.hash = '#/nowhere'`)
	sees(t, page, "There is no such section")
	examine(t, page, "no such section")
	if err := c.bridge.end(); err != nil {
		t.Error(err)
	}
	goTo(t, page, "Overview", "Overview")
	sees(t, page, "The bridge does not answer")
	examine(t, page, "without a bridge")
}

// withTrouble has a node held back and a transaction parked, and looks at what the page says of it, on a phone, too.
func (c *console) withTrouble(t *testing.T, page context.Context) {
	t.Helper()
	c.park(t, page)
	goTo(t, page, "Parked", "Parked transactions")
	sees(t, page, "only_here")
	examine(t, page, "parked")
	press(t, page, "Discard b:")
	examine(t, page, "parked, discard")
	press(t, page, "Cancel")
	eval[any](t, page, `document.querySelector('#parked a').click()`)
	sees(t, page, "insert shop.notes")
	examine(t, page, "parked, changes")
	press(t, page, "Retry b:")
	sees(t, page, "is still parked")
	examine(t, page, "parked, refused again")
	goTo(t, page, "Overview", "Overview")
	press(t, page, "Hold back b")
	examine(t, page, "overview, hold back")
	press(t, page, "Hold back")
	sees(t, page, "What waits here since somebody wanted it so")
	await(t, page, `document.querySelectorAll('.alarms li').length > 0`)
	examine(t, page, "overview, with alarms")
	do(t, page, chromedp.EmulateViewport(390, 800))
	examine(t, page, "overview, on a phone")
	do(t, page, chromedp.EmulateViewport(1180, 900))
	press(t, page, "Resume node b")
	sees(t, page, "Nothing is held back here.")
	c.letIn(t)
	goTo(t, page, "Parked", "Parked transactions")
	press(t, page, "Retry all")
	sees(t, page, "Nothing is parked.")
	examine(t, page, "parked, nothing")
}

// withConflicts looks at the history.
func (c *console) withConflicts(t *testing.T, page context.Context) {
	t.Helper()
	goTo(t, page, "Conflicts", "Conflicts")
	await(t, page, `document.querySelectorAll('#conflicts tbody tr').length > 0`)
	examine(t, page, "conflicts")
	c.listUpdates(t, page)
	press(t, page, "Conflict ")
	sees(t, page, "Both versions of the row")
	await(t, page, `document.querySelectorAll('.differing').length > 0`)
	examine(t, page, "conflict")
	press(t, page, "Undo")
	examine(t, page, "conflict, undo")
	press(t, page, "Cancel")
}

// withDifferences has a row differ, compares, and mends it.
func (c *console) withDifferences(t *testing.T, page context.Context) {
	t.Helper()
	// A session of an origin that bridges take for their own is not replicated.
	sql(t, c.a, `SELECT pg_replication_origin_create('pgb_demo_a_planted')`, `SELECT pg_replication_origin_session_setup('pgb_demo_a_planted')`,
		`UPDATE shop.accounts SET city = 'Atlantis' WHERE owner = 'shared 0'`)
	toVerify(t, page)
	examine(t, page, "verify")
	press(t, page, "Compare")
	sees(t, page, "Atlantis")
	examine(t, page, "verify, with a difference")
	eval[any](t, page, `document.querySelector('input[name=repair]').checked = true`)
	press(t, page, "Compare")
	examine(t, page, "verify, mend")
	press(t, page, "Compare and mend")
	sees(t, page, "1 mended")
	examine(t, page, "verify, mended")
}

// focusName is what that is called which has the focus.
const focusName = `((at) => (at === document.body ? '(nothing)' : at.ariaLabel || at.labels?.[0]?.textContent || at.textContent).trim())(document.activeElement)`

// tabTo presses Tab until the focus, which can be seen all the way, is on what is called so or begins so.
func tabTo(t *testing.T, page context.Context, name string, opts ...chromedp.KeyOption) {
	t.Helper()
	var way []string
	for range 60 {
		do(t, page, chromedp.KeyEvent(kb.Tab, opts...))
		way = append(way, eval[string](t, page, focusName))
		if !eval[bool](t, page, `document.activeElement === document.body || getComputedStyle(document.activeElement).outlineStyle !== 'none' && document.activeElement.checkVisibility()`) {
			t.Errorf("the focus on %q cannot be seen", way[len(way)-1])
		}
		if strings.HasPrefix(way[len(way)-1], name) {
			return
		}
	}
	t.Fatalf("Tab does not lead to %q, but to %q", name, way)
}

func enter(t *testing.T, page context.Context) {
	t.Helper()
	do(t, page, chromedp.KeyEvent(kb.Enter))
}

// focusIs waits until the focus is on what is called so or begins so, and that can be pressed: a button is off until its dialog is told to be closed.
func focusIs(t *testing.T, page context.Context, name string) {
	t.Helper()
	await(t, page, fmt.Sprintf(focusName+`.startsWith(%q) && document.activeElement.ariaDisabled !== 'true'`, name))
}

// arrives waits until a section is there: the focus is on its heading then.
func arrives(t *testing.T, page context.Context, heading string) {
	t.Helper()
	await(t, page, `document.activeElement.tagName === 'H1'`)
	focusIs(t, page, heading)
}

// keyboard: somebody without a mouse signs in, finds a conflict, thinks better of undoing it, undoes it, holds a node back and lets it go.
func (c *console) keyboard(t *testing.T) {
	page := c.visit(t)
	do(t, page, chromedp.KeyEvent(operatorToken))
	enter(t, page)
	arrives(t, page, "Overview")
	tabTo(t, page, "Conflicts", chromedp.KeyModifiers(kb.ModifierShift))
	enter(t, page)
	arrives(t, page, "Conflicts")
	tabTo(t, page, "Table")
	do(t, page, chromedp.KeyEvent("shop.accounts"))
	tabTo(t, page, "Kind")
	do(t, page, chromedp.KeyEvent("update_u"))
	tabTo(t, page, "Show")
	enter(t, page)
	await(t, page, `location.hash.includes('kind=update_update')`)
	arrives(t, page, "Conflicts")
	tabTo(t, page, "Conflict ")
	enter(t, page)
	arrives(t, page, "Conflict ")
	tabTo(t, page, "Undo…")
	enter(t, page)
	focusIs(t, page, "Write it whatever is there now")
	for range 6 {
		do(t, page, chromedp.KeyEvent(kb.Tab))
		if !eval[bool](t, page, `document.activeElement === document.body || document.querySelector('dialog[open]').contains(document.activeElement)`) {
			t.Fatalf("Tab leads out of the dialog, to %q", eval[string](t, page, focusName))
		}
	}
	do(t, page, chromedp.KeyEvent(kb.Escape))
	await(t, page, `document.querySelector('dialog[open]') === null`)
	focusIs(t, page, "Undo…")
	sees(t, page, "Not undone.")

	enter(t, page)
	focusIs(t, page, "Write it whatever is there now")
	do(t, page, chromedp.KeyEvent(" "))
	tabTo(t, page, "Undo")
	enter(t, page)
	sees(t, page, "Undone at")
	focusIs(t, page, "Undo…")

	do(t, page, chromedp.Reload())
	sees(t, page, "Undone at")
	tabTo(t, page, "Skip to the content")
	enter(t, page)
	await(t, page, `document.activeElement.id === 'main' && location.hash.startsWith('#/conflicts/')`)
	tabTo(t, page, "All conflicts")
	tabTo(t, page, "Overview", chromedp.KeyModifiers(kb.ModifierShift))
	enter(t, page)
	arrives(t, page, "Overview")
	tabTo(t, page, "Hold back b")
	enter(t, page)
	focusIs(t, page, "Reason")
	do(t, page, chromedp.KeyEvent("by hand"))
	enter(t, page)
	sees(t, page, "by hand")
	focusIs(t, page, "Held back")
	tabTo(t, page, "Resume node b")
	enter(t, page)
	sees(t, page, "Nothing is held back here.")
	focusIs(t, page, "Held back")
	tabTo(t, page, "Sign out", chromedp.KeyModifiers(kb.ModifierShift))
	enter(t, page)
	await(t, page, `document.activeElement.id === 'token'`)
}
