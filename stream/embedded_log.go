package stream

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats-server/v2/server"
)

// serverLog passes the server's log on. What would end the process is kept for whoever starts the
// server instead. The server calls it from all its goroutines.
type serverLog struct {
	log     *slog.Logger
	refused *refusals
	mu      sync.Mutex
	end     error // the first fatal message; guarded by mu
}

const serverMessage = "nats server"

// Noticef logs at debug level: what an operator must know of the server, bridge says itself.
func (l *serverLog) Noticef(format string, v ...any) {
	l.log.Debug(serverMessage, "text", fmt.Sprintf(format, v...))
}

func (l *serverLog) Warnf(format string, v ...any) {
	l.log.Warn(serverMessage, "text", fmt.Sprintf(format, v...))
}

func (l *serverLog) Errorf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	l.refused.count(text)
	l.log.Error(serverMessage, "text", text)
}

// refusals counts what the server has refused, by its log, since it tells of that nowhere else.
type refusals struct{ signIns, handshakes, permissions atomic.Uint64 }

func (r *refusals) count(text string) {
	switch {
	case strings.Contains(text, server.ErrAuthentication.Error()):
		r.signIns.Add(1)
	case strings.Contains(text, "TLS handshake error"):
		r.handshakes.Add(1)
	case strings.Contains(text, "Publish Violation"), strings.Contains(text, "Subscription Violation"):
		r.permissions.Add(1)
	}
}

// Refusals says how often the server has refused something since the bridge's process started.
type Refusals struct {
	SignIns     uint64 `json:"sign_ins"`    // of who has no key, token or password that is known
	Handshakes  uint64 `json:"handshakes"`  // of TLS
	Permissions uint64 `json:"permissions"` // subjects that a user may not publish to or read
}

// Refusals returns what the server has refused until now.
func (s *Server) Refusals() Refusals {
	return Refusals{s.refused.signIns.Load(), s.refused.handshakes.Load(), s.refused.permissions.Load()}
}

func (l *serverLog) Debugf(string, ...any) {}

func (l *serverLog) Tracef(string, ...any) {}

// Fatalf keeps the message. The server returns from its start after it, without serving.
func (l *serverLog) Fatalf(format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.end == nil {
		l.end = fmt.Errorf(format, v...)
	}
}

func (l *serverLog) fatal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end
}
