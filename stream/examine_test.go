package stream

import (
	"crypto/tls"
	"encoding/base64"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/integration/natstest"
)

// TestCertificateEnds: when a broker's certificate ends is known of a connection with TLS, and of one without there is none.
func TestCertificateEnds(t *testing.T) {
	cert, pool := selfSigned(t)
	s := startServer(t, ServerOptions{TLS: &tls.Config{Certificates: []tls.Certificate{cert}}})
	nc := connectAs(t, ConnectOptions{URL: s.ClientURL(), TLS: &tls.Config{RootCAs: pool}})
	if err := AwaitConnected(testContext(t), nc); err != nil {
		t.Fatal(err)
	}
	if ends, ok := CertificateEnds(nc); !ok || time.Until(ends) > time.Hour || time.Until(ends) < 50*time.Minute {
		t.Errorf("%v, %t", ends, ok)
	}
	plain := natstest.New(t).Connect(t)
	if ends, ok := CertificateEnds(plain); ok {
		t.Errorf("without TLS: %v", ends)
	}
	if k, err := LookUp(t.Context(), plain, "", "PGB_t_a"); !IsNoStream(err) {
		t.Errorf("a stream that is not there: %+v, %v", k, err)
	}
}

// TestCredentialsEnd: the end of a credentials file is read out of its token, and what is no such file is refused by name.
func TestCredentialsEnd(t *testing.T) {
	write := func(claims string) string {
		file := filepath.Join(t.TempDir(), "a.creds")
		token := "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
		text := "-----BEGIN NATS USER JWT-----\n" + token + "\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\nSUA\n------END USER NKEY SEED------\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	if ends, ok, err := CredentialsEnd(write(`{"exp": 1800000000}`)); err != nil || !ok || ends.Unix() != 1800000000 {
		t.Errorf("%v, %t, %v", ends, ok, err)
	}
	if _, ok, err := CredentialsEnd(write(`{"sub": "U"}`)); err != nil || ok {
		t.Errorf("without an end: %t, %v", ok, err)
	}
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{other, write("{"), filepath.Join(t.TempDir(), "absent")} {
		if _, _, err := CredentialsEnd(file); err == nil {
			t.Errorf("%s is read", file)
		}
	}
}
