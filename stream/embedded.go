package stream

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

const (
	// DefaultMaxPayload is the largest message, in bytes, of an embedded server unless told otherwise.
	DefaultMaxPayload = 1 << 20
	// MaxMaxPayload is the most that ServerOptions.MaxPayload may be; NATS advises against more.
	MaxMaxPayload = 8 << 20

	// serverMemory bounds streams in memory. The bridge has none, only consumers' states.
	serverMemory = 64 << 20
	// readyTimeout bounds the opening of the listener, which comes after the streams were recovered.
	readyTimeout = 10 * time.Second
)

// ServerOptions say how the NATS server inside the bridge runs.
type ServerOptions struct {
	Name       string // shown to clients; empty: the server makes one up
	Listen     string // host:port for peers; port 0 takes a free one; empty: nowhere, it is reached in the process alone
	StoreDir   string // created if absent; not locked: one server at a time is the caller's duty
	SyncAlways bool   // fsync before each ack
	MaxStore   int64  // bytes on disk; 0: three quarters of what is free
	MaxPayload int32  // bytes, from MinMaxPayload to MaxMaxPayload; 0: DefaultMaxPayload
	TLS        *tls.Config
	Token      string // asked of every client; empty: of none
	// Users are all that may connect, instead of who has the token; OwnKey is the file of the seed of the one that Connect is.
	Users  []ServerUser
	OwnKey string
	// AllowPlaintext permits an address that other machines can reach without TLS.
	AllowPlaintext bool
	Logger         *slog.Logger // nil: slog.Default()
}

// Validate checks the options, each and all together.
func (o *ServerOptions) Validate() error {
	host, port, err := net.SplitHostPort(o.Listen)
	if o.Listen == "" {
		host, port, err = "localhost", "0", nil
	}
	if err != nil {
		return fmt.Errorf("nats.embedded.listen %q is not host:port: %w", o.Listen, err)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("nats.embedded.listen %q: port %q is not a number from 0 to %d", o.Listen, port, math.MaxUint16)
	} else if o.TLS == nil && !o.AllowPlaintext && !isLoopback(host) {
		return fmt.Errorf("nats.embedded.listen %q: other machines could read and forge frames, as the connection is "+
			"not encrypted; configure TLS, listen on 127.0.0.1:%d, or set nats.embedded.allow_plaintext: true", o.Listen, n)
	}
	if o.StoreDir == "" {
		return errors.New("the embedded NATS server has no store directory; set data_dir")
	}
	if o.MaxPayload != 0 && (o.MaxPayload < MinMaxPayload || o.MaxPayload > MaxMaxPayload) {
		return fmt.Errorf("max_payload of %d bytes: the embedded server takes %d to %d", o.MaxPayload, MinMaxPayload, MaxMaxPayload)
	}
	if o.MaxStore < 0 {
		return fmt.Errorf("max_store of %d bytes is negative", o.MaxStore)
	}
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Server is the NATS server inside the bridge. Safe for concurrent use.
type Server struct {
	opts    ServerOptions
	log     *slog.Logger
	refused refusals
	mu      sync.Mutex // held while the server starts or stops
	current atomic.Pointer[server.Server]
	closed  bool   // guarded by mu
	url     string // fixed by the first start, as the port is
}

// StartServer starts a server and waits until it serves. Its streams have been recovered by then.
func StartServer(o ServerOptions) (*Server, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.MaxPayload == 0 {
		o.MaxPayload = DefaultMaxPayload
	}
	s := &Server{opts: o, log: o.Logger}
	if s.log == nil {
		s.log = slog.Default()
	}
	if err := s.start(); err != nil {
		return nil, err
	}
	if o.Listen == "" {
		return s, nil
	}
	srv := s.current.Load()
	s.url = srv.ClientURL()
	host, _, _ := net.SplitHostPort(o.Listen) // Validate has checked it
	s.opts.Listen = net.JoinHostPort(host, strconv.Itoa(srv.Addr().(*net.TCPAddr).Port))
	return s, nil
}

func (s *Server) start() error {
	if s.opts.Listen != "" {
		if err := probeListen(s.opts.Listen); err != nil {
			return err
		}
	}
	if err := probeStore(s.opts.StoreDir); err != nil {
		return err
	}
	srv, err := server.NewServer(s.natsOptions())
	if err != nil {
		return fmt.Errorf("set up the embedded NATS server: %w", err)
	}
	log := &serverLog{log: s.log, refused: &s.refused}
	srv.SetLoggerV2(log, false, false, false)
	srv.Start()
	if fatal := log.fatal(); fatal == nil && srv.ReadyForConnections(readyTimeout) {
		s.current.Store(srv)
		return nil
	}
	srv.Shutdown()
	srv.WaitForShutdown()
	if fatal := log.fatal(); fatal != nil {
		return fmt.Errorf("start the embedded NATS server on %s with %q: %w", s.opts.Listen, s.opts.StoreDir, fatal)
	}
	return fmt.Errorf("start the embedded NATS server: it does not serve after %v, to listen on %q", readyTimeout, s.opts.Listen)
}

func (s *Server) natsOptions() *server.Options {
	host, port, _ := net.SplitHostPort(s.opts.Listen) // Validate has checked it
	n, _ := strconv.Atoi(port)
	if n == 0 {
		n = server.RANDOM_PORT
	}
	var users []*server.NkeyUser
	for _, u := range s.opts.Users {
		users = append(users, &server.NkeyUser{Nkey: u.NKey, Permissions: u.forServer()})
	}
	return &server.Options{
		ServerName: s.opts.Name, Host: host, Port: n, DontListen: s.opts.Listen == "",
		Authorization: s.opts.Token, Nkeys: users,
		NoSigs: true, DisableJetStreamBanner: true,
		MaxPayload: s.opts.MaxPayload, TLSConfig: s.opts.TLS, TLS: s.opts.TLS != nil,
		JetStream: true, StoreDir: s.opts.StoreDir, SyncAlways: s.opts.SyncAlways,
		JetStreamMaxStore: s.opts.MaxStore, JetStreamMaxMemory: serverMemory,
	}
}

// ClientURL is where other programs find the server; empty: nowhere.
func (s *Server) ClientURL() string { return s.url }

// InProcessConn opens a connection without a socket; it is what nats.InProcessServer asks for.
func (s *Server) InProcessConn() (net.Conn, error) {
	srv := s.current.Load()
	if srv == nil {
		return nil, errors.New("the embedded NATS server is stopped")
	}
	return srv.InProcessConn()
}

// Connect returns an in-process connection, which outlives a Restart. The caller closes it, before the
// server.
func (s *Server) Connect(opts ...nats.Option) (*nats.Conn, error) {
	all := append(ConnectOptions{Name: "pgbridge", Logger: s.log}.clientOptions(), nats.InProcessServer(s))
	if s.opts.OwnKey != "" {
		key, err := nats.NkeyOptionFromSeed(s.opts.OwnKey)
		if err != nil {
			return nil, fmt.Errorf("connect to the embedded NATS server: %w", err)
		}
		all = append(all, key)
	} else {
		all = append(all, nats.Token(s.opts.Token))
	}
	// Not ClientURL: what stays in the process needs no TLS.
	nc, err := nats.Connect("nats://"+cmp.Or(s.opts.Listen, "in-process"), append(all, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to the embedded NATS server: %w", err)
	}
	return nc, nil
}

// Healthy returns nil, or what keeps the server from storing frames. After an I/O error, such as a full
// disk, a stream stays frozen until the server is started again (nats-server 2.15): Restart mends it.
func (s *Server) Healthy() error {
	srv := s.current.Load()
	if srv == nil {
		return errors.New("the embedded NATS server is stopped")
	}
	st := srv.Healthz(&server.HealthzOptions{})
	// Whether it listens is given a millisecond, which passes on a machine that is busy; then its store is not looked at.
	if st.Error == "" || st.StatusCode == http.StatusInternalServerError && srv.ReadyForConnections(readyTimeout) {
		return nil
	}
	return fmt.Errorf("the embedded NATS server on %q: %s", s.opts.StoreDir, st.Error)
}

// Restart stops the server and starts it again on the same address and store. Connections come back by
// themselves. After an error the server is stopped, and Restart may be tried again.
func (s *Server) Restart() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.New("restart of a closed embedded NATS server")
	}
	s.stop()
	return s.start()
}

// Close stops the server and waits until it has ended. Closing twice is legal.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.stop()
}

func (s *Server) stop() {
	if srv := s.current.Swap(nil); srv != nil {
		srv.Shutdown()
		srv.WaitForShutdown()
	}
}
