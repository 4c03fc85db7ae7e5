package console

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	viewerToken   = "viewers-may-look-on"
	operatorToken = "operators-may-act-too"
)

// fake is a node that notes what it is asked to do.
type fake struct {
	mu   sync.Mutex
	done []string
	err  error // of all that can fail
}

func (f *fake) note(what string, args ...any) (any, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	text, _ := json.Marshal(args)
	f.done = append(f.done, what+string(text))
	return map[string]string{"did": what}, f.err
}

func (f *fake) Status(context.Context) any { x, _ := f.note("status"); return x }
func (f *fake) Others(context.Context) any { x, _ := f.note("others"); return x }
func (f *fake) Settings() any              { x, _ := f.note("settings"); return x }
func (f *fake) Conflicts(_ context.Context, o ConflictFilter) (any, error) {
	return f.note("conflicts", o)
}
func (f *fake) Conflict(_ context.Context, id int64) (any, error) { return f.note("conflict", id) }
func (f *fake) Undo(_ context.Context, id int64, o UndoOptions) (any, error) {
	return f.note("undo", id, o)
}
func (f *fake) Parked(context.Context) (any, error) { return f.note("parked") }
func (f *fake) ParkedChanges(_ context.Context, name string) (any, error) {
	return f.note("changes", name)
}
func (f *fake) RequestParked(_ context.Context, name string, r ParkedRequest) (any, error) {
	return f.note("request", name, r)
}
func (f *fake) Pause(_ context.Context, p Pause) error  { _, err := f.note("pause", p); return err }
func (f *fake) Resume(_ context.Context, p Pause) error { _, err := f.note("resume", p); return err }
func (f *fake) Verify(_ context.Context, o VerifyOptions, tell func(any)) (any, error) {
	tell(map[string]int{"rows": 7})
	return f.note("verify", o)
}

// served is a console that is served, with a clock that the test moves.
type served struct {
	t *testing.T
	*Console
	fake *fake
	log  *strings.Builder
	url  string

	mu    sync.Mutex
	now   time.Time
	looks chan struct{} // at the clock, each request's; nil: nobody counts
}

func serve(t *testing.T, change func(*Options)) *served {
	t.Helper()
	s := &served{t: t, fake: &fake{}, log: &strings.Builder{}, now: time.Unix(1_800_000_000, 0)}
	o := Options{Cluster: "shop", Node: "a", ViewerToken: viewerToken, OperatorToken: operatorToken, Local: true, Log: slog.New(slog.NewTextHandler(s.log, nil)), Now: s.clock,
		Status: s.fake, Conflicts: s.fake, Parked: s.fake, Pauses: s.fake, Rows: s.fake}
	if change != nil {
		change(&o)
	}
	s.Console = New(o)
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.url = server.URL + Prefix
	return s
}

func (s *served) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.looks != nil {
		s.looks <- struct{}{}
	}
	return s.now
}

func (s *served) pass(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

// person is a browser.
type person struct {
	*served
	cookie *http.Cookie
	header map[string]string
	host   string
}

// do asks, and returns the status with the body.
func (p *person) do(method, path, body string) (int, string) {
	p.t.Helper()
	resp := p.ask(method, path, body)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func (p *person) ask(method, path, body string) *http.Response {
	p.t.Helper()
	r, err := http.NewRequestWithContext(p.t.Context(), method, p.url+path, strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	if method == "POST" {
		r.Header.Set("Content-Type", "application/json")
	}
	for name, value := range p.header {
		r.Header.Set(name, value)
	}
	if p.host != "" {
		r.Host = p.host
	}
	if p.cookie != nil {
		r.AddCookie(p.cookie)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp
}

// signIn signs a person in who has a token; what the console says is returned.
func (s *served) signIn(token string) (*person, *http.Response) {
	s.t.Helper()
	p := &person{served: s}
	body, _ := json.Marshal(map[string]string{"token": token})
	resp := p.ask("POST", "sign-in", string(body))
	resp.Body.Close()
	for _, c := range resp.Cookies() {
		p.cookie = c
	}
	return p, resp
}

// as is somebody who is signed in.
func (s *served) as(token string) *person {
	s.t.Helper()
	p, resp := s.signIn(token)
	if resp.StatusCode != http.StatusOK || p.cookie == nil {
		s.t.Fatalf("sign-in gives %d", resp.StatusCode)
	}
	return p
}

// bodies are what routes want to be sent.
var bodies = map[string]string{
	"conflicts/{id}/undo": `{"force":true}`, "parked/retry": `{"all":true}`, "parked/discard": `{"name":"b:7"}`,
	"pause": `{"origin":"b"}`, "resume": `{"table":"public.t"}`, "verify": `{"table":"app.*","repair":true}`,
}

// TestRoles: nothing is told without a session, viewers change nothing, and operators may do all.
func TestRoles(t *testing.T) {
	s := serve(t, nil)
	nobody, viewer, operator := &person{served: s}, s.as(viewerToken), s.as(operatorToken)
	forged := &person{served: s, cookie: &http.Cookie{Name: operator.cookie.Name, Value: "AAAAAAAAAAAAAAAAAAAAAAAAAA"}}
	changing := 0
	for _, r := range s.routes() {
		path := "api/" + strings.ReplaceAll(r.path, "{id}", "12")
		for _, p := range []*person{nobody, forged} {
			if code, text := p.do(r.method, path, bodies[r.path]); code != http.StatusUnauthorized || !strings.Contains(text, "sign in") {
				t.Errorf("%s without a session: %d %s", path, code, text)
			}
		}
		want := http.StatusOK
		if r.role == Operator {
			want, changing = http.StatusForbidden, changing+1
		}
		if (r.method == "POST") != (r.role == Operator) {
			t.Errorf("%s %s is for a %s", r.method, r.path, r.role)
		}
		before := len(s.fake.done)
		if code, text := viewer.do(r.method, path, bodies[r.path]); code != want {
			t.Errorf("%s as a viewer: %d %s", path, code, text)
		}
		if r.role == Operator && len(s.fake.done) != before {
			t.Errorf("%s was done for a viewer: %v", path, s.fake.done[before:])
		}
		if code, text := operator.do(r.method, path, bodies[r.path]); code != http.StatusOK {
			t.Errorf("%s as an operator: %d %s", path, code, text)
		}
	}
	if changing != 6 {
		t.Errorf("%d routes are for operators", changing)
	}
	done := strings.Join(s.fake.done, "\n")
	for _, want := range []string{`undo[12,{"Force":true,"By":"console@127.0.0.1"}]`, `request["","retry"]`, `request["b:7","discard"]`, `pause[{"origin":"b"`,
		`resume[{"origin":"","table":"public.t"`, `verify[{"table":"app.*","nodes":null,"repair":true`} {
		if !strings.Contains(done, want) {
			t.Errorf("%s was not asked for in\n%s", want, done)
		}
	}
}

// TestActsAreLogged: what is done, to what, and where that came from.
func TestActsAreLogged(t *testing.T) {
	s := serve(t, nil)
	p := s.as(operatorToken)
	p.do("POST", "api/pause", `{"origin":"b","reason":"odd"}`)
	p.do("POST", "api/conflicts/12/undo", `{"force":true}`)
	s.as(viewerToken).do("POST", "api/resume", `{"origin":"b"}`)
	for _, want := range []string{`act=pause asked="{\"origin\":\"b\",\"table\":\"\",\"reason\":\"odd\"}" remote=127.0.0.1`, `act=conflicts/12/undo asked="{\"force\":true}" remote=127.0.0.1`} {
		if !strings.Contains(s.log.String(), want) {
			t.Errorf("%s is not in the log:\n%s", want, s.log)
		}
	}
	if strings.Contains(s.log.String(), "act=resume") {
		t.Errorf("what was refused is noted as done:\n%s", s.log)
	}
}

// TestSignIn: by a token of this node, into a session that ends; what was refused is counted and logged, and the token never is.
func TestSignIn(t *testing.T) {
	s := serve(t, nil)
	for _, wrong := range []string{"", "viewers-may-look-o", viewerToken + " ", "hunter2hunter2hunter2"} {
		if p, resp := s.signIn(wrong); resp.StatusCode != http.StatusUnauthorized || p.cookie != nil {
			t.Errorf("%q: %d", wrong, resp.StatusCode)
		}
	}
	if s.Refused() != 4 || strings.Count(s.log.String(), "console sign-in refused") != 4 {
		t.Errorf("%d are counted, the log has\n%s", s.Refused(), s.log)
	}
	viewer := s.as(viewerToken)
	c := viewer.cookie
	if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != Prefix || c.MaxAge != 12*60*60 || len(c.Value) < 26 {
		t.Errorf("the cookie is %+v", c)
	}
	if _, text := viewer.do("GET", "api/session", ""); !strings.Contains(text, `{"role":"viewer","cluster":"shop","node":"a"}`) {
		t.Errorf("who is signed in: %s", text)
	}
	s.pass(time.Second)
	other := s.as(viewerToken)
	if other.cookie.Value == c.Value {
		t.Error("two sessions have one id")
	}
	if code, _ := viewer.do("POST", "sign-out", `{}`); code != http.StatusOK {
		t.Errorf("sign-out: %d", code)
	}
	if code, _ := viewer.do("GET", "api/session", ""); code != http.StatusUnauthorized {
		t.Errorf("behind sign-out: %d", code)
	}
	s.pass(12*time.Hour - time.Second)
	if code, _ := other.do("GET", "api/session", ""); code != http.StatusOK {
		t.Errorf("within its time: %d", code)
	}
	s.pass(time.Second)
	if code, _ := other.do("GET", "api/session", ""); code != http.StatusUnauthorized {
		t.Errorf("behind its time: %d", code)
	}
	for _, secret := range []string{viewerToken, "hunter2", c.Value} {
		if strings.Contains(s.log.String(), secret) {
			t.Errorf("the log has %q:\n%s", secret, s.log)
		}
	}
}

// TestOneToken: nobody has a role without a token of its own, and an empty one opens nothing.
func TestOneToken(t *testing.T) {
	s := serve(t, func(o *Options) { o.OperatorToken = "" })
	if p, resp := s.signIn(""); resp.StatusCode != http.StatusUnauthorized || p.cookie != nil {
		t.Errorf("an empty token: %d", resp.StatusCode)
	}
	s.as(viewerToken)
	tls := serve(t, nil)
	p := &person{served: tls, header: map[string]string{"X-Forwarded-Proto": "https"}}
	resp := p.ask("POST", "sign-in", `{"token":"`+viewerToken+`"}`)
	resp.Body.Close()
	if c := resp.Cookies(); len(c) != 1 || !c[0].Secure {
		t.Errorf("behind a proxy with TLS the cookie is %+v", c)
	}
}

// TestGuessing: so many sign-ins are looked at in a second, right or wrong, and memory is bounded.
func TestGuessing(t *testing.T) {
	s := serve(t, nil)
	for range attempts {
		s.signIn("a guess of sixteen or more")
	}
	p, resp := s.signIn(operatorToken)
	if resp.StatusCode != http.StatusTooManyRequests || p.cookie != nil || resp.Header.Get("Retry-After") == "" {
		t.Errorf("the sixth within a second: %d", resp.StatusCode)
	}
	s.pass(time.Second / attempts)
	first := s.as(operatorToken)
	for range mostSessions {
		s.pass(time.Second)
		s.as(viewerToken)
	}
	if n := len(s.sessions.all); n != mostSessions {
		t.Errorf("%d sessions are remembered", n)
	}
	if code, _ := first.do("GET", "api/session", ""); code != http.StatusUnauthorized {
		t.Errorf("the oldest of more than %d: %d", mostSessions, code)
	}
}

// TestOtherSites: a page of another site can neither have something done nor be answered, nor show the console as a part of itself.
func TestOtherSites(t *testing.T) {
	s := serve(t, nil)
	for name, c := range map[string]struct {
		header map[string]string
		host   string
		want   int
	}{
		"itself":              {map[string]string{"Sec-Fetch-Site": "same-origin"}, "", 200},
		"by localhost":        {map[string]string{"Sec-Fetch-Site": "same-origin"}, "localhost:8080", 200},
		"by IPv6":             {nil, "[::1]:8080", 200},
		"by IPv6, no port":    {nil, "[::1]", 200},
		"another site":        {map[string]string{"Sec-Fetch-Site": "cross-site"}, "", 403},
		"another port":        {map[string]string{"Sec-Fetch-Site": "same-site"}, "", 403},
		"an old browser":      {map[string]string{"Origin": "https://evil.example"}, "", 403},
		"a sandbox":           {map[string]string{"Origin": "null"}, "", 403},
		"a form":              {map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, "", 415},
		"text that is JSON":   {map[string]string{"Content-Type": "text/plain"}, "", 415},
		"a name of its own":   {map[string]string{"Sec-Fetch-Site": "same-origin"}, "evil.example", 421},
		"a name like ours":    {nil, "localhost.evil.example:8080", 421},
		"a name of a network": {nil, "10.0.0.1:8080", 421},
	} {
		p := s.as(operatorToken)
		s.pass(time.Second)
		p.header, p.host = c.header, c.host
		before := len(s.fake.done)
		code, text := p.do("POST", "api/pause", `{"origin":"b"}`)
		if did := len(s.fake.done) > before; code != c.want || did != (c.want == 200) {
			t.Errorf("%s: %d %s, done is %t", name, code, text, did)
		}
		if code, _ := p.do("GET", "api/status", ""); c.want == 421 && code != 421 {
			t.Errorf("%s may read: %d", name, code)
		}
	}
	open := serve(t, func(o *Options) { o.Local = false }).as(operatorToken)
	open.host = "console.example"
	if code, _ := open.do("GET", "api/status", ""); code != http.StatusOK {
		t.Errorf("where other machines may come the name of the host is refused: %d", code)
	}
	for _, path := range []string{"", "app.js", "api/status", "absent"} {
		resp := (&person{served: s}).ask("GET", path, "")
		resp.Body.Close()
		policy := resp.Header.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"} {
			if !strings.Contains(policy, want) || strings.Contains(policy, "unsafe") {
				t.Errorf("%q has the policy %q", path, policy)
			}
		}
		if resp.Header.Get("X-Content-Type-Options") != "nosniff" || resp.Header.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%q has the headers %v", path, resp.Header)
		}
	}
}

// TestRequests: what is asked for in a wrong way is refused with what to write instead, and nothing is done.
func TestRequests(t *testing.T) {
	s := serve(t, nil)
	p := s.as(operatorToken)
	for _, c := range []struct {
		method, path, body string
		code               int
		want               string
	}{
		{"GET", "api/conflicts?table=app.*&kind=unique&origin=b&before=9&limit=2", "", 200, ""},
		{"GET", "api/conflicts?limit=501", "", 400, "use 1 to 500"},
		{"GET", "api/conflicts?before=x", "", 400, `\"x\" is not the id of a conflict`},
		{"GET", "api/conflicts/0", "", 400, "is not the id of a conflict"},
		{"POST", "api/conflicts/1/undo", `{"forced":true}`, 400, "unknown field"},
		{"POST", "api/conflicts/1/undo", `{"force":true}{}`, 400, "more follows"},
		{"POST", "api/parked/retry", `{}`, 400, "name one transaction"},
		{"POST", "api/parked/retry", `{"name":"a:1","all":true}`, 400, "name one transaction"},
		{"POST", "api/parked/discard", `{"all":true}`, 400, "name one transaction"},
		{"POST", "api/pause", `{}`, 400, "name a node or a table"},
		{"POST", "api/pause", `{"origin":"b","table":"public.t"}`, 400, "name a node or a table"},
		{"POST", "api/pause", `{"origin":"` + strings.Repeat("b", mostBody) + `"}`, 400, "too large"},
		{"GET", "api/pause", "", 405, ""},
		{"GET", "api/absent", "", 404, ""},
	} {
		before := len(s.fake.done)
		code, text := p.do(c.method, c.path, c.body)
		if code != c.code || !strings.Contains(text, c.want) || len(s.fake.done) > before && code != 200 {
			t.Errorf("%s %.80s %.80s: %d %s", c.method, c.path, c.body, code, text)
		}
	}
	if got := s.fake.done[0]; got != `conflicts[{"Table":"app.*","Kind":"unique","Origin":"b","Before":9,"Limit":2}]` {
		t.Errorf("asked for was %s", got)
	}
	for _, c := range []struct {
		err                error
		method, path, body string
		code               int
	}{
		{errors.New("the row is not the version that won any more"), "POST", "api/conflicts/1/undo", `{}`, 409},
		{errors.New("PostgreSQL is away; start it"), "GET", "api/conflicts", "", 503},
		{&Problem{404, errors.New("no such transaction is parked")}, "POST", "api/parked/retry", `{"name":"b:7"}`, 404},
	} {
		s.fake.err = c.err
		if code, text := p.do(c.method, c.path, c.body); code != c.code || text != `{"error":"`+c.err.Error()+"\"}\n" {
			t.Errorf("%v: %d %s", c.err, code, text)
		}
	}
}

// TestVerifyTellsLineByLine: how far it has come, and then the report or why there is none.
func TestVerifyTellsLineByLine(t *testing.T) {
	s := serve(t, nil)
	p := s.as(operatorToken)
	if _, text := p.do("POST", "api/verify", `{}`); text != `{"progress":{}}`+"\n"+`{"progress":{"rows":7}}`+"\n"+`{"report":{"did":"verify"}}`+"\n" {
		t.Errorf("it tells %s", text)
	}
	s.fake.err = errors.New("somebody compares already")
	if _, text := p.do("POST", "api/verify", `{}`); !strings.HasSuffix(text, `{"error":"somebody compares already"}`+"\n") {
		t.Errorf("it tells %s", text)
	}
}

// slow is a history that answers when it may.
type slow struct {
	*fake
	asked, go_ chan struct{}
}

func (s *slow) Conflicts(ctx context.Context, f ConflictFilter) (any, error) {
	s.asked <- struct{}{}
	<-s.go_
	return s.fake.Conflicts(ctx, f)
}

// TestDatabaseIsAskedByFew: those beyond mostAsked wait for their turn.
func TestDatabaseIsAskedByFew(t *testing.T) {
	h := &slow{&fake{}, make(chan struct{}, 100), make(chan struct{})}
	s := serve(t, func(o *Options) { o.Conflicts = h })
	p := s.as(viewerToken)
	const many = 4 * mostAsked
	s.looks = make(chan struct{}, many)
	var all sync.WaitGroup
	for range many {
		all.Go(func() {
			if code, text := p.do("GET", "api/conflicts", ""); code != http.StatusOK {
				t.Errorf("%d %s", code, text)
			}
		})
	}
	for range many { // all of them have come in
		<-s.looks
	}
	for range mostAsked {
		<-h.asked
	}
	if n := len(h.asked); n > 0 {
		t.Errorf("%d more ask the database", n)
	}
	close(h.go_)
	all.Wait()
}
