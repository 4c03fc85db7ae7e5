//go:build pictures

package browser

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
)

// picturesDir is where pictures for the docs go; empty: none are made.
func picturesDir() string { return os.Getenv("PGBRIDGE_TEST_PICTURES") }

// shoot takes a picture of a page.
func shoot(t *testing.T, ctx context.Context, name, scheme string) {
	t.Helper()
	call(t, ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
	picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(picturesDir(), name), picture, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestPictureOfTheEditor makes the picture in docs/demo.md: a node is cut off, and two write on.
func TestPictureOfTheEditor(t *testing.T) {
	if picturesDir() == "" {
		t.Fatal("PGBRIDGE_TEST_PICTURES does not say where pictures go; run make pictures")
	}
	demo := start(t, "demo", "--scenario", "editor", "--nodes", "3")
	url := demo.await(t, `http://[\d.:]+`)
	page := open(t)
	do(t, page, chromedp.EmulateViewport(1180, 560), chromedp.Navigate(url))
	await(t, page, `document.querySelector('#verdict').className === 'same'`)
	write := func(pane, behind, text string) {
		eval[any](t, page, `(() => { const a = panes.get('`+pane+`').area, at = a.value.indexOf('`+behind+`') + '`+behind+`'.length; a.focus(); a.setSelectionRange(at, at); })()`)
		if _, err := chromedp.Call(page, input.InsertText, input.InsertTextParams{Text: text}); err != nil {
			t.Fatal(err)
		}
	}
	has := func(pane, text string) {
		await(t, page, `panes.get('`+pane+`').area.value.includes('`+text+`')`)
	}
	write("a", strings.TrimSpace(firstLine), "\n\nShopping: bread, milk")
	has("c", "milk")
	cutOff(t, page, "b", true)
	write("a", "milk", ", cheese")
	write("b", "bread", " (two)")
	has("c", "cheese")
	shoot(t, page, "editor.png", "light")
	cutOff(t, page, "b", false)
	for _, pane := range []string{"a", "b", "c"} {
		has(pane, "bread (two), milk, cheese")
	}
}

// firstLine is what the demonstration's text begins with.
const firstLine = "Type into any pane."
