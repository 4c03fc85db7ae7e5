package console

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"time"
)

// Prefix is the path under which the console is served.
const Prefix = "/console/"

// Options are what a console is made of.
type Options struct {
	Cluster, Node string
	// ViewerToken and OperatorToken are what people sign in with; nobody has a role whose token is empty.
	ViewerToken, OperatorToken string
	// Local says that only this machine reaches the listener: requests for another host are refused then.
	Local bool
	Log   *slog.Logger
	Now   func() time.Time

	Status    Node
	Conflicts Conflicts
	Parked    Parked
	Pauses    Pauses
	Rows      Rows
}

// Console serves the page and what it asks for. It is safe for concurrent use.
type Console struct {
	o        Options
	gate     *gate
	sessions *sessions
	cross    *http.CrossOriginProtection
	mux      *http.ServeMux
	busy     chan struct{} // one place for each request that asks the database
}

// mostAsked is how many requests may ask the database at once, each over a connection of its own.
const mostAsked = 8

// New makes a console.
func New(o Options) *Console {
	c := &Console{o: o, gate: newGate(o), sessions: newSessions(o.Now), cross: http.NewCrossOriginProtection(), mux: http.NewServeMux(),
		busy: make(chan struct{}, mostAsked)}
	c.mux.HandleFunc("POST "+Prefix+"sign-in", c.signIn)
	c.mux.HandleFunc("POST "+Prefix+"sign-out", c.signOut)
	for _, r := range c.routes() {
		c.mux.HandleFunc(r.method+" "+Prefix+"api/"+r.path, c.permit(r))
	}
	for name, f := range files() {
		c.mux.Handle("GET "+Prefix+name, f)
	}
	return c
}

// ServeHTTP answers requests for paths that begin with Prefix.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	setHeaders(w.Header())
	if err := c.admits(r); err != nil {
		fail(w, r, err)
		return
	}
	c.mux.ServeHTTP(w, r)
}

// Refused is how many sign-ins were refused.
func (c *Console) Refused() uint64 { return c.gate.refused.Load() }

// route is a question that is answered, or something that is done, for those who may.
type route struct {
	method, path string
	role         Role // the least
	serve        http.HandlerFunc
}

// routes lists all that a session is needed for.
func (c *Console) routes() []route {
	return []route{
		{"GET", "session", Viewer, c.answer(c.session)},
		{"GET", "status", Viewer, c.answer(c.status)},
		{"GET", "others", Viewer, c.answer(c.others)},
		{"GET", "settings", Viewer, c.answer(c.settings)},
		{"GET", "conflicts", Viewer, c.ask(c.conflicts)},
		{"GET", "conflicts/{id}", Viewer, c.ask(c.conflict)},
		{"POST", "conflicts/{id}/undo", Operator, c.ask(c.undo)},
		{"GET", "parked", Viewer, c.ask(c.parked)},
		{"GET", "parked/changes", Viewer, c.ask(c.parkedChanges)},
		{"POST", "parked/retry", Operator, c.ask(c.retry)},
		{"POST", "parked/discard", Operator, c.ask(c.discard)},
		{"POST", "pause", Operator, c.ask(c.pause)},
		{"POST", "resume", Operator, c.ask(c.resume)},
		{"POST", "verify", Operator, c.verify},
	}
}

// answerer makes an answer to a request.
type answerer func(w http.ResponseWriter, r *http.Request) (any, error)

// answer tells as JSON what an answerer gives.
func (c *Console) answer(make answerer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		x, err := make(w, r)
		if err != nil {
			fail(w, r, err)
			return
		}
		tell(w, http.StatusOK, x)
	}
}

// askPatience bounds what is asked of the database, below the time in which the server wants an answer to be written.
const askPatience = 45 * time.Second

// ask answers what the database is asked for, so many at once and no longer than they may take.
func (c *Console) ask(make answerer) http.HandlerFunc {
	return c.answer(func(w http.ResponseWriter, r *http.Request) (any, error) {
		ctx, cancel := context.WithTimeoutCause(r.Context(), askPatience, fmt.Errorf("it took longer than %s and was given up; pgbridge's commands wait longer", askPatience))
		defer cancel()
		select {
		case c.busy <- struct{}{}:
			defer func() { <-c.busy }()
		case <-ctx.Done():
			return nil, &Problem{http.StatusServiceUnavailable, fmt.Errorf("%d requests ask the database already; try again when they are answered", mostAsked)}
		}
		x, err := make(w, r.WithContext(ctx))
		if err != nil && ctx.Err() != nil {
			err = &Problem{http.StatusGatewayTimeout, context.Cause(ctx)}
		}
		return x, err
	})
}
