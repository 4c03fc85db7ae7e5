package natstest

import (
	"crypto/tls"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// startTimeout bounds the start of a server on a busy machine.
const startTimeout = 30 * time.Second

// Options are what a test may want different; the zero value is a server with
// JetStream, without users, on a free port.
type Options struct {
	MaxPayload   int32  // bytes; 0: the server's default of 1 MiB
	MaxStore     int64  // bytes for all streams together; 0: no limit of its own
	SyncAlways   bool   // fsync before each ack
	NoJetStream  bool   // as a server that somebody forgot to set up
	User, Secret string // when set, whoever connects must give them
	DenyPublish  string // subjects on which nobody may publish; empty: none. Not together with User
	Users        []User // who may connect, instead of User
	Dir          string // of the store; empty: a temporary directory of the test
	Port         int    // 0: a free one

	member    string // name in a cluster; empty: in none
	routePort int
	routes    []*url.URL
	TLS       *tls.Config `json:"-"` // nil: none; not of a process
}

// User is one who may connect: by name and secret, or by the public part of an nkey.
type User struct {
	Name, Secret, NKey string
	// Publish and Subscribe are all that the user may; Answer: also to answer whoever asks it.
	Publish, Subscribe []string
	Answer             bool
}

func (u User) permissions() *server.Permissions {
	p := &server.Permissions{Publish: &server.SubjectPermission{Allow: u.Publish}, Subscribe: &server.SubjectPermission{Allow: u.Subscribe}}
	if len(u.Publish) == 0 && len(u.Subscribe) == 0 {
		return nil
	}
	if u.Answer {
		p.Response = &server.ResponsePermission{MaxMsgs: server.DEFAULT_ALLOW_RESPONSE_MAX_MSGS, Expires: server.DEFAULT_ALLOW_RESPONSE_EXPIRATION}
	}
	return p
}

// Server is a NATS server in the test binary.
type Server struct {
	opts Options
	srv  *server.Server
}

// New starts a server, which is stopped at the end of the test.
func New(t testing.TB) *Server {
	t.Helper()
	return NewWith(t, Options{})
}

// NewWith starts a server as o says, which is stopped at the end of the test.
func NewWith(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	s := &Server{opts: o}
	s.Start(t)
	t.Cleanup(s.Stop)
	return s
}

// Start starts the server after a Stop, on the same port and store.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	srv, err := start(s.opts)
	if err != nil {
		t.Fatalf("start a NATS server: %v", err)
	}
	s.srv = srv
	s.opts.Port = srv.Addr().(*net.TCPAddr).Port
}

// Stop stops the server and waits for its end. Stopping twice is legal.
func (s *Server) Stop() {
	s.srv.Shutdown()
	s.srv.WaitForShutdown()
}

// URL is where clients find the server, without user and secret.
func (s *Server) URL() string { return "nats://" + s.Addr() }

// Addr is the server's host and port.
func (s *Server) Addr() string { return address(s.opts.Port) }

// Port is the server's port, which stays the same over a restart.
func (s *Server) Port() int { return s.opts.Port }

// Dir is where the server keeps its streams.
func (s *Server) Dir() string { return filepath.Join(s.opts.Dir, "jetstream") }

// Connect returns a connection that reconnects for ever and is closed at the end
// of the test.
func (s *Server) Connect(t testing.TB, opts ...nats.Option) *nats.Conn {
	t.Helper()
	return Connect(t, s.URL(), opts...)
}

// Connect returns a connection to url that reconnects for ever, every 20 ms, and
// is closed at the end of the test.
func Connect(t testing.TB, url string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	opts = append([]nats.Option{
		nats.MaxReconnects(-1), nats.ReconnectWait(20 * time.Millisecond), nats.ReconnectJitter(0, 0),
		nats.ReconnectBufSize(-1), nats.RetryOnFailedConnect(true),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}, opts...)
	nc, err := nats.Connect(url, opts...)
	if err != nil {
		t.Fatalf("connect to %s: %v", url, err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func start(o Options) (*server.Server, error) {
	port := o.Port
	if port == 0 {
		port = server.RANDOM_PORT
	}
	so := &server.Options{
		Host: "127.0.0.1", Port: port, NoSigs: true, NoLog: true,
		MaxPayload: o.MaxPayload, Username: o.User, Password: o.Secret,
		JetStream: !o.NoJetStream, StoreDir: o.Dir, SyncAlways: o.SyncAlways,
		JetStreamMaxStore: o.MaxStore, JetStreamMaxMemory: 64 << 20,
	}
	if o.DenyPublish != "" {
		deny := &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{o.DenyPublish}}}
		so.Users, so.NoAuthUser = []*server.User{{Username: "anybody", Permissions: deny}}, "anybody"
	}
	for _, u := range o.Users {
		if u.NKey != "" {
			so.Nkeys = append(so.Nkeys, &server.NkeyUser{Nkey: u.NKey, Permissions: u.permissions()})
			continue
		}
		so.Users = append(so.Users, &server.User{Username: u.Name, Password: u.Secret, Permissions: u.permissions()})
	}
	so.TLSConfig, so.TLS, so.TLSVerify = o.TLS, o.TLS != nil, o.TLS != nil && o.TLS.ClientAuth != tls.NoClientCert
	if o.member != "" {
		so.ServerName = o.member
		so.Cluster = server.ClusterOpts{Name: "natstest", Host: "127.0.0.1", Port: o.routePort}
		so.Routes = o.routes
	}
	srv, err := server.NewServer(so)
	if err != nil {
		return nil, err
	}
	srv.Start()
	if !srv.ReadyForConnections(startTimeout) {
		srv.Shutdown()
		srv.WaitForShutdown()
		return nil, &net.OpError{Op: "listen", Net: "tcp", Err: nats.ErrTimeout}
	}
	return srv, nil
}
