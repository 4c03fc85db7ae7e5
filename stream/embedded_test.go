package stream

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/integration/natstest"
)

func startServer(t testing.TB, o ServerOptions) *Server {
	t.Helper()
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if o.StoreDir == "" {
		o.StoreDir = t.TempDir()
	}
	if o.Logger == nil {
		o.Logger = quiet
	}
	s, err := StartServer(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestEmbeddedServer(t *testing.T) {
	s := startServer(t, ServerOptions{SyncAlways: true, MaxPayload: MaxMaxPayload})
	nc, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	b, err := CheckBroker(testContext(t), nc, "")
	if err != nil || b.MaxPayload != MaxMaxPayload {
		t.Fatalf("%+v: %v", b, err)
	}
	p, _ := running(t, nc, 1, PublisherOptions{})
	for n := uint64(1); n <= 20; n++ {
		publish(t, p, numbered(1, n, 0))
	}
	await(t, p, p.Next()-1)
	wantStored(t, natstest.Connect(t, s.ClientURL()), 20)
	if err := s.Healthy(); err != nil {
		t.Error(err)
	}
	s.Close()
	s.Close()
	if s.Healthy() == nil || s.Restart() == nil {
		t.Error("a closed server is healthy or can be restarted")
	}
}

// TestBusyServerIsHealthy: that a machine is too busy to answer at once is no failure of the store.
func TestBusyServerIsHealthy(t *testing.T) {
	s := startServer(t, ServerOptions{})
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	// The scheduler takes the processor away wherever one is; some of that many times, while a millisecond is measured.
	var asks sync.WaitGroup
	for range 8 {
		asks.Go(func() {
			for range 20_000 {
				if err := s.Healthy(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	asks.Wait()
}

// TestRestartedServer restarts the server under a publisher that is connected in the process, and under a
// reader that is not.
func TestRestartedServer(t *testing.T) {
	s := startServer(t, ServerOptions{})
	url := s.ClientURL()
	nc, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	p, _ := running(t, nc, 1, PublisherOptions{})
	for n := uint64(1); n <= 300; n++ {
		publish(t, p, numbered(1, n, 0))
		if n%100 == 0 {
			if err := s.Restart(); err != nil {
				t.Fatal(err)
			}
		}
	}
	await(t, p, p.Next()-1)
	if s.ClientURL() != url {
		t.Errorf("the server moved from %s to %s", url, s.ClientURL())
	}
	wantStored(t, natstest.Connect(t, url), 300)
}

func TestServerThatCannotStart(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, tc := range map[string]struct {
		o    ServerOptions
		want []string
	}{
		"port in use":    {ServerOptions{Listen: taken.Addr().String(), StoreDir: dir}, []string{taken.Addr().String(), "another program", "nats.embedded.listen"}},
		"no such host":   {ServerOptions{Listen: "192.0.2.1:0", StoreDir: dir, AllowPlaintext: true}, []string{"192.0.2.1", "no such address"}},
		"no port":        {ServerOptions{Listen: "localhost", StoreDir: dir}, []string{"localhost", "host:port"}},
		"wrong port":     {ServerOptions{Listen: "localhost:nats", StoreDir: dir}, []string{`"nats"`}},
		"store a file":   {ServerOptions{Listen: "127.0.0.1:0", StoreDir: file}, []string{file, "data_dir"}},
		"store denied":   {ServerOptions{Listen: "127.0.0.1:0", StoreDir: "/proc/pgbridge"}, []string{"/proc/pgbridge", "data_dir"}},
		"no store":       {ServerOptions{Listen: "127.0.0.1:0"}, []string{"data_dir"}},
		"small payload":  {ServerOptions{Listen: "127.0.0.1:0", StoreDir: dir, MaxPayload: 1000}, []string{"max_payload", "1000"}},
		"large payload":  {ServerOptions{Listen: "127.0.0.1:0", StoreDir: dir, MaxPayload: 9 << 20}, []string{"max_payload"}},
		"plain text":     {ServerOptions{Listen: "0.0.0.0:0", StoreDir: dir}, []string{"nats.embedded.allow_plaintext", "TLS"}},
		"plain text all": {ServerOptions{Listen: ":0", StoreDir: dir}, []string{"nats.embedded.allow_plaintext"}},
	} {
		tc.o.Logger = quiet
		s, err := StartServer(tc.o)
		if err == nil {
			s.Close()
			t.Errorf("%s: started", name)
			continue
		}
		for _, want := range tc.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q does not say %s", name, err, want)
			}
		}
	}
}

func TestListenBeyondLoopback(t *testing.T) {
	for name, o := range map[string]ServerOptions{
		"allowed": {Listen: "0.0.0.0:0", AllowPlaintext: true, StoreDir: "x"},
		"TLS":     {Listen: "0.0.0.0:0", TLS: &tls.Config{}, StoreDir: "x"},
		"::1":     {Listen: "[::1]:0", StoreDir: "x"},
	} {
		if err := o.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestServerWithTLS is reached with TLS over the network and without it in the process.
func TestServerWithTLS(t *testing.T) {
	cert, pool := selfSigned(t)
	s := startServer(t, ServerOptions{TLS: &tls.Config{Certificates: []tls.Certificate{cert}}})
	nc, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	outside := connectAs(t, ConnectOptions{URL: s.ClientURL(), TLS: &tls.Config{RootCAs: pool}})
	for name, nc := range map[string]*nats.Conn{"inside": nc, "outside": outside} {
		if _, err := CheckBroker(testContext(t), nc, ""); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !outside.TLSRequired() {
		t.Error("TLS is not required outside of the process")
	}
}

func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func TestFullDiskIsNamed(t *testing.T) {
	err := storeError("write to", "/data", &os.PathError{Op: "write", Path: "/data/x", Err: syscall.ENOSPC})
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "full") {
		t.Errorf("got %v", err)
	}
}

// TestFatalMessageEndsNothing is the one promise that the server's log must keep.
func TestFatalMessageEndsNothing(t *testing.T) {
	l := &serverLog{log: slog.New(slog.DiscardHandler)}
	l.Fatalf("Can't start %s", "JetStream")
	l.Fatalf("second")
	if err := l.fatal(); err == nil || err.Error() != "Can't start JetStream" {
		t.Errorf("got %v", err)
	}
}

// TestDamagedStoreIsAnError has the server itself give up, behind the probes.
func TestDamagedStoreIsAnError(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "jetstream"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := StartServer(ServerOptions{Listen: "127.0.0.1:0", StoreDir: dir, Logger: quiet})
	if err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("got %v", err)
	}
}
