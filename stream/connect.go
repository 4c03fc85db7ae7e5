package stream

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

const (
	dialTimeout = 3 * time.Second
	// pingInterval and pingsOut find a half-open connection within 10 to 15 s.
	pingInterval = 5 * time.Second
	pingsOut     = 2
	// writeTimeout ends a connection whose other side takes nothing any more.
	writeTimeout = 10 * time.Second
)

// ConnectOptions say how to reach a NATS server: an external broker, or a peer's.
type ConnectOptions struct {
	URL             string // nats://host:port, or several of one cluster separated by commas
	Name            string // shown in the server's list of connections
	Node            string // who asks, which answers can tell; empty: nobody
	CredentialsFile string // a NATS .creds file
	NKeyFile        string // a file with an nkey seed
	User, Password  string
	Token           string
	TLS             *tls.Config
	Through         *Visitor     // dial a node's server through its door, instead of URL
	Logger          *slog.Logger // nil: slog.Default()
	// OnState, if set, is told of each change: connected, or not and why (nil: closed). It must not block.
	OnState func(connected bool, cause error)
}

// Check finds what is wrong with the credentials' files, which Connect would find out only when the server asks.
func (o ConnectOptions) Check() error {
	if o.CredentialsFile != "" {
		text, err := os.ReadFile(o.CredentialsFile)
		if err == nil {
			_, err = nkeys.ParseDecoratedUserNKey(text)
		}
		if err != nil {
			return fmt.Errorf("%s is no NATS credentials file: %w; write one with nsc generate creds", o.CredentialsFile, err)
		}
	}
	if o.NKeyFile != "" {
		if _, err := nats.NkeyOptionFromSeed(o.NKeyFile); err != nil {
			return fmt.Errorf("%s holds no nkey seed: %w; write the seed of a user into it, which begins with SU", o.NKeyFile, err)
		}
	}
	return nil
}

// Connect returns a connection that looks for its server for ever: a server that is away is no error.
// Options that cannot be used are. Nothing is buffered while the server is away.
func Connect(o ConnectOptions) (*nats.Conn, error) {
	if o.Through != nil {
		o.URL = "nats://" + o.Through.Node // for errors
	}
	if o.URL == "" {
		return nil, errors.New("connect to NATS: no URL is configured")
	}
	opts := o.clientOptions()
	if o.Through != nil {
		opts = append(opts, nats.SetCustomDialer(o.Through), nats.SkipHostLookup())
	}
	if o.CredentialsFile != "" {
		opts = append(opts, nats.UserCredentials(o.CredentialsFile))
	}
	if o.NKeyFile != "" {
		key, err := nats.NkeyOptionFromSeed(o.NKeyFile)
		if err != nil {
			return nil, fmt.Errorf("read the nkey for %s from %q: %w", redact(o.URL), o.NKeyFile, err)
		}
		opts = append(opts, key)
	}
	if o.User != "" {
		opts = append(opts, nats.UserInfo(o.User, o.Password))
	}
	if o.Token != "" {
		opts = append(opts, nats.Token(o.Token))
	}
	if o.TLS != nil {
		opts = append(opts, nats.Secure(o.TLS))
	}
	nc, err := nats.Connect(o.URL, opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS at %s: %w", redact(o.URL), err)
	}
	return nc, nil
}

// clientOptions are those that every connection has, also the one in the process.
func (o ConnectOptions) clientOptions() []nats.Option {
	log := o.Logger
	if log == nil {
		log = slog.Default()
	}
	onState := o.OnState
	if onState == nil {
		onState = func(bool, error) {}
	}
	return []nats.Option{
		nats.Name(o.Name),
		nats.CustomInboxPrefix(inboxOf(o.Node)),
		nats.Timeout(dialTimeout),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(), // credentials may be put right while we try
		nats.CustomReconnectDelay(backoff),
		nats.ReconnectBufSize(-1),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(pingsOut),
		nats.FlusherTimeout(writeTimeout),
		nats.ErrorHandler(func(nc *nats.Conn, sub *nats.Subscription, err error) { logAsync(log, nc, sub, err) }),
		nats.ConnectHandler(func(*nats.Conn) { onState(true, nil) }),
		nats.ReconnectHandler(func(*nats.Conn) { onState(true, nil) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { onState(false, err) }),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { onState(false, err) }),
		nats.ClosedHandler(func(*nats.Conn) { onState(false, nil) }),
	}
}

// logAsync logs what comes back on no call: above all a missing permission, whose text names the subject.
func logAsync(log *slog.Logger, nc *nats.Conn, sub *nats.Subscription, err error) {
	switch {
	case errors.Is(err, nats.ErrPermissionViolation):
		log.Error("broker refused a subject; grant it to this user", "broker", brokerName(nc), "err", err)
	case errors.Is(err, nats.ErrSlowConsumer):
		log.Debug("messages dropped, they will be read again", "broker", brokerName(nc), "subject", sub.Subject)
	default:
		log.Warn("broker reported an error", "broker", brokerName(nc), "err", err)
	}
}

// inboxes begin the subjects on which answers come.
const inboxes = "_INBOX"

// inboxOf begins those of a node. Where a node may subscribe to its own alone (PeerPermissions), what is answered there is read by nobody else,
// whoever has asked.
func inboxOf(node string) string {
	if node == "" {
		return inboxes
	}
	return inboxes + "." + node
}

// askerOf is the node that reads what is answered on a subject; empty: it cannot be told.
func askerOf(reply string) string {
	rest, ok := strings.CutPrefix(reply, inboxes+".")
	node, _, more := strings.Cut(rest, ".")
	if !ok || !more || checkName("node", node) != nil {
		return ""
	}
	return node
}

// redact takes user and password out of a list of URLs.
func redact(list string) string {
	urls := strings.Split(list, ",")
	for i, s := range urls {
		if s = strings.TrimSpace(s); !strings.Contains(s, "://") {
			s = "nats://" + s // as the client reads it
		}
		u, err := url.Parse(s)
		if err != nil {
			urls[i] = "(a URL that cannot be parsed)"
			continue
		}
		u.User = nil
		urls[i] = u.String()
	}
	return strings.Join(urls, ",")
}
