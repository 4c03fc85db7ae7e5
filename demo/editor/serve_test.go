package editor

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/integration/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// TestStrangersAreRefused: pages of other sites, and names of theirs that lead here.
func TestStrangersAreRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, nil) }()
	for name, c := range map[string]struct {
		method, path, body string
		header             http.Header
		host               string
		want               int
	}{
		"the page":          {method: "GET", path: "/", want: http.StatusOK},
		"its script":        {method: "GET", path: "/pane.js", want: http.StatusOK},
		"another name":      {method: "GET", path: "/", host: "example.org", want: http.StatusMisdirectedRequest},
		"another site":      {method: "POST", path: "/edit", body: "{}", header: http.Header{"Origin": {"http://example.org"}}, want: http.StatusForbidden},
		"a form of another": {method: "POST", path: "/cut", body: "{}", header: http.Header{"Sec-Fetch-Site": {"cross-site"}}, want: http.StatusForbidden},
		"no JSON":           {method: "POST", path: "/edit", body: "x", want: http.StatusBadRequest},
		"no such node":      {method: "POST", path: "/edit", body: `{"node": "z"}`, want: http.StatusNotFound},
		"nor to cut off":    {method: "POST", path: "/cut", body: `{"node": "z"}`, want: http.StatusNotFound},
		"no page":           {method: "GET", path: "/events", want: http.StatusBadRequest},
	} {
		r, err := http.NewRequestWithContext(t.Context(), c.method, "http://"+l.Addr().String()+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		r.Host = c.host
		for key, values := range c.header {
			r.Header[key] = values
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != c.want {
			t.Errorf("%s: %s", name, answer.Status)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("at the end: %v", err)
	}
}

// TestPagesBeginWithTheText: also one that is opened before a node's changes are listened to. What is typed at its front stands there.
func TestPagesBeginWithTheText(t *testing.T) {
	db := pgtest.New(t)
	db.Exec(t, Schema)
	db.Exec(t, `INSERT INTO editor.document (id, body) VALUES (1, 'the text')`)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	begun, connections := make(chan struct{}), atomic.Int32{}
	n := Node{Name: "a", Committed: func() {}, Connect: func(ctx context.Context) (*pgx.Conn, error) {
		if connections.Add(1) > 1 {
			<-begun
		}
		return pgx.Connect(ctx, db.DSN)
	}}
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, []Node{n}) }()
	answer, err := http.Get("http://" + l.Addr().String() + "/events?page=p")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var told delivery
	for lines := bufio.NewScanner(answer.Body); told.Text == nil && lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			_ = json.Unmarshal([]byte(text), &told) // the state is another shape
		}
	}
	close(begun)
	if told.Text == nil || *told.Text != "the text" {
		t.Errorf("the page begins with %+v", told)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("at the end: %v", err)
	}
}

// TestNodeCannotBeReached: Serve says so, and lets go of its address.
func TestNodeCannotBeReached(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	away := errors.New("nobody is there")
	n := Node{Name: "a", Connect: func(context.Context) (*pgx.Conn, error) { return nil, away }}
	if err := Serve(t.Context(), l, []Node{n}); !errors.Is(err, away) || !strings.Contains(err.Error(), "node a") {
		t.Errorf("Serve: %v", err)
	}
	if again, err := net.Listen("tcp", l.Addr().String()); err != nil {
		t.Error(err)
	} else {
		again.Close()
	}
}
