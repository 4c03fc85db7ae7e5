package browser

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"syscall"
	"testing"

	"github.com/chromedp/chromedp"
)

const operatorToken = "operators-may-act-too"

// withConsole starts a cluster of two nodes with a conflict in its history, gives node a a console, and opens that.
func withConsole(t *testing.T) (page context.Context, dsn, other string) {
	t.Helper()
	demo := start(t, "demo", "--nodes", "2", "--seconds", "4", "--keep")
	file := regexp.MustCompile(`--config (\S+)`).FindStringSubmatch(demo.await(t, `status --config \S+`))[1]
	demo.await(t, `Ctrl-C ends everything`)
	addresses := regexp.MustCompile(`psql '([^']+)'\n`).FindAllStringSubmatch(demo.said(), -1)
	if len(addresses) != 2 {
		t.Fatalf("the demonstration tells of %d addresses:\n%s", len(addresses), demo.said())
	}
	pid, err := strconv.Atoi(regexp.MustCompile(`kill -9 (\d+) \(the bridge of a\)`).FindStringSubmatch(demo.said())[1])
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	text, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, fmt.Appendf(text, "http:\n  listen: %s\n  operator_token: %s\n", addr, operatorToken), 0o600)
	}
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil {
		t.Fatal(err)
	}
	start(t, "run", "--config", file).await(t, `bridge runs`)
	page = open(t)
	do(t, page, chromedp.EmulateViewport(1180, 900), chromedp.Navigate("http://"+addr+"/console/"),
		chromedp.WaitVisible(chromedp.CSS("#token")), chromedp.SendKeys(chromedp.CSS("#token"), "no token of this node\r"))
	await(t, page, `document.querySelector('#sign-in-error').textContent.includes('not a token')`)
	do(t, page, chromedp.SetValue(chromedp.CSS("#token"), ""), chromedp.SendKeys(chromedp.CSS("#token"), operatorToken+"\r"))
	sees(t, page, "Node a: all is well")
	return page, addresses[0][1], addresses[1][1]
}

// sees waits until the page says something.
func sees(t *testing.T, page context.Context, text string) {
	t.Helper()
	await(t, page, fmt.Sprintf(`document.body.innerText.includes(%q)`, text))
}

// press clicks the button that is called so, or whose text begins so.
func press(t *testing.T, page context.Context, name string) {
	t.Helper()
	find := fmt.Sprintf(`[...document.querySelectorAll('dialog[open] button, main button, nav a, td a')].find(b => (b.getAttribute('aria-label') || b.textContent).trim().startsWith(%q) && b.checkVisibility() && !b.disabled)`, name)
	await(t, page, find+` !== undefined`)
	eval[any](t, page, `(() => { const b = `+find+`; b.scrollIntoView(); b.focus(); b.click(); })()`)
}

// goTo follows a link of the navigation.
func goTo(t *testing.T, page context.Context, section, heading string) {
	t.Helper()
	press(t, page, section)
	await(t, page, fmt.Sprintf(`document.querySelector('h1')?.checkVisibility() && [...document.querySelectorAll('h1')].some(h => h.textContent === %q)`, heading))
}

func sql(t *testing.T, dsn, statement string) {
	t.Helper()
	if out, err := exec.Command("psql", "-v", "ON_ERROR_STOP=1", "-qc", statement, dsn).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", statement, err, out)
	}
}

// TestConsole: lag and topology, a conflict that is undone, a link that is held back and let go, a comparison, and a transaction that is
// parked, by somebody who uses the page.
func TestConsole(t *testing.T) {
	page, dsn, other := withConsole(t)
	await(t, page, `document.querySelectorAll('svg.topology text').length >= 2`)
	sees(t, page, "Lag")

	press(t, page, "Hold back b")
	press(t, page, "Hold back")
	sees(t, page, "What waits here since somebody wanted it so")
	press(t, page, "Resume node b")
	sees(t, page, "Nothing is held back here.")

	goTo(t, page, "Conflicts", "Conflicts")
	press(t, page, "Conflict ")
	sees(t, page, "Both versions of the row")
	press(t, page, "Undo")
	eval[any](t, page, `document.querySelector('dialog input[name=force]').checked = true`)
	press(t, page, "Undo")
	sees(t, page, "Undone at")

	goTo(t, page, "Verify", "Verify")
	await(t, page, `document.querySelectorAll('fieldset input[name=node]').length === 1`)
	press(t, page, "Compare")
	sees(t, page, "none differs")

	// What the other node writes is refused here, until the constraint is gone.
	sql(t, dsn, `ALTER TABLE shop.notes ADD CONSTRAINT only_here CHECK (body <> 'from the console')`)
	sql(t, other, `INSERT INTO shop.notes VALUES (gen_random_uuid(), 'b', 'from the console')`)
	await(t, page, `document.querySelector('#parked-count').textContent === '1'`)
	goTo(t, page, "Parked", "Parked transactions")
	sees(t, page, "only_here")
	sql(t, dsn, `ALTER TABLE shop.notes DROP CONSTRAINT only_here`)
	press(t, page, "Retry b:")
	sees(t, page, "Nothing is parked.")

	goTo(t, page, "Configuration", "Configuration")
	sees(t, page, "http.operator_token")
	if eval[bool](t, page, fmt.Sprintf(`document.documentElement.outerHTML.includes(%q)`, operatorToken)) {
		t.Error("the page shows the token")
	}
}
