package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/cluster"
)

// told is what the editor's server tells a page of one node's text.
type told struct {
	Node string
	Life int
	Text *string
}

// editorPage is a page that types at the front, where it need not know what others have written.
type editorPage struct {
	t     *testing.T
	url   string
	lives map[string]int // by node
	edits map[string]int
}

func (p *editorPage) post(path string, body any) {
	p.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		p.t.Error(err)
		return
	}
	answer, err := http.Post(p.url+path, "application/json", bytes.NewReader(text))
	if err != nil {
		p.t.Error(err)
		return
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusNoContent {
		p.t.Errorf("%s %s: %s", path, text, answer.Status)
	}
}

func (p *editorPage) types(node, text string) {
	p.t.Helper()
	p.post("/edit", map[string]any{"page": "p", "node": node, "life": p.lives[node], "first": p.edits[node],
		"splices": []any{map[string]any{"at": 0, "put": text}}})
	p.edits[node]++
}

// play opens the page, cuts b off, types on both sides, and brings it back.
func (p *editorPage) play(ctx context.Context) {
	r, err := http.NewRequestWithContext(ctx, "GET", p.url+"/events?page=p", nil)
	if err != nil {
		p.t.Error(err)
		return
	}
	stream, err := http.DefaultClient.Do(r)
	if err != nil {
		p.t.Error(err)
		return
	}
	defer stream.Body.Close()
	lines := bufio.NewScanner(stream.Body)
	state := func(off bool) {
		for lines.Scan() {
			if strings.Contains(lines.Text(), fmt.Sprintf(`{"name":"b","off":%v}`, off)) {
				return
			}
		}
		p.t.Errorf("the page is not told whether b is cut off: %v", lines.Err())
	}
	state(false)
	for len(p.lives) < 2 && lines.Scan() {
		var e told
		text, ok := strings.CutPrefix(lines.Text(), "data: ")
		if ok && json.Unmarshal([]byte(text), &e) == nil && e.Text != nil {
			p.lives[e.Node] = e.Life
		}
	}
	p.types("a", "one ")
	p.post("/cut", map[string]any{"node": "b", "off": true})
	state(true)
	p.types("a", "two ")
	p.types("b", "three ")
	p.types("b", "four ")
	p.post("/cut", map[string]any{"node": "b", "off": false})
	state(false)
	p.types("b", "five ")
}

// TestEditor: what is typed on two nodes, of which one is cut off for a while, stands on both in the end, when somebody presses Ctrl-C.
func TestEditor(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	played := make(chan bool)
	a := &account{match: "Ctrl-C ends it"}
	a.on = func(text string) {
		p := &editorPage{t: t, url: regexp.MustCompile(`http://[\d.:]+`).FindString(text), lives: map[string]int{}, edits: map[string]int{}}
		go func() {
			defer close(played)
			defer cancel()
			p.play(ctx)
		}()
	}
	err := run(t, ctx, Options{Scenario: Editor, Nodes: 2, Executable: cluster.Binary(t)}, a)
	cancel()
	<-played
	if err != nil {
		t.Fatal(err)
	}
	requireLines(t, a.text.String(), `a mesh of 2 links`, `editor\.document +1 .* same`, `  a +5 `, `  b +5 `, `Every row of every table is the same on all 2 nodes`, `(?s)The text\n(.* )?five .*three`, `two .*one`)
}
