package console

import (
	"crypto/rand"
	"crypto/sha256"
	"sync"
	"time"
)

const (
	// sessionTime is how long a session lasts: a day's work.
	sessionTime = 12 * time.Hour
	// mostSessions bounds memory. Beyond it the oldest ends.
	mostSessions = 100
)

// sessions are those who are signed in. They end with the process.
type sessions struct {
	now func() time.Time

	mu  sync.Mutex // guards what follows
	all map[sessionKey]session
}

// sessionKey is the hash of a session's id, so that looking it up tells nothing of others.
type sessionKey [sha256.Size]byte

// session is one of them.
type session struct {
	role  Role
	until time.Time
}

func newSessions(now func() time.Time) *sessions {
	return &sessions{now: now, all: map[sessionKey]session{}}
}

// begin begins a session and returns its id.
func (s *sessions) begin(role Role) string {
	id := rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget()
	s.all[sha256.Sum256([]byte(id))] = session{role, s.now().Add(sessionTime)}
	return id
}

// forget makes room for one more; mu is held.
func (s *sessions) forget() {
	var oldest sessionKey
	for key, x := range s.all {
		if !x.until.After(s.now()) {
			delete(s.all, key)
			continue
		}
		if o, ok := s.all[oldest]; !ok || x.until.Before(o.until) {
			oldest = key
		}
	}
	if len(s.all) >= mostSessions {
		delete(s.all, oldest)
	}
}

// role returns the role of a session; empty if there is no such session, or not any more.
func (s *sessions) role(id string) Role {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.all[sha256.Sum256([]byte(id))]
	if !x.until.After(s.now()) {
		return ""
	}
	return x.role
}

// end ends a session.
func (s *sessions) end(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, sha256.Sum256([]byte(id)))
}
