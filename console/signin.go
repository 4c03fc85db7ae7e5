package console

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Role is what somebody may do.
type Role string

// The roles. An operator may do all that a viewer may.
const (
	Viewer   Role = "viewer"   // look
	Operator Role = "operator" // and change
)

// attempts is how many sign-ins are looked at in a second, of all who try: whoever guesses gets no further, and the log is not filled.
const attempts = 5

// gate knows the tokens. It remembers their hashes alone: these have one length, so that comparing them tells nothing of the token.
type gate struct {
	tokens  []roleToken
	now     func() time.Time
	refused atomic.Uint64

	mu   sync.Mutex // guards what follows
	left float64    // attempts
	at   time.Time  // when that was so
}

// roleToken is the hash of a role's token.
type roleToken struct {
	role Role
	hash [sha256.Size]byte
}

func newGate(o Options) *gate {
	g := &gate{now: o.Now, left: attempts, at: o.Now()}
	for _, t := range []struct {
		role Role
		text string
	}{{Operator, o.OperatorToken}, {Viewer, o.ViewerToken}} {
		if t.text != "" {
			g.tokens = append(g.tokens, roleToken{t.role, sha256.Sum256([]byte(t.text))})
		}
	}
	return g
}

// role returns the role of a token; empty if it has none.
func (g *gate) role(token string) (role Role) {
	hash := sha256.Sum256([]byte(token))
	for _, t := range g.tokens { // all of them, so that it takes the same time
		if subtle.ConstantTimeCompare(hash[:], t.hash[:]) == 1 {
			role = t.role
		}
	}
	return role
}

// take takes one attempt, if there is one.
func (g *gate) take() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	g.left = min(attempts, g.left+attempts*max(0, now.Sub(g.at).Seconds()))
	g.at = now
	if g.left < 1 {
		return false
	}
	g.left--
	return true
}

// whoami tells who is signed in, where.
type whoami struct {
	Role    Role   `json:"role"`
	Cluster string `json:"cluster"`
	Node    string `json:"node"`
}

func (c *Console) signIn(w http.ResponseWriter, r *http.Request) {
	var asked struct {
		Token string `json:"token"`
	}
	if err := read(w, r, &asked); err != nil {
		fail(w, r, err)
		return
	}
	if !c.gate.take() {
		c.gate.refused.Add(1)
		w.Header().Set("Retry-After", "1")
		fail(w, r, &Problem{http.StatusTooManyRequests, errors.New("too many try to sign in; try again in a second")})
		return
	}
	role := c.gate.role(asked.Token)
	if role == "" {
		c.gate.refused.Add(1)
		c.o.Log.Warn("console sign-in refused", "remote", remote(r))
		fail(w, r, &Problem{http.StatusUnauthorized, errors.New("this is not a token of this node; http.viewer_token and http.operator_token of its configuration are")})
		return
	}
	c.o.Log.Info("console signed in", "role", string(role), "remote", remote(r))
	http.SetCookie(w, c.cookie(r, c.sessions.begin(role), int(sessionTime.Seconds())))
	tell(w, http.StatusOK, whoami{role, c.o.Cluster, c.o.Node})
}

func (c *Console) signOut(w http.ResponseWriter, r *http.Request) {
	if id, err := r.Cookie(c.cookieName()); err == nil {
		c.sessions.end(id.Value)
	}
	http.SetCookie(w, c.cookie(r, "", -1))
	tell(w, http.StatusOK, struct{}{})
}

// session answers who is signed in, for a page that was loaded again.
func (c *Console) session(_ http.ResponseWriter, r *http.Request) (any, error) {
	return whoami{c.roleOf(r), c.o.Cluster, c.o.Node}, nil
}

// roleOf returns the role in which a request is made; empty if nobody is signed in.
func (c *Console) roleOf(r *http.Request) Role {
	id, err := r.Cookie(c.cookieName())
	if err != nil {
		return ""
	}
	return c.sessions.role(id.Value)
}

// cookieName is the node's own: browsers send cookies to all ports of a host, on which other nodes' consoles may be.
func (c *Console) cookieName() string { return "pgbridge_" + c.o.Cluster + "_" + c.o.Node }

func (c *Console) cookie(r *http.Request, id string, age int) *http.Cookie {
	// A proxy that lies here harms its own user only.
	secure := r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https"
	return &http.Cookie{Name: c.cookieName(), Value: id, Path: Prefix, MaxAge: age, HttpOnly: true, Secure: secure, SameSite: http.SameSiteStrictMode}
}
