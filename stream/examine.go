package stream

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// What is looked at for a person, and changes nothing.

// Kept is how a broker keeps a stream.
type Kept struct {
	Bytes, MaxBytes int64 // MaxBytes -1: no limit
	Replicas        int
	Clustered       bool // the server is one of a cluster, or the stream of a group
}

// LookUp asks a broker how it keeps a stream; IsNoStream tells that there is none.
func LookUp(ctx context.Context, nc *nats.Conn, domain, name string) (Kept, error) {
	st, err := newAPI(nc, domain).stream(ctx, name)
	if err != nil {
		return Kept{}, err
	}
	return Kept{Bytes: int64(st.State.Bytes), MaxBytes: st.Config.MaxBytes, Replicas: max(st.Config.Replicas, 1),
		Clustered: nc.ConnectedClusterName() != "" || st.Cluster != nil && st.Cluster.Name != ""}, nil
}

// AwaitConnected waits until nc is connected, and returns an error with the mend if it is not before ctx ends.
func AwaitConnected(ctx context.Context, nc *nats.Conn) error { return awaitConnected(ctx, nc) }

// CertificateEnds returns when the certificate ends that the broker has shown; false where the connection has none.
func CertificateEnds(nc *nats.Conn) (time.Time, bool) {
	state, err := nc.TLSConnectionState()
	if err != nil {
		return time.Time{}, false
	}
	return Ends(state)
}

// Ends returns when the certificate of the other side of a connection ends.
func Ends(state tls.ConnectionState) (time.Time, bool) {
	if len(state.PeerCertificates) == 0 {
		return time.Time{}, false
	}
	return state.PeerCertificates[0].NotAfter, true
}

// CredentialsEnd returns when the credentials in a file end; false if they do not.
func CredentialsEnd(file string) (time.Time, bool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return time.Time{}, false, err
	}
	// A line of dashes, the token, a line of dashes, then the seed, as nsc writes them.
	_, rest, _ := strings.Cut(string(text), "BEGIN NATS USER JWT")
	_, rest, _ = strings.Cut(rest, "\n")
	token, _, ok := strings.Cut(rest, "\n")
	parts := strings.Split(strings.TrimSpace(token), ".")
	if !ok || len(parts) != 3 {
		return time.Time{}, false, fmt.Errorf("%s holds no NATS user credentials", file)
	}
	var claims struct {
		Expires int64 `json:"exp"`
	}
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err == nil {
		err = json.Unmarshal(body, &claims)
	}
	if err != nil {
		return time.Time{}, false, fmt.Errorf("read credentials of %s: %w", file, err)
	}
	return time.Unix(claims.Expires, 0), claims.Expires != 0, nil
}
