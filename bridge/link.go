package bridge

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/stream"
)

// links are the ways to other nodes' servers, and what is wrong with them now. Each may be several connections.
type links struct {
	mu     sync.Mutex
	faults map[string]string // by node, guarded by mu
}

// checkLinks finds what can be seen of wrong credentials without a server.
func (b *bridge) checkLinks() error {
	if _, err := readKeys(b.cfg); err != nil {
		return err
	}
	all := stream.ConnectOptions{CredentialsFile: b.cfg.NATS.CredsFile}
	if err := all.Check(); err != nil {
		return &configError{fmt.Sprintf("nats.creds_file: %v", err)}
	}
	for _, node := range slices.Sorted(maps.Keys(b.cfg.NATS.Links)) {
		o, err := b.access(node, b.cfg.Topology.Nodes[node])
		if err == nil {
			err = o.Check()
		}
		if err != nil {
			return &configError{fmt.Sprintf("nats.links.%s: %v", node, err)}
		}
	}
	return nil
}

// access says how a node's server is reached: as nats.links has it, and else as for all.
func (b *bridge) access(node, url string) (stream.ConnectOptions, error) {
	a := withKeys(b.cfg, node, b.cfg.NATS.Links[node])
	o := stream.ConnectOptions{URL: url, Node: b.cfg.Node, Name: fmt.Sprintf("pgbridge %s/%s to %s", b.cfg.Cluster, b.cfg.Node, node),
		CredentialsFile: a.CredsFile, NKeyFile: a.NKeyFile, User: a.User, Password: a.Password, Token: a.Token,
		Logger: b.log.With("link", node), OnState: func(open bool, cause error) { b.noteLink(node, open, cause) }}
	if a.URL != "" {
		o.URL = a.URL
	}
	if !a.HasCredentials() {
		o.CredentialsFile, o.Token = b.cfg.NATS.CredsFile, b.cfg.NATS.Token
	}
	var err error
	o.TLS, err = a.TLS()
	if _, other := b.cfg.Topology.Nodes[node]; o.TLS != nil && b.cfg.NATS.KeysDir != "" && (!other || node == b.cfg.Node) {
		// The own server, perhaps at an address by which others do not know it.
		if hosts := config.Hosts(b.cfg.Topology.Nodes[b.cfg.Node]); len(hosts) > 0 {
			o.TLS.ServerName = hosts[0]
		}
	}
	return o, err
}

// connect returns a connection to the NATS server of a node, at a URL unless nats.links has another one. It may be away for now.
func (b *bridge) connect(url, node string) (*nats.Conn, error) {
	o, err := b.access(node, url)
	if err != nil { // checkLinks has let it pass: somebody is replacing the file
		return nil, fmt.Errorf("nats.links.%s: %w", node, err)
	}
	return stream.Connect(o)
}

// reach returns a connection to another node's server, which may be away for now: an edge's through the door that it holds open at
// this node's broker.
func (l *life) reach(node string) (*nats.Conn, error) {
	switch {
	case !l.cfg.Edge(node):
		return l.connect(l.cfg.Topology.Nodes[node], node)
	case l.visits == nil:
		return nil, fmt.Errorf("node %s is an edge, which nobody can dial", node)
	}
	o, err := l.access(node, "")
	if err != nil {
		return nil, err
	}
	o.Through = &stream.Visitor{Conn: l.visits, Cluster: l.cfg.Cluster, Node: node, Own: l.cfg.Node}
	return stream.Connect(o)
}

// openVisits makes the connection to the own broker through which edges are reached, if there are any. It is not the publisher's,
// so that what comes from edges does not stand before acks.
func (l *life) openVisits() error {
	if l.cfg.Edge(l.cfg.Node) || !slices.ContainsFunc(peerNames(l.cfg), l.cfg.Edge) {
		return nil
	}
	nc, err := l.ownConn()
	if err == nil {
		l.visits, l.conns = nc, append(l.conns, nc)
	}
	return err
}

// noteLink takes in that a connection to a node's server was opened, or why it is not open.
func (b *bridge) noteLink(node string, open bool, cause error) {
	if !open && cause == nil {
		return // it was closed here
	}
	text := ""
	if !open {
		text = b.explainLink(node, cause)
	}
	b.links.mu.Lock()
	defer b.links.mu.Unlock()
	old := b.links.faults[node]
	if old == text {
		return
	}
	if b.links.faults == nil {
		b.links.faults = map[string]string{}
	}
	b.links.faults[node] = text
	if text == "" {
		b.log.Info("link is open", "link", node)
		return
	}
	level := slog.LevelWarn
	if b.cfg.Edge(node) { // which is away as a rule
		level = slog.LevelInfo
	}
	b.log.Log(context.Background(), level, "link is not open", "link", node, "err", text)
}

// linkFault says why there is no connection to a node's server; "" if there is one, or nothing is known.
func (b *bridge) linkFault(node string) string {
	b.links.mu.Lock()
	defer b.links.mu.Unlock()
	return b.links.faults[node]
}

// explainLink says what is wrong with a link and what to do. The client knows some of it as text only.
func (b *bridge) explainLink(node string, cause error) string {
	a, entry := b.cfg.NATS.Links[node], "nats.links."+node
	credentials := "nats.token or nats.creds_file, or " + entry
	for _, s := range []struct{ name, value string }{{"creds_file", a.CredsFile}, {"nkey_file", a.NKeyFile}, {"password_file", a.PasswordFile}, {"token_file", a.TokenFile}} {
		if s.value != "" {
			credentials = fmt.Sprintf("%s.%s (%s)", entry, s.name, s.value)
		}
	}
	mend := "correct " + credentials + ", or let that server know of them"
	if b.cfg.NATS.KeysDir != "" && !a.HasCredentials() {
		mend = "bring it the file nodes that pgbridge keys has made, and start it again, or correct nats.keys_dir here"
	}
	text := cause.Error()
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	switch {
	case errors.Is(cause, stream.ErrNotHere):
		return text
	case errors.Is(cause, nats.ErrAuthorization), errors.Is(cause, nats.ErrAuthExpired), errors.Is(cause, nats.ErrAuthRevoked), errors.Is(cause, nats.ErrAccountAuthExpired):
		return fmt.Sprintf("the NATS server of node %s refuses this node's credentials (%s); %s", node, text, mend)
	case errors.As(cause, &unknown):
		return fmt.Sprintf("the certificate of the NATS server of node %s is of an authority that is not known here; name that one's certificate as %s.ca_file", node, entry)
	case errors.As(cause, &name):
		return fmt.Sprintf("the certificate of the NATS server of node %s is for another host (%s); correct the URL in topology.nodes or %s.url, or the certificate", node, text, entry)
	case strings.Contains(text, "tls: certificate required"), strings.Contains(text, "tls: bad certificate"), strings.Contains(text, "tls: unknown certificate authority"),
		strings.Contains(text, "closed by remote after TLS handshake"): // which of them comes first is chance
		return fmt.Sprintf("the NATS server of node %s does not take this node's certificate (%s); give one that it knows as %s.cert_file and key_file", node, text, entry)
	case errors.Is(cause, nats.ErrSecureConnWanted):
		return fmt.Sprintf("the NATS server of node %s has no TLS, which its URL or %s asks for; correct them, or the server", node, entry)
	case errors.Is(cause, nats.ErrSecureConnRequired):
		return fmt.Sprintf("the NATS server of node %s wants TLS; write tls:// in its URL", node)
	}
	return fmt.Sprintf("the NATS server of node %s cannot be reached (%s); check its URL in topology.nodes or %s.url, that it runs, and firewalls in between", node, text, entry)
}
