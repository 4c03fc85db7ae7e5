package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// MinMaxPayload is the least max_payload, in bytes, of a broker: frames below that waste more on headers
// than they carry.
const MinMaxPayload = 64 << 10

// connectWait bounds the wait for a connection in CheckBroker when its context has no deadline.
const connectWait = 5 * time.Second

// Broker is what a server says of itself.
type Broker struct {
	Name, Version string
	URL           string // without user and password
	MaxPayload    int64  // bytes
	Domain        string // of JetStream; empty: none
	StoreLimit    int64  // bytes on disk for this account; -1: no limit of its own
	Store         uint64 // bytes on disk used by this account
}

// CheckBroker waits until nc is connected, at most 5 s if ctx has no deadline, and checks that frames can
// be stored there. Each error names the broker, the fault and the mend. domain: as in PublisherOptions.
func CheckBroker(ctx context.Context, nc *nats.Conn, domain string) (Broker, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, connectWait)
		defer cancel()
	}
	if err := awaitConnected(ctx, nc); err != nil {
		return Broker{}, err
	}
	b := Broker{
		Name: nc.ConnectedServerName(), Version: nc.ConnectedServerVersion(),
		URL: brokerName(nc), MaxPayload: nc.MaxPayload(),
	}
	if b.MaxPayload < MinMaxPayload {
		return b, fmt.Errorf("NATS at %s allows messages of %d bytes; set max_payload to %d or more (1MB is its default)",
			b.URL, b.MaxPayload, MinMaxPayload)
	}
	return b, checkJetStream(ctx, newAPI(nc, domain), &b)
}

func checkJetStream(ctx context.Context, a api, b *Broker) error {
	var account struct {
		Domain string `json:"domain"`
		Store  uint64 `json:"storage"`
		Limits struct {
			Store int64 `json:"max_storage"`
		} `json:"limits"`
	}
	err := a.ask(ctx, "INFO", nil, &account)
	switch {
	case err == nil:
		b.Domain, b.Store, b.StoreLimit = account.Domain, account.Store, account.Limits.Store
		return nil
	case errors.Is(err, nats.ErrNoResponders), hasCode(err, codeNotEnabled):
		return fmt.Errorf("NATS at %s has JetStream switched off; add jetstream { store_dir: ... } to its "+
			"configuration (or start nats-server with -js), and check the JetStream domain if one is set: %w", b.URL, err)
	case hasCode(err, codeNotEnabledForAccount):
		return fmt.Errorf("NATS at %s has JetStream switched off for this account; add jetstream: enabled to the "+
			"account: %w", b.URL, err)
	case errors.Is(err, nats.ErrPermissionViolation):
		return fmt.Errorf("NATS at %s refuses this user the JetStream API; allow it to publish to $JS.API.> and "+
			"to subscribe to _INBOX.>: %w", b.URL, err)
	default:
		return fmt.Errorf("ask NATS at %s for JetStream: %w", b.URL, err)
	}
}

func awaitConnected(ctx context.Context, nc *nats.Conn) error {
	status := nc.StatusChanged(nats.CONNECTED, nats.CLOSED)
	defer nc.RemoveStatusListener(status)
	for !nc.IsConnected() {
		if err := authError(nc); err != nil { // there between two attempts only
			return fmt.Errorf("NATS at %s refuses our credentials; check user, password, token or credentials file: %w",
				brokerName(nc), err)
		}
		if nc.IsClosed() || pause(ctx, minBackoff, status) != nil {
			return unreachable(nc)
		}
	}
	return nil
}

func authError(nc *nats.Conn) error {
	err := nc.LastError()
	for _, e := range []error{nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAuthRevoked, nats.ErrAccountAuthExpired} {
		if errors.Is(err, e) {
			return err
		}
	}
	return nil
}

func unreachable(nc *nats.Conn) error {
	err := nc.LastError()
	if err == nil {
		err = nats.ErrNoServers
	}
	return fmt.Errorf("NATS at %s cannot be reached; check the URL, that the server runs, and firewalls in "+
		"between: %w", brokerName(nc), err)
}
