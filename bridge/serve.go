package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"time"

	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/console"
)

// socketPath is where a running bridge answers status. A Unix socket's path holds about a hundred bytes;
// for a longer data_dir the socket is in the directory for temporary files.
func socketPath(dataDir string) string {
	p := filepath.Join(dataDir, "status.sock")
	if len(p) < 100 {
		return p
	}
	h := fnv.New64a()
	h.Write([]byte(dataDir))
	return filepath.Join(os.TempDir(), fmt.Sprintf("pgbridge-%x.sock", h.Sum64()))
}

// serveStatus answers on the status socket, and on http.listen if that is set, until stop is called.
func (b *bridge) serveStatus() (stop func(), err error) {
	path := socketPath(b.cfg.DataDir)
	os.Remove(path) // the lock on data_dir says that nobody else serves it
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("status socket: %w; make data_dir writable or choose another", err)
	}
	os.Chmod(path, 0o600)
	listeners := []net.Listener{l}
	handlers := []http.Handler{b.localHandler()}
	if b.cfg.HTTP.Listen != "" {
		l, err := net.Listen("tcp", b.cfg.HTTP.Listen)
		if err != nil {
			listeners[0].Close()
			return nil, fmt.Errorf("http.listen: %w; free that address or choose another", err)
		}
		b.log.Info("http serves", "listen", l.Addr().String())
		mux := b.handler()
		if b.cfg.HTTP.Pprof {
			serveProfiles(mux)
		}
		if b.cfg.Console() {
			b.console = newConsole(b)
			mux.Handle(console.Prefix, b.console)
		}
		listeners, handlers = append(listeners, l), append(handlers, mux)
	}
	done := make(chan struct{})
	var servers []*http.Server
	for i, l := range listeners {
		s := &http.Server{Handler: handlers[i], ReadHeaderTimeout: 5 * time.Second, WriteTimeout: time.Minute}
		servers = append(servers, s)
		go func() {
			s.Serve(l)
			done <- struct{}{}
		}()
	}
	return func() {
		for _, s := range servers {
			s.Close()
		}
		for range servers {
			<-done
		}
	}, nil
}

// localHandler answers on the status socket, where whoever asks may also change something.
func (b *bridge) localHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", b.handler())
	mux.HandleFunc("POST /verify", b.serveVerify)
	mux.HandleFunc("POST /reload", b.serveReload)
	serveProfiles(mux)
	return mux
}

func (b *bridge) handler() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(b.report(r.Context()))
	})
	mux.Handle("GET /metrics", b.metrics())
	mux.HandleFunc("GET /token", b.serveToken)
	mux.HandleFunc("GET /wait", b.serveWait)
	mux.HandleFunc("GET /probe", b.serveProbe)
	mux.HandleFunc("GET /behind", b.serveBehind)
	mux.HandleFunc("GET /healthz", answers(b.healthy))
	mux.HandleFunc("GET /readyz", answers(b.ready))
	return mux
}

// serveProfiles adds the profiles of the Go runtime: stacks and counts, no data. The command line is left out, where --set may give
// secrets.
func serveProfiles(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/cmdline", http.NotFound)
}

// answers gives 200 while check finds nothing, and else 503 with what it found.
func answers(check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if err := check(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	}
}

// ready returns nil while this node takes part: local changes are read and are safe at the broker, and what another one that is
// reached has written is applied. Unlike healthy it tells of what a restart would not mend.
func (b *bridge) ready() error {
	if err := b.healthy(); err != nil {
		return err
	}
	l, _ := b.current.get()
	if b.shadow.Load() != nil {
		return errShadow
	}
	if l == nil {
		return errors.New(starting)
	}
	if _, err := l.publisher.State(); err != nil {
		return fmt.Errorf("own stream cannot be written: %w", err)
	}
	for _, o := range l.applier.Status() {
		if o.Waiting != "" && o.Lag > readyLag {
			return fmt.Errorf("what %s writes waits for %s: %s", o.Origin, o.Lag.Round(time.Second), o.Waiting)
		}
	}
	return nil
}

// readyLag is how long what another node wrote may wait here before this node counts as one that does not take part.
const readyLag = time.Minute

// healthy returns nil while all parts run. It asks nobody, so that it can be asked often. A peer that is away, or
// a row that waits for a person, is no fault of this process: status tells of those.
func (b *bridge) healthy() error {
	l, err := b.current.get()
	switch {
	case l != nil:
		return streaming(l.capture)
	case b.shadow.Load() != nil:
		return streaming(b.shadow.Load().capture)
	case err != nil:
		return err
	}
	return errors.New(starting)
}

// streaming returns nil while local changes are read.
func streaming(c *capture.Capture) error {
	if s := c.Status(); s.State != capture.StateStreaming {
		return fmt.Errorf("local changes are not read: capture is %s: %s", s.State, s.Waiting)
	}
	return nil
}
