package stream

import (
	"fmt"
	"log/slog"
	"sync"
)

// serverLog passes the server's log on. What would end the process is kept for whoever starts the
// server instead. The server calls it from all its goroutines.
type serverLog struct {
	log *slog.Logger
	mu  sync.Mutex
	end error // the first fatal message; guarded by mu
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
	l.log.Error(serverMessage, "text", fmt.Sprintf(format, v...))
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
