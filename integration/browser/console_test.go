package browser

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/jackc/pgx/v5"
)

const (
	viewerToken   = "viewers-may-look-only"
	operatorToken = "operators-may-act-too"
)

// console is a cluster of the nodes a and b, with conflicts in its history, whose node a has a console.
type console struct {
	url    string
	a, b   string // the databases
	bridge *program
	tab    context.Context
}

// startConsole starts the cluster, and the bridge of node a once more, with a console.
func startConsole(t *testing.T) *console {
	t.Helper()
	demo := start(t, "demo", "--nodes", "2", "--seconds", "4", "--keep")
	demo.await(t, `Ctrl-C ends everything`)
	find := func(pattern string) []string {
		var found []string
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(demo.said(), 2) {
			found = append(found, m[1])
		}
		if found == nil {
			t.Fatalf("the demonstration does not say %s", pattern)
		}
		return found
	}
	dsns, file := find(`psql '([^']+)'\n`), find(`status --config (\S+)`)[0]
	pid, err := strconv.Atoi(find(`kill -9 (\d+) \(the bridge of a\)`)[0])
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(file)
	}
	if err == nil {
		text = fmt.Appendf(text, "http:\n  listen: 127.0.0.1:0\n  viewer_token: %s\n  operator_token: %s\n", viewerToken, operatorToken)
		err = os.WriteFile(file, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	bridge := start(t, "run", "--config", file)
	listen := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(bridge.await(t, `http serves.*`))
	bridge.await(t, `bridge runs`)
	c := &console{url: "http://" + listen + "/console/", a: dsns[0], b: dsns[1], bridge: bridge, tab: open(t)}
	call(t, c.tab, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true})
	call(t, c.tab, network.SetCacheDisabled, network.SetCacheDisabledParams{CacheDisabled: true})
	do(t, c.tab, chromedp.EmulateViewport(1180, 900))
	return c
}

// visit opens the page in a browser that keeps nothing of other visits.
func (c *console) visit(t *testing.T) context.Context {
	t.Helper()
	call(t, c.tab, network.ClearBrowserCookies, cdp.Empty{})
	do(t, c.tab, chromedp.Navigate("about:blank"), chromedp.Navigate(c.url))
	await(t, c.tab, `document.activeElement.id === 'token'`)
	return c.tab
}

// signIn types a token.
func signIn(t *testing.T, page context.Context, token string) {
	t.Helper()
	eval[any](t, page, `document.querySelector('#token').value = ''`)
	do(t, page, chromedp.KeyEvent(token+"\r"))
}

// operate opens the page for an operator.
func (c *console) operate(t *testing.T) context.Context {
	t.Helper()
	page := c.visit(t)
	signIn(t, page, operatorToken)
	sees(t, page, "Node a: ")
	return page
}

// sees waits until the page says something.
func sees(t *testing.T, page context.Context, text string) {
	t.Helper()
	await(t, page, fmt.Sprintf(`document.body.innerText.includes(%q)`, text))
}

// press clicks what is called so, or begins so: in the dialog if one is open, behind which nothing can be clicked.
func press(t *testing.T, page context.Context, name string) {
	t.Helper()
	find := fmt.Sprintf(`[...(document.querySelector('dialog[open]') ?? document).querySelectorAll('button, nav a, td a')].find((b) =>
		(b.ariaLabel || b.textContent).trim().startsWith(%q) && b.checkVisibility() && b.ariaDisabled !== 'true')`, name)
	await(t, page, find+` !== undefined`)
	eval[any](t, page, `(() => { const b = `+find+`; b.scrollIntoView(); b.focus(); b.click(); })()`)
}

// goTo follows a link of the navigation.
func goTo(t *testing.T, page context.Context, section, heading string) {
	t.Helper()
	press(t, page, section)
	await(t, page, fmt.Sprintf(`document.querySelector('#view h1')?.textContent === %q`, heading))
}

// sql runs statements on a node, as a user of it.
func sql(t *testing.T, dsn string, statements ...string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, statement := range statements {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// park has a transaction of node b refused at node a, until the constraint is gone.
func (c *console) park(t *testing.T, page context.Context) {
	t.Helper()
	sql(t, c.a, `ALTER TABLE shop.notes ADD CONSTRAINT only_here CHECK (body <> 'from the console') NOT VALID`)
	sql(t, c.b, `INSERT INTO shop.notes VALUES (gen_random_uuid(), 'b', 'from the console')`)
	await(t, page, `document.querySelector('#parked-count').textContent === '1'`)
}

func (c *console) letIn(t *testing.T) {
	t.Helper()
	sql(t, c.a, `ALTER TABLE shop.notes DROP CONSTRAINT only_here`)
}

// TestConsole is about the page of one cluster, as people use it.
func TestConsole(t *testing.T) {
	c := startConsole(t)
	t.Run("first load", c.firstLoad)
	t.Run("sign-in", c.signInAndOut)
	t.Run("lag and topology", c.lagAndTopology)
	t.Run("pause", c.pauseAndResume)
	t.Run("undo", c.undo)
	t.Run("verify", c.verify)
	t.Run("parked", c.retryParked)
	t.Run("keyboard", c.keyboard)
	t.Run("accessible", c.accessible)
	for _, token := range []string{viewerToken, operatorToken} {
		if strings.Contains(c.bridge.said(), token) {
			t.Errorf("the bridge's log has the token %s", token)
		}
	}
}

// mostTransferred is what a browser that has nothing of the page yet may be sent until it is whole, headers included.
const mostTransferred = 300_000

// firstLoad weighs the page for somebody who signs in, and for somebody who has signed in before.
func (c *console) firstLoad(t *testing.T) {
	page := c.visit(t)
	weigh(t, page, "to sign in")
	signIn(t, page, operatorToken)
	sees(t, page, "Node a: ")
	for range 5 {
		do(t, page, chromedp.Reload())
		await(t, page, `document.querySelectorAll('svg.topology circle').length === 2`)
		weigh(t, page, "to the overview")
	}
}

// weigh says how long the first paint took, and holds what was loaded to its limit. Nothing may come from elsewhere.
func weigh(t *testing.T, page context.Context, what string) {
	t.Helper()
	await(t, page, `performance.getEntriesByName('first-contentful-paint').length === 1`)
	seen := eval[struct {
		Paint, Content, Loaded float64
		Bytes, Files           int
		Elsewhere              []string
	}](t, page, `(() => {
		const loaded = [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')], paint = (name) => performance.getEntriesByName(name)[0].startTime;
		return { Paint: paint('first-paint'), Content: paint('first-contentful-paint'), Loaded: loaded[0].loadEventEnd,
			Bytes: loaded.reduce((sum, one) => sum + one.transferSize, 0), Files: loaded.length,
			Elsewhere: loaded.map((one) => one.name).filter((name) => !name.startsWith(location.origin + '/console/')) };
	})()`)
	t.Logf("%s: first paint after %.0f ms, with content after %.0f ms, loaded after %.0f ms; %d requests, %d bytes", what, seen.Paint, seen.Content, seen.Loaded, seen.Files, seen.Bytes)
	if seen.Bytes > mostTransferred || seen.Bytes == 0 {
		t.Errorf("%s %d bytes are transferred, the most is %d", what, seen.Bytes, mostTransferred)
	}
	if len(seen.Elsewhere) > 0 {
		t.Errorf("%s it loads %q", what, seen.Elsewhere)
	}
}

// signInAndOut: a wrong token is refused, a viewer looks and has nothing to act with, and who has signed out sees nothing more.
func (c *console) signInAndOut(t *testing.T) {
	page := c.visit(t)
	signIn(t, page, "no token of this node")
	sees(t, page, "this is not a token of this node")
	if eval[bool](t, page, `document.querySelector('#nav').checkVisibility() || document.querySelector('#view').textContent !== ''`) {
		t.Error("something is shown to who was refused")
	}
	signIn(t, page, viewerToken)
	sees(t, page, "Node a: ")
	sees(t, page, "viewer")
	if n := eval[int](t, page, `document.querySelectorAll('#view button, #view form').length`); n != 0 {
		t.Errorf("a viewer is offered %d things to do", n)
	}
	tells(t, page)
	press(t, page, "Sign out")
	await(t, page, `document.activeElement.id === 'token'`)
	if eval[bool](t, page, `document.querySelector('#view').textContent !== ''`) {
		t.Error("something is shown to who has signed out")
	}
	do(t, page, chromedp.Reload())
	await(t, page, `document.activeElement.id === 'token'`)
}

// tells fails if the page, or anything that scripts of it can read, has a token.
func tells(t *testing.T, page context.Context) {
	t.Helper()
	all := eval[string](t, page, `[document.documentElement.outerHTML, ...[...document.querySelectorAll('input')].map((field) => field.value), location.href, document.title,
		document.cookie, JSON.stringify(localStorage), JSON.stringify(sessionStorage), ...performance.getEntriesByType('resource').map((one) => one.name)].join('\n')`)
	for _, token := range []string{viewerToken, operatorToken} {
		if strings.Contains(all, token) {
			t.Errorf("at %s the page has the token %s", eval[string](t, page, `location.hash`), token)
		}
	}
	if !strings.Contains(all, "<title>") {
		t.Errorf("the page is not looked at: %.200s", all)
	}
}

// lagAndTopology: both nodes and both ways of their link are drawn, and the lag is, in figures and as a line.
func (c *console) lagAndTopology(t *testing.T) {
	page := c.operate(t)
	sees(t, page, "Node a: all is well")
	await(t, page, `[...document.querySelectorAll('svg.topology .name')].map((name) => name.textContent).join() === 'a (this node),b'`)
	await(t, page, `document.querySelectorAll('svg.topology .way.connected').length === 2`)
	await(t, page, `[...document.querySelectorAll('svg.topology text')].filter((label) => / tx\/s, .* m?s$/.test(label.textContent)).length === 2`)
	await(t, page, `/^Lag now: b.* m?s$/.test(document.querySelector('svg.chart').ariaLabel)`)
	await(t, page, `document.querySelector('svg.chart polyline').getAttribute('points').includes(' ')`)
	tells(t, page)
}

// pauseAndResume: what a node writes is held back with a reason, and let go. Two rows are written by both meanwhile, which makes two conflicts.
func (c *console) pauseAndResume(t *testing.T) {
	page := c.operate(t)
	press(t, page, "Hold back b")
	sees(t, page, "Hold back node b?")
	eval[any](t, page, `document.querySelector('#reason').value = 'for a look'`)
	press(t, page, "Hold back")
	sees(t, page, "What waits here since somebody wanted it so")
	sees(t, page, "for a look")
	sql(t, c.b, `INSERT INTO shop.notes VALUES (gen_random_uuid(), 'b', 'held back')`)
	await(t, page, `[...document.querySelectorAll('tr')].some((row) => row.innerText.startsWith('b\ta\twaits'))`)
	sql(t, c.b, `UPDATE shop.accounts SET city = 'Bergen' WHERE owner IN ('shared 1', 'shared 2')`)
	sql(t, c.a, `UPDATE shop.accounts SET city = 'Aachen' WHERE owner IN ('shared 1', 'shared 2')`)
	const conflicts = `Number([...document.querySelectorAll('tr')].find((row) => row.firstChild.textContent === 'b' && row.cells.length === 8).cells[6].textContent)`
	before := eval[int](t, page, conflicts)
	press(t, page, "Resume node b")
	sees(t, page, "Nothing is held back here.")
	await(t, page, `[...document.querySelectorAll('tr')].some((row) => row.innerText.startsWith('b\ta\tconnected'))`)
	await(t, page, fmt.Sprintf(`%s === %d`, conflicts, before+2))
}

// listUpdates shows the conflicts of updates with updates in a table whose rows nobody deletes: they can be undone.
func (c *console) listUpdates(t *testing.T, page context.Context) {
	t.Helper()
	goTo(t, page, "Conflicts", "Conflicts")
	await(t, page, `document.querySelector('#filter-kind') !== null`)
	eval[any](t, page, `(() => { document.querySelector('#filter-table').value = 'shop.accounts'; document.querySelector('#filter-kind').value = 'update_update'; })()`)
	press(t, page, "Show")
	await(t, page, `(() => { const rows = [...document.querySelectorAll('#conflicts tbody tr')]; return rows.length > 0 && rows.every((row) => row.innerText.includes('update_update')); })()`)
}

// undo: both versions of a conflict's row are shown, and the one that lost is written back. The newest conflict is left for [console.keyboard].
func (c *console) undo(t *testing.T) {
	page := c.operate(t)
	c.listUpdates(t, page)
	eval[any](t, page, `document.querySelectorAll('#conflicts a')[1].click()`)
	sees(t, page, "Both versions of the row")
	sees(t, page, "Not undone.")
	sees(t, page, "Bergen")
	sees(t, page, "Aachen")
	press(t, page, "Undo")
	eval[any](t, page, `document.querySelector('dialog input[name=force]').checked = true`)
	press(t, page, "Undo")
	sees(t, page, "Undone at")
	tells(t, page)
}

// toVerify goes to where nodes are compared, and waits for the other one to be offered.
func toVerify(t *testing.T, page context.Context) {
	t.Helper()
	goTo(t, page, "Verify", "Verify")
	await(t, page, `document.querySelectorAll('fieldset input[name=node]').length === 1`)
}

// verify: nodes that are equal are found to be.
func (c *console) verify(t *testing.T) {
	page := c.operate(t)
	toVerify(t, page)
	press(t, page, "Compare")
	sees(t, page, "none differs")
	sees(t, page, "shop.order_lines")
	tells(t, page)
}

// retryParked: a transaction that this node refuses is shown with the reason, and applied when the cause is mended.
func (c *console) retryParked(t *testing.T) {
	page := c.operate(t)
	c.park(t, page)
	goTo(t, page, "Parked", "Parked transactions")
	sees(t, page, "only_here")
	press(t, page, "Retry b:")
	sees(t, page, "is still parked")
	press(t, page, "Dismiss")
	c.letIn(t)
	press(t, page, "Retry b:")
	sees(t, page, "Nothing is parked.")
	await(t, page, `document.querySelector('#parked-count').hidden`)
	goTo(t, page, "Configuration", "Configuration")
	sees(t, page, "http.operator_token")
	tells(t, page)
}
