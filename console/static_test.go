package console

import (
	"math"
	"net/http"
	"path"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// mostPage is what the page and all that it loads may weigh.
const mostPage = 100_000

// elsewhere finds what would be loaded from other hosts. Namespaces of SVG are names, and nothing is loaded from them.
var elsewhere = regexp.MustCompile(`(?i)(https?:)?//[a-z0-9.-]+\.[a-z]{2,}`)

// markup finds what would make markup or code out of text.
var markup = regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\("style"|srcdoc`)

// TestPageIsWhole: it is small, loads nothing from elsewhere, has no script or style within, and all that its parts name is there.
func TestPageIsWhole(t *testing.T) {
	s := serve(t, nil)
	nobody := &person{served: s}
	weight := 0
	for name, f := range files() {
		weight += len(f.content)
		text := strings.ReplaceAll(string(f.content), "http://www.w3.org/2000/svg", "")
		if found := elsewhere.FindString(text); found != "" {
			t.Errorf("%s names %s", name, found)
		}
		if found := markup.FindString(text); found != "" {
			t.Errorf("%s has %s", name, found)
		}
		if f.kind == "" {
			t.Errorf("%s has no type", name)
		}
		where := strings.ReplaceAll(name, "{$}", "")
		resp := nobody.ask("GET", where, "")
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != f.kind {
			t.Errorf("%q: %d %s", where, resp.StatusCode, resp.Header.Get("Content-Type"))
		}
		nobody.header = map[string]string{"If-None-Match": f.tag}
		if code, _ := nobody.do("GET", where, ""); code != http.StatusNotModified {
			t.Errorf("%q is sent again: %d", where, code)
		}
		nobody.header = nil
		if path.Ext(name) == ".js" {
			for _, m := range regexp.MustCompile(`from "\./([^"]+)"`).FindAllStringSubmatch(text, -1) {
				if _, ok := files()[m[1]]; !ok {
					t.Errorf("%s loads %s, which is not there", name, m[1])
				}
			}
		}
	}
	if weight > mostPage {
		t.Errorf("the page weighs %d bytes, the most is %d", weight, mostPage)
	}
	page := string(files()["{$}"].content)
	for _, m := range regexp.MustCompile(`(?:src|href)="([^"#]+)"`).FindAllStringSubmatch(page, -1) {
		if _, ok := files()[m[1]]; !ok {
			t.Errorf("the page loads %s, which is not there", m[1])
		}
	}
	if regexp.MustCompile(`<script[^>]*>[^<]|<style| style=| on[a-z]+=`).MatchString(page) {
		t.Error("the page has a script or a style within, which its policy refuses")
	}
	for _, want := range []string{`lang="en"`, `name="viewport"`, `<label for="token">`, `role="status"`, `method="post"`, `color-scheme`} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	style := string(files()["style.css"].content)
	for _, want := range []string{"prefers-color-scheme: dark", "prefers-reduced-motion: reduce", ":focus-visible"} {
		if !strings.Contains(style, want) {
			t.Errorf("the style lacks %s", want)
		}
	}
}

// TestEveryCallIsARoute: what the scripts ask for is served.
func TestEveryCallIsARoute(t *testing.T) {
	s := serve(t, nil)
	called := 0
	for name, f := range files() {
		for _, m := range regexp.MustCompile(`[^.\w](get|post|lines)\("([^"]+)"( \+ [a-z.]+(?: \+ "([^"]+)")?)?`).FindAllStringSubmatch(string(f.content), -1) {
			called++
			method, want := "POST", m[2]
			if m[1] == "get" {
				method = "GET"
			}
			if m[3] != "" {
				want += "{id}" + m[4]
			}
			found := false
			for _, r := range s.routes() {
				found = found || r.method == method && r.path == want
			}
			if !found {
				t.Errorf("%s asks for %s %s, which is not served", name, method, want)
			}
		}
	}
	if called < len(s.routes()) {
		t.Errorf("%d calls for %d routes", called, len(s.routes()))
	}
}

// TestContrast: each colour of text can be read on what it stands on, in both schemes.
func TestContrast(t *testing.T) {
	style := string(files()["style.css"].content)
	light, dark, _ := strings.Cut(style, "@media (prefers-color-scheme: dark)")
	for name, text := range map[string]string{"light": light, "dark": dark} {
		colours := map[string][3]float64{}
		for _, m := range regexp.MustCompile(`--([a-z0-9-]+): #([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2});`).FindAllStringSubmatch(text, -1) {
			if _, ok := colours[m[1]]; !ok {
				colours[m[1]] = [3]float64{linear(t, m[2]), linear(t, m[3]), linear(t, m[4])}
			}
		}
		pairs := [][2]string{{"text", "marked"}, {"quiet", "marked"}}
		for _, on := range []string{"ground", "raised"} {
			for _, of := range []string{"text", "quiet", "link", "good", "warn", "bad"} {
				pairs = append(pairs, [2]string{of, on})
			}
		}
		for _, fill := range []string{"link", "good", "warn", "bad", "quiet"} {
			pairs = append(pairs, [2]string{"on-fill", fill})
		}
		for _, pair := range pairs {
			if got := contrast(colours[pair[0]], colours[pair[1]]); got < 4.5 {
				t.Errorf("%s: %s on %s has a contrast of %.2f", name, pair[0], pair[1], got)
			}
		}
	}
}

// linear is a part of a colour as WCAG 2 counts it, "relative luminance".
func linear(t *testing.T, hex string) float64 {
	t.Helper()
	n, err := strconv.ParseUint(hex, 16, 8)
	if err != nil {
		t.Fatal(err)
	}
	x := float64(n) / 255
	if x <= 0.04045 {
		return x / 12.92
	}
	return math.Pow((x+0.055)/1.055, 2.4)
}

func contrast(a, b [3]float64) float64 {
	luminance := func(c [3]float64) float64 { return 0.2126*c[0] + 0.7152*c[1] + 0.0722*c[2] + 0.05 }
	x, y := luminance(a), luminance(b)
	return max(x, y) / min(x, y)
}
