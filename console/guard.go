package console

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"strings"
	"time"
)

// setHeaders says to browsers what the page may do: load what comes from here, and nothing else; be shown by no other page; keep nothing.
func setHeaders(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "+
		"form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}

// admits refuses requests that no page of this console has made.
func (c *Console) admits(r *http.Request) error {
	// A site whose name leads to 127.0.0.1 could otherwise speak to the console as if it were its own server.
	if c.o.Local && !local(r.Host) {
		return &Problem{http.StatusMisdirectedRequest, fmt.Errorf("this console answers at 127.0.0.1 and localhost, and the request is for %q; "+
			"open it there, or have your proxy send Host: localhost", r.Host)}
	}
	if err := c.cross.Check(r); err != nil {
		return &Problem{http.StatusForbidden, errors.New("the request comes from another site; open the console itself and do it there")}
	}
	return nil
}

// local reports whether a request's host is this machine's own.
func local(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	} else if len(host) > 1 && host[0] == '[' {
		host = host[1 : len(host)-1]
	}
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

// permit serves a route to those who may use it.
func (c *Console) permit(of route) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		role := c.roleOf(r)
		if role == "" {
			fail(w, r, &Problem{http.StatusUnauthorized, errors.New("nobody is signed in, or not any more; sign in")})
			return
		}
		if of.role == Operator && role != Operator {
			fail(w, r, &Problem{http.StatusForbidden, errors.New("viewers may look and change nothing; sign in with the token of operators")})
			return
		}
		of.serve(w, r)
	}
}

// remote is where a request comes from: the last proxy, if there is one.
func remote(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

const (
	// mostBody bounds what a request may bring.
	mostBody = 16 << 10
	// bodyPatience is how long it may take to come.
	bodyPatience = 10 * time.Second
)

// read reads what a request brings into a value. It must be called JSON, which no form of another site can do.
func read(w http.ResponseWriter, r *http.Request, into any) error {
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind != "application/json" {
		return &Problem{http.StatusUnsupportedMediaType, errors.New("the request must bring JSON; is JavaScript off in this browser?")}
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyPatience)) // a recorder in a test has none
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, mostBody))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = errors.New("more follows")
		}
	}
	_ = control.SetReadDeadline(time.Time{})
	if err != nil {
		return &Problem{http.StatusBadRequest, fmt.Errorf("the request cannot be read: %w; load the page again", err)}
	}
	return nil
}

// readAct reads what an operator wants to be done, and notes it in the log with where it comes from.
func (c *Console) readAct(w http.ResponseWriter, r *http.Request, into any) error {
	if err := read(w, r, into); err != nil {
		return err
	}
	asked, err := json.Marshal(into)
	if err != nil {
		return err
	}
	c.o.Log.Info("console is used", "act", strings.TrimPrefix(r.URL.Path, Prefix+"api/"), "asked", string(asked), "remote", remote(r))
	return nil
}

// tell writes an answer.
func tell(w http.ResponseWriter, status int, x any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(x) // who has gone needs no answer
}

// failure is an answer that says what is wrong.
type failure struct {
	Error string `json:"error"`
}

// fail says what is wrong. What could not be told is not there for now; what could not be done is refused.
func fail(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusServiceUnavailable
	if r.Method == http.MethodPost {
		status = http.StatusConflict
	}
	var p *Problem
	if errors.As(err, &p) {
		status = p.Status
	}
	tell(w, status, failure{err.Error()})
}
